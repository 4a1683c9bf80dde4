"""Credit grants: given once, listed in the order in which Stripe uses them up, with what is left.

Credits pay for lines of metered prices when an invoice is finalised. They never limit usage.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from ..errors import BillingError, ConfigurationError
from .account import MARK, MARK_VALUE, fetch_prices
from .applying import Applied
from .catalog import Catalog
from .grants import CreditSpec
from .invoices import id_of, moment_of
from .money import major_units
from .refusals import doing, is_passing

if TYPE_CHECKING:
    from stripe import StripeClient

KEY = "grant_key"
"""Metadata of a grant: its key, which a customer has once."""

_TRIES = 4
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Credit:
    """A credit grant as it stands. Amounts are in major units."""

    id: str
    key: str | None
    name: str | None
    customer: str
    category: str
    currency: str
    amount: Decimal
    """What was granted."""
    available: Decimal
    """What the next invoice may take of it: 0 before it takes effect and after it has expired."""
    prices: tuple[str, ...]
    """Stripe's ids of the prices it pays for; all metered ones if there are none."""
    priority: int
    effective_at: datetime
    expires_at: datetime | None
    voided: bool
    created: bool = False
    """Whether this call granted it; False if the customer had it already."""


def grant_credit(
    client: StripeClient,
    customer: str,
    credit: CreditSpec,
    catalog: Catalog | Applied | None = None,
    *,
    now: Callable[[], float] = time.time,
) -> Credit:
    """Give a customer a credit, once: under the same key it is found again, from wherever it is asked for.

    A credit does not limit usage: what goes beyond it is used, and billed.

    Args:
        client: A Stripe client, such as `connect()` makes.
        customer: Stripe customer id.
        credit: What is given; one of a catalog's `credits`, or one made by hand.
        catalog: What was applied; needed where the credit pays for certain prices only.
        now: The time from which `expires_days` counts; a customer on a test clock has its own.
    """
    with doing(f"granting {credit.key!r} to {customer}"):
        scope = _scope(client, credit, catalog)
        at = _now_of(client, customer, now)
        for salt in range(_TRIES):
            same = [raw for raw in _grants(client, customer) if _key_of(raw) == credit.key]
            standing = next((raw for raw in same if getattr(raw, "voided_at", None) is None), None)
            if standing is not None:
                return _found(client, standing, credit)
            made = _try_to_create(client, customer, credit, scope, at, (len(same), salt))
            if made is not None:
                return _credit(client, made, created=True)
    raise BillingError(f"granting {credit.key!r} to {customer} failed {_TRIES} times; run it again later")


def find_credits(client: StripeClient, customer: str) -> tuple[Credit, ...]:
    """A customer's grants with what is left of each, in the order in which Stripe uses them up."""
    with doing(f"looking for credits of {customer}"):
        client.v1.customers.retrieve(customer)
        return tuple(_credit(client, raw) for raw in sorted(_grants(client, customer), key=_turn))


def void_credit(client: StripeClient, id: str) -> Credit:
    """Take back a grant of which nothing was used."""
    with doing(f"voiding credit {id}"):
        return _credit(client, client.v1.billing.credit_grants.void_grant(id))


def expire_credit(client: StripeClient, id: str) -> Credit:
    """End a grant now; what was used of it stays used."""
    with doing(f"expiring credit {id}"):
        return _credit(client, client.v1.billing.credit_grants.expire(id))


def _scope(client: StripeClient, credit: CreditSpec, catalog: Catalog | Applied | None) -> dict[str, Any]:
    if not credit.prices:
        return {"price_type": "metered"}
    if catalog is None:
        raise ConfigurationError(f"credit {credit.key!r} names prices; give the catalog that has them")
    values = catalog.catalog if isinstance(catalog, Applied) else catalog
    ids = fetch_prices(values, client).ids("price")
    for key in credit.prices:
        values.price(key)
        if key not in ids:
            raise BillingError(f"the account has no price {key!r}; apply the catalog first")
    return {"prices": [{"id": ids[key]} for key in credit.prices]}


