"""Payloads written as text are those of the events that are sent, letter by letter."""

from __future__ import annotations

import json

import pytest
from llm_metering.ledger import rows
from llm_metering.ledger.freezing import Draft, Payloads, in_turns, meter_event
from llm_metering.ledger.identifiers import identifiers, new_identifier
from llm_metering.ledger.lines import LineKey, plain


def key(*dimensions: tuple[str, str], event_name: str = "tokens", value_key: str = "value") -> LineKey:
    return LineKey(event_name, dimensions, "stripe_customer_id", value_key, "sum")


@pytest.mark.parametrize(
    "key",
    [
        key(),
        key(("model", "gpt-5"), ("token_type", "input")),
        key(("modèle", 'a "b" \\ c\n'), ("空", "\U0001f600")),
        key(("lone", "\ud800"), ("lone \udc00", "x")),
        key(("value", "999"), ("model", "m")),
        key(("stripe_customer_id", "cus_evil"), ("model", "m")),
        key(("\ud800", "a"), ("\\ud800", "b")),
        key(value_key="stripe_customer_id"),
        key(value_key='va"lue'),
    ],
)
@pytest.mark.parametrize("customer", ["cus_1", 'cus_"é\\'])
def test_a_payloads_text_is_that_of_the_event(key: LineKey, customer: str) -> None:
    payloads = Payloads()
    for value in (1, 10**20):
        draft = Draft(customer, key, value, 1_700_000_000.0)
        text = payloads.json(draft, plain(value))
        event = meter_event(draft, "id", now=1_700_000_001.0)
        assert text == rows.payload_json(event)
        assert list(json.loads(text).items()) == list(event.payload.items())


def test_what_is_sent_together_lies_together() -> None:
    made = [Draft(c, key(event_name=n), i, 1.0) for c in "ab" for n in "xy" for i in range(3)]
    made.append(Draft("c", key(event_name="x"), 0, 1.0))
    ordered = in_turns(made)
    assert sorted(map(id, ordered)) == sorted(map(id, made)), "none is lost, none comes twice"
    assert [d.value for d in ordered] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    first = [(d.customer, d.key.event_name) for d in ordered[:5]]
    assert first == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x")]


def test_identifiers_that_are_made_together_are_in_order_and_no_two_the_same():
    made = [*identifiers(new_identifier, 64), *identifiers(new_identifier, 64)]
    assert len({*made, new_identifier()}) == 129
    assert all(len(each) == 32 and int(each, 16) for each in made)
    assert made[:64] == sorted(made[:64])


def test_identifiers_that_somebody_else_makes_stay_as_they_come():
    names = iter(("c", "a", "b"))
    assert identifiers(lambda: next(names), 3) == ["c", "a", "b"]
