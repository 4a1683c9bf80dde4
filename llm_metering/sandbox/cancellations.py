"""When a subscription is to end: at a period's end, or at a time that is named."""

from __future__ import annotations

from typing import Any

from .errors import invalid, not_played
from .items import items_of
from .periods import period_at
from .store import Doc
from .subscription_times import next_due
from .world import Call


def plan_end(call: Call, subscription: Doc, given: dict[str, Any], behavior: str) -> None:
    """Carry out `cancel_at_period_end` or `cancel_at`; neither given changes nothing."""
    if "cancel_at" in given and "cancel_at_period_end" in given:
        raise invalid("You may only specify one of these parameters: cancel_at, cancel_at_period_end.")
    if "cancel_at_period_end" in given:
        wanted = given["cancel_at_period_end"]
        _set(call, subscription, _ends(call, subscription)[1] if wanted else None, at_period_end=wanted)
    elif "cancel_at" in given:
        at = _time(call, subscription, given["cancel_at"])
        if at is not None and behavior != "none":
            _check_whole_periods(call, subscription, at)
        _set(call, subscription, at, at_period_end=False)


def _time(call: Call, subscription: Doc, wanted: str | int) -> int | None:
    if wanted == "":
        return None
    if isinstance(wanted, str):
        return _ends(call, subscription)[wanted == "max_period_end"]
    if wanted <= call.world.time_of(call.account, subscription):
        raise invalid("cancel_at must be in the future.", "cancel_at")
    return wanted


def _check_whole_periods(call: Call, subscription: Doc, at: int) -> None:
    """A licence that ends in the middle of a period would be given back in part."""
    for item in items_of(call, subscription["id"]):
        if item["quantity"] is None:
            continue
        recurring = call.find("price", item["price"], "price")["recurring"]
        start, _ = period_at(item["_anchor"], recurring["interval"], recurring["interval_count"], at)
        if start != at and item["current_period_end"] != at:
            raise not_played("cancel_at")


def _set(call: Call, subscription: Doc, at: int | None, *, at_period_end: bool) -> None:
    now = call.world.time_of(call.account, subscription)
    subscription.update(
        cancel_at_period_end=at_period_end, cancel_at=at, canceled_at=None if at is None else now
    )
    subscription["cancellation_details"]["reason"] = None if at is None else "cancellation_requested"
    call.store.set_due(call.account, subscription, next_due(subscription, items_of(call, subscription["id"])))


def _ends(call: Call, subscription: Doc) -> tuple[int, int]:
    ends = [item["current_period_end"] for item in items_of(call, subscription["id"])]
    return min(ends), max(ends)