def _now_of(client: StripeClient, customer: str, now: Callable[[], float]) -> int:
    """The customer's own time: a test clock's, where it lives on one."""
    raw: Any = client.v1.customers.retrieve(customer)
    clock = id_of(getattr(raw, "test_clock", None))
    return int(now()) if clock is None else client.v1.test_helpers.test_clocks.retrieve(clock).frozen_time


def _grants(client: StripeClient, customer: str) -> list[Any]:
    page = client.v1.billing.credit_grants.list({"customer": customer, "limit": 100})
    return list(page.auto_paging_iter())


def _try_to_create(
    client: StripeClient,
    customer: str,
    credit: CreditSpec,
    scope: dict[str, Any],
    now: int,
    turn: tuple[int, int],
) -> Any | None:
    """The new grant; None where another look is needed, since somebody else may have been faster."""
    import stripe

    params: dict[str, Any] = {
        "customer": customer,
        "amount": {"type": "monetary", "monetary": {"currency": credit.currency, "value": credit.minor}},
        "applicability_config": {"scope": scope},
        "category": credit.category,
        "priority": credit.priority,
        "metadata": {MARK: MARK_VALUE, KEY: credit.key},
    }
    # The time is no part of the key: two runs at once must have the same one.
    what = json.dumps([params, turn], sort_keys=True)
    once: Any = {"idempotency_key": "llm_metering-" + hashlib.sha256(what.encode()).hexdigest()[:48]}
    if credit.name is not None:
        params["name"] = credit.name
    if credit.expires_days is not None:
        params["expires_at"] = now + credit.expires_days * _DAY_S
    try:
        return client.v1.billing.credit_grants.create(cast("Any", params), once)
    except stripe.IdempotencyError:
        return None
    except stripe.StripeError as exc:
        if not is_passing(exc) or turn[1] == _TRIES - 1:
            raise
        return None


def _found(client: StripeClient, raw: Any, credit: CreditSpec) -> Credit:
    found = _credit(client, raw)
    wanted = (credit.currency, major_units(credit.minor, credit.currency))
    if (found.currency, found.amount) != wanted:
        raise BillingError(
            f"{found.customer} has {found.id} under the key {credit.key!r} already, of {found.amount} "
            f"{found.currency}, not {wanted[1]} {wanted[0]}; grant another amount under another key"
        )
    return found


def _credit(client: StripeClient, raw: Any, *, created: bool = False) -> Credit:
    money = raw.amount.monetary
    prices = getattr(raw.applicability_config.scope, "prices", None) or ()
    expires = getattr(raw, "expires_at", None)
    return Credit(
        id=raw.id,
        key=_key_of(raw),
        name=getattr(raw, "name", None),
        customer=id_of(raw.customer) or "",
        category=raw.category,
        currency=money.currency,
        amount=major_units(money.value, money.currency),
        available=_available(client, raw, money.currency),
        prices=tuple(price.id for price in prices),
        priority=50 if getattr(raw, "priority", None) is None else raw.priority,
        effective_at=moment_of(raw.effective_at or raw.created),
        expires_at=None if expires is None else moment_of(expires),
        voided=getattr(raw, "voided_at", None) is not None,
        created=created,
    )


def _available(client: StripeClient, raw: Any, currency: str) -> Decimal:
    summary = client.v1.billing.credit_balance_summary.retrieve(
        {"customer": id_of(raw.customer) or "", "filter": {"type": "credit_grant", "credit_grant": raw.id}}
    )
    return sum(_amounts(summary, currency), major_units(0, currency))


def _amounts(summary: Any, currency: str) -> Iterator[Decimal]:
    for balance in summary.balances:
        money = balance.available_balance.monetary
        if money is not None and money.currency == currency:
            yield major_units(money.value, currency)


def _key_of(raw: Any) -> str | None:
    key: str | None = raw.metadata.to_dict().get(KEY) if getattr(raw, "metadata", None) else None
    return key


def _turn(raw: Any) -> tuple[Any, ...]:
    """Stripe's order of use: priority, soonest to expire, promotional first, oldest."""
    expires = getattr(raw, "expires_at", None)
    return (
        50 if getattr(raw, "priority", None) is None else raw.priority,
        expires is None,
        expires or 0,
        raw.category != "promotional",
        raw.effective_at or raw.created,
        raw.created,
    )
