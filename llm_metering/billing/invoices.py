"""Invoices, past and next, as values: their lines, and the lines added up per price.

Never count lines: a tiered price has one for each tier and one for each flat fee, flexible billing one for
each price that was in force, a backdated start one for each period, and a change one for what is credited.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from ..errors import BillingError, ConfigurationError
from .money import major_units
from .refusals import doing

if TYPE_CHECKING:
    from stripe import StripeClient

InvoiceStatus = Literal["draft", "open", "paid", "uncollectible", "void"]


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """One line. A price may have several: one for each tier, and one for each tier's flat fee."""

    description: str | None
    quantity: Decimal | None
    amount: Decimal
    """In major units, rounded by Stripe."""
    price: str | None
    product: str | None
    unit_amount: Decimal | None
    """In major units; a package's for a package price."""
    period_start: datetime
    period_end: datetime
    proration: bool = False
    """What a change in mid-period charges or gives back."""
    credits: Decimal = Decimal(0)
    """What credit grants pay of it."""


@dataclass(frozen=True, slots=True)
class PriceTotal:
    """All lines of one price added up."""

    price: str | None
    product: str | None
    quantity: Decimal | None
    """What was used or subscribed to; prorations are amounts only."""
    amount: Decimal
    lines: int
    credits: Decimal = Decimal(0)
    """What credit grants pay of it."""


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice that Stripe keeps. Amounts are in major units of `currency`."""

    id: str
    number: str | None
    """Given when it is finalised."""
    status: str
    reason: str | None
    """Why there is one: `subscription_create`, `subscription_cycle`, `subscription_update`, …"""
    customer: str
    subscription: str | None
    currency: str
    collection_method: str
    created: datetime
    due_date: datetime | None
    period_start: datetime
    period_end: datetime
    """The period whose usage is billed; a licence line has the next one."""
    subtotal: Decimal
    credits: Decimal
    """What credit grants pay of it."""
    total: Decimal
    """After discounts, credits and tax."""
    amount_due: Decimal
    """After the customer's balance, never below 0."""
    amount_paid: Decimal
    amount_remaining: Decimal
    lines: tuple[InvoiceLine, ...]

    @property
    def by_price(self) -> tuple[PriceTotal, ...]:
        """The lines added up per price. How many lines a price has says nothing."""
        return totals(self.lines)


def find_invoices(
    client: StripeClient,
    *,
    customer: str | None = None,
    subscription: str | None = None,
    status: InvoiceStatus | None = None,
    limit: int = 12,
) -> tuple[Invoice, ...]:
    """The latest invoices of a customer or a subscription, newest first, with all their lines."""
    if (subscription is None) == (customer is None):
        raise ConfigurationError("find_invoices takes either subscription or customer")
    if status is not None and status not in get_args(InvoiceStatus):
        raise ConfigurationError(f"status={status!r} must be one of {', '.join(get_args(InvoiceStatus))}")
    if type(limit) is not int or limit < 1:
        raise ConfigurationError(f"limit={limit!r} must be a whole number of at least 1")
    params: dict[str, Any] = {"subscription": subscription} if subscription else {"customer": customer}
    params |= {"limit": min(limit, 100)} | ({"status": status} if status else {})
    found: list[Invoice] = []
    with doing(f"looking for invoices of {subscription or customer}"):
        _look_up(client, customer, subscription)
        for raw in client.v1.invoices.list(cast("Any", params)).auto_paging_iter():
            found.append(_invoice(raw))
            if len(found) == limit:
                break
    return tuple(found)


def fetch_invoice(client: StripeClient, id: str) -> Invoice:
    """One invoice, with all its lines."""
    with doing(f"looking for invoice {id}"):
        return _invoice(client.v1.invoices.retrieve(id))


def read_lines(raw: Any) -> tuple[InvoiceLine, ...]:
    """All lines of a Stripe invoice; `BillingError` if they do not add up to its subtotal."""
    lines = tuple(_line(one, raw.currency) for one in raw.lines.auto_paging_iter())
    listed = sum((line.amount for line in lines), Decimal(0))
    subtotal = major_units(raw.subtotal, raw.currency)
    if listed != subtotal:
        raise BillingError(
            f"the lines of invoice {raw.id} add up to {listed} {raw.currency}, but its subtotal is "
            f"{subtotal}; Stripe did not list them all. Look at it in the Dashboard"
        )
    return lines


