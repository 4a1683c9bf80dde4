"""Amounts that are billed once, with a subscription or by hand."""

from __future__ import annotations

import pytest

START = 1_768_478_400


def put(shop, **given):
    return shop.api.invoice_items.create({"customer": shop.customer.id, "currency": "usd", **given})


def test_an_invoice_takes_what_waits_when_it_is_asked_to(shop):
    put(shop, amount=700, description="Workshop")
    empty = shop.api.invoices.create({"customer": shop.customer.id})
    assert (empty.total, empty.billing_reason, empty.auto_advance) == (0, "manual", False)
    full = shop.api.invoices.create(
        {"customer": shop.customer.id, "pending_invoice_items_behavior": "include"}
    )
    assert (full.total, full.lines.data[0].description) == (700, "Workshop")
    assert shop.api.invoice_items.list({"customer": shop.customer.id, "pending": True}).data == []


def test_items_are_put_on_a_draft_and_it_is_paid(shop, refused):
    given = {"customer": shop.customer.id, "collection_method": "send_invoice", "days_until_due": 7}
    invoice = shop.api.invoices.create(given)
    put(shop, amount=700, invoice=invoice.id)
    put(shop, amount=-200, invoice=invoice.id)
    assert shop.api.invoices.retrieve(invoice.id).total == 500
    final = shop.api.invoices.finalize_invoice(invoice.id)
    assert (final.status, final.amount_due) == ("open", 500)
    assert refused(put, shop, amount=1, invoice=invoice.id).http_status == 400
    assert shop.api.invoices.pay(invoice.id, {"paid_out_of_band": True}).status == "paid"


def test_auto_advance_finalises_after_the_grace_period(shop, clock):
    put(shop, amount=700)
    given = {"customer": shop.customer.id, "auto_advance": True, "pending_invoice_items_behavior": "include"}
    invoice = shop.api.invoices.create(given)
    clock.time = START + 3_600
    assert shop.api.invoices.retrieve(invoice.id).status == "open"


def test_a_discount_of_the_invoice_itself(shop):
    put(shop, amount=700)
    coupon = shop.api.coupons.create({"percent_off": 10, "duration": "once"})
    invoice = shop.api.invoices.create(
        {
            "customer": shop.customer.id,
            "discounts": [{"coupon": coupon.id}],
            "pending_invoice_items_behavior": "include",
        }
    )
    assert (invoice.total, shop.api.invoices.finalize_invoice(invoice.id).total) == (630, 630)


@pytest.mark.parametrize(
    ("given", "amount", "quantity"),
    [
        ({"amount": -250}, -250, "1"),
        ({"unit_amount_decimal": "0.5", "quantity": 5}, 3, "5"),
        ({"unit_amount_decimal": "33", "quantity_decimal": "1.5"}, 50, "1.5"),
    ],
    ids=["amount", "unit", "decimal"],
)
def test_an_item_is_an_amount_or_a_quantity_of_units(shop, given, amount, quantity):
    item = put(shop, **given)
    assert (item.amount, str(item.quantity_decimal)) == (amount, quantity)


def test_an_item_is_a_quantity_of_a_price_for_once(shop, refused):
    price = shop.api.prices.create(
        {"currency": "usd", "unit_amount": 250, "product_data": {"name": "Workshop"}}
    )
    item = put(shop, pricing={"price": price.id}, quantity=3)
    assert (item.amount, item.pricing.price_details.price) == (750, price.id)
    data = {"currency": "usd", "product": price.product, "unit_amount": 99}
    assert put(shop, price_data=data, quantity=2).amount == 198
    assert "one_time" in str(refused(put, shop, pricing={"price": shop.price.id}))
    assert refused(put, shop).param == "amount"
    assert refused(put, shop, amount=1, quantity=2).param == "quantity"
    euros = shop.api.prices.create({"currency": "eur", "unit_amount": 1, "product": price.product})
    assert "eur" in str(refused(put, shop, pricing={"price": euros.id}))


def test_an_item_can_change_until_it_is_on_an_invoice(shop, refused):
    item = put(shop, amount=700)
    changed = shop.api.invoice_items.update(
        item.id, {"amount": 800, "description": "More", "metadata": {"a": "b"}}
    )
    assert (changed.amount, changed.description) == (800, "More")
    given = {"customer": shop.customer.id, "pending_invoice_items_behavior": "include"}
    assert shop.api.invoices.create(given).total == 800
    assert refused(shop.api.invoice_items.update, item.id, {"amount": 1}).http_status == 400


def test_a_preview_tries_items_without_keeping_them(shop):
    subscription = shop.subscribe(shop.price)
    shop.use(3000)
    given = {"subscription": subscription.id, "invoice_items": [{"amount": 500, "currency": "usd"}]}
    assert shop.api.invoices.create_preview(given).total == 620
    assert shop.preview(subscription).total == 120
    assert shop.api.invoice_items.list().data == []
