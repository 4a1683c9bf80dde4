"""Delivery: what is sent, when, and what becomes of it. Most of it on a virtual clock."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any, TypeVar

import pytest
from llm_metering.delivery import Flush
from llm_metering.errors import LedgerError
from llm_metering.flusher import Flusher
from llm_metering.ledger.clocks import Boot
from llm_metering.ledger.memory import MemoryLedger
from llm_metering.meters import lines_of
from llm_metering.protocols import Alarm, Entry, Outcome, Sender, ServerTime
from llm_metering.senders.memory import MemorySender
from llm_metering.settings import Settings
from llm_metering.telemetry import LogTelemetry
from llm_metering.usage import MeterEvent, Usage, UsageRecord
from tests.simulation.world import DAY, HOUR, METERS, World

T = TypeVar("T")

DOWN = Outcome("not_sent", message="connection refused")
FAULT = Outcome("ambiguous", 500, message="HTTP 500")


def customers(n: int) -> list[str]:
    return [f"cus_{i}" for i in range(n)]


def sums(events: Sequence[MeterEvent]) -> dict[str, Decimal]:
    found: dict[str, Decimal] = {}
    for event in events:
        found[event.customer] = found.get(event.customer, Decimal(0)) + event.value
    return found


# The ordinary way.


def test_everything_is_delivered_once_with_the_time_of_its_last_use() -> None:
    world = World()
    for customer in customers(30):
        world.use(customer, 7)
        world.use(customer, 5)
    used_at = world.now
    world.pass_(120)
    assert sums(world.stripe.accepted) == dict.fromkeys(customers(30), Decimal(12))
    assert {e.timestamp for e in world.stripe.accepted} == {int(used_at)}
    assert world.states() == {"ACCEPTED": 30}
    assert world.names() == []
    assert len(world.stripe.attempts) == 30


def test_usage_waits_for_its_bucket_to_close() -> None:
    world = World()
    world.use()
    world.pass_(55)
    assert world.stripe.attempts == []
    world.pass_(20)
    assert len(world.stripe.accepted) == 1


def test_no_more_requests_than_allowed_are_under_way() -> None:
    world = World(max_in_flight=3)
    for customer in customers(40):
        world.use(customer)
    world.pass_(120)
    assert world.sending.most == 3
    assert world.states() == {"ACCEPTED": 40}


def test_one_customers_long_queue_goes_one_at_a_time_and_holds_up_nobody() -> None:
    world = World()
    for i in range(40):
        world.use("cus_long", model=f"m{i}")
    for customer in customers(7):
        world.use(customer)
    world.latency_s = 3.0
    world.pass_until(lambda: world.stripe.accepted)
    world.pass_(3.5)
    assert set(customers(7)) <= {e.customer for e in world.stripe.accepted}
    turns = world.turns
    world.pass_(180)
    assert world.states() == {"ACCEPTED": 47}
    assert world.turns - turns < 4 * 40, "waiting for its turn is no busy loop"


def test_a_sender_of_batches_gets_batches() -> None:
    world = World(MemorySender(max_batch=4), max_in_flight=2)
    sizes: list[int] = []
    send = world.stripe.send
    world.stripe.send = lambda events: sizes.append(len(events)) or send(events)  # type: ignore[method-assign, func-returns-value]
    for customer in customers(20):
        world.use(customer)
    world.pass_(120)
    assert world.states() == {"ACCEPTED": 20}
    assert max(sizes) == 4
    assert world.sending.most <= 2


@pytest.mark.parametrize(("count", "batch", "rests"), [(400, 100, True), (8, 1, False)])
def test_after_a_turn_of_many_events_served_requests_come_first(count: int, batch: int, rests: bool) -> None:
    """Such a turn keeps the interpreter from them for milliseconds."""
    world = World(MemorySender(max_batch=batch))
    seen: list[float] = []
    step = world.flusher.step
    world.flusher.step = lambda: (step(), seen.append(world.flusher._delivery.rest_s))[0]  # type: ignore[method-assign]
    for customer in customers(count):
        world.use(customer)
    world.pass_(120)
    assert world.states() == {"ACCEPTED": count}
    assert (max(seen) > 1e-3) is rests
    assert max(seen) < 10e-3
    assert seen[-1] == 0.0


def test_with_nothing_to_do_it_rests_until_the_next_round() -> None:
    world = World()
    world.use()
    world.pass_until(world.settled)
    world.pass_(10)
    assert world.flusher.step() > 5
    turns = Counter[str]()
    world.pass_(600, each=lambda: turns.update(["turn"]))
    assert turns["turn"] < 130


def test_waiting_for_a_retry_is_no_busy_loop() -> None:
    world = World(MemorySender(otherwise=FAULT))
    for customer in customers(20):
        world.use(customer)
    turns = Counter[str]()
    world.pass_(600, each=lambda: turns.update(["turn"]))
    assert turns["turn"] < 600


# Doubt.


def test_the_first_ambiguous_outcome_stops_new_sends() -> None:
    world = World(MemorySender(otherwise=FAULT))
    for customer in customers(100):
        world.use(customer)
    world.pass_(2 * HOUR)
    first = {e.identifier for e in world.stripe.attempts}
    assert len(first) <= 8
    assert len(world.stripe.attempts) > 30, "those in doubt are tried again"
    assert world.states() == {"PENDING": 100 - len(first), "AMBIGUOUS": len(first)}


def test_a_get_that_passes_does_not_close_the_breaker_while_events_hang() -> None:
    world = World(MemorySender(otherwise=MemorySender.LOST))
    for customer in customers(100):
        world.use(customer)
    world.pass_(20 * HOUR)
    assert len({e.identifier for e in world.stripe.attempts}) <= 8
    assert world.stripe.checks == 1, "only the one at the start"


def test_after_an_outage_everything_arrives_once() -> None:
    world = World(MemorySender(otherwise=MemorySender.LOST))
    for customer in customers(100):
        world.use(customer)
    world.pass_(3 * HOUR)
    world.stripe.otherwise = "accepted"
    world.pass_until(world.settled, within=20 * 60)
    assert world.states() == {"ACCEPTED": 100}
    assert len(world.stripe.accepted) == 100


def test_thirty_hours_without_answers_leave_a_few_in_doubt_that_are_never_sent_again() -> None:
    world = World(MemorySender(otherwise=MemorySender.LOST))
    for customer in customers(100):
        world.use(customer)
    world.pass_(30 * HOUR)
    doubtful = {r.event.identifier for r in world.ledger.events(states=["IN_DOUBT"], limit=1000)}
    assert 1 <= len(doubtful) <= 8
    seen = len(world.stripe.attempts)
    world.stripe.otherwise = "accepted"
    world.pass_until(world.settled, within=HOUR)
    assert not doubtful & {e.identifier for e in world.stripe.attempts[seen:]}
    assert world.states() == {"ACCEPTED": 100 - len(doubtful), "IN_DOUBT": len(doubtful)}
    assert len(world.stripe.accepted) == 100
    assert "delivery.in_doubt" in world.names()


def test_five_days_of_refused_connections_cost_nothing() -> None:
    world = World(MemorySender(otherwise=DOWN))
    world.stripe.check_otherwise = DOWN
    times = []
    for day in range(5):
        for customer in customers(10):
            world.use(customer)
        times.append(int(world.now))
        world.pass_(DAY)
        assert set(world.states()) == {"PENDING"}, day
    world.stripe.otherwise = world.stripe.check_otherwise = "accepted"
    world.pass_until(world.settled, within=30 * 60)
    assert world.states() == {"ACCEPTED": 50}
    assert Counter(e.timestamp for e in world.stripe.accepted) == dict.fromkeys(times, 10)


def test_three_refusals_in_a_row_stop_new_sends_until_a_get_passes() -> None:
    world = World(MemorySender(["not_sent"] * 3), max_in_flight=1)
    world.stripe.check_script = ["accepted", DOWN]
    for customer in customers(20):
        world.use(customer)
    world.pass_until(lambda: len(world.stripe.attempts) == 3)
    world.pass_until(lambda: world.stripe.checks == 2)
    world.pass_(0.5)
    assert len(world.stripe.attempts) == 3, "the GET did not pass"
    world.pass_until(world.settled)
    assert world.states() == {"ACCEPTED": 20}


def test_events_that_stripe_will_never_have_do_not_use_up_the_backlog_in_a_rush() -> None:
    world = World(MemorySender(otherwise="refused_data"))
    for customer in customers(200):
        world.use(customer)
    world.pass_until(lambda: world.stripe.attempts)
    world.pass_(60)
    assert 0 < world.states()["DEAD"] < 40
    assert "delivery.dead" in world.names()


def test_a_lost_answer_is_settled_by_the_duplicate_that_follows() -> None:
    world = World(MemorySender([MemorySender.LOST]))
    world.use()
    world.pass_until(world.settled)
    assert world.states() == {"ACCEPTED": 1}
    assert len(world.stripe.attempts) == 2
    assert len(world.stripe.accepted) == 1
    assert world.telemetry.snapshot()["delivery.duplicate"] == 1


def test_a_duplicate_on_the_first_attempt_is_no_success() -> None:
    world = World(MemorySender(["duplicate"]))
    world.use()
    world.pass_until(world.settled)
    assert world.states() == {"IN_DOUBT": 1}
    assert "delivery.duplicate_on_first_attempt" in world.names()


def test_one_bad_event_dies_and_the_others_flow() -> None:
    def no_such_customer(event: MeterEvent) -> str:
        return "refused_data" if event.customer == "cus_3" else "accepted"

    world = World(MemorySender(otherwise=no_such_customer))  # type: ignore[arg-type]
    for customer in customers(10):
        world.use(customer)
    world.pass_until(world.settled)
    assert world.states() == {"ACCEPTED": 9, "DEAD": 1}
    dead = next(a for a in world.alarms if a.name == "delivery.dead")
    assert "DEAD" in dead.message


# The key.


def test_a_bad_key_consumes_nothing_raises_one_alarm_and_resumes_by_itself() -> None:
    unauthorised = Outcome("refused_config", 401, message="Invalid API Key provided: sk_test_***")
    world = World(MemorySender(otherwise=unauthorised))
    world.stripe.check_script = ["accepted"]
    world.stripe.check_otherwise = unauthorised
    for customer in customers(50):
        world.use(customer)
    world.pass_(2 * HOUR)
    assert len(world.stripe.attempts) <= 8
    assert world.states() == {"PENDING": 50}
    assert world.names().count("delivery.paused") == 1
    assert 20 < world.stripe.checks < 400
    assert "Invalid API Key" in (world.ledger.status(now=world.now).paused or "")
    assert world.flusher.paused is not None

    world.stripe.otherwise = world.stripe.check_otherwise = "accepted"
    world.pass_until(world.settled, within=600)
    assert world.states() == {"ACCEPTED": 50}
    assert world.names().count("delivery.paused") == world.names().count("delivery.resumed") == 1
    assert world.ledger.status(now=world.now).paused is None
    assert world.flusher.paused is None


def test_a_key_that_may_look_but_not_send_is_one_alarm_and_one_try_now_and_then() -> None:
    world = World(MemorySender(otherwise="refused_config"))
    for customer in customers(50):
        world.use(customer)
    world.pass_(3 * HOUR)
    assert world.names().count("delivery.paused") == 1
    assert "delivery.resumed" not in world.names()
    assert 10 < len(world.stripe.attempts) < 800
    assert world.states() == {"PENDING": 50}


def test_a_bad_key_is_known_before_anything_is_sent() -> None:
    world = World()
    world.stripe.check_otherwise = "refused_config"
    world.use()
    world.pass_(600)
    assert world.stripe.attempts == []
    assert world.names() == ["delivery.paused"]
    world.stripe.check_otherwise = "accepted"
    world.pass_until(world.settled)
    assert world.names() == ["delivery.paused", "delivery.resumed"]


def test_a_key_of_another_account_sends_nothing() -> None:
    world = World()
    world.ledger.bind("acct_other (live)")
    world.use()
    world.pass_(600)
    assert world.stripe.attempts == []
    assert world.states() == {"PENDING": 1}
    (alarm,) = world.alarms
    assert alarm.name == "delivery.paused"
    assert "acct_other (live)" in alarm.message
    assert "acct_memory (test)" in alarm.message


def test_the_ledger_is_bound_before_the_first_event_is_sent() -> None:
    world = World()
    bound: list[str | None] = []

    def note(event: MeterEvent) -> str:
        bound.append(world.ledger.status(now=world.now).account)
        return "accepted"

    world.stripe.otherwise = note  # type: ignore[assignment]
    world.use()
    world.pass_until(world.settled)
    assert bound == ["acct_memory (test)"]


def test_a_key_the_ledger_has_met_is_not_asked_about_again() -> None:
    world = World()
    world.use()
    world.pass_until(world.settled)
    assert world.stripe.checks == 1
    world.start_process()
    world.use("cus_2")
    world.pass_until(world.settled)
    assert world.stripe.checks == 1
    world.stripe = MemorySender(account="acct_new (test)")
    world.start_process()
    world.use("cus_3")
    world.pass_(120)
    assert world.stripe.checks >= 1
    assert world.stripe.attempts == []


def test_while_stripe_cannot_be_asked_nothing_is_sent() -> None:
    world = World()
    world.stripe.check_otherwise = DOWN
    world.use()
    world.pass_(600)
    assert world.stripe.attempts == []
    assert world.names() == []
    world.stripe.check_otherwise = "accepted"
    world.pass_until(world.settled)


def test_without_a_key_usage_is_kept_and_said_so_once() -> None:
    world = World()
    world.stripe = None
    world.start_process()
    world.use()
    world.pass_(DAY)
    assert world.states() == {"PENDING": 1}
    paused = [a for a in world.alarms if a.name == "delivery.paused"]
    assert len(paused) == 1
    assert "STRIPE_API_KEY" in paused[0].message
    world.stripe = MemorySender()
    world.start_process()
    world.pass_until(world.settled)
    assert world.ledger.status(now=world.now).paused is None


# Slow down.


def test_retry_after_is_kept() -> None:
    wait = Outcome("throttled", 429, retry_after_s=40)
    world = World(MemorySender([wait]))
    for customer in customers(30):
        world.use(customer)
    world.pass_until(lambda: world.stripe.attempts)
    world.pass_(0.5)
    before = len(world.stripe.attempts)
    world.pass_(38)
    assert len(world.stripe.attempts) == before <= 8
    world.pass_until(world.settled)
    assert world.states() == {"ACCEPTED": 30}


def test_a_rate_limit_halves_the_rate_and_nothing_is_lost() -> None:
    """A Stripe that takes 25 a second, as in test mode."""
    world = World()
    world.latency_s = 0.02
    seen: list[float] = []
    limited: list[float] = []

    def limit(event: MeterEvent) -> str:
        seen.append(world.now)
        if len(seen) > 25 and world.now - seen[-26] < 1:
            limited.append(world.now)
            return "throttled"
        return "accepted"

    world.stripe.otherwise = limit  # type: ignore[assignment]
    for customer in customers(500):
        world.use(customer)
    world.pass_until(world.settled, within=600)
    assert world.states() == {"ACCEPTED": 500}
    assert len(limited) < 0.2 * len(seen), "it learns"
    assert seen[-1] - seen[0] < 500 / 25 * 2.5, "and does not crawl"


def test_lock_timeouts_and_clashes_are_tried_again() -> None:
    lock = Outcome("throttled", 429, code="lock_timeout")
    clash = Outcome("not_sent", 409)
    world = World(MemorySender([lock, clash, lock, clash]))
    for customer in customers(5):
        world.use(customer)
    world.pass_until(world.settled)
    assert world.states() == {"ACCEPTED": 5}
    assert len(world.stripe.attempts) == 9


def test_a_missing_meter_is_one_alarm_and_its_usage_waits_for_it() -> None:
    missing = Outcome("not_sent", 400, code="no_meter", message='No active meter found for event name "x".')
    world = World(MemorySender(otherwise=missing))
    for customer in customers(20):
        world.use(customer)
    world.pass_(HOUR)
    assert world.states() == {"PENDING": 20}
    assert world.names().count("delivery.no_meter") == 1
    world.stripe.otherwise = "accepted"
    world.pass_until(world.settled, within=600)
    assert world.states() == {"ACCEPTED": 20}


# A ledger that fails.


class Failing:
    """Lets the ledger's methods fail by name."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.errors: dict[str, Exception] = {}

    def run(self, fn: Callable[[Any], T]) -> T:
        return fn(self)

    def __getattr__(self, name: str) -> Any:
        for part in _PARTS.get(name, (name,)):
            if part in self.errors:
                raise self.errors[part]
        return getattr(self.world.ledger, name)


