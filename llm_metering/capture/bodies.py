"""Bodies as they pass: a request's kept within a bound, a compressed answer's inflated within a bound."""

from __future__ import annotations

import json
import re
from contextlib import suppress

from .inflating import Damaged, Decompressor, decompressor_of, package_for


class KeptBody:
    """A body put together from its chunks, unless it grows too large."""

    __slots__ = ("_chunks", "_limit", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """Keep a chunk; past the bound everything is let go."""
        self._size += len(chunk)
        if self._size <= self._limit:
            self._chunks.append(bytes(chunk))
        else:
            self._chunks.clear()

    @property
    def is_too_large(self) -> bool:
        return self._size > self._limit

    def bytes(self) -> bytes | None:
        """What was kept, None where it was nothing or too much."""
        if len(self._chunks) > 1:
            self._chunks[:] = [b"".join(self._chunks)]
        return self._chunks[0] if self._chunks else None


_PIECE = 16 * 1024
_MOST_FRAMES = 4096
"""In one piece of an answer. Some servers compress each event for itself; empty parts cost time, and are
without number."""


class Inflater:
    """Inflates a compressed body as it comes. The compressed bytes go on as they are.

    Args:
        encoding: The answer's content encoding: gzip or deflate, and br or zstd where their packages are
            installed.
        limit: How many bytes may come out in all.
    """

    __slots__ = ("_encoding", "_frame", "_frames_left", "_left", "_limit", "_new_frame", "problem")

    def __init__(self, encoding: str, limit: int) -> None:
        self.problem: str | None = None
        """Why no more comes out: another encoding, damage, or the limit."""
        self._encoding = encoding
        self._limit = limit
        self._left = limit
        self._frames_left = 0
        self._frame: Decompressor | None = None
        self._new_frame = decompressor_of(encoding)
        if self._new_frame is None:
            self.problem = f"the answer is compressed with {encoding[:40]!r}, which is not read"
            if (package := package_for(encoding)) is not None:
                self.problem += f" without the package {package}"

    def feed(self, data: bytes) -> bytes:
        """What `data` inflates to, as far as there is no problem."""
        self._frames_left = _MOST_FRAMES
        # What follows a part is copied when it ends: of a long piece with many, again and again.
        return b"".join([self._inflated(data[at : at + _PIECE]) for at in range(0, len(data), _PIECE)])

    def _inflated(self, data: bytes) -> bytes:
        out: list[bytes] = []
        try:
            while data and self.problem is None and self._new_frame is not None:
                if self._frame is not None and self._frame.ended and not (data := data.lstrip(b"\0")):
                    break  # zeros between parts are padding
                if self._frame is None or self._frame.ended:  # parts may follow one another
                    self._frame = self._new_frame()
                    self._frames_left -= 1
                if self._frames_left < 0:
                    self.problem = f"the answer has more than {_MOST_FRAMES} compressed parts in a piece"
                    break
                # One byte more than allowed, so that a body of just the limit passes.
                plain, data = self._frame.feed(data, self._left + 1)
                if len(plain) > self._left:
                    self.problem = f"the answer inflates to more than {self._limit} bytes"
                out.append(plain[: self._left])
                self._left -= len(out[-1])
        except Damaged:
            self.problem = f"the answer says {self._encoding} and cannot be inflated"
        return b"".join(out)


def model_in(body: bytes) -> str | None:
    """The model that a body in JSON names, if it names one: at its top, where there are several."""
    if len(body) <= _MOST_PARSED and body.count(b'"model"') > 1:
        # Deeper inside a client may name another, which it does not use, and would choose its price.
        with suppress(ValueError, RecursionError, AttributeError):
            named = json.loads(body).get("model")
            return named[:200] if isinstance(named, str) and named else None
    found = _MODEL.match(body, max(body.rfind(b'"model"'), 0))
    return found.group(1).decode("utf-8", "replace") if found else None


_MOST_PARSED = 1024 * 1024
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')
