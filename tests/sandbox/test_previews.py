"""`create_preview`: what the next invoice looks like, and that nothing of it is stored."""

from __future__ import annotations

from decimal import Decimal

import pytest

START = 1_768_478_400
END = START + 31 * 86_400
SENT = {"collection_method": "send_invoice", "days_until_due": 30}


def test_a_preview_is_not_stored(shop, refused):
    subscription = shop.subscribe(shop.price)
    invoice = shop.preview(subscription)
    assert invoice.id.startswith("upcoming_in_")
    assert shop.api.invoices.list().data == []
    assert refused(shop.api.invoices.retrieve, invoice.id).http_status == 404


def test_a_preview_has_the_shape_of_2025_and_later(shop):
    subscription = shop.subscribe(shop.price, metadata={"plan": "payg"})
    shop.use(3000)
    invoice = shop.preview(subscription)
    assert (invoice.status, invoice.billing_reason, invoice.number) == ("draft", "upcoming", None)
    assert invoice.hosted_invoice_url is None
    assert invoice.parent.subscription_details.subscription == subscription.id
    assert invoice.parent.subscription_details.metadata.to_dict() == {"plan": "payg"}
    assert (invoice.period_start, invoice.period_end) == (START, END)
    shown = invoice.to_dict()
    assert not {"subscription", "tax", "paid", "charge"} & shown.keys()
    [line] = invoice.lines.data
    assert not {"price", "plan"} & line.to_dict().keys()
    assert line.id.startswith("il_tmp_")
    assert line.parent.subscription_item_details.subscription_item == subscription["items"].data[0].id
    assert line.parent.subscription_item_details.proration is False
    assert line.pricing.price_details.to_dict() == {"price": shop.price.id, "product": shop.price.product}


def test_usage_is_for_the_current_period_and_the_licence_for_the_next(shop):
    licence = shop.licence()
    invoice = shop.preview(shop.subscribe(licence, shop.price, **SENT))
    periods = {
        line.pricing.price_details.price: (line.period.start, line.period.end) for line in invoice.lines.data
    }
    assert periods == {shop.price.id: (START, END), licence.id: (END, END + 28 * 86_400)}


def test_only_what_falls_in_the_items_period_is_billed(shop):
    shop.use(100, timestamp=START - 1)
    subscription = shop.subscribe(shop.price)
    shop.use(100, timestamp=START)
    assert shop.preview(subscription).total == 4


def test_usage_of_another_customer_is_not_billed(shop):
    other = shop.api.customers.create({})
    subscription = shop.subscribe(shop.price)
    shop.use(100, customer=other.id)
    assert shop.preview(subscription).total == 0


def test_quantities_are_cut_off_and_kept_exactly_beside(shop):
    subscription = shop.subscribe(shop.metered(unit_amount=4))
    shop.use("10.000000000009")
    [line] = shop.preview(subscription).lines.data
    assert (line.quantity, line.quantity_decimal) == (10, Decimal("10.000000000009"))


@pytest.mark.parametrize(
    ("unit", "used", "cents"),
    [("0.05", 30, 2), ("0.05", 29, 1), ("3.6", 31, 112), ("0.5", 1, 1), ("0.000000000001", 1, 0)],
)
def test_each_line_is_rounded_once_a_half_going_up(shop, unit, used, cents):
    subscription = shop.subscribe(shop.metered(unit_amount_decimal=unit))
    shop.use(used)
    assert shop.preview(subscription).total == cents


def test_lines_are_rounded_before_they_are_added(shop):
    one, two = (shop.metered(unit_amount_decimal="0.5", nickname=name) for name in "ab")
    subscription = shop.subscribe(one, two)
    shop.use(1)
    assert shop.preview(subscription).total == 2


def test_a_negative_total_is_billed_as_nothing(shop):
    subscription = shop.subscribe(shop.metered(unit_amount=4))
    shop.use(5)
    shop.use(-8)
    [line] = shop.preview(subscription).lines.data
    assert (line.quantity, line.amount) == (0, 0)


def test_a_negative_value_corrects_the_total(shop):
    subscription = shop.subscribe(shop.metered(unit_amount=4))
    shop.use(5)
    shop.use(-2)
    assert shop.preview(subscription).total == 12


def test_volume_tiers_price_the_whole_quantity(shop):
    price = shop.metered(
        billing_scheme="tiered",
        tiers_mode="volume",
        tiers=[{"up_to": 5, "unit_amount": 700}, {"up_to": "inf", "unit_amount": 650, "flat_amount": 100}],
    )
    subscription = shop.subscribe(price)
    shop.use(5)
    assert shop.preview(subscription).total == 3500
    shop.use(1)
    assert shop.preview(subscription).total == 6 * 650 + 100


