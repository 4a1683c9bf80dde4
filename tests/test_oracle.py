"""What Stripe's summaries say of doubtful events: decided where there is one explanation, else left alone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import combinations
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_metering import oracle, settling
from llm_metering.ledger import MemoryLedger
from llm_metering.metering import Metering
from llm_metering.oracle import Minute, Readings
from llm_metering.protocols import Alarm, Entry, EventRow, EventSum, Outcome, State
from llm_metering.sandbox import Sandbox, running_sandbox
from llm_metering.senders.memory import MemorySender
from llm_metering.senders.reading import StripeReader
from llm_metering.senders.stripe_v1 import StripeSender
from llm_metering.senders.summaries import Summaries
from llm_metering.settings import Settings
from llm_metering.settling import LAG_S, SETTLE_S, Settler
from llm_metering.telemetry import LogTelemetry
from llm_metering.usage import Line, MeterEvent, Usage, UsageRecord

T = TypeVar("T")
DAY = 1_750_032_000  # a whole UTC day
NOON = DAY + 12 * 3600
HOUR_S = 3600
ONE = Decimal(1)

amounts = st.decimals(min_value=0, max_value=10**9, places=2, allow_nan=False)


# Arithmetic.


@pytest.mark.parametrize(
    ("stripe", "ours", "equal"),
    [
        ("0.3", "0.3", True),
        ("0.30", "0.3", True),
        ("0.30000000000000004", "0.3", False),
        ("9007199254740993", "9007199254740992", True),  # one double
        ("9007199254740994", "9007199254740992", False),
        ("100000000000000.12", "100000000000000.125", True),
        ("123456789012345", "123456789012346", False),
        ("5", "5.000000000001", False),
    ],
)
def test_numbers_are_the_same_as_far_as_a_double_can_tell(stripe: str, ours: str, equal: bool) -> None:
    assert oracle.same(Decimal(stripe), Decimal(ours)) is equal


@given(amounts, st.lists(amounts, max_size=7), amounts | st.none(), st.data())
def test_explanations_are_those_that_trying_all_would_find(
    base: Decimal, values: list[Decimal], other: Decimal | None, data: Any
) -> None:
    chosen = data.draw(st.sets(st.integers(0, len(values) - 1)) if values else st.just(set()))
    stripe = other if other is not None else oracle.total([base, *(values[i] for i in chosen)])
    every = [
        way
        for n in range(len(values) + 1)
        for way in combinations(range(len(values)), n)
        if oracle.total([base, *(values[i] for i in way)]) == stripe
    ]
    found = oracle.explanations(base, values, stripe)
    assert found is not None
    assert len(found) == min(len(every), 2)
    assert set(found) <= set(every)


def test_too_many_sums_are_no_explanation() -> None:
    values = [Decimal(2) ** n for n in range(40)]
    assert oracle.explanations(Decimal(0), values, Decimal(5)) is None
    assert oracle.explanations(Decimal(7), values, Decimal(7)) == [()], "none, which nothing else comes to"
    all_of_them = [tuple(range(40))]
    assert oracle.explanations(Decimal(7), values, Decimal(7) + sum(values)) == all_of_them
    far = Decimal(10) ** 18
    assert oracle.explanations(far, [ONE, ONE], far, at_most=9) != [()], "a double cannot tell"
    equal = [ONE] * 500
    assert oracle.explanations(Decimal(0), equal, Decimal(500)) == [tuple(range(500))]


# One minute.


def event(name: str, value: Any, state: State, *, attempted_at: float = NOON, at: int = NOON) -> EventRow:
    made = MeterEvent(name, "tokens", "cus_1", Decimal(value), at, {})
    return EventRow(made, state, 1, None, None, None, attempted_at=attempted_at)


def minute(stripe: Any, *events: EventRow) -> Minute:
    doubtful = frozenset(e.event.identifier for e in events if e.state == "IN_DOUBT")
    return Minute(NOON, events, Decimal(stripe), doubtful)


KNOWN = event("known", 100, "ACCEPTED")
SETTLED = event("settled", 10, "SETTLED")


@pytest.mark.parametrize(
    ("stripe", "events", "verdict"),
    [
        (117, [event("x", 7, "IN_DOUBT")], {"x": True}),
        (110, [event("x", 7, "IN_DOUBT")], {"x": False}),
        (117, [event("x", 7, "IN_DOUBT"), event("y", 8, "IN_DOUBT")], {"x": True, "y": False}),
        (125, [event("x", 7, "IN_DOUBT"), event("y", 8, "IN_DOUBT")], {"x": True, "y": True}),
        (117, [event("x", 7, "IN_DOUBT"), event("dead", 7, "DEAD")], {"x": True}),
        (117, [event("x", 7, "IN_DOUBT"), event("later", 9, "PENDING")], {"x": True}),
    ],
)
def test_one_explanation_is_a_verdict(stripe: int, events: list[EventRow], verdict: Any) -> None:
    assert oracle.judge(minute(stripe, KNOWN, SETTLED, *events)) == verdict


@pytest.mark.parametrize(
    ("stripe", "events"),
    [
        (118, [event("x", 7, "IN_DOUBT")]),
        (109, [event("x", 7, "IN_DOUBT")]),
        (0, [event("x", 7, "IN_DOUBT")]),
        (117, [event("x", 7, "IN_DOUBT"), event("y", 7, "IN_DOUBT")]),
        (119, [event("x", 9, "IN_DOUBT"), event("y", 4, "IN_DOUBT"), event("z", 5, "IN_DOUBT")]),
        (110, [event("x", 0, "IN_DOUBT")]),
        (111, [event(f"x{n}", 2**n, "IN_DOUBT") for n in range(20)]),
    ],
)
def test_none_or_several_explanations_are_a_persons_to_decide(stripe: int, events: list[EventRow]) -> None:
    assert isinstance(oracle.judge(minute(stripe, KNOWN, SETTLED, *events)), str)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.data())
def test_a_verdict_is_never_wrong(values: list[int], data: Any) -> None:
    """Whichever of the doubtful ones arrived, a verdict says exactly that, or there is none."""
    arrived = [data.draw(st.booleans()) for _ in values]
    rows = [event(f"x{i}", v, "IN_DOUBT") for i, v in enumerate(values)]
    stripe = 110 + sum(v for v, there in zip(values, arrived, strict=True) if there)
    verdict = oracle.judge(minute(stripe, KNOWN, SETTLED, *rows))
    if not isinstance(verdict, str):
        assert verdict == {f"x{i}": there for i, there in enumerate(arrived)}


@pytest.mark.parametrize(
    ("row", "quiet"),
    [
        (event("a", 1, "ACCEPTED", attempted_at=NOON - 1), True),
        (event("a", 1, "ACCEPTED", attempted_at=NOON + 1), False),
        (event("a", 1, "SENDING", attempted_at=NOON - 1), False),
        (event("a", 1, "AMBIGUOUS", attempted_at=NOON - 1), False),
        (event("a", 1, "PENDING", attempted_at=NOON + 1), True),
        (event("a", 1, "DEAD", attempted_at=NOON + 1), True),
    ],
)
def test_quiet_is_what_has_nothing_on_its_way(row: EventRow, quiet: bool) -> None:
    assert oracle.is_quiet([KNOWN, row][1:], before=NOON) is quiet


@pytest.mark.parametrize(
    ("stripe", "reported", "gone"),
    [
        (110, {"x"}, {"x"}),
        (117, {"x"}, set()),
        (6, {"x"}, {"x"}),  # smaller than the event itself, whatever else is missing
        (0, {"x", "known"}, {"x", "known"}),
        (7, {"x"}, set()),  # the sum of something
        (60, {"x", "known"}, {"known"}),
        (110, {"someone else's"}, set()),
    ],
)
def test_what_is_reported_is_gone_only_where_the_sum_lacks_it(
    stripe: int, reported: set[str], gone: set[str]
) -> None:
    events = [KNOWN, event("y", 10, "ACCEPTED"), event("x", 7, "ACCEPTED")]
    assert oracle.not_counted(events, reported, Decimal(stripe)) == gone


def test_where_a_correction_may_hide_it_nothing_is_gone() -> None:
    events = [event("minus", -7, "ACCEPTED"), event("x", 7, "ACCEPTED")]
    assert oracle.not_counted(events, {"x"}, Decimal(0)) == set()


@given(st.lists(st.integers(1, 10**4), min_size=1, max_size=6), st.data())
def test_what_was_counted_is_never_gone(values: list[int], data: Any) -> None:
    there = [data.draw(st.booleans()) for _ in values]
    rows = [event(f"x{i}", v, "ACCEPTED") for i, v in enumerate(values)]
    stripe = sum(v for v, counted in zip(values, there, strict=True) if counted)
    gone = oracle.not_counted(rows, {f"x{i}" for i in range(len(values))}, Decimal(stripe))
    assert not {i for i in gone if there[int(i[1:])]}


# The day around it.


def hour(at: int, accepted: int, **more: int) -> dict[int, EventSum]:
    values: dict[Any, Decimal] = {"ACCEPTED": Decimal(accepted), **{k: Decimal(v) for k, v in more.items()}}
    return {at: EventSum("cus_1", "tokens", at, values)}


@pytest.mark.parametrize(
    ("stripe", "odd"),
    [
        ({NOON: 160, NOON - HOUR_S: 5}, None),
        ({NOON: 160, NOON - HOUR_S: 6}, NOON - HOUR_S),
        ({NOON: 160}, NOON - HOUR_S),
        ({NOON: 161, NOON - HOUR_S: 5}, NOON),
        ({NOON: 160, NOON - HOUR_S: 5, NOON - 2 * HOUR_S: 1}, NOON - 2 * HOUR_S),
        ({NOON: 160, NOON - HOUR_S: 5, NOON + HOUR_S: 999}, None),  # unsure
    ],
)
def test_the_rest_of_the_day_must_be_ours(stripe: dict[int, int], odd: int | None) -> None:
    """A doubtful minute of 117 in an hour of 143 of ours elsewhere 43."""
    ours = {**hour(NOON, 153), **hour(NOON - HOUR_S, 5), **hour(NOON + HOUR_S, 1, SENDING=3)}
    doubted = minute(117, KNOWN, SETTLED, event("x", 7, "IN_DOUBT"))
    sums = {at: Decimal(v) for at, v in stripe.items()}
    assert oracle.disagreeing_hour(ours, sums, [doubted], unsure={NOON + HOUR_S}) == odd


def test_a_reading_settles_when_it_is_the_same_twice_some_time_apart() -> None:
    readings = Readings(600)
    assert not readings.note("w", ONE, at=0)
    assert not readings.note("w", ONE, at=599)
    assert readings.note("w", ONE, at=600)
    assert not readings.note("w", 2 * ONE, at=700)  # it moved: begin again
    assert not readings.note("w", 2 * ONE, at=1200)
    assert not readings.note("w", ONE, at=1400)
    assert readings.note("w", ONE, at=2000)
    assert not readings.note("other", ONE, at=2000)


def test_readings_are_bounded() -> None:
    readings = Readings(600, most=3)
    for n in range(10):
        readings.note(n, ONE, at=0)
    assert not readings.note(0, ONE, at=600)
    assert readings.note(9, ONE, at=600)


# The whole of it, against a sandbox on a virtual clock.


class World:
    def __init__(self) -> None:
        self.now = float(NOON + 6 * HOUR_S)
        self.alarms: list[Alarm] = []
        self.records = 0
        self.telemetry = LogTelemetry(on_alarm=self.alarms.append, monotonic=lambda: self.now)
        self.ledger = MemoryLedger()
        self.ledger.open(now=self.now)

    def open(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.client = sandbox.client()
        self.meter = self.client.v1.billing.meters.create(
            {"display_name": "T", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}
        )
        self.customer = str(self.client.v1.customers.create({"name": "c"}).id)
        self.sender = StripeSender(sandbox.api_key, api_base=sandbox.url, now=lambda: self.now)
        self.settler = self.another_settler()

    def another_settler(self) -> Settler:
        self.reader = StripeReader(
            self.sandbox.api_key, api_base=self.sandbox.url, per_s=10_000, sleep=lambda _: None
        )
        return Settler(
            self,
            lambda: Summaries(self.reader),
            self.telemetry,
            every_s=900,
            now=lambda: self.now,
            monotonic=lambda: self.now,
        )

    def run(self, fn: Callable[[Any], T]) -> T:
        return fn(self.ledger)

    def use(
        self, value: Any, *, at: float = NOON + 60, act: str = "send", customer: str | None = None
    ) -> str:
        """Usage that is recorded, frozen, and sent, or "lost" or "arrived" behind an IN_DOUBT."""
        self.records += 1
        record = UsageRecord(
            id=f"r{self.records}", usage=Usage(input=1), used_at=at, customer=customer or self.customer
        )
        self.ledger.commit([Entry(record, (Line("tokens", value),))], [], now=self.now)
        self.ledger.freeze(now=self.now, bucket_s=60, everything=True)
        (claim,) = self.ledger.claim(now=self.now, limit=10)
        outcome = Outcome("duplicate", message="as told")
        if act in ("send", "arrived"):
            sent = self.sender.send([claim.event])[0]
            assert sent.kind == "accepted"
            outcome = sent if act == "send" else outcome
        if act == "accepted":
            outcome = Outcome("accepted", 200)
        if act == "hang":
            return str(claim.event.identifier)
        self.ledger.finish(claim, outcome, now=self.now)
        return str(claim.event.identifier)

    def foreign(self, value: str, at: int) -> None:
        payload = {"stripe_customer_id": self.customer, "value": value}
        self.client.v1.billing.meter_events.create(
            {"event_name": "tokens", "payload": payload, "timestamp": at}
        )

    def rounds(self, *after_s: float) -> None:
        for seconds in after_s:
            self.now += seconds
            self.settler.step()

    def deliver(self) -> None:
        while claims := self.ledger.claim(now=self.now, limit=100):
            for claim in claims:
                self.ledger.finish(claim, self.sender.send([claim.event])[0], now=self.now)

    def state(self, identifier: str) -> State:
        (row,) = [r for r in self.ledger.events(limit=1000) if r.event.identifier == identifier]
        return row.state

    def names(self) -> list[str]:
        return [a.name for a in self.alarms]

    def books(self) -> Decimal:
        self.sandbox.settle()
        return sum((row.value for row in self.sandbox.books()), Decimal(0))

    def recorded(self) -> Decimal:
        assert all(b.conserved for b in self.ledger.balances())
        return sum((b.recorded for b in self.ledger.balances()), Decimal(0))


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Sandbox, list[World]]]:
    current: list[World] = []
    with running_sandbox(now=lambda: current[-1].now if current else float(NOON)) as sandbox:
        yield sandbox, current


@pytest.fixture
def world(stage: tuple[Sandbox, list[World]]) -> Iterator[World]:
    sandbox, current = stage
    current.append(World())
    sandbox.clear_faults()
    sandbox.reset()
    sandbox.set_switches(aggregation_delay_s=0)
    current[-1].open(sandbox)
    yield current[-1]
    current[-1].reader.close()
    current[-1].sender.close()


SOON = (SETTLE_S + 1, 900)
LATE = (LAG_S + 1, 900)


def test_what_the_summaries_show_twice_is_settled(world: World) -> None:
    ids = [world.use(100 + i, at=NOON + i * 900) for i in range(6)]
    world.rounds(SETTLE_S - 1)
    assert {world.state(i) for i in ids} == {"ACCEPTED"}  # not old enough
    world.rounds(2)
    assert {world.state(i) for i in ids} == {"ACCEPTED"}  # seen once
    world.rounds(900)
    assert {world.state(i) for i in ids} == {"SETTLED"}
    assert world.names() == []
    assert world.books() == world.recorded()


def test_an_hour_that_differs_is_told_once_and_left_alone(world: World) -> None:
    missing, fine = world.use(7, act="accepted"), world.use(8, at=NOON + HOUR_S)
    world.rounds(*SOON, 900, 900)
    assert (world.state(missing), world.state(fine)) == ("ACCEPTED", "SETTLED")
    assert world.names() == ["reconcile.difference"]
    assert world.alarms[0].data["hour"] == NOON


def test_a_doubtful_event_that_is_there_is_accepted_and_then_settled(world: World) -> None:
    known, doubtful = world.use(100), world.use(7, act="arrived")
    world.rounds(*SOON)
    assert world.state(doubtful) == "ACCEPTED"
    world.rounds(900, 900)
    assert (world.state(known), world.state(doubtful)) == ("SETTLED", "SETTLED")
    assert world.books() == world.recorded()


def test_a_doubtful_event_that_is_not_there_is_sent_as_a_new_one_once(world: World) -> None:
    world.use(100)
    doubtful = world.use(7, act="lost")
    world.rounds(*LATE)
    assert world.state(doubtful) == "CLOSED"
    history = world.ledger.history(doubtful)
    assert history is not None
    assert history.replaced_by is not None
    assert [a.who for a in history.actions] == ["oracle"]
    for _ in range(4):
        world.deliver()
        world.rounds(900)
    assert world.state(history.replaced_by) == "SETTLED"
    assert world.books() == world.recorded() == 107


@pytest.mark.parametrize(("act", "state"), [("lost", "CLOSED"), ("arrived", "SETTLED")])
def test_an_hour_of_more_events_than_are_read_at_once_is_decided_minute_by_minute(
    world: World, monkeypatch: pytest.MonkeyPatch, act: str, state: State
) -> None:
    monkeypatch.setattr(settling, "_MAX_AT_ONCE", 4)
    world.use(100)
    doubtful = world.use(7, act=act)
    for n in range(6):
        world.use(1 + n, at=NOON + 120 + 60 * n)
    world.rounds(*LATE, 900, 900)
    assert world.state(doubtful) == state
    assert world.names() == []


def test_a_doubtful_event_that_is_too_old_to_send_is_dead_not_sent(world: World) -> None:
    doubtful = world.use(7, at=world.now - 33.9 * 86_400, act="lost")
    world.rounds(*LATE)
    assert world.state(doubtful) == "DEAD"
    assert world.recorded() == 7


@pytest.mark.parametrize("lag_s", [54, 3 * HOUR_S])
def test_sums_that_lag_are_not_taken_for_an_absence(world: World, lag_s: float) -> None:
    """Row 19: for hours the sums look as if it had not arrived, steadily."""
    world.sandbox.set_switches(aggregation_delay_s=lag_s)
    doubtful = world.use(7, act="arrived")
    world.rounds(*SOON, *[900] * 11)
    assert world.state(doubtful) in ("IN_DOUBT", "ACCEPTED", "SETTLED")
    world.rounds(*[900] * 20)
    assert world.state(doubtful) in ("ACCEPTED", "SETTLED")
    world.deliver()
    assert world.books() == world.recorded() == 7


def test_sums_that_move_are_not_settled(world: World) -> None:
    doubtful = world.use(7, act="lost")
    world.now += LAG_S
    for n in range(6):
        world.rounds(450)
        world.foreign("1", NOON + 60 + n)
        world.rounds(450)
    assert world.state(doubtful) == "IN_DOUBT"


@pytest.mark.parametrize("at", [NOON + 1800, NOON - 5 * HOUR_S])
def test_another_writer_leaves_it_to_a_person(world: World, at: int) -> None:
    """In the same hour, or elsewhere on that day, even though the minute's sum would fit."""
    world.use(100)
    doubtful = world.use(7, act="lost")
    world.foreign("7", at)
    world.rounds(*LATE, 900)
    assert world.state(doubtful) == "IN_DOUBT"
    assert world.names().count("oracle.undecided") == 1
    assert world.books() == 107


