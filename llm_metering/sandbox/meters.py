"""Billing meters and their event summaries."""

from __future__ import annotations

import hashlib
from decimal import Decimal

from .aggregation import WINDOWS, Used, aggregate
from .errors import invalid
from .events import emit
from .forms import EXPAND, LIST, Required, Table, choice, filled, hash_of, integer, text
from .lists import page, page_of, public
from .store import Doc
from .usage import used_events
from .world import Call, Route


def create(call: Call) -> Doc:
    given = call.params
    holder = call.store.by_alias(call.account, "billing.meter", given["event_name"])
    if holder is not None:
        # A deactivated meter keeps its name: set-up code has to reactivate it.
        raise invalid(
            f"There is already a meter ({holder['id']}, {holder['status']}) with the event name "
            f"{given['event_name']}. Event names must be unique among meters.",
            "event_name",
        )
    now = call.now
    live = call.account.livemode
    meter = {
        "id": call.new_id("mtr_" if live else "mtr_test_61"),
        "object": "billing.meter",
        "created": now,
        "customer_mapping": {"event_payload_key": "stripe_customer_id", "type": "by_id"}
        | given.get("customer_mapping", {}),
        "default_aggregation": given["default_aggregation"],
        "display_name": given["display_name"],
        "event_name": given["event_name"],
        "event_time_window": given.get("event_time_window"),
        "livemode": live,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": now,
        "value_settings": {"event_payload_key": "value"} | given.get("value_settings", {}),
    }
    call.store.insert(call.account, meter, alias=meter["event_name"])
    emit(call, "billing.meter.created", public(meter))
    return public(meter)


def retrieve(call: Call) -> Doc:
    return public(call.fetch("billing.meter"))


def update(call: Call) -> Doc:
    meter = call.fetch("billing.meter")
    if "display_name" in call.params:
        meter.update(display_name=call.params["display_name"], updated=call.now)
        call.store.save(call.account, meter)
        emit(call, "billing.meter.updated", public(meter), {})
    return public(meter)


def deactivate(call: Call) -> Doc:
    return _switch(call, "inactive")


def reactivate(call: Call) -> Doc:
    return _switch(call, "active")


def list_meters(call: Call) -> Doc:
    status = call.params.get("status")
    return page(
        call,
        "billing.meter",
        "/v1/billing/meters",
        lambda _, doc: public(doc),
        lambda meter: status in (None, meter["status"]),
    )


def list_summaries(call: Call) -> Doc:
    """What a customer used, in all or by hour or day."""
    meter = call.fetch("billing.meter")
    given = call.params
    start, end, window = given["start_time"], given["end_time"], given.get("value_grouping_window")
    _check_range(start, end, window)
    customer = call.find("customer", given["customer"], "customer")
    events = used_events(call.store, call.account, meter, customer["id"], start, end)
    if window is None:
        shows = bool(events) or call.switches.empty_summary
        summaries = [_summary(meter, customer["id"], start, end, events)] if shows else []
    else:
        summaries = _windows(
            meter, customer["id"], start, end, events, WINDOWS[window], call.switches.empty_windows
        )
        if call.switches.summary_order == "newest_first":
            summaries.reverse()
    return page_of(call, summaries, f"/v1/billing/meters/{meter['id']}/event_summaries")


def _switch(call: Call, status: str) -> Doc:
    meter = call.fetch("billing.meter")
    if meter["status"] == status and call.switches.deactivate_twice == "refuse":
        raise invalid(f"The meter {meter['id']} is already {status}.")
    now = call.now
    meter["status"] = status
    meter["status_transitions"] = {"deactivated_at": now if status == "inactive" else None}
    meter["updated"] = now
    call.store.save(call.account, meter)
    emit(call, f"billing.meter.{'deactivated' if status == 'inactive' else 'reactivated'}", public(meter))
    return public(meter)


def _check_range(start: int, end: int, window: str | None) -> None:
    seconds, name = {None: (60, "minute"), "hour": (3_600, "hour"), "day": (86_400, "UTC day")}[window]
    for param, time in (("start_time", start), ("end_time", end)):
        if time % seconds:
            raise invalid(f"{param} must be aligned with {name} boundaries: {time} is not.", param)
    if end <= start:
        raise invalid("end_time must be after start_time.", "end_time")


def _windows(
    meter: Doc, customer: str, start: int, end: int, events: list[Used], seconds: int, empty: bool
) -> list[Doc]:
    by_window: dict[int, list[Used]] = {at: [] for at in range(start, end, seconds)} if empty else {}
    for event in events:
        by_window.setdefault(event.timestamp - event.timestamp % seconds, []).append(event)
    return [_summary(meter, customer, at, at + seconds, by_window[at]) for at in sorted(by_window)]


def _summary(meter: Doc, customer: str, start: int, end: int, events: list[Used]) -> Doc:
    value = aggregate(events, meter["default_aggregation"]["formula"], meter["event_time_window"])
    name = f"{meter['id']}:{customer}:{start}:{end}"
    prefix = "mtrusg_" if meter["livemode"] else "mtrusg_test_"
    return {
        "id": prefix + hashlib.sha256(name.encode()).hexdigest()[:24],
        "object": "billing.meter_event_summary",
        "aggregated_value": _number(value),
        "end_time": end,
        "livemode": meter["livemode"],
        "meter": meter["id"],
        "start_time": start,
    }


def _number(value: Decimal) -> int | float:
    """A JSON number; Stripe's answer holds one too, so digits beyond a double's are lost here alone."""
    return int(value) if value == value.to_integral_value() else float(value)


_KEY = text(100)
_ID: Table = {"expand": EXPAND}
_CREATE: Table = {
    "customer_mapping": hash_of({"event_payload_key": Required(_KEY), "type": Required(choice("by_id"))}),
    "default_aggregation": Required(hash_of({"formula": Required(choice("count", "last", "sum"))})),
    "display_name": Required(text(250)),
    "event_name": Required(text(100)),
    "event_time_window": choice("day", "hour"),
    "expand": EXPAND,
    "value_settings": hash_of({"event_payload_key": Required(_KEY)}),
}
_SUMMARIES: Table = {
    **LIST,
    "customer": Required(text()),
    "end_time": Required(integer()),
    "start_time": Required(integer()),
    "value_grouping_window": choice("day", "hour"),
}

ROUTES = (
    Route("POST", "/v1/billing/meters", create, _CREATE),
    Route("GET", "/v1/billing/meters", list_meters, {**LIST, "status": choice("active", "inactive")}),
    Route("GET", "/v1/billing/meters/{}", retrieve, _ID),
    Route("POST", "/v1/billing/meters/{}", update, {**_ID, "display_name": filled(text(250))}),
    Route("POST", "/v1/billing/meters/{}/deactivate", deactivate, _ID),
    Route("POST", "/v1/billing/meters/{}/reactivate", reactivate, _ID),
    Route("GET", "/v1/billing/meters/{}/event_summaries", list_summaries, _SUMMARIES),
)
