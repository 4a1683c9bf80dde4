"""From documents to the engine's values: prices and subscription items as `billing` takes them."""

from __future__ import annotations

from decimal import Decimal

from .billing import Item, Span, Tariff, Usage
from .money import ZERO
from .rating import Rate, Tier
from .store import Account, Doc
from .usage import usage
from .world import World


def tariff(world: World, account: Account, price_id: str) -> Tariff:
    """A price with its product."""
    price = world.store.get(account, "price", price_id)
    if price is None:
        raise LookupError(f"a subscription names the price {price_id}, which is not there")
    product = world.store.get(account, "product", price["product"]) or {}
    recurring = price["recurring"]
    return Tariff(
        price=price_id,
        product=price["product"],
        name=str(product.get("name", price["product"])),
        unit_label=product.get("unit_label"),
        currency=price["currency"],
        interval=recurring["interval"],
        interval_count=recurring["interval_count"],
        meter=recurring["meter"],
        rate=rate(price),
    )


def rate(price: Doc) -> Rate:
    """How a price document turns a quantity into money."""
    if price["billing_scheme"] == "tiered":
        tiers = tuple(
            Tier(tier["up_to"], _decimal(tier["unit_amount_decimal"]), _decimal(tier["flat_amount_decimal"]))
            for tier in price["_tiers"]
        )
        return Rate(mode=price["tiers_mode"], tiers=tiers)
    package = price["transform_quantity"] or {"divide_by": None, "round": "up"}
    unit = _decimal(price["unit_amount_decimal"])
    return Rate(ZERO if unit is None else unit, package["divide_by"], package["round"])


def item_value(world: World, account: Account, item: Doc) -> Item:
    """A subscription item with its prices."""
    return Item(
        id=item["id"],
        tariff=tariff(world, account, item["price"]),
        quantity=item["quantity"],
        start=item["current_period_start"],
        end=item["current_period_end"],
        anchor=item["_anchor"],
        since=item["_since"],
        earlier=tuple(
            Span(tariff(world, account, span["price"]), span["start"], span["end"])
            for span in item["_earlier"]
        ),
        free=bool(item.get("_free"))
        and (item["quantity"] is not None or world.switches.trial_usage == "free"),
    )


def usage_of(world: World, account: Account, customer: str) -> Usage:
    """Usage of one customer, read from its counted events."""

    def used(_: Item, of: Tariff, start: int, end: int) -> Decimal:
        meter = world.store.get(account, "billing.meter", of.meter or "")
        return ZERO if meter is None else usage(world, account, meter, customer, start, end)

    return used


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
