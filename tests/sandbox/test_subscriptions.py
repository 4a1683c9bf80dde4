"""Subscriptions: billing modes, first invoices, payment, items."""

from __future__ import annotations

import pytest
import stripe

START = 1_768_478_400
SENT = {"collection_method": "send_invoice", "days_until_due": 30}


def test_a_subscription_is_flexible_unless_classic_is_asked_for(shop):
    assert shop.subscribe(shop.price).billing_mode.type == "flexible"
    classic = shop.subscribe(shop.price, billing_mode={"type": "classic"})
    assert classic.billing_mode.type == "classic"


def test_flexible_makes_no_first_invoice_for_metered_items(shop):
    subscription = shop.subscribe(shop.price)
    assert subscription.status == "active"
    assert subscription.latest_invoice is None
    assert shop.api.invoices.list({"subscription": subscription.id}).data == []


def test_classic_makes_a_paid_first_invoice_of_zero_for_metered_items(shop):
    subscription = shop.subscribe(shop.price, billing_mode={"type": "classic"})
    invoice = shop.api.invoices.retrieve(subscription.latest_invoice)
    assert (invoice.status, invoice.total, invoice.billing_reason) == ("paid", 0, "subscription_create")
    assert [(line.amount, line.quantity) for line in invoice.lines.data] == [(0, 0)]


def test_the_period_is_the_items_not_the_subscriptions(shop):
    subscription = shop.subscribe(shop.price)
    item = subscription["items"].data[0]
    assert (item.current_period_start, item.current_period_end) == (START, START + 31 * 86_400)
    assert "current_period_start" not in subscription.to_dict()


def test_a_metered_item_has_no_quantity_and_a_licensed_one_has_1(shop):
    subscription = shop.subscribe(shop.licence(), shop.price, **SENT)
    licence, usage = subscription["items"].data
    assert licence.quantity == 1
    assert "quantity" not in usage.to_dict()


def test_a_quantity_on_a_metered_item_is_refused(shop, refused):
    items = [{"price": shop.price.id, "quantity": 2}]
    error = refused(shop.api.subscriptions.create, {"customer": shop.customer.id, "items": items})
    assert (error.http_status, error.param) == (400, "items[0][quantity]")


def test_a_licence_bills_per_seat_in_advance(shop):
    licence = shop.licence()
    subscription = shop.api.subscriptions.create(
        {"customer": shop.customer.id, "items": [{"price": licence.id, "quantity": 3}], **SENT}
    )
    invoice = shop.api.invoices.retrieve(subscription.latest_invoice)
    [line] = invoice.lines.data
    assert (line.amount, line.quantity) == (30000, 3)
    assert line.description == "3 × Hypernian License fee (at $100.00 / month)"
    assert (line.period.start, line.period.end) == (START, START + 31 * 86_400)


def test_send_invoice_passes_without_a_payment_method(shop):
    subscription = shop.subscribe(shop.licence(), **SENT)
    assert subscription.status == "active"
    invoice = shop.api.invoices.retrieve(subscription.latest_invoice)
    assert (invoice.status, invoice.amount_due, invoice.due_date) == ("draft", 10000, START + 30 * 86_400)
    assert invoice.automatically_finalizes_at == START + 3600


def test_send_invoice_needs_days_until_due(shop, refused):
    assert refused(shop.subscribe, shop.price, collection_method="send_invoice").param == "days_until_due"


def test_days_until_due_needs_send_invoice(shop, refused):
    assert refused(shop.subscribe, shop.price, days_until_due=3).param == "days_until_due"


def test_default_incomplete_makes_an_open_invoice(shop):
    subscription = shop.subscribe(shop.licence(), payment_behavior="default_incomplete")
    assert subscription.status == "incomplete"
    invoice = shop.api.invoices.retrieve(subscription.latest_invoice)
    assert (invoice.status, invoice.amount_remaining, invoice.attempted) == ("open", 10000, False)


def test_without_a_payment_method_nothing_is_created(shop, refused):
    error = refused(shop.subscribe, shop.licence())
    assert (error.http_status, error.code) == (400, "resource_missing")
    assert shop.api.subscriptions.list({"status": "all"}).data == []
    assert shop.api.invoices.list().data == []


def test_metered_items_alone_need_no_payment_method(shop):
    assert shop.subscribe(shop.price).status == "active"


def paying(shop, method):
    return shop.api.customers.create(
        {"payment_method": method, "invoice_settings": {"default_payment_method": method}}
    )


