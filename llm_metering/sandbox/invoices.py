"""Invoices: their documents, and what becomes of one: finalised, paid, void."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from . import credit_grants, discounts
from .billing import Line, Style, cycle_lines
from .errors import Refusal, invalid, not_played
from .events import emit
from .invoice_lines import item_line_document, line_document
from .lists import listed, public
from .payments import declines, payment_method
from .store import Doc
from .tariffs import item_value, usage_of
from .world import Call

SHOWN_LINES = 10
"""How many lines a stored invoice shows by itself; the rest is behind `/lines`."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What an invoice is about, before it becomes a document."""

    customer: Doc | None
    subscription: Doc | None
    currency: str
    lines: Sequence[Line]
    reason: str
    created: int
    start: int
    end: int
    pending: Sequence[Doc] = ()
    """Invoice items that have waited for an invoice."""
    collection_method: str = "charge_automatically"
    days_until_due: int | None = None
    discounts: Sequence[str] = ()
    """Those of the invoice itself, beside its subscription's."""
    recipe: Doc | None = field(default=None)
    """How to reckon the lines anew when the invoice is finalised."""


def invoice_document(call: Call, draft: Draft, id: str, line_prefix: str) -> Doc:
    """A draft as a document."""
    customer = draft.customer or {}
    subscription = draft.subscription
    invoice: Doc = {
        **_NOTHING,
        "id": id,
        "object": "invoice",
        "account_country": "US",
        "account_name": "Sandbox",
        "billing_reason": draft.reason,
        "collection_method": draft.collection_method,
        "created": draft.created,
        "currency": draft.currency,
        "customer": customer.get("id"),
        "customer_address": customer.get("address"),
        "customer_email": customer.get("email"),
        "customer_name": customer.get("name"),
        "customer_phone": customer.get("phone"),
        "customer_shipping": customer.get("shipping"),
        "customer_tax_exempt": customer.get("tax_exempt", "none"),
        "discounts": [*_running(call, draft), *draft.discounts],
        "due_date": _due_date(draft.created, draft.days_until_due),
        "livemode": call.account.livemode,
        "metadata": {},
        "parent": None if subscription is None else _parent(subscription),
        "period_end": draft.end,
        "period_start": draft.start,
        "starting_balance": customer.get("balance", 0),
        "status_transitions": dict(_NO_TRANSITIONS),
        "test_clock": customer.get("test_clock"),
        "_days_until_due": draft.days_until_due,
        "_line_prefix": line_prefix,
        "_pending": [item["id"] for item in draft.pending],
        "_recipe": draft.recipe,
    }
    set_lines(call, invoice, draft.lines, draft.pending, subscription)
    return invoice


def set_lines(
    call: Call, invoice: Doc, lines: Sequence[Line], pending: Sequence[Doc], subscription: Doc | None
) -> None:
    """Put lines on an invoice and add it up."""
    prefix = invoice["_line_prefix"]
    invoice["_lines"] = [
        line_document(call, line, subscription, invoice["id"], call.world.new_id(prefix, 24))
        for line in lines
    ] + [item_line_document(item, invoice["id"], call.world.new_id(prefix, 24)) for item in pending]
    discounts.apply(call, invoice, subscription)
    add_up(invoice)


def add_up(invoice: Doc) -> None:
    """An invoice's totals, from its lines, discounts, credits and the customer's balance."""
    subtotal = sum(line["amount"] for line in invoice["_lines"])
    less = (*invoice["total_discount_amounts"], *invoice["total_pretax_credit_amounts"])
    total = subtotal - sum(one["amount"] for one in less)
    due = max(0, total + invoice["starting_balance"])
    invoice.update(
        subtotal=subtotal,
        subtotal_excluding_tax=subtotal,
        total=total,
        total_excluding_tax=total,
        amount_due=due,
        amount_remaining=due,
    )


def shown_invoice(invoice: Doc, *, all_lines: bool = False) -> Doc:
    """An invoice as answers show it."""
    lines = invoice["_lines"]
    shown = lines if all_lines else lines[:SHOWN_LINES]
    url = f"/v1/invoices/{invoice['id']}/lines"
    return {
        **public(invoice),
        "lines": {
            **listed([public(line) for line in shown], url, has_more=len(shown) < len(lines)),
            "total_count": len(lines),
        },
    }


