"""What a change in mid-period costs or gives back. Pure, exact, no I/O."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal

from .billing import Item, Tariff
from .money import EXACT, add, minor_units
from .periods import period_at, step
from .rating import charges


def price_for(tariff: Tariff, quantity: int) -> Decimal:
    """What a whole period of a licensed quantity costs."""
    return add(Decimal(charge.amount) for charge in charges(tariff.rate, Decimal(quantity)))


def share(item: Item, now: int) -> tuple[int, int]:
    """What is left of a period, and the whole of it, in seconds."""
    whole_start, _ = item.period_after(item.start)
    return max(0, item.end - now), item.end - whole_start


def prorated(price: Decimal, left: int, whole: int) -> int:
    """The part of a price that falls on the rest of a period, in whole minor units."""
    return minor_units(EXACT.divide(EXACT.multiply(price, Decimal(left)), Decimal(whole)))


def elapsed(tariff: Tariff, quantity: int, since: int, now: int) -> int:
    """What the time from a backdated start costs: whole periods counted from it, and a part of the next."""
    start, end = period_at(since, tariff.interval, tariff.interval_count, now)
    whole = 0
    while step(since, tariff.interval, tariff.interval_count, whole) < start:
        whole += 1
    units = EXACT.add(Decimal(whole), EXACT.divide(Decimal(now - start), Decimal(end - start)))
    return minor_units(EXACT.multiply(price_for(tariff, quantity), units))


def past_time(tariff: Tariff, quantity: int, since: int, now: int) -> str:
    return f"Time on {_many(quantity)}{tariff.name} from {_day(since)} until {_day(now)}"


def unused_time(item: Item, quantity: int, now: int) -> str:
    return f"Unused time on {_many(quantity)}{item.tariff.name} after {_day(now)}"


def remaining_time(tariff: Tariff, quantity: int, now: int) -> str:
    return f"Remaining time on {_many(quantity)}{tariff.name} after {_day(now)}"


def _many(quantity: int) -> str:
    return "" if quantity == 1 else f"{quantity} × "


def _day(at: int) -> str:
    return f"{datetime.fromtimestamp(at, timezone.utc):%d %b %Y}"
