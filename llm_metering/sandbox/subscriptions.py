"""Subscriptions and their items."""

from __future__ import annotations

from typing import Any

from .billing import MAX_LINES, Item, first_lines
from .customers import NO_PAYMENT_METHOD, declines, payment_method
from .errors import Refusal, invalid, missing_parameter
from .forms import (
    CREATED,
    EXPAND,
    LIST,
    METADATA,
    Required,
    Table,
    anything,
    array,
    boolean,
    choice,
    hash_of,
    integer,
    refused,
    text,
)
from .invoices import Draft, invoice_document
from .lists import created_within, listed, merged_metadata, page, page_of, public, unset
from .periods import period_at
from .prices import shown_price
from .store import Doc
from .tariffs import item_value, style_of, usage_of
from .world import Call, Route


def create(call: Call) -> Doc:
    given = call.params
    customer = call.find("customer", given["customer"], "customer")
    if not given.get("items"):
        raise missing_parameter("items")
    mode = given.get("billing_mode", {}).get("type", "flexible")
    prices = [_price(call, n, wanted) for n, wanted in enumerate(given["items"])]
    _check_prices(customer, prices, mode, given.get("currency"))
    _check_collection(given)
    now = call.world.time_of(call.account, customer)
    anchor = _anchor(given, mode, now)
    subscription = _subscription(call, customer, prices[0]["currency"], mode, now, anchor)
    items = [
        _item(call, subscription, price, wanted, anchor, now)
        for price, wanted in zip(prices, given["items"], strict=True)
    ]
    due = min(item["current_period_end"] for item in items)
    clock = customer["test_clock"] or ""
    call.store.insert(call.account, subscription, owner=customer["id"], clock=clock, due=due)
    for item in items:
        call.store.insert(call.account, item, owner=subscription["id"])
    if customer["currency"] is None:
        customer["currency"] = subscription["currency"]
        call.store.save(call.account, customer)
    _bill_first(call, subscription, customer, items, anchor if anchor < now else None, now)
    call.store.save(call.account, subscription)
    return shown_subscription(call, subscription)


def retrieve(call: Call) -> Doc:
    return shown_subscription(call, call.fetch("subscription"))


def update(call: Call) -> Doc:
    """Change what does not change the price."""
    subscription = call.fetch("subscription")
    if subscription["status"] in ("canceled", "incomplete_expired"):
        raise invalid("A canceled subscription can only update its cancellation_details and metadata.")
    given = call.params
    _check_collection({"collection_method": subscription["collection_method"], **given}, update=True)
    for name in ("collection_method", "days_until_due", "default_payment_method", "description"):
        if name in given:
            subscription[name] = unset(given[name])
    if "metadata" in given:
        subscription["metadata"] = merged_metadata(subscription["metadata"], given["metadata"])
    if "cancel_at_period_end" in given:
        _cancel_at_period_end(call, subscription, given["cancel_at_period_end"])
    call.store.save(call.account, subscription)
    return shown_subscription(call, subscription)


def cancel(call: Call) -> Doc:
    """End a subscription now. Usage that was not billed yet stays unbilled."""
    subscription = call.fetch("subscription")
    if subscription["status"] == "canceled":
        raise Refusal(
            404, f"No such subscription: '{subscription['id']}'", code="resource_missing", param="id"
        )
    customer = call.store.get(call.account, "customer", subscription["customer"])
    now = call.world.time_of(call.account, customer)
    subscription.update(status="canceled", canceled_at=now, ended_at=now, cancel_at=None)
    subscription["cancellation_details"]["reason"] = "cancellation_requested"
    call.store.save(call.account, subscription)
    call.store.set_due(call.account, subscription, None)
    return shown_subscription(call, subscription)


def migrate(call: Call) -> Doc:
    """From classic to flexible; there is no way back."""
    subscription = call.fetch("subscription")
    if subscription["billing_mode"]["type"] == "flexible":
        raise invalid("This subscription is already in flexible billing mode.", "billing_mode[type]")
    subscription["billing_mode"] = _flexible(call.now)
    call.store.save(call.account, subscription)
    return shown_subscription(call, subscription)


def list_subscriptions(call: Call) -> Doc:
    wanted = call.params
    status = wanted.get("status")

    def keep(subscription: Doc) -> bool:
        if status is None and subscription["status"] == "canceled":
            return False
        if status not in (None, "all") and subscription["status"] != {"ended": "canceled"}.get(
            status, status
        ):
            return False
        if "price" in wanted:
            items = call.store.owned(call.account, "subscription_item", subscription["id"])
            if wanted["price"] not in [item["price"] for item in items]:
                return False
        return all(
            wanted.get(name, subscription[name]) == subscription[name]
            for name in ("customer", "collection_method", "test_clock")
        ) and created_within(subscription["created"], wanted.get("created"))

    return page(call, "subscription", "/v1/subscriptions", shown_subscription, keep)


