"""Stripe's two pricing guides as catalogs, with the guides' figures as defaults.

The guides contradict themselves in places; the defaults are the reading that their API calls have, and an
argument chooses each other one (`docs/billing.md`).
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, Inexact

from ..errors import ConfigurationError
from .catalog import Aggregation, Catalog, Item, MeterSpec, Offer, ProductSpec
from .money import WHOLE_ONLY, Amount, parse_amount, parse_currency
from .prices import Interval, PriceSpec, Tier

EVENT_NAME = "hypernian_tokens"
METER_NAME = "Hypernian tokens"
USAGE_NAME = "Hypernian Usage"
LICENSE_NAME = "Hypernian License fee"
PAY_AS_YOU_GO = "pay-as-you-go"
FLAT_FEE = "flat-fee"

_DESCRIPTIONS = {USAGE_NAME: "Usage fees for Hypernian", LICENSE_NAME: "License fee for Hypernian"}
"""The guide's own; a product with another name gets none."""

_TOKEN_PACKAGE = Decimal("0.04")
_LICENSE = Decimal(100)
_OVERAGE = Decimal("0.04")


class PayAsYouGo(Catalog):
    """The pay-as-you-go guide: 0.04 USD for every 100 tokens begun, monthly, in arrears.

    The guide's table says CAD, its steps and its API call USD: `currency="cad"` gives the other.

    Args:
        currency: Three letters.
        amount: For one package, in major units.
        package_size: Tokens in a package; 1 charges `amount` for each token.
        name: Of the offer; give each its own to join catalogs of several currencies with `|`.
        interval: How often it is billed.
        event_name: The meter's event name; it must be the one your `TokenMeter` reports to.
        meter_name: The meter's name in the Dashboard.
        aggregation: How the meter makes a quantity of its events.
        product_name: The product, as invoices show it.
        customer_key: The payload key that names the customer.
        value_key: The payload key that holds the value.
    """

    __slots__ = ()

    def __init__(
        self,
        currency: str = "usd",
        amount: Amount = _TOKEN_PACKAGE,
        *,
        package_size: int = 100,
        name: str = PAY_AS_YOU_GO,
        interval: Interval = "month",
        event_name: str = EVENT_NAME,
        meter_name: str = METER_NAME,
        aggregation: Aggregation = "sum",
        product_name: str = "Hypernian tokens",
        customer_key: str = "stripe_customer_id",
        value_key: str = "value",
    ) -> None:
        currency = parse_currency(currency)
        _not_the_guides(currency, amount=(amount, _TOKEN_PACKAGE))
        meter = _meter(event_name, meter_name, aggregation, customer_key, value_key)
        product = ProductSpec(id=_slug(event_name), name=product_name)
        price = PriceSpec(
            key=f"{event_name}.pay_as_you_go.{currency}.{interval}",
            product=product.id,
            currency=currency,
            meter=event_name,
            amount=amount,
            package_size=None if package_size == 1 else package_size,
            interval=interval,
        )
        super().__init__(
            meters=(meter,),
            products=(product,),
            prices=(price,),
            offers=(Offer(name, (Item(price.key),)),),
        )


