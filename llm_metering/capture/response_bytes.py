"""The bytes of an SDK's HTTP response, seen as they are read; and bytes from which one event is taken out."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import ref

from ..sse import SSEDecoder
from ..usage import Reading
from .bodies import Inflater

if TYPE_CHECKING:
    from .streams import Tally

G = TypeVar("G")

MOST_INFLATED = 64 * 1024 * 1024
"""What a body that is read undecoded may inflate to, for being counted."""


class BytesTap(Protocol):
    """What sees the bytes of a response, such as a `StreamTap`."""

    tally: Any

    def feed(self, event: Any, /) -> None: ...

    def finish(self, complete: bool = True) -> Any: ...


class ResponseBytes:
    """Has a tap see the bytes of one response, the first time that they are read.

    All of httpx's ways to read decoded content (`read`, lines, text, the SDKs' `parse`) go through
    `iter_bytes` or `aiter_bytes`, which are replaced on the response, as are those that read it undecoded.

    Args:
        response: Of httpx or httpx2.
        tap: Sees the bytes, and is finished when they end or fail.
        tally: Makes what adds the bytes up, once they are read here.
        hide_usage: Keep the event back that holds nothing but the usage which we asked for.
        otherwise: What reads the response's events, where that is known: what it reads is not seen here.
    """

    def __init__(
        self,
        response: Any,
        tap: BytesTap,
        *,
        tally: Callable[[Any], Tally],
        hide_usage: bool,
        otherwise: Callable[[], Any] | None = None,
    ) -> None:
        self._response = response
        self._tap = tap
        self._tally = tally
        self._taken = False
        self._hider = UsageHider() if hide_usage else None
        self._otherwise = otherwise
        self._here: Callable[[], Any] | None = None
        response.iter_bytes = self.iter_bytes
        response.aiter_bytes = self.aiter_bytes
        response.iter_raw = self.iter_raw
        response.aiter_raw = self.aiter_raw

    def is_read(self) -> bool:
        """Whether somebody is reading at this very moment."""
        return _is_running(self._here) or _is_running(self._otherwise)

    def iter_bytes(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        response = self._response
        inner: Iterator[bytes] = type(response).iter_bytes(response, *args, **kwargs)
        return inner if self._is_seen() else self._started(self._read(inner))

    def aiter_bytes(self, *args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        response = self._response
        inner: AsyncIterator[bytes] = type(response).aiter_bytes(response, *args, **kwargs)
        return inner if self._is_seen() else self._started(self._read_async(inner))

    def iter_raw(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        response = self._response
        inner: Iterator[bytes] = type(response).iter_raw(response, *args, **kwargs)
        return inner if self._is_seen() else self._started(self._read(inner), self._plain_tally())

    def aiter_raw(self, *args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        response = self._response
        inner: AsyncIterator[bytes] = type(response).aiter_raw(response, *args, **kwargs)
        return inner if self._is_seen() else self._started(self._read_async(inner), self._plain_tally())

    def _plain_tally(self) -> Tally:
        tally = plain_tally(self._response, self._tally)
        if isinstance(tally, InflatedTally):
            self._hider = None  # which of the compressed bytes hold the event cannot be told
        return tally

    def _is_seen(self) -> bool:
        return self._taken or _is_running(self._otherwise)

    def _started(self, generator: G, tally: Tally | None = None) -> G:
        self._taken = True
        self._here = ref(generator)
        self._tap.tally = self._tally(self._response) if tally is None else tally
        return generator

    def _read(self, inner: Iterator[bytes]) -> Iterator[bytes]:
        tap = self._tap
        try:
            for chunk in inner:
                tap.feed(chunk)
                if shown := self._shown(chunk):
                    yield shown
        except GeneratorExit:
            raise
        except BaseException:
            tap.finish(complete=False)
            raise
        tap.finish()
        if rest := self._rest():
            yield rest

    async def _read_async(self, inner: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        tap = self._tap
        try:
            async for chunk in inner:
                tap.feed(chunk)
                if shown := self._shown(chunk):
                    yield shown
        except GeneratorExit:
            raise
        except BaseException:
            tap.finish(complete=False)
            raise
        tap.finish()
        if rest := self._rest():
            yield rest

    def _shown(self, chunk: bytes) -> bytes:
        return chunk if self._hider is None else self._hider.feed(chunk)

    def _rest(self) -> bytes:
        return b"" if self._hider is None else self._hider.close()


def _is_running(reader: Callable[[], Any] | None) -> bool:
    generator = None if reader is None else reader()
    return bool(getattr(generator, "gi_running", False) or getattr(generator, "ag_running", False))


def plain_tally(response: Any, tally: Callable[[Any], Tally]) -> Tally:
    """What adds up a response's bytes as they came over the wire."""
    encoding = (response.headers.get("content-encoding") or "").strip().lower()
    made = tally(response)
    return made if encoding in ("", "identity") else InflatedTally(made, encoding)


