"""Webhook deliveries: queued with what caused them, signed, sent, and sent again until they are taken."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from .faults import Faults
from .lists import public
from .store import Doc, Store
from .world import Call, World

ENDPOINT = "webhook_endpoint"
DESTINATION = "v2.core.event_destination"
TIMEOUT_S = 10.0
AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one endpoint."""

    n: int
    url: str
    secret: str
    body: str
    attempts: int


def queue(call: Call, event: Doc, *, thin: bool) -> int:
    """Queue an event for every endpoint that asked for it; return how many did."""
    targets = [
        doc
        for kind in (ENDPOINT, DESTINATION)
        for doc in call.store.newest_first(call.account, kind)
        if _wants(doc, event["type"], thin)
    ]
    body = json.dumps(public(event), indent=2)
    for doc in targets:
        call.store.db.execute(
            "INSERT INTO delivery (account, endpoint, event, url, secret, body, due, attempts, state) "
            "VALUES (?,?,?,?,?,?,?,0,'waiting')",
            (call.account.n, doc["id"], event["id"], doc["_url"], doc["_secret"], body, call.world.now()),
        )
    if targets:
        call.world.wake()
    return len(targets)


def due(store: Store, now: float | None) -> list[Delivery]:
    """Deliveries whose time has come; all that wait where `now` is None."""
    rows = store.db.execute(
        "SELECT n, url, secret, body, attempts FROM delivery WHERE state='waiting' AND due<=? ORDER BY n",
        (2**62 if now is None else now,),
    ).fetchall()
    return [Delivery(*row) for row in rows]


async def deliver(world: World, faults: Faults, deliveries: list[Delivery]) -> int:
    """Send each once, a few at a time; return how many were taken."""
    taken = 0
    for start in range(0, len(deliveries), AT_ONCE):
        together = deliveries[start : start + AT_ONCE]
        statuses = await asyncio.gather(*(_send(faults, delivery) for delivery in together))
        taken += sum(
            _note(world, delivery, status) for delivery, status in zip(together, statuses, strict=True)
        )
    return taken


async def post(delivery: Delivery) -> int:
    """Send one request; its status, 0 where none came."""
    try:
        return await asyncio.wait_for(_post(delivery), TIMEOUT_S)
    except (OSError, ValueError, IndexError, asyncio.TimeoutError, asyncio.IncompleteReadError):
        return 0


def signature(body: bytes, secret: str, at: int) -> str:
    """The header that proves a body's origin."""
    mac = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256)
    return f"t={at},v1={mac.hexdigest()}"


async def _send(faults: Faults, delivery: Delivery) -> int:
    fault = faults.meet_webhook(delivery.url)
    if fault == "webhook_lost":
        return 200
    if fault == "webhook_twice":
        await post(delivery)
    return await post(delivery)


async def _post(delivery: Delivery) -> int:
    parts = urlsplit(delivery.url)
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if secure else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=secure)
    try:
        body = delivery.body.encode()
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        # The receiver compares the time with its own clock, so this is never the sandbox's.
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
            "Content-Type: application/json; charset=utf-8\r\nUser-Agent: Stripe/1.0\r\n"
            f"Stripe-Signature: {signature(body, delivery.secret, int(time.time()))}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode("latin-1") + body)
        await writer.drain()
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()


def _note(world: World, delivery: Delivery, status: int) -> int:
    taken = 200 <= status < 300
    attempts = delivery.attempts + 1
    state = "done" if taken else "failed" if attempts >= world.switches.webhook_attempts else "waiting"
    wait = world.switches.webhook_retry_s * 2 ** min(delivery.attempts, 12)
    with world.store.lock:
        world.store.db.execute(
            "UPDATE delivery SET attempts=?, status=?, state=?, due=? WHERE n=?",
            (attempts, status, state, world.now() + wait, delivery.n),
        )
    return int(taken)


def _wants(doc: Doc, type: str, thin: bool) -> bool:
    if doc["status"] != "enabled" or doc.get("event_payload", "snapshot") != ("thin" if thin else "snapshot"):
        return False
    return any(one in ("*", type) for one in doc["enabled_events"])
