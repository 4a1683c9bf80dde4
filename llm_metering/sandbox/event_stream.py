"""v2 meter events: one at a time, in a stream of up to 100 under a session, and their adjustments.

A single event is checked at the door. The stream takes whatever is well formed and finds the rest later.
"""

from __future__ import annotations

from .errors import Refusal
from .forms import Required, Table, array, choice, hash_of, strings, text
from .meter_events import cancel, customer_time
from .moments import moment, rfc3339
from .store import Doc
from .usage import (
    FUTURE_S,
    PAST_S,
    V2_CODES,
    NewEvent,
    customer_in,
    identifier_taken,
    payload_problem,
    take_in,
)
from .world import SESSION, Call, Route

SESSION_S = 15 * 60


def create(call: Call) -> Doc:
    """`POST /v2/billing/meter_events`."""
    given = call.params
    name, payload = given["event_name"], given["payload"]
    meter = call.store.by_alias(call.account, "billing.meter", name)
    if meter is None:
        raise _refusal("no_meter", f'No meter found for event name "{name}".')
    if meter["status"] != "active":
        raise _refusal("archived_meter", f'The meter for event name "{name}" is archived.')
    customer = customer_in(meter, payload)
    identifier = given.get("identifier") or call.world.new_id("mtrevt_", 24)
    if identifier_taken(call.world, call.account, identifier, name, customer):
        raise _refusal("duplicate_meter_event", f"An event already exists with identifier {identifier}.")
    _check_payload(call, meter, payload)
    now = customer_time(call, customer)
    timestamp = given.get("timestamp", now)
    _check_time(timestamp, now)
    take_in(call.world, call.account, NewEvent(name, payload, identifier, timestamp, "v2", meter))
    return {
        "object": "v2.billing.meter_event",
        "created": rfc3339(call.now),
        "event_name": name,
        "identifier": identifier,
        "livemode": call.account.livemode,
        "payload": payload,
        "timestamp": rfc3339(timestamp),
    }


def create_session(call: Call) -> Doc:
    """`POST /v2/billing/meter_event_session`: a token for the stream, good for 15 minutes."""
    now = call.now
    session: Doc = {
        "id": call.new_id("mes_"),
        "object": SESSION,
        # The account's number leads from the token back to its account.
        "authentication_token": f"mestk_{call.account.n}_{call.world.new_id('', 32)}",
        "created": rfc3339(now),
        "expires_at": rfc3339(now + SESSION_S),
        "livemode": call.account.livemode,
    }
    call.store.insert(
        call.account, {**session, "_expires_at": now + SESSION_S}, alias=session["authentication_token"]
    )
    return session


def stream(call: Call) -> Doc:
    """`POST /v2/billing/meter_event_stream`: take up to 100 events in, whatever becomes of them."""
    events = call.params["events"]
    if not events:
        raise _refusal("invalid_parameters", "events must hold at least one event.")
    for given in events:
        name, payload = given["event_name"], given["payload"]
        meter = call.store.by_alias(call.account, "billing.meter", name)
        customer = customer_in(meter, payload)
        identifier = given.get("identifier") or call.world.new_id("mtrevt_", 24)
        taken = identifier_taken(call.world, call.account, identifier, name, customer)
        timestamp = given.get("timestamp", customer_time(call, customer))
        event = NewEvent(name, payload, identifier, timestamp, "stream", meter)
        take_in(call.world, call.account, event, state="duplicate" if taken else "waiting")
    return {}


def adjust(call: Call) -> Doc:
    """`POST /v2/billing/meter_event_adjustments`: cancel an event of the last 24 hours."""
    given = call.params
    identifier = given["cancel"]["identifier"]
    return {
        "id": call.new_id("mtr_event_adj_"),
        "object": "v2.billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "created": rfc3339(call.now),
        "event_name": given["event_name"],
        "livemode": call.account.livemode,
        "status": cancel(call, given["event_name"], identifier),
        "type": "cancel",
    }


def _check_payload(call: Call, meter: Doc, payload: dict[str, str]) -> None:
    problem = payload_problem(meter, payload, call.switches)
    if problem is not None:
        raise _refusal(V2_CODES.get(problem.code, problem.code), problem.message)
    value = payload.get(meter["value_settings"]["event_payload_key"], "1")
    refused = (call.switches.v2_refuses_decimals and "." in value) or (
        call.switches.v2_refuses_negatives and value.startswith("-")
    )
    if refused and meter["default_aggregation"]["formula"] != "count":
        raise _refusal("payload_invalid_value", f"The value {value} is not a positive integer.")


def _check_time(timestamp: int, now: int) -> None:
    if timestamp < now - PAST_S:
        raise _refusal(
            "timestamp_too_far_in_past", "The event timestamp cannot be more than 35 days in past."
        )
    if timestamp > now + FUTURE_S:
        raise _refusal("timestamp_in_future", "The event timestamp cannot be in future.")


def _refusal(code: str, message: str) -> Refusal:
    return Refusal(400, message, code=code)


_EVENT: Table = {
    "event_name": Required(text(100)),
    "identifier": text(100),
    "payload": Required(strings(100, 5000)),
    "timestamp": moment,
}
_ADJUST: Table = {
    "event_name": Required(text(100)),
    "type": Required(choice("cancel")),
    "cancel": Required(hash_of({"identifier": Required(text(100))})),
}

ROUTES = (
    Route("POST", "/v2/billing/meter_events", create, _EVENT, catches_up=False),
    Route("POST", "/v2/billing/meter_event_session", create_session, {}),
    Route(
        "POST",
        "/v2/billing/meter_event_stream",
        stream,
        {"events": Required(array(hash_of(_EVENT), 100))},
        by_session=True,
        catches_up=False,
    ),
    Route("POST", "/v2/billing/meter_event_adjustments", adjust, _ADJUST),
)
