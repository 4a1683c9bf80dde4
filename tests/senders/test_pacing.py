"""Permit, breaker and rate. Pure."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_metering.protocols import Outcome
from llm_metering.senders.pacing import Backoff, Breaker, Permit, Rate

OK = Outcome("accepted", 200)
FAULT = Outcome("ambiguous", 500)
DOWN = Outcome("not_sent")
CLASH = Outcome("not_sent", 409)
BAD = Outcome("refused_data", 400)
SLOW = Outcome("throttled", 429)


def breaker() -> Breaker:
    return Breaker(lambda: 0.5)


# Backoff.


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=50))
def test_waits_stay_between_the_base_and_the_cap(dice: list[float]) -> None:
    rolls = iter(dice)
    backoff = Backoff(lambda: next(rolls), base_s=2.0, cap_s=60.0)
    last = 2.0
    for _ in dice:
        wait = backoff.next_s()
        assert 2.0 <= wait <= min(60.0, last * 3)
        last = wait


def test_waits_grow_while_it_lasts_and_begin_anew_after_a_reset() -> None:
    backoff = Backoff(lambda: 0.99, base_s=1.0, cap_s=60.0)
    waits = [backoff.next_s() for _ in range(8)]
    assert waits == sorted(waits)
    assert waits[-1] > 55
    backoff.reset()
    assert backoff.next_s() < 3


# Breaker.


def test_it_lets_all_through_until_there_is_trouble() -> None:
    b = breaker()
    for outcome in (OK, CLASH, SLOW, CLASH, CLASH, CLASH, Outcome("duplicate", 400)):
        b.note(outcome, now=0)
        assert (b.state, b.room(2, 8)) == ("closed", 6)
    assert b.room(9, 8) == 0


def test_one_ambiguous_outcome_opens_it() -> None:
    b = breaker()
    b.note(FAULT, now=100)
    assert (b.state, b.room(0, 8)) == ("open", 0)
    assert 101 <= b.probe_at <= 103


@pytest.mark.parametrize("refusal", [DOWN, BAD], ids=["unreachable", "bad data"])
def test_three_refusals_in_a_row_open_it(refusal: Outcome) -> None:
    b = breaker()
    for outcome in (refusal, refusal, OK, refusal, refusal):
        b.note(outcome, now=0)
        assert b.state == "closed"
    b.note(refusal, now=0)
    assert b.state == "open"


def test_an_answer_that_says_not_now_is_no_end_of_a_row() -> None:
    b = breaker()
    for outcome in (BAD, SLOW, BAD, CLASH, BAD):
        b.note(outcome, now=0)
    assert b.state == "open"


def test_what_was_under_way_when_it_opened_neither_closes_it_nor_keeps_it_open_longer() -> None:
    b = breaker()
    b.note(FAULT, now=0)
    probe_at = b.probe_at
    for outcome in (OK, FAULT, FAULT, DOWN, BAD, OK):
        b.note(outcome, now=0.5)
    assert (b.state, b.probe_at) == ("open", probe_at)


def test_a_probe_that_fails_waits_for_longer_each_time() -> None:
    b = Breaker(lambda: 0.99)
    b.note(FAULT, now=0)
    waits = []
    for _ in range(6):
        now = b.probe_at
        b.probing()
        assert b.probe_at == math.inf
        b.note(FAULT, now=now)
        waits.append(b.probe_at - now)
    assert waits == pytest.approx(sorted(waits))
    assert waits[0] < 10
    assert 50 < waits[-1] <= 60


@pytest.mark.parametrize(
    "answer", [OK, Outcome("duplicate", 400), SLOW, CLASH, Outcome("refused_config", 401)]
)
def test_an_ambiguous_event_that_gets_an_answer_closes_it(answer: Outcome) -> None:
    b = breaker()
    b.note(FAULT, now=0)
    b.probing()
    b.note(answer, now=5)
    assert (b.state, b.room(0, 8)) == ("closed", 8)


def test_a_get_that_passes_lets_one_event_try() -> None:
    b = breaker()
    b.note(FAULT, now=0)
    b.probing()
    b.on_trial()
    assert (b.room(0, 8), b.room(1, 8), b.room(3, 8)) == (1, 0, 0)
    b.note(OK, now=6)
    assert b.room(0, 8) == 8


@pytest.mark.parametrize("trouble", [FAULT, DOWN, BAD])
def test_on_trial_one_failure_is_enough(trouble: Outcome) -> None:
    b = breaker()
    for _ in range(3):
        b.note(DOWN, now=0)
    b.probing()
    b.on_trial()
    b.note(trouble, now=6)
    assert b.state == "open"
    assert b.probe_at > 6


# Rate.


def test_without_a_refusal_there_is_no_bound() -> None:
    rate = Rate()
    for i in range(10_000):
        rate.started(8, now=i / 1000)
        assert rate.room(i / 1000) is None
        assert rate.wait_s(i / 1000) == 0


def cut(per_s: int) -> Rate:
    """A rate that was refused after two seconds at `per_s`."""
    rate = Rate()
    for i in range(2 * per_s):
        rate.started(1, now=i / per_s)
    rate.throttled(now=2.0, retry_after_s=None)
    return rate


@pytest.mark.parametrize("per_s", [10, 25, 100, 400])
def test_a_refusal_halves_the_rate_that_was(per_s: int) -> None:
    assert cut(per_s).per_s(2.0) == pytest.approx(per_s / 2, rel=0.2)


def test_many_refusals_of_one_moment_count_once() -> None:
    rate = cut(100)
    for _ in range(8):
        rate.throttled(now=2.1, retry_after_s=None)
    assert rate.per_s(2.1) == pytest.approx(50, rel=0.2)
    rate.throttled(now=3.5, retry_after_s=None)
    assert rate.per_s(3.5) == pytest.approx(26, rel=0.1), "half of what it had grown to"


def test_the_rate_recovers_and_the_bound_goes() -> None:
    rate = cut(100)
    rates = [rate.per_s(2.0 + t) for t in range(60)]
    assert rates == sorted(rates)
    assert rates[1] == rates[0]
    assert rates[-1] == math.inf
    assert rate.room(62) is None


@pytest.mark.parametrize("later_s", [600.0, 2 * 3600.0, 3 * 3600.0, 30 * 86400.0, 1e12])
def test_however_long_ago_a_refusal_was_there_is_an_answer(later_s: float) -> None:
    rate = cut(2)
    assert rate.per_s(later_s) == math.inf
    assert rate.room(later_s) is None
    assert rate.wait_s(later_s) == 0


def test_a_rate_never_falls_below_one_a_second() -> None:
    rate = cut(10)
    for t in range(3, 100, 2):
        rate.throttled(now=t, retry_after_s=None)
        assert rate.per_s(t) >= 1


def test_nothing_starts_before_retry_after() -> None:
    rate = Rate()
    rate.throttled(now=10, retry_after_s=30)
    rate.throttled(now=11, retry_after_s=5)
    assert (rate.room(39.9), rate.wait_s(15)) == (0, 25)
    room = rate.room(40.1)
    assert room is not None
    assert room >= 1


@given(st.integers(2, 500), st.floats(0.001, 0.5))
def test_no_more_starts_than_the_bound_allows(per_s: int, step: float) -> None:
    rate = cut(per_s)
    now, started = 2.0, 0
    for _ in range(200):
        now += step
        room = rate.room(now)
        if room is None:
            return
        rate.started(room, now=now)
        started += room
        allowed = rate.per_s(now) * (now - 2.0) + rate.per_s(now) / 4 + 1
        assert started <= allowed


def test_waiting_as_long_as_it_says_is_long_enough() -> None:
    rate = cut(20)
    now = 2.0
    for _ in range(100):
        room = rate.room(now)
        if room is None:
            break
        if not room:
            now += rate.wait_s(now) + 1e-9
            assert rate.room(now), "woken too early"
        rate.started(1, now=now)


# Several processes that send for one account.


def test_a_cut_that_another_was_told_of_holds_here_in_proportion() -> None:
    rate = Rate()
    rate.follow(100, cut_at=10.0, not_before=0.0, share=0.25, now=10.2)
    assert rate.per_s(10.5) == pytest.approx(25)
    assert rate.room(10.2) == 0, "what had been saved up is gone"
    assert rate.per_s(12.0) == pytest.approx(25 * 1.1)
    assert rate.per_s(60.0) == math.inf, "the account's bound is gone, and so is each share of it"


def test_a_refusal_is_told_to_others_as_the_rate_of_all() -> None:
    rate = Rate()
    rate.follow(1000, cut_at=-100.0, not_before=0.0, share=0.25, now=0.0)
    for i in range(50):
        rate.started(1, now=i / 25)
    rate.throttled(now=2.0, retry_after_s=3.0)
    assert rate.unsaid == (pytest.approx(50, rel=0.2), 3.0), "25 a second of ours are 100 of all four"
    assert rate.per_s(2.0) == pytest.approx(12.5, rel=0.2)


def test_the_same_cut_is_followed_once_and_a_later_one_again() -> None:
    rate = cut(100)
    rate.follow(50, cut_at=2.01, not_before=0.0, share=1.0, now=2.1)
    rate.follow(50, cut_at=2.01, not_before=0.0, share=1.0, now=9.0)
    assert rate.per_s(9.0) == pytest.approx(50 * 1.1**6, rel=0.2), "it grows all the while"
    rate.follow(20, cut_at=9.5, not_before=0.0, share=1.0, now=9.6)
    assert rate.per_s(9.6) == 20


def test_nobody_sends_while_one_was_told_to_wait() -> None:
    rate = Rate()
    rate.follow(100, cut_at=10.0, not_before=15.0, share=0.5, now=10.0)
    assert (rate.room(14.0), rate.wait_s(14.0)) == (0, 1.0)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.floats(0.01, 0.3))
def test_however_it_is_shared_all_together_stay_below_the_bound(parts: list[float], step: float) -> None:
    rates = [Rate() for _ in parts]
    for rate, part in zip(rates, parts, strict=True):
        rate.follow(40, cut_at=0.0, not_before=0.0, share=part / sum(parts), now=0.0)
    now, started = 0.0, 0
    while now < 10:
        now += step
        for rate in rates:
            room = rate.room(now)
            assert room is not None
            rate.started(room, now=now)
            started += room
        bound = 40 * 1.1 ** max(0.0, now - 1)
        assert started <= bound * now + bound / 4 + len(parts)


# Permit.


def permit() -> Permit:
    return Permit(lambda: 0.5)


def test_a_key_is_asked_about_before_it_sends() -> None:
    p = permit()
    assert (p.state, p.may_send) == ("unknown", False)
    assert p.check_at == -math.inf
    assert p.confirmed() is False, "there is nothing to resume"
    assert p.may_send


def test_a_refused_key_is_news_once_and_is_asked_about_now_and_then() -> None:
    p = permit()
    assert p.refused("bad key", by_event=False, now=0)
    at = p.check_at
    assert (p.state, p.may_send, p.reason) == ("paused", False, "bad key")
    assert at > 0
    assert not p.refused("still bad", by_event=False, now=at)
    assert p.check_at > at
    assert p.reason == "still bad"
    assert p.confirmed() is True
    assert (p.state, p.reason) == ("good", None)


def test_events_refused_while_paused_do_not_put_the_next_check_off() -> None:
    p = permit()
    p.confirmed()
    assert p.refused("401", by_event=True, now=0)
    at = p.check_at
    for _ in range(7):
        assert not p.refused("401", by_event=True, now=1)
    assert p.check_at == at


def test_after_a_refused_event_one_event_has_to_pass() -> None:
    p = permit()
    p.confirmed()
    p.refused("403", by_event=True, now=0)
    assert p.confirmed() is False
    assert (p.state, p.may_send, p.reason) == ("trial", True, "403")
    assert not p.refused("403", by_event=True, now=10), "the same pause, not a new one"
    assert not p.may_send
    p.confirmed()
    assert p.answered() is True
    assert (p.state, p.reason) == ("good", None)
    assert p.answered() is False


def test_a_question_without_an_answer_is_asked_again_later() -> None:
    p = permit()
    p.undecided(now=100)
    assert p.check_at > 100
    assert not p.may_send