def test_a_sum_that_nothing_explains_leaves_it_to_a_person(world: World) -> None:
    world.use(100)
    doubtful = world.use(7, act="lost")
    world.foreign("3", NOON + 65)
    world.rounds(*LATE, 900)
    assert world.state(doubtful) == "IN_DOUBT"
    assert world.names() == ["oracle.undecided"]


def test_two_of_a_size_leave_it_to_a_person(world: World) -> None:
    there, lost = world.use(7, act="arrived"), world.use(7, act="lost")
    other = world.use(9, act="arrived", at=NOON + 180)
    world.rounds(*LATE, 900)
    assert (world.state(there), world.state(lost)) == ("IN_DOUBT", "IN_DOUBT")
    assert world.state(other) == "ACCEPTED"  # another minute is decided all the same


def test_two_of_different_sizes_are_told_apart(world: World) -> None:
    there, lost = world.use(7, act="arrived"), world.use(8, act="lost")
    world.rounds(*LATE)
    assert (world.state(there), world.state(lost)) == ("ACCEPTED", "CLOSED")


def test_nothing_is_decided_while_something_of_that_hour_is_on_its_way(world: World) -> None:
    doubtful = world.use(7, act="arrived")
    world.use(9, at=NOON + 900, act="hang")
    world.rounds(*SOON, 900)
    assert world.state(doubtful) == "IN_DOUBT"
    assert world.names() == []


