"""What a customer's next invoice will say. Stripe stores nothing for a preview."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from ..errors import BillingError, ConfigurationError
from .money import major_units
from .refusals import doing

if TYPE_CHECKING:
    from stripe import StripeClient


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


@dataclass(frozen=True, slots=True)
class PriceTotal:
    """All lines of one price added up."""

    price: str | None
    product: str | None
    quantity: Decimal | None
    amount: Decimal
    lines: int


@dataclass(frozen=True, slots=True)
class InvoicePreview:
    """An upcoming invoice. Amounts are in major units of `currency`."""

    customer: str
    subscription: str | None
    currency: str
    collection_method: str
    created: datetime
    period_start: datetime
    period_end: datetime
    """The period whose usage is billed; a licence line has the next one."""
    subtotal: Decimal
    total: Decimal
    """After discounts, credits and tax."""
    amount_due: Decimal
    """After the customer's balance, never below 0."""
    lines: tuple[InvoiceLine, ...]

    @property
    def by_price(self) -> tuple[PriceTotal, ...]:
        """The lines added up per price. How many lines a price has says nothing."""
        grouped: dict[tuple[str | None, str | None], list[InvoiceLine]] = {}
        for line in self.lines:
            grouped.setdefault((line.price, line.product), []).append(line)
        return tuple(_total(price, product, lines) for (price, product), lines in grouped.items())


def preview_invoice(
    client: StripeClient, *, subscription: str | None = None, customer: str | None = None
) -> InvoicePreview:
    """The next invoice of a subscription, or the next among a customer's subscriptions.

    Usage appears here once Stripe has aggregated it, which may take a minute.
    """
    if (subscription is None) == (customer is None):
        raise ConfigurationError("preview_invoice takes either subscription or customer")
    params = {"subscription": subscription} if subscription else {"customer": customer}
    with doing(f"previewing the invoice of {subscription or customer}"):
        invoice: Any = client.v1.invoices.create_preview(cast("Any", params))
        lines = tuple(_line(raw, invoice.currency) for raw in invoice.lines.auto_paging_iter())
    return _preview(invoice, lines)


def _preview(invoice: Any, lines: tuple[InvoiceLine, ...]) -> InvoicePreview:
    currency = invoice.currency
    preview = InvoicePreview(
        customer=_id(invoice.customer) or "",
        subscription=_subscription(invoice),
        currency=currency,
        collection_method=invoice.collection_method,
        created=_at(invoice.created),
        period_start=_at(invoice.period_start),
        period_end=_at(invoice.period_end),
        subtotal=major_units(invoice.subtotal, currency),
        total=major_units(invoice.total, currency),
        amount_due=major_units(invoice.amount_due, currency),
        lines=lines,
    )
    listed = sum((line.amount for line in lines), Decimal(0))
    if listed != preview.subtotal:
        raise BillingError(
            f"the preview's lines add up to {listed} {currency}, but its subtotal is {preview.subtotal}; "
            f"Stripe did not list them all. Look at it in the Dashboard"
        )
    return preview


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
        price=_id(getattr(details, "price", None)),
        product=_id(getattr(details, "product", None)),
        unit_amount=None if unit is None else major_units(Decimal(str(unit)), currency),
        period_start=_at(raw.period.start),
        period_end=_at(raw.period.end),
    )


def _total(price: str | None, product: str | None, lines: list[InvoiceLine]) -> PriceTotal:
    known = [line.quantity for line in lines if line.quantity is not None]
    return PriceTotal(
        price=price,
        product=product,
        quantity=sum(known, Decimal(0)) if known else None,
        amount=sum((line.amount for line in lines), Decimal(0)),
        lines=len(lines),
    )


def _subscription(invoice: Any) -> str | None:
    parent = getattr(invoice, "parent", None)
    return _id(getattr(getattr(parent, "subscription_details", None), "subscription", None))


def _id(expandable: Any) -> str | None:
    return expandable if expandable is None or isinstance(expandable, str) else str(expandable.id)


def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
