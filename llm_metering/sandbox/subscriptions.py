"""Subscriptions: made, changed, ended."""

from __future__ import annotations

from typing import Any

from . import subscription_tables as tables
from .billing import MAX_LINES, first_lines
from .changes import change_items
from .errors import Refusal, invalid, missing_parameter, not_played
from .events import emit
from .invoices import (
    Draft,
    collect,
    declined,
    finalize,
    invoice_document,
    keep_invoice,
    pending_items,
    style_of,
)
from .items import check_together, items_of, new_item, price_for, shown_item
from .lists import created_within, merged_metadata, page, unset
from .payments import NO_PAYMENT_METHOD, declines, payment_method
from .renewals import bill, cycle_draft, end
from .store import Doc
from .subscription_documents import flexible_mode, shown_subscription, subscription_document
from .tariffs import item_value, usage_of
from .world import Call, Route

INCOMPLETE_S = 23 * 3_600
"""How long a first payment may take."""


def create(call: Call) -> Doc:
    given = call.params
    customer = call.find("customer", given["customer"], "customer")
    if not given.get("items"):
        raise missing_parameter("items")
    mode = given.get("billing_mode", {}).get("type", "flexible")
    prices = [price_for(call, wanted, f"items[{n}]") for n, wanted in enumerate(given["items"])]
    check_together(customer, prices, mode, given.get("currency"))
    _check_collection(given)
    now = call.world.time_of(call.account, customer)
    anchor = _anchor(given, mode, now)
    subscription = subscription_document(call, given, customer, prices[0]["currency"], mode, now, anchor)
    items = [
        new_item(call, subscription["id"], price, wanted, anchor, now, starts=True)
        for price, wanted in zip(prices, given["items"], strict=True)
    ]
    due = min(item["current_period_end"] for item in items)
    call.store.insert(
        call.account, subscription, owner=customer["id"], clock=customer["test_clock"] or "", due=due
    )
    for item in items:
        call.store.insert(call.account, item, owner=subscription["id"])
    customer["currency"] = subscription["currency"]
    call.store.save(call.account, customer)
    _bill_first(call, subscription, customer, items, anchor if anchor < now else None, now)
    if given.get("cancel_at_period_end"):
        _cancel_at_period_end(call, subscription, True)
    call.store.save(call.account, subscription)
    shown = shown_subscription(call, subscription)
    emit(call, "customer.subscription.created", shown)
    return shown


def retrieve(call: Call) -> Doc:
    return shown_subscription(call, call.fetch("subscription"))


def update(call: Call) -> Doc:
    subscription = call.fetch("subscription")
    _check_alive(subscription)
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
    if given.get("items"):
        _change(call, subscription, given["items"])
    shown = shown_subscription(call, subscription)
    emit(call, "customer.subscription.updated", shown, {})
    return shown


def cancel(call: Call) -> Doc:
    """End a subscription now. What was used and not billed stays unbilled, unless `invoice_now`."""
    subscription = call.fetch("subscription")
    if subscription["status"] == "canceled":
        raise Refusal(
            404, f"No such subscription: '{subscription['id']}'", code="resource_missing", param="id"
        )
    if call.params.get("prorate"):
        raise not_played("prorate")
    customer = call.find("customer", subscription["customer"], "customer")
    now = call.world.time_of(call.account, customer)
    if call.params.get("invoice_now"):
        # Ends are outside of a period, and what was used in this very second is to be billed.
        docs = [{**doc, "current_period_end": now + 1} for doc in items_of(call, subscription["id"])]
        draft = cycle_draft(call, customer, subscription, docs, now, "subscription_update", final=True)
        _bill_now(call, draft, subscription, now)
    end(call, subscription, now, "cancellation_requested")
    return shown_subscription(call, subscription)


def migrate(call: Call) -> Doc:
    """From classic to flexible; there is no way back."""
    subscription = call.fetch("subscription")
    if call.params["billing_mode"]["type"] == "classic" or subscription["billing_mode"]["type"] == "flexible":
        raise invalid(
            "Only a subscription in classic billing mode can move, to flexible.", "billing_mode[type]"
        )
    subscription["billing_mode"] = flexible_mode(call.now)
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
        prices = [item["price"] for item in items_of(call, subscription["id"])] if "price" in wanted else []
        return (
            wanted.get("price") in (None, *prices)
            and all(wanted.get(name, subscription[name]) == subscription[name] for name in _FILTERS)
            and created_within(subscription["created"], wanted.get("created"))
        )

    return page(call, "subscription", "/v1/subscriptions", shown_subscription, keep)


def create_item(call: Call) -> Doc:
    subscription = call.find("subscription", call.params["subscription"], "subscription")
    before = {item["id"] for item in items_of(call, subscription["id"])}
    _change(call, subscription, [_item_fields(call.params)])
    [made] = [item for item in items_of(call, subscription["id"]) if item["id"] not in before]
    return shown_item(call, made)


def update_item(call: Call) -> Doc:
    item = call.fetch("subscription_item")
    subscription = call.find("subscription", item["subscription"], "item")
    _change(call, subscription, [{**_item_fields(call.params), "id": item["id"]}])
    return shown_item(call, call.fetch("subscription_item"))


