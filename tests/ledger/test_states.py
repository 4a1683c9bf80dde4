"""The fate of a meter event, row by row."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_metering.ledger import states
from llm_metering.ledger.states import DAY_S, HOUR_S, Standing
from llm_metering.protocols import Outcome, OutcomeKind, State

NOW = 1_700_000_000.0
KINDS = get_args(OutcomeKind)
ALL_STATES = get_args(State)


def half() -> float:
    return 0.5


def sending(*, attempts=1, ambiguous_h=None, took_s=2.0, age_s=60.0, **more):
    """An event whose attempt began `took_s` ago, with an older doubt of `ambiguous_h` hours."""
    first = None if ambiguous_h is None else NOW - ambiguous_h * HOUR_S
    return Standing(
        state="SENDING",
        timestamp=NOW - age_s,
        attempts=attempts,
        attempt_started_at=NOW - took_s,
        first_ambiguous_at=first,
        **more,
    )


# outcome: (first attempt, later attempt, later attempt with a doubt of 1 h, with a doubt of 23 h)
TABLE: dict[OutcomeKind, tuple[State, State, State, State]] = {
    "accepted": ("ACCEPTED", "ACCEPTED", "ACCEPTED", "ACCEPTED"),
    "duplicate": ("IN_DOUBT", "ACCEPTED", "ACCEPTED", "ACCEPTED"),
    "not_sent": ("PENDING", "PENDING", "AMBIGUOUS", "IN_DOUBT"),
    "throttled": ("PENDING", "PENDING", "AMBIGUOUS", "IN_DOUBT"),
    "refused_config": ("PENDING", "PENDING", "AMBIGUOUS", "IN_DOUBT"),
    "refused_data": ("DEAD", "DEAD", "IN_DOUBT", "IN_DOUBT"),
    "ambiguous": ("AMBIGUOUS", "AMBIGUOUS", "AMBIGUOUS", "IN_DOUBT"),
}
PASTS = ((1, None), (2, None), (2, 1), (2, 23))
ALARMS: dict[tuple[OutcomeKind, State], str] = {
    ("duplicate", "IN_DOUBT"): "delivery.duplicate_on_first_attempt",
    ("refused_config", "PENDING"): "delivery.paused",
    ("refused_config", "AMBIGUOUS"): "delivery.paused",
    ("refused_data", "DEAD"): "delivery.dead",
    ("refused_data", "IN_DOUBT"): "delivery.in_doubt",
    ("ambiguous", "IN_DOUBT"): "delivery.in_doubt",
    ("not_sent", "IN_DOUBT"): "delivery.in_doubt",
    ("throttled", "IN_DOUBT"): "delivery.in_doubt",
    ("refused_config", "IN_DOUBT"): "delivery.in_doubt",
}


def test_the_table_names_every_outcome():
    assert set(TABLE) == set(KINDS)


@pytest.mark.parametrize(("kind", "past"), list(product(KINDS, range(len(PASTS)))))
def test_every_outcome_leads_where_the_design_says(kind, past):
    attempts, ambiguous_h = PASTS[past]
    step = states.ended(
        sending(attempts=attempts, ambiguous_h=ambiguous_h), Outcome(kind), now=NOW, random=half
    )
    expected = TABLE[kind][past]
    assert step.standing.state == expected
    assert step.alarm == ALARMS.get((kind, expected))
    waits = expected in ("PENDING", "AMBIGUOUS")
    assert (step.standing.next_attempt_at is not None) == waits
    assert step.standing.attempts == attempts


@pytest.mark.parametrize("state", [s for s in ALL_STATES if s != "SENDING"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_an_event_that_is_being_sent_has_an_attempt_to_end(state, kind):
    with pytest.raises(ValueError, match=state):
        states.ended(Standing(state, NOW), Outcome(kind), now=NOW, random=half)


@pytest.mark.parametrize("state", states.RESTING)
def test_nothing_but_a_person_moves_an_event_at_rest(state):
    standing = Standing(state, NOW - 90 * DAY_S, 3, NOW, NOW - 40 * DAY_S, None)
    assert states.aged(standing, now=NOW) is None
    assert not states.may_send(standing, now=NOW)


def test_doubt_counts_from_the_start_of_the_first_ambiguous_attempt():
    step = states.ended(sending(took_s=90), Outcome("ambiguous"), now=NOW, random=half)
    assert step.standing.first_ambiguous_at == NOW - 90


def test_a_later_doubt_does_not_move_the_first():
    before = sending(attempts=4, ambiguous_h=3)
    step = states.ended(before, Outcome("ambiguous"), now=NOW, random=half)
    assert step.standing.first_ambiguous_at == before.first_ambiguous_at


@pytest.mark.parametrize("kind", ["not_sent", "throttled", "refused_config"])
def test_a_surely_not_starts_no_doubt(kind):
    step = states.ended(sending(), Outcome(kind), now=NOW, random=half)
    assert step.standing.first_ambiguous_at is None


def test_a_definite_answer_is_honoured_after_22_hours():
    for kind in ("accepted", "duplicate"):
        step = states.ended(sending(attempts=2, ambiguous_h=40), Outcome(kind), now=NOW, random=half)
        assert step.standing.state == "ACCEPTED"


@pytest.mark.parametrize(("age_h", "expected"), [(21.99, None), (22, "IN_DOUBT"), (48, "IN_DOUBT")])
def test_ambiguous_becomes_in_doubt_at_22_hours(age_h, expected):
    standing = Standing("AMBIGUOUS", NOW - DAY_S, 1, NOW, NOW - age_h * HOUR_S, NOW)
    step = states.aged(standing, now=NOW)
    assert (step.standing.state if step else None) == expected
    assert states.may_send(standing, now=NOW) == (expected is None)
    if step:
        assert step.alarm == "delivery.in_doubt"
        assert step.standing.next_attempt_at is None


@pytest.mark.parametrize(("age_d", "expected"), [(33.99, None), (34, "DEAD"), (36, "DEAD")])
def test_pending_expires_at_34_days(age_d, expected):
    standing = Standing("PENDING", NOW - age_d * DAY_S, next_attempt_at=NOW)
    step = states.aged(standing, now=NOW)
    assert (step.standing.state if step else None) == expected
    assert states.may_send(standing, now=NOW) == (expected is None)
    if step:
        assert step.alarm == "delivery.expired"
        assert "expired" in (step.standing.reason or "")


def test_an_old_pending_event_that_was_refused_for_now_expires_at_once():
    step = states.ended(sending(age_s=35 * DAY_S), Outcome("not_sent"), now=NOW, random=half)
    assert (step.standing.state, step.alarm) == ("DEAD", "delivery.expired")


def test_a_crash_is_a_doubt_from_the_attempts_start_and_is_due_at_once():
    step = states.crashed(sending(took_s=500), now=NOW)
    assert step.standing.state == "AMBIGUOUS"
    assert step.standing.first_ambiguous_at == NOW - 500
    assert step.standing.next_attempt_at == NOW


def test_a_crash_found_a_day_later_is_in_doubt():
    step = states.crashed(sending(took_s=DAY_S), now=NOW)
    assert (step.standing.state, step.alarm) == ("IN_DOUBT", "delivery.in_doubt")


def test_retry_after_is_waited_for_but_not_for_ever():
    def due(after):
        outcome = Outcome("throttled", 429, retry_after_s=after)
        return states.ended(sending(), outcome, now=NOW, random=half).standing.next_attempt_at - NOW

    assert due(120.0) == 120
    assert due(0.0) == pytest.approx(2.0)  # jitter's own wait: halfway from 1 to 3
    assert due(10 * DAY_S) == HOUR_S


def test_an_event_is_due_when_its_time_has_come():
    standing = Standing("PENDING", NOW, next_attempt_at=NOW + 10)
    assert not states.may_send(standing, now=NOW + 9.9)
    assert states.may_send(standing, now=NOW + 10)


def test_a_due_time_from_a_clock_that_ran_ahead_does_not_hold_an_event_back():
    assert states.may_send(Standing("PENDING", NOW, next_attempt_at=NOW + 2 * DAY_S), now=NOW)


def test_an_attempt_is_counted_before_it_is_made():
    begun = states.started(Standing("PENDING", NOW, 4, next_attempt_at=NOW), now=NOW)
    assert (begun.state, begun.attempts, begun.attempt_started_at, begun.next_attempt_at) == (
        "SENDING",
        5,
        NOW,
        None,
    )


def test_a_clock_that_went_back_makes_no_doubt_younger():
    standing = Standing("AMBIGUOUS", NOW, 1, NOW - 20 * HOUR_S, NOW - 20 * HOUR_S, NOW + 60)
    moved = states.clock_set_back(standing, by_s=10 * HOUR_S)
    later = NOW - 10 * HOUR_S + 2 * HOUR_S  # the wall clock shows this two real hours later
    assert states.aged(moved, now=later - 1) is None
    assert states.aged(moved, now=later) is not None


@pytest.mark.parametrize(
    ("waited_s", "age_s", "expected"),
    [
        (0, 0, 0),
        (1799, 1799, 0),
        (1800, 1800, 1),
        (3600, 3600, 2),
        (22 * HOUR_S, 22 * HOUR_S, 3),
        (0, 25 * DAY_S, 1),
        (25 * DAY_S, 25 * DAY_S, 4),
        (10, 10 * DAY_S, 0),
    ],
)
def test_lateness_alarms_by_age(waited_s, age_s, expected):
    found = states.lateness(waiting_since=NOW - waited_s, oldest_use=NOW - age_s, now=NOW)
    assert found == expected
    assert states.lateness(waiting_since=None, oldest_use=None, now=NOW) == 0


def test_reasons_are_one_line_and_say_what_happened():
    outcome = Outcome("refused_data", 400, message="No such\ncustomer: cus_1\r\n")
    step = states.ended(sending(), outcome, now=NOW, random=half)
    assert step.standing.reason == "refused_data 400: No such customer: cus_1"


@given(st.floats(0, 1000), st.floats(0, 1, exclude_max=True))
def test_backoff_stays_between_its_base_and_its_cap(previous, die):
    wait = states.backoff(previous, lambda: die)
    assert states.BACKOFF_BASE_S <= wait <= min(states.BACKOFF_CAP_S, max(previous * 3, 1.0))


def test_backoff_grows_to_its_cap():
    wait = 1.0
    for _ in range(12):
        wait = states.backoff(wait, lambda: 1.0)
    assert wait == states.BACKOFF_CAP_S


@given(st.data())
def test_a_life_of_any_outcomes_never_resends_a_doubt_past_22_hours_nor_forgets_one(data):
    """Whatever happens: a doubt is never cleared by a refusal, DEAD means surely not delivered, and no
    attempt begins 22 hours after the first ambiguous one."""
    now = NOW
    standing = Standing("PENDING", NOW, next_attempt_at=NOW)
    perhaps_since: float | None = None
    for _ in range(data.draw(st.integers(1, 30))):
        now += data.draw(st.floats(0, 3 * DAY_S))
        if states.may_send(standing, now=now):
            assert perhaps_since is None or now - perhaps_since < states.HORIZON_S
            standing = states.started(standing, now=now)
            began = now
            now += data.draw(st.floats(0, HOUR_S))
            kind = data.draw(st.sampled_from(KINDS))
            standing = states.ended(standing, Outcome(kind), now=now, random=half).standing
            if kind == "ambiguous" and perhaps_since is None:
                perhaps_since = began
        elif step := states.aged(standing, now=now):
            standing = step.standing
        if perhaps_since is not None:
            assert standing.state in ("AMBIGUOUS", "IN_DOUBT", "ACCEPTED")
        elif standing.state in ("PENDING", "DEAD"):
            assert standing.first_ambiguous_at is None
        assert (standing.next_attempt_at is not None) == (standing.state in ("PENDING", "AMBIGUOUS"))


@pytest.mark.parametrize("state", ALL_STATES)
def test_only_what_was_accepted_is_settled_or_refuted_by_what_stripe_shows(state):
    standing = Standing(state, NOW, attempts=2, attempt_started_at=NOW, first_ambiguous_at=NOW, reason="r")
    seen, refused = states.summed_up(standing), states.refuted(standing, why="no such customer")
    if state != "ACCEPTED":
        assert seen is None
        assert refused is None
        return
    assert seen is not None
    assert (seen.standing, seen.alarm) == (replace(standing, state="SETTLED"), None)
    assert refused is not None
    assert (refused.standing.state, refused.alarm) == ("DEAD", "delivery.dead")
    assert "no such customer" in str(refused.standing.reason)
