"""Changes in mid-period: prices, quantities, items added and removed, invoice items."""

from __future__ import annotations

import pytest

DAY = 86_400
START = 1_768_478_400
END = START + 31 * DAY
SENT = {"collection_method": "send_invoice", "days_until_due": 30}


def item_of(subscription, n=0):
    return subscription["items"].data[n].id


def change(shop, subscription, *items, **given):
    return shop.api.subscriptions.update(subscription.id, {"items": list(items), **given})


@pytest.mark.parametrize(("mode", "total"), [("flexible", 10 * 1 + 5 * 100), ("classic", 5 * 100)])
def test_a_price_change_bills_each_event_at_its_price_or_only_from_then_on(shop, clock, mode, total):
    cheap, dear = shop.metered(unit_amount=1), shop.metered(unit_amount=100)
    subscription = shop.subscribe(cheap, billing_mode={"type": mode})
    shop.use(10)
    clock.time += 10 * DAY
    change(shop, subscription, {"id": item_of(subscription), "price": dear.id})
    shop.use(5)
    assert shop.preview(subscription).total == total
    clock.time = END + 2 * 3600
    assert shop.api.invoices.list({"subscription": subscription.id}).data[0].total == total


def test_after_a_price_change_the_next_period_bills_the_new_price_alone(shop, clock):
    subscription = shop.subscribe(shop.metered(unit_amount=1))
    change(shop, subscription, {"id": item_of(subscription), "price": shop.metered(unit_amount=100).id})
    clock.time = END + 2 * 3600
    shop.use(3)
    invoice = shop.preview(subscription)
    assert [line.amount for line in invoice.lines.data] == [300]


def test_a_late_event_is_billed_at_the_price_of_its_own_time(shop, clock):
    subscription = shop.subscribe(shop.metered(unit_amount=1))
    clock.time += 10 * DAY
    change(shop, subscription, {"id": item_of(subscription), "price": shop.metered(unit_amount=100).id})
    shop.use(7, timestamp=START + DAY)
    assert shop.preview(subscription).total == 7


@pytest.mark.parametrize(
    ("mode", "behavior", "billed"),
    [
        ("flexible", "create_prorations", [700]),
        ("flexible", "none", []),
        ("classic", "create_prorations", []),
    ],
)
def test_removing_a_metered_item_bills_its_usage_in_flexible_mode(shop, clock, mode, behavior, billed):
    gone, stays = shop.metered(unit_amount=100), shop.metered(unit_amount=0)
    subscription = shop.subscribe(gone, stays, billing_mode={"type": mode})
    shop.use(7)
    change(
        shop,
        subscription,
        {"id": item_of(subscription), "deleted": True},
        proration_behavior=behavior,
    )
    pending = shop.api.invoice_items.list({"customer": shop.customer.id, "pending": True}).data
    assert [item.amount for item in pending] == billed
    assert shop.preview(subscription).total == sum(billed)
    clock.time = END + 2 * 3600
    invoice = shop.api.invoices.list({"subscription": subscription.id}).data[0]
    assert invoice.total == sum(billed)
    assert shop.api.invoice_items.list({"customer": shop.customer.id, "pending": True}).data == []


def test_more_seats_in_mid_period_are_prorated(shop, clock):
    subscription = shop.subscribe(shop.licence(), **SENT)
    clock.time = START + 31 * DAY // 2
    change(shop, subscription, {"id": item_of(subscription), "quantity": 3})
    pending = shop.api.invoice_items.list({"customer": shop.customer.id}).data[::-1]
    assert [(one.amount, one.proration) for one in pending] == [(-5000, True), (15000, True)]
    invoice = shop.preview(subscription)
    assert invoice.total == -5000 + 15000 + 30000
    kinds = [line.parent.subscription_item_details.proration for line in invoice.lines.data]
    assert kinds == [False, True, True]
    assert pending[0].description == "Unused time on Hypernian License fee after 31 Jan 2026"


def test_without_prorations_more_seats_cost_from_the_next_period_on(shop, clock):
    subscription = shop.subscribe(shop.licence(), **SENT)
    clock.time += 10 * DAY
    change(shop, subscription, {"id": item_of(subscription), "quantity": 3}, proration_behavior="none")
    assert shop.preview(subscription).total == 30000


