"""Threads that send: as few as keep up, started when needed, gone when idle.

The flusher hands in jobs and collects what became of them; it alone touches the ledger.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from queue import Empty, SimpleQueue

from .._failpoints import failpoint
from .._redact import one_line
from .._values import dataclass
from ..protocols import Claim, Outcome, Sender, Telemetry


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one job; without claims it was a `check`."""

    claims: tuple[Claim, ...]
    outcomes: tuple[Outcome, ...]


class SendingThreads:
    """At most `limit` threads over one sender.

    A further thread starts only when work has waited for `SPAWN_AFTER_S`: against a server that answers
    at once one thread is faster than eight, and leaves the interpreter to those who serve requests.
    """

    SPAWN_AFTER_S = 0.005
    LINGER_S = 0.005
    """How long results are gathered before the flusher wakes, so that it commits many in one go."""
    IDLE_S = 30.0

    def __init__(self, sender: Sender, limit: int, telemetry: Telemetry) -> None:
        self._sender = sender
        self._limit = limit
        self._telemetry = telemetry
        self._jobs: SimpleQueue[tuple[Claim, ...] | None] = SimpleQueue()
        self._ended: deque[Ended] = deque()
        self._changed = threading.Condition()
        self._threads = 0
        self._under_way = 0
        self._woken = False

    def submit(self, claims: Sequence[Claim]) -> None:
        """One request with these claims; with none it is a `check`. Never blocks."""
        with self._changed:
            self._under_way += 1
            self._jobs.put(tuple(claims))
            if not self._threads:
                self._spawn()

    def collect(self) -> list[Ended]:
        """What has ended since the last call."""
        with self._changed:
            ended = list(self._ended)
            self._ended.clear()
            return ended

    def recall(self) -> list[tuple[Claim, ...]]:
        """Take back the jobs that no thread has begun."""
        recalled: list[tuple[Claim, ...]] = []
        try:
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    recalled.append(job)
        except Empty:
            with self._changed:
                self._under_way -= len(recalled)
            return recalled

    def wait(self, timeout_s: float) -> None:
        """Until something has ended, someone called `wake`, or the time is out."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not (self._woken or self._ended) and self._pause(deadline):
                pass
            deadline = min(deadline, time.monotonic() + self.LINGER_S)
            while self._ended and self._under_way and not self._woken and self._pause(deadline):
                pass
            self._woken = False

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def release(self) -> None:
        """Let the threads end once they are done."""
        with self._changed:
            for _ in range(self._threads):
                self._jobs.put(None)

    def _pause(self, deadline: float) -> bool:
        """Wait for a change, a thread short or the deadline; False when that has passed."""
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        short = bool(self._jobs.qsize()) and self._threads < self._limit
        changed = self._changed.wait(min(left, self.SPAWN_AFTER_S) if short else left)
        if short and not changed and self._jobs.qsize() and self._threads < self._limit:
            self._spawn()
        return True

    def _spawn(self) -> None:
        self._threads += 1
        name = f"llm-metering-send-{self._threads}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError as exc:  # no thread to be had now, or the interpreter is ending
            self._threads -= 1
            self._telemetry.failure("delivery.thread", exc)

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=self.IDLE_S)
            except Empty:
                job = None
            if job is None:
                with self._changed:
                    self._threads -= 1
                return
            ended = Ended(job, self._outcomes(job))
            failpoint("after_response")
            with self._changed:
                self._under_way -= 1
                self._ended.append(ended)
                # The first result wakes the flusher, the last ends its gathering.
                if len(self._ended) == 1 or not self._under_way:
                    self._changed.notify()

    def _outcomes(self, job: tuple[Claim, ...]) -> tuple[Outcome, ...]:
        try:
            if not job:
                return (self._sender.check(),)
            outcomes = tuple(self._sender.send([claim.event for claim in job]))
            if len(outcomes) == len(job):
                return outcomes
            raise RuntimeError(f"the sender gave {len(outcomes)} outcomes for {len(job)} events")
        except Exception as exc:
            # A sender must not raise. One that does may have sent all the same.
            self._telemetry.failure("delivery.sender", exc)
            outcome = Outcome("ambiguous", message=one_line(f"the sender raised {type(exc).__name__}"))
            return (outcome,) * max(1, len(job))