def keep_invoice(call: Call, invoice: Doc, due: int | None) -> None:
    """Store a new invoice, and the invoice items that are on it now."""
    call.store.insert(
        call.account, invoice, owner=invoice["customer"], clock=invoice["test_clock"] or "", due=due
    )
    for item_id in invoice["_pending"]:
        item = call.find("invoiceitem", item_id, "invoiceitem")
        item["invoice"] = invoice["id"]
        call.store.save(call.account, item)
    emit(call, "invoice.created", shown_invoice(invoice))


def finalize(call: Call, invoice: Doc, now: int) -> None:
    """Bring usage up to date, apply credits, and fix the invoice for good."""
    customer = call.find("customer", invoice["customer"], "customer")
    subscription = subscription_of(call, invoice)
    if invoice["_recipe"] is not None:
        pending = [call.find("invoiceitem", one, "invoiceitem") for one in invoice["_pending"]]
        set_lines(call, invoice, reckoned(call, invoice), pending, subscription)
    invoice["starting_balance"] = customer["balance"]
    credit_grants.apply(call, invoice, now)
    add_up(invoice)
    number = customer["next_invoice_sequence"]
    customer["next_invoice_sequence"] = number + 1
    customer["balance"] = min(0, invoice["total"] + customer["balance"])
    call.store.save(call.account, customer)
    invoice.update(
        status="open",
        number=f"{customer['invoice_prefix']}-{number:04d}",
        effective_at=now,
        automatically_finalizes_at=None,
        ending_balance=customer["balance"],
        due_date=_due_date(now, invoice["_days_until_due"]),
    )
    invoice["status_transitions"]["finalized_at"] = now
    call.store.save(call.account, invoice)
    call.store.set_due(call.account, invoice, None)
    emit(call, "invoice.finalized", shown_invoice(invoice))


def reckoned(call: Call, invoice: Doc) -> list[Line]:
    """The lines of a draft, as usage stands now."""
    recipe = invoice["_recipe"]
    items = [item_value(call.world, call.account, doc) for doc in recipe["items"]]
    usage = usage_of(call.world, call.account, invoice["customer"])
    return cycle_lines(items, recipe["at"], usage, style_of(call), final=recipe["final"])


def collect(call: Call, invoice: Doc, now: int, *, method: str | None = None, attempt: bool = True) -> bool:
    """Try to have a finalised invoice paid; whether it was."""
    customer = call.find("customer", invoice["customer"], "customer")
    subscription = subscription_of(call, invoice)
    method = method or (subscription or {}).get("default_payment_method") or payment_method(customer)
    if invoice["amount_due"] == 0 or (attempt and method is not None and not declines(method)):
        settle(call, invoice, now)
        return True
    if attempt:
        invoice.update(attempted=True, attempt_count=invoice["attempt_count"] + 1)
        call.store.save(call.account, invoice)
        emit(call, "invoice.payment_failed", shown_invoice(invoice))
    return False


def settle(call: Call, invoice: Doc, now: int) -> None:
    """Count what is due as paid."""
    due = invoice["amount_due"]
    invoice.update(status="paid", amount_paid=due, amount_remaining=0, attempted=True)
    invoice["attempt_count"] += int(due > 0)
    invoice["status_transitions"]["paid_at"] = now
    call.store.save(call.account, invoice)
    for happened in ("invoice.paid", "invoice.payment_succeeded"):
        emit(call, happened, shown_invoice(invoice))


def put_on(call: Call, invoice: Doc, items: Sequence[Doc]) -> None:
    """Put invoice items on a draft."""
    must_be(invoice, "change", "draft")
    for item in items:
        if item["customer"] != invoice["customer"] or item["currency"] != invoice["currency"]:
            raise invalid("The invoice is of another customer or currency.", "invoice")
        item["invoice"] = invoice["id"]
        call.store.save(call.account, item)
    invoice["_pending"] += [item["id"] for item in items]
    pending = [call.find("invoiceitem", one, "invoiceitem") for one in invoice["_pending"]]
    lines = [] if invoice["_recipe"] is None else reckoned(call, invoice)
    if invoice["_recipe"] is None and subscription_of(call, invoice) is not None:
        raise not_played("invoice")
    set_lines(call, invoice, lines, pending, subscription_of(call, invoice))
    call.store.save(call.account, invoice)
    emit(call, "invoice.updated", shown_invoice(invoice), {})


