"""Putting a tap on an SDK's stream object or HTTP response, in place: the object stays what it was."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

from ..sse import SSEDecoder
from .reading import read, read_async

if TYPE_CHECKING:
    from .streams import StreamTap

G = TypeVar("G")


def tap_stream(stream: Any, tap: StreamTap, *, api: str | None = None, hide_usage: bool = False) -> bool:
    """Have `tap` see every event that is read from an SDK's stream; False where that cannot be.

    Args:
        stream: With an `_iterator` that everything which reads it goes through.
        tap: Sees the events, and is finished when the stream ends, fails or is closed.
        api: "chat", "responses" or "messages", where it is known.
        hide_usage: Keep the chunk back that holds nothing but the usage which we asked for.
    """
    inner: Any = getattr(stream, "_iterator", None)
    if hasattr(inner, "__anext__"):
        metered: Any = read_async(inner, tap, api=api, hide_usage=hide_usage)
    elif hasattr(inner, "__next__"):
        metered = read(inner, tap, api=api, hide_usage=hide_usage)
    else:
        return False
    stream._iterator = metered  # noqa: SLF001  (there is no public way in)
    _watch_close(getattr(stream, "response", None), tap, ref(metered))
    return True


def is_stream(value: Any) -> bool:
    """Whether it is an SDK's stream object."""
    return hasattr(type(value), "__stream__") and hasattr(value, "_iterator")


def is_tapped(stream: Any) -> bool:
    """Whether a stream object is metered already."""
    iterator: Any = getattr(stream, "_iterator", None)
    code = getattr(iterator, "gi_code", None) or getattr(iterator, "ag_code", None)
    return code in (read.__code__, read_async.__code__)


def tap_response(response: Any, tap: StreamTap, *, hide_usage: bool = False) -> None:
    """Have `tap` see the bytes of a response that has not been read yet, however it is read.

    All of httpx's ways to read decoded content (`read`, lines, text, the SDK's `parse`) go through these two.
    """
    bytes_seen = _Bytes(response, tap, UsageHider() if hide_usage else None)
    response.iter_bytes = bytes_seen.iter_bytes
    response.aiter_bytes = bytes_seen.aiter_bytes
    _watch_close(response, tap, bytes_seen.reader)


class _Bytes:
    """The bytes of one response, seen the first time that they are read."""

    def __init__(self, response: Any, tap: StreamTap, hider: UsageHider | None) -> None:
        self._response = response
        self._tap = tap
        self._taken = False
        self._hider = hider
        self._reader: Callable[[], Any] = _nothing

    def reader(self) -> Any:
        """The generator that reads the bytes, None before and after."""
        return self._reader()

    def iter_bytes(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        response = self._response
        inner: Iterator[bytes] = type(response).iter_bytes(response, *args, **kwargs)
        return inner if self._taken else self._started(self._read(inner))

    def aiter_bytes(self, *args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        response = self._response
        inner: AsyncIterator[bytes] = type(response).aiter_bytes(response, *args, **kwargs)
        return inner if self._taken else self._started(self._read_async(inner))

    def _started(self, generator: G) -> G:
        self._taken = True
        self._reader = ref(generator)
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


class UsageHider:
    """Takes the event that holds nothing but usage out of the bytes of a chat stream.

    Bytes are given on by whole events, as they came.
    """

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What may be shown by now."""
        shown = []
        self._held += chunk
        begin = 0
        for end in _EVENT_END.finditer(self._held):
            event = self._held[begin : end.end()]
            begin = end.end()
            if not _is_usage_event(event):
                shown.append(event)
        self._held = self._held[begin:]
        return b"".join(shown)

    def close(self) -> bytes:
        """What is left at the end."""
        held, self._held = self._held, b""
        return b"" if _is_usage_event(held) else held


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


def _nothing() -> None:
    return None


def _watch_close(response: Any, tap: StreamTap, reader: Callable[[], Any]) -> None:
    """Finish the tap when the caller closes the response. While it is read, reading itself will tell.

    The response must not hold what reads it: a stream that is dropped is closed at once, and a cycle would
    leave that to the garbage collector.
    """
    owner = type(response)

    def closed() -> None:
        running = reader()
        if not (getattr(running, "gi_running", False) or getattr(running, "ag_running", False)):
            tap.finish(complete=False)

    def close() -> Any:
        closed()
        return owner.close(response) if before is None else before()

    async def aclose() -> Any:
        closed()
        return await (owner.aclose(response) if abefore is None else abefore())

    # A stub may have no attributes of its own, or be none at all.
    with suppress(AttributeError, TypeError):
        before, abefore = (vars(response).get(name) for name in ("close", "aclose"))
        if hasattr(owner, "close"):
            response.close = close
        if hasattr(owner, "aclose"):
            response.aclose = aclose
