"""What all the streams share: text as deltas, and server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .answers import Answer

Events = Iterator[tuple[str, "int | None"]]
"""Pieces of a stream as they go over the wire, each with how many words have left once it is sent."""


def pieces(answer: Answer) -> Iterator[tuple[str, int]]:
    """The text word by word, as deltas."""
    for n, word in enumerate(answer.words, 1):
        yield (word if n == 1 else f" {word}"), n


def sse(data: dict[str, Any] | str, *, named: bool = False) -> str:
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    head = f"event: {data['type']}\n" if named and isinstance(data, dict) else ""
    return f"{head}data: {text}\n\n"
