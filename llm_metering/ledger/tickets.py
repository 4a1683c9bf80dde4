"""What became of a record on its way to the ledger, and waiting for it without blocking an event loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .. import protocols
from ..usage import UsageRecord

if TYPE_CHECKING:
    import asyncio

Callback = Callable[[], object]

_TICK_S = 0.05
_places: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[float, set[asyncio.Future[None]]]] = (
    WeakKeyDictionary()
)

# One lock for all tickets: it is held for a moment once a group, and only where somebody waits.
_lock = Lock()


class Bell:
    """Wakes the writer while it waits for company, which it does only as long as nobody waits for it.

    Whoever begins to wait leaves a sign first (a callback, or something in the queue) and rings then; the
    writer says that it listens first and looks for signs then. So at least one of the two sees the other.
    """

    __slots__ = ("_rung", "listening")

    def __init__(self) -> None:
        self.listening = False
        self._rung: SimpleQueue[None] = SimpleQueue()

    def ring(self) -> None:
        if self.listening:
            self._rung.put(None)

    def wait(self, timeout_s: float) -> None:
        """Until it is rung, at most so long."""
        with suppress(Empty):
            self._rung.get(timeout=timeout_s)

    def rest(self) -> None:
        """Listen no more."""
        self.listening = False
        while not self._rung.empty():
            self._rung.get()


class Ticket:
    """One record's ticket. Made by `Writer.put`, settled by the writer's thread."""

    __slots__ = ("_bell", "_callbacks", "closes", "done", "error", "record")

    def __init__(self, record: UsageRecord, closes: str | None, bell: Bell | None = None) -> None:
        self.record: UsageRecord | None = record
        """Let go once done."""
        self.closes = closes
        self.done = False
        self.error: BaseException | None = None
        self._bell = bell
        self._callbacks: list[Callback] | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits for it."""
        return self._callbacks is not None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until done; False if the time ran out."""
        if self.done:
            return True
        event = Event()
        self.add_done_callback(event.set)
        return event.wait(timeout_s)

    def add_done_callback(self, callback: Callback) -> None:
        """Call `callback` once done, on the writer's thread; at once if it is done already.

        It hurries the writer: what somebody waits for is not kept waiting for company.
        """
        with _lock:
            if waits := not self.done:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
        if not waits:
            callback()
        elif self._bell is not None:
            self._bell.ring()

    def take_callbacks(self) -> list[Callback] | None:
        callbacks, self._callbacks = self._callbacks, None
        return callbacks


def settle(tickets: Iterable[Ticket], error: BaseException | None = None) -> list[Exception]:
    """Mark tickets as done and tell those who wait; return what their callbacks raised."""
    callbacks: list[Callback] = []
    with _lock:
        for ticket in tickets:
            ticket.error = error
            ticket.done = True
            ticket.record = None
            if found := ticket.take_callbacks():
                callbacks += found
    return _call(callbacks)


async def all_committed(tickets: Sequence[protocols.Ticket], timeout_s: float | None) -> bool:
    """Wait, in an asyncio loop, until all are committed or have failed; False if the time ran out.

    Loops are woken once for a whole group of tickets, where a plain callback would wake them for each.
    """
    waits = [ticket for ticket in tickets if not ticket.done]
    if not waits:
        return True
    import asyncio

    loop = asyncio.get_running_loop()
    futures = []
    for ticket in waits:
        future = loop.create_future()
        futures.append(future)
        ticket.add_done_callback(_Bell(loop, future))
    until = set() if timeout_s is None else _waiting_until(loop, timeout_s)
    until.update(futures)
    try:
        for future in futures:
            await future
    finally:
        until.difference_update(futures)
    for ticket in waits:  # noqa: SIM110  (asked for every response, mostly of one)
        if not ticket.done:
            return False
    return True


def _waiting_until(loop: asyncio.AbstractEventLoop, timeout_s: float) -> set[asyncio.Future[None]]:
    """A place for futures that are resolved when this time is out.

    Those whose time is out at about the same moment share one timer: one for each, which is nearly always
    cancelled, would be a third of what waiting costs. It is never late, and early by a twentieth of a second
    at most, where it lasts a second or more.
    """
    at = loop.time() + timeout_s
    if timeout_s >= 1:
        at = at // _TICK_S * _TICK_S
    places = _places.setdefault(loop, {})
    place = places.get(at)
    if place is None:
        place = places[at] = set()
        loop.call_at(at, _time_out, places, at)
    return place


def _time_out(places: dict[float, set[asyncio.Future[None]]], at: float) -> None:
    _resolve(list(places.pop(at)))


class _Bell:
    """A callback that is rung together with all others of its loop."""

    __slots__ = ("future", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        self.loop = loop
        self.future = future

    def __call__(self) -> None:
        _resolve_in(self.loop, [self.future])


def _call(callbacks: list[Callback]) -> list[Exception]:
    raised: list[Exception] = []
    bells: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for callback in callbacks:
        if type(callback) is _Bell:
            bells.setdefault(callback.loop, []).append(callback.future)
        else:
            _guarded(raised, callback)
    for loop, futures in bells.items():
        _guarded(raised, _resolve_in, loop, futures)
    return raised


def _guarded(raised: list[Exception], function: Callable[..., object], *args: Any) -> None:
    try:
        function(*args)
    except Exception as exc:
        raised.append(exc)


def _resolve_in(loop: asyncio.AbstractEventLoop, futures: list[asyncio.Future[None]]) -> None:
    if not loop.is_closed():  # else nobody waits any more
        loop.call_soon_threadsafe(_resolve, futures)


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _renew_lock() -> None:
    global _lock  # a thread that does not exist in the child may have held it
    _lock = Lock()


os.register_at_fork(after_in_child=_renew_lock)
