"""Reading the rest of a provider's stream that nobody reads any more, to learn the provider's own count.

The response's byte stream is held between the HTTP library and whoever reads: closing it leaves the
connection to a bounded task or thread of ours. Under asyncio a task reads from the beginning, since an HTTP
library closes the connection of a reader that is cancelled.
"""

from __future__ import annotations

import functools
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from threading import Event, Lock, Thread, Timer, get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

from .collecting import is_collecting
from .waiting import asyncio_loop

if TYPE_CHECKING:
    import asyncio

    from .recorder import Recorder
    from .streams import StreamTap, Tally

MOST_DRAINS = 64
"""More streams than these at a time are not read to their end."""

_QUEUED_CHUNKS = 16


class Drains:
    """The rests that are being read for one recorder."""

    def __init__(self) -> None:
        self._open: set[Drain] = set()
        self._lock = Lock()
        self._stopped = False

    def hold(self, recorder: Recorder, response: Any, tap: StreamTap, tally: Tally) -> None:
        """Have the rest of this response read, should its reader go away before its end."""
        is_async = hasattr(response.stream, "__aiter__") and not hasattr(response.stream, "__iter__")
        if is_async and asyncio_loop() is None:
            return  # a task of ours would belong to somebody's nursery
        kind = "AsyncByteStream" if is_async else "SyncByteStream"
        base = getattr(sys.modules[type(response).__module__.partition(".")[0]], kind)
        drain = Drain(self, recorder, tap, tally, _socket_of(response))
        make = _held_async if is_async else _held
        response.stream = make(base)(response.stream, drain)

    def enter(self, drain: Drain) -> bool:
        """Make room for one more; False where there is none."""
        with self._lock:
            if self._stopped or len(self._open) >= MOST_DRAINS:
                return False
            self._open.add(drain)
            return True

    def leave(self, drain: Drain) -> None:
        with self._lock:
            self._open.discard(drain)

    def stop(self, within_s: float) -> None:
        """Wait for the rests that are being read, then bill what came of those that are not over."""
        with self._lock:
            still = list(self._open)
        ends_at = monotonic() + within_s
        for drain in still:
            drain.wait(ends_at - monotonic())
        for drain in still:
            drain.expire()


class Drain:
    """One response: what came of it, and whether the rest is being read."""

    def __init__(
        self, drains: Drains, recorder: Recorder, tap: StreamTap, tally: Tally, sock: socket.socket | None
    ) -> None:
        self._drains = drains
        self._recorder = recorder
        self._tap: StreamTap | None = None
        self._watched = ref(tap)  # a stream that is dropped shall end at once, not with the next collection
        self._tally = tally
        self._socket = sock
        self._left = recorder.settings.disconnect_drain_bytes
        self._finished = Event()
        self._lock = Lock()
        self._thread: int | None = None
        self.is_over = False
        """Whether the stream has ended or failed, or was closed."""
        self.go_on: Callable[[], None] | None = None
        """Starts the reading of the rest, once reading has begun."""
        self.cancel: Callable[[], None] = self._shut
        """Ends the reading of the rest, from any thread."""
        tap.hold = self.take_over

    def feed(self, chunk: bytes) -> None:
        """Note what is read, by whomever."""
        with suppress(Exception):
            self._tally.feed(chunk)

    def take_over(self) -> bool:
        """The reader went away: whether the rest is read, and the record made then. Never raises."""
        try:
            if self._tap is not None:
                return True
            tap = self._watched()
            if self.is_over or tap is None or self.go_on is None or is_collecting() or self._tally.complete:
                return False
            if not self._drains.enter(self):
                return False
            self._tap = tap
            self._recorder.telemetry.count("drain.started")
            self.go_on()
        except Exception as exc:
            self._recorder.telemetry.failure("capture.drain", exc)
            self._drains.leave(self)
            self._tap = None
            return False
        return True

    @property
    def is_draining(self) -> bool:
        return self._tap is not None

    def has_room_for(self, chunk: bytes) -> bool:
        """Count what is read of the rest against the bound."""
        self._left -= len(chunk)
        return self._left >= 0 and not self._finished.is_set()

    def finish(self) -> None:
        """Nothing more is read: make the record. Only the first call does anything. Never raises."""
        with self._lock:
            if self._finished.is_set():
                return
            self._finished.set()
        tap = self._tap
        try:
            if tap is not None:
                complete = self._tally.complete
                self._recorder.telemetry.count("drain.completed" if complete else "drain.partial")
                tap.hold = None
                tap.tally = self._tally
                tap.finish(complete)
        except Exception as exc:
            self._recorder.telemetry.failure("capture.drain", exc)
        finally:
            self._drains.leave(self)

    def expire(self) -> None:
        """The time ran out."""
        if not self._finished.is_set():
            self.cancel()

    def wait(self, timeout_s: float) -> None:
        if self._thread != get_ident():  # an event loop cannot go on while it waits for itself
            self._finished.wait(max(0.0, timeout_s))

    def runs_here(self) -> None:
        """The rest is read on this thread."""
        self._thread = get_ident()

    @property
    def limit_s(self) -> float:
        return self._recorder.settings.disconnect_drain_s

    def _shut(self) -> None:
        """Wake whoever waits for more bytes of it."""
        self._left = 0
        if self._socket is None:
            self.finish()
            return
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