def test_one_customers_trouble_is_not_anothers(world: World) -> None:
    other = str(world.client.v1.customers.create({"name": "d"}).id)
    world.use(7, act="accepted")
    fine = world.use(5, customer=other)
    gone = world.use(6, customer="cus_gone")
    world.rounds(*SOON, 900, 900)
    assert (world.state(fine), world.state(gone)) == ("SETTLED", "DEAD")
    assert sorted(world.names()) == ["delivery.dead", "reconcile.difference", "stripe.error_report"]


def test_a_restart_begins_with_a_first_reading(world: World) -> None:
    event = world.use(7)
    world.rounds(SETTLE_S + 1)
    world.settler = world.another_settler()
    world.rounds(900)
    assert world.state(event) == "ACCEPTED"
    world.rounds(900)
    assert world.state(event) == "SETTLED"


@pytest.mark.parametrize(
    ("kind", "names"), [("403", ["reconcile.refused"]), ("500_before", []), ("429", []), ("html", [])]
)
def test_stripe_that_cannot_be_asked_decides_nothing(world: World, kind: Any, names: list[str]) -> None:
    accepted, doubtful = world.use(100), world.use(7, act="arrived")
    world.sandbox.fault(kind, method="GET", count=None)
    world.rounds(*LATE, 900)
    assert (world.state(accepted), world.state(doubtful)) == ("ACCEPTED", "IN_DOUBT")
    assert world.names() == names
    world.sandbox.clear_faults()
    world.rounds(900, 900, 900)
    assert (world.state(accepted), world.state(doubtful)) == ("SETTLED", "SETTLED")


