"""The forwarder: one daemon thread that carries what this host records to the ledger that a fleet shares.

    capture ──▶ Writer ──▶ lane on this host ──offer──▶ Forwarder ──▶ PostgreSQL
                               ▲─────────taken, or "offer again"──────────┘

No request waits for it. While the database is away the lane grows; what it has taken stays in the lane for
the re-offer window, should the database turn out to have gone back in time.
"""

from __future__ import annotations

import random as dice
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from . import _forks
from ._failpoints import failpoint
from .errors import LedgerError
from .ledger.offers import Answer, Offer, OfferAgain
from .ledger.outbox import Outbox
from .ledger.tickets import Ticket, settle
from .protocols import Ledger, Telemetry
from .protocols import Ticket as AnyTicket
from .senders.pacing import Backoff
from .usage import UsageRecord

T = TypeVar("T")

LATE_S = 60.0
"""Usage that waits for longer on its host is an alarm."""
_MAX_FOLLOWED = 100_000
_LONGEST_WAIT_S = 5.0
_TIDY_EVERY_S = 5.0


class Writing(Protocol):
    """The thread that writes to the lanes; `ledger.writer.Writer`."""

    def put(self, record: UsageRecord, *, closes: str | None = None) -> AnyTicket: ...
    def run(self, function: Callable[[Ledger], T], timeout_s: float | None = None) -> T: ...


