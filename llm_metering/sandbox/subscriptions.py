"""Subscriptions: made, changed, ended."""

from __future__ import annotations

from typing import Any

from . import subscription_tables as tables
from .cancellations import plan_end
from .changes import change_items
from .discounts import give
from .errors import Refusal, invalid, not_played
from .events import emit
from .invoice_items import add_once
from .invoices import Draft, collect, declined, finalize, pending_items
from .items import items_of, shown_item
from .lists import created_within, merged_metadata, page, unset
from .pauses import finish, pause
from .renewals import bill, cycle_draft, end, finalize_due, turn
from .store import Doc
from .subscription_documents import flexible_mode, shown_subscription, trial_settings
from .subscription_starts import check_collection
from .subscription_times import next_due
from .world import Call, Route


def retrieve(call: Call) -> Doc:
    return shown_subscription(call, call.fetch("subscription"))


def update(call: Call) -> Doc:
    subscription = call.fetch("subscription")
    _check_alive(subscription)
    given = call.params
    check_collection({"collection_method": subscription["collection_method"], **given}, update=True)
    for name in ("collection_method", "days_until_due", "default_payment_method", "description"):
        if name in given:
            subscription[name] = unset(given[name])
    if "metadata" in given:
        subscription["metadata"] = merged_metadata(subscription["metadata"], given["metadata"])
    behavior = given.get("proration_behavior", "create_prorations")
    plan_end(call, subscription, given, behavior)
    if "pause_collection" in given:
        pause(call, subscription, given["pause_collection"])
    if "discounts" in given:
        customer = call.find("customer", subscription["customer"], "customer")
        currency = subscription["currency"]
        subscription["discounts"] = give(call, given["discounts"], customer, subscription, currency)
    if "trial_settings" in given:
        subscription["trial_settings"] = trial_settings(given)
    call.store.save(call.account, subscription)
    for n, one in enumerate(given.get("add_invoice_items", ())):
        customer = call.find("customer", subscription["customer"], "customer")
        add_once(call, customer, one, f"add_invoice_items[{n}]", subscription)
    if given.get("items"):
        _change(call, subscription, given["items"])
        subscription = call.fetch("subscription")
    if "trial_end" in given:
        _end_trial(call, subscription, given["trial_end"])
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
        _bill_now(call, change_draft(call, subscription, "subscription_update", now), subscription, now)


def change_draft(call: Call, subscription: Doc, reason: str, now: int) -> Draft:
    """The invoice of a change that is billed at once: all that waits for the subscription's next one."""
    customer = call.find("customer", subscription["customer"], "customer")
    return Draft(
        customer,
        subscription,
        subscription["currency"],
        (),
        reason,
        created=now,
        start=now,
        end=now,
        pending=pending_items(call, customer["id"], subscription["id"]),
        collection_method=subscription["collection_method"],
        days_until_due=subscription["days_until_due"],
    )


def _end_trial(call: Call, subscription: Doc, wanted: int | str) -> None:
    """Move a trial's end, or let it end now."""
    if subscription["status"] != "trialing":
        if wanted == "now":
            return
        raise not_played("trial_end")
    now = call.world.time_of(call.account, subscription)
    at = now if isinstance(wanted, str) else wanted
    if at < now:
        raise invalid("Invalid timestamp: must be an integer Unix timestamp in the future.", "trial_end")
    subscription.update(trial_end=at, billing_cycle_anchor=at, _reminded=at == now)
    items = items_of(call, subscription["id"])
    for item in items:
        item.update(current_period_end=at, _anchor=at)
        call.store.save(call.account, item)
    call.store.set_due(call.account, subscription, next_due(subscription, items))
    call.store.save(call.account, subscription)
    if at == now:
        turn(call, subscription, now)
        _charge_drafts(call, subscription, now)


def _charge_drafts(call: Call, subscription: Doc, now: int) -> None:
    """A trial that was ended by hand is billed at once, without a grace period."""
    invoice = call.store.get(call.account, "invoice", subscription["latest_invoice"] or "")
    if invoice is not None and invoice["status"] == "draft" and not invoice.get("_paused"):
        finalize_due(call, invoice, now)


def _bill_now(call: Call, draft: Draft, subscription: Doc, now: int) -> None:
    invoice = bill(call, draft, subscription, None)
    if invoice is None:
        return
    call.store.save(call.account, subscription)
    if not invoice.get("_paused"):
        finalize(call, invoice, now)
        _charge(call, invoice, subscription, now)
    elif invoice["_paused"] != "keep_as_draft":
        finish(call, invoice, now)


def _charge(call: Call, invoice: Doc, subscription: Doc, now: int) -> None:
    """Have an invoice of a change paid, as far as `payment_behavior` wants that."""
    behavior = call.params.get("payment_behavior", "allow_incomplete")
    charges = subscription["collection_method"] == "charge_automatically" and behavior != "default_incomplete"
    if collect(call, invoice, now, attempt=charges) or not charges:
        return
    if behavior == "error_if_incomplete":
        raise declined()
    subscription["status"] = "past_due"
    call.store.save(call.account, subscription)


def _check_alive(subscription: Doc) -> None:
    if subscription["status"] in ("canceled", "incomplete_expired"):
        raise invalid("A canceled subscription can only update its cancellation_details and metadata.")


def _item_fields(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("metadata", "price", "price_data", "quantity") if name in given}


_FILTERS = ("customer", "collection_method", "test_clock")

ROUTES = (
    Route("GET", "/v1/subscriptions", list_subscriptions, tables.LISTED),
    Route("GET", "/v1/subscriptions/{}", retrieve, tables.ID),
    Route("POST", "/v1/subscriptions/{}", update, tables.UPDATE),
    Route("DELETE", "/v1/subscriptions/{}", cancel, tables.CANCEL),
    Route("POST", "/v1/subscriptions/{}/migrate", migrate, tables.MIGRATE),
    Route("POST", "/v1/subscription_items", create_item, tables.ITEM_CREATE),
    Route("POST", "/v1/subscription_items/{}", update_item, tables.ITEM_UPDATE),
    Route("DELETE", "/v1/subscription_items/{}", delete_item, tables.ITEM_DELETE),
)
