"""A wall clock that jumps, while a process runs and between two: no time in the future, no doubt grows
younger, nothing waits for days, and a person is told."""

from __future__ import annotations

from typing import Any

import pytest
from llm_metering.protocols import Outcome
from tests.ledger.conftest import BUCKET, T0, conserved, deliver, entry, progress, totals

HOUR = 3600.0
DAY = 24 * HOUR
DONE = T0 + BUCKET
JUMPS = (HOUR, -HOUR, -2 * DAY)

pytestmark = pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])


def at(bench: Any, now: float, *, restart: bool) -> Any:
    """The ledger when the clock shows this."""
    if restart:
        return bench.crash(now=now)
    bench.ledger.maintain(now=now)
    return bench.ledger


def alarms(ledger: Any) -> list[str]:
    return [alarm.name for alarm in ledger.take_alarms()]


@pytest.mark.parametrize("jump", JUMPS)
def test_no_event_has_a_time_in_the_future_and_none_waits_for_it(bench, jump, restart):
    ledger = bench.ledger
    ledger.commit([entry("frozen", customer="cus_f")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    ledger.commit(
        [entry("used", customer="cus_u", used_at=DONE)],
        [progress("stream", customer="cus_s", used_at=DONE)],
        now=DONE,
    )
    now = DONE + jump
    ledger = at(bench, now, restart=True) if restart else at(bench, now, restart=False)
    ledger.freeze(now=now, bucket_s=BUCKET, everything=True)
    if not restart:
        ledger.commit([entry("stream", customer="cus_s", used_at=now, closes="stream")], [], now=now)
        ledger.freeze(now=now + BUCKET, bucket_s=BUCKET, everything=True)
    sent = []
    while claims := ledger.claim(now=now + BUCKET, limit=10):
        for claim in claims:
            sent.append(claim.event)
            ledger.finish(claim, Outcome("accepted", 200), now=now + BUCKET)
    assert {event.customer for event in sent} == {"cus_f", "cus_u", "cus_s"}
    assert all(event.timestamp <= now + BUCKET for event in sent), "Stripe refuses what lies in the future"
    assert all(event.timestamp > now - DAY for event in sent)
    assert totals(ledger)["accepted"] == 30
    assert conserved(ledger)
    assert ("ledger.clock_went_back" in alarms(ledger)) is (jump < 0)


def test_an_event_that_was_refused_for_good_reason_is_sent_again_with_a_time_that_stripe_takes(
    bench, restart
):
    """Never connected under a clock two days ahead: what nobody has seen may be given another time."""
    ledger = bench.ledger
    ledger.commit([entry("a", used_at=T0 + 2 * DAY)], [], now=T0 + 2 * DAY)
    ledger.freeze(now=DONE + 2 * DAY, bucket_s=BUCKET)
    deliver(ledger, now=DONE + 2 * DAY, outcome=Outcome("not_sent"))
    ledger = at(bench, DONE, restart=restart)
    (claim,) = ledger.claim(now=DONE + HOUR, limit=1)
    assert claim.event.timestamp <= DONE


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome("ambiguous"),
        Outcome("not_sent", 400, message="No active meter found"),
        Outcome("throttled", 429),
    ],
    ids=["no answer", "no meter", "throttled"],
)
def test_what_stripe_may_have_seen_keeps_its_bytes(bench, restart, outcome):
    ledger = bench.ledger
    ledger.commit([entry("a", used_at=T0 + 2 * DAY)], [], now=T0 + 2 * DAY)
    ledger.freeze(now=DONE + 2 * DAY, bucket_s=BUCKET)
    (first,) = deliver(ledger, now=DONE + 2 * DAY, outcome=outcome)
    ledger = at(bench, DONE, restart=restart)
    (again,) = ledger.claim(now=DONE + HOUR, limit=1)
    assert again.event == first.event


@pytest.mark.parametrize("back", [HOUR, 2 * DAY])
def test_a_clock_that_goes_back_does_not_extend_the_22_hours(bench, back, restart):
    ledger = bench.ledger
    ledger.commit([entry("a")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    deliver(ledger, now=DONE, outcome=Outcome("ambiguous"))
    ledger.maintain(now=DONE + 10 * HOUR)
    ledger = at(bench, DONE + 10 * HOUR - back, restart=restart)
    assert "ledger.clock_went_back" in alarms(ledger)
    shown = DONE + 22 * HOUR - back  # twenty-two hours in truth
    assert ledger.claim(now=shown, limit=1) == []
    ledger.maintain(now=shown)
    assert totals(ledger)["in_doubt"] == 10


def test_a_clock_that_jumps_ahead_and_back_sends_nothing_late(bench, restart):
    """An hour ahead and back again within the time in which a resend is allowed."""
    ledger = bench.ledger
    ledger.commit([entry("a")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    deliver(ledger, now=DONE, outcome=Outcome("ambiguous"))
    ledger = at(bench, DONE + 20 * HOUR + HOUR, restart=restart)  # 20 hours in truth
    ledger = at(bench, DONE + 20 * HOUR, restart=restart)
    assert ledger.claim(now=DONE + 22 * HOUR, limit=1) == []
    ledger.maintain(now=DONE + 22 * HOUR)
    assert totals(ledger)["in_doubt"] == 10
