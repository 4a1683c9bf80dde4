"""Delivery on a virtual clock: the real `Flusher` over a real ledger, without threads and without waiting."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from llm_metering.flusher import Flusher
from llm_metering.ledger.memory import MemoryLedger
from llm_metering.meters import checked_meters, lines_of
from llm_metering.protocols import Alarm, Claim, Entry, Ledger, Outcome, Sender, Telemetry
from llm_metering.senders.memory import MemorySender
from llm_metering.senders.threads import Ended
from llm_metering.settings import Settings
from llm_metering.telemetry import LogTelemetry
from llm_metering.usage import Usage, UsageRecord

T = TypeVar("T")

START = 1_750_000_020.0
MINUTE = 60.0
HOUR = 3600.0
DAY = 24 * HOUR
METERS = checked_meters(None)
AT_REST = frozenset({"ACCEPTED", "SETTLED", "IN_DOUBT", "DEAD", "CLOSED"})
ALL = 10**6


class BrokenRule(BaseException):
    """Something happened that must never happen.

    No `Exception`: those of its own delivery survives, and goes on.
    """


def rule(holds: object, what: str) -> None:
    if not holds:
        raise BrokenRule(what)


@dataclass(slots=True)
class Job:
    """A request under way; without claims it is a check."""

    ends_at: float
    claims: tuple[Claim, ...]
    outcomes: tuple[Outcome, ...] | None = None
    """Where it has arrived and only the answer is under way."""


class VirtualSending:
    """Carries jobs without threads: each ends `latency_s` after it began, on the virtual clock."""

    def __init__(self, world: World, sender: Sender, limit: int) -> None:
        self.world = world
        self.sender = sender
        self.limit = limit
        self.jobs: list[Job] = []
        self.most = 0

    def submit(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            row = self.world.row(claim.event.identifier)
            rule(row.state == "SENDING", "sent without a claim on record")
            rule(row.event == claim.event, "other bytes than those on record")
        self.jobs.append(Job(self.world.now + self.world.latency_s, tuple(claims)))
        self.most = max(self.most, len([job for job in self.jobs if job.claims]))
        rule(self.most <= self.limit, "more requests than allowed are under way")
        self.world.check_pairs([claim for job in self.jobs for claim in job.claims])

    def collect(self) -> list[Ended]:
        over = [job for job in self.jobs if job.ends_at <= self.world.now]
        self.jobs = [job for job in self.jobs if job.ends_at > self.world.now]
        return [Ended(job.claims, job.outcomes or self.ask(job)) for job in over]

    def ask(self, job: Job) -> tuple[Outcome, ...]:
        if not job.claims:
            return (self.sender.check(),)
        return tuple(self.sender.send([claim.event for claim in job.claims]))

    def recall(self) -> list[tuple[Claim, ...]]:
        recalled = [job.claims for job in self.jobs]
        self.jobs = []
        return recalled

    def wait(self, timeout_s: float) -> None: ...
    def wake(self) -> None: ...
    def release(self) -> None: ...


class World:
    """A ledger, a flusher without threads, a Stripe, and a clock that only moves when told to."""

    def __init__(
        self, sender: Any = None, *, seed: int = 1, ledger: Ledger | None = None, **settings: Any
    ) -> None:
        self.now = START
        self.latency_s = 0.1
        self.alarms: list[Alarm] = []
        self.telemetry = LogTelemetry(on_alarm=self.alarms.append, monotonic=lambda: self.now)
        self.dice = random.Random(seed)
        self.ledger: Any = MemoryLedger(random=self.dice.random) if ledger is None else ledger
        self.ledger.open(now=self.now)
        self.stripe: Any = MemorySender() if sender is None else sender
        self.settings = Settings(**{"bucket_s": 60, "flush_every_s": 10, **settings})
        self.records = 0
        self.turns = 0
        self.sending: Any = None
        self.start_process()

    @property
    def wall(self) -> float:
        """What the wall clock says."""
        return self.now

    def start_process(self) -> None:
        """Begin, or begin again as after a crash: what was under way may arrive, and nobody hears of it."""
        for job in self.sending.jobs if self.sending else ():
            if self.stripe is not None and self.dice.random() < 0.5:
                self.stripe.send([claim.event for claim in job.claims])
        self.ledger.close()
        self.ledger.open(now=self.wall)
        self.make_flusher()

    def make_flusher(self) -> None:
        self.flusher = Flusher(
            self,
            self.stripe,
            self.settings,
            self.telemetry,
            now=lambda: self.wall,
            monotonic=lambda: self.now,
            random=self.dice.random,
            sending=self.make_sending,
        )

    def make_sending(self, sender: Sender, limit: int, telemetry: Telemetry) -> Any:
        self.sending = VirtualSending(self, sender, limit)
        return self.sending

    def run(self, fn: Callable[[Ledger], T]) -> T:
        return fn(self.ledger)

    def use(self, customer: str = "cus_1", tokens: int = 10, model: str = "gpt-5-mini") -> None:
        self.records += 1
        record = UsageRecord(
            id=f"r{self.records}", usage=Usage(input=tokens), used_at=self.now, customer=customer, model=model
        )
        self.ledger.commit([Entry(record, lines_of(record, METERS))], [], now=self.now)

    def pass_(self, seconds: float, *, each: Callable[[], object] | None = None) -> None:
        """Let time pass, with a turn whenever one is due."""
        end = self.now + seconds
        while self.now < end:
            wait_s = self.flusher.step()
            assert wait_s >= 0
            self.turns += 1
            if self.turns % 50 == 0:
                assert self.is_conserved()
            if each is not None:
                each()
            ends = [job.ends_at for job in self.sending.jobs]
            # A turn that would follow at once, for ever, would be a busy loop.
            self.now = min(end, max(min([self.now + wait_s, *ends]), self.now + 0.001))

    def pass_until(self, what: Callable[[], object], within: float = 120) -> None:
        end = self.now + within
        while not what():
            assert self.now < end, f"not within {within} s: {self.ledger.status(now=self.now)}"
            self.pass_(0.2)

    def check_pairs(self, under_way: Sequence[Claim]) -> None:
        pairs = Counter((c.event.customer, c.event.event_name) for c in under_way)
        rule(all(n == 1 for n in pairs.values()), "two calls at a time for one customer and meter")

    def is_conserved(self) -> bool:
        return all(b.conserved for b in self.ledger.balances())

    def row(self, identifier: str) -> Any:
        return next(r for r in self.ledger.events(limit=ALL) if r.event.identifier == identifier)

    def states(self) -> dict[str, int]:
        return dict(Counter(row.state for row in self.ledger.events(limit=ALL)))

    def names(self) -> list[str]:
        return [a.name for a in self.alarms]

    def settled(self) -> bool:
        return set(self.states()) <= AT_REST and not self.ledger.status(now=self.now).unfrozen_records
