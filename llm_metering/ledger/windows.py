"""Meter events by windows of their own time, for those who compare them with Stripe's summaries."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from ..protocols import EventRow, EventSum, State
from . import rows
from .lines import Value, add, decimal

_CHUNK = 10_000


@dataclass(slots=True)
class Windows:
    """Adds up meter events by customer, meter and window; `sums()` gives the result."""

    since: float
    until: float
    window_s: int
    customer: str | None
    _sums: dict[tuple[str, str, int], dict[State, Value]] = field(default_factory=dict)

    def event(self, customer: str, event_name: str, timestamp: int, state: State, value: Value) -> None:
        """An event; it counts if it lies within."""
        if self.since <= timestamp < self.until and self.customer in (None, customer):
            self._add(customer, event_name, timestamp - timestamp % self.window_s, state, value)

    def lane(self, db: sqlite3.Connection) -> None:
        """The events of one file, gathered by SQLite: each row that is stepped to gives up the
        interpreter's lock."""
        (last,) = db.execute("SELECT max(seq) FROM meter_event").fetchone()
        for start in range(0, (last or 0) + 1, _CHUNK):
            for customer, event_name, at, state, texts in db.execute(
                "SELECT customer, event_name, timestamp - timestamp % :window_s, state, "
                "group_concat(value) FROM meter_event WHERE seq >= :first AND seq < :end "
                "AND timestamp >= :since AND timestamp < :until "
                "AND (:customer IS NULL OR customer = :customer) GROUP BY 1, 2, 3, 4",
                {
                    "window_s": self.window_s,
                    "first": start,
                    "end": start + _CHUNK,
                    "since": self.since,
                    "until": self.until,
                    "customer": self.customer,
                },
            ):
                for text in texts.split(","):
                    self._add(customer, event_name, at, state, rows.value_of(text))

    def sums(self) -> list[EventSum]:
        return [
            EventSum(*name, {state: decimal(value) for state, value in values.items()})
            for name, values in sorted(self._sums.items())
        ]

    def _add(self, customer: str, event_name: str, start: int, state: State, value: Value) -> None:
        values = self._sums.setdefault((customer, event_name, start), {})
        values[state] = add(values.get(state, 0), value)


def events_within(
    db: rows.Db,
    lane: str,
    customer: str,
    event_name: str,
    *,
    since: float,
    until: float,
    limit: int,
) -> list[EventRow]:
    """The events of one file within a span of time, the newest first."""
    found = db.execute(
        f"SELECT {rows.EVENT} FROM meter_event WHERE customer = ? AND event_name = ? "  # noqa: S608
        "AND timestamp >= ? AND timestamp < ? ORDER BY seq DESC LIMIT ?",
        (customer, event_name, since, until, limit),
    )
    return [rows.event_row_of(row, lane) for row in found]
