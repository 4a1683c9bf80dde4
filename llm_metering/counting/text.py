"""Counting the tokens of a text: exact, offline, and safe on hostile input."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from .models import encoding_for
from .vocabulary import counts_as, encoding

_LONG = 500_000
"""tiktoken's o200k panics on a run of 999 999 blanks; texts shorter than this cannot hold one."""
_BLANKS = re.compile(r"(\s{100000})")
_PIECE = 32_768
"""tiktoken keeps the interpreter to itself while it makes its list of tokens, 5 to 8 ms for a megabyte: of a
long text that is done piece by piece, so that an event loop on another thread never waits long."""
_CUT = re.compile(r"[A-Za-z](?:(?= [A-Za-z])|\n(?=[A-Za-z]))")
"""Where no token can reach across, in any encoding: between two words, and before the first of a line."""
_CACHED_FROM, _CACHED_TO = 256, 32_768
"""Lengths of text whose count is remembered: system prompts, which come again and again."""


def count_text(text: str, model: str | None = None) -> int:
    """How many tokens tiktoken makes of a text, in the model's own encoding.

    An unknown model is counted with o200k_base. Special tokens in the text, such as `<|endoftext|>`, are
    counted as the characters they are. Loads the encoding on first use (0.1 to 0.3 s).
    """
    return count_in(encoding_for(model)[0], text)


def count_in(name: str, text: str) -> int:
    """How many tokens a text has in an encoding."""
    if not text:
        return 0
    if _CACHED_FROM <= len(text) <= _CACHED_TO:
        return _remembered(counts_as(name), text)
    return _count(counts_as(name), text)


@lru_cache(maxsize=256)
def _remembered(name: str, text: str) -> int:
    return _count(name, text)


def _count(name: str, text: str) -> int:
    encode = encoding(name).encode_ordinary
    if len(text) <= _PIECE:
        return len(encode(text))
    return sum(len(encode(piece)) for piece in _pieces(text))


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces whose tokens add up to its own."""
    at = 0
    while at < len(text):
        cut = _CUT.search(text, at + _PIECE)
        end = len(text) if cut is None else cut.end()
        if end - at < _LONG:
            yield text[at:end]
        else:
            yield from filter(None, _BLANKS.split(text[at:end]))
        at = end
