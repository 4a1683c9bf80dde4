"""`plan_migration`: who has a price that was replaced, and what moving them would do. It only reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast, get_args

from ..errors import BillingError, ConfigurationError
from ..usage import NOTHING
from .account import KEY, fetch_prices, is_ours, price_facts
from .catalog import Catalog
from .facts import Facts, summary_of_price
from .leftovers import ENDED
from .money import major_units
from .moves import ItemMove, Migration, Move, Proration, becomes, unlike
from .planning import compare
from .refusals import doing
from .subscriptions import Subscription, parse_subscription

if TYPE_CHECKING:
    from stripe import StripeClient


@dataclass(frozen=True, slots=True)
class _Target:
    """The price that takes another one's place."""

    key: str
    id: str
    old: Facts
    new: Facts


@dataclass(frozen=True, slots=True)
class _Rules:
    """How subscriptions are to be moved."""

    proration: Proration
    to_flexible: bool
    forfeit_usage: bool
    amounts: bool


def plan_migration(
    catalog: Catalog,
    client: StripeClient,
    *,
    prices: Mapping[str, str] = NOTHING,
    customers: Iterable[str] = (),
    proration: Proration = "create_prorations",
    to_flexible: bool = False,
    forfeit_usage: bool = False,
    amounts: bool = False,
    exact: bool = True,
) -> Migration:
    """Who has a price that the catalog has replaced, and what moving them would do. Stores nothing.

    Args:
        catalog: What was applied; its prices are where subscribers go.
        client: A Stripe client, such as `connect()` makes.
        prices: Old price (Stripe's id or lookup key) to key in the catalog, instead of all prices that
            were replaced under a key of the catalog.
        customers: Only these; everybody if there are none.
        proration: What licences cost for the rest of the period: "create_prorations" puts the difference
            on the next invoice, "always_invoice" invoices it at once, "none" charges the new price from the
            next period on. Usage is not touched by it.
        to_flexible: Move subscriptions in classic billing to flexible billing first, which keeps usage at
            the price of its time. There is no way back.
        forfeit_usage: Move classic subscriptions all the same; what they used before is never billed.
        amounts: Ask Stripe what each next invoice comes to, without and with the move.
        exact: Refuse prices that differ from the catalog's instead of moving to what has their keys.
    """
    if proration not in get_args(Proration):
        raise ConfigurationError(f"proration={proration!r} must be one of {', '.join(get_args(Proration))}")
    rules = _Rules(proration, to_flexible, forfeit_usage, amounts)
    with doing("looking for who has a price that was replaced"):
        targets, names = _targets(catalog, client, prices, exact=exact)
        found = _subscriptions(client, targets, frozenset(customers))
        moves = [_move(client, raw, targets, names, rules) for raw in found]
    return Migration(catalog, tuple(moves), proration, forfeit_usage)


def used_of(client: StripeClient, meter: str, customer: str, start: datetime, end: datetime) -> Decimal:
    """What a customer used of a meter in a period, to the minute."""
    first, last = int(start.timestamp()) // 60 * 60, -(-int(end.timestamp()) // 60) * 60
    page = client.v1.billing.meters.event_summaries.list(
        meter, {"customer": customer, "start_time": first, "end_time": last, "limit": 100}
    )
    return sum((Decimal(str(one.aggregated_value)) for one in page.auto_paging_iter()), Decimal(0))


def changed_items(items: Iterable[ItemMove]) -> list[dict[str, str]]:
    """Without a quantity: who adds a seat meanwhile keeps it."""
    return [{"id": item.item, "price": item.new_price} for item in items]


def _targets(
    catalog: Catalog, client: StripeClient, wanted: Mapping[str, str], *, exact: bool
) -> tuple[dict[str, _Target], dict[str, str]]:
    """Where each old price leads, by its id, and the event name of each meter."""
    account = fetch_prices(catalog, client)
    actions = {change.key: change for change in compare(catalog, account).changes if change.kind == "price"}
    names = {m.id: m.event_name for m in client.v1.billing.meters.list({"limit": 100}).auto_paging_iter()}
    for wanted_key in wanted.values():
        catalog.price(wanted_key)
    page = client.v1.prices.list({"limit": 100, "expand": ["data.tiers"]})
    targets: dict[str, _Target] = {}
    named: set[str] = set()
    for price in page.auto_paging_iter():
        named.update(name for name in (price.id, price.lookup_key) if name is not None)
        key = _key_for(price, wanted, actions)
        found = None if key is None else account.get("price", key)
        if key is None or (found is not None and found.id == price.id):
            continue
        if found is None or not found.active or (exact and actions[key].action == "replace"):
            raise BillingError(f"price {key!r} is not as the catalog says; apply the catalog first")
        targets[price.id] = _Target(key, found.id, price_facts(price, names), found.fixed)
    if unknown := sorted(set(wanted) - named):
        raise BillingError(f"the account has no price {unknown[0]!r}; give its Stripe id or its lookup key")
    return targets, names


