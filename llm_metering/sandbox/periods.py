"""Billing periods: when they begin and end. Pure, in UTC."""

from __future__ import annotations

import calendar
from datetime import datetime, timedelta, timezone
from typing import Literal

Interval = Literal["day", "week", "month", "year"]

_MONTHS = {"month": 1, "year": 12}
_DAYS = {"day": 1, "week": 7}


def step(anchor: int, interval: Interval, count: int, n: int) -> int:
    """The time `n` periods after the anchor (before it where `n` is negative).

    Months keep the anchor's day, or end on their last one: January 31 is followed by February 28.
    """
    start = datetime.fromtimestamp(anchor, timezone.utc)
    if interval in _DAYS:
        return int((start + timedelta(days=_DAYS[interval] * count * n)).timestamp())
    months = start.year * 12 + start.month - 1 + _MONTHS[interval] * count * n
    year, month = divmod(months, 12)
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    return int(start.replace(year=year, month=month + 1, day=day).timestamp())


def period_at(anchor: int, interval: Interval, count: int, at: int) -> tuple[int, int]:
    """The period, counted from the anchor, that holds a moment: its start, and its end that is outside."""
    n = _guess(anchor, interval, count, at)
    while step(anchor, interval, count, n) > at:
        n -= 1
    while step(anchor, interval, count, n + 1) <= at:
        n += 1
    return step(anchor, interval, count, n), step(anchor, interval, count, n + 1)


def _guess(anchor: int, interval: Interval, count: int, at: int) -> int:
    days = _DAYS.get(interval) or _MONTHS[interval] * 31
    return (at - anchor) // (86_400 * days * count)
