"""Invoices that no subscription makes: for amounts that are billed by hand."""

from __future__ import annotations

from .discounts import DISCOUNTS, give
from .errors import invalid
from .forms import EXPAND, METADATA, Table, anything, boolean, choice, hash_of, integer, refused, text
from .invoices import Draft, invoice_document, keep_invoice, pending_items, shown_invoice
from .lists import merged_metadata, unset
from .prices import CURRENCY
from .store import Doc
from .subscription_starts import check_collection
from .world import Call, Route


def create(call: Call) -> Doc:
    """`POST /v1/invoices`: a draft, empty unless it is to take the invoice items that wait."""
    given = call.params
    if "customer" not in given:
        raise invalid("You must pass customer.", "customer")
    customer = call.find("customer", given["customer"], "customer")
    check_collection(given)
    currency = given.get("currency") or customer["currency"] or "usd"
    if customer["currency"] not in (None, currency):
        raise invalid(f"This customer is billed in {customer['currency']}.", "currency")
    now = call.world.time_of(call.account, customer)
    takes = given.get("pending_invoice_items_behavior") == "include"
    waiting = pending_items(call, customer["id"], None) if takes else []
    draft = Draft(
        customer,
        None,
        currency,
        (),
        "manual",
        created=now,
        start=now,
        end=now,
        pending=[item for item in waiting if item["currency"] == currency],
        collection_method=given.get("collection_method", "charge_automatically"),
        days_until_due=given.get("days_until_due"),
        discounts=give(call, given.get("discounts", ()), customer, None, currency),
    )
    invoice = invoice_document(call, draft, call.new_id("in_"), "il_")
    advances = given.get("auto_advance", False)
    due = now + call.switches.finalize_after_s if advances else None
    invoice.update(
        auto_advance=advances,
        automatically_finalizes_at=due,
        description=unset(given.get("description")),
        footer=unset(given.get("footer")),
        metadata=merged_metadata({}, given.get("metadata", {})),
    )
    keep_invoice(call, invoice, due)
    return shown_invoice(invoice)


_NOT_PLAYED = (
    "account_tax_ids application_fee_amount automatically_finalizes_at custom_fields customer_account "
    "default_payment_method default_source default_tax_rates due_date effective_at from_invoice issuer "
    "number on_behalf_of rendering shipping_cost shipping_details statement_descriptor subscription "
    "transfer_data"
)
_CREATE: Table = {
    **dict.fromkeys(_NOT_PLAYED.split(), refused),
    "auto_advance": boolean,
    "automatic_tax": hash_of({"enabled": choice("false"), "liability": anything}),
    "collection_method": choice("charge_automatically", "send_invoice"),
    "currency": CURRENCY,
    "customer": text(),
    "days_until_due": integer(0),
    "description": text(),
    "discounts": DISCOUNTS,
    "expand": EXPAND,
    "footer": text(),
    "metadata": METADATA,
    "payment_settings": anything,
    "pending_invoice_items_behavior": choice("exclude", "include"),
}

ROUTES = (Route("POST", "/v1/invoices", create, _CREATE),)
