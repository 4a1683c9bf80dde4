"""Meter events in the store: taking them in, checking them later as Stripe does, adding them up."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from .aggregation import Used, aggregate
from .store import Account, Doc, Store
from .switches import Switches
from .world import World

PAST_S = 35 * 86_400
FUTURE_S = 300
V2_CODES = {
    "meter_event_no_customer_defined": "payload_no_customer_defined",
    "meter_event_value_not_found": "payload_no_value_defined",
    "meter_event_invalid_value": "payload_invalid_value",
    "meter_event_value_too_many_digits": "payload_invalid_value",
}
"""What v2 calls at the door what is otherwise found later."""

_EXPONENT = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?[eE][+-]?[0-9]{1,2}")
_VALUE = re.compile(r"-?([0-9]+)(?:\.([0-9]+))?")


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A meter event as it came in."""

    event_name: str
    payload: Mapping[str, str]
    identifier: str
    timestamp: int
    via: str
    """"v1", "v2" or "stream"."""
    meter: Doc | None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an event cannot be counted: a code of Stripe's, and a sentence."""

    code: str
    message: str


def identifier_taken(
    world: World, account: Account, identifier: str, event_name: str, customer: str | None
) -> bool:
    """Whether the identifier was used within the window."""
    scope = world.switches.identifier_scope
    query = "SELECT 1 FROM meter_event WHERE account=? AND identifier=? AND received>?"
    values: list[object] = [account.n, identifier, world.now() - world.switches.identifier_window_s]
    if scope == "event_name":
        query += " AND event_name=?"
        values.append(event_name)
    elif scope == "customer":
        query += " AND customer IS ?"
        values.append(customer)
    return world.store.db.execute(query, values).fetchone() is not None


def take_in(world: World, account: Account, event: NewEvent, *, state: str = "waiting") -> None:
    """Keep an event; it is checked and counted once its delay is over."""
    now = world.now()
    meter = event.meter
    world.store.db.execute(
        "INSERT INTO meter_event (account, identifier, event_name, payload, timestamp, received, due, via, "
        "state, meter, customer) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
        (
            account.n,
            event.identifier,
            event.event_name,
            json.dumps(dict(event.payload)),
            event.timestamp,
            now,
            now + world.switches.aggregation_delay_s,
            event.via,
            state,
            None if meter is None else meter["id"],
            customer_in(meter, event.payload),
        ),
    )


def count_waiting(world: World, account: Account, *, all_of_them: bool = False) -> int:
    """Check the events whose delay is over; return how many."""
    db = world.store.db
    rows = db.execute(
        "SELECT seq, event_name, payload, timestamp, received, via FROM meter_event "
        "WHERE account=? AND due<=? AND state='waiting' ORDER BY seq",
        (account.n, 2**62 if all_of_them else world.now()),
    ).fetchall()
    seen = _Seen(world.store, account)
    for seq, name, payload_json, timestamp, received, via in rows:
        payload = json.loads(payload_json)
        meter = seen.meter(name)
        problem = _problem(world, seen, meter, payload, timestamp, received, via)
        if problem is None and meter is not None:
            value = "1" if _counts(meter) else payload[meter["value_settings"]["event_payload_key"]]
            db.execute(
                "UPDATE meter_event SET state='counted', meter=?, customer=?, value=? WHERE seq=?",
                (meter["id"], customer_in(meter, payload), value, seq),
            )
        elif problem is not None:
            db.execute(
                "UPDATE meter_event SET state='refused', error=?, meter=?, judged=? WHERE seq=?",
                (
                    f"{problem.code}: {problem.message}",
                    None if meter is None else meter["id"],
                    world.now(),
                    seq,
                ),
            )
    return len(rows)


def used_events(
    store: Store, account: Account, meter: Doc, customer: str, start: int, end: int
) -> list[Used]:
    """The counted events of a customer from `start` to before `end`."""
    rows = store.db.execute(
        "SELECT timestamp, seq, value FROM meter_event WHERE account=? AND meter=? AND customer=? "
        "AND timestamp>=? AND timestamp<? AND state='counted'",
        (account.n, meter["id"], customer, start, end),
    ).fetchall()
    return [Used(timestamp, seq, Decimal(value)) for timestamp, seq, value in rows]


