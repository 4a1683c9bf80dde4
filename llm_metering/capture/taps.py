"""Putting a tap on an SDK's stream object or HTTP response, in place: the object stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import ref

from .reading import read, read_async
from .response_bytes import BytesTap, ResponseBytes, plain_tally

if TYPE_CHECKING:
    from .recorder import Recorder
    from .streams import StreamTap, Tally


def tap_stream(
    stream: Any,
    tap: StreamTap,
    *,
    wire_tally: Callable[[Any], Tally],
    api: str | None = None,
    hide_usage: bool = False,
) -> bool:
    """Have `tap` see every event that is read from an SDK's stream; False where that cannot be.

    Args:
        stream: Has an `_iterator` that what reads it goes through; or is a helper over such a stream.
        tap: Sees the events, and is finished when the stream ends, fails or is closed.
        wire_tally: Makes what adds up the response's bytes, should they be read past the stream.
        api: "chat", "responses" or "messages", where it is known.
        hide_usage: Keep the chunk back that holds nothing but the usage which we asked for.
    """
    stream = getattr(stream, "_raw_stream", stream)
    inner: Any = getattr(stream, "_iterator", None)
    if hasattr(inner, "__anext__"):
        metered: Any = read_async(inner, tap, api=api, hide_usage=hide_usage)
    elif hasattr(inner, "__next__"):
        metered = read(inner, tap, api=api, hide_usage=hide_usage)
    else:
        return False
    stream._iterator = metered  # noqa: SLF001  (there is no public way in)
    response = getattr(stream, "response", None)
    # A stub may have no response, or one without attributes of its own.
    with suppress(AttributeError, TypeError):
        seen = ResponseBytes(response, tap, tally=wire_tally, hide_usage=hide_usage, otherwise=ref(metered))
        _watch_close(response, tap, seen.is_read)
    return True


def tap_response(
    response: Any, tap: BytesTap, *, wire_tally: Callable[[Any], Tally], hide_usage: bool = False
) -> None:
    """Have `tap` see the bytes of a response that has not been read yet, however it is read."""
    seen = ResponseBytes(response, tap, tally=wire_tally, hide_usage=hide_usage)
    _watch_close(response, tap, seen.is_read)


def hold_rest(
    recorder: Recorder, response: Any, tap: StreamTap, *, wire_tally: Callable[[Any], Tally]
) -> None:
    """Where `on_disconnect` is "drain": have the rest of a stream read should its reader go away."""
    if recorder.settings.on_disconnect != "drain" or response is None:
        return
    if recorder.drains is None:
        from .draining import Drains

        recorder.drains = Drains()
    recorder.drains.hold(recorder, response, tap, plain_tally(response, wire_tally))


def response_of(stream: Any) -> Any:
    """The HTTP response that an SDK's stream object, or helper over one, reads."""
    return getattr(getattr(stream, "_raw_stream", stream), "response", None)


def is_stream(value: Any) -> bool:
    """Whether it is an SDK's stream object."""
    return hasattr(type(value), "__stream__") and hasattr(value, "_iterator")


def is_tapped(stream: Any) -> bool:
    """Whether a stream object is metered already."""
    iterator: Any = getattr(getattr(stream, "_raw_stream", stream), "_iterator", None)
    code = getattr(iterator, "gi_code", None) or getattr(iterator, "ag_code", None)
    return code in (read.__code__, read_async.__code__)


def _watch_close(response: Any, tap: BytesTap, is_read: Callable[[], bool]) -> None:
    """Finish the tap when the caller closes the response. While it is read, reading itself will tell.

    The response must not hold what reads it: a stream that is dropped is closed at once, and a cycle would
    leave that to the garbage collector.
    """
    owner = type(response)

    def closed() -> None:
        if not is_read():
            tap.finish(complete=False)

    def close() -> Any:
        closed()
        return owner.close(response) if before is None else before()

    async def aclose() -> Any:
        closed()
        return await (owner.aclose(response) if abefore is None else abefore())

    before, abefore = (vars(response).get(name) for name in ("close", "aclose"))
    if hasattr(owner, "close"):
        response.close = close
    if hasattr(owner, "aclose"):
        response.aclose = aclose