_PARTS = {"finish_and_claim": ("finish_and_claim", "finish_many", "claim")}


@pytest.fixture
def failing() -> Failing:
    world = World()
    failing = Failing(world)
    world.flusher._delivery._writer = failing
    return failing


def test_what_ended_is_told_again_until_the_ledger_can_write_it(failing: Failing) -> None:
    world = failing.world
    for customer in customers(20):
        world.use(customer)
    failing.errors["finish_many"] = LedgerError("disk full")
    world.pass_(20 * 60)
    assert 0 < len(world.stripe.accepted) <= 8
    assert world.names().count("delivery.failing") == 1
    failing.errors.clear()
    world.pass_until(world.settled, within=600)
    assert world.states() == {"ACCEPTED": 20}
    assert len(world.stripe.attempts) == 20


@pytest.mark.parametrize("error", [LedgerError("x"), ValueError("cannot be stored")], ids=["ledger", "value"])
def test_what_ended_is_told_though_no_more_can_be_claimed(failing: Failing, error: Exception) -> None:
    world = failing.world
    for customer in customers(20):
        world.use(customer)
    world.pass_until(lambda: world.states().get("SENDING") == 8)
    failing.errors["claim"] = error
    world.pass_(60)
    assert world.states() == {"ACCEPTED": 8, "PENDING": 12}


