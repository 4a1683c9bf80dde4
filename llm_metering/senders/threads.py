"""Threads that send: as few as keep up, started when needed, gone when idle.

The flusher hands in jobs and collects what became of them; it alone touches the ledger.
"""

from __future__ import annotations

import math
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from queue import Empty, SimpleQueue

from .._failpoints import failpoint
from .._redact import one_line
from .._values import dataclass, maker
from ..protocols import Claim, Outcome, Sender, Telemetry
from ..usage import MeterEvent


@dataclass(frozen=True, slots=True)
class Begun:
    """An event that was sent, and whose answer is still to be read."""

    fileno: int
    """Becomes readable once an answer comes; -1 where the outcome is known already."""
    left_s: float
    """For how long it is waited for."""
    end: Callable[[], Outcome]
    """Read the answer. Does not raise for what the network does."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one job; without claims it was a `check`."""

    claims: tuple[Claim, ...]
    outcomes: tuple[Outcome, ...]


begun = maker(Begun)
_ended = maker(Ended)

last_moment: ContextVar[float] = ContextVar("last_moment", default=math.inf)


@contextmanager
def no_byte_after(at: float) -> Iterator[None]:
    """No request begins in here after this time of the wall clock. It is looked at once the connection
    stands: one that outlives a process that is stopped there has long been closed by the other side."""
    token = last_moment.set(at)
    try:
        yield
    finally:
        last_moment.reset(token)


_Job = tuple[tuple[Claim, ...], float]
"""The events of one request, and a time before they were claimed."""