def retrieve_item(call: Call) -> Doc:
    return shown_item(call, call.fetch("subscription_item"))


def list_items(call: Call) -> Doc:
    subscription = call.find("subscription", call.params["subscription"], "subscription")
    docs = call.store.owned(call.account, "subscription_item", subscription["id"])
    return page_of(call, [shown_item(call, doc) for doc in docs], "/v1/subscription_items")


def shown_subscription(call: Call, subscription: Doc) -> Doc:
    """A subscription with its items, as answers show it."""
    docs = call.store.owned(call.account, "subscription_item", subscription["id"])
    items = [shown_item(call, doc) for doc in docs]
    url = f"/v1/subscription_items?subscription={subscription['id']}"
    return {**public(subscription), "items": {**listed(items, url), "total_count": len(items)}}


def shown_item(call: Call, item: Doc) -> Doc:
    """A subscription item with its price. Metered ones have no quantity."""
    price = call.store.get(call.account, "price", item["price"])
    if price is None:
        raise LookupError(f"the price {item['price']} is gone")
    shown = {**public(item), "price": shown_price(price), "plan": _plan(price)}
    if item["quantity"] is None:
        del shown["quantity"]
    return shown


def _price(call: Call, n: int, wanted: dict[str, Any]) -> Doc:
    path = f"items[{n}][price]"
    if not wanted.get("price"):
        raise missing_parameter(path)
    price = call.find("price", wanted["price"], path)
    if not price["active"]:
        raise invalid("The price specified is inactive. This field only accepts active prices.", path)
    if price["recurring"] is None:
        raise invalid(
            "The price specified is set to `type=one_time` but this field only accepts prices with "
            "`type=recurring`.",
            path,
        )
    if price["recurring"]["usage_type"] == "metered" and "quantity" in wanted:
        raise invalid(
            f"You cannot set a quantity on the metered price {price['id']}; what is used is reported by "
            "meter events.",
            f"items[{n}][quantity]",
        )
    return price


def _check_prices(customer: Doc, prices: list[Doc], mode: str, currency: str | None) -> None:
    ids = [price["id"] for price in prices]
    for n, id in enumerate(ids):  # noqa: A001
        if id in ids[:n]:
            raise invalid(
                f"Cannot add multiple subscription items with the same price: {id}", f"items[{n}][price]"
            )
    wanted = currency or prices[0]["currency"]
    if any(price["currency"] != wanted for price in prices):
        raise invalid("All prices of a subscription must have the same currency.", "items")
    if customer["currency"] not in (None, wanted):
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


def _check_collection(given: dict[str, Any], *, update: bool = False) -> None:
    sends = given.get("collection_method") == "send_invoice"
    if sends and "days_until_due" not in given and not update:
        raise invalid("You must set days_until_due when collection_method is send_invoice.", "days_until_due")
    if not sends and given.get("days_until_due") is not None:
        raise invalid(
            "You can only set days_until_due when collection_method is send_invoice.", "days_until_due"
        )


def _anchor(given: dict[str, Any], mode: str, now: int) -> int:
    backdated: int | None = given.get("backdate_start_date")
    if backdated is None:
        return now
    if backdated > now:
        raise invalid("backdate_start_date must be in the past.", "backdate_start_date")
    if mode == "classic":
        raise invalid(
            "The sandbox plays backdate_start_date in flexible billing mode only.",
            "backdate_start_date",
            "sandbox_not_played",
        )
    return backdated


def _subscription(call: Call, customer: Doc, currency: str, mode: str, now: int, anchor: int) -> Doc:
    given = call.params
    return {
        **_NOTHING,
        "id": call.new_id("sub_"),
        "object": "subscription",
        "billing_cycle_anchor": anchor,
        "billing_mode": _flexible(None) if mode == "flexible" else {"flexible": None, "type": "classic"},
        "cancellation_details": dict.fromkeys(("comment", "feedback", "reason")),
        "collection_method": given.get("collection_method", "charge_automatically"),
        "created": now,
        "currency": currency,
        "customer": customer["id"],
        "days_until_due": given.get("days_until_due"),
        "default_payment_method": unset(given.get("default_payment_method")),
        "description": unset(given.get("description")),
        "latest_invoice": None,
        "livemode": call.account.livemode,
        "metadata": merged_metadata({}, given.get("metadata", {})),
        "start_date": anchor,
        "status": "active",
        "test_clock": customer["test_clock"],
    }


