"""The demo's three numbers must not be equal by construction: each way of cheating turns the audit red."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from llm_metering.cli.demo_books import Audit, Kind, Recorded, Sent, Tokens, add, audit

ADA_IN, ADA_OUT = Kind("cus_ada", "gpt-4o", "input"), Kind("cus_ada", "gpt-4o", "output")
BEN_IN, BEN_OUT = Kind("cus_ben", "gpt-4o", "input"), Kind("cus_ben", "gpt-4o", "output")
BEN_CACHED = Kind("cus_ben", "gpt-4o", "cached_input")

A, B, C, D = (
    Sent("a", {ADA_IN: Decimal(10), ADA_OUT: Decimal(7)}),
    Sent("b", {BEN_IN: Decimal(5), BEN_OUT: Decimal(9)}),
    Sent("c", {BEN_IN: Decimal(20), BEN_CACHED: Decimal(100), BEN_OUT: Decimal(50)}),
    Sent("d", {ADA_IN: Decimal(3), ADA_OUT: Decimal(4)}),
)
CUT = Recorded("c", "counted", {BEN_IN: Decimal(120), BEN_OUT: Decimal(12)})


def record(sent: Sent) -> Recorded:
    return Recorded(sent.response_id, "reported", sent.tokens)


LEDGER = [record(A), record(B), CUT]


def books(ledger: list[Recorded] = LEDGER, **changes: Decimal) -> dict[Kind, Decimal]:
    return add(r.tokens for r in ledger)


def judge(
    *,
    ledger: list[Recorded] = LEDGER,
    stripe: Tokens | None = None,
    answered: tuple[str, ...] = ("a", "b"),
) -> Audit:
    """A and B reached their callers, C was cut half way, D was cut before anything was recorded."""
    in_stripe = books(ledger) if stripe is None else stripe
    return audit(sent=[A, B, C, D], answered=answered, cut=2, recorded=ledger, in_stripe=in_stripe)


def test_the_three_numbers_are_equal_where_nothing_is_lost_or_doubled():
    found = judge()
    assert found.is_right
    assert found.problems == []
    assert found.sent == found.in_ledger == found.in_stripe == 31
    assert (found.answered, found.cut, found.cut_recorded) == (2, 2, 1)
    assert (found.cut_billed, found.cut_sent_at_most) == (132, 170)


def test_a_call_missing_in_the_ledger_is_found():
    found = judge(ledger=[record(A), CUT])
    assert not found.is_right
    assert found.sent == 31
    assert found.in_ledger == 17


def test_a_call_twice_in_the_ledger_is_found():
    found = judge(ledger=[*LEDGER, record(A)])
    assert not found.is_right
    assert found.in_ledger == 48
    assert "answer a is in the ledger more than once: 2 times" in found.problems


def test_a_cut_call_twice_in_the_ledger_is_found_though_the_three_numbers_agree():
    found = judge(ledger=[*LEDGER, CUT])
    assert found.sent == found.in_ledger == found.in_stripe
    assert not found.is_right


def test_usage_of_the_wrong_customer_is_found_though_the_three_numbers_agree():
    wrong = Recorded("a", "reported", {BEN_IN: Decimal(10), BEN_OUT: Decimal(7)})
    found = judge(ledger=[wrong, record(B), CUT])
    assert found.sent == found.in_ledger == found.in_stripe
    assert not found.is_right


@pytest.mark.parametrize("kind", [ADA_IN, BEN_OUT])
@pytest.mark.parametrize("change", [-1, 1, 100])
def test_a_meter_event_lost_doubled_or_changed_is_found(kind, change):
    found = judge(stripe={**books(), kind: books()[kind] + change})
    assert not found.is_right
    assert found.in_stripe == 31 + change


def test_a_meter_event_moved_to_another_kind_is_found_though_the_three_numbers_agree():
    moved = books() | {ADA_IN: books()[ADA_IN] - 1, ADA_OUT: books()[ADA_OUT] + 1}
    found = judge(stripe=moved)
    assert found.sent == found.in_ledger == found.in_stripe
    assert not found.is_right


def test_a_cut_call_billed_above_what_the_provider_counts_is_found():
    greedy = replace(CUT, tokens={BEN_IN: Decimal(120), BEN_OUT: Decimal(51)})
    assert not judge(ledger=[record(A), record(B), greedy]).is_right


def test_a_cut_call_that_says_reported_must_hold_the_providers_own_counts():
    assert judge(ledger=[record(A), record(B), record(C)]).is_right
    said = replace(CUT, provenance="reported")
    assert not judge(ledger=[record(A), record(B), said]).is_right


def test_a_record_of_an_answer_that_nobody_sent_is_found():
    ghost = Recorded("ghost", "reported", {ADA_IN: Decimal(1)})
    assert not judge(ledger=[*LEDGER, ghost]).is_right
    assert not judge(ledger=[*LEDGER, replace(ghost, response_id=None)]).is_right


def test_an_answer_that_reached_two_callers_is_found():
    assert not judge(answered=("a", "b", "b")).is_right


def test_an_answer_that_reached_its_caller_and_was_never_sent_is_found():
    assert not judge(answered=("a", "b", "x")).is_right
