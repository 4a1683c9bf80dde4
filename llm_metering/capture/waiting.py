"""Waiting for the ledger without blocking an event loop, and tickets for records still being counted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from threading import Condition
from typing import TYPE_CHECKING, Any, TypeVar

from ..ledger.tickets import all_committed

if TYPE_CHECKING:
    import asyncio

    from ..protocols import Ticket

F = TypeVar("F", bound=Callable[..., Any])


async def wait_for(tickets: Sequence[Ticket], *, timeout_s: float) -> bool:
    """Wait until every ticket is done; False if the time ran out. Works under asyncio and trio."""
    if asyncio_loop() is not None:
        return await all_committed(tickets, timeout_s)
    from anyio import move_on_after, to_thread

    with move_on_after(timeout_s):
        for ticket in tickets:
            await to_thread.run_sync(ticket.wait, timeout_s, abandon_on_cancel=True)
    return all(ticket.done for ticket in tickets)


def coroutine_marker() -> Callable[[F], F]:
    """What marks a plain function whose result is awaited: bridges to other servers ask before they call."""
    import inspect

    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction
    import asyncio

    mark = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # noqa: SLF001

    def marked(function: F) -> F:
        # What inspect.markcoroutinefunction does from Python 3.12 on.
        function._is_coroutine = mark  # type: ignore[attr-defined]  # noqa: SLF001
        return function

    return marked


def asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """The asyncio loop that runs on this thread, None where there is none."""
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class LateTicket:
    """A ticket that exists before its record does, because the record's text is still being counted."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._ticket: Ticket | None = None
        self._over = False
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], object]] = []

    @classmethod
    def done_already(cls) -> LateTicket:
        """A ticket of a record that nobody needs to wait for."""
        ticket = cls()
        ticket.fail(None)
        return ticket

    def follow(self, ticket: Ticket) -> None:
        """The record is on its way now: be done when `ticket` is."""
        with self._changed:
            self._ticket = ticket
            self._changed.notify_all()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            ticket.add_done_callback(callback)

    def fail(self, error: BaseException | None) -> None:
        """There will be no record."""
        with self._changed:
            self._over, self._error = True, error
            self._changed.notify_all()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    @property
    def done(self) -> bool:
        return self._over or (self._ticket is not None and self._ticket.done)

    @property
    def error(self) -> BaseException | None:
        return self._error if self._ticket is None else self._ticket.error

    def wait(self, timeout_s: float | None = None) -> bool:
        with self._changed:
            if not self._changed.wait_for(lambda: self._over or self._ticket is not None, timeout_s):
                return False
        return self._over or (self._ticket is not None and self._ticket.wait(timeout_s))

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        with self._changed:
            waiting = not self._over and self._ticket is None
            if waiting:
                self._callbacks.append(callback)
        if waiting:
            return
        if self._ticket is not None:
            self._ticket.add_done_callback(callback)
        else:
            callback()
