"""What can be compared: a catalog's values and an account's objects in the same words.

`wanted` reads a catalog, `account.fetch` reads a Stripe account. `fixed` facts can never be edited at
Stripe, `editable` ones can. Amounts are in minor units here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from .catalog import Catalog, MeterSpec, ProductSpec
from .grants import AlertSpec
from .money import major_units, show
from .prices import PriceSpec

Kind = Literal["meter", "product", "price", "alert"]
TierFact = tuple[int | None, Decimal, Decimal]
"""Last unit (None: open), unit amount, flat amount."""
Fact = str | int | Decimal | tuple[TierFact, ...] | None
Facts = Mapping[str, Fact]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One object that a catalog wants."""

    kind: Kind
    key: str
    """Event name, product id, lookup key or title: how it is found again."""
    fixed: Facts
    editable: Facts
    """Only what the catalog says; None is left alone."""
    summary: str


@dataclass(frozen=True, slots=True)
class Found:
    """The same object as an account has it."""

    kind: Kind
    key: str
    id: str
    active: bool
    ours: bool
    """Carries our mark; a meter cannot carry one and counts as ours once a price of ours uses it."""
    fixed: Facts
    editable: Facts


def wanted(catalog: Catalog) -> list[Wanted]:
    """Everything a catalog wants, in the order in which it must be made."""
    return [
        *map(_meter, catalog.meters),
        *map(_product, catalog.products),
        *map(_price, catalog.prices),
        *map(_alert, catalog.alerts),
    ]


def price_facts(price: PriceSpec) -> dict[str, Fact]:
    return {
        "product": price.product,
        "currency": price.currency,
        "usage_type": "metered" if price.metered else "licensed",
        "meter": price.meter,
        "interval": price.interval,
        "interval_count": price.interval_count,
        "amount": price.minor(price.amount),
        "package_size": price.package_size,
        "package_round": price.package_round if price.package_size else None,
        "tiers_mode": price.tiers_mode,
        "tiers": tuple(
            (
                None if tier.up_to == "inf" else tier.up_to,
                price.minor(tier.unit_amount) or Decimal(0),
                price.minor(tier.flat_amount) or Decimal(0),
            )
            for tier in price.tiers
        ),
    }


def summary_of_price(facts: Facts) -> str:
    """For people: "0.04 USD per 100, every month, metered by hypernian_tokens"."""
    currency = str(facts["currency"])
    tiers = facts["tiers"]
    if isinstance(tiers, tuple) and tiers:
        amount = f"{facts['tiers_mode']}: {show_tiers(tiers, currency)}"
    else:
        amount = show_fact("amount", facts["amount"], currency)
        if facts["package_size"]:
            amount += f" per {facts['package_size']}, rounded {facts['package_round']}"
        elif facts["meter"] is not None:
            amount += " each"
    if facts["interval"] is None:
        return f"{amount}; once"
    how = f"metered by {facts['meter']}" if facts["meter"] is not None else "licence, in advance"
    return f"{amount}; {_every(facts)}; {how}"


def show_fact(field: str, fact: Fact, currency: str) -> str:
    """One fact as a person would write it."""
    if isinstance(fact, Decimal):
        return show(major_units(fact, currency), currency)
    if isinstance(fact, tuple):
        return show_tiers(fact, currency) or "none"
    if fact is None:
        return "none"
    return repr(fact) if field in ("display_name", "name", "description", "nickname") else str(fact)


def show_tiers(tiers: tuple[TierFact, ...], currency: str) -> str:
    """Such as "1-1000 at 0.00 USD, 1001+ at 0.04 USD"."""
    parts, first = [], 1
    for up_to, unit, flat in tiers:
        span = f"{first}+" if up_to is None else f"{first}-{up_to}"
        fee = f" and {show(major_units(flat, currency), currency)} flat" if flat else ""
        parts.append(f"{span} at {show(major_units(unit, currency), currency)}{fee}")
        first = (up_to or 0) + 1
    return ", ".join(parts)


def _every(facts: Facts) -> str:
    count, interval = facts["interval_count"], facts["interval"]
    return f"every {interval}" if count == 1 else f"every {count} {interval}s"


def _meter(meter: MeterSpec) -> Wanted:
    fixed: dict[str, Fact] = {
        "aggregation": meter.aggregation,
        "customer_key": meter.customer_key,
        "event_time_window": meter.event_time_window,
    }
    if meter.aggregation != "count":
        fixed["value_key"] = meter.value_key
    summary = f"{meter.display_name!r}; {meter.aggregation} of {meter.value_key} by {meter.customer_key}"
    return Wanted("meter", meter.event_name, fixed, {"display_name": meter.display_name}, summary)


def _product(product: ProductSpec) -> Wanted:
    editable: dict[str, Fact] = {"name": product.name}
    if product.description is not None:
        editable["description"] = product.description
    if product.unit_label is not None:
        editable["unit_label"] = product.unit_label
    return Wanted("product", product.id, {}, editable, repr(product.name))


def _price(price: PriceSpec) -> Wanted:
    facts = price_facts(price)
    editable: dict[str, Fact] = {} if price.nickname is None else {"nickname": price.nickname}
    return Wanted("price", price.key, facts, editable, summary_of_price(facts))


def _alert(alert: AlertSpec) -> Wanted:
    fixed: dict[str, Fact] = {"meter": alert.meter, "threshold": alert.threshold}
    summary = f"a webhook, once a customer's {alert.meter} reach {alert.threshold:,}; usage goes on"
    return Wanted("alert", alert.title, fixed, {}, summary)
