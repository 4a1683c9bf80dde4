"""What a customer's next invoice will say. Stripe stores nothing for a preview."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from ..errors import ConfigurationError
from .invoices import (
    InvoiceLine,
    PriceTotal,
    credits_of,
    id_of,
    moment_of,
    read_lines,
    subscription_of,
    totals,
)
from .money import major_units
from .refusals import doing

if TYPE_CHECKING:
    from stripe import StripeClient


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
    credits: Decimal
    """What credit grants would pay of it; Stripe applies them when it is finalised."""
    total: Decimal
    """After discounts, credits and tax."""
    amount_due: Decimal
    """After the customer's balance, never below 0."""
    lines: tuple[InvoiceLine, ...]

    @property
    def by_price(self) -> tuple[PriceTotal, ...]:
        """The lines added up per price. How many lines a price has says nothing."""
        return totals(self.lines)


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
        return _preview(invoice, read_lines(invoice))


def _preview(invoice: Any, lines: tuple[InvoiceLine, ...]) -> InvoicePreview:
    currency = invoice.currency
    return InvoicePreview(
        customer=id_of(invoice.customer) or "",
        subscription=subscription_of(invoice),
        currency=currency,
        collection_method=invoice.collection_method,
        created=moment_of(invoice.created),
        period_start=moment_of(invoice.period_start),
        period_end=moment_of(invoice.period_end),
        subtotal=major_units(invoice.subtotal, currency),
        credits=major_units(credits_of(invoice), currency),
        total=major_units(invoice.total, currency),
        amount_due=major_units(invoice.amount_due, currency),
        lines=lines,
    )
