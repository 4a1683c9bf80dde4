"""Decompressors that give out at most so much at a time: zlib's, brotli's and zstd's.

Brotli and zstd are optional packages, loaded when the first answer comes that needs them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

MAX_WINDOW_LOG = 23
"""8 MiB: what RFC 9659 lets servers ask of whoever reads zstd from the web."""


class Damaged(ValueError):
    """The bytes are not what their encoding says."""


class Decompressor(Protocol):
    """One frame or member of a compressed body."""

    def feed(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        """At most `most` bytes that come out, and the input that is to be fed again.

        Raises:
            Damaged: It cannot be inflated.
        """

    @property
    def ended(self) -> bool:
        """Whether the frame is over; what follows is another."""


@lru_cache(maxsize=64)
def decompressor_of(encoding: str) -> Callable[[], Decompressor] | None:
    """Makes decompressors for a content encoding; None where there is none, or its package is missing."""
    if encoding in ("gzip", "x-gzip", "deflate"):
        return lambda: _Zlib(encoding)
    if encoding == "br":
        return _brotli()
    return _zstd() if encoding == "zstd" else None


def package_for(encoding: str) -> str | None:
    """What is to be installed for an encoding that cannot be read; None where nothing helps."""
    return {"br": "brotli (1.2 or newer)", "zstd": "backports.zstd"}.get(encoding)


class _Zlib:
    def __init__(self, encoding: str) -> None:
        self._may_be_raw = encoding == "deflate"
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS if self._may_be_raw else zlib.MAX_WBITS | 16)

    @property
    def ended(self) -> bool:
        return self._zlib.eof

    def feed(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        try:
            plain = self._inflate(data, most)
        except zlib.error as exc:
            raise Damaged(str(exc)) from exc
        # Zeros between members are padding.
        return plain, self._zlib.unused_data.lstrip(b"\0") if self._zlib.eof else self._zlib.unconsumed_tail

    def _inflate(self, data: bytes, most: int) -> bytes:
        try:
            return self._zlib.decompress(data, most)
        except zlib.error:
            if not self._may_be_raw:
                raise
            # Some servers send deflate without its zlib header.
            self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)
            return self._zlib.decompress(data, most)
        finally:
            self._may_be_raw = False


def _brotli() -> Callable[[], Decompressor] | None:
    try:
        import brotli
    except ImportError:
        return None
    try:
        # Older ones give out as much as there is: they cannot be bounded.
        brotli.Decompressor().process(b"", output_buffer_limit=1)
    except (TypeError, brotli.error):
        return None
    return lambda: _Brotli(brotli)


class _Brotli:
    def __init__(self, brotli: Any) -> None:
        self._brotli = brotli.Decompressor()
        self._error: type[Exception] = brotli.error

    @property
    def ended(self) -> bool:
        return bool(self._brotli.is_finished())

    def feed(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        out = []
        try:
            # What is not asked for now waits inside, and has to come out before more goes in.
            plain: bytes = self._brotli.process(data, output_buffer_limit=most)
            out.append(plain)
            while plain and (most := most - len(plain)) > 0 and not self._brotli.can_accept_more_data():
                plain = self._brotli.process(b"", output_buffer_limit=most)
                out.append(plain)
        except self._error as exc:
            raise Damaged(str(exc)) from exc
        return b"".join(out), b""


def _zstd() -> Callable[[], Decompressor] | None:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            return _zstandard()
    return lambda: _Zstd(zstd)


class _Zstd:
    def __init__(self, zstd: Any) -> None:
        options = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
        self._zstd = zstd.ZstdDecompressor(options=options)
        self._error: type[Exception] = zstd.ZstdError

    @property
    def ended(self) -> bool:
        return bool(self._zstd.eof)

    def feed(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        out = []
        try:
            plain: bytes = self._zstd.decompress(data, most)
            out.append(plain)
            while plain and (most := most - len(plain)) > 0 and not self._has_no_more():
                plain = self._zstd.decompress(b"", most)
                out.append(plain)
        except self._error as exc:
            raise Damaged(str(exc)) from exc
        return b"".join(out), self._zstd.unused_data if self._zstd.eof else b""

    def _has_no_more(self) -> bool:
        return bool(self._zstd.needs_input or self._zstd.eof)


def _zstandard() -> Callable[[], Decompressor] | None:
    try:
        import zstandard
    except ImportError:
        return None
    return lambda: _Zstandard(zstandard)


class _Zstandard:
    """Gives out all that a piece of input holds, so it is fed small pieces."""

    _PIECE = 256
    """Such a piece inflates to 8 MiB at most: a block of 128 KiB takes four bytes or more."""

    def __init__(self, zstandard: Any) -> None:
        self._zstd = zstandard.ZstdDecompressor(max_window_size=1 << MAX_WINDOW_LOG).decompressobj()
        self._error: type[Exception] = zstandard.ZstdError

    @property
    def ended(self) -> bool:
        return bool(self._zstd.eof)

    def feed(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        out: list[bytes] = []
        at = came = 0
        try:
            while at < len(data) and came <= most and not self._zstd.eof:
                out.append(self._zstd.decompress(data[at : at + self._PIECE]))
                at += self._PIECE
                came += len(out[-1])
        except self._error as exc:
            raise Damaged(str(exc)) from exc
        return b"".join(out), self._zstd.unused_data + data[at:]
