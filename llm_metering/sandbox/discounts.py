"""Discounts: coupons at work on a subscription or an invoice.

Each discount takes its part of what the ones before it left. It is rounded once for the whole invoice, a
half going up, and shared among the lines so that no cent is lost; before credits.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from .coupons import redeem
from .errors import invalid, not_played
from .events import emit
from .forms import Table, array, hash_of, text
from .lists import public
from .money import EXACT, minor_units
from .periods import step
from .store import Doc
from .world import Call, Route

KIND = "discount"


def give(
    call: Call, wanted: Sequence[dict[str, Any]], customer: Doc, subscription: Doc | None, currency: str
) -> list[str]:
    """The ids of the discounts that `discounts` asks for: new ones of coupons, or some that are there."""
    now = call.world.time_of(call.account, customer)
    found = []
    for n, one in enumerate(wanted):
        path = f"discounts[{n}]"
        if "promotion_code" in one:
            raise not_played(f"{path}[promotion_code]")
        if ("coupon" in one) == ("discount" in one):
            raise invalid("Each discount is either a coupon or a discount.", path)
        if "discount" in one:
            if subscription is None or one["discount"] not in subscription["discounts"]:
                raise invalid(f"No such discount: '{one['discount']}'", path, "resource_missing")
            found.append(one["discount"])
            continue
        coupon = redeem(call, one["coupon"], currency, f"{path}[coupon]")
        found.append(_new(call, coupon, customer, subscription, now)["id"])
    return found


def running(call: Call, ids: Sequence[str], at: int) -> list[str]:
    """Those of some discounts that are in force at a time."""
    docs = [call.find(KIND, one, "discounts") for one in ids]
    return [doc["id"] for doc in docs if doc["end"] is None or at < doc["end"]]


def apply(call: Call, invoice: Doc, subscription: Doc | None) -> None:
    """Take an invoice's discounts off its lines. One that counts once is then used up."""
    for line in invoice["_lines"]:
        line["discount_amounts"] = []
    totals = []
    for name in invoice["discounts"]:
        discount = call.find(KIND, name, "discounts")
        used_by = discount["_used_by"]
        coupon = call.store.get(call.account, "coupon", discount["source"]["coupon"])
        if coupon is None or used_by not in (None, invoice["id"]):
            continue
        amount = _take(coupon, name, invoice["_lines"])
        if not amount:
            continue
        totals.append({"amount": amount, "discount": name})
        if coupon["duration"] == "once" and used_by is None:
            _use_up(call, discount, invoice, subscription)
    invoice["total_discount_amounts"] = totals


def shared(total: int, weights: Sequence[int]) -> list[int]:
    """A total in parts, in proportion to weights; the parts add up to it exactly."""
    whole = sum(weights)
    parts, weight, given = [], 0, 0
    for one in weights:
        weight += one
        upto = minor_units(EXACT.divide(Decimal(total * weight), Decimal(whole)))
        parts.append(upto - given)
        given = upto
    return parts


def delete_of_subscription(call: Call) -> Doc:
    """End every discount of a subscription; invoices that exist keep theirs."""
    subscription = call.fetch("subscription")
    if not subscription["discounts"]:
        raise invalid("No active discount for subscription", "id", "resource_missing")
    now = call.world.time_of(call.account, subscription)
    *_, last = [_end(call, call.find(KIND, one, "discounts"), now) for one in subscription["discounts"]]
    subscription["discounts"] = []
    call.store.save(call.account, subscription)
    return {**public(last), "deleted": True}


def _take(coupon: Doc, discount: str, lines: Sequence[Doc]) -> int:
    """Note what a coupon takes off each line; the sum of it."""
    eligible = [line for line in lines if _covers(coupon, line) and _left(line)]
    base: int = sum(_left(line) for line in eligible)
    if base <= 0:
        return 0
    if coupon["_percent"] is None:
        total = min(int(coupon["amount_off"]), base)
    else:
        part = EXACT.multiply(Decimal(base), Decimal(coupon["_percent"]))
        total = minor_units(EXACT.scaleb(part, -2))
    for line, amount in zip(eligible, shared(total, [_left(line) for line in eligible]), strict=True):
        if amount:
            line["discount_amounts"].append({"amount": amount, "discount": discount})
    return total


def _left(line: Doc) -> int:
    taken: int = sum(one["amount"] for one in line["discount_amounts"])
    return int(line["amount"]) - taken


def _covers(coupon: Doc, line: Doc) -> bool:
    if not line["discountable"]:
        return False
    product = ((line["pricing"] or {}).get("price_details") or {}).get("product")
    return coupon["_products"] is None or product in coupon["_products"]


def _new(call: Call, coupon: Doc, customer: Doc, subscription: Doc | None, now: int) -> Doc:
    repeats = coupon["duration"] == "repeating"
    discount = {
        "id": call.new_id("di_"),
        "object": KIND,
        "checkout_session": None,
        "customer": customer["id"],
        "end": step(now, "month", coupon["duration_in_months"], 1) if repeats else None,
        "invoice": None,
        "invoice_item": None,
        "promotion_code": None,
        "source": {"coupon": coupon["id"], "type": "coupon"},
        "start": now,
        "subscription": None if subscription is None else subscription["id"],
        "subscription_item": None,
        "_used_by": None,
    }
    call.store.insert(call.account, discount, owner=customer["id"], clock=customer["test_clock"] or "")
    emit(call, "customer.discount.created", public(discount))
    return discount


def _use_up(call: Call, discount: Doc, invoice: Doc, subscription: Doc | None) -> None:
    discount["_used_by"] = invoice["id"]
    _end(call, discount, invoice["created"])
    if subscription is not None and discount["id"] in subscription["discounts"]:
        subscription["discounts"] = [one for one in subscription["discounts"] if one != discount["id"]]
        call.store.save(call.account, subscription)


def _end(call: Call, discount: Doc, now: int) -> Doc:
    discount["end"] = now
    call.store.save(call.account, discount)
    emit(call, "customer.discount.deleted", public(discount))
    return discount


_DISCOUNT: Table = {"coupon": text(), "discount": text(), "promotion_code": text()}
DISCOUNTS = array(hash_of(_DISCOUNT), 20)

ROUTES = (Route("DELETE", "/v1/subscriptions/{}/discount", delete_of_subscription, {}),)
