"""Products and prices: validation, forms of amounts, lookup keys."""

from __future__ import annotations

from decimal import Decimal

import pytest

TIERS = [{"up_to": 10, "unit_amount": 5}, {"up_to": "inf", "unit_amount": 4}]


@pytest.fixture
def product(api):
    return api.products.create({"name": "P"})


def price(api, product, **given):
    return api.prices.create({"currency": "usd", "product": product.id, **given})


def test_a_product_may_have_an_id_of_its_own(api, refused):
    assert api.products.create({"id": "tokens", "name": "Tokens"}).id == "tokens"
    assert api.products.retrieve("tokens").name == "Tokens"
    assert refused(api.products.create, {"id": "tokens", "name": "Again"}).code == "resource_already_exists"


def test_products_are_updated_listed_and_deleted(api, product, refused):
    changed = api.products.update(product.id, {"name": "Q", "description": "d", "active": False})
    assert (changed.name, changed.description, changed.active) == ("Q", "d", False)
    assert api.products.update(product.id, {"description": ""}).description is None
    other = api.products.create({"name": "R"})
    assert [one.id for one in api.products.list({"active": True}).data] == [other.id]
    assert [one.id for one in api.products.list({"ids": [product.id]}).data] == [product.id]
    assert api.products.delete(product.id).deleted
    assert refused(api.products.retrieve, product.id).http_status == 404


def test_a_product_with_prices_cannot_be_deleted(api, product, refused):
    price(api, product, unit_amount=1)
    assert refused(api.products.delete, product.id).http_status == 400


@pytest.mark.parametrize(
    ("given", "whole", "exact"),
    [
        ({"unit_amount": 4}, 4, "4"),
        ({"unit_amount_decimal": "0.05"}, None, "0.05"),
        ({"unit_amount_decimal": "10000"}, 10000, "10000"),
        ({"unit_amount_decimal": "10000.00"}, 10000, "10000"),
        ({"unit_amount_decimal": "0.000000000001"}, None, "0.000000000001"),
        ({"unit_amount": 0}, 0, "0"),
    ],
)
def test_amounts_are_shown_in_both_forms(api, product, given, whole, exact):
    made = price(api, product, **given)
    assert (made.unit_amount, made.unit_amount_decimal) == (whole, Decimal(exact))


def test_a_price_makes_its_product_in_the_same_call(api):
    made = api.prices.create(
        {"currency": "usd", "unit_amount": 1, "product_data": {"name": "New", "unit_label": "credit"}}
    )
    assert api.products.retrieve(made.product).unit_label == "credit"


def test_no_product_is_left_behind_by_a_price_that_was_refused(api, refused):
    refused(
        api.prices.create,
        {"currency": "usd", "unit_amount": 1, "unit_amount_decimal": "1", "product_data": {"name": "New"}},
    )
    assert api.products.list().data == []


def test_tiers_show_only_when_asked_for(api, product):
    made = price(api, product, billing_scheme="tiered", tiers_mode="volume", tiers=TIERS)
    assert "tiers" not in made.to_dict()
    assert (made.tiers_mode, made.unit_amount, made.unit_amount_decimal) == ("volume", None, None)
    shown = api.prices.retrieve(made.id, {"expand": ["tiers"]})
    assert [(one.up_to, one.unit_amount, one.flat_amount) for one in shown.tiers] == [
        (10, 5, None),
        (None, 4, None),
    ]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "unit_amount"),
        ({"unit_amount": 1, "unit_amount_decimal": "1"}, "unit_amount"),
        ({"unit_amount": -1}, "unit_amount"),
        ({"unit_amount_decimal": "-1"}, "unit_amount_decimal"),
        ({"unit_amount_decimal": "0.0000000000001"}, "unit_amount_decimal"),
        ({"unit_amount_decimal": "1e-05"}, "unit_amount_decimal"),
        ({"unit_amount_decimal": "abc"}, "unit_amount_decimal"),
        ({"unit_amount": "1.5"}, "unit_amount"),
        ({"unit_amount": 1, "tiers": TIERS}, "tiers"),
        ({"unit_amount": 1, "tiers_mode": "volume"}, "tiers_mode"),
        ({"billing_scheme": "tiered", "tiers": TIERS}, "tiers_mode"),
        ({"billing_scheme": "tiered", "tiers_mode": "volume"}, "tiers"),
        (
            {"billing_scheme": "tiered", "tiers_mode": "volume", "tiers": TIERS, "unit_amount": 1},
            "unit_amount",
        ),
        (
            {
                "billing_scheme": "tiered",
                "tiers_mode": "volume",
                "tiers": TIERS,
                "transform_quantity": {"divide_by": 2, "round": "up"},
            },
            "transform_quantity",
        ),
        ({"unit_amount": 1, "transform_quantity": {"divide_by": 0, "round": "up"}}, None),
        ({"unit_amount": 1, "transform_quantity": {"divide_by": 2}}, "transform_quantity[round]"),
        ({"unit_amount": 1, "currency": "xyz"}, "currency"),
        ({"unit_amount": 1, "product_data": {"name": "x"}}, "product"),
        ({"unit_amount": 1, "recurring": {"interval": "month", "usage_type": "metered"}}, "recurring[meter]"),
        (
            {"unit_amount": 1, "recurring": {"interval": "month", "usage_type": "metered", "meter": "mtr_x"}},
            "recurring[meter]",
        ),
        ({"unit_amount": 1, "recurring": {"interval": "month", "meter": "mtr_x"}}, "recurring[meter]"),
        (
            {"unit_amount": 1, "recurring": {"interval": "month", "aggregate_usage": "sum"}},
            "recurring[aggregate_usage]",
        ),
        ({"unit_amount": 1, "recurring": {"interval": "fortnight"}}, "recurring[interval]"),
        (
            {"unit_amount": 1, "recurring": {"interval": "year", "interval_count": 4}},
            "recurring[interval_count]",
        ),
    ],
)
def test_a_price_that_cannot_be_is_refused(api, product, refused, given, param):
    error = refused(price, api, product, **given)
    assert error.http_status == 400
    assert param in (None, error.param)


