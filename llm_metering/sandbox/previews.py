"""Previews: the next invoice as it would be made of what is known now. Nothing of it is stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import credit_grants
from .billing import Item, first_lines
from .cancellations import plan_end
from .discounts import DISCOUNTS, give
from .errors import Refusal, invalid, not_played
from .forms import (
    EXPAND,
    METADATA,
    Required,
    Table,
    anything,
    array,
    boolean,
    choice,
    decimal,
    either,
    hash_of,
    integer,
    refused,
    text,
)
from .inline_prices import ONCE_DATA
from .invoice_items import new_item
from .invoices import Draft, add_up, invoice_document, pending_items, shown_invoice, style_of
from .items import check_together, items_of, price_for
from .periods import step
from .prices import CURRENCY
from .renewals import cycle_draft
from .store import Doc
from .subscription_tables import CANCEL_AT, CHANGED_ITEMS, MODE, PRORATION
from .subscription_times import billed_until
from .subscriptions import change, change_draft
from .tariffs import tariff, usage_of
from .world import Call, Route

OVER = ("canceled", "incomplete_expired")


def create_preview(call: Call) -> Doc:
    """`POST /v1/invoices/create_preview`."""
    with call.store.undone():
        return _previewed(call)


def _previewed(call: Call) -> Doc:
    draft = _draft(call, call.params)
    if call.params.get("preview_mode") == "recurring":
        draft = replace(draft, pending=())
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
        behavior = details.get("proration_behavior", "create_prorations")
        plan_end(call, subscription, details, behavior)
        customer = call.find("customer", subscription["customer"], "subscription")
        if "discounts" in given:
            wanted, currency = given["discounts"], subscription["currency"]
            subscription["discounts"] = give(call, wanted, customer, subscription, currency)
        call.store.save(call.account, subscription)
        _add_items(call, customer, subscription["currency"], subscription["id"])
        if details.get("items"):
            now = change(call, subscription, details["items"], behavior)
            if behavior == "always_invoice":
                return change_draft(call, subscription, "upcoming", now)
        return _next_of(call, subscription)
    if "cancel_at" in details or "cancel_at_period_end" in details:
        raise not_played("subscription_details[cancel_at]")
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
    ends = [doc["current_period_end"] for doc in docs]
    at = min(ends if subscription["cancel_at"] is None else [*ends, subscription["cancel_at"]])
    docs, final = billed_until(subscription, docs, at)
    draft = cycle_draft(call, customer, subscription, docs, at, "upcoming", final=final)
    if final and not draft.lines and not draft.pending:
        raise _none_upcoming(subscription["id"])
    return draft


def _next_of_customer(call: Call, customer: str) -> Draft:
    doc = call.find("customer", customer, "customer")
    if "discounts" in call.params:
        raise not_played("discounts")
    _add_items(call, doc, doc["currency"] or "usd", None)
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
    currency = items[0].tariff.currency
    extra: list[str] = []
    if customer is not None:
        _add_items(call, customer, currency, None)
        extra = give(call, given.get("discounts", ()), customer, None, currency)
    elif given.get("discounts") or given.get("invoice_items"):
        raise invalid("Discounts and invoice items need a customer.", "customer")
    usage = usage_of(call.world, call.account, customer_id)
    return Draft(
        customer,
        None,
        currency,
        first_lines(items, mode, None, usage, style_of(call)),
        "upcoming",
        created=now,
        start=now,
        end=now,
        pending=[] if customer is None else pending_items(call, customer_id, None),
        discounts=extra,
    )


def _add_items(call: Call, customer: Doc, currency: str, subscription: str | None) -> None:
    for one in call.params.get("invoice_items", ()):
        new_item(call, customer, one, one.get("currency", currency), subscription)


def _none_upcoming(id: str) -> Refusal:
    return Refusal(404, f"No upcoming invoices for: {id}", code="invoice_upcoming_none")


_NOT_PLAYED = (
    "billing_cycle_anchor billing_schedules cancel_now default_tax_rates metadata pause proration_date "
    "resume_at start_date trial_end"
)
_DETAILS: Table = {
    **dict.fromkeys(_NOT_PLAYED.split(), refused),
    "billing_mode": MODE,
    "cancel_at": either(choice(""), CANCEL_AT),
    "cancel_at_period_end": boolean,
    "items": CHANGED_ITEMS,
    "proration_behavior": PRORATION,
}
_ALSO_NOT_PLAYED = "customer_account issuer on_behalf_of schedule schedule_details"
_ITEM: Table = {
    **dict.fromkeys(("discounts", "invoiceitem", "tax_code", "tax_rates"), refused),
    "amount": integer(),
    "currency": CURRENCY,
    "description": text(),
    "discountable": boolean,
    "metadata": METADATA,
    "period": hash_of({"end": Required(integer()), "start": Required(integer())}),
    "price": text(),
    "price_data": hash_of(ONCE_DATA),
    "quantity": integer(0),
    "quantity_decimal": decimal,
    "tax_behavior": anything,
    "unit_amount": integer(),
    "unit_amount_decimal": decimal,
}
_PREVIEW: Table = {
    **dict.fromkeys(_ALSO_NOT_PLAYED.split(), refused),
    "automatic_tax": hash_of({"enabled": choice("false"), "liability": anything}),
    "currency": text(3),
    "customer": text(),
    "customer_details": anything,
    "discounts": DISCOUNTS,
    "expand": EXPAND,
    "invoice_items": array(hash_of(_ITEM), 250),
    "preview_mode": choice("next", "recurring"),
    "subscription": text(),
    "subscription_details": hash_of(_DETAILS),
}

ROUTES = (Route("POST", "/v1/invoices/create_preview", create_preview, _PREVIEW),)
