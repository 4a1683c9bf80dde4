"""Amazon's binary event streams: frames with named headers, each holding one event in JSON."""

from __future__ import annotations

import json
from binascii import a2b_base64
from typing import Any

from ..usage import Reading
from .streams import StreamTally

FRAMED = "application/vnd.amazon.eventstream"

_PRELUDE = 12
"""Length of the frame, length of its headers, checksum of both."""
_CHECKSUM = 4
_LONGEST_FRAME = 24 * 1024 * 1024
_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Bytes of a header's value by its type; strings and bytes (7 and 6) say their length themselves."""


class WireFrames:
    """Reads an `application/vnd.amazon.eventstream`, as Bedrock streams, from its bytes, cut anywhere."""

    __slots__ = ("_held", "_left_text", "_lost", "_tally")

    def __init__(self, provider: str | None, api: str | None, max_bytes: int, keep_text: bool) -> None:
        self._tally = StreamTally(provider=provider, api=api, keep_text=keep_text)
        self._held = bytearray()
        self._lost = False
        self._left_text = max_bytes

    def feed(self, chunk: bytes) -> None:
        if self._lost:
            return
        self._held += chunk
        done = 0
        while len(self._held) - done >= _PRELUDE:
            size = int.from_bytes(self._held[done : done + 4], "big")
            if not _PRELUDE + _CHECKSUM <= size <= _LONGEST_FRAME:
                self._lost = True  # not frames, or damaged: where the next one begins is not known
                self._tally.unreadable += 1
                break
            if len(self._held) - done < size:
                break
            self._take(bytes(self._held[done : done + size]))
            done += size
        del self._held[:done]

    @property
    def complete(self) -> bool:
        return self._tally.complete

    @property
    def failed(self) -> bool:
        return self._tally.failed

    @property
    def tokens_so_far(self) -> int:
        return self._tally.tokens_so_far

    def result(self) -> Reading:
        return self._tally.result()

    def so_far(self) -> Reading:
        return self._tally.so_far()

    def _take(self, frame: bytes) -> None:
        self._left_text -= len(frame)
        try:
            names, payload = unframed(frame)
            event = event_of(names, payload)
        except Exception:
            self._tally.unreadable += 1
            return
        if event is None:
            self._tally.failed = True
            return
        self._tally.feed(event)
        if self._left_text < 0:
            self._tally.forget_text()


def unframed(frame: bytes) -> tuple[dict[str, str], bytes]:
    """The headers that are text, and the payload of one whole frame."""
    end = _PRELUDE + int.from_bytes(frame[4:8], "big")
    if end > len(frame) - _CHECKSUM:
        raise ValueError("the headers are longer than the frame")
    names: dict[str, str] = {}
    at = _PRELUDE
    while at < end:
        begin = at + 1
        at = begin + frame[at]
        name = frame[begin:at].decode()
        kind = frame[at]
        at += 1
        size = _SIZES.get(kind)
        if size is None:
            size = int.from_bytes(frame[at : at + 2], "big")
            at += 2
        if kind == 7:
            names[name] = frame[at : at + size].decode()
        at += size
    return names, frame[end : len(frame) - _CHECKSUM]


def event_of(names: dict[str, str], payload: bytes) -> dict[str, Any] | None:
    """The event as Bedrock's SDK would show it; None for an error."""
    if names.get(":message-type") not in (None, "event"):
        return None
    body = json.loads(payload)
    if isinstance(body, dict) and isinstance(packed := body.get("bytes"), str):
        body = json.loads(a2b_base64(packed))
        return body if isinstance(body, dict) else {}
    return {names.get(":event-type", "event"): body}
