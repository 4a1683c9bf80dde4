"""The sender for tests keeps the books that Stripe would."""

from __future__ import annotations

from decimal import Decimal

from llm_metering.protocols import Outcome
from llm_metering.senders.memory import MemorySender
from llm_metering.usage import MeterEvent


def event(identifier: str) -> MeterEvent:
    return MeterEvent(identifier, "m", "cus_1", Decimal(3), 1, {"stripe_customer_id": "cus_1", "value": "3"})


def kinds(sender: MemorySender, *identifiers: str) -> list[str]:
    return [o.kind for o in sender.send([event(i) for i in identifiers])]


def test_an_event_is_accepted_once_and_a_duplicate_after_that() -> None:
    sender = MemorySender()
    assert kinds(sender, "a", "b", "a") == ["accepted", "accepted", "duplicate"]
    assert [e.identifier for e in sender.accepted] == ["a", "b"]
    assert [e.identifier for e in sender.attempts] == ["a", "b", "a"]


def test_a_script_says_what_comes_and_then_otherwise_holds() -> None:
    sender = MemorySender(["throttled", Outcome("refused_data", 400, message="No such customer")])
    assert kinds(sender, "a", "b") == ["throttled", "refused_data"]
    assert sender.accepted == []
    sender.otherwise = "not_sent"
    assert kinds(sender, "a") == ["not_sent"]
    sender.otherwise = "accepted"
    assert kinds(sender, "a") == ["accepted"]


def test_a_lost_answer_enters_the_books_once() -> None:
    sender = MemorySender([MemorySender.LOST, MemorySender.LOST])
    assert kinds(sender, "a", "a", "a") == ["ambiguous", "ambiguous", "duplicate"]
    assert len(sender.accepted) == 1


def test_an_answer_may_depend_on_the_event() -> None:
    sender = MemorySender(otherwise=lambda e: "refused_data" if e.identifier == "bad" else "accepted")
    assert kinds(sender, "a", "bad", "b") == ["accepted", "refused_data", "accepted"]


def test_check_names_the_account_unless_told_otherwise() -> None:
    sender = MemorySender(account="acct_9 (test)")
    sender.check_script = ["refused_config"]
    assert sender.check().kind == "refused_config"
    assert sender.check() == Outcome("accepted", 200, message="acct_9 (test)")
    sender.check_otherwise = Outcome("ambiguous", 503)
    assert sender.check().status == 503
    assert sender.checks == 3
    assert sender.key_hint != MemorySender().key_hint