class FlatFeeWithOverages(Catalog):
    """The flat-fee guide: 100 USD a month in advance, 1000 tokens included, 0.04 USD for each one above.

    One sentence of the guide says "per hundred units": `overage_per=100` charges `overage_amount` for that
    many, to the token (a tiered price cannot round packages up). The guide's option to bill the licence at
    the end of the month is `license_billed="with_usage"`; it becomes the first tier's flat fee.

    Its video platform: `FlatFeeWithOverages(license_amount=200, overage_amount="0.25",
    event_name="video_streams", meter_name="Video streams", usage_name="Streams", license_name="Hosting")`.

    Args:
        currency: Three letters.
        license_amount: The fee, in major units, for each of `seats`.
        included: Units without charge in each interval.
        overage_amount: For every `overage_per` units above.
        overage_per: See above.
        interval: How often it is billed.
        license_billed: "in_advance", or "with_usage" in arrears.
        seats: Quantity of the licence that a subscription starts with.
        name: Of the offer; give each its own to join catalogs of several currencies with `|`.
        event_name: The meter's event name; it must be the one your `TokenMeter` reports to.
        meter_name: The meter's name in the Dashboard.
        aggregation: How the meter makes a quantity of its events.
        usage_name: The product of the overage, as invoices show it.
        license_name: The product of the licence, as invoices show it.
        customer_key: The payload key that names the customer.
        value_key: The payload key that holds the value.
    """

    __slots__ = ()

    def __init__(
        self,
        currency: str = "usd",
        *,
        license_amount: Amount = _LICENSE,
        included: int = 1000,
        overage_amount: Amount = _OVERAGE,
        overage_per: int = 1,
        interval: Interval = "month",
        license_billed: str = "in_advance",
        seats: int = 1,
        name: str = FLAT_FEE,
        event_name: str = EVENT_NAME,
        meter_name: str = METER_NAME,
        aggregation: Aggregation = "sum",
        usage_name: str = USAGE_NAME,
        license_name: str = LICENSE_NAME,
        customer_key: str = "stripe_customer_id",
        value_key: str = "value",
    ) -> None:
        currency = parse_currency(currency)
        _not_the_guides(
            currency, license_amount=(license_amount, _LICENSE), overage_amount=(overage_amount, _OVERAGE)
        )
        in_advance = _in_advance(license_billed, seats)
        meter = _meter(event_name, meter_name, aggregation, customer_key, value_key)
        usage = _product(f"{_slug(event_name)}_usage", usage_name)
        licence = _product(f"{_slug(event_name)}_license", license_name)
        # Apart from the other variant's key: under one key, a subscriber could be given the fee twice.
        variant = "overage" if in_advance else "fee_and_overage"
        overage = PriceSpec(
            key=f"{event_name}.flat_fee.{variant}.{currency}.{interval}",
            product=usage.id,
            currency=currency,
            meter=event_name,
            tiers=_tiers(included, _each(overage_amount, overage_per), 0 if in_advance else license_amount),
            tiers_mode="graduated",
            interval=interval,
        )
        fee = PriceSpec(
            key=f"{event_name}.flat_fee.license.{currency}.{interval}",
            product=licence.id,
            currency=currency,
            amount=license_amount,
            interval=interval,
        )
        items = (Item(fee.key, seats), Item(overage.key)) if in_advance else (Item(overage.key),)
        super().__init__(
            meters=(meter,),
            products=(licence, usage) if in_advance else (usage,),
            prices=(fee, overage) if in_advance else (overage,),
            offers=(Offer(name, items),),
        )


def _meter(
    event_name: str, meter_name: str, aggregation: Aggregation, customer_key: str, value_key: str
) -> MeterSpec:
    return MeterSpec(
        event_name=event_name,
        display_name=meter_name,
        aggregation=aggregation,
        customer_key=customer_key,
        value_key=value_key,
    )


def _product(id: str, name: str) -> ProductSpec:
    return ProductSpec(id=id, name=name, description=_DESCRIPTIONS.get(name))


def _slug(event_name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", event_name)


def _not_the_guides(currency: str, **amounts: tuple[Amount, Amount]) -> None:
    """Refuse the guide's figures, left as they are, in a currency that has no cents."""
    for name, (given, guide) in amounts.items():
        if currency in WHOLE_ONLY and given is guide:
            raise ConfigurationError(
                f"{name}: the guide's {guide} is meant for a currency with cents, and {currency!r} has none; "
                f"say {name}= in whole {currency.upper()}"
            )


def _in_advance(license_billed: str, seats: int) -> bool:
    if license_billed not in ("in_advance", "with_usage"):
        raise ConfigurationError(
            f"license_billed={license_billed!r} must be 'in_advance' or 'with_usage' (in arrears)"
        )
    if license_billed == "with_usage" and seats != 1:
        raise ConfigurationError(
            f"seats={seats} needs license_billed='in_advance': a tier's flat fee is charged once"
        )
    return license_billed == "in_advance"


def _tiers(included: int, overage: Decimal, flat: Amount) -> tuple[Tier, ...]:
    if type(included) is not int or included < 0:
        raise ConfigurationError(f"included={included!r} must be a whole number of 0 or more")
    if included == 0:
        return (Tier("inf", overage, flat),)
    return (Tier(included, 0, flat), Tier("inf", overage, 0))


def _each(amount: Amount, per: int) -> Decimal:
    if type(per) is not int or per < 1:
        raise ConfigurationError(f"overage_per={per!r} must be a whole number of at least 1")
    exact = Context(prec=40, traps=[Inexact])
    try:
        return exact.divide(parse_amount(amount, "overage_amount"), Decimal(per))
    except Inexact:
        raise ConfigurationError(
            f"overage_amount={amount} divided by overage_per={per} has no end in decimals; "
            f"choose figures that divide exactly"
        ) from None
