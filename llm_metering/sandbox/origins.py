"""Where a request comes from, as far as a browser says: another site's page may not act for its reader."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from .wire import Request


def from_here(request: Request) -> bool:
    """Whether a browser says that a page of this very address sent it. Programs say nothing."""
    origin = request.header(b"origin")
    if origin is not None:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc == request.header(b"host")
    return request.header(b"sec-fetch-site") == "same-origin"


def from_elsewhere(request: Request) -> bool:
    """Whether a browser says that a page of another address sent it."""
    return request.header(b"origin") is not None and not from_here(request)


def is_near(request: Request) -> bool:
    """Whether it was sent to an address that no page elsewhere can have a name for: an IP address,
    localhost, or a name without a dot. A public name that was made to point here could read what it likes.
    """
    name = urlsplit(f"//{request.header(b'host') or ''}").hostname or ""
    if "." not in name or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
