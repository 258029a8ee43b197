"""What a user names as ``package.module:name``: the one place where such names are looked up."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from tailorbird.errors import ConfigError, TailorbirdError

_UNPICKLED = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "file", "custom_load")
"""Arguments of timm's, at any depth, that may name files, which some of its versions unpickle."""

_DEEPEST = 50

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_factory(text: str) -> bool:
    """Whether a text has the form ``package.module:name``.

    Example:
        >>> is_factory("torch.nn:Identity"), is_factory("cifar10")
        (True, False)
    """
    return _NAME.fullmatch(text) is not None


def make_importable(folder: Path) -> None:
    """Let names be found in modules of ``folder`` too, after all installed ones.

    It stays so for the rest of the process.
    """
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.append(place)


def resolve_factory(source: str) -> Callable[..., object]:
    """Import the callable that ``package.module:name`` names.

    Raises:
        ConfigError: saying what could not be imported, and near matches for the name.

    Example:
        >>> resolve_factory("collections:OrderedDict")
        <class 'collections.OrderedDict'>
    """
    path, _, name = source.partition(":")
    near = difflib.get_close_matches(path, ("timm", "torchvision"), 1)
    hint = f"; did you mean {near[0]}:{name}?" if near else ""
    if not all(part.isidentifier() for part in [*path.split("."), *name.split(".")]):
        raise ConfigError(f"{source!r}: expected package.module:name{hint}")
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:  # a module's own code may raise anything on import
        raise ConfigError(
            f"{source}: can't import '{path}': {type(error).__name__}: {error}{hint}; install the "
            "package, or put its folder on PYTHONPATH (PYTHONPATH=. for a file beside the job)"
        ) from error
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            callables = [n for n in dir(found) if callable(getattr(found, n)) and n[0] != "_"]
            matches = difflib.get_close_matches(part, callables, n=5, cutoff=0.5)
            known = f"; near matches: {', '.join(matches)}" if matches else ""
            raise ConfigError(f"{source}: '{path}' has no '{part}'{known}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{source}: expected a class or function, got {type(found).__name__}")
    return cast("Callable[..., object]", found)


def call_factory(
    source: str, arguments: Mapping[str, object] | None = None, *given: object
) -> object:
    """What the callable that ``source`` names gives for keyword arguments, and those ``given``.

    Raises:
        TailorbirdError: the callable's own, or a ConfigError that says how it failed.
    """
    make, named = resolve_factory(source), dict(arguments or {})
    refuse_unpickled(source, make, named)
    try:
        return make(*given, **named)
    except TailorbirdError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ConfigError(
            f"{source}: calling it with {named or 'no arguments'} failed: "
            f"{type(error).__name__}: {error}"
        ) from error


def refuse_unpickled(
    source: str, make: Callable[..., object], arguments: Mapping[str, object]
) -> None:
    """Refuse what makes timm read files of its own accord, under whatever name it is called.

    Args:
        source: the name, for messages.
        make: what it leads to; code from elsewhere than timm may take any arguments.
        arguments: for it.

    Raises:
        ConfigError: naming the arguments.

    Example:
        >>> import timm
        >>> refuse_unpickled("mine:net", timm.create_model, {"checkpoint_path": "a.pth"})
        Traceback (most recent call last):
        ...
        tailorbird.errors.ConfigError: model mine:net: checkpoint_path: timm may unpickle the file \
that is named, which can run code; give it as checkpoint instead
    """
    code = make.func if isinstance(make, partial) else make
    places = (source.partition(":")[0], str(getattr(code, "__module__", "")))
    if all(place.partition(".")[0] != "timm" for place in places):
        return
    named = list(dict.fromkeys(_unpickled(arguments)))
    if named:
        raise ConfigError(
            f"model {source}: {', '.join(named)}: timm may unpickle the file that is named, "
            "which can run code; give it as checkpoint instead"
        )


def _unpickled(value: object, path: str = "", depth: int = 0) -> Iterator[str]:
    """Dotted places of arguments that name files."""
    if depth > _DEEPEST:
        yield f"{path[:60]}... (nested too deeply to be read)"
    elif isinstance(value, Mapping):
        for key, one in value.items():
            place = f"{path}.{key}" if path else str(key)
            if key in _UNPICKLED and one:
                yield place
            else:
                yield from _unpickled(one, place, depth + 1)
    elif isinstance(value, (list, tuple)):
        for number, one in enumerate(value):
            yield from _unpickled(one, f"{path}.{number}", depth + 1)
    elif isinstance(value, str) and value.startswith(("local-dir:", "local_dir:")):
        yield path


def own(source: str, kind: type, arguments: Mapping[str, object] | None = None) -> Any:  # noqa: ANN401  # a protocol is no type that mypy lets stand for its own
    """An object of the user's own that is to serve as ``kind``, a protocol; see `call_factory`.

    Raises:
        TailorbirdError: as `call_factory`; a ConfigError where members of the protocol are missing.

    Example:
        >>> from tailorbird.targets import Device
        >>> own("collections:OrderedDict", Device)
        Traceback (most recent call last):
        ...
        tailorbird.errors.ConfigError: collections:OrderedDict: expected a device with key,
        measure, got OrderedDict without key, measure
    """
    return of_kind(call_factory(source, arguments), source, kind)


def of_kind(made: object, source: str, kind: type) -> Any:  # noqa: ANN401  # as above
    """``made`` itself, once it is known to have all members of the protocol ``kind``.

    Raises:
        ConfigError: naming those that it lacks.
    """
    wanted = [name for name in vars(kind) if name[0] != "_"]
    try:
        lacks = [name for name in wanted if not _has(made, name, getattr(kind, name))]
    except (Exception, SystemExit) as error:  # a property is the user's code too
        raise ConfigError(
            f"{source}: expected a {kind.__name__.lower()} with {', '.join(wanted)}, and reading "
            f"these of {type(made).__name__} raised {type(error).__name__}: {error}"
        ) from error
    if lacks or isinstance(made, type):
        raise ConfigError(
            f"{source}: expected a {kind.__name__.lower()} with {', '.join(wanted)}, got "
            f"{type(made).__name__}{' without ' if lacks else ''}{', '.join(lacks)}"
        )
    return made


def _has(made: object, name: str, member: object) -> bool:
    if not hasattr(made, name):
        return False
    return not inspect.isfunction(member) or callable(getattr(made, name))
