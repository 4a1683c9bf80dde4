"""What the pages show of usage: charts by hour and day, and the preview of an aggregation."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from .aggregation import WINDOWS, Used, aggregate
from .money import add
from .page_desk import Desk
from .page_words import number
from .store import Doc
from .usage import used_events, value_problem

SHOWN_CUSTOMERS = 6
SPANS = {"hour": 24, "day": 30}
"""How many windows a chart has."""


@dataclass(frozen=True, slots=True)
class Series:
    """What one customer used, window by window."""

    customer: str
    name: str
    values: tuple[Decimal, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Usage of a meter in windows of equal length."""

    window: str
    starts: tuple[int, ...]
    series: tuple[Series, ...]

    @property
    def totals(self) -> list[str]:
        return [number(add(one.values[n] for one in self.series)) for n in range(len(self.starts))]

    def as_dict(self) -> dict[str, Any]:
        """For the script that draws it; a drawing needs no exact numbers."""
        return {
            "window": self.window,
            "starts": list(self.starts),
            "series": [{"name": s.name, "values": [float(v) for v in s.values]} for s in self.series],
        }


def usage_chart(desk: Desk, meter: Doc, window: str, customer: str | None) -> Chart:
    """The last 24 hours or 30 days of a meter, for one customer or for those that used most of it."""
    length = WINDOWS[window]
    end = _last_moment(desk, meter, customer, length * SPANS[window])
    last = end - end % length
    starts = tuple(range(last - length * (SPANS[window] - 1), last + length, length))
    customers = [customer] if customer else _customers(desk, meter, starts[0], last + length)
    found = [_series(desk, meter, one, starts, length) for one in customers]
    return Chart(window, starts, (*found[:SHOWN_CUSTOMERS], *_others(found[SHOWN_CUSTOMERS:])))


def try_out(text: str, window: str | None, switches: Any) -> dict[str, Any]:
    """What sample events add up to in each way. A line is a value, and a time where it matters."""
    events, problems = [], []
    for seq, line in enumerate(filter(None, map(str.strip, text.splitlines()))):
        value, _, at = line.partition(" ")
        problem = value_problem(value, switches)
        minutes = _TIME.fullmatch(at.strip() or "00:00")
        if problem is not None:
            problems.append(problem.message)
        elif minutes is None:
            problems.append(f"{at.strip()!r} is no time of day such as 13:05.")
        else:
            events.append(Used(int(minutes[1]) * 3600 + int(minutes[2]) * 60, seq, Decimal(value)))
    ones = [Used(event.timestamp, event.seq, Decimal(1)) for event in events]
    return {
        "events": len(events),
        "problems": problems,
        "sum": number(aggregate(events, "sum", window)),
        "count": number(aggregate(ones, "count", window)),
        "last": number(aggregate(events, "last", window)),
    }


def recent_events(desk: Desk, meter: Doc, limit: int = 20) -> list[dict[str, Any]]:
    """A meter's latest events, as they came in and what became of them."""
    rows = desk.store.db.execute(
        "SELECT customer, payload, timestamp, state, error FROM meter_event "
        "WHERE account=? AND event_name=? ORDER BY seq DESC LIMIT ?",
        (desk.account.n, meter["event_name"], limit),
    ).fetchall()
    found = []
    for customer, payload, timestamp, state, error in rows:
        dimensions = json.loads(payload)
        dimensions.pop(meter["customer_mapping"]["event_payload_key"], None)
        value = dimensions.pop(meter["value_settings"]["event_payload_key"], "–")
        found.append(
            {
                "customer": customer,
                "value": value,
                "dimensions": dimensions,
                "timestamp": timestamp,
                "state": state,
                "error": error,
            }
        )
    return found


_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")


def _last_moment(desk: Desk, meter: Doc, customer: str | None, span: int) -> int:
    """Where a chart ends: now, or with the latest event where that lives in another time."""
    now = int(desk.world.now())
    query = "SELECT MAX(timestamp) FROM meter_event WHERE account=? AND meter=? AND state='counted'"
    values: list[Any] = [desk.account.n, meter["id"]]
    if customer:
        query, values = f"{query} AND customer=?", [*values, customer]
    latest = desk.store.db.execute(query, values).fetchone()[0]
    return now if latest is None or now - span < latest <= now else int(latest)


def _customers(desk: Desk, meter: Doc, start: int, end: int) -> list[str]:
    rows = desk.store.db.execute(
        "SELECT customer FROM meter_event WHERE account=? AND meter=? AND state='counted' AND timestamp>=? "
        "AND timestamp<? GROUP BY customer ORDER BY COUNT(*) DESC, customer",
        (desk.account.n, meter["id"], start, end),
    ).fetchall()
    return [customer for (customer,) in rows]


def _series(desk: Desk, meter: Doc, customer: str, starts: tuple[int, ...], length: int) -> Series:
    found: dict[int, list[Used]] = {}
    for event in used_events(desk.store, desk.account, meter, customer, starts[0], starts[-1] + length):
        found.setdefault(event.timestamp - event.timestamp % length, []).append(event)
    formula, window = meter["default_aggregation"]["formula"], meter["event_time_window"]
    values = tuple(aggregate(found.get(start, ()), formula, window) for start in starts)
    doc = desk.store.get(desk.account, "customer", customer) or {}
    return Series(customer, doc.get("name") or customer, values)


def _others(rest: list[Series]) -> list[Series]:
    if not rest:
        return []
    values = tuple(add(column) for column in zip(*(one.values for one in rest), strict=True))
    return [Series("", f"{len(rest)} others", values)]
