"""Both guides from the first call to the invoice, and every figure of contract.md 1.2."""

from __future__ import annotations

from decimal import Decimal
from urllib.parse import parse_qs

import pytest
from llm_metering.billing import (
    Catalog,
    FlatFeeWithOverages,
    Item,
    MeterSpec,
    Offer,
    PayAsYouGo,
    PriceSpec,
    ProductSpec,
    Tier,
    apply,
    create_customer,
    preview_invoice,
    send_test_event,
    subscribe,
)
from llm_metering.errors import BillingError, ConfigurationError


def preview_of(client, catalog, usage, **arguments):
    """One customer's way through a guide."""
    customer = create_customer(client)
    subscription = subscribe(client, customer, apply(catalog, client), **arguments)
    if usage:
        send_test_event(client, customer, usage)
    return preview_invoice(client, subscription=subscription.id)


@pytest.mark.parametrize(
    ("usage", "cents"), [(3000, 120), (0, 0), (1, 4), (25, 4), (100, 4), (101, 8), (3001, 124)]
)
def test_pay_as_you_go_previews_the_guides_amounts(client, usage, cents) -> None:
    invoice = preview_of(client, PayAsYouGo(), usage)
    want = Decimal(cents).scaleb(-2)
    assert (invoice.subtotal, invoice.total, invoice.amount_due) == (want, want, want)
    (total,) = invoice.by_price
    assert (total.product, total.quantity, total.amount) == ("hypernian_tokens", usage, want)


@pytest.mark.parametrize(
    ("usage", "usage_cents"), [(3000, 8000), (0, 0), (1000, 0), (1001, 4), (999, 0), (25, 0)]
)
def test_the_flat_fee_previews_the_guides_amounts(client, usage, usage_cents) -> None:
    invoice = preview_of(client, FlatFeeWithOverages(), usage)
    amounts = {total.product: total.amount for total in invoice.by_price}
    assert amounts == {
        "hypernian_tokens_usage": Decimal(usage_cents).scaleb(-2),
        "hypernian_tokens_license": Decimal(100),
    }
    assert invoice.total == invoice.amount_due == Decimal(usage_cents + 10000).scaleb(-2)


def test_the_flat_fee_of_3000_tokens_is_180_with_its_lines(client) -> None:
    invoice = preview_of(client, FlatFeeWithOverages(), 3000)
    assert str(invoice.total) == "180.00"
    assert str(preview_of(client, PayAsYouGo(), 3000).total) == "1.20"
    usage, licence = sorted(invoice.by_price, key=lambda total: total.product, reverse=True)
    assert (usage.quantity, licence.quantity) == (3000, 1)
    lines = [line for line in invoice.lines if line.price == usage.price and line.quantity]
    assert [(line.quantity, line.amount) for line in lines] == [(1000, 0), (2000, 80)]
    fee = next(line for line in invoice.lines if line.price == licence.price)
    assert fee.period_start == invoice.period_end, "the licence is for the month to come"
    assert {line.period_end for line in lines} == {invoice.period_end}


def test_a_preview_stores_nothing_and_is_a_draft_of_the_subscription(client, objects) -> None:
    customer = create_customer(client)
    subscription = subscribe(client, customer, apply(PayAsYouGo(), client))
    before = objects()
    by_customer = preview_invoice(client, customer=customer)
    assert by_customer == preview_invoice(client, subscription=subscription.id)
    assert (by_customer.customer, by_customer.subscription) == (customer, subscription.id)
    assert by_customer.collection_method == "charge_automatically"
    assert by_customer.period_start < by_customer.period_end
    assert objects() == before


def test_the_other_readings_of_the_guides_cost_what_they_say(client) -> None:
    assert preview_of(client, PayAsYouGo("cad"), 3000).currency == "cad"
    each = PayAsYouGo(amount="0.0004", package_size=1, event_name="hypernian_tokens", interval="week")
    assert preview_of(client, each, 3001).total == Decimal("1.20"), "3001 × 0.04 cents = 120.04"
    per_hundred = FlatFeeWithOverages(overage_per=100, interval="year")
    assert preview_of(client, per_hundred, 3000).total == Decimal("100.80"), "2000 × 0.0004"
    in_arrears = FlatFeeWithOverages(license_billed="with_usage")
    assert preview_of(client, in_arrears, 3000).total == Decimal(180)
    assert preview_of(client, in_arrears, 0).total == Decimal(100), "the first tier is always reached"


def test_seats_multiply_the_licence_only(client) -> None:
    invoice = preview_of(client, FlatFeeWithOverages(seats=3), 3000)
    assert {t.product: t.amount for t in invoice.by_price}["hypernian_tokens_license"] == 300
    assert invoice.total == 380


def test_the_guides_video_platform(client) -> None:
    video = FlatFeeWithOverages(
        license_amount=200, overage_amount="0.25", event_name="video_streams", meter_name="Video streams"
    )
    customer = create_customer(client)
    subscription = subscribe(client, customer, apply(video, client))
    send_test_event(client, customer, 1500, event_name="video_streams")
    assert preview_invoice(client, subscription=subscription.id).total == 200 + 125


def test_count_and_last_meters_make_their_own_quantities(client) -> None:
    for aggregation, quantity in (("count", 2), ("last", 5)):
        catalog = PayAsYouGo(event_name=f"m_{aggregation}", aggregation=aggregation, package_size=1, amount=1)
        customer = create_customer(client)
        subscribe(client, customer, apply(catalog, client))
        send_test_event(client, customer, 9, event_name=f"m_{aggregation}")
        send_test_event(client, customer, 5, event_name=f"m_{aggregation}")
        assert preview_invoice(client, customer=customer).total == quantity


