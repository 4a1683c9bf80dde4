"""What is sold, as frozen values: meters, products, prices, and offers that a customer subscribes to.

Everything is checked when it is made, before any call: errors name the field and the rule. `plan` compares
a catalog with a Stripe account, `apply` makes the account match it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from ..errors import ConfigurationError
from .checks import count, one_of, refuse, text
from .grants import AlertSpec, CreditSpec
from .prices import PriceSpec

Aggregation = Literal["sum", "count", "last"]


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
        text(where, "event_name", self.event_name, 100)
        text(where, "display_name", self.display_name, 250)
        text(where, "customer_key", self.customer_key, 100)
        text(where, "value_key", self.value_key, 100)
        one_of(where, "aggregation", self.aggregation, get_args(Aggregation))
        if self.event_time_window is not None:
            one_of(where, "event_time_window", self.event_time_window, ("hour", "day"))
        if self.customer_key == self.value_key:
            refuse(where, f"customer_key and value_key are both {self.value_key!r}; give them two names")


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
            refuse(where, f"id={self.id!r} must be made of letters, digits, '_' and '-'")
        text(where, "name", self.name, 250)
        if self.description is not None:
            text(where, "description", self.description, 40_000)
        if self.unit_label is not None:
            text(where, "unit_label", self.unit_label, 12)


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
        text("offer", "name", self.name, 200)
        object.__setattr__(self, "items", tuple(self.items))


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """Everything that is sold. `a | b` joins two catalogs; what both hold must be equal."""

    meters: tuple[MeterSpec, ...] = ()
    products: tuple[ProductSpec, ...] = ()
    prices: tuple[PriceSpec, ...] = ()
    offers: tuple[Offer, ...] = ()
    credits: tuple[CreditSpec, ...] = ()
    """What customers may be granted with `grant_credit`; `apply` has nothing to do for them."""
    alerts: tuple[AlertSpec, ...] = ()
    """For every customer; `apply` makes them."""

    def __post_init__(self) -> None:
        for name in ("meters", "products", "prices", "offers", "credits", "alerts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_unique(self)
        _check_references(self)

    def __or__(self, other: Catalog) -> Catalog:
        return Catalog(
            meters=tuple(dict.fromkeys(self.meters + other.meters)),
            products=tuple(dict.fromkeys(self.products + other.products)),
            prices=tuple(dict.fromkeys(self.prices + other.prices)),
            offers=tuple(dict.fromkeys(self.offers + other.offers)),
            credits=tuple(dict.fromkeys(self.credits + other.credits)),
            alerts=tuple(dict.fromkeys(self.alerts + other.alerts)),
        )

    def meter(self, event_name: str) -> MeterSpec:
        return _find("meter", event_name, {m.event_name: m for m in self.meters})

    def product(self, id: str) -> ProductSpec:
        return _find("product", id, {p.id: p for p in self.products})

    def price(self, key: str) -> PriceSpec:
        return _find("price", key, {p.key: p for p in self.prices})

    def credit(self, key: str) -> CreditSpec:
        return _find("credit", key, {c.key: c for c in self.credits})

    def alert(self, title: str) -> AlertSpec:
        return _find("alert", title, {a.title: a for a in self.alerts})

    def offer(self, name: str | None = None) -> Offer:
        """The offer of that name; without a name the only one."""
        if name is None and len(self.offers) == 1:
            return self.offers[0]
        if name is None:
            names = ", ".join(o.name for o in self.offers) or "none"
            raise ConfigurationError(f"say which offer is meant; the catalog has {names}")
        return _find("offer", name, {o.name: o for o in self.offers})


_Spec = TypeVar("_Spec", MeterSpec, ProductSpec, PriceSpec, Offer, CreditSpec, AlertSpec)


def _find(kind: str, name: str, known: dict[str, _Spec]) -> _Spec:
    if name not in known:
        raise ConfigurationError(f"the catalog has no {kind} {name!r}; it has {', '.join(known) or 'none'}")
    return known[name]


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
    yield "credit", [c.key for c in catalog.credits]
    yield "alert", [a.title for a in catalog.alerts]


def _check_references(catalog: Catalog) -> None:
    for price in catalog.prices:
        _known(f"price {price.key!r}", "product", price.product, [p.id for p in catalog.products])
        if price.meter is not None:
            _known(f"price {price.key!r}", "meter", price.meter, [m.event_name for m in catalog.meters])
    for offer in catalog.offers:
        _check_offer(catalog, offer)
    for credit in catalog.credits:
        _check_credit(catalog, credit)
    for alert in catalog.alerts:
        _known(f"alert {alert.title!r}", "meter", alert.meter, [m.event_name for m in catalog.meters])


def _check_credit(catalog: Catalog, credit: CreditSpec) -> None:
    where = f"credit {credit.key!r}"
    prices = {p.key: p for p in catalog.prices}
    for key in credit.prices:
        _known(where, "price", key, list(prices))
        if not prices[key].metered:
            refuse(where, f"{key!r} is a licence; credits pay for metered prices only")
        if prices[key].currency != credit.currency:
            refuse(where, f"{key!r} is in {prices[key].currency!r}, and the credit in {credit.currency!r}")


def _check_offer(catalog: Catalog, offer: Offer) -> None:
    where = f"offer {offer.name!r}"
    if not offer.items:
        refuse(where, "it has no items; name at least one price")
    prices = {p.key: p for p in catalog.prices}
    for item in offer.items:
        _known(where, "price", item.price, list(prices))
        count(where, f"quantity of {item.price!r}", item.quantity)
        if item.quantity != 1 and prices[item.price].metered:
            refuse(where, f"{item.price!r} is metered and takes no quantity; usage is its quantity")
    keys = [item.price for item in offer.items]
    if len(set(keys)) < len(keys):
        refuse(where, "it names a price twice; use quantity instead")
    if len({prices[key].currency for key in keys}) > 1:
        refuse(where, "its prices are in several currencies; a subscription has one")
    meters = [prices[key].meter for key in keys if prices[key].metered]
    if len(set(meters)) < len(meters):
        refuse(where, "two of its prices charge the same meter, so the same usage would be billed twice")


def _known(where: str, field: str, name: str, known: list[str]) -> None:
    if name not in known:
        refuse(where, f"{field}={name!r} is not in the catalog; it has {', '.join(known) or 'none'}")