class InflatedTally:
    """Has compressed bytes added up by another tally, inflated within a bound."""

    def __init__(self, tally: Tally, encoding: str) -> None:
        self._tally = tally
        self._inflater = Inflater(encoding, MOST_INFLATED)

    def feed(self, chunk: bytes, /) -> None:
        if plain := self.inflated(chunk):
            self._tally.feed(plain)

    def inflated(self, chunk: bytes) -> bytes:
        """What the next bytes inflate to; nothing where they cannot be."""
        return self._inflater.feed(chunk) if self._inflater.problem is None else b""

    @property
    def complete(self) -> bool:
        return self._tally.complete

    @property
    def failed(self) -> bool:
        return bool(getattr(self._tally, "failed", False))

    @property
    def tokens_so_far(self) -> int:
        return self._tally.tokens_so_far

    def so_far(self) -> Reading:
        return self._tally.so_far()

    def result(self) -> Reading:
        reading = self._tally.result()
        problem = self._inflater.problem
        if problem is None or reading.usage or reading.text or reading.written:
            return reading
        return replace(reading, problem=problem)


class UsageHider:
    """Takes the event that holds nothing but usage out of the bytes of a chat stream.

    Bytes are given on by whole events, as they came; of what has no end for long, as far as it came.
    """

    def __init__(self) -> None:
        self._held = b""
        self._is_shown = False
        """Whether the beginning of what is held was given on."""

    def feed(self, chunk: bytes) -> bytes:
        """What may be shown by now."""
        shown = []
        self._held += chunk
        begin = 0
        for end in _EVENT_END.finditer(self._held):
            event = self._held[begin : end.end()]
            begin = end.end()
            if self._is_shown or not _is_usage_event(event):
                shown.append(event)
            self._is_shown = False
        self._held = self._held[begin:]
        if len(self._held) > _LONGEST_USAGE:
            # No usage is so long; what is shown here may be no stream of events at all.
            shown.append(self._held[:-_END_BYTES])
            self._held, self._is_shown = self._held[-_END_BYTES:], True
        return b"".join(shown)

    def close(self) -> bytes:
        """What is left at the end."""
        held, self._held = self._held, b""
        return b"" if not self._is_shown and _is_usage_event(held) else held


_LONGEST_USAGE = 64 * 1024
_END_BYTES = 3
"""An event's end may have begun in so many bytes, and go on in what comes next."""

_EVENT_END = re.compile(rb"\n\r?\n|\r\r")


def _is_usage_event(event: bytes) -> bool:
    if b'"usage"' not in event:
        return False
    decoder = SSEDecoder()
    try:
        found = [json.loads(each.data) for each in [*decoder.feed(event), *decoder.close()]]
    except (ValueError, RecursionError):
        return False
    return bool(found) and all(
        isinstance(each, dict) and each.get("usage") is not None and each.get("choices") == []
        for each in found
    )
