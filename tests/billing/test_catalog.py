"""A catalog is checked when it is made: every error names the field and the rule."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from decimal import Decimal
from typing import Any

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
)
from llm_metering.billing.bodies import meter_params, price_params, product_params
from llm_metering.errors import ConfigurationError

METER = MeterSpec(event_name="tokens", display_name="Tokens")
PRODUCT = ProductSpec(id="prod", name="Product")
TIERS = (Tier(1000, 0), Tier("inf", "0.04"))


def price(**changes: Any) -> PriceSpec:
    given: dict[str, Any] = {
        "key": "k",
        "product": "prod",
        "currency": "usd",
        "meter": "tokens",
        "amount": "0.04",
    }
    return PriceSpec(**{**given, **changes})


def tiered(*tiers: Tier, **changes: Any) -> PriceSpec:
    return price(amount=None, tiers=tiers, **{"tiers_mode": "graduated", **changes})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: price(amount=None), "give amount, or tiers and tiers_mode"),
        (lambda: price(amount=0.04), "amount=0.04 is a float"),
        (lambda: price(amount=-1), "amount=-1 is negative"),
        (lambda: price(amount="0.000000000000001"), "has more than 12 decimals"),
        (lambda: price(currency="uds"), "currency='uds' is not a currency that Stripe knows"),
        (lambda: price(currency="jpy", meter=None, amount="0.5"), "'jpy' is charged in whole units only"),
        (lambda: price(currency="ugx", meter=None, amount="0.5"), "'ugx' is charged in whole units only"),
        (lambda: price(package_size=0), "package_size=0 must be a whole number of at least 1"),
        (lambda: price(package_size=1.5), "package_size=1.5 must be a whole number"),
        (
            lambda: price(package_size=100, package_round="near"),
            "package_round='near' must be one of up, down",
        ),
        (lambda: price(interval="fortnight"), "interval='fortnight' must be one of day, week, month, year"),
        (lambda: price(interval_count=0), "interval_count=0 must be a whole number of at least 1"),
        (lambda: price(interval_count=37), "interval_count=37 is longer than three years (36 months)"),
        (lambda: price(key=""), "key='' must be text that is not empty"),
        (lambda: price(key="k" * 201), "key has 201 characters; Stripe takes at most 200"),
        (lambda: price(tiers=TIERS, tiers_mode="graduated"), "amount and tiers exclude each other"),
        (lambda: tiered(*TIERS, package_size=100), "package_size and tiers exclude each other"),
        (lambda: tiered(*TIERS, tiers_mode=None), "tiers need tiers_mode: 'graduated' or 'volume'"),
        (lambda: tiered(*TIERS, tiers_mode="steps"), "tiers_mode='steps' must be one of graduated, volume"),
        (lambda: tiered(), "tiers_mode='graduated' needs tiers"),
        (
            lambda: tiered(Tier(1000, 0), Tier(500, 1), Tier("inf", 2)),
            "tiers[1].up_to=500 must be above the tier before it (1000); list tiers from small to large",
        ),
        (lambda: tiered(Tier(1000, 0), Tier(1000, 1), Tier("inf", 2)), "tiers[1].up_to=1000 must be above"),
        (lambda: tiered(Tier(0, 0), Tier("inf", 2)), "tiers[0].up_to=0 must be at least 1"),
        (
            lambda: tiered(Tier("inf", 0), Tier("inf", 1)),
            "tiers[0].up_to is 'inf', but a tier follows; only the last one may be open",
        ),
        (lambda: tiered(Tier(1000, 0)), "tiers[0].up_to=1000: the last tier must be open, write up_to='inf'"),
        (lambda: tiered(Tier(2.5, 0), Tier("inf", 1)), "tiers[0].up_to=2.5 must be a whole number"),
        (lambda: tiered(Tier("inf")), "tiers[0] needs unit_amount or flat_amount"),
        (lambda: tiered(Tier("inf", 0.5)), "unit_amount=0.5 is a float"),
        (lambda: tiered(Tier("inf", -1)), "unit_amount=-1 is negative"),
        (lambda: tiered(Tier("inf", "0.000000000000001")), "tiers[0].unit_amount"),
        (lambda: tiered(Tier("inf", 1, "1.5"), currency="jpy"), "tiers[0].flat_amount=1.5 has a fraction"),
        (lambda: MeterSpec(event_name="x" * 101, display_name="X"), "event_name has 101 characters"),
        (lambda: MeterSpec(event_name="x", display_name=""), "display_name='' must be text"),
        (
            lambda: MeterSpec(event_name="x", display_name="X", aggregation="max"),
            "aggregation='max' must be one of sum, count, last",
        ),
        (
            lambda: MeterSpec(event_name="x", display_name="X", event_time_window="week"),
            "event_time_window='week' must be one of hour, day",
        ),
        (
            lambda: MeterSpec(event_name="x", display_name="X", value_key="stripe_customer_id"),
            "customer_key and value_key are both 'stripe_customer_id'",
        ),
        (lambda: ProductSpec(id="a b", name="X"), "id='a b' must be made of letters"),
        (lambda: ProductSpec(id="a", name=" "), "name=' ' must be text"),
    ],
)
def test_a_value_that_stripe_would_refuse_is_refused_before_any_call(make, sentence) -> None:
    with pytest.raises(ConfigurationError) as refused:
        make()
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"products": ()}, "price 'k': product='prod' is not in the catalog; it has none"),
        ({"meters": ()}, "price 'k': meter='tokens' is not in the catalog"),
        ({"offers": (Offer("o", ()),)}, "offer 'o': it has no items"),
        ({"offers": (Offer("o", (Item("z"),)),)}, "offer 'o': price='z' is not in the catalog; it has k"),
        ({"offers": (Offer("o", (Item("k", 2),)),)}, "'k' is metered and takes no quantity"),
        ({"offers": (Offer("o", (Item("k"), Item("k"))),)}, "it names a price twice"),
        (
            {"prices": (price(), price(key="l")), "offers": (Offer("o", (Item("k"), Item("l"))),)},
            "two of its prices charge the same meter, so the same usage would be billed twice",
        ),
        (
            {
                "prices": (price(), price(key="l", meter=None, currency="eur")),
                "offers": (Offer("o", (Item("k"), Item("l"))),),
            },
            "its prices are in several currencies",
        ),
        ({"prices": (price(), price(amount="0.05"))}, "price 'k' is there twice with different contents"),
    ],
)
def test_a_catalog_that_does_not_hold_together_is_refused(parts, sentence) -> None:
    whole = {"meters": (METER,), "products": (PRODUCT,), "prices": (price(),)}
    with pytest.raises(ConfigurationError) as refused:
        Catalog(**{**whole, **parts})
    assert sentence in str(refused.value)


def test_values_are_frozen_and_equal_by_their_amounts() -> None:
    assert PayAsYouGo(amount="0.040") == PayAsYouGo(amount=Decimal("0.04")) == PayAsYouGo()
    assert hash(tiered(*TIERS)) == hash(tiered(Tier(1000, "0.00"), Tier("inf", Decimal("0.04"))))
    with pytest.raises(FrozenInstanceError):
        price().amount = 5  # type: ignore[misc]
    assert replace(price(), amount="0.05").amount == Decimal("0.05")


def test_two_catalogs_join_where_they_agree() -> None:
    both = PayAsYouGo() | FlatFeeWithOverages()
    assert [m.event_name for m in both.meters] == ["hypernian_tokens"]
    assert [o.name for o in both.offers] == ["pay-as-you-go", "flat-fee"]
    with pytest.raises(ConfigurationError, match="meter 'hypernian_tokens' is there twice"):
        PayAsYouGo() | FlatFeeWithOverages(aggregation="count")


def test_an_offer_is_found_by_name_and_must_be_named_where_there_are_several() -> None:
    both = PayAsYouGo() | FlatFeeWithOverages()
    assert PayAsYouGo().offer().name == "pay-as-you-go"
    assert both.offer("flat-fee").items[0].price.startswith("hypernian_tokens.flat_fee.license")
    with pytest.raises(
        ConfigurationError, match="say which offer is meant; the catalog has pay-as-you-go, flat"
    ):
        both.offer()
    with pytest.raises(
        ConfigurationError, match="the catalog has no offer 'gold'; it has pay-as-you-go, flat"
    ):
        both.offer("gold")


def test_pay_as_you_go_is_the_guides_calls() -> None:
    """contract.md 1.1."""
    catalog = PayAsYouGo()
    assert meter_params(catalog.meters[0]) == {
        "display_name": "Hypernian tokens",
        "event_name": "hypernian_tokens",
        "default_aggregation": {"formula": "sum"},
        "customer_mapping": {"event_payload_key": "stripe_customer_id", "type": "by_id"},
        "value_settings": {"event_payload_key": "value"},
    }
    assert product_params(catalog.products[0])["name"] == "Hypernian tokens"
    sent = price_params(catalog.prices[0], {"hypernian_tokens": "mtr_1"})
    assert {k: sent[k] for k in ("currency", "unit_amount_decimal", "billing_scheme")} == {
        "currency": "usd",
        "unit_amount_decimal": "4",
        "billing_scheme": "per_unit",
    }
    assert sent["transform_quantity"] == {"divide_by": 100, "round": "up"}
    assert sent["recurring"] == {
        "usage_type": "metered",
        "interval": "month",
        "interval_count": 1,
        "meter": "mtr_1",
    }


def test_the_flat_fee_is_the_guides_calls() -> None:
    """contract.md 1.1."""
    catalog = FlatFeeWithOverages()
    licence, usage = catalog.products
    assert (licence.name, licence.description) == ("Hypernian License fee", "License fee for Hypernian")
    assert (usage.name, usage.description) == ("Hypernian Usage", "Usage fees for Hypernian")
    fee, overage = (price_params(p, {"hypernian_tokens": "mtr_1"}) for p in catalog.prices)
    assert fee["unit_amount_decimal"] == "10000"
    assert fee["recurring"] == {"usage_type": "licensed", "interval": "month", "interval_count": 1}
    assert overage["billing_scheme"] == "tiered"
    assert overage["tiers_mode"] == "graduated"
    assert overage["tiers"] == [
        {"up_to": 1000, "unit_amount_decimal": "0", "flat_amount_decimal": "0"},
        {"up_to": "inf", "unit_amount_decimal": "4", "flat_amount_decimal": "0"},
    ]
    assert [item.price for item in catalog.offer().items] == [p.key for p in catalog.prices]


def test_arguments_choose_the_guides_other_readings() -> None:
    assert PayAsYouGo("cad").prices[0].currency == "cad"
    assert PayAsYouGo(package_size=1, amount="0.0004").prices[0].package_size is None
    per_hundred = FlatFeeWithOverages(overage_per=100).prices[1]
    assert per_hundred.tiers[1].unit_amount == Decimal("0.0004")
    (in_arrears,) = FlatFeeWithOverages(license_billed="with_usage").prices
    assert in_arrears.tiers[0].flat_amount == 100
    video = FlatFeeWithOverages(license_amount=200, overage_amount="0.25", event_name="video streams")
    assert [p.id for p in video.products] == ["video_streams_license", "video_streams_usage"]


def test_both_ways_of_billing_the_licence_have_keys_of_their_own() -> None:
    """Under one key, a subscriber could be given a fee in the tiers and a licence beside it."""
    in_advance = {p.key for p in FlatFeeWithOverages().prices}
    with_usage = {p.key for p in FlatFeeWithOverages(license_billed="with_usage").prices}
    assert not in_advance & with_usage


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PayAsYouGo("jpy"), "amount: the guide's 0.04 is meant for a currency with cents, and 'jpy'"),
        (
            lambda: FlatFeeWithOverages("krw", overage_amount=1),
            "license_amount: the guide's 100 is meant for",
        ),
        (lambda: PayAsYouGo(package_size=0), "package_size=0 must be"),
        (lambda: FlatFeeWithOverages(included=-1), "included=-1 must be a whole number of 0 or more"),
        (
            lambda: FlatFeeWithOverages(overage_per=3),
            "overage_amount=0.04 divided by overage_per=3 has no end",
        ),
        (lambda: FlatFeeWithOverages(overage_per=0), "overage_per=0 must be a whole number of at least 1"),
        (lambda: FlatFeeWithOverages(license_billed="later"), "must be 'in_advance' or 'with_usage'"),
        (
            lambda: FlatFeeWithOverages(license_billed="with_usage", seats=3),
            "seats=3 needs license_billed='in_advance'",
        ),
    ],
)
def test_arguments_that_cannot_work_are_refused(make, sentence) -> None:
    with pytest.raises(ConfigurationError) as refused:
        make()
    assert sentence in str(refused.value)


def test_nothing_included_means_one_open_tier() -> None:
    assert FlatFeeWithOverages(included=0).prices[1].tiers == (Tier("inf", "0.04", 0),)


def test_a_yen_price_of_ones_own_is_taken() -> None:
    assert (
        price_params(PayAsYouGo("jpy", 4).prices[0], {"hypernian_tokens": "m"})["unit_amount_decimal"] == "4"
    )