def test_a_payment_method_pays_the_first_invoice(shop):
    customer = paying(shop, "pm_card_visa")
    subscription = shop.api.subscriptions.create(
        {"customer": customer.id, "items": [{"price": shop.licence().id}], "expand": ["latest_invoice"]}
    )
    invoice = subscription.latest_invoice
    assert (subscription.status, invoice.status) == ("active", "paid")
    assert (invoice.amount_paid, invoice.amount_remaining) == (10000, 0)
    assert invoice.number.endswith("-0001")
    assert invoice.status_transitions.paid_at == START


def test_a_card_that_fails_leaves_the_subscription_incomplete(shop):
    customer = paying(shop, "pm_card_chargeCustomerFail")
    subscription = shop.api.subscriptions.create(
        {"customer": customer.id, "items": [{"price": shop.licence().id}]}
    )
    assert subscription.status == "incomplete"


def test_error_if_incomplete_answers_402(shop, refused):
    customer = paying(shop, "pm_card_chargeCustomerFail")
    error = refused(
        shop.api.subscriptions.create,
        {
            "customer": customer.id,
            "items": [{"price": shop.licence().id}],
            "payment_behavior": "error_if_incomplete",
        },
    )
    assert isinstance(error, stripe.CardError)
    assert error.http_status == 402


def test_a_payment_method_must_be_attached_to_become_the_default(api, refused):
    settings = {"invoice_settings": {"default_payment_method": "pm_card_visa"}}
    assert refused(api.customers.create, settings).code == "resource_missing"


def test_one_price_is_on_a_subscription_only_once(shop, refused):
    assert refused(shop.subscribe, shop.price, shop.price).param == "items[1][price]"


def test_an_inactive_or_one_time_price_cannot_be_subscribed_to(shop, refused):
    shop.api.prices.update(shop.price.id, {"active": False})
    assert "inactive" in refused(shop.subscribe, shop.price).user_message
    once = shop.api.prices.create({"currency": "usd", "unit_amount": 1, "product_data": {"name": "x"}})
    assert "type=one_time" in refused(shop.subscribe, once).user_message


def test_prices_of_two_currencies_do_not_mix(shop, refused):
    euro = shop.metered(currency="eur", unit_amount=1)
    assert refused(shop.subscribe, shop.price, euro).http_status == 400


def test_a_customer_keeps_its_first_currency(shop, refused):
    shop.subscribe(shop.price)
    assert shop.api.customers.retrieve(shop.customer.id).currency == "usd"
    assert "currency usd" in refused(shop.subscribe, shop.metered(currency="eur", unit_amount=1)).user_message


def test_mixed_intervals_are_for_flexible_mode_only(shop, refused):
    yearly = shop.licence(recurring={"interval": "year"})
    refused(shop.subscribe, shop.price, yearly, billing_mode={"type": "classic"}, **SENT)
    subscription = shop.subscribe(shop.price, yearly, **SENT)
    ends = [item.current_period_end for item in subscription["items"].data]
    assert ends == [START + 31 * 86_400, START + 365 * 86_400]


def test_items_are_required(shop, refused):
    assert refused(shop.api.subscriptions.create, {"customer": shop.customer.id}).param == "items"


def test_classic_migrates_to_flexible_and_never_back(shop, refused):
    subscription = shop.subscribe(shop.price, billing_mode={"type": "classic"})
    migrated = shop.api.subscriptions.migrate(subscription.id, {"billing_mode": {"type": "flexible"}})
    assert migrated.billing_mode.type == "flexible"
    error = refused(shop.api.subscriptions.migrate, subscription.id, {"billing_mode": {"type": "classic"}})
    assert error.http_status == 400


def test_a_backdated_flexible_start_bills_each_past_period_by_itself(shop):
    back = 1_760_529_600  # 2025-10-15 12:00 UTC, three months earlier
    shop.use(150, timestamp=START - 20 * 86_400)  # in the third of the past periods
    subscription = shop.subscribe(shop.price, shop.licence(), backdate_start_date=back, **SENT)
    assert subscription.billing_cycle_anchor == subscription.start_date == back
    invoice = shop.api.invoices.retrieve(subscription.latest_invoice)
    by_price = {}
    for line in invoice.lines.data:
        by_price.setdefault(line.pricing.price_details.price, []).append(line.amount)
    assert by_price[shop.price.id] == [0, 0, 8]
    assert [amounts for price, amounts in by_price.items() if price != shop.price.id] == [[10000] * 4]


def test_a_backdated_start_makes_at_most_250_lines(shop, refused):
    daily = shop.licence(recurring={"interval": "day"})
    error = refused(shop.subscribe, daily, backdate_start_date=START - 300 * 86_400, **SENT)
    assert error.param == "backdate_start_date"


