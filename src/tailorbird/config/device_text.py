"""A device in a line: ``KIND [VALUE] key=value ...``, in the words of job files."""

from __future__ import annotations

import shlex
import typing
from pathlib import Path

from tailorbird.config.devices import DeviceReader, Kinds, own_fields
from tailorbird.config.reader import read
from tailorbird.config.sections import REQUIRED, Faults, Field, near, near_or_own
from tailorbird.config.targets import DEVICES, load_devices
from tailorbird.device import Device
from tailorbird.errors import ConfigError
from tailorbird.factories import is_factory

OPTION = "--device"
"""What faults are told of."""

_EXAMPLES = (
    "'onnxruntime threads=2', 'ssh pi@raspberry', 'package.module:factory' or 'job.yaml#edge'"
)


def device_called(text: str, *, folder: Path, kinds: Kinds = DEVICES) -> Device:
    """The device that a text names.

    The text is a kind, maybe a value for its first setting that has to be given (or its first
    one, where none has to), and settings as ``key=value``, as they would stand in a job file. For
    one of the user's own they are arguments of its factory. Or it is ``FILE#NAME``: that of a
    target, or of one of the ``devices``, of a job or fleet file.

    Args:
        text: such as ``"onnxruntime threads=2"``.
        folder: where paths start and modules are found.
        kinds: of devices.

    Raises:
        ConfigError: with the faults that a job file with this device would have.

    Example:
        >>> device_called("onnxruntime threads=1 runs=15", folder=Path()).runs
        15
        >>> device_called("onnxruntime threds=2", folder=Path())
        Traceback (most recent call last):
        ...
        tailorbird.errors.ConfigError: --device.threds: unknown key; did you mean 'threads'?
    """
    try:
        kind, *words = shlex.split(text)
    except ValueError as error:
        what = f"expected a device such as {_EXAMPLES}"
        raise ConfigError(f"{OPTION}: {what}, got {text!r}") from error
    file, hash_, name = text.strip().rpartition("#")
    if hash_ and kind not in kinds and not is_factory(kind):
        return _of_file(folder / Path(file).expanduser(), name)
    if kind not in kinds and not is_factory(kind):
        hint = near_or_own(kind, kinds)
        raise ConfigError(f"{OPTION}: unknown kind {kind!r}{hint}, or FILE#NAME of a job")
    faults = Faults({})
    fields = own_fields(kinds[kind]) if kind in kinds else None
    given = _settings(faults, words, fields)
    section = {"kind": kind} | (given if fields is not None else {"arguments": given})
    reader = DeviceReader(faults, folder, "device", kinds)
    _, spot = reader.read((OPTION,), section)
    if faults.found or spot.place.device is None:
        raise ConfigError(faults.found)
    return spot.place.device


def _settings(
    faults: Faults, words: list[str], fields: dict[str, Field] | None
) -> dict[str, object]:
    """Keys and values; ``fields`` are those of the kind, ``None`` where any may be given."""
    found: dict[str, object] = {}
    for number, word in enumerate(words):
        key, sign, text = word.partition("=")
        if not sign:
            first = _first(fields) if number == 0 else None
            if first is None:
                faults.add((OPTION,), f"expected key=value after the kind, got {word!r}")
                continue
            key, text = first, word
        if key in found:
            faults.add((OPTION, key), "is given twice")
        found[key] = _value(text, None if fields is None else fields.get(key))
    return found


def _first(fields: dict[str, Field] | None) -> str | None:
    """The setting that needs no name."""
    names = list(fields or ())
    needed = [name for name in names if fields and fields[name].default is REQUIRED]
    return next(iter([*needed, *names]), None)


def _value(text: str, field: Field | None) -> object:
    """A value as YAML reads it; the text itself where a setting is text and no number."""
    try:
        value = read(f"v: {text}").data["v"]
    except ConfigError:
        return text
    if field is None:
        return value
    kinds = {field.kind, *typing.get_args(field.kind)}
    return text if kinds & {str, Path} and not isinstance(value, (str, *_plain(kinds))) else value


def _plain(kinds: set[object]) -> tuple[type, ...]:
    """Types, other than texts, that a setting may have."""
    return tuple(kind for kind in kinds if kind in (int, float, bool, type(None)))


def _of_file(path: Path, name: str) -> Device:
    """The device of a file's target or device of that name."""
    targets = load_devices(path)
    places = {target.place.name: target.place for target in targets}
    places |= {target.name: target.place for target in targets}
    if name not in places:
        raise ConfigError(f"{OPTION}: {path} has no target or device {name!r}{near(name, places)}")
    device = places[name].device
    if device is None:
        raise ConfigError(
            f"{OPTION}: {name!r} of {path} has only a latency table; nothing runs there"
        )
    return device