def test_the_customers_balance_changes_what_is_due_never_below_zero(shop):
    subscription = shop.subscribe(shop.price)
    shop.use(3000)
    for balance, due in ((-20, 100), (-500, 0), (30, 150)):
        shop.api.customers.update(shop.customer.id, {"balance": balance})
        invoice = shop.preview(subscription)
        assert (invoice.total, invoice.amount_due, invoice.starting_balance) == (120, due, balance)


def test_by_customer_alone_the_earliest_next_invoice_is_shown(shop, refused):
    preview = shop.api.invoices.create_preview
    assert refused(preview, {"customer": shop.customer.id}).code == "invoice_upcoming_none"
    shop.subscribe(shop.price)
    weekly = shop.licence(recurring={"interval": "week"})
    sooner = shop.subscribe(weekly, **SENT)
    invoice = preview({"customer": shop.customer.id})
    assert invoice.parent.subscription_details.subscription == sooner.id


def test_a_new_subscription_can_be_previewed_before_it_is_made(shop):
    items = [{"price": shop.licence().id, "quantity": 2}, {"price": shop.price.id}]
    invoice = shop.api.invoices.create_preview(
        {"customer": shop.customer.id, "subscription_details": {"items": items}}
    )
    assert [line.amount for line in invoice.lines.data] == [20000]
    classic = shop.api.invoices.create_preview(
        {
            "customer": shop.customer.id,
            "subscription_details": {"items": items, "billing_mode": {"type": "classic"}},
        }
    )
    assert [line.amount for line in classic.lines.data] == [20000, 0]


def test_a_preview_of_nothing_is_refused(api, refused):
    assert refused(api.invoices.create_preview, {}).http_status == 400


def test_another_customers_subscription_is_not_shown(shop, refused):
    subscription = shop.subscribe(shop.price)
    other = shop.api.customers.create({})
    given = {"subscription": subscription.id, "customer": other.id}
    assert refused(shop.api.invoices.create_preview, given).param == "subscription"


def test_package_lines_can_be_switched_to_show_packages(sandbox, shop):
    subscription = shop.subscribe(shop.price)
    shop.use(3001)
    assert [line.quantity for line in shop.preview(subscription).lines.data] == [3001]
    sandbox.set_switches(package_quantity="divided")
    [line] = shop.preview(subscription).lines.data
    assert (line.quantity, line.amount) == (31, 124)


@pytest.mark.parametrize(("flat_lines", "lines"), [("when_set", 4), ("when_not_zero", 3), ("always", 4)])
def test_when_flat_amounts_have_a_line_can_be_switched(sandbox, shop, flat_lines, lines):
    sandbox.set_switches(flat_lines=flat_lines)
    price = shop.metered(
        billing_scheme="tiered",
        tiers_mode="graduated",
        tiers=[
            {"up_to": 10, "unit_amount": 1, "flat_amount": 0},
            {"up_to": "inf", "unit_amount": 1, "flat_amount": 5},
        ],
    )
    subscription = shop.subscribe(price)
    shop.use(11)
    invoice = shop.preview(subscription)
    assert len(invoice.lines.data) == lines
    assert invoice.total == 16


@pytest.mark.parametrize(
    ("currency", "recurring", "description"),
    [
        ("eur", {}, "2 × Plan (at €0.07 / month)"),
        ("jpy", {}, "2 × Plan (at ¥7 / month)"),
        ("chf", {}, "2 × Plan (at CHF 0.07 / month)"),
        ("usd", {"interval_count": 3}, "2 × Plan (at $0.07 / every 3 months)"),
    ],
)
def test_descriptions_are_written_in_the_currency_and_interval(shop, currency, recurring, description):
    price = shop.api.prices.create(
        {
            "currency": currency,
            "unit_amount": 7,
            "recurring": {
                "usage_type": "metered",
                "interval": "month",
                "meter": shop.meter.id,
                **recurring,
            },
            "product_data": {"name": "Plan"},
        }
    )
    subscription = shop.subscribe(price)
    shop.use(2)
    assert [line.description for line in shop.preview(subscription).lines.data] == [description]


def test_a_new_subscription_can_be_previewed_for_somebody_who_is_no_customer_yet(shop):
    given = {"subscription_details": {"items": [{"price": shop.licence().id, "quantity": 3}]}}
    address = {"country": "US", "postal_code": "10001"}
    for details in ({}, {"customer_details": {"address": address}}):
        preview = shop.api.invoices.create_preview({**given, **details})
        assert (preview.total, preview.customer) == (30_000, None)
    assert len(shop.api.customers.list().data) == 1