@pytest.mark.parametrize(
    ("back", "amount"),
    [
        (START - 8 * 86_400, round(10_000 * 8 / 31)),  # of an imagined month from January 7
        (START - (31 + 8) * 86_400, round(10_000 * (1 + 8 / 31))),  # a whole one from December 7, and 8 days
    ],
    ids=["a part of a month", "more than a month"],
)
def test_a_backdated_classic_start_bills_the_past_in_one_prorated_line(shop, back, amount):
    licence = shop.licence()
    given = {"billing_mode": {"type": "classic"}, "backdate_start_date": back, **SENT}
    subscription = shop.subscribe(licence, **given)
    assert (subscription.start_date, subscription.billing_cycle_anchor) == (back, START)
    [past, coming] = sorted(
        shop.api.invoices.retrieve(subscription.latest_invoice).lines.data, key=lambda one: one.period.start
    )
    assert (past.amount, past.period.start, past.period.end) == (amount, back, START)
    assert past.parent.subscription_item_details.proration
    assert (coming.amount, coming.period.start) == (10_000, START)


def test_usage_since_a_backdated_classic_start_is_on_the_first_periods_invoice(shop):
    shop.use(150, timestamp=START - 20 * 86_400)
    shop.use(1000, timestamp=START - 30 * 86_400)
    given = {"billing_mode": {"type": "classic"}, "backdate_start_date": START - 25 * 86_400}
    subscription = shop.subscribe(shop.price, **given)
    assert shop.api.invoices.retrieve(subscription.latest_invoice).total == 0
    shop.use(250)
    assert shop.preview(subscription).total == 4 * 4


@pytest.mark.parametrize("mode", ["classic", "flexible"])
def test_the_past_of_a_backdated_start_can_be_left_uncharged(shop, mode):
    shop.use(150, timestamp=START - 34 * 86_400)
    back = START - 70 * 86_400
    subscription = shop.subscribe(
        shop.price,
        shop.licence(),
        billing_mode={"type": mode},
        backdate_start_date=back,
        proration_behavior="none",
        **SENT,
    )
    assert subscription.start_date == back
    assert shop.api.invoices.retrieve(subscription.latest_invoice).total == 10_000


def test_a_start_in_the_future_is_no_backdate(shop, refused):
    assert refused(shop.subscribe, shop.price, backdate_start_date=START + 1).http_status == 400


def test_a_cancelled_subscription_has_no_next_invoice(shop, refused):
    subscription = shop.subscribe(shop.price)
    ended = shop.api.subscriptions.cancel(subscription.id)
    assert (ended.status, ended.canceled_at, ended.ended_at) == ("canceled", START, START)
    assert refused(shop.preview, subscription).code == "invoice_upcoming_none"
    assert shop.api.subscriptions.list().data == []
    assert [one.id for one in shop.api.subscriptions.list({"status": "canceled"}).data] == [subscription.id]


def test_cancelling_at_the_period_end_can_be_taken_back(shop):
    subscription = shop.subscribe(shop.price)
    update = shop.api.subscriptions.update
    ending = update(subscription.id, {"cancel_at_period_end": True})
    assert (ending.status, ending.cancel_at) == ("active", START + 31 * 86_400)
    again = update(subscription.id, {"cancel_at_period_end": False})
    assert (again.cancel_at, again.canceled_at) == (None, None)


def test_subscriptions_are_found_by_customer_and_price(shop):
    subscription = shop.subscribe(shop.price)
    other = shop.api.customers.create({})
    listed = shop.api.subscriptions.list
    assert [one.id for one in listed({"customer": shop.customer.id}).data] == [subscription.id]
    assert listed({"customer": other.id}).data == []
    assert [one.id for one in listed({"price": shop.price.id}).data] == [subscription.id]
    assert listed({"price": "price_x"}).data == []


def test_items_are_listed_and_retrieved(shop):
    subscription = shop.subscribe(shop.price)
    [item] = shop.api.subscription_items.list({"subscription": subscription.id}).data
    assert shop.api.subscription_items.retrieve(item.id).price.id == shop.price.id


def test_deleting_a_customer_ends_its_subscriptions(shop):
    subscription = shop.subscribe(shop.price)
    shop.api.customers.delete(shop.customer.id)
    assert shop.api.subscriptions.retrieve(subscription.id).status == "canceled"


def test_a_payment_method_can_be_attached_later_and_then_pays(shop):
    card = shop.api.payment_methods.attach("pm_card_visa", {"customer": shop.customer.id})
    assert (card.id, card.customer) == ("pm_card_visa", shop.customer.id)
    shop.api.customers.update(shop.customer.id, {"invoice_settings": {"default_payment_method": card.id}})
    subscription = shop.subscribe(shop.licence())
    assert shop.api.invoices.retrieve(subscription.latest_invoice).status == "paid"