@pytest.mark.parametrize("seed", range(8))
def test_whatever_arrived_the_books_come_out_exact(world: World, seed: int) -> None:
    """Row 18: after a long silence of Stripe's some events arrived and some did not; nobody knows which."""
    dice = random.Random(seed)
    values = dice.sample([2**n for n in range(12)], 9)
    for n, value in enumerate(values):
        world.use(
            value, at=NOON + dice.choice([0, 60, 3000, -HOUR_S]) + n, act=dice.choice(["arrived", "lost"])
        )
        world.use(1000 + n, at=NOON + dice.choice([5, 70, -HOUR_S]))
    world.now += LAG_S
    for _ in range(8):
        world.deliver()
        world.rounds(900)
    assert {row.state for row in world.ledger.events(limit=1000)} <= {"SETTLED", "CLOSED"}, world.alarms
    assert world.books() == world.recorded()
    identifiers = [i for row in world.sandbox.books(identifiers=True) for i in row.identifiers]
    assert len(identifiers) == len(set(identifiers)) == 18


def test_it_runs_beside_delivery_and_stops_with_it(world: World) -> None:
    """In a real service: its thread starts with delivery, ends at stop, and is not there with 0."""
    for every_s, there in ((900.0, True), (0.0, False)):
        settings = Settings(
            stripe_api_key="sk_test_sandbox",
            stripe_api_base=world.sandbox.url,
            ledger="memory:",
            reconcile_every_s=every_s,
        )
        with Metering(settings=settings) as metering:
            metering.flush(5)  # until nothing is asked of Stripe any more
            assert ("llm-metering-settler" in threads()) is there
        assert metering.sender is not None
        metering.sender.close()
        assert "llm-metering-settler" not in threads()


