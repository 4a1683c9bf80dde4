"""One process of a simulated service: a real ledger and flusher, which may die at any step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from llm_metering.ledger.clocks import Boot
from llm_metering.ledger.memory import MemoryLedger
from llm_metering.ledger.postgres import PostgresLedger
from llm_metering.ledger.sqlite import SqliteLedger
from llm_metering.meters import lines_of
from llm_metering.protocols import Claim, Entry, Ledger, Progress
from llm_metering.usage import Usage, UsageRecord
from tests.ledger.postgres.cluster import Place
from tests.simulation.stripe import SimulatedStripe
from tests.simulation.world import METERS, VirtualSending, World

WRITES = frozenset(
    {"commit", "freeze", "claim", "finish_many", "finish_and_claim", "maintain", "bind", "set_meta"}
)
"""Calls of the ledger before and after which a process may die."""


class Died(BaseException):
    """`kill -9`, as far as one process can play it."""


class Surroundings(Protocol):
    """What a process is told by the life it is part of."""

    dice: random.Random
    now: float
    folder: Path | Place | None
    stripe: SimulatedStripe
    max_in_flight: int
    bucket_s: int
    slow_rate: float
    lives: int
    is_dirty: bool
    acknowledged: set[str]

    @property
    def wall(self) -> float: ...
    def boot(self) -> Boot | None: ...
    def wake_up(self) -> None: ...
    def die_if_told(self) -> None: ...
    def guarded(self, process: Process, act: Callable[[], object]) -> None: ...


class Process(World):
    """One process of the service: a ledger, a flusher, and what it has under way."""

    def __init__(self, life: Surroundings, number: int) -> None:
        self.life = life
        self.number = number
        self.back_at = 0.0
        self.is_down = False
        self.streams: set[str] = set()
        super().__init__(
            life.stripe,
            seed=life.dice.randrange(2**32),
            ledger=self.make_ledger(),
            bucket_s=life.bucket_s,
            flush_every_s=life.dice.choice((10.0, 300.0)),
            max_in_flight=life.max_in_flight,
        )

    # World asks the life for the time.
    now = property(lambda self: self.life.now, lambda self, value: None)

    @property
    def wall(self) -> float:
        return self.life.wall

    def make_ledger(self) -> Any:
        dice = random.Random(self.life.dice.randrange(2**32))
        if self.life.folder is None:
            return MemoryLedger(random=dice.random, boot=self.life.boot)
        if isinstance(self.life.folder, Place):
            return PostgresLedger(
                self.life.folder.url,
                schema=self.life.folder.schema,
                new_id=lambda: f"{dice.getrandbits(128):032x}",
                random=dice.random,
                hold_s=700,  # rounds are up to five minutes apart
                clock="caller",
            )
        return SqliteLedger(
            self.life.folder,
            new_id=lambda: f"{dice.getrandbits(128):032x}",
            random=dice.random,
            adopt_after_s=dice.choice((0.0, 5.0)),
            boot=self.life.boot,
        )

    def start_process(self) -> None:
        self.life.lives += 1
        self.make_flusher()

    def begin(self) -> None:
        """Come back after a crash."""
        self.life.wake_up()
        if self.life.folder is not None:
            self.ledger = self.make_ledger()
        self.ledger.open(now=self.wall)
        self.is_down = False
        self.life.is_dirty = True
        self.start_process()

    def end(self) -> list[Claim]:
        """Be gone; what was under way and has not arrived yet."""
        self.is_down = True
        if isinstance(self.ledger, PostgresLedger) and self.life.dice.random() < 0.5:
            self.ledger.vanish()
        else:
            self.ledger.close()
        under_way = [claim for job in self.sending.jobs if job.outcomes is None for claim in job.claims]
        self.sending.jobs = []
        return under_way

    def make_sending(self, sender: Any, limit: int, telemetry: Any) -> Any:
        self.sending = LateSending(self, sender, limit)
        return self.sending

    def run(self, fn: Callable[[Any], Any]) -> Any:
        return fn(Mortal(self.ledger, self.life))

    def row(self, identifier: str) -> Any:
        if self.life.folder is None:
            return super().row(identifier)
        return self.ledger.history(identifier).row

    def check_pairs(self, under_way: Sequence[Claim]) -> None:
        """The life looks at the ledger instead: a request whose lease ran out is no call any more."""

    def commit(self, id_: str, customer: str, value: int, closes: str | None = None) -> None:
        entry = self._entry(id_, customer, value, closes)
        self.run(lambda ledger: ledger.commit([entry], [], now=self.wall))
        self.life.acknowledged.add(id_)

    def stream(self, id_: str, customer: str, value: int, *, ends: bool) -> None:
        progress = Progress(self._entry(id_, customer, value, None))
        self.run(lambda ledger: ledger.commit([], [progress], now=self.wall))
        self.life.acknowledged.add(id_)
        if ends:
            self.commit(id_, customer, value + 1, closes=id_)
        else:
            self.life.guarded(self, self._cut)

    def _cut(self) -> None:
        raise Died

    def _entry(self, id_: str, customer: str, value: int, closes: str | None) -> Entry:
        record = UsageRecord(
            id=id_, usage=Usage(input=value), used_at=self.wall, customer=customer, model="gpt-5-mini"
        )
        return Entry(record, lines_of(record, METERS), closes)


class LateSending(VirtualSending):
    """Requests that arrive when they begin or when they end, and answers that come late, or very late."""

    world: Process

    def submit(self, claims: Sequence[Claim]) -> None:
        life = self.world.life
        self.world.latency_s = life.dice.choice((0.05, 0.05, 2.0, 30.0))
        if claims and life.dice.random() < life.slow_rate:
            self.world.latency_s = life.dice.uniform(250, 1200)  # past its lease
        super().submit(claims)
        if life.dice.random() < 0.5:
            self.jobs[-1].outcomes = self.ask(self.jobs[-1])


class Mortal:
    """A ledger before and after each write of which its process may die."""

    def __init__(self, ledger: Ledger, life: Surroundings) -> None:
        self._ledger = ledger
        self._life = life

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ledger, name)
        if name not in WRITES:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self._life.die_if_told()
            done = method(*args, **kwargs)
            if done or name in ("finish_many", "finish_and_claim"):
                self._life.is_dirty = True
            self._life.die_if_told()
            return done

        return call
