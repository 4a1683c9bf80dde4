"""The lines of an invoice as documents: from the engine's lines, and from invoice items."""

from __future__ import annotations

from .billing import Line
from .money import plain
from .store import Doc
from .world import Call


def line_document(call: Call, line: Line, subscription: Doc | None, invoice: str, id: str) -> Doc:
    """A line that the engine reckoned."""
    subscription_id = None if subscription is None else subscription["id"]
    return {
        **_NOTHING,
        "id": id,
        "amount": line.amount,
        "currency": line.tariff.currency,
        "description": line.description,
        "discountable": True,
        "invoice": invoice,
        "livemode": call.account.livemode,
        "metadata": {} if subscription is None else subscription["metadata"],
        "parent": item_details(subscription_id, line.item, None),
        "period": {"end": line.end, "start": line.start},
        "pricing": {
            "price_details": {"price": line.tariff.price, "product": line.tariff.product},
            "type": "price_details",
            "unit_amount_decimal": plain(line.unit),
        },
        "quantity": int(line.quantity),
        "quantity_decimal": plain(line.quantity),
        "subscription": subscription_id,
        "subtotal": line.amount,
        "_metered": line.tariff.meter is not None,
    }


def item_line_document(item: Doc, invoice: str, id: str) -> Doc:
    """A line for an invoice item."""
    details = (item["parent"] or {}).get("subscription_details")
    if details is None:
        parent: Doc = {
            "invoice_item_details": {
                "invoice_item": item["id"],
                "proration": False,
                "proration_details": None,
                "subscription": None,
            },
            "subscription_item_details": None,
            "type": "invoice_item_details",
        }
    else:
        parent = item_details(details["subscription"], details["subscription_item"], item)
    return {
        **_NOTHING,
        "id": id,
        "amount": item["amount"],
        "currency": item["currency"],
        "description": item["description"],
        "discountable": item["discountable"],
        "invoice": invoice,
        "livemode": item["livemode"],
        "metadata": item["metadata"],
        "parent": parent,
        "period": item["period"],
        "pricing": item["pricing"],
        "quantity": item["quantity"],
        "quantity_decimal": item["quantity_decimal"],
        "subscription": None if details is None else details["subscription"],
        "subtotal": item["amount"],
        "_metered": item["_metered"],
    }


def item_details(subscription: str | None, item: str | None, invoice_item: Doc | None) -> Doc:
    """The parent of a line that belongs to a subscription's item."""
    return {
        "invoice_item_details": None,
        "subscription_item_details": {
            "invoice_item": None if invoice_item is None else invoice_item["id"],
            "proration": False if invoice_item is None else invoice_item["proration"],
            "proration_details": {"credited_items": None},
            "subscription": subscription,
            "subscription_item": item,
        },
        "type": "subscription_item_details",
    }


_NOTHING: Doc = {
    "object": "line_item",
    "discount_amounts": [],
    "discounts": [],
    "pretax_credit_amounts": [],
    "taxes": [],
}