def test_what_ended_counts_before_its_lease_can_run_out(failing: Failing) -> None:
    """An answer that comes with the next round, long after the lease: it is an answer, not a doubt."""
    world = failing.world
    world.use()
    world.pass_until(lambda: world.states() == {"SENDING": 1})
    world.now += 3600
    world.pass_until(world.settled)
    (row,) = world.ledger.events()
    assert (row.state, row.attempts) == ("ACCEPTED", 1)


def test_a_freeze_that_fails_does_not_hold_back_what_is_frozen(failing: Failing) -> None:
    world = failing.world
    world.use()
    world.ledger.freeze(now=world.now, bucket_s=60, everything=True)
    failing.errors["freeze"] = LedgerError("x")
    failing.errors["maintain"] = ValueError("a bug")
    world.pass_until(world.settled)
    assert world.states() == {"ACCEPTED": 1}
    assert world.names().count("delivery.failing") == 1


def test_someone_who_waits_for_a_freeze_that_fails_holds_back_nothing(failing: Failing) -> None:
    world = failing.world
    for customer in customers(20):
        world.use(customer)
    world.ledger.freeze(now=world.now, bucket_s=60, everything=True)
    failing.errors["freeze"] = LedgerError("x")
    waiting = Flush(world.now + 300)
    world.flusher._delivery.flushes.append(waiting)
    world.pass_until(world.settled)
    assert world.states() == {"ACCEPTED": 20}
    assert not waiting.done.is_set(), "not everything was frozen"
    world.pass_(340)
    assert waiting.done.is_set()


