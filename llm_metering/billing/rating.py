"""What usage will cost, reckoned here: the rules of Stripe's invoices, without Stripe.

Each line is rounded once, to the minor unit, a half upwards; lines are rounded first and then added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal

from .catalog import Catalog, MeterSpec, Offer
from .money import major_units
from .prices import PriceSpec, Tier

_EXACT = Context(prec=80)
_ONE = Decimal(1)
_NONE = Decimal(0)


@dataclass(frozen=True, slots=True)
class RatedLine:
    """One line as an invoice has it. Amounts are in major units."""

    price: str
    """Key of the price."""
    quantity: Decimal
    amount: Decimal
    tier: int | None = None
    """1 for the first tier; None where there are no tiers."""
    flat: bool = False
    """The tier's flat amount."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one customer's usage of one period costs under an offer."""

    customer: str | None
    offer: str
    currency: str
    lines: tuple[RatedLine, ...]
    period: str | None = None

    @property
    def total(self) -> Decimal:
        return sum((line.amount for line in self.lines), major_units(0, self.currency))


@dataclass(frozen=True, slots=True)
class MeteredUsage:
    """What one customer used of one meter, in one period."""

    customer: str | None
    event_name: str
    value: Decimal
    period: str | None = None


def estimate(
    catalog: Catalog, usage: Iterable[MeteredUsage], *, offer: str | None = None
) -> tuple[Estimate, ...]:
    """Price usage under an offer, for each customer and period. Licence fees are charged once a period.

    Usage of one customer, meter and period is put together as the meter does: added up, or for a `last`
    meter the last. For a `count` meter a value is a number of events. Usage of meters that the offer does
    not charge costs nothing.

    Args:
        catalog: What is sold.
        usage: In the order in which it happened.
        offer: Which offer; needed if the catalog has several.
    """
    chosen = catalog.offer(offer)
    meters = {meter.event_name: meter for meter in catalog.meters}
    quantities: dict[tuple[str | None, str | None], dict[str, Decimal]] = {}
    for used in usage:
        held = quantities.setdefault((used.customer, used.period), {})
        held[used.event_name] = _together(meters.get(used.event_name), held.get(used.event_name), used.value)
    return tuple(
        _estimate(catalog, chosen, customer, period, held) for (customer, period), held in quantities.items()
    )


def rate(price: PriceSpec, quantity: Decimal | int) -> tuple[RatedLine, ...]:
    """The lines of one price for a quantity; below 0 it counts as 0."""
    quantity = max(Decimal(quantity), _NONE)
    if price.tiers_mode == "graduated":
        return tuple(_graduated(price, quantity))
    if price.tiers_mode == "volume":
        return tuple(_volume(price, quantity))
    units = quantity if price.package_size is None else _packages(price, quantity, price.package_size)
    return (RatedLine(price.key, quantity, _amount(price, units, price.minor(price.amount))),)


def _together(meter: MeterSpec | None, held: Decimal | None, value: Decimal) -> Decimal:
    if held is None or (meter is not None and meter.aggregation == "last"):
        return value
    return _EXACT.add(held, value)


def _estimate(
    catalog: Catalog, offer: Offer, customer: str | None, period: str | None, held: Mapping[str, Decimal]
) -> Estimate:
    lines: list[RatedLine] = []
    for item in offer.items:
        price = catalog.price(item.price)
        quantity = Decimal(item.quantity) if price.meter is None else held.get(price.meter, _NONE)
        lines += rate(price, quantity)
    currency = catalog.price(offer.items[0].price).currency
    return Estimate(customer, offer.name, currency, tuple(lines), period)


def _graduated(price: PriceSpec, quantity: Decimal) -> Iterator[RatedLine]:
    floor = _NONE
    for number, tier in enumerate(price.tiers, start=1):
        if number > 1 and quantity <= floor:
            return
        top = quantity if tier.up_to == "inf" else min(quantity, Decimal(tier.up_to))
        yield from _tier_lines(price, tier, number, _EXACT.subtract(top, floor))
        floor = quantity if tier.up_to == "inf" else Decimal(tier.up_to)


def _volume(price: PriceSpec, quantity: Decimal) -> Iterator[RatedLine]:
    for number, tier in enumerate(price.tiers, start=1):
        if tier.up_to == "inf" or quantity <= tier.up_to:
            yield from _tier_lines(price, tier, number, quantity)
            return


def _tier_lines(price: PriceSpec, tier: Tier, number: int, units: Decimal) -> Iterator[RatedLine]:
    yield RatedLine(price.key, units, _amount(price, units, price.minor(tier.unit_amount)), number)
    if tier.flat_amount is not None:
        yield RatedLine(
            price.key, _NONE, _amount(price, _ONE, price.minor(tier.flat_amount)), number, flat=True
        )


def _amount(price: PriceSpec, units: Decimal, minor: Decimal | None) -> Decimal:
    exact = _EXACT.multiply(units, minor or _NONE)
    return major_units(exact.quantize(_ONE, ROUND_HALF_UP, _EXACT), price.currency)


def _packages(price: PriceSpec, quantity: Decimal, size: int) -> Decimal:
    whole, rest = _EXACT.divmod(quantity, Decimal(size))
    return whole + 1 if rest and price.package_round == "up" else whole
