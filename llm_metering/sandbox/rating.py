"""What a quantity costs under a price: the billing engine's arithmetic. Pure, exact, no I/O.

Rounding happens once per charge, a half going up; charges are added after they are rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from .money import EXACT, ZERO, minor_units

FlatLines = Literal["when_set", "when_not_zero", "always"]


@dataclass(frozen=True, slots=True)
class Tier:
    """One step of a tiered price. Amounts are in minor units; None was not set."""

    up_to: int | None
    """The last unit inside, None for no end."""
    unit: Decimal | None = None
    flat: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """How a price turns a quantity into money."""

    unit: Decimal = ZERO
    """Minor units for one unit, or for one package."""
    divide_by: int | None = None
    """Units in a package."""
    round: Literal["up", "down"] = "up"
    """What becomes of a package that is not full."""
    mode: Literal["graduated", "volume"] | None = None
    tiers: tuple[Tier, ...] = ()


@dataclass(frozen=True, slots=True)
class Charge:
    """One amount of an invoice: so many units at so much, or a tier's flat amount."""

    quantity: Decimal
    unit: Decimal
    """Minor units for one; of a flat charge, the flat amount itself."""
    amount: int
    tier: int | None = None
    """Counted from 1."""
    flat: bool = False


def charges(rate: Rate, quantity: Decimal, *, flat_lines: FlatLines = "when_set") -> list[Charge]:
    """What a quantity costs. A negative one counts as none."""
    quantity = max(quantity, ZERO)
    if rate.mode == "graduated":
        return _graduated(rate.tiers, quantity, flat_lines)
    if rate.mode == "volume":
        return _volume(rate.tiers, quantity, flat_lines)
    return [Charge(quantity, rate.unit, minor_units(EXACT.multiply(billed_units(rate, quantity), rate.unit)))]


def billed_units(rate: Rate, quantity: Decimal) -> Decimal:
    """The quantity itself, or how many packages it fills."""
    if rate.divide_by is None:
        return quantity
    whole, rest = EXACT.divmod(quantity, Decimal(rate.divide_by))
    return whole + 1 if rest and rate.round == "up" else whole


def _graduated(tiers: tuple[Tier, ...], quantity: Decimal, flat_lines: FlatLines) -> list[Charge]:
    found: list[Charge] = []
    below = ZERO
    for number, tier in enumerate(tiers, 1):
        # The first tier is always reached: its flat amount is billed without any usage, too.
        if number > 1 and quantity <= below:
            break
        top = quantity if tier.up_to is None else min(quantity, Decimal(tier.up_to))
        found += _tier_charges(number, tier, EXACT.subtract(top, below), flat_lines)
        below = ZERO if tier.up_to is None else Decimal(tier.up_to)
    return found


def _volume(tiers: tuple[Tier, ...], quantity: Decimal, flat_lines: FlatLines) -> list[Charge]:
    for number, tier in enumerate(tiers, 1):
        if tier.up_to is None or quantity <= tier.up_to:
            return _tier_charges(number, tier, quantity, flat_lines)
    raise ValueError("the last tier of a price has no end")


def _tier_charges(number: int, tier: Tier, quantity: Decimal, flat_lines: FlatLines) -> list[Charge]:
    unit = tier.unit or ZERO
    found = [Charge(quantity, unit, minor_units(EXACT.multiply(quantity, unit)), number)]
    if _flat_shows(tier.flat, flat_lines):
        flat = tier.flat or ZERO
        found.append(Charge(ZERO, flat, minor_units(flat), number, flat=True))
    return found


def _flat_shows(flat: Decimal | None, flat_lines: FlatLines) -> bool:
    if flat_lines == "always":
        return True
    return flat is not None and (flat_lines == "when_set" or flat > 0)