def _item(call: Call, subscription: Doc, price: Doc, wanted: dict[str, Any], anchor: int, now: int) -> Doc:
    recurring = price["recurring"]
    start, end = period_at(anchor, recurring["interval"], recurring["interval_count"], now)
    metered = recurring["usage_type"] == "metered"
    return {
        "id": call.new_id("si_"),
        "object": "subscription_item",
        "billing_thresholds": None,
        "created": now,
        "current_period_end": end,
        "current_period_start": start,
        "discounts": [],
        "metadata": merged_metadata({}, wanted.get("metadata", {})),
        "price": price["id"],
        "quantity": None if metered else wanted.get("quantity", 1),
        "subscription": subscription["id"],
        "tax_rates": [],
        "_earlier": [],
    }


def _bill_first(
    call: Call, subscription: Doc, customer: Doc, docs: list[Doc], backdated: int | None, now: int
) -> None:
    """Make the first invoice, where there is something to put on it, and see to its payment."""
    items: list[Item] = [item_value(call.world, call.account, doc) for doc in docs]
    usage = usage_of(call.world, call.account, customer["id"])
    mode = subscription["billing_mode"]["type"]
    lines = first_lines(items, mode, backdated, usage, style_of(call.world))
    if len(lines) > MAX_LINES:
        raise invalid(
            f"The backdated invoice would have {len(lines)} lines; at most {MAX_LINES} are allowed.",
            "backdate_start_date",
        )
    if not lines:
        return
    draft = Draft(
        customer,
        subscription,
        subscription["currency"],
        lines,
        "subscription_create",
        created=now,
        start=now if backdated is None else backdated,
        end=now,
        collection_method=subscription["collection_method"],
        days_until_due=subscription["days_until_due"],
    )
    invoice = invoice_document(call, draft, call.new_id("in_"), "il_")
    _settle_first(call, subscription, customer, invoice, now)
    subscription["latest_invoice"] = invoice["id"]
    call.store.insert(call.account, invoice, owner=customer["id"], clock=customer["test_clock"] or "")


def _settle_first(call: Call, subscription: Doc, customer: Doc, invoice: Doc, now: int) -> None:
    if subscription["collection_method"] == "send_invoice":
        invoice["automatically_finalizes_at"] = now + call.switches.finalize_after_s
        return
    behavior = call.params.get("payment_behavior", "allow_incomplete")
    method = subscription["default_payment_method"] or payment_method(customer)
    if invoice["amount_due"] and behavior == "default_incomplete":
        paid = False
    elif invoice["amount_due"] and method is None:
        raise invalid(NO_PAYMENT_METHOD, code="resource_missing")
    else:
        paid = not invoice["amount_due"] or not declines(method or "")
    if not paid and behavior == "error_if_incomplete":
        raise Refusal(402, "Your card was declined.", type="card_error", code="card_declined")
    finalize(call, invoice, customer, now)
    if paid:
        pay(invoice, now)
    else:
        subscription["status"] = "incomplete"


def finalize(call: Call, invoice: Doc, customer: Doc, now: int) -> None:
    """Fix an invoice: from here on nothing changes what it bills."""
    number = customer["next_invoice_sequence"]
    customer["next_invoice_sequence"] = number + 1
    call.store.save(call.account, customer)
    invoice.update(
        status="open",
        number=f"{customer['invoice_prefix']}-{number:04d}",
        effective_at=now,
        automatically_finalizes_at=None,
        ending_balance=min(0, invoice["total"] + invoice["starting_balance"]),
    )
    invoice["status_transitions"]["finalized_at"] = now


def pay(invoice: Doc, now: int) -> None:
    """Count what is due as paid."""
    due = invoice["amount_due"]
    invoice.update(
        status="paid", amount_paid=due, amount_remaining=0, attempted=True, attempt_count=int(due > 0)
    )
    invoice["status_transitions"]["paid_at"] = now


def _cancel_at_period_end(call: Call, subscription: Doc, wanted: bool) -> None:
    items = call.store.owned(call.account, "subscription_item", subscription["id"])
    customer = call.store.get(call.account, "customer", subscription["customer"])
    end = max(item["current_period_end"] for item in items)
    now = call.world.time_of(call.account, customer)
    subscription.update(
        cancel_at_period_end=wanted,
        cancel_at=end if wanted else None,
        canceled_at=now if wanted else None,
    )
    subscription["cancellation_details"]["reason"] = "cancellation_requested" if wanted else None


