"""Meter events by windows of time: what every ledger tells those who compare it with Stripe's summaries."""

from __future__ import annotations

from decimal import Decimal

import pytest
from llm_metering.protocols import EventSum, Outcome
from tests.ledger.conftest import BUCKET, T0, deliver, entry, line

HOUR = int(T0) - int(T0) % 3600
LATER = T0 + 20_000


def frozen(ledger, *uses):
    """Usage as (customer, value, at), frozen minute by minute."""
    entries = [
        entry(f"{i}-{customer}-{at}", line(value), customer=customer, used_at=at)
        for i, (customer, value, at) in enumerate(uses)
    ]
    ledger.commit(entries, [], now=LATER)
    ledger.freeze(now=LATER, bucket_s=BUCKET)


@pytest.mark.parametrize("read", [lambda ledger: ledger, lambda ledger: ledger.view()])
def test_events_are_added_up_by_customer_meter_window_and_state(ledger, read):
    frozen(
        ledger,
        ("cus_1", 5, HOUR + 0.5),
        ("cus_1", Decimal("0.25"), HOUR + 3599),
        ("cus_1", 7, HOUR + 3600),
        ("cus_2", 11, HOUR + 60),
    )
    (refused,) = [c for c in ledger.claim(now=LATER, limit=9) if c.event.customer == "cus_2"]
    ledger.finish(refused, Outcome("refused_data", 400), now=LATER)
    assert read(ledger).event_sums(since=HOUR, until=HOUR + 7200)[-1] == EventSum(
        "cus_2", "tokens", HOUR, {"DEAD": Decimal(11)}
    )
    ledger.close()
    ledger.open(now=LATER)  # what was being sent is AMBIGUOUS now
    by_state = {
        (s.customer, s.start): s.values for s in read(ledger).event_sums(since=HOUR, until=HOUR + 7200)
    }
    assert by_state[("cus_2", HOUR)] == {"DEAD": Decimal(11)}
    total = [sum(by_state[("cus_1", at)].values()) for at in (HOUR, HOUR + 3600)]
    assert total == [Decimal("5.25"), Decimal(7)]


def test_only_what_lies_within_and_is_the_customers(ledger):
    frozen(ledger, ("cus_1", 1, HOUR - 1), ("cus_1", 2, HOUR), ("cus_1", 4, HOUR + 60), ("cus_2", 8, HOUR))
    found = ledger.event_sums(since=HOUR, until=HOUR + 60, window_s=60, customer="cus_1")
    assert [(s.start, s.values) for s in found] == [(HOUR, {"PENDING": Decimal(2)})]


def test_sums_are_exact(ledger):
    frozen(ledger, ("cus_1", 2**62, HOUR), ("cus_1", Decimal("0.000000000001"), HOUR + 60))
    (found,) = ledger.event_sums(since=HOUR, until=HOUR + 3600)
    assert found.values == {"PENDING": Decimal("4611686018427387904.000000000001")}


def test_accepted_is_what_stripe_has_accepted(ledger):
    frozen(ledger, ("cus_1", 5, HOUR), ("cus_2", 6, HOUR))
    deliver(ledger, now=LATER, limit=1)
    accepted = [s.accepted for s in ledger.event_sums(since=HOUR, until=HOUR + 3600)]
    assert sorted(accepted) == [0, 5]
    assert EventSum("c", "t", 0, {"SETTLED": Decimal(2), "ACCEPTED": Decimal(1)}).accepted == 3


def test_events_of_a_span_come_newest_first_with_the_time_of_their_attempt(ledger):
    frozen(ledger, ("cus_1", 1, HOUR), ("cus_1", 2, HOUR + 60), ("cus_1", 3, HOUR + 120), ("cus_2", 9, HOUR))
    deliver(ledger, now=LATER)
    found = ledger.events_within("cus_1", "tokens", since=HOUR, until=HOUR + 120)
    assert [(int(row.event.value), row.attempted_at) for row in found] == [(2, None), (1, LATER)]
    assert ledger.events_within("cus_1", "tokens", since=HOUR, until=HOUR + 121, limit=1)[0].event.value == 3
    assert ledger.events_within("cus_1", "other", since=HOUR, until=HOUR + 120) == []


def test_all_lanes_of_a_folder_are_added_up(bench):
    if bench.kind != "sqlite":
        pytest.skip(f"there is one lane in {bench.kind}")
    from llm_metering.ledger import SqliteLedger

    other = SqliteLedger(bench.path)
    other.open(now=T0)
    try:
        frozen(bench.ledger, ("cus_1", 1, HOUR))
        frozen(other, ("cus_1", 2, HOUR))
        (found,) = bench.ledger.event_sums(since=HOUR, until=HOUR + 3600)
        assert found.values == {"PENDING": Decimal(3)}
        rows = bench.ledger.events_within("cus_1", "tokens", since=HOUR, until=HOUR + 3600)
        assert len({row.lane for row in rows}) == 2
    finally:
        other.close()
