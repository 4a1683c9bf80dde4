"""What is ours in an account and not in the catalog: found, and asked whether it still bills someone.

Prices and products carry our mark. A meter cannot carry one: it counts as ours if a price of ours charges
it and no price of anybody else's does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .facts import Kind, summary_of_price

if TYPE_CHECKING:
    from stripe import StripeClient

    from .catalog import Catalog

ENDED = ("canceled", "incomplete_expired")
"""What a subscription's status is once it renews no more."""

_NAMED = 3
"""So many subscriptions are named in a reason."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """An active object of ours that a catalog does not hold."""

    kind: Kind
    key: str
    """Lookup key, product id or event name; a price that has lost its key has its id."""
    id: str
    summary: str
    stays: str | None
    """Why it cannot be switched off, for people; None if nothing speaks against it."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """Every object of an account that may be a leftover, as Stripe shows it."""

    prices: Sequence[Any]
    products: Sequence[Any]
    meters: Sequence[Any]


def fetch_shelf(client: StripeClient) -> Shelf:
    """All prices, active or not, since an inactive one tells that its meter is ours; active products."""
    prices = client.v1.prices.list({"limit": 100, "expand": ["data.tiers"]})
    return Shelf(
        list(prices.auto_paging_iter()),
        list(client.v1.products.list({"limit": 100, "active": True}).auto_paging_iter()),
        list(client.v1.billing.meters.list({"limit": 100, "status": "active"}).auto_paging_iter()),
    )


def find_leftovers(
    catalog: Catalog, client: StripeClient, shelf: Shelf, ours: Mapping[str, bool], facts: Mapping[str, Any]
) -> tuple[Leftover, ...]:
    """The leftovers among a shelf's objects, in the order in which they are switched off.

    Args:
        ours: Whether each price and product carries our mark, by id.
        facts: What each price charges, in comparable words, by id.
    """
    keys = {price.key for price in catalog.prices}
    billed = {
        p.id: subscribers(client, p.id) for p in shelf.prices if ours[p.id] and p.lookup_key not in keys
    }
    prices = [
        _price(price, facts[price.id], billed[price.id])
        for price in shelf.prices
        if price.active and price.id in billed
    ]
    kept = {price.id for price in shelf.prices if price.active} - {p.id for p in prices if p.stays is None}
    products = [
        _product(product, [p for p in shelf.prices if p.id in kept and p.product == product.id])
        for product in shelf.products
        if ours[product.id] and product.id not in {p.id for p in catalog.products}
    ]
    return (*prices, *products, *_meters(catalog, shelf, ours, kept, billed))


def subscribers(client: StripeClient, price: str) -> list[Any]:
    """Subscriptions with a price: those that go on, and those whose last invoice is still a draft."""
    page = client.v1.subscriptions.list(
        {"price": price, "status": "all", "limit": 100, "expand": ["data.latest_invoice"]}
    )
    return [one for one in page.auto_paging_iter() if goes_on(one) or _is_drafted(one)]


def goes_on(subscription: Any) -> bool:
    return subscription.status not in ENDED


def _is_drafted(subscription: Any) -> bool:
    """Usage that is reported until the draft is finalised still counts."""
    return getattr(subscription.latest_invoice, "status", None) == "draft"


def _price(price: Any, facts: Any, subscribed: Sequence[Any]) -> Leftover:
    billed = [one for one in subscribed if goes_on(one)]
    stays = f"it bills {_many(billed)}; move them first (llm-metering migrate)" if billed else None
    return Leftover("price", price.lookup_key or price.id, price.id, summary_of_price(facts), stays)


def _product(product: Any, kept: Sequence[Any]) -> Leftover:
    stays = f"it has {_names([p.id for p in kept], 'price')} that stays on sale" if kept else None
    return Leftover("product", product.id, product.id, repr(product.name), stays)


def _meters(
    catalog: Catalog,
    shelf: Shelf,
    ours: Mapping[str, bool],
    kept: set[str],
    billed: Mapping[str, Sequence[Any]],
) -> Iterator[Leftover]:
    wanted = {meter.event_name for meter in catalog.meters}
    for meter in shelf.meters:
        prices = [p for p in shelf.prices if p.recurring and getattr(p.recurring, "meter", None) == meter.id]
        foreign = any(not ours[p.id] for p in prices)
        if meter.event_name in wanted or foreign or not prices:
            continue
        stays = None
        if selling := [p.id for p in prices if p.id in kept]:
            stays = f"{_names(selling, 'price')} that stays on sale charges it"
        elif waiting := {one.id: one for p in prices for one in billed.get(p.id, ())}:
            # An archived price goes on billing those who have it, and a meter that is off takes no events.
            stays = f"archived prices charge it and bill {_many(list(waiting.values()))}"
        yield Leftover("meter", meter.event_name, meter.id, repr(meter.display_name), stays)


def _many(subscriptions: Sequence[Any]) -> str:
    return _names([one.id for one in subscriptions], "subscription")


def _names(ids: Sequence[str], what: str) -> str:
    shown = ", ".join(ids[:_NAMED])
    if len(ids) == 1:
        return f"the {what} {shown}"
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"{len(ids)} {what}s ({shown}{more})"
