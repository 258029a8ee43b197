"""Calls and files carried to an Android device by the user's own ``adb``."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailorbird.errors import MeasurementError
from tailorbird.measure.devices.remote import (
    MOST_BYTES,
    SHORT_S,
    Answer,
    clean,
    last_line,
    program,
    text,
)

_INSTALL = "install it with Android's platform tools, such as by: apt-get install adb"
_BROKEN = (1, 255)
"""What adb ends with, silently, where a connection breaks; programs there say why they failed."""

_OWN_FAULT = re.compile(
    r"^(?:adb: |error: )(?:error: )?(?:device|no devices|more than one|closed|protocol|connect|"
    r"cannot connect|insufficient|unknown host|transport)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class AdbTransport:
    """Carries calls and files to one device; implements :class:`.remote.Transport`.

    Args:
        serial: as ``adb devices`` lists it.
    """

    serial: str

    @property
    def title(self) -> str:
        """The device, for messages."""
        return f"adb {self.serial}"

    def call(
        self,
        argv: Sequence[str],
        *,
        limit_s: float,
        send: Iterable[bytes] = (),
        hold: bool = False,
        most_bytes: int = MOST_BYTES,
    ) -> Answer:
        """Run a program there; see :class:`.remote.Transport`.

        Raises:
            MeasurementError: when the device is not reached, or a limit is exceeded.
        """
        return self._adb(
            ["shell", "-T", shlex.join(argv)],
            limit_s=limit_s,
            send=send,
            hold=hold,
            most_bytes=most_bytes,
        )

    def put(self, files: Mapping[str, Path], folder: str, *, limit_s: float) -> Answer:
        """Copy files by one push; see :class:`.remote.Transport`.

        Raises:
            MeasurementError: as `call` does.
        """
        with tempfile.TemporaryDirectory() as place:  # files keep their names when they are pushed
            for name, path in files.items():
                shutil.copyfile(path, Path(place) / name)
            copies = [str(Path(place) / name) for name in files]
            return self._adb(["push", *copies, f"{folder}/"], limit_s=limit_s)

    def _adb(
        self,
        argv: Sequence[str],
        *,
        limit_s: float,
        send: Iterable[bytes] = (),
        hold: bool = False,
        most_bytes: int = MOST_BYTES,
    ) -> Answer:
        answer = program(
            ["adb", "-s", self.serial, *argv],
            title=self.title,
            install=_INSTALL,
            limit_s=limit_s,
            send=send,
            hold=hold,
            most_bytes=most_bytes,
        )
        silent = answer.code in _BROKEN and not answer.err.strip()
        if answer.code < 0 or silent or (answer.code and _OWN_FAULT.search(answer.err)):
            raise MeasurementError(f"{self.title}: {_why(answer.err)}")
        return answer


def connected(serial: str | None) -> AdbTransport:
    """The way to a device, which has to be there and willing.

    Args:
        serial: of the device; ``None`` for the only one.

    Raises:
        MeasurementError: for none, several without a serial, or one that does not let us in.
    """
    title = f"adb {serial or 'device'}"
    answer = program(["adb", "devices"], title=title, install=_INSTALL, limit_s=SHORT_S)
    if answer.code:
        raise MeasurementError(
            f"{title}: 'adb devices' failed ({last_line(answer.err)}); see that it works"
        )
    pairs = [line.split(maxsplit=1) for line in text(answer.out).splitlines()]
    states = {one[0]: one[1].strip() for one in pairs if len(one) == 2 and one[0] != "List"}
    listed = clean(", ".join(states)) or "none"
    if serial is None and len(states) > 1:
        raise MeasurementError(
            f"{title}: {len(states)} devices are connected; give the serial of one: {listed}"
        )
    if not states or (serial is not None and serial not in states):
        raise MeasurementError(
            f"{title}: it is not connected (connected: {listed}); plug it in, switch on USB "
            "debugging in its developer options, and see that 'adb devices' lists it"
        )
    found = serial or next(iter(states))
    if states[found] != "device":
        raise MeasurementError(f"adb {found}: {_why(states[found])}")
    return AdbTransport(found)


def _why(said: str) -> str:
    """Why ``adb`` failed, and the way out.

    Example:
        >>> _why("unauthorized")
        'it has not allowed this computer (unauthorized); unlock it and accept the question there'
    """
    line = last_line(said)
    for pattern, told in (
        (
            "unauthorized|authorizing",
            f"it has not allowed this computer ({line}); unlock it and accept the question there",
        ),
        (
            "offline",
            f"it does not answer ({line}); unlock it, or plug it in again",
        ),
        (
            "no permissions|insufficient permissions",
            f"this user may not use its USB port ({line}); add udev rules for it, or: adb "
            "kill-server, then start adb as a user who may",
        ),
        (
            "recovery|sideload|bootloader",
            f"it is not started up ({line}); start Android on it",
        ),
    ):
        if re.search(pattern, said):
            return told
    return (
        f"the connection was lost ({line or 'adb said nothing'}); see whether it is plugged in and "
        "awake, then run the same command again"
    )