@pytest.mark.parametrize(
    "method",
    ["claim", "freeze", "maintain", "due_at", "finish_many", "finish_and_claim", "meta", "set_meta", "bind"],
)
@pytest.mark.parametrize("error", [LedgerError("x"), RuntimeError("a bug")], ids=["ledger", "bug"])
def test_no_failure_of_the_ledger_ends_delivery(failing: Failing, method: str, error: Exception) -> None:
    world = failing.world
    for customer in customers(10):
        world.use(customer)
    failing.errors[method] = error
    world.pass_(120)
    failing.errors.clear()
    world.pass_until(world.settled, within=1200)
    assert world.states() == {"ACCEPTED": 10}
    assert len(world.stripe.accepted) == 10


# All together, at random.


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20, 300))
def test_whatever_happens_at_length(seed: int) -> None:
    test_whatever_happens_nothing_is_lost_and_nothing_comes_twice(seed)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_nothing_is_lost_and_nothing_comes_twice(seed: int) -> None:
    """Crashes, restarts, faults of every kind; `conserved` is checked at every turn."""
    dice = random.Random(seed)
    world = World(seed=seed, max_in_flight=dice.choice([1, 3, 8]))
    faults: list[Any] = [
        MemorySender.LOST, FAULT, DOWN, "throttled", "refused_config",
        Outcome("throttled", 429, retry_after_s=dice.uniform(0, 90)), Outcome("not_sent", 409),
    ]  # fmt: skip

    def stripe(event: MeterEvent) -> Any:
        return dice.choice(faults) if dice.random() < trouble else "accepted"

    world.stripe.otherwise = stripe
    for _ in range(30):
        trouble = dice.choice([0, 0.1, 0.5, 1.0])
        for _ in range(dice.randrange(6)):
            world.use(dice.choice(customers(12)), dice.randrange(1, 1000), dice.choice(["a", "b"]))
        world.latency_s = dice.choice([0.001, 0.1, 5.0])
        if dice.random() < 0.3:
            world.start_process()  # what was in flight is in doubt now
        world.pass_(dice.choice([1, 30, 400, 1800]))
    world.stripe.otherwise = "accepted"
    world.pass_until(world.settled, within=2 * HOUR)
    assert set(world.states()) == {"ACCEPTED"}
    recorded = {b.customer: Decimal(0) for b in world.ledger.balances()}
    for balance in world.ledger.balances():
        recorded[balance.customer] += balance.recorded
    assert sums(world.stripe.accepted) == recorded
    assert len({e.identifier for e in world.stripe.accepted}) == len(world.stripe.accepted)


