"""How a meter turns events into one number. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from .money import ZERO, add

Formula = Literal["sum", "count", "last"]

WINDOWS = {"hour": 3_600, "day": 86_400}
"""Seconds in a window. Windows are those of UTC, as days of Unix time are."""


@dataclass(frozen=True, slots=True)
class Used:
    """One event that counts."""

    timestamp: int
    seq: int
    """Order of receipt."""
    value: Decimal


def aggregate(events: Iterable[Used], formula: Formula, window: str | None = None) -> Decimal:
    """The usage of some events. With an event time window, only the last received of each one counts."""
    counted = list(events) if window is None else _last_received(events, WINDOWS[window])
    if formula == "count":
        return Decimal(len(counted))
    if formula == "last":
        latest = max(counted, key=lambda event: (event.timestamp, event.seq), default=None)
        return ZERO if latest is None else latest.value
    return add(event.value for event in counted)


def _last_received(events: Iterable[Used], seconds: int) -> list[Used]:
    last: dict[int, Used] = {}
    for event in events:
        window = event.timestamp // seconds
        if window not in last or event.seq > last[window].seq:
            last[window] = event
    return list(last.values())
