"""What became known of accepted events afterwards; the same for every ledger."""

from __future__ import annotations

import pytest
from llm_metering.protocols import Outcome
from tests.ledger.conftest import BUCKET, T0, conserved, deliver, entry, line, totals

DONE = T0 + BUCKET
LATER = DONE + 10_000


def accepted(ledger, *customers):
    """One accepted event of 10 for each customer; identifiers by customer."""
    ledger.commit([entry(c, customer=c) for c in customers], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    return {c.event.customer: c.event.identifier for c in deliver(ledger, now=DONE)}


def state(ledger, identifier):
    (found,) = [row for row in ledger.events() if row.event.identifier == identifier]
    return found.state


def test_what_stripe_shows_is_settled_and_still_accepted(bench):
    ids = accepted(bench.ledger, "cus_1", "cus_2")
    (moved,) = bench.ledger.settle([ids["cus_1"], "no such event"], now=LATER)
    assert (moved.identifier, moved.before, moved.after) == (ids["cus_1"], "ACCEPTED", "SETTLED")
    assert moved.alarm is None
    ledger = bench.crash(now=LATER)
    assert state(ledger, ids["cus_1"]) == "SETTLED"
    assert state(ledger, ids["cus_2"]) == "ACCEPTED"
    assert totals(ledger)["accepted"] == 20
    assert conserved(ledger)


def test_settling_twice_changes_nothing(ledger):
    ids = accepted(ledger, "cus_1")
    ledger.settle(list(ids.values()), now=LATER)
    assert ledger.settle(list(ids.values()), now=LATER) == []


@pytest.mark.parametrize("kind", ["ambiguous", "refused_data", "duplicate", "not_sent"])
def test_only_what_was_accepted_can_be_settled_or_refuted(ledger, kind):
    ledger.commit([entry("r1")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    (claim,) = deliver(ledger, now=DONE, outcome=Outcome(kind))
    before = state(ledger, claim.event.identifier)
    assert ledger.settle([claim.event.identifier], now=LATER) == []
    assert ledger.refute(claim.event.identifier, why="no such customer", now=LATER) is None
    assert state(ledger, claim.event.identifier) == before


def test_what_stripe_refused_after_it_took_it_is_dead_with_an_alarm_and_can_be_replayed(bench):
    ids = accepted(bench.ledger, "cus_1")
    moved = bench.ledger.refute(ids["cus_1"], why="meter_event_customer_not_found", now=LATER)
    assert moved is not None
    assert (moved.before, moved.after, moved.alarm) == ("ACCEPTED", "DEAD", "delivery.dead")
    ledger = bench.crash(now=LATER)
    assert "meter_event_customer_not_found" in str(moved.reason)
    assert totals(ledger)["dead"] == 10
    assert totals(ledger)["accepted"] == 0
    assert conserved(ledger)
    (ruling,) = ledger.replay([ids["cus_1"]], who="ann", why="customer restored", now=LATER)
    assert ruling.refused is None
    assert totals(ledger)["pending"] == 10
    assert conserved(ledger)


def test_what_is_settled_is_not_refuted(ledger):
    ids = accepted(ledger, "cus_1")
    ledger.settle(list(ids.values()), now=LATER)
    assert ledger.refute(ids["cus_1"], why="x", now=LATER) is None
    assert state(ledger, ids["cus_1"]) == "SETTLED"


def test_what_is_open_comes_oldest_first_and_only_when_it_is_old_enough(ledger):
    for i, at in enumerate((T0 + 120, T0, T0 + 60)):
        ledger.commit([entry(f"r{i}", used_at=at)], [], now=T0 + 120)
    ledger.freeze(now=T0 + 180, bucket_s=BUCKET)
    for n, at in enumerate((T0 + 200, T0 + 300, T0 + 400)):
        kind = ("accepted", "duplicate", "refused_data")[n]
        (claim,) = ledger.claim(now=at, limit=1)
        ledger.finish(claim, Outcome(kind), now=at)
    found = ledger.unsettled(before=T0 + 500)
    assert {row.state for row in found} == {"ACCEPTED", "IN_DOUBT"}
    assert [row.event.timestamp for row in found] == sorted(row.event.timestamp for row in found)
    assert [row.state for row in ledger.unsettled(before=T0 + 300)] == ["ACCEPTED"]
    assert ledger.unsettled(before=T0 + 200) == []
    assert ledger.unsettled(before=T0 + 500, since=T0 + 121) == []
    assert len(ledger.unsettled(before=T0 + 500, limit=1)) == 1
    ledger.settle([row.event.identifier for row in found], now=LATER)
    assert [row.state for row in ledger.unsettled(before=T0 + 500)] == ["IN_DOUBT"]


def test_nothing_new_is_sent_of_a_paused_meter_and_the_others_flow(bench):
    ledger = bench.ledger
    for n in range(30):
        ledger.commit([entry(f"g{n}", line(1, event_name="gone"), customer=f"cus_{n}")], [], now=T0)
    ledger.commit([entry("f", line(1, event_name="fine"), customer="cus_zz")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    ledger.pause_meter("gone", why="no such meter")
    assert ledger.paused_meters() == {"gone": "no such meter"}
    assert [c.event.event_name for c in deliver(ledger, now=DONE, limit=4)] == ["fine"]
    ledger = bench.crash(now=DONE)
    assert ledger.paused_meters() == {"gone": "no such meter"}
    assert ledger.claim(now=DONE, limit=4) == []
    assert conserved(ledger)
    ledger.pause_meter("gone", why=None)
    assert ledger.paused_meters() == {}
    assert len(deliver(ledger, now=DONE, limit=100)) == 30
    ledger.pause_meter("never paused", why=None)
    assert ledger.paused_meters() == {}


def test_what_may_have_arrived_is_sent_again_though_its_meter_is_paused(ledger):
    ledger.commit([entry("r1")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    deliver(ledger, now=DONE, outcome=Outcome("ambiguous"))
    ledger.pause_meter("tokens", why="no such meter")
    assert len(ledger.claim(now=DONE + 1000, limit=4)) == 1
