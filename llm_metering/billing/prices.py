"""A price as a frozen value, in every pricing model that Stripe has, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

from .checks import count, one_of, refuse, text
from .money import WHOLE_ONLY, Amount, minor_units, parse_amount, parse_currency

Interval = Literal["day", "week", "month", "year"]
TiersMode = Literal["graduated", "volume"]
Rounding = Literal["up", "down"]

_LONGEST = {"day": 1095, "week": 156, "month": 36, "year": 3}
"""Stripe bills at least every three years."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One step of a tiered price: from the end of the tier before it up to and including `up_to`."""

    up_to: int | Literal["inf"]
    """The last unit of this tier; "inf" for the last tier."""
    unit_amount: Amount | None = None
    """For each unit, in major units."""
    flat_amount: Amount | None = None
    """Once, when the tier is reached; the first tier is always reached, at no usage too."""

    def __post_init__(self) -> None:
        for name in ("unit_amount", "flat_amount"):
            value = getattr(self, name)
            if value is not None:
                amount = parse_amount(value, f"tier up to {self.up_to}: {name}")
                object.__setattr__(self, name, amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSpec:
    """A price, found again by `key`, its lookup key. What it charges can never be edited, only replaced.

    With `meter` it is metered and billed in arrears, without it is a licence fee, billed in advance.
    Give `amount` (per unit, or per `package_size` units), or `tiers` and `tiers_mode`.
    """

    key: str
    product: str
    """Id of the product."""
    currency: str
    meter: str | None = None
    """Event name of the meter whose usage it charges; None for a licence."""
    amount: Amount | None = None
    package_size: int | None = None
    """Charge `amount` for every so many units."""
    package_round: Rounding = "up"
    """What happens to a package begun: charged ("up") or not ("down")."""
    tiers: tuple[Tier, ...] = ()
    tiers_mode: TiersMode | None = None
    """"graduated": each unit at its own tier's price; "volume": all at the price of the tier reached."""
    interval: Interval = "month"
    interval_count: int = 1
    nickname: str | None = None
    """A note for the Dashboard, not shown to customers; None leaves it alone."""

    def __post_init__(self) -> None:
        text("price", "key", self.key, 200)
        object.__setattr__(self, "currency", parse_currency(self.currency, f"price {self.key!r}: currency"))
        object.__setattr__(self, "tiers", tuple(self.tiers))
        if self.amount is not None:
            object.__setattr__(self, "amount", parse_amount(self.amount, f"price {self.key!r}: amount"))
        if self.nickname is not None:
            text(f"price {self.key!r}", "nickname", self.nickname, 5000)
        _check_interval(self)
        if self.tiers or self.tiers_mode is not None:
            _check_tiered(self)
        else:
            _check_flat(self)

    @property
    def metered(self) -> bool:
        return self.meter is not None

    def minor(self, value: Amount | None) -> Decimal | None:
        """One of this price's amounts in the currency's minor unit."""
        return None if value is None else minor_units(value, self.currency, f"price {self.key!r}: amount")


def _check_interval(price: PriceSpec) -> None:
    where = f"price {price.key!r}"
    one_of(where, "interval", price.interval, get_args(Interval))
    count(where, "interval_count", price.interval_count)
    if price.interval_count > _LONGEST[price.interval]:
        refuse(
            where,
            f"interval_count={price.interval_count} is longer than three years "
            f"({_LONGEST[price.interval]} {price.interval}s), the longest that Stripe bills",
        )


def _check_flat(price: PriceSpec) -> None:
    where = f"price {price.key!r}"
    if price.amount is None:
        refuse(where, "give amount, or tiers and tiers_mode")
    _check_amount(price, "amount", price.amount, whole=not price.metered)
    if price.package_size is not None:
        count(where, "package_size", price.package_size)
    one_of(where, "package_round", price.package_round, get_args(Rounding))


def _check_tiered(price: PriceSpec) -> None:
    where = f"price {price.key!r}"
    if price.package_size is not None:
        refuse(
            where,
            "package_size and tiers exclude each other (Stripe refuses transform_quantity with tiers); "
            "divide the tiers' unit amounts by the package size instead",
        )
    if price.amount is not None:
        refuse(where, "amount and tiers exclude each other; a tiered price has its amounts in its tiers")
    if price.tiers_mode is None:
        refuse(where, "tiers need tiers_mode: 'graduated' or 'volume'")
    one_of(where, "tiers_mode", price.tiers_mode, get_args(TiersMode))
    if not price.tiers:
        refuse(where, f"tiers_mode={price.tiers_mode!r} needs tiers")
    _check_steps(where, price.tiers)
    for i, tier in enumerate(price.tiers):
        if tier.unit_amount is None and tier.flat_amount is None:
            refuse(where, f"tiers[{i}] needs unit_amount or flat_amount; write 0 for a free tier")
        _check_amount(price, f"tiers[{i}].unit_amount", tier.unit_amount, whole=False)
        _check_amount(price, f"tiers[{i}].flat_amount", tier.flat_amount, whole=True)


def _check_steps(where: str, tiers: tuple[Tier, ...]) -> None:
    before = 0
    for i, tier in enumerate(tiers):
        last = i == len(tiers) - 1
        if tier.up_to == "inf":
            if not last:
                refuse(where, f"tiers[{i}].up_to is 'inf', but a tier follows; only the last one may be open")
            continue
        if type(tier.up_to) is not int:
            refuse(
                where, f"tiers[{i}].up_to={tier.up_to!r} must be a whole number, or 'inf' for the last tier"
            )
        elif tier.up_to <= before:
            rule = f"above the tier before it ({before})" if i else "at least 1"
            refuse(where, f"tiers[{i}].up_to={tier.up_to} must be {rule}; list tiers from small to large")
        elif last:
            refuse(where, f"tiers[{i}].up_to={tier.up_to}: the last tier must be open, write up_to='inf'")
        else:
            before = tier.up_to


def _check_amount(price: PriceSpec, field: str, value: Amount | None, *, whole: bool) -> None:
    if value is None:
        return
    minor = minor_units(value, price.currency, f"price {price.key!r}: {field}")
    # A usage price may well be a fraction of a yen; a fee that is charged as it stands may not.
    unit = 100 if price.currency in {"isk", "ugx"} else 1
    if whole and price.currency in WHOLE_ONLY and minor % unit:
        refuse(
            f"price {price.key!r}",
            f"{field}={value} has a fraction, but {price.currency!r} is charged in whole units only",
        )
