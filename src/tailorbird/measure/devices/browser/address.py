"""The address at which a device finds its page, as text and as a QR code."""

from __future__ import annotations

import io
import ipaddress
import socket
from contextlib import closing

_FAR_AWAY = ("192.0.2.1", 9)
"""Of the block that is for documentation: nothing is sent there, only the way is looked up."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it.

    Example:
        >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "box.lan")]
        [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_of(host: str, port: int, token: str, *, secure: bool) -> str:
    """The page's address; one of this machine's own where it listens on all.

    Example:
        >>> url_of("::1", 8000, "token", secure=False)
        'http://[::1]:8000/token/'
    """
    shown = _outward() if host in {"0.0.0.0", "::"} else host
    name = f"[{shown}]" if ":" in shown else shown
    return f"http{'s' if secure else ''}://{name}:{port}/{token}/"


def _outward() -> str:
    """This machine's address as others see it, as far as it knows."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(_FAR_AWAY)
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def qr_code(url: str) -> str:
    """A QR code in half blocks of text; empty where the package ``segno`` is not installed."""
    try:
        import segno
    except ImportError:
        return ""
    drawn = io.StringIO()
    segno.make(url, micro=False).terminal(out=drawn, border=2, compact=True)
    return drawn.getvalue()
