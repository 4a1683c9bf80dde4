"""Events: snapshots of v1 with the object inside, thin ones of v2 with a pointer to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .deliveries import queue
from .errors import missing_resource
from .forms import CREATED, EXPAND, LIST, Table, array, boolean, hash_of, integer, text
from .lists import created_within, page, public
from .moments import moment, rfc3339
from .store import Doc
from .world import API_VERSION, Call, Route

THIN = "v2.core.event"
THIN_LIFE_S = 30 * 86_400
"""How long a thin event can be read with its data."""


def emit(call: Call, type: str, shown: Doc, previous: Doc | None = None) -> None:
    """Keep a snapshot event and send it to the endpoints that asked for its type."""
    data = {"object": shown} if previous is None else {"object": shown, "previous_attributes": previous}
    event = {
        "id": call.new_id("evt_"),
        "object": "event",
        "api_version": API_VERSION,
        "created": call.now,
        "data": data,
        "livemode": call.account.livemode,
        "pending_webhooks": 0,
        "request": {"id": None, "idempotency_key": None},
        "type": type,
    }
    event["pending_webhooks"] = queue(call, event, thin=False)
    call.store.insert(call.account, event)


def emit_thin(call: Call, type: str, related: Mapping[str, str] | None, data: Doc | None) -> Doc:
    """Keep a thin event. What is delivered has no data: that is fetched by the event's id."""
    mode = "" if call.account.livemode else "test_"
    event = {
        "id": call.new_id(f"evt_{mode}65"),
        "object": THIN,
        "changes": None,
        "context": None,
        "created": rfc3339(call.world.now()),
        "livemode": call.account.livemode,
        "reason": None,
        "related_object": None if related is None else dict(related),
        "type": type,
    }
    queue(call, event, thin=True)
    if data is not None:
        event["data"] = data
    call.store.insert(call.account, {**event, "_created": call.world.now()})
    return event


def retrieve(call: Call) -> Doc:
    return public(call.fetch("event"))


def list_events(call: Call) -> Doc:
    wanted = call.params
    types = set(wanted.get("types", ())) | ({wanted["type"]} if "type" in wanted else set())

    def keep(event: Doc) -> bool:
        if types and not any(fits(event["type"], one) for one in types):
            return False
        return created_within(event["created"], wanted.get("created"))

    return page(call, "event", "/v1/events", lambda _, doc: public(doc), keep)


def retrieve_thin(call: Call) -> Doc:
    event = call.store.get(call.account, THIN, call.args[0])
    if event is None or _is_gone(call, event):
        raise missing_resource("event", call.args[0], "id", in_path=True)
    return public(event)


def list_thin(call: Call) -> Doc:
    """`GET /v2/core/events`. Lists show the events without their data, as they were delivered."""
    wanted = call.params
    within = wanted.get("created", {})

    def keep(event: Doc) -> bool:
        related = event["related_object"] or {}
        return (
            not _is_gone(call, event)
            and (not wanted.get("types") or event["type"] in wanted["types"])
            and wanted.get("object_id") in (None, related.get("id"))
            and created_within(int(event["_created"]), within)
        )

    return v2_page(call, THIN, "/v2/core/events", keep)


def v2_page(call: Call, kind: str, url: str, keep: Any, render: Any = None) -> Doc:
    """A page in the form of v2; its links carry the cursor."""
    limit = call.params.get("limit", 20)
    after = call.params.get("page") or None
    docs = [doc for doc in call.store.newest_first(call.account, kind, after=after) if keep(doc)]
    shown = [(render or _without_data)(doc) for doc in docs[:limit]]
    more = len(docs) > limit
    return {
        "data": shown,
        "next_page_url": f"{url}?limit={limit}&page={docs[limit - 1]['id']}" if more else None,
        "previous_page_url": None,
    }


def _is_gone(call: Call, event: Doc) -> bool:
    return bool(event["_created"] <= call.world.now() - THIN_LIFE_S)


def fits(type: str, wanted: str) -> bool:
    """Whether an event type is asked for; `*` asks for all, `invoice.*` for those of invoices."""
    return wanted in ("*", type) or (wanted.endswith(".*") and type.startswith(wanted[:-1]))


def _without_data(event: Doc) -> Doc:
    return {name: value for name, value in public(event).items() if name != "data"}


_LIST: Table = {
    **LIST,
    "created": CREATED,
    "delivery_success": boolean,
    "type": text(),
    "types": array(text(), 20),
}
_THIN_LIST: Table = {
    "created": hash_of({"gt": moment, "gte": moment, "lt": moment, "lte": moment}),
    "limit": integer(1, 100),
    "object_id": text(),
    "page": text(),
    "types": array(text(), 20),
}

ROUTES = (
    Route("GET", "/v1/events", list_events, _LIST),
    Route("GET", "/v1/events/{}", retrieve, {"expand": EXPAND}),
    Route("GET", "/v2/core/events", list_thin, _THIN_LIST),
    Route("GET", "/v2/core/events/{}", retrieve_thin, {}),
)
