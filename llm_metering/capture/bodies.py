"""Bodies as they pass: a request's kept within a bound, a compressed answer's inflated within a bound."""

from __future__ import annotations

import zlib


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


class Inflater:
    """Inflates a gzip or deflate body as it comes. The compressed bytes go on as they are.

    Args:
        encoding: The answer's content encoding.
        limit: How many bytes may come out in all.
    """

    __slots__ = ("_begun", "_encoding", "_left", "_limit", "_zlib", "problem")

    def __init__(self, encoding: str, limit: int) -> None:
        self.problem: str | None = None
        """Why no more comes out: another encoding, damage, or the limit."""
        self._encoding = encoding
        self._limit = limit
        self._left = limit
        self._begun = False
        self._zlib = self._fresh()
        if encoding not in ("gzip", "x-gzip", "deflate"):
            self.problem = f"the answer is compressed with {encoding[:40]!r}, which is not read"

    def feed(self, data: bytes) -> bytes:
        """What `data` inflates to, as far as there is no problem."""
        out: list[bytes] = []
        try:
            while data and self.problem is None:
                # One byte more than allowed, so that a body of just the limit passes.
                plain = self._inflate(data)
                if len(plain) > self._left:
                    self.problem = f"the answer inflates to more than {self._limit} bytes"
                out.append(plain[: self._left])
                self._left -= len(out[-1])
                data = self._rest()
        except zlib.error:
            self.problem = f"the answer says {self._encoding} and cannot be inflated"
        return b"".join(out)

    def _inflate(self, data: bytes) -> bytes:
        try:
            return self._zlib.decompress(data, self._left + 1)
        except zlib.error:
            if self._encoding != "deflate" or self._begun:
                raise
            # Some servers send deflate without its zlib header.
            self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)
            return self._zlib.decompress(data, self._left + 1)
        finally:
            self._begun = True

    def _rest(self) -> bytes:
        if not self._zlib.eof:
            return self._zlib.unconsumed_tail
        rest = self._zlib.unused_data.lstrip(b"\0")
        if rest:  # gzip members may follow one another
            self._zlib = self._fresh()
        return rest

    def _fresh(self) -> zlib._Decompress:
        return zlib.decompressobj(zlib.MAX_WBITS if self._encoding == "deflate" else zlib.MAX_WBITS | 16)
