"""Lives of a ledger: any order of use, sending, failing, crashing and waiting, with a Stripe that forgets
identifiers after 24 hours. After every step the books balance and nothing was billed twice."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from llm_metering.ledger import MemoryLedger, SqliteLedger
from llm_metering.protocols import Claim, Outcome
from tests.ledger.conftest import BUCKET, T0, conserved, entry, line, progress

HOUR = 3600.0
DAY = 24 * HOUR

customers = st.sampled_from(["cus_1", "cus_2", None])
values = st.one_of(st.integers(0, 2**63 - 1), st.decimals(0, 1000, places=6))
meters = st.sampled_from([("tokens", "sum"), ("calls", "count"), ("seats", "last")])


class Life(RuleBasedStateMachine):
    claims = Bundle("claims")

    def make(self) -> Any:
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.numbers = itertools.count()
        self.now = T0  # in truth
        self.skew = 0.0  # what the wall clock adds to it
        self.stripe: dict[str, list[float]] = {}
        self.recorded: set[str] = set()
        self.streams = 0
        self.ledger = self.make()
        self.ledger.open(now=self.clock)

    @property
    def clock(self) -> float:
        return self.now + self.skew

    # ---- use

    @rule(customer=customers, value=values, meter=meters, again=st.booleans())
    def use(self, customer: str | None, value: Any, meter: tuple[str, str], again: bool) -> None:
        event_name, aggregation = meter
        name = f"r{next(self.numbers)}"
        made = entry(
            name,
            line(value, event_name=event_name, aggregation=aggregation),
            customer=customer,
            used_at=self.clock,
        )
        assert self.ledger.commit([made], [], now=self.clock) == 1
        if again:
            assert self.ledger.commit([made], [], now=self.clock) == 0
        self.recorded.add(name)

    @rule(value=st.integers(0, 100), ends=st.booleans())
    def stream(self, value: int, ends: bool) -> None:
        name = f"s{next(self.numbers)}"
        self.streams += 1
        self.ledger.commit([], [progress(name, line(value), used_at=self.clock)], now=self.clock)
        if ends:
            self.ledger.commit(
                [entry(name, line(value + 1), used_at=self.clock, closes=name)], [], now=self.clock
            )

    @rule(everything=st.booleans(), bucket_s=st.sampled_from([1, BUCKET, 3600]))
    def freeze(self, everything: bool, bucket_s: int) -> None:
        self.ledger.freeze(now=self.clock, bucket_s=bucket_s, everything=everything)

    @rule(customer=st.sampled_from(["cus_1", "cus_3"]))
    def assign(self, customer: str) -> None:
        self.ledger.assign(customer, who="ada", why="found", now=self.clock)

    @rule(data=st.data())
    def hold_or_release(self, data: Any) -> None:
        if self.recorded:
            name = data.draw(st.sampled_from(sorted(self.recorded)))
            if not self.ledger.hold([name], who="ada", why="wait", now=self.clock):
                self.ledger.release([name], who="ada", why="go", now=self.clock)

    @rule(truthful=st.booleans())
    def people_decide(self, truthful: bool) -> None:
        """The dead are replayed or written off; doubts are settled by one who has looked at Stripe."""
        by = {"who": "ada", "why": "looked", "now": self.clock}
        dead = [r.event.identifier for r in self.ledger.events(states=["DEAD"], limit=10_000)]
        doubtful = [r.event.identifier for r in self.ledger.events(states=["IN_DOUBT"], limit=10_000)]
        for identifier in doubtful:
            self.ledger.resolve(identifier, bool(self.stripe.get(identifier)), **by)
        decide = self.ledger.replay if truthful else self.ledger.write_off
        for ruling in decide(dead, **by) + decide(dead, **by):
            assert truthful or ruling.replaced_by is None

    # ---- sending

    @rule(target=claims, ambiguous_only=st.booleans())
    def claim(self, ambiguous_only: bool) -> Any:
        found = self.ledger.claim(now=self.clock, limit=8, ambiguous_only=ambiguous_only)
        pairs = [(c.event.customer, c.event.event_name) for c in found]
        assert len(set(pairs)) == len(pairs)
        return found

    @rule(
        some=claims,
        arrives=st.booleans(),
        answer=st.sampled_from(["real", "lost", "throttled", "not_sent", "refused_config", "refused_data"]),
        took=st.floats(0, 200),
    )
    def answer(self, some: list[Claim], arrives: bool, answer: str, took: float) -> None:
        """Ends attempts; those of a dead process, and those that ended before, as well."""
        self.now += took
        for claim in some:
            self.ledger.finish(claim, self.send(claim, arrives, answer), now=self.clock)

    def send(self, claim: Claim, arrives: bool, answer: str) -> Outcome:
        # A claim under an old fence is a process that was cut off: it got nothing through.
        if answer not in ("real", "lost") or not self.is_current(claim):
            return Outcome("ambiguous" if answer in ("real", "lost") else answer)  # type: ignore[arg-type]
        received = self.stripe.setdefault(claim.event.identifier, [])
        known = bool(received) and self.now - received[-1] < DAY
        if not known and (arrives or answer == "real"):
            received.append(self.now)
        if answer == "lost":
            return Outcome("ambiguous")
        return Outcome("duplicate", 400) if known else Outcome("accepted", 200)

    def is_current(self, claim: Claim) -> bool:
        rows = self.ledger.events(states=["SENDING"], limit=10_000)
        return any(r.event.identifier == claim.event.identifier and r.attempts == claim.attempt for r in rows)

    # ---- time and accidents

    @rule(by=st.one_of(st.floats(0, 2 * HOUR), st.floats(0, 40 * DAY)))
    def wait(self, by: float) -> None:
        self.now += by
        self.ledger.maintain(now=self.clock)

    @rule(to=st.sampled_from([0.0, HOUR, -HOUR, -2 * DAY]))
    def clock_jumps(self, to: float) -> None:
        self.ledger.maintain(now=self.clock)
        self.skew = to
        self.ledger.maintain(now=self.clock)

    @rule()
    def crash(self) -> None:
        self.ledger = self.restarted()
        self.ledger.open(now=self.clock)

    def restarted(self) -> Any:
        raise NotImplementedError

    # ---- what always holds

    @invariant()
    def books_balance(self) -> None:
        assert conserved(self.ledger)

    @invariant()
    def nothing_is_billed_twice_or_written_off_after_delivery(self) -> None:
        assert all(len(received) <= 1 for received in self.stripe.values())
        for row in self.ledger.events(limit=10_000):
            arrived = bool(self.stripe.get(row.event.identifier))
            if row.state in ("ACCEPTED", "SETTLED"):
                assert arrived
            if row.state in ("PENDING", "DEAD", "CLOSED"):
                assert not arrived

    @invariant()
    def no_event_lies_in_the_future(self) -> None:
        for row in self.ledger.events(limit=10_000):
            assert row.event.timestamp <= self.now + max(self.skew, HOUR)

    def teardown(self) -> None:
        """With Stripe well again, all usage with a customer ends in its books, in doubt or dead."""
        if not hasattr(self, "ledger"):
            return
        self.skew = 0.0
        self.now += 2 * DAY
        self.crash()
        self.ledger.freeze(now=self.clock, bucket_s=BUCKET)
        self.ledger.maintain(now=self.clock)
        while claims := self.ledger.claim(now=self.clock, limit=100):
            self.answer(claims, True, "real", 0.0)
            self.now += 1
        self.nothing_is_billed_twice_or_written_off_after_delivery()
        self.books_balance()
        events = self.ledger.events(limit=10_000)
        assert {row.state for row in events} <= {"ACCEPTED", "IN_DOUBT", "DEAD", "CLOSED"}
        assert {i for i, received in self.stripe.items() if received} <= {
            row.event.identifier for row in events if row.state != "DEAD"
        }
        status = self.ledger.status(now=self.clock)
        if not status.held_records:
            assert all(b.pending == 0 for b in self.ledger.balances() if b.customer)
        assert status.usage_records == len(self.recorded) + self.streams
        self.ledger.close()


class MemoryLife(Life):
    def make(self) -> Any:
        return MemoryLedger()

    def restarted(self) -> Any:
        self.ledger.close()
        return self.ledger


class SqliteLife(Life):
    def make(self) -> Any:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = tempfile.TemporaryDirectory(dir=memory)
        self.path = Path(self.folder.name) / "ledger"
        return SqliteLedger(self.path, adopt_after_s=0)

    def restarted(self) -> Any:
        self.ledger.close()
        return SqliteLedger(self.path, adopt_after_s=0)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            self.folder.cleanup()


quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
MemoryLife.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=quiet
)
SqliteLife.TestCase.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=quiet
)
TestAMemoryLedgersLife = MemoryLife.TestCase
TestASqliteLedgersLife = SqliteLife.TestCase
