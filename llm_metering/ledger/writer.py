"""The one thread that writes to the ledger. Callers queue; it commits everything queued in one transaction.

`put` appends to a queue and returns. Records that somebody waits for are committed at once, others within
10 ms, with whatever came until then. The lines that a record adds to each meter are computed on the
writer's thread, not on the caller's.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, RLock, Thread, get_ident
from typing import Generic, TypeVar, Union, cast
from weakref import WeakSet

from ..errors import LedgerError
from ..protocols import Ledger, Telemetry
from ..usage import Line, UsageRecord
from .pen import Pen
from .tickets import Bell, Ticket

T = TypeVar("T")

COMPANY_S = 0.01
"""How long records that nobody waits for are kept for company, so that a busy process is not interrupted for
each. As soon as anybody waits for any of them all are committed at once."""


class _State(Enum):
    NEW = "new"
    RUNNING = "running"
    STOPPED = "stopped"


class _Call(Generic[T]):
    """A function that is to run on the writer's thread, and what came of it."""

    __slots__ = ("_function", "_result", "done", "error", "given_up")

    def __init__(self, function: Callable[[Ledger], T]) -> None:
        self._function = function
        self._result: T | None = None
        self.error: BaseException | None = None
        self.done = Event()
        self.given_up = False

    def run(self, ledger: Ledger) -> None:
        try:
            if not self.given_up:
                self._result = self._function(ledger)
        except BaseException as exc:
            self.error = exc
        finally:
            self.done.set()

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return cast("T", self._result)


class _Drop(str):
    """The id of a stream whose progress is to be forgotten."""

    __slots__ = ()


class _Stop:
    """Ends the thread once everything queued before it is done."""


_Item = Union[Ticket, UsageRecord, "_Call[object]", _Drop, _Stop]  # a bare record is a stream's progress