class Forwarder:
    """Forwards what lanes hold every `every_s`, in a daemon thread of its own.

    - A group is offered once it is on disk, and noted as taken once the ledger has committed it. Between the
      two it may be offered again: the ledger knows records by their ids.
    - What does not get through is tried again, a little later each time, at most five seconds apart. After a
      minute it is an alarm, `forwarder.waiting`, until it has (`forwarder.caught_up`).
    - A ledger that went back in time is offered again all that the lanes still hold, with an alarm,
      `forwarder.offered_again`.

    Args:
        lanes: Runs functions on the thread that writes to the lanes.
        outbox: Theirs.
        take_in: Offers a group to the ledger; raises LedgerError where that fails.
        telemetry: Counts `forwarder.forwarded`, and raises alarms.
        every_s: How often.
        now: The wall clock, Unix seconds.
        monotonic: The clock for waiting.
        random: Uniform in [0, 1), for jitter.
    """

    def __init__(
        self,
        lanes: Writing,
        outbox: Outbox,
        take_in: Callable[[Offer], Answer],
        telemetry: Telemetry,
        *,
        every_s: float,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = dice.random,
    ) -> None:
        self._lanes = lanes
        self._outbox = outbox
        self._take_in = take_in
        self._telemetry = telemetry
        self._every_s = every_s
        self._now = now
        self._monotonic = monotonic
        self._random = random
        self.after_fork()
        _forks.watch(self)

    def after_fork(self) -> None:
        """Forget the parent's thread and those who wait; called by itself in a forked child."""
        self._lock = threading.Lock()
        self._forwarding = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._trouble = Backoff(self._random, base_s=self._every_s, cap_s=_LONGEST_WAIT_S)
        self._stop_at: float | None = None
        self._tidied_at = float("-inf")
        self._failing_since: float | None = None
        self._told_late = False
        self._on_disk: list[Ticket] = []
        self.problem: str | None = None
        """Why the ledger took nothing the last time, None if it did."""

    # ---- from any thread

    @property
    def is_running(self) -> bool:
        """Whether the thread runs; in a forked child not until `start`."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread. Harmless when it runs."""
        with self._lock:
            if self.is_running and self._stop_at is None:
                return
            self._stop_at = None
            self._thread = threading.Thread(target=self._loop, name="llm-metering-forwarder", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as exc:  # no thread to be had now, or the interpreter is ending
                self._thread = None
                self._telemetry.failure("forwarder.thread", exc)

    def stop(self, drain_s: float) -> None:
        """Forward what is held, for at most so long, and end the thread. What is left stays on this host."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop_at = self._monotonic() + drain_s
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(drain_s)

    def forward(self, timeout_s: float) -> bool:
        """Forward all that is on disk now, on this thread; whether the ledger has it."""
        until = self._monotonic() + timeout_s
        while (left := until - self._monotonic()) > 0:
            if self._try(until, left):
                self._save()
                return True
            time.sleep(min(self._trouble.next_s(), max(until - self._monotonic(), 0.0)))
        return False

    def put(self, record: UsageRecord, *, closes: str | None = None) -> AnyTicket:
        """Queue a record; what is returned is done once the ledger has it, and not only this host's disk."""
        ticket = Ticket(record, closes)
        on_disk = self._lanes.put(record, closes=closes)
        on_disk.add_done_callback(lambda: self._follow(ticket, on_disk))
        return ticket

    # ---- the thread

    def _follow(self, ticket: Ticket, on_disk: AnyTicket) -> None:
        if on_disk.error is not None:
            settle([ticket], on_disk.error)
            return
        with self._lock:
            if len(self._on_disk) < _MAX_FOLLOWED:
                self._on_disk.append(ticket)
        self._wake.set()

    def _loop(self) -> None:
        me = threading.current_thread()
        while self._thread is me:
            done = self._try(None, None)
            self._wake.wait(self._every_s if done else self._trouble.next_s())
            self._wake.clear()
        stop_at = self._stop_at
        if stop_at is not None and not self.forward(stop_at - self._monotonic()):
            self._save()

    def _try(self, until: float | None, wait_s: float | None) -> bool:
        """Forward until the ledger has everything; False if it could not be had, or time was out."""
        if not self._forwarding.acquire(timeout=-1 if wait_s is None else wait_s):
            return False
        try:
            done = self._round(until)
        except Exception as exc:
            self._failed(exc)
            return False
        finally:
            self._forwarding.release()
        self._succeeded()
        return done

    def _round(self, until: float | None) -> bool:
        with self._lock:
            mine, self._on_disk = self._on_disk, []
        try:
            while (offer := self._visit(lambda now: self._outbox.next(now=now))) is not None:
                if until is not None and self._monotonic() > until:
                    return False
                self._offer(offer)
            mine, done = [], mine
        finally:
            with self._lock:
                self._on_disk += mine
        for raised in settle(done):
            self._telemetry.failure("forwarder.callback", raised)
        if not 0 <= self._monotonic() - self._tidied_at < _TIDY_EVERY_S:
            self._tidied_at = self._monotonic()
            self._visit(lambda now: self._outbox.tidy(now=now))
        return True

    def _offer(self, offer: Offer) -> None:
        answer = self._take_in(offer)
        again = self._visit(lambda now: self._outbox.answered(offer, answer, now=now))
        failpoint("forwarded")
        if isinstance(answer, OfferAgain):
            self._telemetry.alarm(
                "forwarder.offered_again",
                f"{again} records of lane {offer.lane} are offered to the ledger again: {answer.why}",
                lane=offer.lane,
                records=again,
            )
        else:
            self._telemetry.count("forwarder.forwarded", len(offer.records))

    def _visit(self, work: Callable[[float], T]) -> T:
        """On the thread that writes to the lanes."""
        return self._lanes.run(lambda _: work(self._now()))

    def _save(self) -> None:
        try:
            self._visit(lambda now: self._outbox.save(now=now))
        except Exception as exc:
            self._telemetry.failure("forwarder.save", exc)

    def _failed(self, exc: Exception) -> None:
        if not isinstance(exc, LedgerError):
            self._telemetry.failure("forwarder.round", exc)
        self._telemetry.count("forwarder.failed")
        self.problem = " ".join(str(exc).split())
        at = self._monotonic()
        if self._failing_since is None:
            self._failing_since = at
        if at - self._failing_since >= LATE_S and not self._told_late:
            self._told_late = True
            self._telemetry.alarm(
                "forwarder.waiting",
                f"usage waits on this host, and the ledger has taken nothing for {LATE_S:.0f} s: "
                f"{self.problem}",
            )

    def _succeeded(self) -> None:
        self._trouble.reset()
        self.problem = self._failing_since = None
        if self._told_late:
            self._told_late = False
            self._telemetry.alarm("forwarder.caught_up", "the ledger has all that waited on this host")