# With threads.


class Locked:
    """The ledger's thread, as good as: one caller at a time."""

    def __init__(self, ledger: MemoryLedger) -> None:
        self.ledger = ledger
        self.lock = threading.Lock()

    def run(self, fn: Callable[[Any], T]) -> T:
        with self.lock:
            return fn(self.ledger)


class Life:
    """A flusher with its threads, on real time."""

    def __init__(self, sender: Sender | None, **settings: Any) -> None:
        self.alarms: list[Alarm] = []
        self.telemetry = LogTelemetry(on_alarm=self.alarms.append)
        self.ledger = MemoryLedger()
        self.ledger.open(now=time.time())
        self.flusher = Flusher(Locked(self.ledger), sender, Settings(**settings), self.telemetry)

    def use(self, *customers: str, at: float | None = None) -> None:
        for customer in customers:
            usage = Usage(input=10)
            used_at = time.time() if at is None else at
            record = UsageRecord(id=os.urandom(8).hex(), usage=usage, used_at=used_at, customer=customer)
            self.ledger.commit([Entry(record, lines_of(record, METERS))], [], now=time.time())

    def states(self) -> dict[str, int]:
        return dict(Counter(row.state for row in self.ledger.events(limit=10**6)))


@pytest.fixture
def live() -> Iterator[Callable[..., Life]]:
    lives: list[Life] = []

    def make(sender: Sender | None, **settings: Any) -> Life:
        lives.append(Life(sender, **settings))
        return lives[-1]

    yield make
    for life in lives:
        life.flusher.stop(0)


def threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("llm-metering")}


def until(what: Callable[[], object], within: float = 5) -> None:
    deadline = time.monotonic() + within
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.002)


def test_flush_freezes_and_delivers_everything_and_says_what_is_left(live: Any) -> None:
    life = live(MemorySender())
    life.use(*customers(300))
    assert life.flusher.flush(10) == 0
    assert life.states() == {"ACCEPTED": 300}
    life.use("cus_late")
    assert life.flusher.flush(10) == 0
    assert life.states() == {"ACCEPTED": 301}


def test_flush_waits_for_what_is_tried_again(live: Any) -> None:
    stripe = MemorySender([MemorySender.LOST])
    life = live(stripe)
    life.use("cus_1", "cus_2")
    assert life.flusher.flush(10) == 0
    assert len(stripe.accepted) == 2


def test_flush_comes_back_when_the_time_is_out(live: Any) -> None:
    life = live(MemorySender(otherwise=FAULT))
    life.use(*customers(20))
    began = time.monotonic()
    assert life.flusher.flush(0.3) == 20
    assert 0.2 < time.monotonic() - began < 10


@pytest.mark.parametrize("sender", [None, "bad key"])
def test_flush_comes_back_at_once_where_a_person_has_to_act(live: Any, sender: str | None) -> None:
    stripe = None if sender is None else MemorySender()
    if stripe is not None:
        stripe.check_otherwise = "refused_config"
    life = live(stripe)
    life.use(*customers(20))
    began = time.monotonic()
    assert life.flusher.flush(30) == 20
    assert time.monotonic() - began < 5
    assert [a.name for a in life.alarms] == ["delivery.paused"]


def test_several_may_flush_at_a_time(live: Any) -> None:
    life = live(MemorySender())
    life.use(*customers(50))
    left: list[int] = []
    flushing = [threading.Thread(target=lambda: left.append(life.flusher.flush(10))) for _ in range(5)]
    for thread in flushing:
        thread.start()
    for thread in flushing:
        thread.join()
    assert left == [0] * 5


def test_nothing_runs_before_start_and_a_round_comes_by_itself(live: Any) -> None:
    before = threads()
    stripe = MemorySender()
    life = live(stripe, flush_every_s=0.05)
    life.use("cus_1", at=time.time() - 600)
    assert threads() == before
    assert not life.flusher.is_running
    life.flusher.start()
    life.flusher.start()
    until(lambda: stripe.accepted)
    life.use("cus_2", at=time.time() - 600)
    until(lambda: len(stripe.accepted) == 2)
    assert life.flusher.is_running


def test_wake_does_not_wait_for_the_round(live: Any) -> None:
    stripe = MemorySender()
    life = live(stripe, flush_every_s=3600)
    life.flusher.start()
    until(lambda: stripe.checks)
    life.use("cus_1", at=time.time() - 600)
    life.flusher.wake()
    until(lambda: stripe.accepted)


