"""A prompt's size without a tokenizer, for what is billed should a process die right after a stream began."""

from __future__ import annotations

from typing import Any


def rough_tokens(request: Any) -> int:
    """How many tokens a prompt has at least, or nearly so, without a tokenizer; pictures and sound are left
    out."""
    if isinstance(request, (bytes, bytearray)):
        request = _parsed(request)
    chars = looked = 0
    left = [request]
    while left and chars < _MAX_ROUGH_CHARS and looked < _MAX_ROUGH_ITEMS:
        item = left.pop()
        looked += 1
        if isinstance(item, str):
            chars += 0 if item.startswith("data:") else len(item)
        elif isinstance(item, dict):
            left += [value for name, value in item.items() if name not in _NOT_TEXT]
        elif isinstance(item, (list, tuple)):
            left += item
    return chars // _CHARACTERS_A_TOKEN


def _parsed(body: bytes | bytearray) -> Any:
    """A body, where parsing it is quick; else its text, unless there may be pictures in it."""
    if len(body) > _MAX_PARSED_BYTES:
        return "" if b"base64" in body else str(body, "utf-8", "replace")
    import json

    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return ""


_CHARACTERS_A_TOKEN = 6
"""Prose has four to five a token, code three, other scripts fewer: what is only estimated is rather billed
too low than too high."""
_MAX_PARSED_BYTES = 65_536
_MAX_ROUGH_CHARS = 4_000_000
_MAX_ROUGH_ITEMS = 10_000
_NOT_TEXT = frozenset(("data", "file_data", "image_url", "input_audio"))