@functools.lru_cache(maxsize=8)
def _held(base: type) -> Callable[[Any, Drain], Any]:
    class HeldStream(base):  # type: ignore[misc]
        def __init__(self, inner: Any, drain: Drain) -> None:
            self._inner = inner
            self._drain = drain
            self._chunks: Iterator[bytes] | None = None

        def __iter__(self) -> Iterator[bytes]:
            drain = self._drain
            self._chunks = chunks = iter(self._inner)
            drain.go_on = self._go_on
            try:
                for chunk in chunks:
                    drain.feed(chunk)
                    yield chunk
            except GeneratorExit:
                raise
            except BaseException:
                drain.is_over = True
                raise
            drain.is_over = True

        def close(self) -> None:
            # An iterator that is dropped closes the response before anybody else hears of it.
            if not self._drain.take_over():
                self._drain.is_over = True
                self._inner.close()

        def _go_on(self) -> None:
            Thread(target=self._rest, name="llm-metering-drain", daemon=True).start()

        def _rest(self) -> None:
            drain = self._drain
            timer = Timer(drain.limit_s, drain.expire)
            timer.daemon = True
            timer.start()
            try:
                for chunk in self._chunks or ():
                    drain.feed(chunk)
                    if not drain.has_room_for(chunk):
                        break
            except Exception:
                drain.is_over = True
            finally:
                timer.cancel()
                with suppress(Exception):
                    self._inner.close()
                drain.finish()

    return HeldStream


@functools.lru_cache(maxsize=8)
def _held_async(base: type) -> Callable[[Any, Drain], Any]:
    class HeldAsyncStream(base):  # type: ignore[misc]
        def __init__(self, inner: Any, drain: Drain) -> None:
            self._inner = inner
            self._drain = drain
            self._pump: asyncio.Task[None] | None = None
            self._queue: asyncio.Queue[bytes | BaseException | None] | None = None
            self._is_read = False

        async def __aiter__(self) -> AsyncIterator[bytes]:
            # An SDK that has seen the last event reads on to the body's end with an iterator of its own.
            queue = self._begin() if self._queue is None else self._queue
            while not self._is_read:
                item = await queue.get()
                self._is_read = not isinstance(item, bytes)
                if isinstance(item, BaseException):
                    raise item
                if item is not None:
                    yield item

        def _begin(self) -> asyncio.Queue[bytes | BaseException | None]:
            import asyncio

            self._queue = asyncio.Queue(_QUEUED_CHUNKS)
            self._pump = asyncio.get_running_loop().create_task(self._read())
            self._drain.go_on = self._go_on
            return self._queue

        async def aclose(self) -> None:
            if self._drain.take_over():
                return
            pump = self._pump
            if pump is None:
                self._drain.is_over = True
                await self._inner.aclose()
                return
            import asyncio

            self._drain.is_over = self._is_read = True
            pump.cancel()
            await asyncio.wait((pump,))

        def _go_on(self) -> None:
            """Nobody takes from the queue any more: empty it, and let the pump read on within its bounds."""
            import asyncio

            loop, pump, queue = asyncio.get_running_loop(), self._pump, self._queue
            self._is_read = True
            if pump is None or queue is None:
                return
            self._drain.runs_here()
            self._drain.cancel = lambda: _cancel_soon(loop, pump)
            timer = loop.call_later(self._drain.limit_s, pump.cancel)
            pump.add_done_callback(lambda _: timer.cancel())
            _running.add(pump)
            pump.add_done_callback(_running.discard)
            while not queue.empty():
                queue.get_nowait()

        async def _read(self) -> None:
            drain, queue = self._drain, self._queue
            end: BaseException | None = None
            try:
                async for chunk in self._inner:
                    drain.feed(chunk)
                    if not drain.is_draining and queue is not None:
                        await queue.put(chunk)
                    elif not drain.has_room_for(chunk):
                        break
            except Exception as exc:
                end = exc
            finally:
                drain.is_over = True
                with suppress(Exception):
                    await self._inner.aclose()
                if drain.is_draining:
                    drain.finish()
            if queue is not None and not drain.is_draining:
                await queue.put(end)

    return HeldAsyncStream


_running: set[Any] = set()
"""Tasks that read a rest: an event loop itself holds its tasks weakly."""


def _cancel_soon(loop: asyncio.AbstractEventLoop, pump: asyncio.Task[None]) -> None:
    with suppress(RuntimeError):  # the loop is closed, and its tasks are over
        loop.call_soon_threadsafe(pump.cancel)


def _socket_of(response: Any) -> socket.socket | None:
    """The connection of this response, where it carries nothing else."""
    try:
        if response.extensions.get("http_version") not in (b"HTTP/1.1", b"HTTP/1.0"):
            return None
        found = response.extensions["network_stream"].get_extra_info("socket")
    except Exception:
        return None
    return found if hasattr(found, "shutdown") else None
