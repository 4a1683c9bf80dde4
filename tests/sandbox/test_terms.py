"""Anchors, ends, pauses and prices that come along: the terms that a subscription is given."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

START = 1_768_478_400
DAY = 86_400
MONTH = 31 * DAY
SENT = {"collection_method": "send_invoice", "days_until_due": 7}


def invoices(shop):
    return list(reversed(shop.api.invoices.list({"customer": shop.customer.id}).data))


def noon(month, day, year=2026):
    return int(datetime(year, month, day, 12, tzinfo=timezone.utc).timestamp())


def test_an_anchor_makes_a_first_period_that_is_what_is_left(shop, clock):
    first = noon(2, 1)
    subscription = shop.subscribe(shop.licence(), shop.price, billing_cycle_anchor=first, **SENT)
    assert (subscription.billing_cycle_anchor, subscription.start_date) == (first, START)
    assert {(i.current_period_start, i.current_period_end) for i in subscription["items"].data} == {
        (START, first)
    }
    assert [one.total for one in invoices(shop)] == [5_484]  # 17 of 31 days of 100.00
    shop.use(3000)
    clock.time = first
    assert [one.total for one in invoices(shop)] == [5_484, 10_120]
    item = shop.api.subscriptions.retrieve(subscription.id)["items"].data[0]
    assert (item.current_period_start, item.current_period_end) == (first, noon(3, 1))


def test_without_prorations_the_time_until_the_anchor_is_free_and_usage_is_not(shop, clock):
    terms = {"billing_cycle_anchor": noon(2, 1), "proration_behavior": "none", **SENT}
    shop.subscribe(shop.licence(), shop.price, **terms)
    assert invoices(shop) == []
    shop.use(3000)
    clock.time = noon(2, 1)
    assert [one.total for one in invoices(shop)] == [10_120]


@pytest.mark.parametrize(
    ("config", "anchor"),
    [
        ({"day_of_month": 1}, noon(2, 1)),
        ({"day_of_month": 15}, START),
        ({"day_of_month": 15, "hour": 11}, noon(2, 15) - 3_600),
        ({"day_of_month": 31, "hour": 0, "minute": 0, "second": 0}, noon(1, 31) - 43_200),
        ({"day_of_month": 29, "month": 2}, noon(2, 29, 2028)),
    ],
    ids=str,
)
def test_an_anchor_can_be_named_by_its_day(shop, config, anchor):
    subscription = shop.subscribe(shop.price, billing_cycle_anchor_config=config)
    assert subscription.billing_cycle_anchor == anchor


def test_periods_keep_to_a_day_that_short_months_do_not_have(shop, clock):
    config = {"day_of_month": 31, "hour": 12, "minute": 0, "second": 0}
    subscription = shop.subscribe(shop.price, billing_cycle_anchor_config=config)
    ends = []
    for _ in range(4):
        item = shop.api.subscriptions.retrieve(subscription.id)["items"].data[0]
        ends.append(item.current_period_end)
        clock.time = ends[-1]
    assert ends == [noon(1, 31), noon(2, 28), noon(3, 31), noon(4, 30)]


def test_an_anchor_is_not_later_than_the_next_billing_date(shop, refused):
    for at in (START - 1, noon(2, 16)):
        error = refused(shop.subscribe, shop.price, billing_cycle_anchor=at)
        assert error.param == "billing_cycle_anchor"
    error = refused(shop.subscribe, shop.price, billing_cycle_anchor_config={"day_of_month": 31, "month": 2})
    assert "no such day" in str(error)


def test_a_subscription_ends_at_a_named_time_with_what_was_used(shop, clock):
    at = START + 10 * DAY
    subscription = shop.subscribe(shop.price, cancel_at=at, **SENT)
    assert (subscription.cancel_at, subscription.cancel_at_period_end) == (at, False)
    shop.use(3000)
    assert (shop.preview(subscription).created, shop.preview(subscription).total) == (at, 120)
    clock.time = at
    assert shop.api.subscriptions.retrieve(subscription.id).status == "canceled"
    shop.use(5000)
    clock.time = START + 2 * MONTH
    assert [one.total for one in invoices(shop)] == [120]


def test_the_end_can_be_named_by_its_period_and_taken_back(shop):
    yearly = shop.licence(recurring={"interval": "year"}, product_data={"name": "Yearly"})
    subscription = shop.subscribe(yearly, shop.price, **SENT)
    update = shop.api.subscriptions.update
    earliest = {"cancel_at": "min_period_end", "proration_behavior": "none"}
    assert update(subscription.id, earliest).cancel_at == noon(2, 15)
    assert update(subscription.id, {"cancel_at": "max_period_end"}).cancel_at == noon(1, 15, 2027)
    assert update(subscription.id, {"cancel_at": ""}).cancel_at is None
    assert update(subscription.id, {"cancel_at_period_end": True}).cancel_at_period_end
    taken_back = update(subscription.id, {"cancel_at_period_end": False})
    assert (taken_back.cancel_at, taken_back.canceled_at) == (None, None)


def test_a_licence_that_would_be_given_back_in_part_is_not_played(shop, refused):
    terms = {"cancel_at": START + DAY, **SENT}
    licence = shop.licence()
    assert refused(shop.subscribe, licence, **terms).code == "sandbox_not_played"
    assert shop.subscribe(licence, proration_behavior="none", **terms).cancel_at == START + DAY


@pytest.mark.parametrize("behavior", ["void", "mark_uncollectible", "keep_as_draft"])
def test_invoices_of_a_paused_subscription_are_not_collected(shop, clock, behavior):
    subscription = shop.subscribe(shop.price, **SENT)
    paused = {"pause_collection": {"behavior": behavior}}
    assert shop.api.subscriptions.update(subscription.id, paused).pause_collection.behavior == behavior
    shop.use(3000)
    clock.time = START + MONTH + 7_200
    [invoice] = invoices(shop)
    status = {"void": "void", "mark_uncollectible": "uncollectible", "keep_as_draft": "draft"}[behavior]
    assert (invoice.status, invoice.total, invoice.auto_advance) == (status, 120, False)
    assert shop.api.subscriptions.retrieve(subscription.id).status == "active"
    resumed = shop.api.subscriptions.update(subscription.id, {"pause_collection": ""})
    assert resumed.pause_collection is None
    clock.time = START + 2 * MONTH + 7_200
    assert [one.status for one in invoices(shop)] == [status, "paid"]


def test_a_pause_ends_by_itself(shop, clock):
    subscription = shop.subscribe(shop.price, **SENT)
    pause = {"behavior": "void", "resumes_at": START + 20 * DAY}
    shop.api.subscriptions.update(subscription.id, {"pause_collection": pause})
    shop.use(3000)
    clock.time = START + 20 * DAY
    assert shop.api.subscriptions.retrieve(subscription.id).pause_collection is None
    clock.time = START + MONTH + 7_200
    assert [one.status for one in invoices(shop)] == ["open"]


def test_credits_that_a_voided_invoice_took_come_back(shop, clock):
    grant = shop.api.billing.credit_grants.create(
        {
            "customer": shop.customer.id,
            "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 100}},
            "applicability_config": {"scope": {"price_type": "metered"}},
        }
    )
    subscription = shop.subscribe(shop.price)
    shop.api.subscriptions.update(subscription.id, {"pause_collection": {"behavior": "void"}})
    shop.use(3000)
    clock.time = START + MONTH + 7_200
    assert [one.status for one in invoices(shop)] == ["void"]
    asked = {"type": "credit_grant", "credit_grant": grant.id}
    given = {"customer": shop.customer.id, "filter": asked}
    [balance] = shop.api.billing.credit_balance_summary.retrieve(given).balances
    assert balance.available_balance.monetary.value == 100


def test_a_price_can_come_along_with_its_item(shop, refused):
    product = shop.api.products.create({"name": "Support"})
    data = {"currency": "usd", "product": product.id, "unit_amount": 500, "recurring": {"interval": "month"}}
    given = {"customer": shop.customer.id, "items": [{"price_data": data, "quantity": 2}], **SENT}
    subscription = shop.api.subscriptions.create(given)
    [item] = subscription["items"].data
    assert (item.price.unit_amount, item.price.active, item.quantity) == (500, False, 2)
    assert invoices(shop)[0].total == 1_000
    more = shop.api.subscription_items.update(item.id, {"quantity": 4})
    assert more.quantity == 4
    both = {"price": shop.price.id, "price_data": data}
    error = refused(shop.api.subscriptions.create, {"customer": shop.customer.id, "items": [both]})
    assert error.http_status == 400
    nothing = {name: value for name, value in data.items() if name != "unit_amount"}
    error = refused(
        shop.api.subscriptions.create, {"customer": shop.customer.id, "items": [{"price_data": nothing}]}
    )
    assert error.param == "items[0][price_data][unit_amount]"


def test_an_item_keeps_a_price_that_was_archived_and_its_quantity_can_change(shop):
    licence = shop.licence()
    subscription = shop.subscribe(licence, **SENT)
    shop.api.prices.update(licence.id, {"active": False})
    [item] = subscription["items"].data
    assert shop.api.subscription_items.update(item.id, {"quantity": 2}).quantity == 2


def test_a_setup_fee_is_on_the_first_invoice_only(shop, clock):
    product = shop.api.products.create({"name": "Setup"})
    data = {"currency": "usd", "product": product.id, "unit_amount": 2_500}
    shop.subscribe(shop.price, add_invoice_items=[{"price_data": data}], **SENT)
    assert [one.total for one in invoices(shop)] == [2_500]
    clock.time = START + MONTH
    assert [one.total for one in invoices(shop)] == [2_500, 0]


@pytest.mark.parametrize(
    "call",
    [
        ("post", "/v1/subscriptions/sub_x/pause"),
        ("post", "/v1/subscription_schedules"),
        ("post", "/v1/promotion_codes"),
        ("post", "/v1/checkout/sessions"),
        ("post", "/v1/refunds"),
        ("get", "/v1/billing/analytics/meter_usage"),
        ("post", "/v2/billing/rate_cards"),
    ],
    ids=lambda call: call[1],
)
def test_calls_that_are_not_played_say_so(sandbox, call):
    import httpx

    method, path = call
    key = {"Authorization": f"Bearer {sandbox.api_key}"}
    answer = httpx.request(method, sandbox.url + path, headers=key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "sandbox_not_played")
    assert httpx.get(sandbox.url + "/v1/nothing", headers=key).status_code == 404
