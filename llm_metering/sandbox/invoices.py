"""Invoices: as documents, and the preview of the next one, which is never stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .billing import Item, Line, cycle_lines, first_lines
from .errors import Refusal, invalid
from .forms import CREATED, EXPAND, LIST, Table, anything, array, choice, hash_of, integer, refused, text
from .lists import created_within, listed, page, page_of, public
from .money import plain
from .periods import step
from .store import Doc
from .tariffs import item_value, style_of, tariff, usage_of
from .world import Call, Route

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
    collection_method: str = "charge_automatically"
    days_until_due: int | None = None


def invoice_document(call: Call, draft: Draft, id: str, line_prefix: str) -> Doc:
    """A draft as Stripe shows an invoice."""
    customer = draft.customer or {}
    subscription = draft.subscription
    total = sum(line.amount for line in draft.lines)
    balance = customer.get("balance", 0)
    due = max(0, total + balance)
    return {
        **_NOTHING,
        "id": id,
        "object": "invoice",
        "account_country": "US",
        "account_name": "Sandbox",
        "amount_due": due,
        "amount_remaining": due,
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
        "due_date": _due_date(draft),
        "livemode": call.account.livemode,
        "metadata": {},
        "parent": None if subscription is None else _parent(subscription),
        "period_end": draft.end,
        "period_start": draft.start,
        "starting_balance": balance,
        "status_transitions": dict(_NO_TRANSITIONS),
        "subtotal": total,
        "subtotal_excluding_tax": total,
        "test_clock": customer.get("test_clock"),
        "total": total,
        "total_excluding_tax": total,
        "_lines": [
            line_document(call, line, subscription, id, f"{line_prefix}{call.world.new_id('', 24)}")
            for line in draft.lines
        ],
    }


def line_document(call: Call, line: Line, subscription: Doc | None, invoice: str, id: str) -> Doc:
    subscription_id = None if subscription is None else subscription["id"]
    return {
        "id": id,
        "object": "line_item",
        "amount": line.amount,
        "currency": line.tariff.currency,
        "description": line.description,
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": invoice,
        "livemode": call.account.livemode,
        "metadata": {} if subscription is None else subscription["metadata"],
        "parent": {
            "invoice_item_details": None,
            "subscription_item_details": {
                "invoice_item": None,
                "proration": False,
                "proration_details": {"credited_items": None},
                "subscription": subscription_id,
                "subscription_item": line.item,
            },
            "type": "subscription_item_details",
        },
        "period": {"end": line.end, "start": line.start},
        "pretax_credit_amounts": [],
        "pricing": {
            "price_details": {"price": line.tariff.price, "product": line.tariff.product},
            "type": "price_details",
            "unit_amount_decimal": plain(line.unit),
        },
        "quantity": int(line.quantity),
        "quantity_decimal": plain(line.quantity),
        "subscription": subscription_id,
        "subtotal": line.amount,
        "taxes": [],
    }


def shown_invoice(invoice: Doc, *, all_lines: bool = False) -> Doc:
    """An invoice as answers show it."""
    lines = invoice["_lines"]
    shown = lines if all_lines else lines[:SHOWN_LINES]
    url = f"/v1/invoices/{invoice['id']}/lines"
    return {
        **public(invoice),
        "lines": {**listed(shown, url, has_more=len(shown) < len(lines)), "total_count": len(lines)},
    }


def retrieve(call: Call) -> Doc:
    return shown_invoice(call.fetch("invoice", "invoice"))


def list_lines(call: Call) -> Doc:
    invoice = call.fetch("invoice", "invoice")
    return page_of(call, invoice["_lines"], f"/v1/invoices/{invoice['id']}/lines")


def list_invoices(call: Call) -> Doc:
    wanted = call.params

    def keep(invoice: Doc) -> bool:
        parent = invoice["parent"] or {"subscription_details": {"subscription": None}}
        return (
            all(
                wanted.get(name, invoice[name]) == invoice[name]
                for name in ("customer", "status", "collection_method")
            )
            and wanted.get("subscription", parent["subscription_details"]["subscription"])
            == parent["subscription_details"]["subscription"]
            and created_within(invoice["created"], wanted.get("created"))
        )

    return page(call, "invoice", "/v1/invoices", lambda _, doc: shown_invoice(doc), keep)


def create_preview(call: Call) -> Doc:
    """`POST /v1/invoices/create_preview`: the next invoice, were it made of what is known now."""
    given = call.params
    if "subscription" in given:
        subscription = call.find("subscription", given["subscription"], "subscription")
        if "customer" in given and given["customer"] != subscription["customer"]:
            raise invalid("The subscription does not belong to this customer.", "subscription")
        if "items" in given.get("subscription_details", {}):
            raise invalid(
                "The sandbox previews a subscription as it stands; it does not play changes of its items.",
                "subscription_details[items]",
                "sandbox_not_played",
            )
        draft = _next_of(call, subscription)
    elif "items" in given.get("subscription_details", {}):
        draft = _first_of_new(call, given)
    elif "customer" in given:
        draft = _next_of_customer(call, given["customer"])
    else:
        raise invalid(
            "You must pass a subscription, a customer, or subscription_details[items].", "subscription"
        )
    invoice = invoice_document(call, draft, call.world.new_id("upcoming_in_", 24), "il_tmp_")
    if draft.collection_method == "charge_automatically":
        invoice["next_payment_attempt"] = draft.created + call.switches.finalize_after_s
    return shown_invoice(invoice, all_lines=True)


def _next_of(call: Call, subscription: Doc) -> Draft:
    if subscription["status"] in ("canceled", "incomplete_expired") or subscription["cancel_at_period_end"]:
        raise _none_upcoming(subscription["id"])
    customer = call.find("customer", subscription["customer"], "subscription")
    docs = call.store.owned(call.account, "subscription_item", subscription["id"])
    items = [item_value(call.world, call.account, doc) for doc in docs]
    at = min(item.end for item in items)
    usage = usage_of(call.world, call.account, customer["id"])
    return Draft(
        customer,
        subscription,
        subscription["currency"],
        cycle_lines(items, at, usage, style_of(call.world)),
        "upcoming",
        created=at,
        start=min(item.start for item in items if item.end == at),
        end=at,
        collection_method=subscription["collection_method"],
        days_until_due=subscription["days_until_due"],
    )


def _next_of_customer(call: Call, customer: str) -> Draft:
    call.find("customer", customer, "customer")
    live = [
        subscription
        for subscription in call.store.owned(call.account, "subscription", customer)
        if subscription["status"] not in ("canceled", "incomplete_expired")
        and not subscription["cancel_at_period_end"]
    ]
    if not live:
        raise _none_upcoming(customer)
    return min((_next_of(call, subscription) for subscription in live), key=lambda draft: draft.created)


def _first_of_new(call: Call, given: dict[str, Any]) -> Draft:
    customer = call.find("customer", given["customer"], "customer") if "customer" in given else None
    now = call.world.time_of(call.account, customer)
    details = given["subscription_details"]
    items = []
    for n, wanted in enumerate(details["items"]):
        price = call.find("price", wanted.get("price", ""), f"subscription_details[items][{n}][price]")
        priced = tariff(call.world, call.account, price["id"])
        end = step(now, priced.interval, priced.interval_count, 1)
        quantity = None if priced.meter else wanted.get("quantity", 1)
        items.append(Item(call.world.new_id("si_tmp_"), priced, quantity, now, end))
    mode = details.get("billing_mode", {}).get("type", "flexible")
    usage = usage_of(call.world, call.account, "" if customer is None else customer["id"])
    currency = given.get("currency") or items[0].tariff.currency
    lines = first_lines(items, mode, None, usage, style_of(call.world))
    return Draft(customer, None, currency, lines, "upcoming", created=now, start=now, end=now)


def _none_upcoming(id: str) -> Refusal:
    return Refusal(404, f"No upcoming invoices for: {id}", code="invoice_upcoming_none")


def _due_date(draft: Draft) -> int | None:
    return None if draft.days_until_due is None else draft.created + draft.days_until_due * 86_400


def _parent(subscription: Doc) -> Doc:
    return {
        "quote_details": None,
        "subscription_details": {"metadata": subscription["metadata"], "subscription": subscription["id"]},
        "type": "subscription_details",
    }


_NO_TRANSITIONS = {"finalized_at": None, "marked_uncollectible_at": None, "paid_at": None, "voided_at": None}
_NOTHING: Doc = {
    "account_tax_ids": None,
    "amount_overpaid": 0,
    "amount_paid": 0,
    "amount_shipping": 0,
    "application": None,
    "attempt_count": 0,
    "attempted": False,
    "auto_advance": True,
    "automatic_tax": {
        "disabled_reason": None,
        "enabled": False,
        "liability": None,
        "provider": None,
        "status": None,
    },
    "automatically_finalizes_at": None,
    "custom_fields": None,
    "customer_tax_ids": [],
    "default_payment_method": None,
    "default_source": None,
    "default_tax_rates": [],
    "description": None,
    "discounts": [],
    "effective_at": None,
    "ending_balance": None,
    "footer": None,
    "from_invoice": None,
    "hosted_invoice_url": None,
    "invoice_pdf": None,
    "issuer": {"type": "self"},
    "last_finalization_error": None,
    "latest_revision": None,
    "next_payment_attempt": None,
    "number": None,
    "on_behalf_of": None,
    "payment_settings": {
        "default_mandate": None,
        "payment_method_options": None,
        "payment_method_types": None,
    },
    "post_payment_credit_notes_amount": 0,
    "pre_payment_credit_notes_amount": 0,
    "receipt_number": None,
    "rendering": None,
    "shipping_cost": None,
    "shipping_details": None,
    "statement_descriptor": None,
    "status": "draft",
    "total_discount_amounts": [],
    "total_pretax_credit_amounts": [],
    "total_taxes": [],
    "webhooks_delivered_at": None,
}
_DETAILS: Table = {
    "billing_cycle_anchor": refused,
    "billing_mode": hash_of({"type": choice("classic", "flexible"), "flexible": anything}),
    "cancel_at": refused,
    "cancel_at_period_end": refused,
    "cancel_now": refused,
    "default_tax_rates": refused,
    "items": array(
        hash_of(
            {
                "id": text(),
                "deleted": refused,
                "discounts": refused,
                "metadata": anything,
                "price": text(),
                "price_data": refused,
                "quantity": integer(0),
                "tax_rates": refused,
            }
        ),
        20,
    ),
    "proration_behavior": choice("always_invoice", "create_prorations", "none"),
    "proration_date": refused,
    "resume_at": refused,
    "start_date": refused,
    "trial_end": refused,
}
_PREVIEW: Table = {
    "automatic_tax": hash_of({"enabled": choice("false"), "liability": anything}),
    "currency": text(),
    "customer": text(),
    "customer_account": refused,
    "customer_details": refused,
    "discounts": refused,
    "expand": EXPAND,
    "invoice_items": refused,
    "issuer": refused,
    "on_behalf_of": refused,
    "preview_mode": choice("next", "recurring"),
    "schedule": refused,
    "schedule_details": refused,
    "subscription": text(),
    "subscription_details": hash_of(_DETAILS),
}
_LIST: Table = {
    **LIST,
    "collection_method": choice("charge_automatically", "send_invoice"),
    "created": CREATED,
    "customer": text(),
    "status": choice("draft", "open", "paid", "uncollectible", "void"),
    "subscription": text(),
}

ROUTES = (
    Route("POST", "/v1/invoices/create_preview", create_preview, _PREVIEW),
    Route("GET", "/v1/invoices", list_invoices, _LIST),
    Route("GET", "/v1/invoices/{}", retrieve, {"expand": EXPAND}),
    Route("GET", "/v1/invoices/{}/lines", list_lines, LIST),
)
