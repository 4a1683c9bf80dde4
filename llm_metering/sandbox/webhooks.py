"""Where events are sent: webhook endpoints of v1 and event destinations of v2."""

from __future__ import annotations

from .deliveries import DESTINATION, ENDPOINT
from .errors import invalid, missing_parameter
from .events import emit_thin, v2_page
from .forms import (
    EXPAND,
    LIST,
    METADATA,
    Required,
    Table,
    anything,
    array,
    boolean,
    choice,
    filled,
    hash_of,
    integer,
    refused,
    text,
)
from .lists import merged_metadata, page, public, unset
from .moments import rfc3339
from .store import Doc
from .world import Call, Route

SECRET = "webhook_endpoint.signing_secret"  # noqa: S105 -- the name of a field
URL = "webhook_endpoint.url"


def create_endpoint(call: Call) -> Doc:
    """`POST /v1/webhook_endpoints`: the secret is shown now and never again."""
    given = call.params
    secret = call.world.new_id("whsec_", 32)
    endpoint: Doc = {
        "id": call.new_id("we_"),
        "object": ENDPOINT,
        "api_version": unset(given.get("api_version")),
        "application": None,
        "created": call.now,
        "description": unset(given.get("description")),
        "enabled_events": given["enabled_events"],
        "livemode": call.account.livemode,
        "metadata": merged_metadata({}, given.get("metadata", {})),
        "status": "enabled",
        "url": given["url"],
        "_secret": secret,
        "_url": given["url"],
    }
    call.store.insert(call.account, endpoint)
    return {**public(endpoint), "secret": secret}


def retrieve_endpoint(call: Call) -> Doc:
    return public(call.fetch(ENDPOINT))


def update_endpoint(call: Call) -> Doc:
    endpoint = call.fetch(ENDPOINT)
    given = call.params
    for name in ("description", "enabled_events", "url"):
        if name in given:
            endpoint[name] = unset(given[name])
    if "disabled" in given:
        endpoint["status"] = "disabled" if given["disabled"] else "enabled"
    if "metadata" in given:
        endpoint["metadata"] = merged_metadata(endpoint["metadata"], given["metadata"])
    endpoint["_url"] = endpoint["url"]
    call.store.save(call.account, endpoint)
    return public(endpoint)


def delete_endpoint(call: Call) -> Doc:
    endpoint = call.fetch(ENDPOINT)
    call.store.remove(call.account, endpoint)
    return {"id": endpoint["id"], "object": ENDPOINT, "deleted": True}


def list_endpoints(call: Call) -> Doc:
    return page(call, ENDPOINT, "/v1/webhook_endpoints", lambda _, doc: public(doc))


def create_destination(call: Call) -> Doc:
    """`POST /v2/core/event_destinations`: secret and URL are shown where `include` asks for them."""
    given = call.params
    if "webhook_endpoint" not in given:
        raise missing_parameter("webhook_endpoint")
    url = given["webhook_endpoint"]["url"]
    now = rfc3339(call.world.now())
    mode = "" if call.account.livemode else "test_"
    destination: Doc = {
        "id": call.new_id(f"ed_{mode}61"),
        "object": DESTINATION,
        "created": now,
        "description": given.get("description", ""),
        "enabled_events": given["enabled_events"],
        "event_payload": given["event_payload"],
        "events_from": given.get("events_from", ["self"]),
        "livemode": call.account.livemode,
        "metadata": merged_metadata({}, given.get("metadata", {})),
        "name": given["name"],
        "snapshot_api_version": given.get("snapshot_api_version"),
        "status": "enabled",
        "status_details": None,
        "type": "webhook_endpoint",
        "updated": now,
        "_secret": call.world.new_id("whsec_", 32),
        "_url": url,
    }
    call.store.insert(call.account, destination)
    return _shown(call, destination)


def retrieve_destination(call: Call) -> Doc:
    return _shown(call, call.fetch(DESTINATION))


def update_destination(call: Call) -> Doc:
    destination = call.fetch(DESTINATION)
    given = call.params
    for name in ("description", "enabled_events", "name"):
        if name in given:
            destination[name] = given[name]
    if "metadata" in given:
        destination["metadata"] = merged_metadata(destination["metadata"], given["metadata"])
    if "webhook_endpoint" in given:
        destination["_url"] = given["webhook_endpoint"]["url"]
    return _saved(call, destination)


