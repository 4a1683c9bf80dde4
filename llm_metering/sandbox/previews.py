"""Previews: the next invoice as it would be made of what is known now. Nothing of it is stored."""

from __future__ import annotations

from typing import Any

from . import credit_grants
from .billing import Item, first_lines
from .errors import Refusal, invalid, not_played
from .forms import EXPAND, Table, anything, choice, hash_of, refused, text
from .invoices import Draft, add_up, invoice_document, pending_items, shown_invoice, style_of
from .items import check_together, items_of, price_for
from .periods import step
from .renewals import cycle_draft
from .store import Doc
from .subscription_tables import CHANGED_ITEMS, MODE, PRORATION
from .subscriptions import change
from .tariffs import tariff, usage_of
from .world import Call, Route

OVER = ("canceled", "incomplete_expired")


def create_preview(call: Call) -> Doc:
    """`POST /v1/invoices/create_preview`."""
    with call.store.undone():
        return _previewed(call)


def _previewed(call: Call) -> Doc:
    draft = _draft(call, call.params)
    invoice = invoice_document(call, draft, call.world.new_id("upcoming_in_", 24), "il_tmp_")
    if draft.customer is not None and call.switches.preview_credits:
        credit_grants.apply(call, invoice, draft.end)
        for line in invoice["_lines"]:
            for credit in line["pretax_credit_amounts"]:
                credit["credit_balance_transaction"] = None  # there is none until the invoice is finalised
        add_up(invoice)
    if draft.collection_method == "charge_automatically":
        invoice["next_payment_attempt"] = draft.created + call.switches.finalize_after_s
    return shown_invoice(invoice, all_lines=True)


def _draft(call: Call, given: dict[str, Any]) -> Draft:
    details = given.get("subscription_details", {})
    if "subscription" in given:
        subscription = call.find("subscription", given["subscription"], "subscription")
        if "customer" in given and given["customer"] != subscription["customer"]:
            raise invalid("The subscription does not belong to this customer.", "subscription")
        if "billing_mode" in details:
            raise not_played("subscription_details[billing_mode]")
        if details.get("items"):
            behavior = details.get("proration_behavior", "create_prorations")
            change(call, subscription, details["items"], behavior)
        return _next_of(call, subscription)
    if details.get("items"):
        return _first_of_new(call, given)
    if "customer" in given:
        return _next_of_customer(call, given["customer"])
    raise invalid("You must pass a subscription, a customer, or subscription_details[items].", "subscription")


def _next_of(call: Call, subscription: Doc) -> Draft:
    if subscription["status"] in OVER:
        raise _none_upcoming(subscription["id"])
    customer = call.find("customer", subscription["customer"], "subscription")
    docs = items_of(call, subscription["id"])
    at = min(doc["current_period_end"] for doc in docs)
    final = subscription["cancel_at"] is not None and at >= subscription["cancel_at"]
    draft = cycle_draft(call, customer, subscription, docs, at, "upcoming", final=final)
    if final and not draft.lines and not draft.pending:
        raise _none_upcoming(subscription["id"])
    return draft


def _next_of_customer(call: Call, customer: str) -> Draft:
    call.find("customer", customer, "customer")
    drafts = [
        _next_of(call, subscription)
        for subscription in call.store.owned(call.account, "subscription", customer)
        if subscription["status"] not in OVER
    ]
    if not drafts:
        raise _none_upcoming(customer)
    return min(drafts, key=lambda draft: draft.created)


def _first_of_new(call: Call, given: dict[str, Any]) -> Draft:
    """The first invoice of a subscription that does not exist yet."""
    customer = call.find("customer", given["customer"], "customer") if "customer" in given else None
    now = call.world.time_of(call.account, customer)
    details = given["subscription_details"]
    mode = details.get("billing_mode", {}).get("type", "flexible")
    prices = [
        price_for(call, wanted, f"subscription_details[items][{n}]")
        for n, wanted in enumerate(details["items"])
    ]
    check_together(customer or {}, prices, mode, given.get("currency"))
    items = []
    for price, wanted in zip(prices, details["items"], strict=True):
        priced = tariff(call.world, call.account, price["id"])
        until = step(now, priced.interval, priced.interval_count, 1)
        quantity = None if priced.meter else wanted.get("quantity", 1)
        items.append(Item(call.world.new_id("si_tmp_"), priced, quantity, now, until, now, now))
    customer_id = "" if customer is None else customer["id"]
    usage = usage_of(call.world, call.account, customer_id)
    return Draft(
        customer,
        None,
        items[0].tariff.currency,
        first_lines(items, mode, None, usage, style_of(call)),
        "upcoming",
        created=now,
        start=now,
        end=now,
        pending=[] if customer is None else pending_items(call, customer_id, None),
    )


def _none_upcoming(id: str) -> Refusal:
    return Refusal(404, f"No upcoming invoices for: {id}", code="invoice_upcoming_none")


_NOT_PLAYED = (
    "billing_cycle_anchor billing_schedules cancel_at cancel_at_period_end cancel_now default_tax_rates "
    "metadata pause proration_date resume_at start_date trial_end"
)
_DETAILS: Table = {
    **dict.fromkeys(_NOT_PLAYED.split(), refused),
    "billing_mode": MODE,
    "items": CHANGED_ITEMS,
    "proration_behavior": PRORATION,
}
_ALSO_NOT_PLAYED = (
    "customer_account customer_details discounts invoice_items issuer on_behalf_of schedule schedule_details"
)
_PREVIEW: Table = {
    **dict.fromkeys(_ALSO_NOT_PLAYED.split(), refused),
    "automatic_tax": hash_of({"enabled": choice("false"), "liability": anything}),
    "currency": text(3),
    "customer": text(),
    "expand": EXPAND,
    "preview_mode": choice("next", "recurring"),
    "subscription": text(),
    "subscription_details": hash_of(_DETAILS),
}

ROUTES = (Route("POST", "/v1/invoices/create_preview", create_preview, _PREVIEW),)