def usage(world: World, account: Account, meter: Doc, customer: str, start: int, end: int) -> Decimal:
    """What a customer used of a meter from `start` to before `end`, as the meter adds it up."""
    return aggregate(
        used_events(world.store, account, meter, customer, start, end),
        meter["default_aggregation"]["formula"],
        meter["event_time_window"],
    )


def payload_problem(meter: Doc, payload: Mapping[str, str], switches: Switches) -> Problem | None:
    """What is wrong with a payload by itself: no customer, no value, or a value that is no number."""
    customer_key = meter["customer_mapping"]["event_payload_key"]
    value_key = meter["value_settings"]["event_payload_key"]
    if not payload.get(customer_key):
        return Problem(
            "meter_event_no_customer_defined", f"Customer mapping key {customer_key} not found in payload."
        )
    if not _counts(meter):
        if value_key not in payload:
            return Problem("meter_event_value_not_found", f"Value key {value_key} not found in payload.")
        problem = value_problem(payload[value_key], switches)
        if problem is not None:
            return problem
    extra = len(payload.keys() - {customer_key, value_key})
    if switches.dimension_keys is not None and extra > switches.dimension_keys:
        return Problem(
            "meter_event_dimension_count_too_high",
            f"The payload has {extra} dimensions; at most {switches.dimension_keys} are allowed.",
        )
    return None


def value_problem(value: str, switches: Switches) -> Problem | None:
    """What is wrong with an event's value, if anything."""
    exponent = _EXPONENT.fullmatch(value) if switches.exponent_values else None
    match = _VALUE.fullmatch(value if exponent is None else f"{Decimal(value):f}")
    if match is None:
        return Problem("meter_event_invalid_value", f"The value {value[:40]!r} is not a number.")
    whole, places = match[1].lstrip("0"), match[2] or ""
    if len(whole) > switches.value_integer_digits or len(places) > switches.value_decimal_digits:
        return Problem("meter_event_value_too_many_digits", "The value has too many digits.")
    return None


def customer_in(meter: Doc | None, payload: Mapping[str, str]) -> str | None:
    """The customer that a payload names."""
    key = "stripe_customer_id" if meter is None else meter["customer_mapping"]["event_payload_key"]
    return payload.get(key)


def customer_missing(customer: str) -> Problem:
    return Problem("meter_event_customer_not_found", f"The customer {customer} was not found.")


class _Seen:
    """Meters and customers looked up once in a batch."""

    def __init__(self, store: Store, account: Account) -> None:
        self.store = store
        self.account = account
        self.meters: dict[str, Doc | None] = {}
        self.customers: dict[str, bool] = {}

    def meter(self, event_name: str) -> Doc | None:
        if event_name not in self.meters:
            self.meters[event_name] = self.store.by_alias(self.account, "billing.meter", event_name)
        return self.meters[event_name]

    def customer(self, id: str) -> bool:
        if id not in self.customers:
            doc = self.store.get(self.account, "customer", id)
            self.customers[id] = doc is not None and not doc.get("deleted")
        return self.customers[id]


def _problem(
    world: World,
    seen: _Seen,
    meter: Doc | None,
    payload: Mapping[str, str],
    timestamp: int,
    received: float,
    via: str,
) -> Problem | None:
    if meter is None:
        return Problem("no_meter", "No meter found for the event name.")
    if via == "stream":
        # v1 and v2 have checked these at the door; the stream finds everything later.
        if meter["status"] != "active":
            return Problem("archived_meter", "The meter is archived.")
        if timestamp < received - PAST_S:
            return Problem("timestamp_too_far_in_past", "The timestamp is more than 35 days in the past.")
        if timestamp > received + FUTURE_S:
            return Problem("timestamp_in_future", "The timestamp is more than 5 minutes in the future.")
    problem = payload_problem(meter, payload, world.switches)
    if problem is not None:
        return problem
    customer = payload[meter["customer_mapping"]["event_payload_key"]]
    return None if seen.customer(customer) else customer_missing(customer)


def _counts(meter: Doc) -> bool:
    return bool(meter["default_aggregation"]["formula"] == "count")
