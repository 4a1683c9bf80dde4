"""Customers and their subscriptions. Nobody is subscribed twice, and no meter is billed twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from ..errors import BillingError, ConfigurationError
from ..usage import NOTHING
from .account import Account, fetch_prices
from .applying import Applied
from .catalog import Catalog, Offer
from .leftovers import ENDED
from .planning import compare
from .refusals import doing, is_passing

if TYPE_CHECKING:
    from stripe import StripeClient

Collection = Literal["charge_automatically", "send_invoice", "default_incomplete"]
BillingMode = Literal["flexible", "classic"]

_TRIES = 4
_NO_QUANTITIES: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SubscriptionItem:
    """One price of a subscription."""

    id: str
    price: str
    """Stripe's id of the price."""
    lookup_key: str | None
    quantity: int | None
    """None for a metered price."""
    meter: str | None
    """Stripe's id of its meter."""
    period_start: datetime
    period_end: datetime
    """The billing period it is in; usage until then is on the invoice made then."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription as it stands."""

    id: str
    customer: str
    status: str
    collection_method: str
    billing_mode: str
    cancel_at_period_end: bool
    latest_invoice: str | None
    items: tuple[SubscriptionItem, ...]
    created: bool = False
    """Whether this call made it; False if it was there already."""


def create_customer(
    client: StripeClient,
    name: str = "John Doe",
    *,
    email: str | None = None,
    test_clock: str | None = None,
    metadata: Mapping[str, str] = NOTHING,
) -> str:
    """Make a customer and return its id. Each call makes another one."""
    params: dict[str, Any] = {"name": name}
    params |= {"email": email} if email else {}
    params |= {"test_clock": test_clock} if test_clock else {}
    params |= {"metadata": dict(metadata)} if metadata else {}
    with doing("making the customer"):
        return client.v1.customers.create(cast("Any", params)).id


def subscribe(
    client: StripeClient,
    customer: str,
    catalog: Catalog | Applied,
    *,
    offer: str | None = None,
    quantities: Mapping[str, int] = _NO_QUANTITIES,
    billing_mode: BillingMode = "flexible",
    collection: Collection | None = None,
    days_until_due: int = 30,
    anchor: datetime | None = None,
    backdate: datetime | None = None,
    exact: bool = True,
) -> Subscription:
    """Subscribe a customer to an offer; a subscription to the same prices that is there is returned.

    A customer who is billed for the same meter in another subscription is refused, since the same usage
    would be billed twice.

    Args:
        client: A Stripe client, such as `connect()` makes.
        customer: Stripe customer id.
        catalog: What was applied.
        offer: Which of the catalog's offers; needed if it has several.
        quantities: Seats by price key, instead of the offer's.
        billing_mode: "flexible" bills usage at the price that was in force; "classic" is Stripe's old way.
        collection: "charge_automatically" needs a payment method if anything is due at first,
            "send_invoice" mails invoices that are due in `days_until_due` days, "default_incomplete" starts
            unpaid. None takes "send_invoice" where a licence fee or past usage is due at first, since
            Stripe refuses a customer without a payment method otherwise, and "charge_automatically" where
            none is.
        days_until_due: For "send_invoice".
        anchor: When the first full period begins, such as the first of next month; licences pay for the
            time until then in proportion. Within one period from now.
        backdate: When it began, in the past. Flexible billing invoices each past period, with the usage
            that the meter has of it, and counts periods from then on. Not in classic billing.
        exact: Refuse prices that differ from the catalog's instead of taking what has their keys.
    """
    values = catalog.catalog if isinstance(catalog, Applied) else catalog
    chosen = values.offer(offer)
    _check_arguments(billing_mode, collection, days_until_due)
    starting = _starting(anchor, backdate, billing_mode)
    account = check_prices(client, values, offer=chosen.name, exact=exact)
    metered = {item.price: values.price(item.price).metered for item in chosen.items}
    if collection is None:
        due_at_first = backdate is not None or not all(metered.values())
        collection = "send_invoice" if due_at_first else "charge_automatically"
    params: dict[str, Any] = {
        "customer": customer,
        "items": _items(chosen, account, metered, quantities),
        "billing_mode": {"type": billing_mode},
        **_collecting(collection, days_until_due),
        **starting,
    }
    with doing(f"subscribing {customer} to {chosen.name!r}"):
        return _find_or_create(client, params, _meters_charged(chosen, account))


