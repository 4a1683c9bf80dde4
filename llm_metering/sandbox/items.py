"""Subscription items: what they may be, and how answers show them."""

from __future__ import annotations

from typing import Any

from .errors import invalid, missing_parameter
from .forms import EXPAND, LIST, Required, text
from .inline_prices import inline_price
from .lists import merged_metadata, page_of, public
from .periods import period_at
from .prices import shown_price
from .store import Doc
from .world import Call, Route


def price_for(call: Call, wanted: dict[str, Any], path: str) -> Doc:
    """The price that an item asks for, or brings with it, if it can be subscribed to."""
    if "price_data" in wanted:
        if "price" in wanted:
            raise invalid("You may only specify one of these parameters: price, price_data.", path)
        return inline_price(call, wanted["price_data"], f"{path}[price_data]")
    if not wanted.get("price"):
        raise missing_parameter(f"{path}[price]")
    price = call.find("price", wanted["price"], f"{path}[price]")
    if not price["active"]:
        raise invalid(
            "The price specified is inactive. This field only accepts active prices.", f"{path}[price]"
        )
    if price["recurring"] is None:
        raise invalid(
            "The price specified is set to `type=one_time` but this field only accepts prices with "
            "`type=recurring`.",
            f"{path}[price]",
        )
    check_quantity(price, wanted, path)
    return price


def check_quantity(price: Doc, wanted: dict[str, Any], path: str) -> None:
    """Refuse a quantity where the meter says how many there are."""
    if is_metered(price) and "quantity" in wanted:
        raise invalid(
            f"You cannot set a quantity on the metered price {price['id']}; what is used is reported by "
            "meter events.",
            f"{path}[quantity]",
        )


def check_together(customer: Doc, prices: list[Doc], mode: str, currency: str | None) -> None:
    """Refuse prices that cannot be on one subscription of this customer."""
    ids = [price["id"] for price in prices]
    for n, price_id in enumerate(ids):
        if price_id in ids[:n]:
            raise invalid(
                f"Cannot add multiple subscription items with the same price: {price_id}",
                f"items[{n}][price]",
            )
    wanted = currency or prices[0]["currency"]
    if any(price["currency"] != wanted for price in prices):
        raise invalid("All prices of a subscription must have the same currency.", "items")
    if customer.get("currency") not in (None, wanted):
        raise invalid(
            "You cannot combine currencies on a single customer. This customer has had a subscription, "
            f"coupon, or invoice item with currency {customer['currency']}",
            "customer",
        )
    intervals = {(price["recurring"]["interval"], price["recurring"]["interval_count"]) for price in prices}
    if mode == "classic" and len(intervals) > 1:
        raise invalid(
            "All prices of a subscription in classic billing mode must have the same interval; use "
            "billing_mode[type]=flexible for mixed intervals.",
            "items",
        )


def new_item(
    call: Call, subscription: str, price: Doc, wanted: dict[str, Any], anchor: int, now: int, *, starts: bool
) -> Doc:
    """A new item. It `starts` with its subscription, or joins one in mid-period."""
    recurring = price["recurring"]
    start, end = period_at(anchor, recurring["interval"], recurring["interval_count"], now)
    since = start if starts else now
    return {
        "id": call.new_id("si_"),
        "object": "subscription_item",
        "billing_thresholds": None,
        "created": now,
        "current_period_end": end,
        "current_period_start": since,
        "discounts": [],
        "metadata": merged_metadata({}, wanted.get("metadata", {})),
        "price": price["id"],
        "quantity": None if is_metered(price) else wanted.get("quantity", 1),
        "subscription": subscription,
        "tax_rates": [],
        "_anchor": anchor,
        "_earlier": [],
        "_free": False,
        "_since": since,
    }


def items_of(call: Call, subscription: str) -> list[Doc]:
    return call.store.owned(call.account, "subscription_item", subscription)


def shown_item(call: Call, item: Doc) -> Doc:
    """A subscription item with its price. Metered ones have no quantity."""
    price = call.find("price", item["price"], "price")
    shown = {**public(item), "price": shown_price(price), "plan": _plan(price)}
    if item["quantity"] is None:
        del shown["quantity"]
    return shown


def retrieve(call: Call) -> Doc:
    return shown_item(call, call.fetch("subscription_item"))


def list_items(call: Call) -> Doc:
    subscription = call.find("subscription", call.params["subscription"], "subscription")
    shown = [shown_item(call, item) for item in items_of(call, subscription["id"])]
    return page_of(call, shown, "/v1/subscription_items")


def is_metered(price: Doc) -> bool:
    return bool(price["recurring"]["usage_type"] == "metered")


def _plan(price: Doc) -> Doc:
    """The legacy form of a price, which items still carry."""
    recurring = price["recurring"]
    return {
        "id": price["id"],
        "object": "plan",
        "active": price["active"],
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": price["billing_scheme"],
        "created": price["created"],
        "currency": price["currency"],
        "interval": recurring["interval"],
        "interval_count": recurring["interval_count"],
        "livemode": price["livemode"],
        "metadata": price["metadata"],
        "meter": recurring["meter"],
        "nickname": price["nickname"],
        "product": price["product"],
        "tiers_mode": price["tiers_mode"],
        "transform_usage": price["transform_quantity"],
        "trial_period_days": recurring["trial_period_days"],
        "usage_type": recurring["usage_type"],
    }


ROUTES = (
    Route("GET", "/v1/subscription_items", list_items, {**LIST, "subscription": Required(text())}),
    Route("GET", "/v1/subscription_items/{}", retrieve, {"expand": EXPAND}),
)