class Writer:
    """Queues records from any thread and commits them in groups on its own.

    It may be used before `start` (which then happens in the background), after `stop` (each record is then
    committed before `put` returns, since nothing may run after us) and in a forked child (which gets a
    thread and a lane of its own and none of the parent's queue).

    Args:
        lines_of: What a record adds to each meter.
        now: The clock.
        max_group: The most records in one transaction.
        max_queued: The most records kept in memory while the disk fails; more are refused with an alarm.
        company_s: How long records that nobody waits for are kept for company.
        kept: Where usage is while the ledger cannot be written, for alarms.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        lines_of: Callable[[UsageRecord], tuple[Line, ...]],
        telemetry: Telemetry,
        now: Callable[[], float] = time.time,
        max_group: int = 500,
        max_queued: int = 100_000,
        company_s: float = COMPANY_S,
        kept: str = "in memory",
    ) -> None:
        self._ledger = ledger
        self._company_s = company_s
        self._telemetry = telemetry
        self._max_group = max_group
        self._max_queued = max_queued
        self._enough = max(max_queued * 3 // 4, 1)
        self._new_pen: Callable[[], Pen] = partial(
            Pen,
            ledger,
            lines_of=lines_of,
            telemetry=telemetry,
            now=now,
            max_group=max_group,
            max_kept=max_queued,
            where_kept=kept,
        )
        self.begin_anew()
        _watch(self)

    def begin_anew(self) -> None:
        """Forget thread, queue and lock: they are another process's, if this is a forked child."""
        self._lock = RLock()
        self._state = _State.NEW
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._bell = Bell()
        self._thread: Thread | None = None
        self._writing_thread = 0
        self._opened = Event()
        self._pen = self._new_pen()

    # ---- from any thread

    @property
    def healthy(self) -> bool:
        """Whether records reach the disk."""
        return self._pen.problem is None and not self._pen.refusing

    @property
    def problem(self) -> str | None:
        """Why they do not, in one line."""
        return self._pen.problem

    def has_room(self) -> bool:
        """Whether more usage can be taken. False while the disk is full or fails, and when so much waits in
        memory that what is under way must find its place."""
        pen = self._pen
        if pen.problem is None and not pen.refusing and not pen.kept:
            return self._queue.qsize() < self._enough
        return pen.has_room and self.queued < self._enough

    @property
    def queued(self) -> int:
        """How many records wait, about."""
        return self._queue.qsize() + self._pen.kept

    def put(self, record: UsageRecord, *, closes: str | None = None) -> Ticket:
        """Queue a record. Never blocks (but after `stop`), never raises.

        Args:
            closes: The progress row that it replaces, in the same transaction.
        """
        ticket = Ticket(record, closes, self._bell)
        if self._queue.qsize() >= self._max_queued:
            self._pen.refuse(ticket)
            return ticket
        self._queue.put(ticket)
        # Looked at after queueing: a thread that stops meanwhile has either seen it or is seen here.
        if self._state is not _State.RUNNING:
            self._not_running()
        return ticket

    def progress(self, record: UsageRecord) -> None:
        """Queue what is to be billed, as partial, should this process die now."""
        if self._queue.qsize() < self._max_queued:
            self._queue.put(record)
            if self._state is not _State.RUNNING:
                self._not_running()

    def drop(self, record_id: str) -> None:
        """Forget the progress row of this record: its answer was counted elsewhere."""
        self._queue.put(_Drop(record_id))
        if self._state is not _State.RUNNING:
            self._not_running()

    def run(self, function: Callable[[Ledger], T], timeout_s: float | None = None) -> T:
        """Run `function(ledger)` on the writer's thread, after everything queued so far; return its result.

        Raises what it raises, and TimeoutError if it did not end in time; if it had not begun, it never will.
        """
        call: _Call[T] = _Call(function)
        if self._writing_thread == get_ident():
            call.run(self._ledger)
            return call.result()
        self._queue.put(cast("_Call[object]", call))
        self._bell.ring()
        if self._state is not _State.RUNNING:
            self._not_running()
        if not call.done.wait(timeout_s):
            call.given_up = True
            raise TimeoutError(f"the ledger's writer had no time for this within {timeout_s} s")
        return call.result()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Whether everything that was queued before is committed (or has failed for good)."""
        try:
            return self.run(lambda _: not self._pen.kept, timeout_s)
        except (TimeoutError, LedgerError):
            return False

    def start(self, timeout_s: float | None = 30.0) -> None:
        """Open the ledger and start the thread; raise what keeps the ledger from opening."""
        with self._lock:
            if self._state is not _State.RUNNING:
                self._start_thread()
        if not self._opened.wait(timeout_s):
            raise LedgerError(f"the ledger did not open within {timeout_s} s")
        if (error := self._pen.open_error) is not None:
            self.stop()
            with self._lock:
                self._state = _State.NEW
            raise error

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Commit what is queued, end the thread and close the ledger; whether all of it is on disk.

        While streams are under way the ledger stays open, so that their last record finds its place.
        """
        with self._lock:
            thread = self._thread
            if self._state is not _State.RUNNING or thread is None:
                return not self.queued
            self._queue.put(_Stop())
            self._bell.ring()
        thread.join(timeout_s)
        return not thread.is_alive() and not self.queued

    # ---- where no thread is running

    def _not_running(self) -> None:
        try:
            with self._lock:
                if self._state is _State.NEW:
                    self._start_thread()
                elif self._state is _State.STOPPED:
                    self._write_here()
        except Exception as exc:
            self._telemetry.failure("ledger.writer", exc)

    def _start_thread(self) -> None:
        self._opened = Event()
        self._state = _State.RUNNING
        self._thread = Thread(target=self._main, name="llm-metering-writer", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is ending and starts no threads
            self._state = _State.STOPPED
            self._write_here()
            self._opened.set()

    def _write_here(self) -> None:
        """Commit what is queued on this thread, and leave the ledger closed."""
        before, self._writing_thread = self._writing_thread, get_ident()
        try:
            self._pen.hasten()
            while not self._queue.empty():
                self._handle(self._take(block=False))
            if not self._pen.needed:
                self._pen.close()
        finally:
            self._writing_thread = before

    # ---- on the writer's thread

    def _main(self) -> None:
        self._writing_thread = get_ident()
        self._pen.try_to_open()
        self._opened.set()
        while self._go_on():
            pass
        with self._lock:
            # From here on `put` sees that nobody reads the queue; what came before is still ours.
            self._state = _State.STOPPED
            self._write_here()
            self._writing_thread = 0

    def _go_on(self) -> bool:
        try:
            items = self._take(block=True)
            return self._handle(self._with_company(items))
        except Exception as exc:
            self._telemetry.failure("ledger.writer", exc)
            return True

    def _take(self, *, block: bool) -> list[_Item]:
        """Everything that is queued, up to a group; waits for the first, or for the time of a retry."""
        items: list[_Item] = []
        try:
            if block:
                items.append(self._queue.get(timeout=self._pen.retry_in()))
        except Empty:
            return items
        self._fill(items)
        return items

    def _fill(self, items: list[_Item]) -> None:
        """Add what is queued, up to a group."""
        queue = self._queue
        with suppress(Empty):
            while len(items) < self._max_group and not queue.empty():
                items.append(queue.get_nowait())

    def _with_company(self, items: list[_Item]) -> list[_Item]:
        """These, and what comes within a moment, unless somebody waits for one of them."""
        bell = self._bell
        bell.listening = True
        try:
            self._fill(items)
            if items and len(items) < self._max_group and not any(map(_is_urgent, items)):
                bell.wait(self._company_s)
                self._fill(items)
        finally:
            bell.rest()
        return items

    def _handle(self, items: Sequence[_Item]) -> bool:
        """Commit the records among `items` and run the calls, in order; False once told to stop."""
        going_on = True
        pen = self._pen
        for item in items:
            if type(item) is Ticket:
                if item.record is not None:
                    pen.add(item, item.record)
            elif type(item) is UsageRecord:
                pen.note(item)
            elif type(item) is _Drop:
                pen.drop(item)
            elif type(item) is _Call:
                pen.write()
                self._run(item)
            else:
                going_on = False
        pen.write()
        return going_on

    def _run(self, call: _Call[object]) -> None:
        if not self._pen.try_to_open():
            call.error = self._pen.open_error
            call.done.set()
            return
        call.run(self._ledger)
        self._pen.pass_on_alarms()


def _is_urgent(item: _Item) -> bool:
    """Whether somebody waits for it."""
    if type(item) is Ticket:
        return item.is_awaited
    return type(item) is not UsageRecord and type(item) is not _Drop


_watched: WeakSet[Writer] = WeakSet()
_hooked: list[bool] = []


def _watch(writer: Writer) -> None:
    if not _hooked:
        os.register_at_fork(after_in_child=_after_fork)
        # A program that ends without `stop` keeps what it queued; servers that end by a signal never come
        # here, and lose nothing that they were told is committed.
        atexit.register(_at_exit)
        _hooked.append(True)
    _watched.add(writer)


def _after_fork() -> None:
    for writer in list(_watched):
        writer.begin_anew()


def _at_exit() -> None:
    for writer in list(_watched):
        writer.stop()