def test_prorations_can_be_invoiced_at_once(shop, clock):
    subscription = shop.subscribe(shop.licence(), **SENT)
    clock.time = START + 31 * DAY // 2
    change(
        shop,
        subscription,
        {"id": item_of(subscription), "quantity": 2},
        proration_behavior="always_invoice",
    )
    invoice = shop.api.invoices.list({"subscription": subscription.id}).data[0]
    assert (invoice.status, invoice.billing_reason, invoice.total) == ("open", "subscription_update", 5000)
    assert shop.preview(subscription).total == 20000


def test_what_a_change_costs_at_once_can_be_previewed(shop, clock):
    subscription = shop.subscribe(shop.licence(), **SENT)
    clock.time = START + 31 * DAY // 2
    details = {
        "items": [{"id": item_of(subscription), "quantity": 2}],
        "proration_behavior": "always_invoice",
    }
    preview = shop.api.invoices.create_preview(
        {"subscription": subscription.id, "subscription_details": details}
    )
    assert (preview.created, preview.total) == (int(clock.time), 5000)
    assert shop.preview(subscription).total == 10000


def test_a_recurring_preview_leaves_out_what_is_billed_once(shop, clock):
    subscription = shop.subscribe(shop.licence(), **SENT)
    clock.time = START + 31 * DAY // 2
    change(shop, subscription, {"id": item_of(subscription), "quantity": 2})
    given = {"subscription": subscription.id, "preview_mode": "recurring"}
    assert shop.preview(subscription).total == 25000
    assert shop.api.invoices.create_preview(given).total == 20000


@pytest.mark.parametrize(
    ("behavior", "status"), [("allow_incomplete", "past_due"), ("default_incomplete", "active")]
)
def test_a_change_that_cannot_be_paid_is_made_and_owed(shop, clock, refused, behavior, status):
    card = {"invoice_settings": {"default_payment_method": "pm_card_visa"}}
    customer = shop.api.customers.create({"name": "Jane", "payment_method": "pm_card_visa", **card})
    licence = shop.licence()
    subscription = shop.api.subscriptions.create({"customer": customer.id, "items": [{"price": licence.id}]})
    shop.api.subscriptions.update(subscription.id, {"default_payment_method": "pm_card_chargeCustomerFail"})
    clock.time += DAY
    more = {"id": item_of(subscription), "quantity": 2}
    error = refused(
        change,
        shop,
        subscription,
        more,
        proration_behavior="always_invoice",
        payment_behavior="error_if_incomplete",
    )
    assert error.http_status == 402
    assert shop.api.subscription_items.retrieve(more["id"]).quantity == 1
    error = refused(change, shop, subscription, more, payment_behavior="pending_if_incomplete")
    assert error.code == "sandbox_not_played"
    changed = change(shop, subscription, more, proration_behavior="always_invoice", payment_behavior=behavior)
    assert (changed.status, changed["items"].data[0].quantity) == (status, 2)
    assert shop.api.invoices.retrieve(changed.latest_invoice).status == "open"


def test_prorations_of_a_change_and_its_undoing_cancel_out(shop, clock):
    subscription = shop.subscribe(shop.licence(), **SENT)
    clock.time += 12_345
    for quantity in (7, 1):
        change(shop, subscription, {"id": item_of(subscription), "quantity": quantity})
    pending = shop.api.invoice_items.list({"customer": shop.customer.id}).data
    assert sum(item.amount for item in pending) == 0


def test_an_item_added_in_mid_period_joins_the_others(shop, clock):
    subscription = shop.subscribe(shop.price)
    shop.use(100)
    clock.time += 10 * DAY
    price = shop.metered(unit_amount=1)
    made = shop.api.subscription_items.create({"subscription": subscription.id, "price": price.id})
    assert (made.current_period_start, made.current_period_end) == (START + 10 * DAY, END)
    shop.use(5)
    by_price = {
        line.pricing.price_details.price: line.amount for line in shop.preview(subscription).lines.data
    }
    assert by_price == {shop.price.id: 8, price.id: 5}


def test_a_licence_added_in_mid_period_is_prorated(shop, clock):
    subscription = shop.subscribe(shop.price, **SENT)
    clock.time = START + 31 * DAY // 2
    change(shop, subscription, {"price": shop.licence().id})
    [item] = shop.api.invoice_items.list({"customer": shop.customer.id}).data
    assert item.amount == 5000


