"""Test clocks: customers that live in a time of their own, which only moves when it is told to."""

from __future__ import annotations

from .errors import invalid
from .events import emit
from .forms import EXPAND, LIST, Required, Table, integer, refused, text
from .lists import page, public, unset
from .renewals import live
from .store import Doc
from .world import Call, Route

CLOCK = "test_helpers.test_clock"
LIFE_S = 30 * 86_400


def create(call: Call) -> Doc:
    clock: Doc = {
        "id": call.new_id("clock_"),
        "object": CLOCK,
        "created": call.now,
        "deletes_after": call.now + LIFE_S,
        "frozen_time": call.params["frozen_time"],
        "livemode": call.account.livemode,
        "name": unset(call.params.get("name")),
        "status": "ready",
        "status_details": {},
    }
    if call.account.livemode:
        raise invalid("Test clocks exist in test mode only.")
    call.store.insert(call.account, clock)
    emit(call, "test_helpers.test_clock.created", public(clock))
    return public(clock)


def retrieve(call: Call) -> Doc:
    return public(call.fetch(CLOCK, "test_clock"))


def list_clocks(call: Call) -> Doc:
    return page(call, CLOCK, "/v1/test_helpers/test_clocks", lambda _, doc: public(doc))


def advance(call: Call) -> Doc:
    """Move a clock on. All that is due until then has happened when it is next looked at."""
    clock = call.fetch(CLOCK, "test_clock")
    target = call.params["frozen_time"]
    if target <= clock["frozen_time"]:
        raise invalid(f"A test clock only moves forward; it stands at {clock['frozen_time']}.", "frozen_time")
    live(call, clock, target)
    clock["frozen_time"] = target
    call.store.save(call.account, clock)
    moving = {
        **public(clock),
        "status": "advancing",
        "status_details": {"advancing": {"target_frozen_time": target}},
    }
    emit(call, "test_helpers.test_clock.advancing", moving)
    emit(call, "test_helpers.test_clock.ready", public(clock))
    return moving


def delete(call: Call) -> Doc:
    """Delete a clock, and the customers that live on it with all that is theirs."""
    clock = call.fetch(CLOCK, "test_clock")
    for doc in call.store.on_clock(call.account, clock["id"]):
        if doc["object"] == "subscription":
            for item in call.store.owned(call.account, "subscription_item", doc["id"]):
                call.store.remove(call.account, item)
        call.store.remove(call.account, doc)
    call.store.remove(call.account, clock)
    emit(call, "test_helpers.test_clock.deleted", public(clock))
    return {"id": clock["id"], "object": CLOCK, "deleted": True}


_ID: Table = {"expand": EXPAND}
_CREATE: Table = {
    "customer": refused,
    "expand": EXPAND,
    "frozen_time": Required(integer(1)),
    "name": text(300),
}
_URL = "/v1/test_helpers/test_clocks"

ROUTES = (
    Route("POST", _URL, create, _CREATE),
    Route("GET", _URL, list_clocks, LIST),
    Route("GET", f"{_URL}/{{}}", retrieve, _ID),
    Route("DELETE", f"{_URL}/{{}}", delete, {}),
    Route("POST", f"{_URL}/{{}}/advance", advance, {"expand": EXPAND, "frozen_time": Required(integer(1))}),
)