def check_prices(
    client: StripeClient, catalog: Catalog, *, offer: str | None = None, exact: bool = True
) -> Account:
    """See that an offer can be subscribed to; `BillingError` says what is missing or differs.

    Args:
        offer: Which of the catalog's offers; needed if it has several.
        exact: Refuse prices that differ from the catalog's, too.
    """
    account = fetch_prices(catalog, client)
    _check_prices(catalog, catalog.offer(offer), account, exact=exact)
    return account


def find_subscriptions(client: StripeClient, customer: str) -> tuple[Subscription, ...]:
    """A customer's subscriptions that have not ended, newest first."""
    with doing(f"looking for subscriptions of {customer}"):
        return tuple(s for s in _all_subscriptions(client, customer) if s.status not in ENDED)


def _check_arguments(billing_mode: str, collection: str | None, days_until_due: int) -> None:
    if billing_mode not in get_args(BillingMode):
        raise ConfigurationError(f"billing_mode={billing_mode!r} must be 'flexible' or 'classic'")
    if collection is not None and collection not in get_args(Collection):
        raise ConfigurationError(
            f"collection={collection!r} must be one of {', '.join(get_args(Collection))}, or None"
        )
    if type(days_until_due) is not int or days_until_due < 0:
        raise ConfigurationError(f"days_until_due={days_until_due!r} must be a whole number of 0 or more")


def _starting(anchor: datetime | None, backdate: datetime | None, billing_mode: str) -> dict[str, int]:
    """When periods begin. Whether a time lies ahead is for Stripe to say: a test clock has its own now."""
    if anchor is not None and backdate is not None:
        raise ConfigurationError("anchor and backdate exclude each other; both say where periods begin")
    if backdate is not None and billing_mode == "classic":
        raise ConfigurationError(
            "backdate needs billing_mode='flexible', which invoices each past period by itself; classic "
            "billing mixes past usage with that of the first period"
        )
    for name, at in (("anchor", anchor), ("backdate", backdate)):
        if at is not None and (not isinstance(at, datetime) or at.tzinfo is None):
            raise ConfigurationError(f"{name}={at!r} must be a datetime with a time zone (tzinfo)")
    given = {"billing_cycle_anchor": anchor, "backdate_start_date": backdate}
    return {name: int(at.timestamp()) for name, at in given.items() if at is not None}


def _check_prices(catalog: Catalog, offer: Offer, account: Account, *, exact: bool) -> None:
    keys = {item.price for item in offer.items}
    for change in compare(catalog, account).changes:
        if change.kind != "price" or change.key not in keys:
            continue
        if change.action == "create":
            raise BillingError(
                f"the account has no price {change.key!r}; set the catalog up first "
                f"(apply(), or llm-metering setup …), and check currency and interval"
            )
        found = account.get("price", change.key)
        if found is not None and not found.active:
            raise BillingError(f"price {change.key!r} ({change.id}) is archived; apply the catalog again")
        if change.action == "replace" and exact:
            differs = "; ".join(f"{d.field} is {d.found}, not {d.wanted}" for d in change.differences)
            raise BillingError(
                f"price {change.key!r} ({change.id}) differs from the catalog: {differs}. "
                f"Apply the catalog, or subscribe with the one that was applied"
            )


def _items(
    offer: Offer, account: Account, metered: Mapping[str, bool], quantities: Mapping[str, int]
) -> list[dict[str, Any]]:
    ids = account.ids("price")
    for key, quantity in quantities.items():
        if metered.get(key) is not False:
            raise ConfigurationError(f"quantities: {key!r} is not a licence of offer {offer.name!r}")
        if type(quantity) is not int or quantity < 1:
            raise ConfigurationError(f"quantities: {key!r} must be a whole number of at least 1")
    return [
        {"price": ids[item.price]}
        if metered[item.price]
        else {"price": ids[item.price], "quantity": quantities.get(item.price, item.quantity)}
        for item in offer.items
    ]


def _collecting(collection: Collection, days_until_due: int) -> dict[str, Any]:
    if collection == "send_invoice":
        return {"collection_method": "send_invoice", "days_until_due": days_until_due}
    if collection == "default_incomplete":
        return {"collection_method": "charge_automatically", "payment_behavior": "default_incomplete"}
    return {"collection_method": "charge_automatically"}


