"""Usage alerts: an event once a customer's usage of a meter reaches a threshold."""

from __future__ import annotations

from decimal import Decimal

from .aggregation import Used, aggregate
from .errors import invalid
from .events import emit, emit_thin
from .forms import EXPAND, LIST, Required, Table, array, choice, hash_of, integer, text
from .lists import page, public
from .store import Doc
from .world import Call, Route

ALERT = "billing.alert"
MAX_PER_METER_AND_CUSTOMER = 25


def create(call: Call) -> Doc:
    given = call.params
    if "usage_threshold" not in given:
        raise invalid("You must pass usage_threshold.", "usage_threshold")
    threshold = given["usage_threshold"]
    call.find("billing.meter", threshold["meter"], "usage_threshold[meter]")
    filters = threshold.get("filters", [])
    for n, one in enumerate(filters):
        call.find("customer", one.get("customer", ""), f"usage_threshold[filters][{n}][customer]")
    _check_room(call, threshold["meter"], filters)
    alert = {
        "id": call.new_id("alrt_"),
        "object": ALERT,
        "alert_type": given["alert_type"],
        "livemode": call.account.livemode,
        "status": "active",
        "title": given["title"],
        "usage_threshold": {**threshold, "filters": filters},
        # Only usage that is reported after the alert was made counts.
        "_since": call.world.now(),
        "_fired": [],
    }
    call.store.insert(call.account, alert, owner=threshold["meter"])
    return public(alert)


def retrieve(call: Call) -> Doc:
    return public(call.fetch(ALERT))


def list_alerts(call: Call) -> Doc:
    meter = call.params.get("meter")
    keep = lambda alert: alert["status"] != "archived" and meter in (None, alert["usage_threshold"]["meter"])  # noqa: E731
    return page(call, ALERT, "/v1/billing/alerts", lambda _, doc: public(doc), keep)


def activate(call: Call) -> Doc:
    return _switched(call, "active")


def deactivate(call: Call) -> Doc:
    return _switched(call, "inactive")


def archive(call: Call) -> Doc:
    return _switched(call, "archived")


def sound(call: Call) -> None:
    """Trigger the alerts whose threshold has been reached, each once in a customer's life."""
    for alert in list(call.store.newest_first(call.account, ALERT)):
        if alert["status"] != "active":
            continue
        threshold = alert["usage_threshold"]
        meter = call.find("billing.meter", threshold["meter"], "meter")
        for customer, used in _usage_since(call, alert, meter).items():
            value = aggregate(used, meter["default_aggregation"]["formula"], meter["event_time_window"])
            if customer not in alert["_fired"] and value >= threshold["gte"]:
                _trigger(call, alert, customer, value)


def _trigger(call: Call, alert: Doc, customer: str, value: Decimal) -> None:
    alert["_fired"].append(customer)
    call.store.save(call.account, alert)
    triggered = {
        "object": "billing.alert_triggered",
        "alert": public(alert),
        "created": call.now,
        "customer": customer,
        "livemode": call.account.livemode,
        "value": int(value),
    }
    emit(call, "billing.alert.triggered", triggered)
    related = {"id": alert["id"], "type": ALERT, "url": f"/v1/billing/alerts/{alert['id']}"}
    emit_thin(call, "v1.billing.alert.triggered", related, None)


def _usage_since(call: Call, alert: Doc, meter: Doc) -> dict[str, list[Used]]:
    """What each customer used since the alert was made; as by Stripe, without those on test clocks."""
    wanted = [one["customer"] for one in alert["usage_threshold"]["filters"]]
    rows = call.store.db.execute(
        "SELECT customer, timestamp, seq, value FROM meter_event "
        "WHERE account=? AND meter=? AND state='counted' AND received>=?",
        (call.account.n, meter["id"], alert["_since"]),
    ).fetchall()
    used: dict[str, list[Used]] = {}
    for customer, timestamp, seq, value in rows:
        if wanted and customer not in wanted:
            continue
        used.setdefault(customer, []).append(Used(timestamp, seq, Decimal(value)))
    return {
        customer: events
        for customer, events in used.items()
        if not call.store.clock_of(call.account, customer)
    }


def _check_room(call: Call, meter: str, filters: list[Doc]) -> None:
    customer = filters[0]["customer"] if filters else None
    same = 0
    for alert in call.store.owned(call.account, ALERT, meter):
        others = [one["customer"] for one in alert["usage_threshold"]["filters"]]
        same += alert["status"] != "archived" and (customer in others if customer else not others)
    if same >= MAX_PER_METER_AND_CUSTOMER:
        raise invalid(f"At most {MAX_PER_METER_AND_CUSTOMER} alerts are allowed for a meter and customer.")


def _switched(call: Call, status: str) -> Doc:
    alert = call.fetch(ALERT)
    if alert["status"] == "archived":
        raise invalid("An archived alert cannot be changed.")
    alert["status"] = status
    call.store.save(call.account, alert)
    return public(alert)


_FILTER = hash_of({"customer": Required(text()), "type": Required(choice("customer"))})
_THRESHOLD: Table = {
    "filters": array(_FILTER, 1),
    "gte": Required(integer(1)),
    "meter": Required(text()),
    "recurrence": Required(choice("one_time")),
}
_TYPE = choice("usage_threshold")
_CREATE: Table = {
    "alert_type": Required(_TYPE),
    "expand": EXPAND,
    "title": Required(text(256)),
    "usage_threshold": hash_of(_THRESHOLD),
}
_ID: Table = {"expand": EXPAND}
_URL = "/v1/billing/alerts"

ROUTES = (
    Route("POST", _URL, create, _CREATE),
    Route("GET", _URL, list_alerts, {**LIST, "alert_type": _TYPE, "meter": text()}),
    Route("GET", f"{_URL}/{{}}", retrieve, _ID),
    Route("POST", f"{_URL}/{{}}/activate", activate, _ID),
    Route("POST", f"{_URL}/{{}}/deactivate", deactivate, _ID),
    Route("POST", f"{_URL}/{{}}/archive", archive, _ID),
)
