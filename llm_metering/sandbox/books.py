"""The books: what every customer's accepted events add up to, straight from the raw events.

They do not go through meters, prices or invoices, so a test can hold them against its own count.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from .money import EXACT, ZERO, plain
from .store import Account, Doc, Store


@dataclass(frozen=True, slots=True)
class Row:
    """Events of one account, customer, event name and set of further payload keys."""

    account: str
    livemode: bool
    customer: str | None
    event_name: str
    dimensions: Mapping[str, str]
    """Every payload key beside customer and value, such as model and token_type."""
    value: Decimal
    """Sum of the events that stand: waiting or counted."""
    events: int
    """How many stand."""
    waiting: int = 0
    """How many of them are not counted yet."""
    cancelled: int = 0
    refused: int = 0
    """Accepted, and found later to be unusable."""
    refused_value: Decimal = ZERO
    duplicates: int = 0
    """Repeated identifiers that the stream took without an error. They count nowhere."""
    identifiers: tuple[str, ...] = ()
    """Of the events that stand; only where asked for."""

    def as_dict(self) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "account": self.account,
            "livemode": self.livemode,
            "customer": self.customer,
            "event_name": self.event_name,
            "dimensions": dict(self.dimensions),
            "value": plain(self.value),
            "events": self.events,
            "waiting": self.waiting,
            "cancelled": self.cancelled,
            "refused": self.refused,
            "refused_value": plain(self.refused_value),
            "duplicates": self.duplicates,
        }
        return {**shown, "identifiers": list(self.identifiers)} if self.identifiers else shown


@dataclass(frozen=True, slots=True)
class Books:
    """Rows, and sums over them."""

    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def select(self, **wanted: str | None) -> list[Row]:
        """Rows by account, customer, event_name or any dimension: `select(model="gpt-5")`."""
        return [
            row for row in self.rows if all(_value_of(row, name) == value for name, value in wanted.items())
        ]

    def total(self, **wanted: str | None) -> Decimal:
        """What the selected rows add up to."""
        total = ZERO
        for row in self.select(**wanted):
            total = EXACT.add(total, row.value)
        return total

    def events(self, **wanted: str | None) -> int:
        """How many events stand in the selected rows."""
        return sum(row.events for row in self.select(**wanted))


@dataclass(slots=True)
class _Tally:
    value: Decimal = ZERO
    refused_value: Decimal = ZERO
    states: dict[str, int] = field(default_factory=dict)
    identifiers: list[str] = field(default_factory=list)


def read_books(store: Store, *, account: str | None = None, identifiers: bool = False) -> Books:
    """Add up the raw events.

    Args:
        account: Only this account's.
        identifiers: Name the events that stand.
    """
    rows: list[Row] = []
    for one in store.accounts():
        if account in (None, one.id):
            rows += _account_rows(store, one, identifiers)
    return Books(tuple(rows))


def _account_rows(store: Store, account: Account, identifiers: bool) -> list[Row]:
    meters = {doc["event_name"]: doc for doc in store.newest_first(account, "billing.meter")}
    tallies: dict[tuple[str | None, str, tuple[tuple[str, str], ...]], _Tally] = {}
    events = store.db.execute(
        "SELECT event_name, payload, state, identifier FROM meter_event WHERE account=? ORDER BY seq",
        (account.n,),
    )
    for event_name, payload_json, state, identifier in events:
        payload = json.loads(payload_json)
        customer, value = _take(payload, meters.get(event_name))
        tally = tallies.setdefault((customer, event_name, tuple(sorted(payload.items()))), _Tally())
        tally.states[state] = tally.states.get(state, 0) + 1
        if state in ("waiting", "counted"):
            tally.value = EXACT.add(tally.value, value)
            if identifiers:
                tally.identifiers.append(identifier)
        elif state == "refused":
            tally.refused_value = EXACT.add(tally.refused_value, value)
    return [_row(account, key, tally) for key, tally in tallies.items()]


def _row(account: Account, key: tuple[str | None, str, tuple[tuple[str, str], ...]], tally: _Tally) -> Row:
    customer, event_name, dimensions = key
    states = tally.states
    return Row(
        account.id,
        account.livemode,
        customer,
        event_name,
        dict(dimensions),
        tally.value,
        events=states.get("waiting", 0) + states.get("counted", 0),
        waiting=states.get("waiting", 0),
        cancelled=states.get("cancelled", 0),
        refused=states.get("refused", 0),
        refused_value=tally.refused_value,
        duplicates=states.get("duplicate", 0),
        identifiers=tuple(tally.identifiers),
    )


def _take(payload: dict[str, str], meter: Doc | None) -> tuple[str | None, Decimal]:
    """Customer and value out of a payload, so that its other keys remain."""
    customer_key = "stripe_customer_id" if meter is None else meter["customer_mapping"]["event_payload_key"]
    value_key = "value" if meter is None else meter["value_settings"]["event_payload_key"]
    customer = payload.pop(customer_key, None)
    try:
        value = Decimal(payload.pop(value_key, "0"))
    except InvalidOperation:
        return customer, ZERO
    return customer, value if value.is_finite() else ZERO


def _value_of(row: Row, name: str) -> Any:
    if name in ("account", "customer", "event_name"):
        return getattr(row, name)
    return row.dimensions.get(name)
