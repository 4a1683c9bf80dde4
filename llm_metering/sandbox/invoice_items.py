"""Invoice items: amounts that wait for a customer's next invoice, and prorations among them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

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
    decimal,
    hash_of,
    integer,
    refused,
    text,
)
from .inline_prices import ONCE_DATA
from .invoices import put_on
from .lists import created_within, merged_metadata, page, public, unset
from .money import plain
from .once_amounts import once_amounts
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
    price = given.get("pricing", {}).get("price")
    wanted = given if price is None else {**given, "price": price}
    item = new_item(call, customer, wanted, currency, subscription)
    if "invoice" in given:
        put_on(call, call.find("invoice", given["invoice"], "invoice"), [item])
    return public(item)


def new_item(
    call: Call, customer: Doc, given: dict[str, Any], currency: str, subscription: str | None
) -> Doc:
    """Keep an amount that was asked for, whichever way it is given: as it is, or as a quantity of a price."""
    now = call.world.time_of(call.account, customer)
    amounts = once_amounts(call, given, currency)
    item = {
        **_document(call, customer, amounts["amount"], currency, now),
        "description": unset(given.get("description")),
        "discountable": given.get("discountable", True),
        "metadata": merged_metadata({}, given.get("metadata", {})),
        "period": given.get("period", {"end": now, "start": now}),
        "_subscription": subscription,
        **amounts,
    }
    call.store.insert(call.account, item, owner=customer["id"], clock=customer["test_clock"] or "")
    return item


def add_once(call: Call, customer: Doc, given: dict[str, Any], path: str, subscription: Doc) -> None:
    """Put an amount that is billed once on a subscription's next invoice."""
    if ("price" in given) == ("price_data" in given):
        raise invalid("You must specify exactly one of price and price_data.", path)
    new_item(call, customer, given, subscription["currency"], subscription["id"])


def update(call: Call) -> Doc:
    """Change an amount that is on no invoice yet."""
    item = call.fetch("invoiceitem", "invoiceitem")
    given = call.params
    if item["invoice"] is not None:
        raise invalid("You cannot change an invoice item that is on an invoice.", "invoiceitem")
    if "amount" in given:
        if item["pricing"] is not None:
            raise invalid("The amount of an invoice item with a price follows from its quantity.", "amount")
        item.update(amount=given["amount"], net_amount=given["amount"])
    for name in ("description", "discountable", "period"):
        if name in given:
            item[name] = unset(given[name])
    if "metadata" in given:
        item["metadata"] = merged_metadata(item["metadata"], given["metadata"])
    call.store.save(call.account, item)
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
_NOT_PLAYED = "customer_account discounts tax_code tax_rates"
_CREATE: Table = {
    **dict.fromkeys(_NOT_PLAYED.split(), refused),
    "amount": integer(),
    "currency": CURRENCY,
    "customer": Required(text()),
    "description": text(),
    "discountable": boolean,
    "expand": EXPAND,
    "invoice": text(),
    "metadata": METADATA,
    "period": _PERIOD,
    "price_data": hash_of(ONCE_DATA),
    "pricing": hash_of({"price": text()}),
    "quantity": integer(0),
    "quantity_decimal": decimal,
    "subscription": text(),
    "tax_behavior": anything,
    "unit_amount_decimal": decimal,
}
_UNCHANGED = (
    "discounts invoicing_rules price_data pricing quantity quantity_decimal tax_code tax_rates "
    "unit_amount_decimal"
)
_UPDATE: Table = {
    **dict.fromkeys(_UNCHANGED.split(), refused),
    "amount": integer(),
    "description": text(),
    "discountable": boolean,
    "expand": EXPAND,
    "metadata": METADATA,
    "period": _PERIOD,
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
    Route("POST", "/v1/invoiceitems/{}", update, _UPDATE),
    Route("DELETE", "/v1/invoiceitems/{}", delete, {}),
)
