"""Usage becomes meter events: which bucket a use falls in, and what one bucket adds up to. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from json.encoder import encode_basestring_ascii as _quoted
from types import MappingProxyType

from ..errors import LedgerError
from ..usage import MeterEvent
from .lines import LineKey, Value, add, clean, plain

HOUR_S = 3600
MAX_IDENTIFIER = 100
LATEST = 1e18
"""The latest time of a use, in Unix seconds: a bucket's bounds are whole numbers of 64 bits, and one that
could not be written would keep all others of its lane from being frozen."""
_encode = json.JSONEncoder(separators=(",", ":")).encode


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


def in_turns(made: Iterable[Draft]) -> list[Draft]:
    """The first event of each customer and meter, then the second of each, and so on: that is how they will
    be sent, and what is sent together then lies together."""
    turns: list[list[Draft]] = []
    seen: dict[tuple[str, str], int] = {}
    for draft in made:
        pair = (draft.customer, draft.key.event_name)
        turn = seen.get(pair, 0)
        seen[pair] = turn + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(draft)
    return list(chain.from_iterable(turns))


def meter_event(draft: Draft, identifier: str, *, now: float) -> MeterEvent:
    """The event as it will go over the wire."""
    value = plain(draft.value)
    return MeterEvent(
        identifier=checked(identifier),
        event_name=draft.key.event_name,
        customer=draft.customer,
        value=Decimal(value),
        timestamp=timestamp_of(draft, now=now),
        payload=MappingProxyType(_payload(draft.key, draft.customer, value)),
    )


def checked(identifier: str) -> str:
    """An identifier that Stripe will take."""
    if not 0 < len(identifier) <= MAX_IDENTIFIER:
        raise LedgerError(f"new_id made {identifier!r}: an identifier has 1 to {MAX_IDENTIFIER} characters")
    return identifier


def timestamp_of(draft: Draft, *, now: float) -> int:
    """Never ahead of the clock: Stripe refuses what lies in the future."""
    return min(int(draft.last_used_at // 1), int(now // 1))


_UNKNOWN = ("", "")


class Payloads:
    """Payloads as JSON, for many events of few keys: what a key adds is written once."""

    def __init__(self) -> None:
        self._heads: dict[LineKey, tuple[str, str] | None] = {}

    def json(self, draft: Draft, value: str) -> str:
        """The payload of the event that `meter_event` makes of a draft with this value."""
        key = draft.key
        head = self._heads.get(key, _UNKNOWN)
        if head is _UNKNOWN:
            head = self._heads[key] = _head(key)
        if head is None:
            return _encode(_payload(key, draft.customer, value))
        return f'{head[0]}{_quoted(draft.customer)}{head[1]}"{value}"}}'


def _head(key: LineKey) -> tuple[str, str] | None:
    """What stands before the customer and what stands before the value; None where they do not stand last."""
    names = [clean(name) for name, _ in key.dimensions]
    last = [key.customer_key, key.value_key]
    if len({*names, *last}) != len(key.dimensions) + 2:
        return None
    dimensions = {clean(name): clean(value) for name, value in key.dimensions}
    text = _encode({**dimensions, key.customer_key: ""})
    return text[: -len('""}')], f",{_quoted(key.value_key)}:"


def _payload(key: LineKey, customer: str, value: str) -> dict[str, str]:
    # Customer and value stand last, so that no dimension of the same name can take their place.
    payload = {clean(name): clean(value) for name, value in key.dimensions}
    payload.update({key.customer_key: customer, key.value_key: value})
    return payload
