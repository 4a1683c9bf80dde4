"""The parameters that subscriptions and their items take."""

from __future__ import annotations

from typing import Any

from .discounts import DISCOUNTS
from .errors import not_played
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
    either,
    hash_of,
    integer,
    refused,
    text,
)
from .inline_prices import ONCE_DATA, RECURRING_DATA

ID: Table = {"expand": EXPAND}
MODE = hash_of({"type": Required(choice("classic", "flexible")), "flexible": anything})
PRORATION = choice("always_invoice", "create_prorations", "none")


def behavior(value: Any, path: str) -> str:
    """How payment may fail; what waits for it, and is undone after a day, is not played."""
    if value == "pending_if_incomplete":
        raise not_played(path)
    return str(choice("allow_incomplete", "default_incomplete", "error_if_incomplete")(value, path))


COLLECTION = choice("charge_automatically", "send_invoice")
_ITEM: Table = {
    "billing_thresholds": refused,
    "current_trial": refused,
    "discounts": refused,
    "metadata": METADATA,
    "plan": refused,
    "price": text(),
    "price_data": hash_of(RECURRING_DATA),
    "quantity": integer(0),
    "tax_rates": refused,
}
ITEMS = array(hash_of(_ITEM), 20)
CHANGED_ITEMS = array(hash_of({**_ITEM, "clear_usage": refused, "deleted": boolean, "id": text()}), 20)
_NOT_PLAYED = (
    "application_fee_percent billing_schedules billing_thresholds default_source default_tax_rates "
    "on_behalf_of pending_invoice_item_interval transfer_data trial_from_plan"
)
_ONCE: Table = {
    **dict.fromkeys(("discounts", "period", "tax_rates"), refused),
    "discountable": boolean,
    "metadata": METADATA,
    "price": text(),
    "price_data": hash_of(ONCE_DATA),
    "quantity": integer(0),
}
_TRIAL_END: Table = {
    "billing_cycle_anchor": refused,
    "missing_payment_method": choice("cancel", "create_invoice"),
}
CANCEL_AT = either(choice("max_period_end", "min_period_end"), integer(1))
_SHARED: Table = {
    **dict.fromkeys(_NOT_PLAYED.split(), refused),
    "add_invoice_items": array(hash_of(_ONCE), 20),
    "automatic_tax": hash_of({"enabled": choice("false"), "liability": anything}),
    "cancel_at": CANCEL_AT,
    "cancel_at_period_end": boolean,
    "collection_method": COLLECTION,
    "days_until_due": integer(0),
    "default_payment_method": text(),
    "description": text(500),
    "discounts": DISCOUNTS,
    "expand": EXPAND,
    "invoice_settings": anything,
    "metadata": METADATA,
    "off_session": boolean,
    "payment_behavior": behavior,
    "payment_settings": anything,
    "proration_behavior": PRORATION,
    "trial_end": either(choice("now"), integer(1)),
    "trial_settings": hash_of({"end_behavior": Required(hash_of(_TRIAL_END))}),
}
CREATE: Table = {
    **_SHARED,
    "backdate_start_date": integer(),
    "billing_cycle_anchor": integer(1),
    "billing_cycle_anchor_config": hash_of(
        {
            "day_of_month": Required(integer(1, 31)),
            "hour": integer(0, 23),
            "minute": integer(0, 59),
            "month": integer(1, 12),
            "second": integer(0, 59),
        }
    ),
    "billing_mode": MODE,
    "currency": text(3),
    "customer": Required(text()),
    "customer_account": refused,
    "items": ITEMS,
    "trial_period_days": integer(0, 730),
}
UPDATE: Table = {
    **_SHARED,
    "billing_cycle_anchor": refused,
    "cancel_at": either(choice(""), CANCEL_AT),
    "cancellation_details": anything,
    "items": CHANGED_ITEMS,
    "pause_collection": either(
        choice(""),
        hash_of(
            {
                "behavior": Required(choice("keep_as_draft", "mark_uncollectible", "void")),
                "resumes_at": integer(1),
            }
        ),
    ),
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
    "payment_behavior": behavior,
    "proration_behavior": PRORATION,
    "proration_date": refused,
}
ITEM_CREATE: Table = {**_ITEM_CHANGE, "subscription": Required(text())}
ITEM_UPDATE: Table = {**_ITEM_CHANGE, "off_session": boolean}
ITEM_DELETE: Table = {
    "clear_usage": refused,
    "payment_behavior": behavior,
    "proration_behavior": PRORATION,
    "proration_date": refused,
}
