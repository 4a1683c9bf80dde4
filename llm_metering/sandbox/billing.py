"""Which lines an invoice has: the billing engine above `rating`. Pure, no I/O; usage is handed in.

Licensed items are billed in advance, metered ones in arrears.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from .money import plain, shown
from .periods import Interval, period_at, step
from .rating import Charge, FlatLines, Rate, billed_units, charges

MAX_LINES = 250
"""The most lines that Stripe puts on one invoice."""


@dataclass(frozen=True, slots=True)
class Tariff:
    """A price as the engine sees it, with what its lines are called."""

    price: str
    product: str
    name: str
    unit_label: str | None
    currency: str
    interval: Interval
    interval_count: int
    meter: str | None
    """The meter of a metered price; None for a licensed one."""
    rate: Rate


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time under one price."""

    tariff: Tariff
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Item:
    """One subscription item in its current period."""

    id: str
    tariff: Tariff
    quantity: int | None
    """None for a metered item."""
    start: int
    end: int
    anchor: int
    """Where the periods are counted from."""
    since: int
    """Since when this price is in force; usage before it is not billed under it."""
    earlier: tuple[Span, ...] = ()
    """Prices that were in force before in this period and still bill what was used under them."""
    free: bool = False
    """Whether this period is a trial: it costs nothing."""

    @property
    def metered(self) -> bool:
        return self.tariff.meter is not None

    def period_after(self, at: int) -> tuple[int, int]:
        """The period that holds a moment."""
        return period_at(self.anchor, self.tariff.interval, self.tariff.interval_count, at)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an invoice, before it becomes a document."""

    item: str
    tariff: Tariff
    description: str
    quantity: Decimal
    unit: Decimal
    amount: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Style:
    """The assumptions that change how lines look, never what they add up to."""

    flat_lines: FlatLines = "when_set"
    package_quantity: Literal["raw", "divided"] = "raw"


Usage = Callable[[Item, Tariff, int, int], Decimal]
"""What was used of an item's meter from a start to before an end."""


def first_lines(
    items: Sequence[Item], mode: str, backdated: int | None, usage: Usage, style: Style
) -> list[Line]:
    """The lines of a subscription's first invoice.

    In flexible mode metered items put nothing there, except usage of past periods where the start is
    backdated; in classic mode each puts a line of 0.
    """
    lines: list[Line] = []
    for item in items:
        if item.free:
            if item.quantity is not None or mode == "classic":
                lines.append(_nothing(item, f"Trial period for {item.tariff.name}"))
            continue
        past = [] if backdated is None else past_periods(item, backdated)
        for start, end in past:
            quantity = (
                usage(item, item.tariff, start, end) if item.quantity is None else Decimal(item.quantity)
            )
            lines += item_lines(item, item.tariff, quantity, start, end, style)
        if item.quantity is not None:
            lines += item_lines(item, item.tariff, Decimal(item.quantity), item.start, item.end, style)
        elif mode == "classic":
            lines.append(_nothing(item, f"{item.tariff.name} (usage of this period is billed at its end)"))
    return lines


def cycle_lines(
    items: Sequence[Item], at: int, usage: Usage, style: Style, *, final: bool = False
) -> list[Line]:
    """The lines of the invoice at a period's end: usage of the period that ends, fees of the next one.

    Items whose period ends later wait for their own invoice. A final invoice has usage only.
    """
    lines: list[Line] = []
    for item in items:
        if item.metered and (final or item.end == at) and not (final and item.free):
            lines += usage_lines(item, usage, style)
    for item in items:
        if item.quantity is not None and item.end == at and not final:
            start, end = item.period_after(at)
            lines += item_lines(item, item.tariff, Decimal(item.quantity), start, end, style)
    return lines


def usage_lines(item: Item, usage: Usage, style: Style) -> list[Line]:
    """A metered item's lines for its current period, price by price."""
    if item.free:
        return [_nothing(item, f"Trial period for {item.tariff.name}")]
    lines: list[Line] = []
    for span in (*item.earlier, Span(item.tariff, item.since, item.end)):
        quantity = usage(item, span.tariff, span.start, span.end)
        lines += item_lines(item, span.tariff, quantity, span.start, span.end, style)
    return lines


def item_lines(
    item: Item, tariff: Tariff, quantity: Decimal, start: int, end: int, style: Style
) -> list[Line]:
    """One line for each charge that a quantity makes."""
    return [
        Line(
            item.id,
            tariff,
            _description(tariff, charge),
            _shown_quantity(tariff, charge, style),
            charge.unit,
            charge.amount,
            start,
            end,
        )
        for charge in charges(tariff.rate, quantity, flat_lines=style.flat_lines)
    ]


def past_periods(item: Item, since: int) -> list[tuple[int, int]]:
    """The whole periods from a backdated start to the current one."""
    periods = []
    n, start = 1, since
    while start < item.start:
        end = step(since, item.tariff.interval, item.tariff.interval_count, n)
        periods.append((start, end))
        n, start = n + 1, end
    return periods


def _nothing(item: Item, description: str) -> Line:
    """A line that costs nothing."""
    tariff = item.tariff
    return Line(item.id, tariff, description, Decimal(0), tariff.rate.unit, 0, item.start, item.end)


def _shown_quantity(tariff: Tariff, charge: Charge, style: Style) -> Decimal:
    if style.package_quantity == "divided":
        return billed_units(tariff.rate, charge.quantity)
    return charge.quantity


def _description(tariff: Tariff, charge: Charge) -> str:
    every = (
        tariff.interval if tariff.interval_count == 1 else f"every {tariff.interval_count} {tariff.interval}s"
    )
    price = shown(charge.unit, tariff.currency)
    if tariff.rate.divide_by is not None:
        price += f" per {tariff.rate.divide_by}"
    tier = "at" if charge.tier is None else f"Tier {charge.tier} at"
    name = f"{tariff.name} ({tier} {price} / {every})"
    if charge.flat:
        return name
    label = f" {tariff.unit_label}" if tariff.unit_label else ""
    return f"{plain(charge.quantity)}{label} × {name}"
