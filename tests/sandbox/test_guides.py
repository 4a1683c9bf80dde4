"""Both pricing guides walked by hand with the official SDK, and the figures that the contract gives."""

from __future__ import annotations

from decimal import Decimal

import pytest

GRADUATED = {
    "billing_scheme": "tiered",
    "tiers_mode": "graduated",
    "tiers": [
        {"up_to": 1000, "unit_amount_decimal": "0", "flat_amount_decimal": "0"},
        {"up_to": "inf", "unit_amount_decimal": "4", "flat_amount_decimal": "0"},
    ],
}


def amounts_by_price(invoice):
    found: dict[str, int] = {}
    for line in invoice.lines.data:
        price = line.pricing.price_details.price
        found[price] = found.get(price, 0) + line.amount
    return found


def flat_fee(shop, **subscription):
    api = shop.api
    usage = api.products.create({"name": "Hypernian Usage", "description": "Usage fees for Hypernian"})
    overage = api.prices.create(
        {
            "product": usage.id,
            "currency": "usd",
            "recurring": {
                "usage_type": "metered",
                "interval": "month",
                "interval_count": 1,
                "meter": shop.meter.id,
            },
            **GRADUATED,
        }
    )
    fee = api.products.create({"name": "Hypernian License fee", "description": "License fee for Hypernian"})
    licence = api.prices.create(
        {
            "product": fee.id,
            "currency": "usd",
            "billing_scheme": "per_unit",
            "unit_amount_decimal": "10000",
            "recurring": {"usage_type": "licensed", "interval": "month", "interval_count": 1},
        }
    )
    given = {"collection_method": "send_invoice", "days_until_due": 30, **subscription}
    return overage, licence, shop.subscribe(licence, overage, **given)


def test_the_pay_as_you_go_guide_ends_at_1_20_usd(shop):
    subscription = shop.subscribe(shop.price)
    shop.use(3000)
    invoice = shop.preview(subscription)
    assert (invoice.subtotal, invoice.total, invoice.amount_due) == (120, 120, 120)
    [line] = invoice.lines.data
    assert (line.amount, line.quantity, line.description) == (
        120,
        3000,
        "3000 × Hypernian tokens (at $0.04 per 100 / month)",
    )
    assert line.pricing.unit_amount_decimal == Decimal(4)


def test_the_flat_fee_guide_ends_at_180_usd(shop):
    overage, licence, subscription = flat_fee(shop)
    shop.use(3000)
    invoice = shop.preview(subscription)
    assert (invoice.subtotal, invoice.total, invoice.amount_due) == (18000, 18000, 18000)
    assert amounts_by_price(invoice) == {overage.id: 8000, licence.id: 10000}


@pytest.mark.parametrize(
    ("used", "cents"), [(0, 0), (1, 4), (25, 4), (100, 4), (101, 8), (3000, 120), (3001, 124)]
)
def test_packages_are_rounded_up(shop, used, cents):
    subscription = shop.subscribe(shop.price)
    if used:
        shop.use(used)
    assert shop.preview(subscription).total == cents


@pytest.mark.parametrize(("used", "cents"), [(0, 0), (1000, 0), (1001, 4), (3000, 8000)])
def test_tokens_above_the_included_ones_cost_4_cents_each(shop, used, cents):
    subscription = shop.subscribe(shop.metered(**GRADUATED))
    if used:
        shop.use(used)
    assert shop.preview(subscription).total == cents


def test_a_graduated_invoice_looks_like_the_real_one_of_gitpod(shop):
    price = shop.metered(
        billing_scheme="tiered",
        tiers_mode="graduated",
        tiers=[
            {"up_to": 1000, "unit_amount": 0, "flat_amount": 900},
            {"up_to": "inf", "unit_amount_decimal": "3.6", "flat_amount": 0},
        ],
        product_data={"name": "Gitpod Usage", "unit_label": "credit"},
    )
    subscription = shop.subscribe(price)
    shop.use(1031)
    invoice = shop.preview(subscription)
    assert [(line.description, line.quantity, line.amount) for line in invoice.lines.data] == [
        ("1000 credit × Gitpod Usage (Tier 1 at $0.00 / month)", 1000, 0),
        ("Gitpod Usage (Tier 1 at $9.00 / month)", 0, 900),
        ("31 credit × Gitpod Usage (Tier 2 at $0.036 / month)", 31, 112),
        ("Gitpod Usage (Tier 2 at $0.00 / month)", 0, 0),
    ]
    assert invoice.total == 1012


def test_a_flat_amount_of_zero_has_a_line_where_one_was_set(shop):
    _, _, subscription = flat_fee(shop)
    shop.use(3000)
    assert len(shop.preview(subscription).lines.data) == 5


def test_flat_amounts_left_out_have_no_line(shop):
    price = shop.metered(
        billing_scheme="tiered",
        tiers_mode="graduated",
        tiers=[{"up_to": 1000, "unit_amount": 0}, {"up_to": "inf", "unit_amount": 4}],
    )
    subscription = shop.subscribe(shop.licence(), price, collection_method="send_invoice", days_until_due=30)
    shop.use(3000)
    assert len(shop.preview(subscription).lines.data) == 3


def test_the_flat_fee_guides_call_fails_without_a_payment_method(shop, refused):
    error = refused(flat_fee, shop, collection_method="charge_automatically", days_until_due=None)
    assert error.http_status == 400
    assert error.code == "resource_missing"
    assert error.user_message == (
        "This customer has no attached payment source or default payment method. Please consider adding a "
        "default payment method."
    )


def test_the_video_hosting_example_of_the_guide_bills_overage_beyond_1000_streams(shop):
    """1 000 streams in a flat fee of 200 USD, billed at the month's end as the first tier's flat amount."""
    price = shop.metered(
        billing_scheme="tiered",
        tiers_mode="graduated",
        tiers=[
            {"up_to": 1000, "unit_amount": 0, "flat_amount": 20000},
            {"up_to": "inf", "unit_amount": 15},
        ],
    )
    subscription = shop.subscribe(price)
    assert shop.preview(subscription).total == 20000
    shop.use(1010)
    assert shop.preview(subscription).total == 20150
