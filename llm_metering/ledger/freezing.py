"""Usage becomes meter events: which bucket a use falls in, and what one bucket adds up to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from ..errors import LedgerError
from ..usage import MeterEvent
from .lines import LineKey, Value, add, clean, plain

HOUR_S = 3600
MAX_IDENTIFIER = 100


@dataclass(slots=True)
class Draft:
    """A meter event in the making: the lines of one customer and key within one bucket."""

    customer: str
    key: LineKey
    value: Value
    last_used_at: float


def bucket_of(used_at: float, bucket_s: int) -> tuple[int, int]:
    """Start and end of the bucket that holds this moment; a bucket never crosses an hour."""
    second = int(used_at // 1)
    hour = second - second % HOUR_S
    start = hour + (second - hour) // bucket_s * bucket_s
    return start, min(start + bucket_s, hour + HOUR_S)


def drafts(usage: Iterable[tuple[str, float, Sequence[tuple[LineKey, Value]]]]) -> list[Draft]:
    """What one bucket's usage adds up to: (customer, used_at, lines) in the order of recording.

    "sum" makes one event of all, "last" one of the latest, "count" one of each record. What comes to
    zero needs no event, except that a "last" of zero is a reading like any other.
    """
    made: dict[tuple[str, LineKey], Draft] = {}
    counted: list[Draft] = []
    for customer, used_at, lines in usage:
        for key, value in lines:
            if key.aggregation == "count":
                counted.append(Draft(customer, key, value, used_at))
                continue
            draft = made.get((customer, key))
            if draft is None:
                made[customer, key] = Draft(customer, key, value, used_at)
            elif key.aggregation == "sum":
                draft.value = add(draft.value, value)
                draft.last_used_at = max(draft.last_used_at, used_at)
            elif used_at >= draft.last_used_at:
                draft.value, draft.last_used_at = value, used_at
    return [d for d in (*made.values(), *counted) if d.value != 0 or d.key.aggregation == "last"]


def meter_event(draft: Draft, identifier: str, *, now: float) -> MeterEvent:
    """The event as it will go over the wire."""
    if not 0 < len(identifier) <= MAX_IDENTIFIER:
        raise LedgerError(f"new_id made {identifier!r}: an identifier has 1 to {MAX_IDENTIFIER} characters")
    key = draft.key
    # Customer and value stand last, so that no dimension of the same name can take their place.
    payload = {clean(name): clean(value) for name, value in key.dimensions}
    value = plain(draft.value)
    payload.update({key.customer_key: draft.customer, key.value_key: value})
    return MeterEvent(
        identifier=identifier,
        event_name=key.event_name,
        customer=draft.customer,
        value=Decimal(value),
        # Never ahead of the clock: Stripe refuses what lies in the future.
        timestamp=min(int(draft.last_used_at // 1), int(now // 1)),
        payload=MappingProxyType(payload),
    )
