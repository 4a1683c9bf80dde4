"""What is sold, as frozen values: meters, products, prices, and offers that a customer subscribes to.

Everything is checked when it is made, before any call: errors name the field and the rule. `plan` compares
a catalog with a Stripe account, `apply` makes the account match it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NoReturn, TypeVar, get_args

from ..errors import ConfigurationError
from .money import WHOLE_ONLY, Amount, minor_units, parse_amount, parse_currency

Aggregation = Literal["sum", "count", "last"]
Interval = Literal["day", "week", "month", "year"]
TiersMode = Literal["graduated", "volume"]
Rounding = Literal["up", "down"]

_LONGEST = {"day": 1095, "week": 156, "month": 36, "year": 3}
"""Stripe bills at least every three years."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSpec:
    """A billing meter. Stripe can change only its display name later; there is one for each event name."""

    event_name: str
    display_name: str
    aggregation: Aggregation = "sum"
    """How a period's events become a quantity: added up, counted, or the last value."""
    customer_key: str = "stripe_customer_id"
    """Payload key that names the customer."""
    value_key: str = "value"
    """Payload key that holds the value; a `count` meter has none."""
    event_time_window: Literal["hour", "day"] | None = None
    """Where set, only the last event received for each UTC hour or day counts."""

    def __post_init__(self) -> None:
        where = f"meter {self.event_name!r}"
        _text(where, "event_name", self.event_name, 100)
        _text(where, "display_name", self.display_name, 250)
        _text(where, "customer_key", self.customer_key, 100)
        _text(where, "value_key", self.value_key, 100)
        _one_of(where, "aggregation", self.aggregation, get_args(Aggregation))
        if self.event_time_window is not None:
            _one_of(where, "event_time_window", self.event_time_window, ("hour", "day"))
        if self.customer_key == self.value_key:
            _refuse(where, f"customer_key and value_key are both {self.value_key!r}; give them two names")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductSpec:
    """A product, found again by its own fixed id."""

    id: str
    """Fixed by us: letters, digits, "_" and "-"."""
    name: str
    description: str | None = None
    """None leaves alone what the account says."""
    unit_label: str | None = None
    """What one unit is called on invoices, such as "token"; None leaves it alone."""

    def __post_init__(self) -> None:
        where = f"product {self.id!r}"
        if not isinstance(self.id, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", self.id):
            _refuse(where, f"id={self.id!r} must be made of letters, digits, '_' and '-'")
        _text(where, "name", self.name, 250)
        if self.description is not None:
            _text(where, "description", self.description, 40_000)
        if self.unit_label is not None:
            _text(where, "unit_label", self.unit_label, 12)


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
        _text("price", "key", self.key, 200)
        object.__setattr__(self, "currency", parse_currency(self.currency, f"price {self.key!r}: currency"))
        object.__setattr__(self, "tiers", tuple(self.tiers))
        if self.amount is not None:
            object.__setattr__(self, "amount", parse_amount(self.amount, f"price {self.key!r}: amount"))
        if self.nickname is not None:
            _text(f"price {self.key!r}", "nickname", self.nickname, 5000)
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


@dataclass(frozen=True, slots=True)
class Item:
    """One price in an offer. A licence has a quantity (seats), a metered price has none."""

    price: str
    """Key of the price."""
    quantity: int = 1


@dataclass(frozen=True, slots=True)
class Offer:
    """What one subscription holds: its prices, in the order of its invoice."""

    name: str
    items: tuple[Item, ...]

    def __post_init__(self) -> None:
        _text("offer", "name", self.name, 200)
        object.__setattr__(self, "items", tuple(self.items))


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """Everything that is sold. `a | b` joins two catalogs; what both hold must be equal."""

    meters: tuple[MeterSpec, ...] = ()
    products: tuple[ProductSpec, ...] = ()
    prices: tuple[PriceSpec, ...] = ()
    offers: tuple[Offer, ...] = ()

    def __post_init__(self) -> None:
        for name in ("meters", "products", "prices", "offers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_unique(self)
        _check_references(self)

    def __or__(self, other: Catalog) -> Catalog:
        return Catalog(
            meters=tuple(dict.fromkeys(self.meters + other.meters)),
            products=tuple(dict.fromkeys(self.products + other.products)),
            prices=tuple(dict.fromkeys(self.prices + other.prices)),
            offers=tuple(dict.fromkeys(self.offers + other.offers)),
        )

    def meter(self, event_name: str) -> MeterSpec:
        return _find("meter", event_name, {m.event_name: m for m in self.meters})

    def product(self, id: str) -> ProductSpec:
        return _find("product", id, {p.id: p for p in self.products})

    def price(self, key: str) -> PriceSpec:
        return _find("price", key, {p.key: p for p in self.prices})

    def offer(self, name: str | None = None) -> Offer:
        """The offer of that name; without a name the only one."""
        if name is None and len(self.offers) == 1:
            return self.offers[0]
        if name is None:
            names = ", ".join(o.name for o in self.offers) or "none"
            raise ConfigurationError(f"say which offer is meant; the catalog has {names}")
        return _find("offer", name, {o.name: o for o in self.offers})


_Spec = TypeVar("_Spec", MeterSpec, ProductSpec, PriceSpec, Offer)


def _find(kind: str, name: str, known: dict[str, _Spec]) -> _Spec:
    if name not in known:
        raise ConfigurationError(f"the catalog has no {kind} {name!r}; it has {', '.join(known) or 'none'}")
    return known[name]


def _refuse(where: str, problem: str) -> NoReturn:
    raise ConfigurationError(f"{where}: {problem}")


def _text(where: str, field: str, value: object, longest: int) -> None:
    if not isinstance(value, str) or not value.strip():
        _refuse(where, f"{field}={value!r} must be text that is not empty")
    elif len(value) > longest:
        _refuse(where, f"{field} has {len(value)} characters; Stripe takes at most {longest}")


def _one_of(where: str, field: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        _refuse(where, f"{field}={value!r} must be one of {', '.join(allowed)}")


def _count(where: str, field: str, value: object, least: int = 1) -> None:
    if type(value) is not int or value < least:
        _refuse(where, f"{field}={value!r} must be a whole number of at least {least}")


def _check_interval(price: PriceSpec) -> None:
    where = f"price {price.key!r}"
    _one_of(where, "interval", price.interval, get_args(Interval))
    _count(where, "interval_count", price.interval_count)
    if price.interval_count > _LONGEST[price.interval]:
        _refuse(
            where,
            f"interval_count={price.interval_count} is longer than three years "
            f"({_LONGEST[price.interval]} {price.interval}s), the longest that Stripe bills",
        )


def _check_flat(price: PriceSpec) -> None:
    where = f"price {price.key!r}"
    if price.amount is None:
        _refuse(where, "give amount, or tiers and tiers_mode")
    _check_amount(price, "amount", price.amount, whole=not price.metered)
    if price.package_size is not None:
        _count(where, "package_size", price.package_size)
    _one_of(where, "package_round", price.package_round, get_args(Rounding))


def _check_tiered(price: PriceSpec) -> None:
    where = f"price {price.key!r}"
    if price.package_size is not None:
        _refuse(
            where,
            "package_size and tiers exclude each other (Stripe refuses transform_quantity with tiers); "
            "divide the tiers' unit amounts by the package size instead",
        )
    if price.amount is not None:
        _refuse(where, "amount and tiers exclude each other; a tiered price has its amounts in its tiers")
    if price.tiers_mode is None:
        _refuse(where, "tiers need tiers_mode: 'graduated' or 'volume'")
    _one_of(where, "tiers_mode", price.tiers_mode, get_args(TiersMode))
    if not price.tiers:
        _refuse(where, f"tiers_mode={price.tiers_mode!r} needs tiers")
    _check_steps(where, price.tiers)
    for i, tier in enumerate(price.tiers):
        if tier.unit_amount is None and tier.flat_amount is None:
            _refuse(where, f"tiers[{i}] needs unit_amount or flat_amount; write 0 for a free tier")
        _check_amount(price, f"tiers[{i}].unit_amount", tier.unit_amount, whole=False)
        _check_amount(price, f"tiers[{i}].flat_amount", tier.flat_amount, whole=True)


def _check_steps(where: str, tiers: tuple[Tier, ...]) -> None:
    before = 0
    for i, tier in enumerate(tiers):
        last = i == len(tiers) - 1
        if tier.up_to == "inf":
            if not last:
                _refuse(
                    where, f"tiers[{i}].up_to is 'inf', but a tier follows; only the last one may be open"
                )
            continue
        if type(tier.up_to) is not int:
            _refuse(
                where, f"tiers[{i}].up_to={tier.up_to!r} must be a whole number, or 'inf' for the last tier"
            )
        elif tier.up_to <= before:
            rule = f"above the tier before it ({before})" if i else "at least 1"
            _refuse(where, f"tiers[{i}].up_to={tier.up_to} must be {rule}; list tiers from small to large")
        elif last:
            _refuse(where, f"tiers[{i}].up_to={tier.up_to}: the last tier must be open, write up_to='inf'")
        else:
            before = tier.up_to


def _check_amount(price: PriceSpec, field: str, value: Amount | None, *, whole: bool) -> None:
    if value is None:
        return
    minor = minor_units(value, price.currency, f"price {price.key!r}: {field}")
    # A usage price may well be a fraction of a yen; a fee that is charged as it stands may not.
    unit = 100 if price.currency in {"isk", "ugx"} else 1
    if whole and price.currency in WHOLE_ONLY and minor % unit:
        _refuse(
            f"price {price.key!r}",
            f"{field}={value} has a fraction, but {price.currency!r} is charged in whole units only",
        )


def _check_unique(catalog: Catalog) -> None:
    for kind, names in _names(catalog):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigurationError(
                f"catalog: {kind} {twice[0]!r} is there twice with different contents; give each its own"
            )


def _names(catalog: Catalog) -> Iterator[tuple[str, list[str]]]:
    yield "meter", [m.event_name for m in catalog.meters]
    yield "product", [p.id for p in catalog.products]
    yield "price", [p.key for p in catalog.prices]
    yield "offer", [o.name for o in catalog.offers]


def _check_references(catalog: Catalog) -> None:
    for price in catalog.prices:
        _known(f"price {price.key!r}", "product", price.product, [p.id for p in catalog.products])
        if price.meter is not None:
            _known(f"price {price.key!r}", "meter", price.meter, [m.event_name for m in catalog.meters])
    for offer in catalog.offers:
        _check_offer(catalog, offer)


def _check_offer(catalog: Catalog, offer: Offer) -> None:
    where = f"offer {offer.name!r}"
    if not offer.items:
        _refuse(where, "it has no items; name at least one price")
    prices = {p.key: p for p in catalog.prices}
    for item in offer.items:
        _known(where, "price", item.price, list(prices))
        _count(where, f"quantity of {item.price!r}", item.quantity)
        if item.quantity != 1 and prices[item.price].metered:
            _refuse(where, f"{item.price!r} is metered and takes no quantity; usage is its quantity")
    keys = [item.price for item in offer.items]
    if len(set(keys)) < len(keys):
        _refuse(where, "it names a price twice; use quantity instead")
    if len({prices[key].currency for key in keys}) > 1:
        _refuse(where, "its prices are in several currencies; a subscription has one")
    meters = [prices[key].meter for key in keys if prices[key].metered]
    if len(set(meters)) < len(meters):
        _refuse(where, "two of its prices charge the same meter, so the same usage would be billed twice")


def _known(where: str, field: str, name: str, known: list[str]) -> None:
    if name not in known:
        _refuse(where, f"{field}={name!r} is not in the catalog; it has {', '.join(known) or 'none'}")
