"""The parameters that subscriptions and their items take."""

from __future__ import annotations

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

ID: Table = {"expand": EXPAND}
MODE = hash_of({"type": Required(choice("classic", "flexible")), "flexible": anything})
PRORATION = choice("always_invoice", "create_prorations", "none")
BEHAVIOR = choice("allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete")
COLLECTION = choice("charge_automatically", "send_invoice")
_ITEM: Table = {
    "billing_thresholds": refused,
    "current_trial": refused,
    "discounts": refused,
    "metadata": METADATA,
    "plan": refused,
    "price": text(),
    "price_data": refused,
    "quantity": integer(0),
    "tax_rates": refused,
}
ITEMS = array(hash_of(_ITEM), 20)
CHANGED_ITEMS = array(hash_of({**_ITEM, "clear_usage": refused, "deleted": boolean, "id": text()}), 20)
_NOT_PLAYED = (
    "add_invoice_items application_fee_percent billing_schedules billing_thresholds cancel_at default_source "
    "default_tax_rates discounts on_behalf_of pending_invoice_item_interval transfer_data trial_end "
    "trial_from_plan billing_cycle_anchor"
)
_SHARED: Table = {
    **dict.fromkeys(_NOT_PLAYED.split(), refused),
    "automatic_tax": hash_of({"enabled": choice("false"), "liability": anything}),
    "cancel_at_period_end": boolean,
    "collection_method": COLLECTION,
    "days_until_due": integer(0),
    "default_payment_method": text(),
    "description": text(500),
    "expand": EXPAND,
    "invoice_settings": anything,
    "metadata": METADATA,
    "off_session": boolean,
    "payment_behavior": BEHAVIOR,
    "payment_settings": anything,
    "proration_behavior": PRORATION,
    "trial_settings": anything,
}
CREATE: Table = {
    **_SHARED,
    "backdate_start_date": integer(),
    "billing_cycle_anchor_config": refused,
    "billing_mode": MODE,
    "currency": text(3),
    "customer": Required(text()),
    "customer_account": refused,
    "items": ITEMS,
    "trial_period_days": refused,
}
UPDATE: Table = {
    **_SHARED,
    "cancellation_details": anything,
    "items": CHANGED_ITEMS,
    "pause_collection": refused,
    "proration_date": refused,
}
_NOT_FILTERED = "automatic_tax current_period_end current_period_start customer_account plan"
LISTED: Table = {
    **LIST,
    **dict.fromkeys(_NOT_FILTERED.split(), refused),
    "collection_method": COLLECTION,
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
CANCEL: Table = {**ID, "cancellation_details": anything, "invoice_now": boolean, "prorate": boolean}
MIGRATE: Table = {**ID, "billing_mode": Required(MODE)}
_ITEM_CHANGE: Table = {
    **_ITEM,
    "expand": EXPAND,
    "payment_behavior": BEHAVIOR,
    "proration_behavior": PRORATION,
    "proration_date": refused,
}
ITEM_CREATE: Table = {**_ITEM_CHANGE, "subscription": Required(text())}
ITEM_UPDATE: Table = {**_ITEM_CHANGE, "off_session": boolean}
ITEM_DELETE: Table = {
    "clear_usage": refused,
    "payment_behavior": BEHAVIOR,
    "proration_behavior": PRORATION,
    "proration_date": refused,
}
