"""`expand`: which ids become objects in an answer, and how those are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .coupons import shown_coupon
from .invoices import shown_invoice
from .lists import expand, listed, not_expandable, public
from .prices import shown_price
from .store import Doc
from .subscription_documents import shown_subscription
from .world import Call

_KINDS: Mapping[str, str] = {
    "coupon": "coupon",
    "customer": "customer",
    "default_price": "price",
    "discount": "discount",
    "discounts": "discount",
    "latest_invoice": "invoice",
    "price": "price",
    "product": "product",
    "subscription": "subscription",
    "test_clock": "test_helpers.test_clock",
}
_SHOWN: Mapping[str, Callable[[Call, Doc], Doc]] = {
    "coupon": shown_coupon,
    "invoice": lambda _, doc: shown_invoice(doc),
    "price": lambda _, doc: shown_price(doc),
    "subscription": shown_subscription,
}


def expand_answer(call: Call, answer: Doc) -> None:
    """Carry out the call's `expand`, in place."""

    def lookup(name: str, holder: Doc) -> Any:
        if name == "tiers":
            return _tiers(call, holder)
        if name == "subscriptions":
            return _subscriptions(call, holder)
        if name not in _KINDS:
            raise not_expandable(name)
        kind = _KINDS[name]
        if isinstance(holder[name], list):
            return [shown(kind, one) for one in holder[name]]
        return shown(kind, holder[name])

    def shown(kind: str, id: str) -> Doc:
        doc = call.store.get(call.account, kind, id)
        if doc is None or (doc.get("deleted") and kind != "coupon"):
            return {"id": id, "object": kind, "deleted": True}
        return _SHOWN[kind](call, doc) if kind in _SHOWN else public(doc)

    expand(answer, call.params.get("expand", ()), lookup)


def _tiers(call: Call, holder: Doc) -> list[Doc] | None:
    if holder.get("object") != "price":
        raise not_expandable("tiers")
    price = call.store.get(call.account, "price", holder["id"])
    return None if price is None else price.get("_tiers")


def _subscriptions(call: Call, holder: Doc) -> Doc:
    if holder.get("object") != "customer":
        raise not_expandable("subscriptions")
    docs = call.store.owned(call.account, "subscription", holder["id"])
    shown = [shown_subscription(call, doc) for doc in reversed(docs) if doc["status"] != "canceled"]
    return listed(shown, f"/v1/customers/{holder['id']}/subscriptions")
