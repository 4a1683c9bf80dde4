"""Both ends of a JSON object, parsed without what lies between, so that length does not matter."""

from __future__ import annotations

import json
import re
from typing import Any

_VALUE = (
    rb'(?:"[^"\\]{0,256}"|[-+.\w]+|\[\]'
    rb'|\{[^{}"\\]{0,256}(?:"[^"\\]{0,64}"[^{}"\\]{0,256}){0,16}\})'
)
_DECODER = json.JSONDecoder()
_HEAD = re.compile(rb'\s*\{\s*(?:"[^"\\]{0,64}"\s*:\s*' + _VALUE + rb"\s*,\s*)*")
"""The plain pairs at the beginning of an object: strings without escapes, numbers, flat objects."""


def ends_of(head: bytes, tail: bytes) -> dict[str, Any] | None:
    """The plain pairs at the beginning of a JSON object and all pairs from its usage on to its end.

    Sure where it gives anything: what follows the key closes exactly one brace more than it opens, so the
    key belongs to the outermost object; and a quote inside of a string would have a backslash before it.
    """
    plain = plain_head(head)
    at = tail.rfind(b'"usage')
    if b'"model"' not in plain and (model := tail.rfind(b'"model"', 0, max(at, 0))) > 0:
        at = model if at - model < 1024 else at
    if not plain or at <= 0 or (tail is head and at < len(plain)) or tail[at - 1 : at] == b"\\":
        return None
    try:
        text = (plain + tail[at:]).decode()
        found, end = _DECODER.raw_decode(text)
        if end != len(text) and not text[end:].isspace():
            return None
    except (ValueError, RecursionError):
        return None
    return found if type(found) is dict else None


def plain_head(head: bytes) -> bytes:
    """The beginning of an object as far as its pairs are plain; empty where there is no object."""
    begun = _HEAD.match(head)
    return b"" if begun is None else begun.group()
