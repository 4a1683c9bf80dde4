"""Coupons: what a discount takes off, for how long, and of what."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from .errors import Refusal, invalid, missing_parameter
from .events import emit
from .forms import (
    CREATED,
    EXPAND,
    LIST,
    METADATA,
    Table,
    array,
    choice,
    decimal,
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


def create(call: Call) -> Doc:
    given = call.params
    _check(given)
    name = given.get("id") or call.world.new_id("", 8)
    if call.store.get(call.account, "coupon", name) is not None:
        raise Refusal(400, "Coupon already exists.", code="resource_already_exists", param="id")
    products = given.get("applies_to", {}).get("products")
    for product in products or ():
        call.find("product", product, "applies_to[products]")
    percent: Decimal | None = given.get("percent_off")
    coupon: Doc = {
        "id": name,
        "object": "coupon",
        "amount_off": given.get("amount_off"),
        "created": call.now,
        "currency": given.get("currency") if "amount_off" in given else None,
        "duration": given.get("duration", "once"),
        "duration_in_months": given.get("duration_in_months"),
        "livemode": call.account.livemode,
        "max_redemptions": given.get("max_redemptions"),
        "metadata": merged_metadata({}, given.get("metadata", {})),
        "name": unset(given.get("name")),
        "percent_off": None if percent is None else float(percent),
        "redeem_by": given.get("redeem_by"),
        "times_redeemed": 0,
        "_percent": None if percent is None else plain(percent),
        "_products": products,
    }
    call.store.insert(call.account, coupon)
    shown = shown_coupon(call, coupon)
    emit(call, "coupon.created", shown)
    return shown


def retrieve(call: Call) -> Doc:
    return shown_coupon(call, _coupon(call))


def update(call: Call) -> Doc:
    coupon = _coupon(call)
    if "name" in call.params:
        coupon["name"] = unset(call.params["name"])
    if "metadata" in call.params:
        coupon["metadata"] = merged_metadata(coupon["metadata"], call.params["metadata"])
    call.store.save(call.account, coupon)
    shown = shown_coupon(call, coupon)
    emit(call, "coupon.updated", shown, {})
    return shown


def delete(call: Call) -> Doc:
    """No new discounts come of it; those that were given stay."""
    coupon = _coupon(call)
    coupon["deleted"] = True
    call.store.save(call.account, coupon)
    emit(call, "coupon.deleted", shown_coupon(call, coupon))
    return {"id": coupon["id"], "object": "coupon", "deleted": True}


def list_coupons(call: Call) -> Doc:
    wanted = call.params.get("created")
    return page(
        call, "coupon", "/v1/coupons", shown_coupon, lambda coupon: created_within(coupon["created"], wanted)
    )


def redeem(call: Call, id: str, currency: str, path: str) -> Doc:
    """Use a coupon once more; a `Refusal` where it cannot be."""
    coupon = call.find("coupon", id, path)
    if not _valid(call, coupon):
        raise invalid(f"Coupon expired: {id}", path, "coupon_expired")
    if coupon["currency"] not in (None, currency):
        raise invalid(f"The coupon {id} is in {coupon['currency']}; this is billed in {currency}.", path)
    coupon["times_redeemed"] += 1
    call.store.save(call.account, coupon)
    return coupon


def shown_coupon(call: Call, coupon: Doc) -> Doc:
    """A coupon as answers show it: whether it can still be redeemed is looked up now."""
    return {**public(coupon), "valid": _valid(call, coupon)}


def _coupon(call: Call) -> Doc:
    coupon = call.fetch("coupon", "coupon")
    if coupon.get("deleted"):
        raise Refusal(404, f"No such coupon: '{coupon['id']}'", code="resource_missing", param="coupon")
    return coupon


def _valid(call: Call, coupon: Doc) -> bool:
    if coupon.get("deleted") or (coupon["redeem_by"] is not None and coupon["redeem_by"] < call.now):
        return False
    most = coupon["max_redemptions"]
    return most is None or bool(coupon["times_redeemed"] < most)


def _check(given: dict[str, Any]) -> None:
    if ("percent_off" in given) == ("amount_off" in given):
        raise invalid("You must specify exactly one of percent_off and amount_off.", "percent_off")
    if "percent_off" in given and not 0 < given["percent_off"] <= 100:
        raise invalid("percent_off must be above 0 and at most 100.", "percent_off")
    if "amount_off" in given and "currency" not in given:
        raise missing_parameter("currency")
    if (given.get("duration") == "repeating") != ("duration_in_months" in given):
        raise invalid(
            "duration_in_months is required for duration=repeating, and for no other.", "duration_in_months"
        )
    if "redeem_by" in given and given["redeem_by"] < 1:
        raise invalid("Invalid timestamp.", "redeem_by")


_UPDATE: Table = {"currency_options": refused, "expand": EXPAND, "metadata": METADATA, "name": text(40)}
_CREATE: Table = {
    **_UPDATE,
    "amount_off": integer(1, 99_999_999_999),
    "applies_to": hash_of({"products": array(text())}),
    "currency": CURRENCY,
    "duration": choice("forever", "once", "repeating"),
    "duration_in_months": integer(1),
    "id": text(200),
    "max_redemptions": integer(1),
    "percent_off": decimal,
    "redeem_by": integer(),
}
_ID: Table = {"expand": EXPAND}

ROUTES = (
    Route("POST", "/v1/coupons", create, _CREATE),
    Route("GET", "/v1/coupons", list_coupons, {**LIST, "created": CREATED}),
    Route("GET", "/v1/coupons/{}", retrieve, _ID),
    Route("POST", "/v1/coupons/{}", update, _UPDATE),
    Route("DELETE", "/v1/coupons/{}", delete, {}),
)
