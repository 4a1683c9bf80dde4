"""A path as whoever answers it may read it in the end, whatever a client wrote into it.

A router takes a line's end for none, an HTTP client resolves dots and cuts off what looks like a query, and a
server upstream decodes once more: a path that is written oddly must not be one that nobody meters.
"""

from __future__ import annotations

import re
from posixpath import normpath
from urllib.parse import unquote

_is_plain = re.compile(r"[a-z0-9/_:.@~+,=-]*").fullmatch
_MOST_DECODED = 3


def plain_path(path: str) -> str | None:
    """The path in small letters, decoded, without dots and what follows it; None if it is that already."""
    if _is_plain(path) and "/." not in path and "//" not in path:
        return None
    for _ in range(_MOST_DECODED):
        if "%" not in path:
            break
        path = unquote(path)
    plain = re.split(r"[?#;]", path, maxsplit=1)[0].replace("\\", "/").lower()
    return normpath("/" + "".join(plain.split()).lstrip("/"))
