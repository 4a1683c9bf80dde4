"""Subscriptions as documents."""

from __future__ import annotations

from typing import Any

from .items import items_of, shown_item
from .lists import listed, merged_metadata, public, unset
from .store import Doc
from .world import Call


def subscription_document(
    call: Call, given: dict[str, Any], customer: Doc, currency: str, mode: str, now: int, anchor: int
) -> Doc:
    """A new subscription, active and without an invoice."""
    return {
        **_NOTHING,
        "id": call.new_id("sub_"),
        "object": "subscription",
        "billing_cycle_anchor": anchor,
        "billing_mode": flexible_mode(None) if mode == "flexible" else {"flexible": None, "type": "classic"},
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
        "trial_settings": trial_settings(given),
    }


def trial_settings(given: dict[str, Any]) -> Doc:
    behavior = given.get("trial_settings", {}).get("end_behavior", {})
    missing = behavior.get("missing_payment_method", "create_invoice")
    return {"end_behavior": {"missing_payment_method": missing}}


def flexible_mode(updated_at: int | None) -> Doc:
    mode: Doc = {"flexible": {"proration_discounts": "included"}, "type": "flexible"}
    return mode if updated_at is None else {**mode, "updated_at": updated_at}


def shown_subscription(call: Call, subscription: Doc) -> Doc:
    """A subscription with its items, as answers show it."""
    items = [shown_item(call, doc) for doc in items_of(call, subscription["id"])]
    url = f"/v1/subscription_items?subscription={subscription['id']}"
    return {**public(subscription), "items": {**listed(items, url), "total_count": len(items)}}


_ALWAYS_NULL = (
    "application application_fee_percent billing_cycle_anchor_config billing_thresholds cancel_at "
    "canceled_at default_source ended_at next_pending_invoice_item_invoice on_behalf_of pause_collection "
    "pending_invoice_item_interval pending_setup_intent pending_update schedule transfer_data trial_end "
    "trial_start"
)
_NOTHING: Doc = {
    **dict.fromkeys(_ALWAYS_NULL.split()),
    "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
    "billing_schedules": [],
    "cancel_at_period_end": False,
    "default_tax_rates": [],
    "discounts": [],
    "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
    "payment_settings": {
        "payment_method_options": None,
        "payment_method_types": None,
        "save_default_payment_method": "off",
    },
}
