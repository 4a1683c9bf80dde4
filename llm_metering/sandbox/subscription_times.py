"""When something happens to a subscription: its periods, its trial, its end, the end of a pause. Pure."""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from .errors import invalid
from .store import Doc

REMINDER_S = 3 * 86_400
"""How long before its end a trial is spoken of."""


def next_due(subscription: Doc, items: Sequence[Doc]) -> int:
    """When to look at a subscription next."""
    times: list[int] = [item["current_period_end"] for item in items]
    if subscription["cancel_at"] is not None:
        times.append(subscription["cancel_at"])
    if (subscription["pause_collection"] or {}).get("resumes_at") is not None:
        times.append(subscription["pause_collection"]["resumes_at"])
    if reminds(subscription):
        times.append(subscription["trial_end"] - REMINDER_S)
    return min(times)


def reminds(subscription: Doc) -> bool:
    """Whether it is still to be said that a trial ends."""
    return subscription["status"] == "trialing" and not subscription.get("_reminded")


def billed_until(subscription: Doc, items: Sequence[Doc], at: int) -> tuple[list[Doc], bool]:
    """The items as they are billed at a time, and whether that is the end of the subscription."""
    last = subscription["cancel_at"]
    if last is None or at < last:
        return list(items), False
    return [{**item, "current_period_end": min(item["current_period_end"], last)} for item in items], True


def configured_anchor(config: dict[str, Any], now: int) -> int:
    """The first time from now on that `billing_cycle_anchor_config` names.

    A day that a month does not have is looked for in the next one, so that later periods keep to it.
    """
    today = datetime.fromtimestamp(now, timezone.utc)
    clock = {name: config.get(name, getattr(today, name)) for name in ("hour", "minute", "second")}
    this_month = today.year * 12 + today.month - 1
    for month in range(this_month, this_month + 12 * 8 + 1):  # a leap year comes within eight
        year, index = divmod(month, 12)
        day = config["day_of_month"]
        if config.get("month", index + 1) != index + 1 or day > calendar.monthrange(year, index + 1)[1]:
            continue
        at = int(datetime(year, index + 1, day, tzinfo=timezone.utc, **clock).timestamp())
        if at >= now:
            return at
    raise invalid("There is no such day.", "billing_cycle_anchor_config[day_of_month]")