def enable_destination(call: Call) -> Doc:
    return _saved(call, {**call.fetch(DESTINATION), "status": "enabled", "status_details": None})


def disable_destination(call: Call) -> Doc:
    details = {"disabled": {"reason": "user"}}
    return _saved(call, {**call.fetch(DESTINATION), "status": "disabled", "status_details": details})


def delete_destination(call: Call) -> Doc:
    destination = call.fetch(DESTINATION)
    call.store.remove(call.account, destination)
    return {"id": destination["id"], "object": DESTINATION}


def ping_destination(call: Call) -> Doc:
    destination = call.fetch(DESTINATION)
    if destination["status"] != "enabled":
        raise invalid("A disabled event destination cannot be pinged.")
    related = {
        "id": destination["id"],
        "type": DESTINATION,
        "url": f"/v2/core/event_destinations/{destination['id']}",
    }
    return emit_thin(call, "v2.core.event_destination.ping", related, None)


def list_destinations(call: Call) -> Doc:
    url = "/v2/core/event_destinations"
    return v2_page(call, DESTINATION, url, lambda doc: True, lambda doc: _shown(call, doc))


def _saved(call: Call, destination: Doc) -> Doc:
    destination["updated"] = rfc3339(call.world.now())
    call.store.save(call.account, destination)
    return _shown(call, destination)


def _shown(call: Call, destination: Doc) -> Doc:
    include = call.params.get("include", ())
    endpoint = {
        "signing_secret": destination["_secret"] if SECRET in include else None,
        "url": destination["_url"] if URL in include else None,
    }
    return {**public(destination), "webhook_endpoint": endpoint}


def _url(value: object, path: str) -> str:
    url: str = filled(text())(value, path)
    if not url.startswith(("http://", "https://")):
        raise invalid("Not a valid URL: it must begin with http:// or https://.", path)
    return url


_EVENTS = array(text(), 300)
_ENDPOINT: Table = {
    "description": text(),
    "enabled_events": _EVENTS,
    "expand": EXPAND,
    "metadata": METADATA,
    "url": _url,
}
_NEW_ENDPOINT: Table = {
    **_ENDPOINT,
    "api_version": text(),
    "connect": boolean,
    "enabled_events": Required(_EVENTS),
    "url": Required(_url),
}
_DESTINATION: Table = {
    "description": text(),
    "enabled_events": _EVENTS,
    "include": array(choice(SECRET, URL)),
    "metadata": METADATA,
    "name": filled(text()),
    "webhook_endpoint": hash_of({"url": Required(_url)}),
}
_NEW_DESTINATION: Table = {
    **_DESTINATION,
    "amazon_eventbridge": refused,
    "azure_event_grid": refused,
    "enabled_events": Required(_EVENTS),
    "event_payload": Required(choice("snapshot", "thin")),
    "events_from": array(text()),
    "name": Required(text()),
    "snapshot_api_version": anything,
    "type": Required(choice("webhook_endpoint")),
}
_INCLUDE: Table = {"include": array(choice(URL))}
_V2 = "/v2/core/event_destinations"

ROUTES = (
    Route("POST", "/v1/webhook_endpoints", create_endpoint, _NEW_ENDPOINT),
    Route("GET", "/v1/webhook_endpoints", list_endpoints, LIST),
    Route("GET", "/v1/webhook_endpoints/{}", retrieve_endpoint, {"expand": EXPAND}),
    Route("POST", "/v1/webhook_endpoints/{}", update_endpoint, {**_ENDPOINT, "disabled": boolean}),
    Route("DELETE", "/v1/webhook_endpoints/{}", delete_endpoint, {}),
    Route("POST", _V2, create_destination, _NEW_DESTINATION),
    Route("GET", _V2, list_destinations, {**_INCLUDE, "limit": integer(1, 100), "page": text()}),
    Route("GET", f"{_V2}/{{}}", retrieve_destination, _INCLUDE),
    Route("POST", f"{_V2}/{{}}", update_destination, _DESTINATION),
    Route("DELETE", f"{_V2}/{{}}", delete_destination, {}),
    Route("POST", f"{_V2}/{{}}/enable", enable_destination, {}),
    Route("POST", f"{_V2}/{{}}/disable", disable_destination, {}),
    Route("POST", f"{_V2}/{{}}/ping", ping_destination, {}),
)
