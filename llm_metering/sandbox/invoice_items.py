"""Invoice items: amounts that wait for a customer's next invoice, and prorations among them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from .billing import Tariff
from .errors import invalid
from .forms import (
    CREATED,
    EXPAND,
    LIST,
    METADATA,
    Required,
    Table,
    anything,
    boolean,
    hash_of,
    integer,
    refused,
    text,
)
from .lists import created_within, merged_metadata, page, public, unset
from .money import plain
from .prices import CURRENCY
from .store import Doc
from .world import Call, Route


@dataclass(frozen=True, slots=True)
class Pending:
    """An amount that a subscription puts on its next invoice."""

    amount: int
    quantity: Decimal
    unit: Decimal
    tariff: Tariff
    description: str
    start: int
    end: int
    proration: bool


def create(call: Call) -> Doc:
    given = call.params
    customer = call.find("customer", given["customer"], "customer")
    currency = given.get("currency") or customer["currency"]
    if currency is None:
        raise invalid("You must pass a currency for a customer that has none yet.", "currency")
    if customer["currency"] not in (None, currency):
        raise invalid(f"This customer is billed in {customer['currency']}.", "currency")
    subscription = unset(given.get("subscription"))
    if subscription is not None:
        call.find("subscription", subscription, "subscription")
    now = call.world.time_of(call.account, customer)
    item = {
        **_document(call, customer, given["amount"], currency, now),
        "description": unset(given.get("description")),
        "discountable": given.get("discountable", True),
        "metadata": merged_metadata({}, given.get("metadata", {})),
        "period": given.get("period", {"end": now, "start": now}),
        "_subscription": subscription,
    }
    call.store.insert(call.account, item, owner=customer["id"], clock=customer["test_clock"] or "")
    return public(item)


def add_pending(call: Call, customer: Doc, subscription: Doc, item: str, pending: Pending, now: int) -> Doc:
    """Keep what a change of a subscription's item puts on its next invoice."""
    doc = {
        **_document(call, customer, pending.amount, pending.tariff.currency, now),
        "description": pending.description,
        "parent": {
            "subscription_details": {"subscription": subscription["id"], "subscription_item": item},
            "type": "subscription_details",
        },
        "period": {"end": pending.end, "start": pending.start},
        "pricing": {
            "price_details": {"price": pending.tariff.price, "product": pending.tariff.product},
            "type": "price_details",
            "unit_amount_decimal": plain(pending.unit),
        },
        "proration": pending.proration,
        "quantity": int(pending.quantity),
        "quantity_decimal": plain(pending.quantity),
        "_metered": pending.tariff.meter is not None,
        "_subscription": subscription["id"],
    }
    call.store.insert(call.account, doc, owner=customer["id"], clock=customer["test_clock"] or "")
    return doc


def retrieve(call: Call) -> Doc:
    return public(call.fetch("invoiceitem", "invoiceitem"))


def delete(call: Call) -> Doc:
    item = call.fetch("invoiceitem", "invoiceitem")
    if item["invoice"] is not None:
        raise invalid("You cannot delete an invoice item that is on an invoice.", "invoiceitem")
    call.store.remove(call.account, item)
    return {"id": item["id"], "object": "invoiceitem", "deleted": True}


def list_items(call: Call) -> Doc:
    wanted = call.params

    def keep(item: Doc) -> bool:
        return (
            all(wanted.get(name, item[name]) == item[name] for name in ("customer", "invoice"))
            and wanted.get("pending", item["invoice"] is None) == (item["invoice"] is None)
            and created_within(item["date"], wanted.get("created"))
        )

    return page(call, "invoiceitem", "/v1/invoiceitems", lambda _, doc: public(doc), keep)


def _document(call: Call, customer: Doc, amount: int, currency: str, now: int) -> Doc:
    return {
        "id": call.new_id("ii_"),
        "object": "invoiceitem",
        "amount": amount,
        "currency": currency,
        "customer": customer["id"],
        "date": now,
        "description": None,
        "discountable": True,
        "discounts": [],
        "invoice": None,
        "livemode": call.account.livemode,
        "metadata": {},
        "net_amount": amount,
        "parent": None,
        "period": {"end": now, "start": now},
        "pricing": None,
        "proration": False,
        "quantity": 1,
        "quantity_decimal": "1",
        "tax_rates": [],
        "test_clock": customer["test_clock"],
        "_metered": False,
        "_subscription": None,
    }


_PERIOD = hash_of({"end": Required(integer()), "start": Required(integer())})
_NOT_PLAYED = (
    "customer_account discounts invoice price_data pricing quantity quantity_decimal tax_code tax_rates "
    "unit_amount_decimal"
)
_CREATE: Table = {
    **dict.fromkeys(_NOT_PLAYED.split(), refused),
    "amount": Required(integer()),
    "currency": CURRENCY,
    "customer": Required(text()),
    "description": text(),
    "discountable": boolean,
    "expand": EXPAND,
    "metadata": METADATA,
    "period": _PERIOD,
    "subscription": text(),
    "tax_behavior": anything,
}
_LIST: Table = {
    **LIST,
    "created": CREATED,
    "customer": text(),
    "customer_account": refused,
    "invoice": text(),
    "pending": boolean,
}

ROUTES = (
    Route("POST", "/v1/invoiceitems", create, _CREATE),
    Route("GET", "/v1/invoiceitems", list_items, _LIST),
    Route("GET", "/v1/invoiceitems/{}", retrieve, {"expand": EXPAND}),
    Route("DELETE", "/v1/invoiceitems/{}", delete, {}),
)