def threads() -> Sequence[str]:
    return [thread.name for thread in threading.enumerate()]


def test_what_a_sender_of_ones_own_sends_is_not_held_against_stripe() -> None:
    settings = Settings(stripe_api_key="sk_test_sandbox", ledger="memory:")
    with Metering(settings=settings, sender=MemorySender()) as metering:
        metering.status()
        assert metering.settler is None
        assert "llm-metering-settler" not in threads()


def test_a_round_that_is_told_to_stop_leaves_the_ledger_alone(world: World) -> None:
    event = world.use(7)
    world.rounds(SETTLE_S + 1)
    world.settler.stop()
    world.rounds(900)
    assert world.state(event) == "ACCEPTED"


def test_a_thousand_events_settle_in_a_few_visits(world: World) -> None:
    began = time.monotonic()
    visits: list[float] = []
    run = world.run

    def timed(fn: Callable[[Any], T]) -> T:
        start = time.monotonic()
        try:
            return run(fn)
        finally:
            visits.append(time.monotonic() - start)

    for n in range(1000):
        world.use(1, at=NOON + n * 3, act="accepted")
    world.foreign("1000", NOON)
    world.run = timed  # type: ignore[method-assign]
    world.rounds(*SOON)
    assert len(visits) < 20
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("stripe", [1, 2000, 3999])
def test_very_many_events_of_one_size_are_told_apart_by_nobody_and_not_for_long(stripe):
    # Unbounded, all ways to 4000 sums would be gone through: for hours, and beside requests.
    assert oracle.explanations(Decimal(0), [Decimal(1)] * 4000, Decimal(stripe)) is None


@pytest.mark.parametrize(("stripe", "places"), [(0, ()), (4000, tuple(range(4000)))])
def test_that_none_or_all_of_them_were_counted_can_be_told(stripe, places):
    assert oracle.explanations(Decimal(0), [Decimal(1)] * 4000, Decimal(stripe)) == [places]