@pytest.mark.parametrize(
    "tiers",
    [
        [{"up_to": 10, "unit_amount": 1}],
        [{"up_to": "inf", "unit_amount": 1}, {"up_to": "inf", "unit_amount": 1}],
        [
            {"up_to": 10, "unit_amount": 1},
            {"up_to": 10, "unit_amount": 1},
            {"up_to": "inf", "unit_amount": 1},
        ],
        [{"up_to": 10, "unit_amount": 1}, {"up_to": 5, "unit_amount": 1}, {"up_to": "inf", "unit_amount": 1}],
        [{"up_to": 0, "unit_amount": 1}, {"up_to": "inf", "unit_amount": 1}],
        [{"up_to": "inf"}],
        [{"up_to": "inf", "unit_amount": 1, "unit_amount_decimal": "1"}],
        [{"up_to": "inf", "flat_amount": 1, "flat_amount_decimal": "1"}],
        [{"up_to": "inf", "flat_amount": -1}],
        [{"unit_amount": 1}],
    ],
)
def test_tiers_that_make_no_sense_are_refused(api, product, refused, tiers):
    given = {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": tiers}
    assert refused(price, api, product, **given).param.startswith("tiers")


def test_what_a_price_bills_never_changes(api, product, refused):
    made = price(api, product, unit_amount=1)
    for change in ({"unit_amount": 2}, {"currency": "eur"}, {"recurring": {"interval": "month"}}):
        assert refused(api.prices.update, made.id, change).code == "parameter_unknown"
    changed = api.prices.update(made.id, {"active": False, "nickname": "old", "metadata": {"a": "b"}})
    assert (changed.active, changed.nickname, changed.unit_amount) == (False, "old", 1)


def test_the_tax_behaviour_is_set_once(api, product, refused):
    made = price(api, product, unit_amount=1)
    assert api.prices.update(made.id, {"tax_behavior": "exclusive"}).tax_behavior == "exclusive"
    assert refused(api.prices.update, made.id, {"tax_behavior": "inclusive"}).param == "tax_behavior"


def test_prices_are_found_by_lookup_key(api, product):
    first = price(api, product, unit_amount=1, lookup_key="one")
    second = price(api, product, unit_amount=2, lookup_key="two")
    price(api, product, unit_amount=3)
    found = api.prices.list({"lookup_keys": ["one", "two", "three"]}).data
    assert [one.id for one in found] == [second.id, first.id]


def test_a_lookup_key_is_held_by_one_price_and_can_be_transferred(api, product, refused):
    first = price(api, product, unit_amount=1, lookup_key="key")
    assert refused(price, api, product, unit_amount=2, lookup_key="key").param == "lookup_key"
    second = price(api, product, unit_amount=2, lookup_key="key", transfer_lookup_key=True)
    assert api.prices.retrieve(first.id).lookup_key is None
    assert [one.id for one in api.prices.list({"lookup_keys": ["key"]}).data] == [second.id]
    moved = api.prices.update(first.id, {"lookup_key": "key", "transfer_lookup_key": True})
    assert moved.lookup_key == "key"
    assert api.prices.retrieve(second.id).lookup_key is None


def test_prices_are_listed_by_product_currency_activity_and_recurrence(api, product):
    euro = price(api, product, unit_amount=1, currency="eur")
    monthly = price(api, product, unit_amount=1, recurring={"interval": "month"}, active=False)
    listed = api.prices.list
    assert [one.id for one in listed({"currency": "eur"}).data] == [euro.id]
    assert [one.id for one in listed({"active": False}).data] == [monthly.id]
    assert [one.id for one in listed({"recurring": {"interval": "month"}}).data] == [monthly.id]
    assert [one.id for one in listed({"product": product.id, "type": "one_time"}).data] == [euro.id]
