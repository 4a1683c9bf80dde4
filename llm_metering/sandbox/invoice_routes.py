"""What can be done with invoices over HTTP."""

from __future__ import annotations

from .errors import invalid
from .events import emit
from .forms import CREATED, EXPAND, LIST, METADATA, Table, anything, boolean, choice, refused, text
from .invoices import close, collect, declined, finalize, must_be, settle, shown_invoice, subscription_of
from .items import items_of
from .lists import created_within, merged_metadata, page, page_of, public, unset
from .store import Doc
from .subscription_times import next_due
from .world import Call, Route


def retrieve(call: Call) -> Doc:
    return shown_invoice(call.fetch("invoice", "invoice"))


def list_lines(call: Call) -> Doc:
    invoice = call.fetch("invoice", "invoice")
    lines = [public(line) for line in invoice["_lines"]]
    return page_of(call, lines, f"/v1/invoices/{invoice['id']}/lines")


def list_invoices(call: Call) -> Doc:
    wanted = call.params

    def keep(invoice: Doc) -> bool:
        parent = invoice["parent"] or {"subscription_details": {"subscription": None}}
        subscription = parent["subscription_details"]["subscription"]
        return (
            all(wanted.get(name, invoice[name]) == invoice[name] for name in _FILTERS)
            and wanted.get("subscription", subscription) == subscription
            and created_within(invoice["created"], wanted.get("created"))
        )

    return page(call, "invoice", "/v1/invoices", lambda _, doc: shown_invoice(doc), keep)


def update(call: Call) -> Doc:
    invoice = call.fetch("invoice", "invoice")
    given = call.params
    if "auto_advance" in given:
        must_be(invoice, "change auto_advance of", "draft", "open")
        invoice["auto_advance"] = given["auto_advance"]
        at = invoice["automatically_finalizes_at"] or _now(call, invoice) + call.switches.finalize_after_s
        draft = invoice["status"] == "draft"
        invoice["automatically_finalizes_at"] = at if draft and given["auto_advance"] else None
        call.store.set_due(call.account, invoice, invoice["automatically_finalizes_at"])
    if "metadata" in given:
        invoice["metadata"] = merged_metadata(invoice["metadata"], given["metadata"])
    for name in ("description", "footer"):
        if name in given:
            invoice[name] = unset(given[name])
    call.store.save(call.account, invoice)
    emit(call, "invoice.updated", shown_invoice(invoice), {})
    return shown_invoice(invoice)


def finalize_now(call: Call) -> Doc:
    invoice = call.fetch("invoice", "invoice")
    must_be(invoice, "finalize", "draft")
    now = _now(call, invoice)
    finalize(call, invoice, now)
    if invoice["amount_due"] == 0:
        settle(call, invoice, now)
    return shown_invoice(invoice)


def pay(call: Call) -> Doc:
    """Pay an invoice; a draft is finalised first. Its subscription becomes active."""
    invoice = call.fetch("invoice", "invoice")
    must_be(invoice, "pay", "draft", "open", "uncollectible")
    now = _now(call, invoice)
    if invoice["status"] == "draft":
        finalize(call, invoice, now)
    if call.params.get("paid_out_of_band"):
        settle(call, invoice, now)
    elif not collect(call, invoice, now, method=call.params.get("payment_method")):
        raise declined()
    subscription = subscription_of(call, invoice)
    if subscription is not None and subscription["status"] in ("incomplete", "past_due"):
        trial = (subscription["trial_end"] or 0) > now
        subscription["status"] = "trialing" if trial else "active"
        call.store.save(call.account, subscription)
        items = items_of(call, subscription["id"])
        call.store.set_due(call.account, subscription, next_due(subscription, items))
    return shown_invoice(invoice)


def void(call: Call) -> Doc:
    invoice = call.fetch("invoice", "invoice")
    must_be(invoice, "void", "open", "uncollectible")
    close(call, invoice, "void", _now(call, invoice))
    return shown_invoice(invoice)


def mark_uncollectible(call: Call) -> Doc:
    invoice = call.fetch("invoice", "invoice")
    must_be(invoice, "mark as uncollectible", "open")
    close(call, invoice, "uncollectible", _now(call, invoice))
    return shown_invoice(invoice)


def send(call: Call) -> Doc:
    invoice = call.fetch("invoice", "invoice")
    if invoice["collection_method"] != "send_invoice":
        raise invalid("You can only send an invoice whose collection_method is send_invoice.", "invoice")
    if invoice["status"] == "draft":
        finalize(call, invoice, _now(call, invoice))
    emit(call, "invoice.sent", shown_invoice(invoice))
    return shown_invoice(invoice)


def delete(call: Call) -> Doc:
    """Delete a draft that no subscription made."""
    invoice = call.fetch("invoice", "invoice")
    must_be(invoice, "delete", "draft")
    if invoice["parent"] is not None:
        raise invalid("You cannot delete an invoice that a subscription made; void it once it is open.")
    call.store.remove(call.account, invoice)
    return {"id": invoice["id"], "object": "invoice", "deleted": True}


def _now(call: Call, invoice: Doc) -> int:
    return call.world.time_of(call.account, invoice)


_FILTERS = ("customer", "status", "collection_method")
_ID: Table = {"expand": EXPAND}
_LIST: Table = {
    **LIST,
    "customer_account": refused,
    "due_date": refused,
    "collection_method": choice("charge_automatically", "send_invoice"),
    "created": CREATED,
    "customer": text(),
    "status": choice("draft", "open", "paid", "uncollectible", "void"),
    "subscription": text(),
}
_NOT_PLAYED = (
    "account_tax_ids application_fee_amount automatic_tax automatically_finalizes_at collection_method "
    "custom_fields days_until_due default_payment_method default_source default_tax_rates due_date "
    "effective_at issuer number on_behalf_of payment_settings rendering shipping_cost shipping_details "
    "statement_descriptor transfer_data"
)
_UPDATE: Table = {
    **dict.fromkeys(_NOT_PLAYED.split(), refused),
    "auto_advance": boolean,
    "description": text(),
    "discounts": refused,
    "expand": EXPAND,
    "footer": text(),
    "metadata": METADATA,
}
_PAY: Table = {
    **_ID,
    "forgive": refused,
    "mandate": anything,
    "off_session": boolean,
    "paid_out_of_band": boolean,
    "payment_method": text(),
    "source": refused,
}

ROUTES = (
    Route("GET", "/v1/invoices", list_invoices, _LIST),
    Route("GET", "/v1/invoices/{}", retrieve, _ID),
    Route("POST", "/v1/invoices/{}", update, _UPDATE),
    Route("DELETE", "/v1/invoices/{}", delete, {}),
    Route("GET", "/v1/invoices/{}/lines", list_lines, LIST),
    Route("POST", "/v1/invoices/{}/finalize", finalize_now, {**_ID, "auto_advance": boolean}),
    Route("POST", "/v1/invoices/{}/pay", pay, _PAY),
    Route("POST", "/v1/invoices/{}/void", void, _ID),
    Route("POST", "/v1/invoices/{}/mark_uncollectible", mark_uncollectible, _ID),
    Route("POST", "/v1/invoices/{}/send", send, _ID),
)