def _flexible(updated_at: int | None) -> Doc:
    mode: Doc = {"flexible": {"proration_discounts": "included"}, "type": "flexible"}
    return mode if updated_at is None else {**mode, "updated_at": updated_at}


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


_NOTHING: Doc = {
    "application": None,
    "application_fee_percent": None,
    "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
    "billing_cycle_anchor_config": None,
    "billing_schedules": [],
    "billing_thresholds": None,
    "cancel_at": None,
    "cancel_at_period_end": False,
    "canceled_at": None,
    "default_source": None,
    "default_tax_rates": [],
    "discounts": [],
    "ended_at": None,
    "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
    "next_pending_invoice_item_invoice": None,
    "on_behalf_of": None,
    "pause_collection": None,
    "payment_settings": {
        "payment_method_options": None,
        "payment_method_types": None,
        "save_default_payment_method": "off",
    },
    "pending_invoice_item_interval": None,
    "pending_setup_intent": None,
    "pending_update": None,
    "schedule": None,
    "transfer_data": None,
    "trial_end": None,
    "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
    "trial_start": None,
}
_MODE = hash_of({"type": Required(choice("classic", "flexible")), "flexible": anything})
_COLLECTION = choice("charge_automatically", "send_invoice")
_SHARED: Table = {
    **dict.fromkeys(
        (
            "add_invoice_items",
            "application_fee_percent",
            "billing_schedules",
            "billing_thresholds",
            "cancel_at",
            "default_source",
            "default_tax_rates",
            "discounts",
            "on_behalf_of",
            "pending_invoice_item_interval",
            "transfer_data",
            "trial_end",
            "trial_from_plan",
        ),
        refused,
    ),
    "automatic_tax": hash_of({"enabled": choice("false"), "liability": anything}),
    "cancel_at_period_end": boolean,
    "collection_method": _COLLECTION,
    "days_until_due": integer(0),
    "default_payment_method": text(),
    "description": text(500),
    "expand": EXPAND,
    "invoice_settings": anything,
    "metadata": METADATA,
    "off_session": boolean,
    "payment_behavior": choice(
        "allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete"
    ),
    "payment_settings": anything,
    "proration_behavior": choice("always_invoice", "create_prorations", "none"),
    "trial_settings": anything,
}
_CREATE: Table = {
    **_SHARED,
    "backdate_start_date": integer(),
    "billing_cycle_anchor": refused,
    "billing_cycle_anchor_config": refused,
    "billing_mode": _MODE,
    "currency": text(3),
    "customer": Required(text()),
    "customer_account": refused,
    "items": array(
        hash_of(
            {
                "billing_thresholds": refused,
                "discounts": refused,
                "metadata": METADATA,
                "plan": refused,
                "price": text(),
                "price_data": refused,
                "quantity": integer(0),
                "tax_rates": refused,
            }
        ),
        20,
    ),
    "trial_period_days": refused,
}
_UPDATE: Table = {
    **_SHARED,
    "billing_cycle_anchor": refused,
    "cancellation_details": anything,
    "items": refused,
    "pause_collection": refused,
    "proration_date": refused,
}
_LIST: Table = {
    **LIST,
    "collection_method": _COLLECTION,
    "created": CREATED,
    "customer": text(),
    "price": text(),
    "status": choice(
        "active",
        "all",
        "canceled",
        "ended",
        "incomplete",
        "incomplete_expired",
        "past_due",
        "paused",
        "trialing",
        "unpaid",
    ),
    "test_clock": text(),
}
_ID: Table = {"expand": EXPAND}
_CANCEL: Table = {
    "cancellation_details": anything,
    "expand": EXPAND,
    "invoice_now": refused,
    "prorate": boolean,
}

ROUTES = (
    Route("POST", "/v1/subscriptions", create, _CREATE),
    Route("GET", "/v1/subscriptions", list_subscriptions, _LIST),
    Route("GET", "/v1/subscriptions/{}", retrieve, _ID),
    Route("POST", "/v1/subscriptions/{}", update, _UPDATE),
    Route("DELETE", "/v1/subscriptions/{}", cancel, _CANCEL),
    Route("POST", "/v1/subscriptions/{}/migrate", migrate, {**_ID, "billing_mode": Required(_MODE)}),
    Route("GET", "/v1/subscription_items", list_items, {**LIST, "subscription": Required(text())}),
    Route("GET", "/v1/subscription_items/{}", retrieve_item, _ID),
)
