"""What a lane remembers of its meter events between transactions, against the file: whatever is done in
between and whichever database call fails, memory never says what the file does not."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from llm_metering.errors import LedgerError
from llm_metering.ledger import SqliteLedger, attempts
from llm_metering.ledger import folder as files
from llm_metering.protocols import Claim, Outcome, OutcomeKind
from tests.ledger.conftest import BUCKET, T0, conserved, entry, line, progress, totals

METERS = ("tokens", "calls")
ANSWERS: tuple[OutcomeKind, ...] = ("not_sent", "throttled", "ambiguous", "refused_data", "refused_config")


class Unsteady(sqlite3.Connection):
    """A connection of which some calls fail, half of them after they did their work."""

    die = random.Random(0)
    share = 0.0

    def _call(self, call: Any, *args: Any) -> Any:
        if Unsteady.die.random() >= Unsteady.share:
            return call(*args)
        if Unsteady.die.random() < 0.5:
            call(*args)
        raise sqlite3.OperationalError("disk I/O error (injected)")

    def execute(self, *args: Any) -> Any:
        return self._call(super().execute, *args)

    def executemany(self, *args: Any) -> Any:
        return self._call(super().executemany, *args)


@pytest.fixture(autouse=True)
def steady_again() -> Iterator[None]:
    yield
    Unsteady.share = 0.0


class Life:
    """Random work on a ledger, by one process and sometimes another, with a Stripe that takes an identifier
    once."""

    def __init__(self, folder: Path, seed: int, share: float) -> None:
        self.dice = random.Random(seed)
        self.folder = folder
        self.now = T0
        self.share = share
        self.records = 0
        self.out: list[Claim] = []
        self.old: list[tuple[Claim, Outcome]] = []
        self.stripe: dict[str, bytes] = {}
        Unsteady.die = random.Random(seed)
        self.ledger = self.opened()

    def opened(self) -> SqliteLedger:
        ledger = SqliteLedger(
            self.folder,
            adopt_after_s=0,
            random=self.dice.random,
            connect=lambda *a, **k: sqlite3.connect(*a, **k, factory=Unsteady),
        )
        try:
            ledger.open(now=self.now)
        except LedgerError:
            ledger.close()
            raise
        return ledger

    # ---- what may happen

    def record(self) -> None:
        group = []
        for _ in range(self.dice.randint(1, 20)):
            self.records += 1
            lines = [line(10, event_name=m) for m in METERS if self.dice.random() < 0.7]
            customer = f"cus_{self.dice.randint(0, 15)}"
            lines = lines or [line(10)]
            group.append(entry(f"r{self.records}", *lines, customer=customer, used_at=self.now))
        self.ledger.commit(group, [progress(f"s{self.records}", used_at=self.now)], now=self.now)

    def freeze(self) -> None:
        self.now += BUCKET
        self.ledger.freeze(now=self.now, bucket_s=BUCKET)

    def claim(self) -> None:
        probing = self.dice.random() < 0.2
        self.take(self.ledger.claim(now=self.now, limit=self.dice.randint(1, 9), ambiguous_only=probing))

    def finish(self) -> None:
        results = self.results()
        before = self.states()
        told = self.ledger.finish_many(results, now=self.now)
        self.ended(results, told, before)

    def finish_and_claim(self) -> None:
        results = self.results()
        before = self.states()
        told, claims = self.ledger.finish_and_claim(results, now=self.now, limit=self.dice.randint(0, 9))
        self.ended(results, told, before)
        self.take(claims)

    def pass_time(self) -> None:
        self.now += self.dice.choice((1.0, 30.0, 301.0, 3600.0))
        self.ledger.maintain(now=self.now)

    def set_clock_back(self) -> None:
        self.now -= self.dice.choice((1.0, 400.0))
        self.ledger.claim(now=self.now, limit=0)

    def decide(self) -> None:
        rows = self.ledger.events(limit=1000)
        chosen = [row.event.identifier for row in self.dice.sample(rows, min(3, len(rows)))]
        if chosen and self.dice.random() < 0.5:
            self.ledger.replay(chosen, who="ada", why="test", now=self.now)
        elif chosen:
            has_arrived = chosen[0] in self.stripe  # a person looks it up
            self.ledger.resolve(chosen[0], has_arrived, who="ada", why="test", now=self.now)

    def pause_meter(self) -> None:
        self.ledger.pause_meter("calls", why=self.dice.choice((None, "no meter")))

    def settle(self) -> None:
        self.ledger.settle([i for i in self.stripe if self.dice.random() < 0.1], now=self.now)

    def adopt(self) -> None:
        """Another process leaves a lane with an attempt under way, and we take it over."""
        other = self.opened()
        try:
            self.records += 1
            other.commit([entry(f"r{self.records}", customer="cus_1", used_at=self.now)], [], now=self.now)
            other.freeze(now=self.now + 3600, bucket_s=BUCKET, everything=True)
            if self.dice.random() < 0.5:
                for claim in other.claim(now=self.now, limit=1):
                    self.stripe.setdefault(claim.event.identifier, b"")
        finally:
            other.close()
        self.ledger.maintain(now=self.now)

    def crash(self) -> None:
        self.ledger.close()
        self.ledger = self.opened()

    # ---- what must hold

    def take(self, claims: list[Claim]) -> None:
        states = self.states()
        for claim in claims:
            event = claim.event
            state, attempt, fence, value, timestamp = states[event.identifier]
            assert (state, attempt, fence) == ("SENDING", claim.attempt, claim.fence)
            assert (value, timestamp) == (event.payload["value"], event.timestamp)
        self.out += claims

    def results(self) -> list[tuple[Claim, Outcome]]:
        self.dice.shuffle(self.out)
        count = self.dice.randint(0, len(self.out))
        ended, self.out = self.out[:count], self.out[count:]
        results = [(claim, self.send(claim)) for claim in ended]
        self.old += results
        if self.old and self.dice.random() < 0.3:
            results.append(self.dice.choice(self.old))  # told again, or long after
        return results

    def send(self, claim: Claim) -> Outcome:
        identifier = claim.event.identifier
        answer: OutcomeKind = self.dice.choice(ANSWERS) if self.dice.random() < 0.4 else "accepted"
        if answer in ("accepted", "ambiguous"):
            body = repr(claim.event).encode()
            if identifier in self.stripe:
                assert self.stripe[identifier] in (b"", body), "other bytes under the same identifier"
                answer = "duplicate" if answer == "accepted" else answer
            elif answer == "accepted" or self.dice.random() < 0.5:
                self.stripe[identifier] = body
        return Outcome(answer, message=f"of {identifier}")

    def ended(self, results: list[Any], told: list[Any], before: dict[str, Any]) -> None:
        after = self.states()
        done: set[str] = set()
        for (claim, _), transition in zip(results, told, strict=True):
            identifier = claim.event.identifier
            # Of a lane that was given back we hear no more.
            state, _, fence, *_ = before.get(identifier, ("", 0, 0))
            ours = state == "SENDING" and fence == claim.fence
            assert (transition is not None) == (ours and identifier not in done)
            if transition is not None:
                done.add(identifier)
                assert transition.identifier == identifier
                assert after[identifier][0] in (transition.after, "SENDING")
                assert transition.reason is None or identifier in transition.reason

    def states(self) -> dict[str, tuple[Any, ...]]:
        found = {}
        for lane in self.ledger._lanes.all():
            for row in self.on_disk(lane.name):
                found[row[0]] = (row[6], row[7], row[13], row[3], row[4])
        return found

    def on_disk(self, lane: str) -> list[Any]:
        """What is committed, as others see it."""
        with closing(files.read_lane(files.lane_path(self.folder, lane))) as db:
            return db.execute(f"SELECT {attempts._ROW} FROM meter_event").fetchall()

    def check(self) -> None:
        pairs: Counter[Any] = Counter()
        for lane in self.ledger._lanes.all():
            there = {row[0]: row for row in self.on_disk(lane.name)}
            pairs.update((row[2], row[1]) for row in there.values() if row[6] == "SENDING")
            kept = lane.attempts
            # A write names state and fence; so whatever else is remembered must follow from those.
            sending = [
                (*row[:6], *attempts._columns(standing), fence, row[14])
                for row, standing, fence in kept._under_way.values()
            ]
            for row in (*kept._ahead, *sending):
                found = there[row[0]]
                assert (row[6], row[13]) != (found[6], found[13]) or row == found
            for row in sending:
                assert row[6] == "SENDING"
            written, tried = lane.tries, sum(row[7] for row in there.values())
            assert written <= tried, "the mark speaks of attempts that the file does not hold"
        assert max(pairs.values(), default=0) <= 1, "two attempts for one customer and meter"

    def live(self, steps: int) -> None:
        acts: list[Callable[[], None]] = [
            self.record, self.freeze, self.claim, self.finish, self.pass_time, self.set_clock_back,
            self.decide, self.pause_meter, self.settle, self.adopt, self.crash,
        ]  # fmt: skip
        acts += [self.finish_and_claim] * 8 + [self.record, self.freeze] * 2
        for _ in range(steps):
            Unsteady.share = self.share
            try:
                self.dice.choice(acts)()
            except LedgerError:
                pass
            finally:
                Unsteady.share = 0.0
            if not self.ledger.lane:
                self.ledger.open(now=self.now)
            self.check()

    def check_stripe(self) -> None:
        """What Stripe has counts as accepted, or waits; what it lacks does not."""
        for row in self.ledger.events(limit=100_000):
            if row.event.identifier in self.stripe:
                assert row.state not in ("DEAD", "CLOSED")
            else:
                assert row.state not in ("ACCEPTED", "SETTLED")

    def deliver_the_rest(self) -> None:
        ledger = self.ledger
        self.now += 7200
        ledger.maintain(now=self.now)
        ledger.pause_meter("calls", why=None)  # in lanes, too, that could not be read until now
        ledger.freeze(now=self.now, bucket_s=BUCKET, everything=True)
        while claims := ledger.claim(now=self.now, limit=50):
            for claim in claims:
                known = self.stripe.setdefault(claim.event.identifier, repr(claim.event).encode())
                assert known in (b"", repr(claim.event).encode())
                ledger.finish(claim, Outcome("duplicate" if claim.attempt > 1 else "accepted"), now=self.now)
        assert not ledger.events(states=("PENDING", "SENDING", "AMBIGUOUS"))


@pytest.mark.parametrize("share", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(6))
def test_memory_never_says_what_the_file_does_not(quick_folder: Path, seed: int, share: float) -> None:
    life = Life(quick_folder / "ledger", seed, share)
    try:
        life.live(150)
        life.deliver_the_rest()
        life.check()
        life.check_stripe()
        assert conserved(life.ledger)
        assert totals(life.ledger)["pending"] == 0
    finally:
        life.ledger.close()