class Hanging(MemorySender):
    """Takes events and does not answer until told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.began = threading.Semaphore(0)

    def send(self, events: Sequence[MeterEvent]) -> list[Outcome]:
        self.began.release()
        self.go_on.wait(20)
        return super().send(events)


def test_stop_waits_for_what_is_under_way_and_the_ledger_knows(live: Any) -> None:
    stripe = Hanging()
    life = live(stripe, max_in_flight=2)
    life.use(*customers(30))
    flushing = threading.Thread(target=life.flusher.flush, args=(10,))
    flushing.start()
    stripe.began.acquire(timeout=5)
    stripe.began.acquire(timeout=5)
    threading.Timer(0.1, stripe.go_on.set).start()
    life.flusher.stop(5)
    assert not life.flusher.is_running
    assert len(stripe.accepted) == 2, "nothing new was begun"
    assert life.states() == {"ACCEPTED": 2, "PENDING": 28}
    flushing.join(5)
    assert not flushing.is_alive()


def test_stop_does_not_wait_longer_than_told(live: Any) -> None:
    stripe = Hanging()
    life = live(stripe, max_in_flight=4)
    life.use(*customers(30))
    flushing = threading.Thread(target=life.flusher.flush, args=(10,))
    flushing.start()
    for _ in range(4):
        assert stripe.began.acquire(timeout=5)
    began = time.monotonic()
    life.flusher.stop(0.2)
    assert 0.15 < time.monotonic() - began < 10
    assert life.states() == {"SENDING": 4, "PENDING": 26}, "left to the lease"
    flushing.join(5)
    assert not flushing.is_alive(), "nobody waits for a turn that will not come"
    stripe.go_on.set()


def test_what_no_thread_had_begun_at_a_stop_is_not_in_doubt(live: Any) -> None:
    stripe = Hanging()
    life = live(stripe, max_in_flight=8)
    life.flusher._sending.SPAWN_AFTER_S = 30.0
    life.use(*customers(30))
    flushing = threading.Thread(target=life.flusher.flush, args=(10,))
    flushing.start()
    assert stripe.began.acquire(timeout=5)
    life.flusher.stop(0.2)
    assert life.states() == {"SENDING": 1, "PENDING": 29}
    stripe.go_on.set()
    flushing.join(5)


def test_it_starts_again_after_a_stop_and_hears_what_came_late(live: Any) -> None:
    stripe = Hanging()
    life = live(stripe)
    life.use("cus_1")
    flushing = threading.Thread(target=life.flusher.flush, args=(10,))
    flushing.start()
    assert stripe.began.acquire(timeout=5)
    life.flusher.stop(0.1)
    stripe.go_on.set()
    flushing.join(5)
    life.use("cus_2")
    assert life.flusher.flush(10) == 0
    assert life.states() == {"ACCEPTED": 2}


def test_threads_end_with_the_stop(live: Any) -> None:
    before = threads()
    life = live(MemorySender())
    life.use(*customers(20))
    life.flusher.flush(10)
    assert threads() - before
    life.flusher.stop(1)
    until(lambda: threads() == before)
    life.flusher.stop(1)


def test_an_alarms_callback_may_stop_delivery(live: Any) -> None:
    stripe = MemorySender(["refused_data"])
    life = live(stripe)
    life.telemetry._on_alarm = lambda alarm: life.flusher.stop(0.5)
    life.use("cus_1")
    life.flusher.flush(5)
    until(lambda: not life.flusher.is_running)
    assert life.states() == {"DEAD": 1}


def test_a_sender_that_raises_may_have_sent(live: Any) -> None:
    class Broken(MemorySender):
        broken = True

        def send(self, events: Sequence[MeterEvent]) -> list[Outcome]:
            outcomes = super().send(events)
            if self.broken:
                self.broken = False
                raise RuntimeError("a bug, after the event had arrived")
            return outcomes

    stripe = Broken()
    life = live(stripe)
    life.use("cus_1")
    assert life.flusher.flush(10) == 0
    assert len(stripe.accepted) == 1
    assert life.telemetry.snapshot()["failure.delivery.sender"] == 1
    assert life.telemetry.snapshot()["delivery.duplicate"] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_begins_anew(live: Any) -> None:
    stripe = Hanging()
    life = live(stripe)
    life.use("cus_parent")
    flushing = threading.Thread(target=life.flusher.flush, args=(10,))
    flushing.start()
    assert stripe.began.acquire(timeout=5)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            # The parent's event stays the parent's; the child has a ledger of its own, as a new lane is.
            stripe.go_on.set()
            child = MemoryLedger()
            child.open(now=time.time())
            life.flusher._delivery._writer.ledger = life.flusher._writer.ledger = child
            life.ledger = child
            assert not life.flusher.is_running
            life.use("cus_child")
            assert life.flusher.flush(10) == 0
            assert [e.customer for e in stripe.accepted] == ["cus_child"]
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    stripe.go_on.set()
    flushing.join(5)
    assert life.states() == {"ACCEPTED": 1}


# Stripe tells the time.


class Telling(MemorySender):
    """Its answers tell the time, once there is one."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.answers = 0
        self.clock: Callable[[], float] | None = None

    def send(self, events: Sequence[MeterEvent]) -> list[Outcome]:
        self.answers += 1
        return super().send(events)

    def check(self) -> Outcome:
        self.answers += 1
        return super().check()

    def server_time(self) -> ServerTime | None:
        return ServerTime(self.clock(), self.answers) if self.clock is not None and self.answers else None


