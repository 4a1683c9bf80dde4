"""Coupons, and what they take off: rounded once, shared among lines, before credits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_metering.sandbox.discounts import shared

START = 1_768_478_400
MONTH = 31 * 86_400


def discounted(shop, coupon, *prices, **given):
    return shop.subscribe(*prices, discounts=[{"coupon": coupon.id}], **given)


def test_a_percentage_is_taken_off_usage(shop):
    coupon = shop.api.coupons.create({"percent_off": 25, "duration": "forever", "name": "Friends"})
    subscription = discounted(shop, coupon, shop.price)
    shop.use(3000)
    preview = shop.preview(subscription)
    assert (preview.subtotal, preview.total, preview.amount_due) == (120, 90, 90)
    [taken] = preview.total_discount_amounts
    assert (taken.amount, taken.discount) == (30, subscription.discounts[0])
    assert [one.amount for one in preview.lines.data[0].discount_amounts] == [30]


def test_an_amount_is_taken_off_at_most_as_far_as_there_is_something(shop):
    coupon = shop.api.coupons.create({"amount_off": 100, "currency": "usd", "duration": "forever"})
    subscription = discounted(shop, coupon, shop.price)
    assert shop.preview(subscription).total == 0
    shop.use(1000)
    assert (shop.preview(subscription).subtotal, shop.preview(subscription).total) == (40, 0)
    shop.use(2000)
    assert shop.preview(subscription).total == 20


def test_a_discount_is_rounded_once_and_shared_among_the_lines(shop):
    odd = [shop.licence(unit_amount_decimal=str(cents)) for cents in (333, 333, 333)]
    coupon = shop.api.coupons.create({"percent_off": 50, "duration": "forever"})
    preview = shop.api.invoices.create_preview(
        {
            "customer": shop.customer.id,
            "subscription_details": {"items": [{"price": one.id} for one in odd]},
            "discounts": [{"coupon": coupon.id}],
        }
    )
    assert preview.total_discount_amounts[0].amount == 500  # 499.5, a half going up
    assert sum(line.discount_amounts[0].amount for line in preview.lines.data) == 500
    assert preview.total == 499


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8), st.data())
def test_shares_add_up_and_none_is_more_than_its_line(weights, data):
    total = data.draw(st.integers(0, sum(weights)))
    parts = shared(total, weights)
    assert sum(parts) == total
    assert all(0 <= part <= weight for part, weight in zip(parts, weights, strict=True))


def test_one_discount_takes_its_part_of_what_another_left(shop):
    half = shop.api.coupons.create({"percent_off": 50, "duration": "forever"})
    fixed = shop.api.coupons.create({"amount_off": 20, "currency": "usd", "duration": "forever"})
    subscription = shop.subscribe(shop.price, discounts=[{"coupon": half.id}, {"coupon": fixed.id}])
    shop.use(3000)
    preview = shop.preview(subscription)
    assert [one.amount for one in preview.total_discount_amounts] == [60, 20]
    assert preview.total == 40


def test_once_counts_on_the_first_invoice_with_something_on_it(shop, clock):
    coupon = shop.api.coupons.create({"percent_off": 50, "duration": "once"})
    subscription = discounted(shop, coupon, shop.price, collection_method="send_invoice", days_until_due=7)
    clock.time = START + MONTH + 3_600
    shop.use(1000)
    clock.time = START + 2 * MONTH + 3_600
    shop.use(1000)
    clock.time = START + 3 * MONTH + 7_200
    invoices = shop.api.invoices.list({"customer": shop.customer.id}).data
    assert [(one.subtotal, one.total) for one in reversed(invoices)] == [(0, 0), (40, 20), (40, 40)]
    assert shop.api.subscriptions.retrieve(subscription.id).discounts == []


def test_repeating_counts_on_the_invoices_of_its_months(shop, clock):
    given = {"percent_off": 50, "duration": "repeating", "duration_in_months": 2}
    coupon = shop.api.coupons.create(given)
    discounted(shop, coupon, shop.price, collection_method="send_invoice", days_until_due=7)
    for month in (0, 1, 2):
        clock.time = START + month * MONTH + 86_400
        shop.use(1000)
    clock.time = START + 4 * MONTH
    totals = [one.total for one in shop.api.invoices.list({"customer": shop.customer.id}).data]
    assert totals[::-1] == [20, 40, 40, 0]  # two months are over when the second invoice is made


def test_a_coupon_of_some_products_leaves_the_others_alone(shop):
    licence = shop.licence()
    coupon = shop.api.coupons.create(
        {"percent_off": 100, "duration": "forever", "applies_to": {"products": [shop.price.product]}}
    )
    subscription = discounted(
        shop, coupon, shop.price, licence, collection_method="send_invoice", days_until_due=7
    )
    shop.use(3000)
    assert shop.preview(subscription).total == 10_000


def test_discounts_come_before_credits(shop):
    shop.api.billing.credit_grants.create(
        {
            "customer": shop.customer.id,
            "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 70}},
            "applicability_config": {"scope": {"price_type": "metered"}},
        }
    )
    coupon = shop.api.coupons.create({"percent_off": 50, "duration": "forever"})
    subscription = discounted(shop, coupon, shop.price)
    shop.use(3000)
    preview = shop.preview(subscription)
    assert preview.total_discount_amounts[0].amount == 60
    assert sum(one.amount for one in preview.total_pretax_credit_amounts) == 60
    assert preview.total == 0


def test_a_discount_can_be_taken_away_and_replaced(shop):
    coupon = shop.api.coupons.create({"percent_off": 50, "duration": "forever"})
    other = shop.api.coupons.create({"percent_off": 10, "duration": "forever"})
    subscription = discounted(shop, coupon, shop.price)
    shop.use(3000)
    given = {"discounts": [{"coupon": other.id}], "expand": ["discounts.source.coupon"]}
    changed = shop.api.subscriptions.update(subscription.id, given)
    assert changed.discounts[0].source.coupon.percent_off == 10
    assert shop.preview(subscription).total == 108
    shop.api.subscriptions.delete_discount(subscription.id)
    assert shop.preview(subscription).total == 120
    assert shop.api.subscriptions.retrieve(subscription.id).discounts == []


def test_a_preview_tries_a_discount_without_giving_it(shop):
    coupon = shop.api.coupons.create({"percent_off": 50, "duration": "once", "max_redemptions": 1})
    subscription = shop.subscribe(shop.price)
    shop.use(3000)
    for _ in range(2):
        given = {"subscription": subscription.id, "discounts": [{"coupon": coupon.id}]}
        assert shop.api.invoices.create_preview(given).total == 60
    assert shop.preview(subscription).total == 120
    assert shop.api.coupons.retrieve(coupon.id).times_redeemed == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "exactly one of percent_off and amount_off"),
        ({"percent_off": 10, "amount_off": 5, "currency": "usd"}, "exactly one"),
        ({"percent_off": 101}, "at most 100"),
        ({"amount_off": 5}, "currency"),
        ({"percent_off": 10, "duration": "repeating"}, "duration_in_months"),
        ({"percent_off": 10, "duration": "forever", "duration_in_months": 3}, "duration_in_months"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "+".join(value) or "nothing",
)
def test_a_coupon_that_cannot_be_is_refused(api, refused, given, said):
    error = refused(api.coupons.create, {"duration": "once", **given})
    assert error.http_status == 400
    assert said in str(error)


def test_a_coupon_is_redeemed_as_often_as_it_may_be_and_not_after_its_time(shop, refused, clock):
    coupon = shop.api.coupons.create({"id": "WELCOME", "percent_off": 10, "max_redemptions": 1})
    discounted(shop, coupon, shop.price)
    error = refused(discounted, shop, coupon, shop.price)
    assert (error.code, error.http_status) == ("coupon_expired", 400)
    assert not shop.api.coupons.retrieve("WELCOME").valid
    short = shop.api.coupons.create({"percent_off": 10, "redeem_by": START + 60})
    clock.time = START + 61
    assert refused(discounted, shop, short, shop.price).code == "coupon_expired"
    assert (
        refused(shop.api.coupons.create, {"id": "WELCOME", "percent_off": 5}).code
        == "resource_already_exists"
    )
    euros = shop.api.coupons.create({"amount_off": 10, "currency": "eur"})
    assert "eur" in str(refused(discounted, shop, euros, shop.price))


def test_a_deleted_coupon_gives_no_new_discounts_and_takes_none_away(shop, refused):
    coupon = shop.api.coupons.create({"percent_off": 50, "duration": "forever"})
    subscription = discounted(shop, coupon, shop.price)
    shop.api.coupons.update(coupon.id, {"name": "Old", "metadata": {"a": "b"}})
    assert shop.api.coupons.list().data[0].name == "Old"
    assert shop.api.coupons.delete(coupon.id).deleted
    assert refused(shop.api.coupons.retrieve, coupon.id).http_status == 404
    assert refused(discounted, shop, coupon, shop.price).code == "resource_missing"
    shop.use(3000)
    assert shop.preview(subscription).total == 60