def test_a_yen_invoice_has_no_decimals(client) -> None:
    catalog = PayAsYouGo("jpy", 4)
    customer = create_customer(client)
    subscribe(client, customer, apply(catalog, client))
    send_test_event(client, customer, 3000)
    assert str(preview_invoice(client, customer=customer).total) == "120"


def test_volume_tiers_with_flat_amounts_are_added_up_per_price(client) -> None:
    meter = MeterSpec(event_name="hypernian_tokens", display_name="T")
    price = PriceSpec(
        key="v",
        product="v",
        currency="usd",
        meter=meter.event_name,
        tiers=(Tier(100, 1, 5), Tier("inf", "0.5", 7)),
        tiers_mode="volume",
    )
    catalog = Catalog(
        meters=(meter,),
        products=(ProductSpec(id="v", name="V"),),
        prices=(price,),
        offers=(Offer("v", (Item("v"),)),),
    )
    (total,) = preview_of(client, catalog, 200).by_price
    assert (total.quantity, total.amount) == (200, 107)


def test_a_test_event_goes_out_as_digits(client, line) -> None:
    customer = create_customer(client)
    apply(PayAsYouGo(), client)
    sent = send_test_event(client, customer, Decimal("1E-7"), identifier="once", dimensions={"model": "m"})
    assert sent.event.payload == {"model": "m", "stripe_customer_id": customer, "value": "0.0000001"}
    body = parse_qs(line.log[-1][2])
    assert body["payload[value]"] == ["0.0000001"]
    assert body["identifier"] == ["once"]
    assert "timestamp" not in body


def test_an_identifier_that_stripe_has_adds_nothing_and_is_no_error(client, sandbox) -> None:
    customer = create_customer(client)
    apply(PayAsYouGo(), client)
    assert not send_test_event(client, customer, 100, identifier="once").duplicate
    assert send_test_event(client, customer, 100, identifier="once").duplicate
    assert sandbox.books().total(customer=customer) == 100


def test_a_test_event_may_be_dated_back(client) -> None:
    customer = create_customer(client)
    apply(PayAsYouGo(), client)
    now = send_test_event(client, customer, 1).event.timestamp
    assert send_test_event(client, customer, 1, timestamp=now - 3600).event.timestamp == now - 3600
    with pytest.raises(BillingError, match="cannot be more than 35 days in past"):
        send_test_event(client, customer, 1, timestamp=now - 40 * 86_400)


def test_a_test_event_of_an_unknown_customer_is_refused_though_stripe_would_take_it(client, sandbox) -> None:
    apply(PayAsYouGo(), client)
    with pytest.raises(BillingError) as refused:
        send_test_event(client, "cus_nobody", 1)
    assert "sending 1 to meter 'hypernian_tokens' failed: there is no customer 'cus_nobody'" in str(
        refused.value
    )
    assert list(sandbox.books()) == []


def test_a_test_event_without_a_meter_says_to_set_it_up(client) -> None:
    with pytest.raises(
        BillingError, match=r"no active meter for event name .hypernian_tokens.. Set it up first"
    ):
        send_test_event(client, create_customer(client), 1)


@pytest.mark.parametrize("value", [0.5, True, "many", "NaN", "1e40", "1" * 50, None])
def test_a_value_that_is_no_number_is_refused(client, value) -> None:
    with pytest.raises(ConfigurationError, match="value="):
        send_test_event(client, "cus_1", value)


def test_a_preview_needs_a_subscription_or_a_customer(client) -> None:
    for arguments in ({}, {"subscription": "sub_1", "customer": "cus_1"}):
        with pytest.raises(ConfigurationError, match="either subscription or customer"):
            preview_invoice(client, **arguments)


def test_a_preview_of_what_is_not_there_names_it(client) -> None:
    with pytest.raises(BillingError, match="there is no subscription 'sub_nobody' on this Stripe account"):
        preview_invoice(client, subscription="sub_nobody")
    with pytest.raises(BillingError, match="there is no customer 'cus_nobody'"):
        preview_invoice(client, customer="cus_nobody")


def test_every_call_of_both_guides_keeps_to_the_contract(client, line, contract) -> None:
    for catalog in (PayAsYouGo(), FlatFeeWithOverages()):
        preview_of(client, catalog, 3000)
        apply(type(catalog)(interval="week"), client)
    assert len(line.log) > 40
    for method, path, sent, status, body in line.log:
        text = sent.decode() if isinstance(sent, bytes) else sent or ""
        params = contract.decode_form(method, path, text)
        assert contract.check(method, path, params, status, body) == [], f"{method} {path}"


def test_an_invoice_of_many_lines_is_read_to_its_end(client) -> None:
    tiers = tuple(Tier(10 * n, 1, 1) for n in range(1, 30))
    price = PriceSpec(
        key="v",
        product="v",
        currency="usd",
        meter="m",
        tiers=(*tiers, Tier("inf", 1, 1)),
        tiers_mode="graduated",
    )
    catalog = Catalog(
        meters=(MeterSpec(event_name="m", display_name="M"),),
        products=(ProductSpec(id="v", name="V"),),
        prices=(price,),
        offers=(Offer("v", (Item("v"),)),),
    )
    customer = create_customer(client)
    subscribe(client, customer, apply(catalog, client))
    send_test_event(client, customer, 300, event_name="m")
    invoice = preview_invoice(client, customer=customer)
    assert len(invoice.lines) == 60
    assert invoice.total == 300 + 30