def close(call: Call, invoice: Doc, status: str, now: int) -> None:
    """Give an invoice up: "void", with what credits it took returned, or "uncollectible"."""
    if status == "void":
        credit_grants.give_back(call, invoice, now)
    invoice["status"] = status
    transition = {"void": "voided_at", "uncollectible": "marked_uncollectible_at"}[status]
    invoice["status_transitions"][transition] = now
    call.store.save(call.account, invoice)
    happened = {"void": "voided", "uncollectible": "marked_uncollectible"}[status]
    emit(call, f"invoice.{happened}", shown_invoice(invoice))


def subscription_of(call: Call, invoice: Doc) -> Doc | None:
    parent = invoice["parent"]
    if parent is None:
        return None
    return call.store.get(call.account, "subscription", parent["subscription_details"]["subscription"])


def pending_items(call: Call, customer: str, subscription: str | None) -> list[Doc]:
    """A customer's invoice items that wait for an invoice of this subscription, or of any."""
    return [
        item
        for item in call.store.owned(call.account, "invoiceitem", customer)
        if item["invoice"] is None and item["_subscription"] in (None, subscription)
    ]


def style_of(call: Call) -> Style:
    return Style(call.switches.flat_lines, call.switches.package_quantity)


def must_be(invoice: Doc, action: str, *statuses: str) -> None:
    """Refuse an action that an invoice's status does not allow."""
    if invoice["status"] not in statuses:
        raise invalid(f"You cannot {action} an invoice that is {invoice['status']}.", "invoice")


def declined() -> Refusal:
    return Refusal(402, "Your card was declined.", type="card_error", code="card_declined")


def _running(call: Call, draft: Draft) -> list[str]:
    """The discounts of a draft's subscription that are in force."""
    if draft.subscription is None:
        return []
    return discounts.running(call, draft.subscription["discounts"], draft.created)


def _due_date(at: int, days: int | None) -> int | None:
    return None if days is None else at + days * 86_400


def _parent(subscription: Doc) -> Doc:
    return {
        "quote_details": None,
        "subscription_details": {"metadata": subscription["metadata"], "subscription": subscription["id"]},
        "type": "subscription_details",
    }


_NO_TRANSITIONS = {"finalized_at": None, "marked_uncollectible_at": None, "paid_at": None, "voided_at": None}
_NO_TAX: Doc = {
    "disabled_reason": None,
    "enabled": False,
    "liability": None,
    "provider": None,
    "status": None,
}
_NO_PAYMENT: Doc = {"default_mandate": None, "payment_method_options": None, "payment_method_types": None}
_ALWAYS_NULL = (
    "account_tax_ids application automatically_finalizes_at custom_fields default_payment_method "
    "default_source description effective_at ending_balance footer from_invoice hosted_invoice_url "
    "invoice_pdf last_finalization_error latest_revision next_payment_attempt number on_behalf_of "
    "receipt_number rendering shipping_cost shipping_details statement_descriptor webhooks_delivered_at"
)
_ALWAYS_0 = (
    "amount_overpaid amount_paid amount_shipping attempt_count post_payment_credit_notes_amount "
    "pre_payment_credit_notes_amount"
)
_ALWAYS_EMPTY = (
    "customer_tax_ids default_tax_rates discounts total_discount_amounts total_pretax_credit_amounts "
    "total_taxes"
)
_NOTHING: Doc = {
    **dict.fromkeys(_ALWAYS_NULL.split()),
    **dict.fromkeys(_ALWAYS_0.split(), 0),
    **{name: [] for name in _ALWAYS_EMPTY.split()},
    "attempted": False,
    "auto_advance": True,
    "automatic_tax": _NO_TAX,
    "issuer": {"type": "self"},
    "payment_settings": _NO_PAYMENT,
    "status": "draft",
}