def test_items_are_changed_and_deleted_by_themselves(shop, clock):
    subscription = shop.subscribe(shop.licence(), shop.price, **SENT)
    licence = item_of(subscription)
    changed = shop.api.subscription_items.update(licence, {"quantity": 4, "metadata": {"a": "b"}})
    assert (changed.quantity, changed.metadata.to_dict()) == (4, {"a": "b"})
    assert shop.api.subscription_items.delete(licence).deleted
    assert len(shop.api.subscriptions.retrieve(subscription.id)["items"].data) == 1


def test_the_last_item_cannot_be_removed(shop, refused):
    subscription = shop.subscribe(shop.price)
    error = refused(change, shop, subscription, {"id": item_of(subscription), "deleted": True})
    assert error.http_status == 400
    assert len(shop.api.subscriptions.retrieve(subscription.id)["items"].data) == 1


def test_a_change_that_fails_changes_nothing(shop, refused):
    subscription = shop.subscribe(shop.licence(), **SENT)
    refused(change, shop, subscription, {"id": item_of(subscription), "quantity": 5}, {"price": "price_x"})
    assert shop.api.subscriptions.retrieve(subscription.id)["items"].data[0].quantity == 1
    assert shop.api.invoice_items.list().data == []


def test_another_subscriptions_item_cannot_be_changed(shop, refused):
    one, two = shop.subscribe(shop.price), shop.subscribe(shop.metered(unit_amount=1))
    assert refused(change, shop, one, {"id": item_of(two), "deleted": True}).http_status == 400


def test_changes_the_sandbox_does_not_play_are_refused(shop, refused):
    subscription = shop.subscribe(shop.licence(), **SENT)
    yearly = shop.licence(recurring={"interval": "year"})
    for price in (yearly, shop.price):
        error = refused(change, shop, subscription, {"id": item_of(subscription), "price": price.id})
        assert error.code == "sandbox_not_played"


def test_a_change_can_be_previewed_without_happening(shop, clock):
    subscription = shop.subscribe(shop.licence(), **SENT)
    clock.time = START + 31 * DAY // 2
    invoice = shop.api.invoices.create_preview(
        {
            "subscription": subscription.id,
            "subscription_details": {"items": [{"id": item_of(subscription), "quantity": 2}]},
        }
    )
    assert invoice.total == -5000 + 10000 + 20000
    assert shop.api.invoice_items.list().data == []
    assert shop.preview(subscription).total == 10000


def test_an_invoice_item_waits_for_the_next_invoice(shop, clock, refused):
    subscription = shop.subscribe(shop.price)
    item = shop.api.invoice_items.create(
        {"customer": shop.customer.id, "amount": 250, "currency": "usd", "description": "Set-up"}
    )
    invoice = shop.preview(subscription)
    assert invoice.total == 250
    assert invoice.lines.data[-1].parent.invoice_item_details.invoice_item == item.id
    clock.time = END + 2 * 3600
    [made] = shop.api.invoices.list({"subscription": subscription.id}).data
    assert made.total == 250
    assert shop.api.invoice_items.retrieve(item.id).invoice == made.id
    assert refused(shop.api.invoice_items.delete, item.id).http_status == 400
    assert shop.preview(subscription).total == 0


def test_a_pending_invoice_item_makes_a_first_invoice_in_flexible_mode(shop):
    shop.api.invoice_items.create({"customer": shop.customer.id, "amount": -100, "currency": "usd"})
    subscription = shop.subscribe(shop.price)
    invoice = shop.api.invoices.retrieve(subscription.latest_invoice)
    assert (invoice.total, invoice.amount_due, invoice.status) == (-100, 0, "paid")
    assert shop.api.customers.retrieve(shop.customer.id).balance == -100


def test_an_invoice_item_can_be_deleted_while_it_waits(shop):
    item = shop.api.invoice_items.create({"customer": shop.customer.id, "amount": 1, "currency": "usd"})
    assert shop.api.invoice_items.delete(item.id).deleted
    assert shop.api.invoice_items.list().data == []


def test_long_invoices_show_10_lines_and_list_the_rest(shop, clock):
    back = START - 20 * DAY
    daily = shop.licence(recurring={"interval": "day"})
    subscription = shop.subscribe(daily, backdate_start_date=back, **SENT)
    invoice = shop.api.invoices.retrieve(subscription.latest_invoice)
    assert (len(invoice.lines.data), invoice.lines.has_more, invoice.lines.total_count) == (10, True, 21)
    lines = list(shop.api.invoices.line_items.list(invoice.id, {"limit": 7}).auto_paging_iter())
    assert sum(line.amount for line in lines) == invoice.total == 210_000