class SendingThreads:
    """At most `limit` threads over one sender.

    A further thread starts only when work has waited for `SPAWN_AFTER_S`: against a server that answers
    at once one thread is faster than eight, and leaves the interpreter to those who serve requests. Where
    the sender can, a thread has several requests under way: it begins all that wait, and reads the answers
    as they come. One that takes long to begin is the last, so that no answer waits for a name look-up.

    What is handed in calls one thread, and no other while that one looks for jobs; where it leaves some it
    calls the next. So one thread has what one can do, however many a slow moment has started.
    """

    TOGETHER = 8
    SLOW_S = 0.01
    """A thread that began requests for so long reads their answers before it begins another."""

    COMPANY_S = 0.0003
    """How long an answer waits for others to be read with it."""
    SPAWN_AFTER_S = 0.005
    LINGER_S = 0.005
    """How long results are gathered before the flusher wakes, so that it commits many in one go."""
    IDLE_S = 30.0
    TOO_LATE_S = 3600.0
    """What was claimed so long ago is not sent any more, as where the process was stopped or the machine
    suspended: another worker may have sent it meanwhile, and Stripe may have forgotten that. It is half of
    what the ledger's horizon keeps in hand."""

    def __init__(self, sender: Sender, limit: int, telemetry: Telemetry) -> None:
        self._sender = sender
        self._begin = _begin_of(sender)
        self._limit = limit
        self._telemetry = telemetry
        self._jobs: deque[_Job] = deque()
        self._calls: SimpleQueue[bool] = SimpleQueue()
        """True for a thread to look for jobs, False for one to end."""
        self._called = False
        """Whether a thread looks for jobs, or will."""
        self._idle = 0
        self._ended: deque[Ended] = deque()
        self._changed = threading.Condition()
        self._threads = 0
        self._under_way = 0
        self._woken = False
        self._turn_at: float | None = None

    def submit(self, claims: Sequence[Claim]) -> None:
        """One request with these claims; with none it is a `check`. Never blocks."""
        with self._changed:
            self._under_way += 1
            self._jobs.append((tuple(claims), time.time() if self._turn_at is None else self._turn_at))
            self._call()
            if not self._threads:
                self._spawn()

    def collect(self) -> list[Ended]:
        """What has ended since the last call. What is claimed and submitted after it counts from here on."""
        with self._changed:
            self._turn_at = time.time()
            ended = list(self._ended)
            self._ended.clear()
            return ended

    def recall(self) -> list[tuple[Claim, ...]]:
        """Take back the jobs that no thread has begun."""
        recalled: list[tuple[Claim, ...]] = []
        while (job := self._next()) is not None:
            recalled.append(job[0])
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
                self._calls.put(False)

    def _pause(self, deadline: float) -> bool:
        """Wait for a change, a thread short or the deadline; False when that has passed."""
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        short = self._is_short()
        changed = self._changed.wait(min(left, self.SPAWN_AFTER_S) if short else left)
        if short and not changed and self._is_short():
            if self._idle:
                self._calls.put(True)
            else:
                self._spawn()
        return True

    def _is_short(self) -> bool:
        """Whether another thread could have what waits."""
        return bool(self._jobs) and bool(self._idle or self._threads < self._limit)

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
            job = self._next()
            if job is None:
                self._look_no_more()
                if self._is_called():
                    continue
                with self._changed:
                    self._threads -= 1
                return
            claims, claimed_at = job
            if self._is_too_late(job):
                self._tell([_not_begun(claims)])
            elif claims and self._begin is not None:
                self._side_by_side(self._begin, job)
            else:
                self._look_no_more()
                with no_byte_after(claimed_at + self.TOO_LATE_S if claims else math.inf):
                    outcomes = self._outcomes(claims)
                self._tell([Ended(claims, outcomes)])

    def _next(self) -> _Job | None:
        try:
            return self._jobs.popleft()
        except IndexError:
            return None

    def _call(self) -> None:
        if not self._called:
            self._called = True
            self._calls.put(True)

    def _look_no_more(self) -> None:
        """What one thread leaves is for others; what is handed in from here on calls again."""
        self._called = False
        if self._jobs:
            self._call()

    def _is_called(self) -> bool:
        """Wait to be called; False if it is time to end."""
        with self._changed:
            self._idle += 1
        try:
            return self._calls.get(timeout=self.IDLE_S)
        except Empty:
            return False
        finally:
            with self._changed:
                self._idle -= 1

    def _side_by_side(self, begin: Callable[[MeterEvent], Begun], job: _Job) -> None:
        """This job, and others that wait, over connections of their own."""
        waiting: dict[int, tuple[tuple[Claim, ...], Begun]] = {}
        slow_at = time.monotonic() + self.SLOW_S
        more: _Job | None = job
        with no_byte_after(job[1] + self.TOO_LATE_S):
            while more is not None:
                claims, claimed_at = more
                last_moment.set(claimed_at + self.TOO_LATE_S)
                sent = self._begun(begin, claims[0].event)
                if sent.fileno < 0:
                    self._tell([_ended(claims, (sent.end(),))])
                else:
                    waiting[sent.fileno] = claims, sent
                is_time = len(waiting) < self.TOGETHER and time.monotonic() < slow_at
                more = self._another() if is_time else None
        self._look_no_more()
        if waiting:
            self._read(waiting)

    def _another(self) -> _Job | None:
        """Another event to be sent, None if none waits."""
        while (job := self._next()) is not None:
            if not job[0]:
                self._jobs.appendleft(job)  # a check: not now
                return None
            if not self._is_too_late(job):
                return job
            self._tell([_not_begun(job[0])])
        return None

    def _is_too_late(self, job: _Job) -> bool:
        claims, claimed_at = job
        # By the wall clock: the other may have stood still with the machine.
        return bool(claims) and time.time() - claimed_at > self.TOO_LATE_S

    def _read(self, waiting: dict[int, tuple[tuple[Claim, ...], Begun]]) -> None:
        """Read the answers in the order in which they come."""
        answers = select.poll()
        for fileno in waiting:
            answers.register(fileno, select.POLLIN)
        deadline = time.monotonic() + min(begun.left_s for _, begun in waiting.values())
        is_told = True
        while waiting:
            left_s = max(deadline - time.monotonic(), 0.0)
            ready = answers.poll(1000 * (left_s if is_told else min(left_s, self.LINGER_S)))
            if not ready and not is_told:
                self._hear()  # the others take their time
                is_told = True
                continue
            if 0 < len(ready) < len(waiting):
                # Each answer that wakes us takes the interpreter from others; a few at a time are as well.
                time.sleep(self.COMPANY_S)
                ready = answers.poll(0)
            # Where the time is out, each says so for itself.
            read = []
            for fileno in [f for f, _ in ready] or list(waiting):
                answers.unregister(fileno)
                job, begun = waiting.pop(fileno)
                read.append(_ended(job, (self._safely(begun.end),)))
            self._tell(read, wake=False)
            is_told = False

    def _begun(self, begin: Callable[[MeterEvent], Begun], event: MeterEvent) -> Begun:
        try:
            return begin(event)
        except Exception as exc:
            outcome = self._raised(exc)
            return Begun(-1, 0.0, lambda: outcome)

    def _safely(self, end: Callable[[], Outcome]) -> Outcome:
        try:
            return end()
        except Exception as exc:
            return self._raised(exc)

    def _raised(self, exc: Exception) -> Outcome:
        # A sender must not raise. One that does may have sent all the same.
        self._telemetry.failure("delivery.sender", exc)
        return Outcome("ambiguous", message=one_line(f"the sender raised {type(exc).__name__}"))

    def _tell(self, ended: list[Ended], *, wake: bool = True) -> None:
        failpoint("after_response")
        with self._changed:
            is_first = not self._ended
            self._under_way -= len(ended)
            self._ended += ended
            # The first result wakes the flusher, the last ends its gathering.
            if (wake and is_first) or not self._under_way:
                self._changed.notify()

    def _hear(self) -> None:
        with self._changed:
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
            return (self._raised(exc),) * max(1, len(job))


def _not_begun(claims: tuple[Claim, ...]) -> Ended:
    outcome = Outcome("not_sent", message="it waited too long to be sent, as after a suspended machine")
    return Ended(claims, (outcome,) * len(claims))


def _begin_of(sender: Sender) -> Callable[[MeterEvent], Begun] | None:
    """How one request is begun, None where the sender only sends whole ones; one that inherits `begin` and
    has a `send` of its own is taken at its `send`."""
    for each in type(sender).__mro__:
        if "send" in vars(each):
            return getattr(sender, "begin", None) if "begin" in vars(each) else None
    return None
