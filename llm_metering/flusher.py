"""The flusher: one daemon thread that takes turns at delivery, and waits in between."""

from __future__ import annotations

import random as dice
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from . import _forks
from .delivery import Delivery, Flush, Sending, Writing
from .protocols import Outcome, Sender, Telemetry
from .senders.pacing import Backoff
from .senders.threads import SendingThreads
from .settings import Settings
from .usage import MeterEvent


class Beside(Protocol):
    """What runs while delivery runs, in a thread of its own; `settling.Settler`."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Flusher:
    """Delivers meter events from a ledger through a sender, in a daemon thread of its own.

    - It sends only what a claim has committed before, at most `max_in_flight` requests at a time.
    - The first ambiguous outcome, or three refusals in a row, stop new sends (`Breaker`); "slow down"
      halves the rate (`Rate`).
    - The account is asked for, and the ledger bound to it, before a key sends its first event. A bad key,
      or one of another account, pauses (`Permit`): nothing is consumed, one alarm `delivery.paused` is
      raised, and sending goes on by itself once the key is right (`delivery.resumed`).
    - An error of its own is counted and an alarm, `delivery.failing`; then it tries again.

    Args:
        writer: Runs functions on the ledger's thread.
        sender: None where no key is known: usage is kept, nothing is sent.
        settings: `flush_every_s`, `bucket_s`, `max_in_flight` and `drain_s` are used.
        telemetry: Counts `delivery.<outcome>` and raises alarms.
        now: The wall clock, Unix seconds; what the ledger is told.
        monotonic: The clock for waiting.
        random: Uniform in [0, 1), for jitter.
        sending: Makes what carries jobs to the sender.
        beside: Started and stopped with the thread.
    """

    def __init__(
        self,
        writer: Writing,
        sender: Sender | None,
        settings: Settings,
        telemetry: Telemetry,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = dice.random,
        sending: Callable[[Sender, int, Telemetry], Sending] = SendingThreads,
        beside: Beside | None = None,
    ) -> None:
        self._writer = writer
        self._sender = _NoKey() if sender is None else sender
        self._settings = settings
        self._telemetry = telemetry
        self._now = now
        self._monotonic = monotonic
        self._random = random
        self._make_sending = sending
        self._beside = beside
        self._begin()
        _forks.watch(self)

    def _begin(self) -> None:
        self._sending = self._make_sending(self._sender, self._settings.max_in_flight, self._telemetry)
        self._delivery = Delivery(
            self._writer,
            self._sender,
            self._sending,
            self._settings,
            self._telemetry,
            now=self._now,
            monotonic=self._monotonic,
            random=self._random,
        )
        self._trouble = Backoff(self._random, base_s=1.0, cap_s=30.0)
        self._failing = False
        self._lock = threading.Lock()
        self._turning = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop_at: float | None = None

    @property
    def is_running(self) -> bool:
        """Whether the thread runs; in a forked child not until `start`."""
        return self._thread is not None and self._thread.is_alive() and self._stop_at is None

    @property
    def paused(self) -> str | None:
        """Why nothing is sent, None if it is."""
        pause = self._delivery.pause
        return self._delivery.permit.reason if pause is None else f"by {pause.who}: {pause.why}"

    def start(self) -> None:
        """Start the thread. Harmless when it runs; works again after `stop` and in a forked child."""
        with self._lock:
            if self.is_running:
                return
            self._stop_at = None
            self._delivery.stopping = False
            self._delivery.hurry = True
            self._thread = threading.Thread(target=self._loop, name="llm-metering-flusher", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as exc:  # no thread to be had now, or the interpreter is ending
                self._thread = None
                self._telemetry.failure("delivery.thread", exc)
                return
        if self._beside is not None:
            self._beside.start()

    def wake(self) -> None:
        """Take a round now rather than when one is due."""
        self._delivery.hurry = True
        self._sending.wake()

    def flush(self, timeout_s: float = 30.0) -> int:
        """Freeze all usage and deliver until nothing falls due within the time, or the time is out.

        It returns early where a person has to act first (no key, paused). Returns how many meter events
        are not delivered yet: those that wait for another attempt, or whose outcome is not known.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        flush = Flush(self._monotonic() + timeout_s)
        self._delivery.flushes.append(flush)
        self.start()
        self._sending.wake()
        flush.done.wait(timeout_s)
        books = self._writer.run(lambda ledger: ledger.view())
        return len(books.events(states=("PENDING", "SENDING", "AMBIGUOUS"), limit=_ALL))

    def stop(self, drain_s: float | None = None) -> None:
        """Start no more sends and wait at most `drain_s` for those under way.

        What is left stays in the ledger. An answer that comes later is not heard: the event counts as
        ambiguous and is sent again with the same identifier.
        """
        with self._lock:
            thread = self._thread
            if thread is None or not thread.is_alive():
                return
            drain_s = self._settings.drain_s if drain_s is None else drain_s
            self._stop_at = self._monotonic() + drain_s
            self._delivery.stopping = True
        self._sending.wake()
        if self._beside is not None:
            self._beside.stop()
        if thread is not threading.current_thread():  # it is where an alarm's callback stops us
            thread.join(drain_s + _LAST_COMMIT_S)
        self._sending.release()

    def step(self) -> float:
        """Take one turn without a thread, for tests and simulators; return how long to wait."""
        with self._turning:
            return self._guarded_turn()

    def after_fork(self) -> None:
        """Forget the parent's threads and sends; called by itself in a forked child."""
        self._begin()

    def _loop(self) -> None:
        me = threading.current_thread()
        try:
            self._take_turns(me)
        finally:
            if self._thread is me:
                self._delivery.dismiss_flushes()

    def _take_turns(self, me: threading.Thread) -> None:
        while self._thread is me:
            wait_s = self.step()
            stop_at = self._stop_at
            if stop_at is not None:
                left = stop_at - self._monotonic()
                if left <= 0 or self._delivery.is_settled:
                    return
                wait_s = min(wait_s, left)
            if self._delivery.rest_s:
                time.sleep(self._delivery.rest_s)
            self._sending.wait(wait_s)

    def _guarded_turn(self) -> float:
        try:
            wait_s = self._delivery.turn()
        except Exception as exc:
            self._telemetry.failure("delivery.turn", exc)
            if not self._failing:
                self._failing = True
                self._telemetry.alarm("delivery.failing", f"delivery cannot do its work: {exc}")
            return self._trouble.next_s()
        self._failing = False
        self._trouble.reset()
        return wait_s


class _NoKey:
    """Stands in where no key is known."""

    max_batch = 1
    key_hint = ""

    def send(self, events: Sequence[MeterEvent]) -> list[Outcome]:
        return [self.check() for _ in events]

    def check(self) -> Outcome:
        return Outcome("refused_config", code="no_key", message="no Stripe API key; set STRIPE_API_KEY")

    def close(self) -> None: ...


_LAST_COMMIT_S = 2.0
_ALL = 10_000_000
