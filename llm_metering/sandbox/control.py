"""The sandbox's own API under `/_sandbox/`: books, settling, faults, switches, reset."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from inspect import isawaitable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .faults import read_fault
from .origins import from_elsewhere
from .wire import Answer, Request, json_body

if TYPE_CHECKING:
    from .app import SandboxApp


async def answer(app: SandboxApp, request: Request) -> Answer:
    """Answer a request to `/_sandbox/…`."""
    if request.method != "GET" and from_elsewhere(request):
        return Answer(403, json_body({"error": {"message": "This came from a page of another address."}}))
    handler = _ROUTES.get((request.method, request.path.rstrip("/")))
    if handler is None:
        known = ", ".join(f"{method} {path}" for method, path in _ROUTES)
        return Answer(404, json_body({"error": {"message": f"The sandbox's own API has {known}."}}))
    try:
        result = handler(app, request)
        return Answer(200, json_body(await result if isawaitable(result) else result))
    except ValueError as exc:
        return Answer(400, json_body({"error": {"message": str(exc)}}))


def _health(app: SandboxApp, request: Request) -> Any:
    return {"ok": True, "accounts": len(app.store.accounts()), "faults": len(app.faults.waiting())}


def _books(app: SandboxApp, request: Request) -> Any:
    query = parse_qs(request.query)
    account = query.get("account", [None])[0]
    identifiers = query.get("identifiers", ["false"])[0] in ("1", "true")
    books = app.books(account=account, identifiers=identifiers)
    return {"rows": [row.as_dict() for row in books]}


def _settle(app: SandboxApp, request: Request) -> Any:
    return {"counted": app.settle()}


async def _deliver(app: SandboxApp, request: Request) -> Any:
    return {"delivered": await app.deliver_webhooks()}


def _reset(app: SandboxApp, request: Request) -> Any:
    app.reset()
    return {"ok": True}


def _snapshot(app: SandboxApp, request: Request) -> Any:
    app.snapshot(_name(request))
    return {"snapshot": _name(request)}


def _restore(app: SandboxApp, request: Request) -> Any:
    app.restore(_name(request))
    return {"restored": _name(request)}


def _name(request: Request) -> str:
    return parse_qs(request.query).get("name", ["default"])[0]


def _faults(app: SandboxApp, request: Request) -> Any:
    return {"faults": [fault.as_dict() for fault in app.faults.waiting()]}


def _add_faults(app: SandboxApp, request: Request) -> Any:
    given = _body(request)
    if isinstance(given, dict) and "faults" in given:
        given = given["faults"]
    faults = [read_fault(one) for one in (given if isinstance(given, list) else [given])]
    app.faults.add(*faults)
    return _faults(app, request)


def _clear_faults(app: SandboxApp, request: Request) -> Any:
    app.faults.clear()
    return {"faults": []}


def _switches(app: SandboxApp, request: Request) -> Any:
    return asdict(app.world.switches)


def _set_switches(app: SandboxApp, request: Request) -> Any:
    changes = _body(request)
    if not isinstance(changes, dict):
        raise ValueError("switches are an object of names and values")
    return asdict(app.set_switches(**changes))


def _body(request: Request) -> Any:
    try:
        return json.loads(request.body)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"the body is not JSON: {exc}") from exc


_ROUTES: dict[tuple[str, str], Callable[[SandboxApp, Request], Any]] = {
    ("GET", "/_sandbox/health"): _health,
    ("GET", "/_sandbox/books"): _books,
    ("POST", "/_sandbox/settle"): _settle,
    ("POST", "/_sandbox/reset"): _reset,
    ("POST", "/_sandbox/snapshot"): _snapshot,
    ("POST", "/_sandbox/restore"): _restore,
    ("POST", "/_sandbox/webhooks/deliver"): _deliver,
    ("GET", "/_sandbox/faults"): _faults,
    ("POST", "/_sandbox/faults"): _add_faults,
    ("DELETE", "/_sandbox/faults"): _clear_faults,
    ("GET", "/_sandbox/switches"): _switches,
    ("POST", "/_sandbox/switches"): _set_switches,
}
