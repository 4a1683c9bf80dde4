"""What every ledger promises; run against each of them."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from llm_metering.errors import AccountMismatch, LedgerError
from llm_metering.protocols import Outcome
from llm_metering.usage import MAX_TOKENS, Usage
from tests.ledger.conftest import (
    BUCKET,
    T0,
    conserved,
    deliver,
    entry,
    line,
    progress,
    totals,
)

DONE = T0 + BUCKET  # the bucket that begins at T0 is closed
HOUR = 3600.0
DAY = 86_400.0


def freeze(ledger, now=DONE, **more):
    return ledger.freeze(now=now, bucket_s=BUCKET, **more)


def only(rows):
    (row,) = rows
    return row


# ---- recording


def test_recording_an_id_twice_records_it_once(ledger):
    assert ledger.commit([entry("a"), entry("b"), entry("a")], [], now=T0) == 2
    assert ledger.commit([entry("b"), entry("c")], [], now=T0) == 1
    assert totals(ledger)["recorded"] == 30


def test_a_second_record_of_an_id_changes_nothing(ledger):
    ledger.commit([entry("a")], [], now=T0)
    ledger.commit([entry("a", line(999), customer="cus_2")], [], now=T0)
    assert only(ledger.balances()).recorded == 10
    assert only(ledger.balances()).customer == "cus_1"


def test_what_is_recorded_survives_a_crash(bench):
    bench.ledger.commit([entry("a", model="gpt", dimensions={"feature": "chat"})], [], now=T0)
    assert only(bench.crash().usage_sums()).value == 10


def test_a_group_with_one_impossible_record_leaves_nothing_behind(ledger):
    with pytest.raises(ValueError):
        ledger.commit([entry("a"), entry("b", line(0.1))], [], now=T0)
    assert ledger.status(now=T0).usage_records == 0


@pytest.mark.parametrize("value", [1.5, True, "3", Decimal("NaN"), Decimal("Infinity"), None])
def test_a_value_that_is_no_exact_number_is_refused(ledger, value):
    with pytest.raises(ValueError):
        ledger.commit([entry("a", line(value))], [], now=T0)


@pytest.mark.parametrize("used_at", [float("nan"), float("inf"), float("-inf"), 1e300, -1e300])
def test_a_time_that_is_no_time_is_refused(ledger, used_at):
    with pytest.raises(ValueError):
        ledger.commit([entry("a", used_at=used_at)], [], now=T0)
    assert ledger.status(now=T0).usage_records == 0


def test_counts_up_to_the_largest_and_their_sums_are_exact(ledger):
    entries = [entry(f"r{i}", usage=Usage(input=MAX_TOKENS)) for i in range(100)]
    ledger.commit(entries, [], now=T0)
    assert only(ledger.usage_sums()).value == 100 * MAX_TOKENS
    freeze(ledger)
    event = only(ledger.events()).event
    assert event.value == 100 * MAX_TOKENS
    assert event.payload["value"] == str(100 * MAX_TOKENS)
    assert conserved(ledger)


def test_decimals_are_added_up_exactly_and_written_without_exponent(ledger):
    small = Decimal("0.000000000001")
    ledger.commit([entry(f"r{i}", line(small)) for i in range(10)], [], now=T0)
    ledger.commit([entry("big", line(Decimal(MAX_TOKENS)))], [], now=T0)
    freeze(ledger)
    event = only(ledger.events()).event
    assert event.payload["value"] == f"{MAX_TOKENS}.00000000001"
    assert str(event.value) == event.payload["value"]
    assert conserved(ledger)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decimal("1E-5"), "0.00001"),
        (Decimal("1E+3"), "1000"),
        (Decimal("2.500"), "2.5"),
        (Decimal(-3), "-3"),
        (7, "7"),
    ],
)
def test_values_go_out_in_plain_notation(ledger, value, text):
    ledger.commit([entry("a", line(value))], [], now=T0)
    freeze(ledger)
    assert only(ledger.events()).event.payload["value"] == text


def test_text_that_cannot_be_written_as_utf8_is_kept_readable(bench):
    odd = "caf\u00e9 \ud800 \x00"
    made = entry("a", line(5, model="\ud800"), model=odd, dimensions={"feature": odd})
    bench.ledger.commit([entry("b"), made], [], now=T0)
    freeze(bench.ledger)
    for row in bench.ledger.events():
        str(row.event.payload).encode()
        for text in row.event.payload.values():
            text.encode()
    assert totals(bench.ledger)["recorded"] == 15


def test_a_ledger_that_is_not_open_says_so(bench):
    bench.ledger.close()
    with pytest.raises(LedgerError, match="not open"):
        bench.ledger.commit([entry("a")], [], now=T0)


# ---- streams under way


def test_progress_of_a_dead_process_becomes_usage(bench):
    bench.ledger.commit([], [progress("s", usage=Usage(input=5, output=7))], now=T0)
    assert bench.ledger.status(now=T0).streams_under_way == 1
    assert totals(bench.ledger)["recorded"] == 0
    ledger = bench.crash()
    status = ledger.status(now=T0)
    assert (status.streams_under_way, status.usage_records) == (0, 1)
    assert totals(ledger)["recorded"] == 12


@pytest.mark.parametrize("provenance", ["reported", "partial", "counted", "estimated"])
def test_what_a_dead_process_noted_keeps_its_provenance(bench, provenance):
    bench.ledger.commit([], [progress("s", provenance=provenance)], now=T0)
    ledger = bench.crash()
    if bench.kind == "memory":
        assert only(ledger.records).provenance == provenance
    else:
        assert bench.rows("SELECT provenance FROM usage") == [(provenance,)]


def test_only_the_latest_progress_of_a_stream_counts(bench):
    bench.ledger.commit([], [progress("s", line(1)), progress("s", line(2))], now=T0)
    bench.ledger.commit([], [progress("s", line(3))], now=T0)
    assert totals(bench.crash())["recorded"] == 3


@pytest.mark.parametrize("final", ["s", "other"])
def test_a_finished_stream_counts_once(bench, final):
    bench.ledger.commit([], [progress("s", line(3))], now=T0)
    bench.ledger.commit([entry(final, line(9), closes="s")], [], now=T0)
    assert bench.ledger.status(now=T0).streams_under_way == 0
    assert totals(bench.crash())["recorded"] == 9


def test_a_stream_that_begins_and_ends_in_one_group_counts_once(bench):
    bench.ledger.commit([entry("s", line(9), closes="s")], [progress("s", line(3))], now=T0)
    assert totals(bench.crash())["recorded"] == 9


def test_a_dropped_stream_leaves_nothing(bench):
    bench.ledger.commit([], [progress("s"), progress("t")], now=T0)
    bench.ledger.commit([], [], drops=["s", "unknown"], now=T0)
    assert bench.ledger.status(now=T0).streams_under_way == 1
    assert totals(bench.crash())["recorded"] == 10


def test_progress_that_comes_after_the_record_is_ignored(bench):
    bench.ledger.commit([entry("s", line(9))], [], now=T0)
    bench.ledger.commit([], [progress("s", line(3))], now=T0)
    assert bench.ledger.status(now=T0).streams_under_way == 0
    assert totals(bench.crash())["recorded"] == 9


# ---- freezing


def test_usage_of_one_bucket_becomes_one_event_with_the_time_of_its_last_use(ledger):
    ledger.commit([entry(f"r{i}", used_at=T0 + i + 0.7) for i in range(10)], [], now=T0)
    assert freeze(ledger) == 1
    event = only(ledger.events()).event
    assert event.value == 100
    assert event.timestamp == int(T0) + 9
    assert event.event_name == "tokens"
    assert dict(event.payload) == {
        "stripe_customer_id": "cus_1",
        "value": "100",
        "model": "m",
        "token_type": "input",
    }
    assert 0 < len(event.identifier) <= 100


def test_an_open_bucket_is_left_alone(ledger):
    ledger.commit([entry("a", used_at=T0 + 1)], [], now=T0)
    assert freeze(ledger, T0 + 59.9) == 0
    assert freeze(ledger, T0 + 60) == 1
    assert freeze(ledger, T0 + 60) == 0


def test_everything_means_open_buckets_too(ledger):
    ledger.commit([entry("a", used_at=T0 + 1)], [], now=T0)
    assert freeze(ledger, T0 + 2, everything=True) == 1
    assert only(ledger.events()).event.timestamp == int(T0) + 1


def test_late_usage_makes_a_second_event(ledger):
    ledger.commit([entry("a")], [], now=T0)
    freeze(ledger)
    ledger.commit([entry("b", used_at=T0 + 3)], [], now=DONE)
    assert freeze(ledger) == 1
    assert sorted(row.event.timestamp for row in ledger.events()) == [int(T0), int(T0) + 3]
    assert totals(ledger)["pending"] == 20


def test_customers_meters_and_dimensions_are_kept_apart(ledger):
    ledger.commit(
        [
            entry("a", line(1, kind="x"), line(2, kind="y"), line(4, event_name="calls")),
            entry("b", line(8, kind="x"), customer="cus_2"),
        ],
        [],
        now=T0,
    )
    assert freeze(ledger) == 4
    found = {(r.event.customer, r.event.event_name, r.event.payload["value"]) for r in ledger.events()}
    assert found == {
        ("cus_1", "tokens", "1"),
        ("cus_1", "tokens", "2"),
        ("cus_1", "calls", "4"),
        ("cus_2", "tokens", "8"),
    }


def test_buckets_are_kept_apart_and_do_not_cross_an_hour(ledger):
    hour = T0 - T0 % 3600
    ledger.commit([entry("a", used_at=hour - 1), entry("b", used_at=hour + 1)], [], now=T0)
    assert ledger.freeze(now=T0, bucket_s=7 * 60) == 2  # 7 min do not divide an hour; still none crosses


@pytest.mark.parametrize(("now", "frozen"), [(T0 + 3599 - 2400, 0), (T0 + 3600, 1)])
def test_an_hour_long_bucket_waits_for_its_hour(ledger, now, frozen):
    ledger.commit([entry("a", used_at=T0)], [], now=T0)
    assert ledger.freeze(now=now, bucket_s=3600) == frozen


def test_no_event_gets_a_time_in_the_future(ledger):
    ledger.commit([entry("a", used_at=T0 + 500)], [], now=T0)
    freeze(ledger, T0 + 1.5, everything=True)
    assert only(ledger.events()).event.timestamp == int(T0) + 1


def test_usage_without_customer_or_held_back_is_not_frozen_and_is_pending(ledger):
    ledger.commit([entry("a", customer=None), entry("b", held="estimated")], [], now=T0)
    assert freeze(ledger) == 0
    status = ledger.status(now=DONE)
    assert (status.unresolved_records, status.held_records, status.unfrozen_records) == (1, 1, 2)
    assert [(b.customer, b.recorded, b.pending) for b in ledger.balances()] == [
        (None, 10, 10),
        ("cus_1", 10, 10),
    ]


def test_a_held_record_without_counts_is_kept(ledger):
    ledger.commit([entry("a", line(0), usage=Usage(), held="usage was NaN")], [], now=T0)
    assert ledger.status(now=T0).held_records == 1
    assert freeze(ledger) == 0


def test_what_comes_to_zero_makes_no_event_and_is_conserved(ledger):
    ledger.commit(
        [entry("a", line(0)), entry("b", line(5), line(-5, kind="x"), line(5, kind="x"))], [], now=T0
    )
    assert freeze(ledger) == 1
    assert ledger.status(now=DONE).unfrozen_records == 0
    assert conserved(ledger)
    assert totals(ledger)["recorded"] == 5


def test_a_count_meter_gets_one_event_a_record(ledger):
    ledger.commit([entry(f"r{i}", line(1, aggregation="count")) for i in range(3)], [], now=T0)
    assert freeze(ledger) == 3
    assert conserved(ledger)
    assert totals(ledger)["pending"] == 3


def test_a_last_meter_gets_the_latest_reading_of_a_bucket(ledger):
    values = [(T0 + 5, 7), (T0 + 9, 3), (T0 + 1, 50)]
    ledger.commit([entry(f"r{at}", line(v, aggregation="last"), used_at=at) for at, v in values], [], now=T0)
    assert conserved(ledger)
    assert freeze(ledger) == 1
    assert only(ledger.events()).event.value == 3
    assert conserved(ledger)
    assert totals(ledger)["recorded"] == 3


def test_a_last_reading_of_zero_is_a_reading(ledger):
    ledger.commit([entry("a", line(0, aggregation="last"))], [], now=T0)
    assert freeze(ledger) == 1
    assert conserved(ledger)


def test_of_readings_at_the_same_moment_the_later_record_counts(ledger):
    ledger.commit([entry(f"r{v}", line(v, aggregation="last")) for v in (5, 9, 2)], [], now=T0)
    freeze(ledger)
    assert only(ledger.events()).event.value == 2
    assert conserved(ledger)


def test_a_dimension_cannot_take_the_place_of_customer_or_value(ledger):
    ledger.commit([entry("a", line(3, stripe_customer_id="cus_evil", value="1"))], [], now=T0)
    freeze(ledger)
    assert dict(only(ledger.events()).event.payload) == {"stripe_customer_id": "cus_1", "value": "3"}


def test_a_frozen_event_survives_a_crash_unchanged(bench):
    bench.ledger.commit([entry("a")], [], now=T0)
    freeze(bench.ledger)
    before = only(bench.ledger.events()).event
    assert only(bench.crash().events()).event == before


# ---- sending


def frozen(ledger, *entries, now=DONE):
    ledger.commit(entries or [entry("a")], [], now=T0)
    freeze(ledger, now)


def test_a_claim_is_on_record_before_anything_is_sent(bench):
    frozen(bench.ledger)
    claim = only(bench.ledger.claim(now=DONE, limit=8))
    assert (claim.attempt, claim.first_ambiguous_at) == (1, None)
    row = only(bench.ledger.events())
    assert (row.state, row.attempts) == ("SENDING", 1)
    row = only(bench.crash(now=DONE + 5).events())
    assert (row.state, row.attempts) == ("AMBIGUOUS", 1)
    assert row.first_ambiguous_at == DONE


def test_accepted_is_accepted(ledger):
    frozen(ledger)
    (claim,) = deliver(ledger, now=DONE)
    row = only(ledger.events())
    assert (row.state, row.event) == ("ACCEPTED", claim.event)
    assert ledger.claim(now=DONE + DAY, limit=8) == []
    assert totals(ledger)["accepted"] == 10


def test_one_attempt_at_a_time_for_a_customer_and_meter(ledger):
    frozen(
        ledger,
        entry("a", line(1, kind="x"), line(2, kind="y"), line(4, event_name="calls")),
        entry("b", line(8), customer="cus_2"),
    )
    first = ledger.claim(now=DONE, limit=8)
    pairs = [(c.event.customer, c.event.event_name) for c in first]
    assert sorted(pairs) == [("cus_1", "calls"), ("cus_1", "tokens"), ("cus_2", "tokens")]
    assert ledger.claim(now=DONE, limit=8) == []
    for claim in first:
        ledger.finish(claim, Outcome("accepted"), now=DONE)
    assert len(ledger.claim(now=DONE, limit=8)) == 1


def test_a_claim_takes_no_more_than_its_limit(ledger):
    frozen(ledger, *[entry(f"r{i}", customer=f"cus_{i}") for i in range(10)])
    assert len(ledger.claim(now=DONE, limit=4)) == 4
    assert len(ledger.claim(now=DONE, limit=0)) == 0
    assert len(ledger.claim(now=DONE, limit=40)) == 6


def test_a_long_queue_of_one_customer_does_not_hold_up_the_others(ledger):
    noisy = [entry(f"n{i}", line(1, kind=str(i)), customer="cus_a") for i in range(50)]
    frozen(ledger, *noisy, entry("b", customer="cus_b"), entry("c", customer="cus_c"))
    served = [deliver(ledger, now=DONE, limit=1)[0].event.customer for _ in range(6)]
    assert set(served[:3]) == {"cus_a", "cus_b", "cus_c"}
    assert served[3:] == ["cus_a"] * 3


def test_doubtful_events_come_first(ledger):
    frozen(ledger, entry("a", line(1, kind="x"), line(2, kind="y"), customer="cus_z"), entry("b"))
    claims = ledger.claim(now=DONE, limit=8)
    doubtful = next(c for c in claims if c.event.customer == "cus_z")
    for claim in claims:
        ledger.finish(claim, Outcome("ambiguous" if claim is doubtful else "not_sent"), now=DONE)
    later = DONE + 1000
    (again,) = ledger.claim(now=later, limit=1)
    assert again.event == doubtful.event
    assert (again.attempt, again.first_ambiguous_at) == (2, DONE)


def test_only_doubtful_ones_are_taken_while_the_breaker_is_open(ledger):
    frozen(ledger, entry("a"), entry("b", customer="cus_2"))
    assert ledger.claim(now=DONE, limit=8, ambiguous_only=True) == []
    claims = ledger.claim(now=DONE, limit=8)
    ledger.finish(claims[0], Outcome("ambiguous"), now=DONE)
    ledger.finish(claims[1], Outcome("not_sent"), now=DONE)
    (again,) = ledger.claim(now=DONE + 1000, limit=8, ambiguous_only=True)
    assert again.event == claims[0].event


def test_the_same_bytes_are_sent_again(ledger):
    frozen(ledger)
    first = only(ledger.claim(now=DONE, limit=1))
    ledger.finish(first, Outcome("ambiguous"), now=DONE)
    ledger.commit([entry("later", used_at=T0 + 2)], [], now=DONE)
    freeze(ledger)
    second = only(c for c in ledger.claim(now=DONE + 1000, limit=1))
    assert second.event == first.event
    assert second.fence > first.fence


def test_a_duplicate_after_an_earlier_attempt_is_delivered(ledger):
    frozen(ledger)
    deliver(ledger, now=DONE, outcome=Outcome("ambiguous"))
    deliver(ledger, now=DONE + 1000, outcome=Outcome("duplicate", 400))
    assert totals(ledger)["accepted"] == 10


def test_a_duplicate_on_the_first_attempt_is_in_doubt_with_an_alarm(ledger):
    frozen(ledger)
    claim = only(ledger.claim(now=DONE, limit=1))
    transition = ledger.finish(claim, Outcome("duplicate", 400), now=DONE)
    assert (transition.before, transition.after) == ("SENDING", "IN_DOUBT")
    assert transition.alarm == "delivery.duplicate_on_first_attempt"
    assert totals(ledger)["in_doubt"] == 10


def test_bad_data_is_dead_and_the_others_flow(ledger):
    frozen(ledger, entry("a"), entry("b", customer="cus_2"))
    claims = ledger.claim(now=DONE, limit=8)
    dead = ledger.finish(claims[0], Outcome("refused_data", 400, message="no such customer"), now=DONE)
    assert (dead.after, dead.alarm) == ("DEAD", "delivery.dead")
    assert "no such customer" in dead.reason
    ledger.finish(claims[1], Outcome("accepted"), now=DONE)
    found = totals(ledger)
    assert (found["dead"], found["accepted"], found["pending"]) == (10, 10, 0)
    assert ledger.claim(now=DONE + DAY, limit=8) == []


def test_a_refusal_does_not_clear_an_older_doubt(ledger):
    frozen(ledger)
    deliver(ledger, now=DONE, outcome=Outcome("ambiguous"))
    deliver(ledger, now=DONE + 1000, outcome=Outcome("throttled", 429))
    row = only(ledger.events())
    assert (row.state, row.first_ambiguous_at) == ("AMBIGUOUS", DONE)


def test_an_event_waits_for_its_retry_time(ledger):
    frozen(ledger)
    claim = only(ledger.claim(now=DONE, limit=1))
    transition = ledger.finish(claim, Outcome("throttled", 429, retry_after_s=40), now=DONE)
    assert transition.next_attempt_at == DONE + 40
    assert ledger.due_at() == DONE + 40
    assert ledger.claim(now=DONE + 39, limit=1) == []
    assert len(ledger.claim(now=DONE + 40, limit=1)) == 1
    assert ledger.due_at() is None


def test_an_old_fence_changes_nothing(ledger):
    frozen(ledger)
    zombie = only(ledger.claim(now=DONE, limit=1))
    ledger.maintain(now=DONE + 3600)  # its lease has run out
    current = only(ledger.claim(now=DONE + 3600, limit=1))
    assert ledger.finish(zombie, Outcome("refused_data", 400), now=DONE + 3601) is None
    assert only(ledger.events()).state == "SENDING"
    ledger.finish(current, Outcome("accepted"), now=DONE + 3602)
    assert ledger.finish(current, Outcome("refused_data", 400), now=DONE + 3603) is None
    assert only(ledger.events()).state == "ACCEPTED"


def test_several_attempts_end_in_one_go(ledger):
    frozen(ledger, entry("a"), entry("b", customer="cus_2"))
    claims = ledger.claim(now=DONE, limit=8)
    results = [(c, Outcome("accepted")) for c in claims]
    first, second = ledger.finish_many(results, now=DONE)
    assert first.after == second.after == "ACCEPTED"
    assert first.identifier == claims[0].event.identifier
    assert ledger.finish_many(results, now=DONE) == [None, None]
    assert ledger.finish_many([], now=DONE) == []


def test_attempts_end_and_others_begin_in_one_go(ledger):
    frozen(
        ledger, *(entry(f"{c}{i}", line(model=f"m{i}"), customer=f"cus_{c}") for c in "ab" for i in range(2))
    )
    first = ledger.claim(now=DONE, limit=8)
    ended, claims = ledger.finish_and_claim([(c, Outcome("accepted")) for c in first], now=DONE + 1, limit=8)
    assert [t.after for t in ended] == ["ACCEPTED", "ACCEPTED"]
    assert {c.event.customer for c in claims} == {"cus_a", "cus_b"}, "what ended makes room for the next"
    assert not {c.event.identifier for c in claims} & {c.event.identifier for c in first}
    again = ledger.finish_and_claim([(c, Outcome("refused_data")) for c in first], now=DONE + 2, limit=8)
    assert again == ([None, None], []), "an attempt ends once, and those under way go on"
    lost, good = ((c, Outcome(kind)) for c, kind in zip(claims, ("ambiguous", "accepted"), strict=True))
    ended, claims = ledger.finish_and_claim([lost, good], now=DONE + 3, limit=0)
    assert ([t.after for t in ended], claims) == (["AMBIGUOUS", "ACCEPTED"], [])
    _, claims = ledger.finish_and_claim([], now=DONE + 300, limit=8, ambiguous_only=True)
    assert [(c.event, c.attempt) for c in claims] == [(lost[0].event, 2)]


def test_an_attempt_that_is_told_twice_at_once_ends_once(ledger):
    frozen(ledger)
    claim = only(ledger.claim(now=DONE, limit=1))
    told = ledger.finish_many([(claim, Outcome("accepted")), (claim, Outcome("ambiguous"))], now=DONE + 1)
    assert [t and t.after for t in told] == ["ACCEPTED", None]


def test_hundreds_of_attempts_begin_and_end_each_with_its_own_outcome(ledger):
    frozen(ledger, *(entry(f"r{i}", customer=f"cus_{i:04d}") for i in range(700)))
    claims = ledger.claim(now=DONE, limit=690)
    claims += ledger.claim(now=DONE, limit=690)
    assert [c.event.customer for c in claims] == [f"cus_{i:04d}" for i in range(700)]
    outcomes = [
        Outcome("throttled", 429, retry_after_s=i) if i % 3 else Outcome("accepted") for i in range(700)
    ]
    told = ledger.finish_many(list(zip(claims, outcomes, strict=True)), now=DONE + 1)
    assert [t.identifier for t in told] == [c.event.identifier for c in claims]
    assert [t.after for t in told] == ["PENDING" if i % 3 else "ACCEPTED" for i in range(700)]
    assert all(t.next_attempt_at >= DONE + 1 + i for i, t in enumerate(told) if i % 3)
    assert conserved(ledger)


def test_a_lease_that_runs_out_leaves_the_attempt_in_doubt(ledger):
    frozen(ledger)
    ledger.claim(now=DONE, limit=1)
    assert ledger.maintain(now=DONE + 299) == []
    transition = only(ledger.maintain(now=DONE + 300))
    assert (transition.before, transition.after) == ("SENDING", "AMBIGUOUS")
    assert only(ledger.events()).first_ambiguous_at == DONE


def test_a_crash_while_sending_is_told_by_maintain(bench):
    frozen(bench.ledger)
    bench.ledger.claim(now=DONE, limit=1)
    transition = only(bench.crash(now=DONE + 9).maintain(now=DONE + 9))
    assert (transition.before, transition.after, transition.next_attempt_at) == (
        "SENDING",
        "AMBIGUOUS",
        DONE + 9,
    )


def test_twenty_two_hours_after_the_first_doubt_nothing_is_resent(ledger):
    frozen(ledger)
    deliver(ledger, now=DONE, outcome=Outcome("ambiguous"))
    assert len(ledger.claim(now=DONE + 21.9 * HOUR, limit=1)) == 1
    ledger.maintain(now=DONE + 21.9 * HOUR + 301)  # that one crashed
    assert ledger.claim(now=DONE + 22 * HOUR, limit=1) == []
    transition = only(ledger.maintain(now=DONE + 22 * HOUR))
    assert (transition.after, transition.alarm) == ("IN_DOUBT", "delivery.in_doubt")
    assert totals(ledger)["in_doubt"] == 10
    assert ledger.due_at() is None


def test_a_refused_event_expires_after_34_days_without_being_sent_again(ledger):
    frozen(ledger)
    deliver(ledger, now=DONE, outcome=Outcome("not_sent"))
    assert ledger.claim(now=T0 + 34 * DAY, limit=1) == []
    transition = only(ledger.maintain(now=T0 + 34 * DAY))
    assert (transition.after, transition.alarm) == ("DEAD", "delivery.expired")
    assert totals(ledger)["dead"] == 10


def test_an_outage_of_five_days_loses_nothing_and_leaves_no_doubt(ledger):
    frozen(ledger, *[entry(f"r{i}", customer=f"cus_{i}") for i in range(5)])
    now = DONE
    while now < DONE + 5 * DAY:
        deliver(ledger, now=now, outcome=Outcome("not_sent"))
        ledger.maintain(now=now)
        now += 2 * HOUR
    deliver(ledger, now=now)
    assert totals(ledger) == {"recorded": 50, "pending": 0, "accepted": 50, "in_doubt": 0, "dead": 0}
    assert {row.event.timestamp for row in ledger.events()} == {int(T0)}


def test_a_clock_set_back_two_days_does_not_extend_the_22_hours(ledger):
    frozen(ledger)
    deliver(ledger, now=DONE, outcome=Outcome("ambiguous"))
    ledger.maintain(now=DONE + 10 * HOUR)
    back = DONE + 10 * HOUR - 2 * DAY
    ledger.maintain(now=back)
    assert "ledger.clock_went_back" in [alarm.name for alarm in ledger.take_alarms()]
    assert len(ledger.claim(now=back + 11 * HOUR, limit=1)) == 1  # 21 hours in truth, still due
    ledger.maintain(now=back + 11 * HOUR + 301)
    assert ledger.claim(now=back + 12 * HOUR + 5, limit=1) == []
    ledger.maintain(now=back + 12 * HOUR + 5)
    assert totals(ledger)["in_doubt"] == 10


def went_back(ledger) -> list[float]:
    alarms = [alarm for alarm in ledger.take_alarms() if alarm.name == "ledger.clock_went_back"]
    return [alarm.data["by_s"] for alarm in alarms]


def test_a_clock_that_fell_behind_stripes_unseen_makes_no_doubt_younger(ledger):
    frozen(ledger)
    ledger.hear_time(0.0, now=DONE)
    deliver(ledger, now=DONE, outcome=Outcome("ambiguous"))
    at = DONE + 13 * HOUR  # by a clock that lost ten hours where nobody looked
    ledger.maintain(now=at)
    assert not ledger.hear_time(10 * HOUR, now=at)
    assert ledger.claim(now=at, limit=1) == []
    ledger.maintain(now=at)
    assert totals(ledger)["in_doubt"] == 10
    assert went_back(ledger) == [10 * HOUR]


def test_what_fell_behind_once_is_told_once(ledger):
    frozen(ledger)
    deliver(ledger, now=DONE, outcome=Outcome("ambiguous"))
    for minutes in range(3):
        ledger.hear_time(10 * HOUR + minutes, now=DONE + 60 * minutes)
        ledger.maintain(now=DONE + 60 * minutes)
    assert went_back(ledger) == [10 * HOUR]
    assert len(ledger.claim(now=DONE + 11 * HOUR, limit=1)) == 1  # 21 hours old at most


def test_a_step_back_that_was_seen_is_not_told_again_by_stripe(ledger):
    frozen(ledger)
    ledger.hear_time(0.0, now=DONE)
    deliver(ledger, now=DONE, outcome=Outcome("ambiguous"))
    ledger.maintain(now=DONE + HOUR)
    back = DONE + HOUR - 2 * DAY
    ledger.hear_time(2 * DAY, now=back)
    ledger.maintain(now=back + 10)
    assert went_back(ledger) == [pytest.approx(2 * DAY)]
    assert len(ledger.claim(now=back + 20 * HOUR, limit=1)) == 1  # 21 hours in truth


def test_a_clock_that_always_was_behind_ages_doubts_as_time_passes(ledger):
    ledger.hear_time(3 * HOUR, now=T0)
    frozen(ledger)
    deliver(ledger, now=DONE, outcome=Outcome("ambiguous"))
    ledger.hear_time(3 * HOUR, now=DONE + 20 * HOUR)
    assert went_back(ledger) == []
    assert len(ledger.claim(now=DONE + 21 * HOUR, limit=1)) == 1


def test_a_time_of_stripes_that_lies_back_makes_no_doubt_younger(ledger):
    frozen(ledger)
    deliver(ledger, now=DONE, outcome=Outcome("ambiguous"))
    ledger.hear_time(-5 * DAY, now=DONE + HOUR)
    assert ledger.claim(now=DONE + 22 * HOUR, limit=1) == []
    ledger.maintain(now=DONE + 22 * HOUR)
    assert totals(ledger)["in_doubt"] == 10
    assert went_back(ledger) == []


def test_a_clock_that_was_ahead_and_is_put_right_unseen_makes_no_doubt_younger(ledger):
    ledger.hear_time(-9 * HOUR, now=T0)
    frozen(ledger)
    deliver(ledger, now=DONE, outcome=Outcome("ambiguous"))
    at = DONE + 14 * HOUR  # 23 hours in truth
    ledger.maintain(now=at)
    ledger.hear_time(0.0, now=at)
    ledger.maintain(now=at)
    assert totals(ledger)["in_doubt"] == 10
    assert went_back(ledger) == [9 * HOUR]


def test_a_time_of_stripes_far_ahead_leaves_what_is_not_in_doubt_alone_and_says_why(ledger):
    """As from a proxy with a clock of its own."""
    frozen(ledger, entry("a"), entry("b", customer="cus_2"))
    (first, second) = ledger.claim(now=DONE, limit=2)
    ledger.finish(first, Outcome("ambiguous"), now=DONE)
    ledger.finish(second, Outcome("not_sent"), now=DONE)
    ledger.hear_time(400 * DAY, now=DONE + 10)
    ledger.maintain(now=DONE + 10)
    assert totals(ledger) == {"recorded": 20, "pending": 10, "accepted": 0, "in_doubt": 10, "dead": 0}
    (said,) = [alarm for alarm in ledger.take_alarms() if alarm.name == "ledger.clock_went_back"]
    assert "by the time in Stripe's answers" in said.message
    (row,) = ledger.unsettled(before=DONE + 10)
    assert row.attempted_at == pytest.approx(DONE), "the oracle counts from the attempt itself"


def test_a_clock_that_runs_on_raises_no_alarm(ledger):
    for at in (T0, T0 + 1, T0 + 100, T0 + 97, T0 + DAY):
        ledger.maintain(now=at)
    assert ledger.take_alarms() == []


def test_events_that_wait_long_raise_each_alarm_once(ledger):
    frozen(ledger)
    names = []
    for minutes in (10, 29, 31, 40, 61, 62, 23 * 60, 24 * 60, 26 * 24 * 60, 27 * 24 * 60):
        ledger.maintain(now=DONE + minutes * 60)
        names += [alarm.name for alarm in ledger.take_alarms()]
    assert names == [
        "delivery.late_30min",
        "delivery.late_1h",
        "delivery.late_22h",
        "delivery.late_25d",
    ]


def test_a_doubt_that_nobody_may_send_again_soon_is_an_alarm_two_hours_before(ledger):
    """While sending is paused nothing else would tell."""
    frozen(ledger)
    assert ledger.status(now=DONE).doubted_since is None
    (claim,) = ledger.claim(now=DONE, limit=1)
    ledger.finish(claim, Outcome("ambiguous", message="no answer within 10 s"), now=DONE + 10)
    found = ledger.status(now=DONE)
    assert found.doubted_since == pytest.approx(DONE, abs=10)
    assert "no answer within 10 s" in (found.last_trouble or "")
    at = {}
    for minutes in range(0, 24 * 60, 10):
        ledger.maintain(now=DONE + minutes * 60)
        for alarm in ledger.take_alarms():
            assert alarm.name not in at, "once"
            at[alarm.name] = minutes
    assert 20 * 60 <= at["delivery.doubt_near"] <= 20 * 60 + 10
    assert ledger.status(now=DONE + DAY).doubted_since is None
    assert ledger.status(now=DONE + DAY).events == {"IN_DOUBT": 1}


# ---- a person's decisions


def test_unresolved_usage_can_be_assigned_and_is_then_billed(ledger):
    ledger.commit([entry("a", customer=None), entry("b", customer=None), entry("c")], [], now=T0)
    assert ledger.assign("cus_9", ids=["a", "c", "nope"], who="ada", why="ticket 7", now=T0) == 1
    assert freeze(ledger) == 2
    assert {row.event.customer for row in ledger.events()} == {"cus_1", "cus_9"}
    assert ledger.assign("cus_8", who="ada", why="the rest", now=DONE) == 1
    assert ledger.assign("cus_7", who="ada", why="again", now=DONE) == 0
    assert freeze(ledger) == 1
    assert conserved(ledger)
    assert totals(ledger)["recorded"] == 30


def test_held_usage_is_billed_once_released(ledger):
    ledger.commit([entry("a", held="estimated"), entry("b")], [], now=T0)
    assert ledger.hold(["b", "a"], who="ada", why="asked by the customer", now=T0) == 1
    assert freeze(ledger) == 0
    assert ledger.release(["a", "b"], who="ada", why="agreed", now=DONE) == 2
    assert freeze(ledger) == 1
    assert only(ledger.events()).event.value == 20


def test_frozen_usage_can_neither_be_held_nor_moved(ledger):
    frozen(ledger)
    assert ledger.hold(["a"], who="ada", why="late", now=DONE) == 0
    assert ledger.assign("cus_2", ids=["a"], who="ada", why="wrong", now=DONE) == 0
    assert only(ledger.balances()).customer == "cus_1"


# ---- reports and small facts


def test_usage_sums_tell_customers_models_and_kinds_apart(ledger):
    ledger.commit(
        [
            entry("a", usage=Usage(input=5, output=7), model="x"),
            entry("b", usage=Usage(input=1, output=0), model="x"),
            entry("c", usage=Usage(input=2), model="y", customer=None),
        ],
        [],
        now=T0,
    )
    freeze(ledger)
    found = [(s.customer, s.model, dict(s.dimensions)["token_type"], s.value) for s in ledger.usage_sums()]
    assert found == [(None, "y", "input", 2), ("cus_1", "x", "input", 6), ("cus_1", "x", "output", 7)]


def test_status_counts_what_is_there(ledger):
    frozen(ledger, entry("a", used_at=T0 + 7.5), entry("b", customer="cus_2"), entry("c", customer=None))
    deliver(ledger, now=DONE, limit=1)
    status = ledger.status(now=DONE)
    assert (status.usage_records, status.unfrozen_records, status.unresolved_records) == (3, 1, 1)
    assert dict(status.events) == {"ACCEPTED": 1, "PENDING": 1}
    assert status.conserved
    assert status.lanes == 1
    assert status.oldest_pending_at in (int(T0), int(T0) + 7)
    deliver(ledger, now=DONE)
    assert ledger.status(now=DONE).oldest_pending_at is None


def test_events_come_newest_first_and_by_state(ledger):
    frozen(ledger, entry("a"))
    frozen(ledger, entry("b", used_at=T0 + 60), now=DONE + 60)
    assert [row.event.timestamp for row in ledger.events()] == [int(T0) + 60, int(T0)]
    assert len(ledger.events(limit=1)) == 1
    assert ledger.events(states=["DEAD"]) == []
    assert len(ledger.events(states=["DEAD", "PENDING"])) == 2


def test_a_ledger_is_bound_to_one_account_for_good(bench):
    assert bench.ledger.account() is None
    bench.ledger.bind("acct_1 (test)")
    bench.ledger.bind("acct_1 (test)")
    assert bench.ledger.account() == bench.ledger.status(now=T0).account == "acct_1 (test)"
    with pytest.raises(AccountMismatch, match=r"acct_1 \(test\).*acct_1 \(live\)"):
        bench.crash().bind("acct_1 (live)")


def test_small_facts_are_kept(bench):
    assert bench.ledger.meta("paused") is None
    bench.ledger.set_meta("paused", "key refused")
    bench.ledger.set_meta("paused", "key revoked")
    ledger = bench.crash()
    assert ledger.meta("paused") == "key revoked"
    assert ledger.status(now=T0).paused == "key revoked"
    ledger.set_meta("paused", None)
    assert ledger.meta("paused") is None


def test_the_view_shows_the_same_books(ledger):
    frozen(ledger, entry("a"), entry("b", customer=None))
    view = ledger.view()
    assert view.balances() == ledger.balances()
    assert view.usage_sums() == ledger.usage_sums()
    assert view.events() == ledger.events()
    seen, known = view.status(now=DONE), ledger.status(now=DONE)
    # Others write to this disk, too.
    assert replace(seen, disk_free_bytes=None) == replace(known, disk_free_bytes=None)