def totals(lines: Iterable[InvoiceLine]) -> tuple[PriceTotal, ...]:
    """Lines added up per price, in the order of their first lines."""
    grouped: dict[tuple[str | None, str | None], list[InvoiceLine]] = {}
    for line in lines:
        grouped.setdefault((line.price, line.product), []).append(line)
    return tuple(_total(price, product, some) for (price, product), some in grouped.items())


def subscription_of(raw: Any) -> str | None:
    """The subscription that a Stripe invoice belongs to."""
    parent = getattr(raw, "parent", None)
    return id_of(getattr(getattr(parent, "subscription_details", None), "subscription", None))


def id_of(expandable: Any) -> str | None:
    return expandable if expandable is None or isinstance(expandable, str) else str(expandable.id)


def moment_of(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def credits_of(raw: Any) -> Decimal:
    """What credit grants pay of a Stripe invoice or line, in minor units. Discounts stand beside them."""
    paid = getattr(raw, "total_pretax_credit_amounts", None) or getattr(raw, "pretax_credit_amounts", None)
    return sum((Decimal(one.amount) for one in paid or () if one.type == _CREDIT), Decimal(0))


_CREDIT = "credit_balance_transaction"


def _look_up(client: StripeClient, customer: str | None, subscription: str | None) -> None:
    """Stripe lists nothing for an id that it does not know; a mistyped one must not look like no bills."""
    if customer is not None:
        client.v1.customers.retrieve(customer)
    if subscription is not None:
        client.v1.subscriptions.retrieve(subscription)


def _invoice(raw: Any) -> Invoice:
    currency = raw.currency
    due = getattr(raw, "due_date", None)
    return Invoice(
        id=raw.id,
        number=getattr(raw, "number", None),
        status=raw.status,
        reason=getattr(raw, "billing_reason", None),
        customer=id_of(raw.customer) or "",
        subscription=subscription_of(raw),
        currency=currency,
        collection_method=raw.collection_method,
        created=moment_of(raw.created),
        due_date=None if due is None else moment_of(due),
        period_start=moment_of(raw.period_start),
        period_end=moment_of(raw.period_end),
        subtotal=major_units(raw.subtotal, currency),
        credits=major_units(credits_of(raw), currency),
        total=major_units(raw.total, currency),
        amount_due=major_units(raw.amount_due, currency),
        amount_paid=major_units(raw.amount_paid, currency),
        amount_remaining=major_units(raw.amount_remaining, currency),
        lines=read_lines(raw),
    )


def _line(raw: Any, currency: str) -> InvoiceLine:
    pricing = getattr(raw, "pricing", None)
    details = getattr(pricing, "price_details", None)
    unit = getattr(pricing, "unit_amount_decimal", None)
    exact = getattr(raw, "quantity_decimal", None)
    quantity = getattr(raw, "quantity", None) if exact is None else exact
    return InvoiceLine(
        description=getattr(raw, "description", None),
        quantity=None if quantity is None else Decimal(str(quantity)),
        amount=major_units(raw.amount, currency),
        price=id_of(getattr(details, "price", None)),
        product=id_of(getattr(details, "product", None)),
        unit_amount=None if unit is None else major_units(Decimal(str(unit)), currency),
        period_start=moment_of(raw.period.start),
        period_end=moment_of(raw.period.end),
        proration=_is_proration(raw),
        credits=major_units(credits_of(raw), currency),
    )


def _is_proration(raw: Any) -> bool:
    parent = getattr(raw, "parent", None)
    kinds = ("subscription_item_details", "invoice_item_details")
    return any(getattr(getattr(parent, kind, None), "proration", False) for kind in kinds)


def _total(price: str | None, product: str | None, lines: list[InvoiceLine]) -> PriceTotal:
    known = [line.quantity for line in lines if line.quantity is not None and not line.proration]
    return PriceTotal(
        price=price,
        product=product,
        quantity=sum(known, Decimal(0)) if known else None,
        amount=sum((line.amount for line in lines), Decimal(0)),
        lines=len(lines),
        credits=sum((line.credits for line in lines), Decimal(0)),
    )
