"""v1 meter events and their adjustments."""

from __future__ import annotations

from .errors import Refusal, invalid, missing_parameter
from .forms import EXPAND, Required, Table, choice, hash_of, integer, strings, text
from .store import Doc
from .usage import (
    FUTURE_S,
    PAST_S,
    V2_CODES,
    NewEvent,
    customer_in,
    customer_missing,
    identifier_taken,
    payload_problem,
    take_in,
)
from .world import Call, Route


def create(call: Call) -> Doc:
    """`POST /v1/billing/meter_events`: take one event in, or refuse what Stripe refuses at once."""
    params = call.params
    name, payload = params["event_name"], params["payload"]
    known = call.store.by_alias(call.account, "billing.meter", name)
    customer = customer_in(known, payload)
    identifier = params.get("identifier") or call.world.new_id("mtrevt_", 24)
    if identifier_taken(call.world, call.account, identifier, name, customer):
        raise Refusal(
            400,
            f"An event already exists with identifier {identifier}.",
            headers={"Stripe-Should-Retry": "false"},
        )
    meter = active_meter(call, known, name)
    now = customer_time(call, customer)
    timestamp = params.get("timestamp", now)
    check_timestamp(timestamp, now)
    if call.switches.strict_v1:
        _refuse_at_once(call, meter, payload)
    event = NewEvent(name, payload, identifier, timestamp, "v1", meter)
    take_in(call.world, call.account, event)
    return {
        "object": "billing.meter_event",
        "created": call.now,
        "event_name": event.event_name,
        "identifier": event.identifier,
        "livemode": call.account.livemode,
        "payload": dict(event.payload),
        "timestamp": event.timestamp,
    }


def adjust(call: Call) -> Doc:
    """`POST /v1/billing/meter_event_adjustments`: cancel an event of the last 24 hours."""
    params = call.params
    identifier = params.get("cancel", {}).get("identifier")
    if not identifier:
        raise missing_parameter("cancel[identifier]")
    status = cancel(call, params["event_name"], identifier)
    return {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": params["event_name"],
        "livemode": call.account.livemode,
        "status": status,
        "type": "cancel",
    }


def active_meter(call: Call, meter: Doc | None, event_name: str) -> Doc:
    """The meter, if it takes events."""
    if meter is None or (
        meter["status"] != "active" and call.switches.deactivated_meter == "no_active_meter"
    ):
        raise invalid(f'No active meter found for event name "{event_name}".')
    if meter["status"] != "active":
        raise invalid(f'The meter for event name "{event_name}" is archived.', code="archived_meter")
    return meter


def customer_time(call: Call, customer: str | None) -> int:
    """The time that an event's timestamp is compared with: the customer's test clock, else now."""
    clock = call.store.clock_of(call.account, customer or "")
    if not clock:
        return call.now
    doc = call.store.get(call.account, "test_helpers.test_clock", clock)
    return call.now if doc is None else int(doc["frozen_time"])


def check_timestamp(timestamp: int, now: int) -> None:
    """Refuse what is older than 35 days or further ahead than 5 minutes."""
    if timestamp < now - PAST_S:
        raise invalid(
            "The event timestamp cannot be more than 35 days in past. Expected a timestamp greater than or "
            f"equal to {now - PAST_S}.",
            "timestamp",
        )
    if timestamp > now + FUTURE_S:
        raise invalid("The event timestamp cannot be in future.", "timestamp")


def cancel(call: Call, event_name: str, identifier: str) -> str:
    """Cancel an event; "complete", or "pending" where it is not counted yet."""
    row = call.store.db.execute(
        "SELECT seq, state FROM meter_event WHERE account=? AND identifier=? AND event_name=? "
        "AND received>? AND state<>'duplicate' ORDER BY seq DESC LIMIT 1",
        (call.account.n, identifier, event_name, call.world.now() - 86_400),
    ).fetchone()
    if row is None:
        raise invalid(
            f"No meter event with identifier {identifier} was received in the last 24 hours.",
            "cancel[identifier]",
        )
    seq, state = row
    if state == "cancelled":
        raise invalid(
            f"The meter event with identifier {identifier} has already been cancelled.", "cancel[identifier]"
        )
    call.store.db.execute("UPDATE meter_event SET state='cancelled' WHERE seq=?", (seq,))
    return "pending" if state == "waiting" else "complete"


def _refuse_at_once(call: Call, meter: Doc, payload: dict[str, str]) -> None:
    problem = payload_problem(meter, payload, call.switches)
    customer = customer_in(meter, payload) or ""
    doc = call.store.get(call.account, "customer", customer)
    if problem is None and (doc is None or doc.get("deleted")):
        problem = customer_missing(customer)
    if problem is not None:
        raise invalid(problem.message, "payload", V2_CODES.get(problem.code, problem.code))


_NAME = Required(text(100))
_CREATE: Table = {
    "event_name": _NAME,
    "payload": Required(strings(100, 5000)),
    "identifier": text(100),
    "timestamp": integer(),
    "expand": EXPAND,
}
_ADJUST: Table = {
    "event_name": _NAME,
    "type": Required(choice("cancel")),
    "cancel": hash_of({"identifier": text(100)}),
    "expand": EXPAND,
}

ROUTES = (
    Route("POST", "/v1/billing/meter_events", create, _CREATE, catches_up=False),
    Route("POST", "/v1/billing/meter_event_adjustments", adjust, _ADJUST),
)
