"""What a Stripe account has of a catalog: read with GET requests only, and put into comparable words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from .alerts import found_alerts
from .catalog import Catalog
from .facts import Fact, Found, Kind
from .leftovers import Leftover, fetch_shelf, find_leftovers
from .refusals import doing

if TYPE_CHECKING:
    from stripe import StripeClient

MARK = "managed_by"
MARK_VALUE = "llm_metering"
"""Metadata that products and prices of ours carry."""
KEY = "catalog_key"
"""Metadata of a price: its key, kept when a newer price takes the lookup key over."""

_LOOKUP_KEYS_A_CALL = 10


@dataclass(frozen=True, slots=True)
class Account:
    """A snapshot of the objects that a catalog names."""

    found: Mapping[tuple[Kind, str], Found] = field(default_factory=dict)
    leftovers: tuple[Leftover, ...] = ()
    """What is ours and not in the catalog; empty where nobody looked."""

    def get(self, kind: Kind, key: str) -> Found | None:
        return self.found.get((kind, key))

    def ids(self, kind: Kind) -> dict[str, str]:
        """Stripe's id of each object of a kind, by our key."""
        return {key: found.id for (k, key), found in self.found.items() if k == kind}


def fetch(catalog: Catalog, client: StripeClient, *, leftovers: bool = False) -> Account:
    """Look at an account. Meters are found by paging, products by id, prices by lookup key.

    Args:
        leftovers: Look through all products and prices for what is ours and not in the catalog, too.
    """
    with doing("reading what the account has"):
        products = list(_products(client, [p.id for p in catalog.products]))
        rest = _meters_and_prices(catalog, client)
        alerts = _alerts(catalog, client, rest)
        left = _leftovers(catalog, client) if leftovers else ()
    return Account({(found.kind, found.key): found for found in [*products, *rest, *alerts]}, left)


def fetch_prices(catalog: Catalog, client: StripeClient) -> Account:
    """Only the meters and prices of a catalog: what a subscription needs."""
    with doing("looking for the prices"):
        return Account({(f.kind, f.key): f for f in _meters_and_prices(catalog, client)})


def _meters_and_prices(catalog: Catalog, client: StripeClient) -> list[Found]:
    meters = list(_meters(client, {m.event_name for m in catalog.meters}))
    names = {meter.id: meter.event_name for meter in meters}
    prices = list(_prices(client, [p.key for p in catalog.prices], names))
    priced = {price.meter for price in catalog.prices}
    used = {price.fixed["meter"] for price in prices if price.ours}
    ours = {m.event_name for m in meters if m.event_name in used or m.event_name not in priced}
    return [*(_found_meter(meter, ours=meter.event_name in ours) for meter in meters), *prices]


def _alerts(catalog: Catalog, client: StripeClient, rest: Iterable[Found]) -> list[Found]:
    names = {found.id: found.key for found in rest if found.kind == "meter"}
    return list(found_alerts(client, {alert.title for alert in catalog.alerts}, names))


def _leftovers(catalog: Catalog, client: StripeClient) -> tuple[Leftover, ...]:
    shelf = fetch_shelf(client)
    ours = {one.id: is_ours(one) for one in (*shelf.prices, *shelf.products)}
    names = {meter.id: meter.event_name for meter in shelf.meters}
    facts = {price.id: price_facts(price, names) for price in shelf.prices if ours[price.id]}
    return find_leftovers(catalog, client, shelf, ours, facts)


def _meters(client: StripeClient, event_names: set[str]) -> Iterable[Any]:
    """Stripe cannot be asked for an event name, and inactive meters keep theirs: page through them all."""
    missing = set(event_names)
    if not missing:
        return
    for meter in client.v1.billing.meters.list({"limit": 100}).auto_paging_iter():
        if meter.event_name in missing:
            missing.remove(meter.event_name)
            yield meter
            if not missing:
                return


def _found_meter(meter: Any, *, ours: bool) -> Found:
    return Found(
        kind="meter",
        key=meter.event_name,
        id=meter.id,
        active=meter.status == "active",
        ours=ours,
        fixed={
            "aggregation": meter.default_aggregation.formula,
            "customer_key": meter.customer_mapping.event_payload_key,
            "event_time_window": getattr(meter, "event_time_window", None),
            "value_key": meter.value_settings.event_payload_key,
        },
        editable={"display_name": meter.display_name},
    )


def _products(client: StripeClient, ids: Iterable[str]) -> Iterable[Found]:
    import stripe

    for product_id in ids:
        try:
            product: Any = client.v1.products.retrieve(product_id)
        except stripe.InvalidRequestError as exc:
            if exc.http_status == 404:
                continue
            raise
        if getattr(product, "deleted", False):
            continue
        yield Found(
            kind="product",
            key=product.id,
            id=product.id,
            active=product.active,
            ours=is_ours(product),
            fixed={},
            editable={
                "name": product.name,
                "description": getattr(product, "description", None),
                "unit_label": getattr(product, "unit_label", None),
            },
        )


def _prices(client: StripeClient, keys: list[str], meters: Mapping[str, str]) -> Iterable[Found]:
    for start in range(0, len(keys), _LOOKUP_KEYS_A_CALL):
        some = keys[start : start + _LOOKUP_KEYS_A_CALL]
        page = client.v1.prices.list({"lookup_keys": some, "limit": 100, "expand": ["data.tiers"]})
        for price in page.auto_paging_iter():
            yield found_price(price, meters)


def found_price(price: Any, meters: Mapping[str, str]) -> Found:
    """A Stripe price in comparable words. `meters` names the event of each known meter id."""
    return Found(
        kind="price",
        key=price.lookup_key,
        id=price.id,
        active=price.active,
        ours=is_ours(price),
        fixed=price_facts(price, meters),
        editable={"nickname": getattr(price, "nickname", None)},
    )


def price_facts(price: Any, meters: Mapping[str, str]) -> dict[str, Fact]:
    """What a Stripe price charges. `meters` names the event of each known meter id."""
    recurring = price.recurring
    meter = getattr(recurring, "meter", None) if recurring else None
    package = getattr(price, "transform_quantity", None)
    tiers = getattr(price, "tiers", None) or ()
    return {
        "product": price.product if isinstance(price.product, str) else price.product.id,
        "currency": price.currency,
        "usage_type": recurring.usage_type if recurring else "one_time",
        "meter": None if meter is None else meters.get(meter, meter),
        "interval": recurring.interval if recurring else None,
        "interval_count": recurring.interval_count if recurring else None,
        "amount": None if tiers else _decimal(price, "unit_amount"),
        "package_size": package.divide_by if package else None,
        "package_round": package.round if package else None,
        "tiers_mode": getattr(price, "tiers_mode", None),
        "tiers": tuple(
            (tier.up_to, _decimal(tier, "unit_amount") or _ZERO, _decimal(tier, "flat_amount") or _ZERO)
            for tier in tiers
        ),
    }


_ZERO = Decimal(0)


def _decimal(holder: Any, name: str) -> Decimal | None:
    exact = getattr(holder, f"{name}_decimal", None)
    value = getattr(holder, name, None) if exact is None else exact
    return None if value is None else Decimal(str(value))


def is_ours(holder: Any) -> bool:
    """Whether a product or price carries our mark."""
    metadata: Any = getattr(holder, "metadata", None)
    return metadata is not None and metadata.to_dict().get(MARK) == MARK_VALUE
