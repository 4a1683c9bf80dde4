"""A plan is a pure comparison, says what it found, and reads only."""

from __future__ import annotations

from dataclasses import replace

import pytest
from llm_metering.billing import FlatFeeWithOverages, PayAsYouGo, Plan, apply, compare, plan
from llm_metering.billing.account import Account, fetch
from llm_metering.billing.facts import Found, wanted

GUIDE = PayAsYouGo()


def account_of(catalog, **changes) -> Account:
    """An account that matches, except for what `changes` says of the object of a kind."""
    found = {}
    for want in wanted(catalog):
        same = Found(want.kind, want.key, f"{want.kind}_1", True, True, dict(want.fixed), dict(want.editable))
        for name, value in changes.get(want.kind, {}).items():
            known = getattr(same, name)
            same = replace(same, **{name: {**known, **value} if isinstance(known, dict) else value})
        found[want.kind, want.key] = same
    return Account(found)


def action_on(kind: str, made: Plan) -> str:
    return next(change.action for change in made.changes if change.kind == kind)


def test_an_empty_account_wants_everything_created() -> None:
    made = compare(GUIDE, Account())
    assert [(c.action, c.kind) for c in made.changes] == [
        ("create", "meter"),
        ("create", "product"),
        ("create", "price"),
    ]
    assert not made.done
    assert made.summary == "3 to create"


def test_an_account_that_matches_is_done() -> None:
    made = compare(GUIDE, account_of(GUIDE))
    assert made.done
    assert made.counts == {"unchanged": 3}


@pytest.mark.parametrize(
    ("kind", "found", "action"),
    [
        ("meter", {"fixed": {"aggregation": "count"}}, "conflict"),
        ("meter", {"fixed": {"value_key": "tokens"}}, "conflict"),
        ("meter", {"active": False}, "reactivate"),
        ("meter", {"active": False, "fixed": {"aggregation": "last"}}, "conflict"),
        ("meter", {"editable": {"display_name": "Other"}}, "update"),
        ("product", {"active": False}, "reactivate"),
        ("product", {"ours": False}, "adopt"),
        ("product", {"editable": {"name": "Other"}}, "update"),
        ("price", {"fixed": {"currency": "cad"}}, "replace"),
        ("price", {"fixed": {"package_size": 10}}, "replace"),
        ("price", {"fixed": {"meter": "other_tokens"}}, "replace"),
        ("price", {"fixed": {"product": "other"}}, "replace"),
        ("price", {"active": False}, "reactivate"),
        ("price", {"active": False, "fixed": {"interval": "year"}}, "replace"),
        ("price", {"ours": False}, "adopt"),
    ],
)
def test_each_difference_leads_to_its_action(kind, found, action) -> None:
    made = compare(GUIDE, account_of(GUIDE, **{kind: found}))
    assert action_on(kind, made) == action
    assert all(c.action == "unchanged" for c in made.changes if c.kind != kind)


def test_a_count_meter_does_not_care_for_a_value_key() -> None:
    counting = PayAsYouGo(aggregation="count")
    assert compare(counting, account_of(counting, meter={"fixed": {"value_key": "tokens"}})).done


def test_what_the_catalog_leaves_open_is_not_drift() -> None:
    assert compare(GUIDE, account_of(GUIDE, product={"editable": {"description": "by hand"}})).done


def test_the_printed_plan_names_every_object_and_its_drift(client) -> None:
    apply(GUIDE, client)
    client.v1.products.update("hypernian_tokens", {"name": "Renamed"})
    text = str(plan(PayAsYouGo(amount="0.05"), client))
    assert "= unchanged  meter    hypernian_tokens  (mtr_test_" in text
    assert "~ update     product  hypernian_tokens  (hypernian_tokens)" in text
    assert "name: 'Renamed' -> 'Hypernian tokens'" in text
    assert "± replace    price    hypernian_tokens.pay_as_you_go.usd.month  (price_" in text
    assert "amount: 0.04 USD -> 0.05 USD" in text
    assert "(0.04 USD per 100, rounded up; every month; metered by hypernian_tokens) stays for those" in text
    assert text.endswith("1 to update, 1 to replace, 1 unchanged")


def test_a_price_in_another_currency_shows_each_amount_in_its_own() -> None:
    found = account_of(GUIDE, price={"fixed": {"currency": "jpy"}})
    price = next(c for c in compare(PayAsYouGo(amount="0.05"), found).changes if c.kind == "price")
    assert {(d.field, d.found, d.wanted) for d in price.differences} == {
        ("currency", "jpy", "usd"),
        ("amount", "4 JPY", "0.05 USD"),
    }


def test_tiers_are_shown_with_their_spans_and_fees() -> None:
    made = compare(FlatFeeWithOverages(license_billed="with_usage"), Account())
    assert made.changes[-1].summary == (
        "graduated: 1-1000 at 0.00 USD and 100.00 USD flat, 1001+ at 0.04 USD; every month; "
        "metered by hypernian_tokens"
    )


def test_planning_sends_get_requests_only(client, line, objects) -> None:
    before = objects()
    plan(GUIDE | FlatFeeWithOverages(), client)
    assert line.writes == []
    assert len(line.log) > 3
    assert objects() == before


def test_meters_and_prices_are_found_beyond_the_first_page(client) -> None:
    applied = apply(GUIDE, client)
    for number in range(120):
        client.v1.billing.meters.create(
            {
                "display_name": f"Meter {number}",
                "event_name": f"meter_{number}",
                "default_aggregation": {"formula": "sum"},
            }
        )
    account = fetch(GUIDE, client)
    assert account.ids("meter") == applied.meters
    assert compare(GUIDE, account).done


def test_more_than_ten_lookup_keys_are_asked_for_in_several_calls(client, line) -> None:
    many = GUIDE
    for currency in ("eur", "gbp", "cad", "aud", "chf", "sek", "nok", "dkk", "nzd", "pln", "czk", "ron"):
        many = many | PayAsYouGo(currency, name=currency)
    applied = apply(many, client)
    assert len(applied.prices) == 13
    assert plan(many, client).done
    asked = [sent for method, path, sent, *_ in line.log if method == "GET" and path == "/v1/prices"]
    lookups = [sent for sent in asked if "lookup_keys" in sent]
    assert len(lookups) == 6


def test_a_plan_can_be_read_by_a_program(client) -> None:
    document = plan(GUIDE, client).as_dict()
    assert document["counts"] == {"create": 3}
    assert document["changes"][2]["key"] == "hypernian_tokens.pay_as_you_go.usd.month"