def delete_item(call: Call) -> Doc:
    item = call.fetch("subscription_item")
    subscription = call.find("subscription", item["subscription"], "item")
    _change(call, subscription, [{"id": item["id"], "deleted": True}])
    return {"id": item["id"], "object": "subscription_item", "deleted": True}


def change(call: Call, subscription: Doc, items: list[dict[str, Any]], behavior: str) -> int:
    """Change items, and return the time of it."""
    _check_alive(subscription)
    customer = call.find("customer", subscription["customer"], "customer")
    now = call.world.time_of(call.account, customer)
    change_items(call, customer, subscription, items, behavior, now)
    return now


def _change(call: Call, subscription: Doc, items: list[dict[str, Any]]) -> None:
    behavior = call.params.get("proration_behavior", "create_prorations")
    now = change(call, subscription, items, behavior)
    if behavior == "always_invoice":
        customer = call.find("customer", subscription["customer"], "customer")
        draft = Draft(
            customer,
            subscription,
            subscription["currency"],
            (),
            "subscription_update",
            created=now,
            start=now,
            end=now,
            pending=pending_items(call, customer["id"], subscription["id"]),
            collection_method=subscription["collection_method"],
            days_until_due=subscription["days_until_due"],
        )
        _bill_now(call, draft, subscription, now)


def _bill_now(call: Call, draft: Draft, subscription: Doc, now: int) -> None:
    invoice = bill(call, draft, subscription, None)
    if invoice is not None:
        call.store.save(call.account, subscription)
        finalize(call, invoice, now)
        collect(call, invoice, now, attempt=subscription["collection_method"] == "charge_automatically")


def _bill_first(
    call: Call, subscription: Doc, customer: Doc, docs: list[Doc], backdated: int | None, now: int
) -> None:
    """Make the first invoice, where there is something to put on it, and see to its payment."""
    items = [item_value(call.world, call.account, doc) for doc in docs]
    usage = usage_of(call.world, call.account, customer["id"])
    mode = subscription["billing_mode"]["type"]
    lines = first_lines(items, mode, backdated, usage, style_of(call))
    pending = pending_items(call, customer["id"], subscription["id"])
    if len(lines) > MAX_LINES:
        raise invalid(
            f"The backdated invoice would have {len(lines)} lines; at most {MAX_LINES} are allowed.",
            "backdate_start_date",
        )
    if not lines and not pending:
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
        pending=pending,
        collection_method=subscription["collection_method"],
        days_until_due=subscription["days_until_due"],
    )
    invoice = invoice_document(call, draft, call.new_id("in_"), "il_")
    subscription["latest_invoice"] = invoice["id"]
    if subscription["collection_method"] == "send_invoice":
        due = invoice["automatically_finalizes_at"] = now + call.switches.finalize_after_s
        keep_invoice(call, invoice, due)
    else:
        _charge_first(call, subscription, customer, invoice, now)


def _charge_first(call: Call, subscription: Doc, customer: Doc, invoice: Doc, now: int) -> None:
    """Finalise the first invoice at once and have it paid, as far as `payment_behavior` wants that."""
    behavior = call.params.get("payment_behavior", "allow_incomplete")
    method = subscription["default_payment_method"] or payment_method(customer)
    waits = behavior == "default_incomplete"
    if invoice["amount_due"] and not waits:
        if method is None:
            raise invalid(NO_PAYMENT_METHOD, code="resource_missing")
        if declines(method) and behavior == "error_if_incomplete":
            raise declined()
    keep_invoice(call, invoice, None)
    finalize(call, invoice, now)
    if not collect(call, invoice, now, method=method, attempt=not waits):
        subscription["status"] = "incomplete"
        call.store.set_due(call.account, subscription, now + INCOMPLETE_S)


def _check_alive(subscription: Doc) -> None:
    if subscription["status"] in ("canceled", "incomplete_expired"):
        raise invalid("A canceled subscription can only update its cancellation_details and metadata.")


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
        raise not_played("backdate_start_date")
    return backdated


def _cancel_at_period_end(call: Call, subscription: Doc, wanted: bool) -> None:
    items = items_of(call, subscription["id"])
    now = call.world.time_of(call.account, subscription)
    subscription.update(
        cancel_at_period_end=wanted,
        cancel_at=max(item["current_period_end"] for item in items) if wanted else None,
        canceled_at=now if wanted else None,
    )
    subscription["cancellation_details"]["reason"] = "cancellation_requested" if wanted else None


def _item_fields(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("metadata", "price", "quantity") if name in given}


_FILTERS = ("customer", "collection_method", "test_clock")

ROUTES = (
    Route("POST", "/v1/subscriptions", create, tables.CREATE),
    Route("GET", "/v1/subscriptions", list_subscriptions, tables.LISTED),
    Route("GET", "/v1/subscriptions/{}", retrieve, tables.ID),
    Route("POST", "/v1/subscriptions/{}", update, tables.UPDATE),
    Route("DELETE", "/v1/subscriptions/{}", cancel, tables.CANCEL),
    Route("POST", "/v1/subscriptions/{}/migrate", migrate, tables.MIGRATE),
    Route("POST", "/v1/subscription_items", create_item, tables.ITEM_CREATE),
    Route("POST", "/v1/subscription_items/{}", update_item, tables.ITEM_UPDATE),
    Route("DELETE", "/v1/subscription_items/{}", delete_item, tables.ITEM_DELETE),
)