def restarted(*, behind_s: float = 0.0, tells: bool = True) -> World:
    """A machine that was started anew, with one event in doubt."""
    runs = [1]
    ledger = MemoryLedger(random=lambda: 0.5, boot=lambda: Boot(f"run {runs[0]}", 1.0))
    stripe = Telling([MemorySender.LOST])
    world = World(stripe, ledger=ledger)
    world.use()
    world.pass_until(lambda: world.states() == {"AMBIGUOUS": 1})
    runs[0] += 1
    world.now += HOUR
    stripe.answers = stripe.checks = 0
    stripe.clock = (lambda: world.now + behind_s) if tells else None
    world.start_process()
    return world


def test_stripe_is_asked_for_the_time_once_where_nothing_but_doubts_waits() -> None:
    world = restarted()
    world.pass_until(lambda: world.states() == {"ACCEPTED": 1}, within=5)
    assert len(world.stripe.attempts) == 2
    assert world.stripe.checks == 1
    assert world.names() == []
    world.pass_(HOUR)
    assert world.stripe.checks == 1


def test_what_it_says_to_that_is_not_taken_for_a_word_about_the_key() -> None:
    world = restarted()
    world.stripe.check_otherwise = "refused_config"
    world.pass_until(lambda: world.states() == {"ACCEPTED": 1}, within=5)
    assert world.flusher.paused is None
    assert world.names() == []


def test_any_answer_tells_the_time_and_new_events_wait_for_none() -> None:
    world = restarted(tells=False)
    for customer in customers(5):
        world.use(customer)
    world.pass_(90)
    assert world.states() == {"AMBIGUOUS": 1, "ACCEPTED": 5}
    assert 1 < world.stripe.checks < 20, "asked now and then, until it tells"
    world.stripe.clock = lambda: world.now
    world.pass_until(lambda: world.states() == {"ACCEPTED": 6}, within=20)


def test_a_doubt_that_is_too_old_by_its_time_is_not_sent_again() -> None:
    world = restarted(behind_s=22 * HOUR)
    world.pass_until(lambda: world.states() == {"IN_DOUBT": 1})
    assert len(world.stripe.attempts) == 1
    world.pass_(HOUR)
    assert world.stripe.checks == 1


def test_a_flush_waits_for_the_time_and_for_the_doubt_that_is_sent_then() -> None:
    world = restarted()
    flush = Flush(world.now + 60)
    world.flusher._delivery.flushes.append(flush)
    world.pass_(5)
    assert flush.done.is_set()
    assert world.states() == {"ACCEPTED": 1}


def test_nothing_is_asked_while_a_person_has_paused_sending() -> None:
    world = restarted()
    world.ledger.pause(who="ann", why="a test", now=world.now)
    world.pass_(HOUR)
    assert world.stripe.checks == 0
    world.ledger.resume(who="ann", why="over", now=world.now)
    world.pass_until(lambda: world.states() == {"ACCEPTED": 1}, within=60)


def test_where_the_ledger_cannot_hear_it_nothing_is_sent(failing: Failing) -> None:
    stripe = Telling()
    failing.world.stripe = stripe
    failing.world.make_flusher()
    failing.world.flusher._delivery._writer = failing
    failing.errors["hear_time"] = LedgerError("disk full")
    failing.world.use()
    failing.world.pass_(120)
    assert stripe.attempts == []
    del failing.errors["hear_time"]
    failing.world.pass_until(failing.world.settled)
    assert len(stripe.accepted) == 1