def _meters_charged(offer: Offer, account: Account) -> dict[str, str]:
    """Event name of each meter that the offer's prices charge, by Stripe's id."""
    prices = [account.get("price", item.price) for item in offer.items]
    names = [str(p.fixed["meter"]) for p in prices if p is not None and p.fixed["meter"] is not None]
    ids = account.ids("meter")
    return {ids.get(name, name): name for name in names}


def _find_or_create(client: StripeClient, params: dict[str, Any], meters: Mapping[str, str]) -> Subscription:
    import stripe

    customer = str(params["customer"])
    for salt in range(_TRIES):
        existing = list(_all_subscriptions(client, customer))
        standing = [s for s in existing if s.status not in ENDED]
        found = _matching(standing, params["items"])
        if found:
            return found
        _refuse_double_billing(standing, meters)
        # A new key once an older subscription has ended: Stripe would replay that one for a day.
        newest = existing[0].id if existing else None
        try:
            made = client.v1.subscriptions.create(cast("Any", params), _once(params, newest, salt))
            return parse_subscription(made, created=True)
        except stripe.StripeError as exc:
            if not is_passing(exc) or salt == _TRIES - 1:
                raise
    raise AssertionError("the loop returns or raises")


def _all_subscriptions(client: StripeClient, customer: str) -> Iterator[Subscription]:
    page = client.v1.subscriptions.list({"customer": customer, "status": "all", "limit": 100})
    return (parse_subscription(raw) for raw in page.auto_paging_iter())


def _matching(standing: Sequence[Subscription], items: list[dict[str, Any]]) -> Subscription | None:
    wanted = {item["price"]: item.get("quantity") for item in items}
    for subscription in standing:
        has = {item.price: item.quantity for item in subscription.items}
        if has.keys() != wanted.keys():
            continue
        for price, quantity in wanted.items():
            if quantity is not None and has[price] != quantity:
                raise BillingError(
                    f"{subscription.customer} has {subscription.id} with these prices already, but with "
                    f"quantity {has[price]} of {price}, not {quantity}; change that quantity instead"
                )
        return subscription
    return None


def _refuse_double_billing(standing: Sequence[Subscription], meters: Mapping[str, str]) -> None:
    for subscription in standing:
        for item in subscription.items:
            if item.meter is not None and item.meter in meters:
                raise BillingError(
                    f"{subscription.customer} is billed for meter {meters[item.meter]!r} already, by "
                    f"{subscription.id} ({item.lookup_key or item.price}); a second price on the same meter "
                    f"would bill the same usage twice. Cancel that subscription or move it first"
                )


def _once(params: Mapping[str, Any], newest: str | None, salt: int) -> Any:
    what = json.dumps([params, newest, salt], sort_keys=True)
    return {"idempotency_key": "llm_metering-" + hashlib.sha256(what.encode()).hexdigest()[:48]}


def parse_subscription(raw: Any, *, created: bool = False) -> Subscription:
    """A Stripe subscription as a value."""
    return Subscription(
        id=raw.id,
        customer=raw.customer if isinstance(raw.customer, str) else raw.customer.id,
        status=raw.status,
        collection_method=raw.collection_method,
        billing_mode=raw.billing_mode.type,
        cancel_at_period_end=bool(raw.cancel_at_period_end),
        latest_invoice=_id(getattr(raw, "latest_invoice", None)),
        items=tuple(_item(item) for item in raw["items"].auto_paging_iter()),
        created=created,
    )


def _item(raw: Any) -> SubscriptionItem:
    recurring = raw.price.recurring
    metered = bool(recurring) and recurring.usage_type == "metered"
    return SubscriptionItem(
        id=raw.id,
        price=raw.price.id,
        lookup_key=getattr(raw.price, "lookup_key", None),
        quantity=None if metered else getattr(raw, "quantity", None),
        meter=getattr(recurring, "meter", None) if metered else None,
        period_start=datetime.fromtimestamp(raw.current_period_start, timezone.utc),
        period_end=datetime.fromtimestamp(raw.current_period_end, timezone.utc),
    )


def _id(expandable: Any) -> str | None:
    return expandable if expandable is None or isinstance(expandable, str) else str(expandable.id)