def _key_for(price: Any, wanted: Mapping[str, str], known: Mapping[str, Any]) -> str | None:
    """The catalog's key of the price that takes this one's place, if it is to be left."""
    if wanted:
        return wanted.get(price.id) or wanted.get(price.lookup_key or "")
    key = price.metadata.to_dict().get(KEY) if is_ours(price) else None
    return key if key in known else None


def _subscriptions(
    client: StripeClient, targets: Mapping[str, _Target], customers: frozenset[str]
) -> Iterator[Any]:
    """Each subscription with an old price once, the oldest first, so that a list can be told again."""
    found: dict[str, Any] = {}
    for price in targets:
        page = client.v1.subscriptions.list({"price": price, "status": "all", "limit": 100})
        for raw in page.auto_paging_iter():
            if raw.status not in ENDED and (not customers or _id(raw.customer) in customers):
                found.setdefault(raw.id, raw)
    return iter(sorted(found.values(), key=lambda raw: (raw.created, raw.id)))


def _move(
    client: StripeClient, raw: Any, targets: Mapping[str, _Target], names: Mapping[str, str], rules: _Rules
) -> Move:
    standing = parse_subscription(raw)
    classic = standing.billing_mode == "classic"
    flexible = not classic or rules.to_flexible
    items = []
    for item in standing.items:
        target = targets.get(item.price)
        if target is None:
            continue
        used = None
        if item.meter is not None:
            used = used_of(client, item.meter, standing.customer, item.period_start, item.period_end)
        told = becomes(
            target.old, used, item.period_start, item.period_end, flexible=flexible, proration=rules.proration
        )
        items.append(
            ItemMove(
                item=item.id,
                key=target.key,
                old_price=item.price,
                new_price=target.id,
                old_summary=summary_of_price(target.old),
                new_summary=summary_of_price(target.new),
                meter=None if item.meter is None else names.get(item.meter, item.meter),
                used=used,
                period_start=item.period_start,
                period_end=item.period_end,
                becomes=told,
            )
        )
    move = Move(
        standing.customer,
        standing.id,
        standing.status,
        standing.billing_mode,
        tuple(items),
        turns_flexible=classic and rules.to_flexible,
        currency=raw.currency,
    )
    move = replace(move, blocked=_blocked(raw, standing, move, targets, rules))
    return _priced(client, move, rules) if rules.amounts and move.blocked is None else move


def _blocked(
    raw: Any, standing: Subscription, move: Move, targets: Mapping[str, _Target], rules: _Rules
) -> str | None:
    has = {item.price for item in standing.items}
    for item in move.items:
        target = targets[item.old_price]
        if why := unlike(target.old, target.new):
            return why
        if item.new_price in has:
            return f"it has {item.new_price} already, so the same usage would be billed twice; remove one"
    if standing.status == "incomplete":
        return "its first payment is open; see to that first"
    if getattr(raw, "schedule", None):
        return "a schedule decides its prices and would put the old one back; change the schedule instead"
    if standing.billing_mode == "classic" and not rules.to_flexible and not rules.forfeit_usage:
        for item in move.items:
            if item.used:
                return (
                    f"{item.becomes}. Move it to flexible billing first (to_flexible, --to-flexible), wait "
                    f"until {item.period_end:%Y-%m-%d}, or give that usage away (forfeit_usage, "
                    f"--forfeit-usage)"
                )
    return None


def _priced(client: StripeClient, move: Move, rules: _Rules) -> Move:
    """The next invoice as it stands, and as it would be. In flexible billing both prices are on it."""
    details = {"items": changed_items(move.items), "proration_behavior": rules.proration}
    changed: dict[str, Any] = {"subscription": move.subscription, "subscription_details": details}
    before = client.v1.invoices.create_preview({"subscription": move.subscription})
    after = client.v1.invoices.create_preview(cast("Any", changed))
    return replace(
        move,
        next_total=major_units(before.total, move.currency),
        next_total_after=major_units(after.total, move.currency),
    )


def _id(expandable: Any) -> str:
    return expandable if isinstance(expandable, str) else str(expandable.id)
