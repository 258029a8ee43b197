"""Calls and files carried to a host by the user's own OpenSSH."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tarfile import USTAR_FORMAT, TarInfo

from tailorbird.errors import MeasurementError
from tailorbird.measure.devices.remote import MOST_BYTES, Answer, last_line, program

_BLOCK_BYTES = 1 << 20
_FAILED = 255
_INSTALL = "install the OpenSSH client, such as by: apt-get install openssh-client"

_KEEP_CODE = '"$@"; c=$?; exit $((c > 250 ? 250 : c))'
"""Runs a program in a shell that stays, so that 255 is ssh's own failure and signals are told."""


@dataclass(frozen=True)
class SshTransport:
    """Carries calls and files to a host; implements :class:`.remote.Transport`.

    Args:
        host: as ``ssh`` takes it.
        config: a file instead of the user's ``~/.ssh/config``.
        connect_s: seconds for a connection.
    """

    host: str
    config: Path | None
    connect_s: int

    @property
    def title(self) -> str:
        """The host, for messages."""
        return f"ssh {self.host}"

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
            MeasurementError: when the host is not reached, or a limit is exceeded.
        """
        command = shlex.join(["sh", "-c", _KEEP_CODE, "sh", *argv])
        answer = program(
            [*self._ssh(), "--", self.host, command],
            title=self.title,
            install=_INSTALL,
            limit_s=limit_s + self.connect_s,
            send=send,
            hold=hold,
            most_bytes=most_bytes,
        )
        if answer.code == _FAILED or answer.code < 0:
            raise MeasurementError(f"{self.title}: {why(answer.err, self.host, self.connect_s)}")
        return answer

    def put(self, files: Mapping[str, Path], folder: str, *, limit_s: float) -> Answer:
        """Copy files by one stream; see :class:`.remote.Transport`.

        Raises:
            MeasurementError: as `call` does.
        """
        unpack = 'cd "$1" && tar -xf - || { c=$?; rm -rf "$1"; exit $c; }'
        argv = ["sh", "-c", unpack, "sh", folder]
        return self.call(argv, limit_s=limit_s, send=_archive(files))

    def _ssh(self) -> list[str]:
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
            "PermitLocalCommand": "no",
            "RequestTTY": "no",
            "RemoteCommand": "none",
            "ConnectTimeout": str(self.connect_s),
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "LogLevel": "ERROR",
        }
        given = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return ["ssh", *(["-F", str(self.config)] if self.config else []), *given]


def why(said: str, host: str, connect_s: int) -> str:
    """Why ``ssh`` failed, and the way out.

    Example:
        >>> why("ssh: Could not resolve hostname pie: Name or service not known", "pie", 9)
        'there is no host of this name (ssh: Could not resolve hostname pie: Name or service not \
known); check it, or give it a HostName in ~/.ssh/config'
    """
    line = last_line(said)
    name = host.rpartition("@")[2]
    for pattern, told in (
        (
            "REMOTE HOST IDENTIFICATION HAS CHANGED|host key for .* has changed|REVOKED HOST KEY",
            "its host key has changed since it was last seen, so nothing was sent: it was "
            "installed anew, or somebody is in between; compare the fingerprint with the device's "
            f"own, then forget the old key by: ssh-keygen -R {name}",
        ),
        (
            "host key is known for|Host key verification failed",
            "its host key is not known here, so nothing was sent; compare the fingerprint that "
            f"this shows with the device's own, then accept it: ssh {host}",
        ),
        (
            r"Permission denied \(|Too many authentication failures",
            f"no key of this user is let in ({line}); put one there by: ssh-copy-id {host}, or "
            "name it as IdentityFile in ~/.ssh/config; passwords are not asked for",
        ),
        (
            "Could not resolve hostname",
            f"there is no host of this name ({line}); check it, or give it a HostName in "
            "~/.ssh/config",
        ),
        (
            "Connection refused",
            f"it refuses connections ({line}); start its ssh server, or name its Port in "
            "~/.ssh/config",
        ),
        (
            "timed out|No route to host|Network is unreachable|Host is down",
            f"it did not answer within {connect_s} s ({line}); see whether it is on and in this "
            "network",
        ),
        (
            "configuration option|configuration file|bad permissions|bad owner",
            f"the configuration of ssh can't be used ({line}); mend it",
        ),
    ):
        if re.search(pattern, said, re.IGNORECASE):
            return told
    return (
        f"the connection was lost ({line or 'ssh said nothing'}); see whether the device is still "
        "on, then run the same command again"
    )


def _archive(files: Mapping[str, Path]) -> Iterator[bytes]:
    """Files as a tar archive, block by block."""
    for name, path in files.items():
        info = TarInfo(name)
        info.size, info.mode = path.stat().st_size, 0o600
        yield info.tobuf(format=USTAR_FORMAT)
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
        yield bytes(-info.size % 512)
    yield bytes(1024)
