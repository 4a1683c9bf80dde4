"""The sandbox as an ASGI app: a local, stateful Stripe for usage-based billing.

`create_app()` makes one. It knows nothing of the rest of the package, so agreement with it means something.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio

from . import (
    alerts,
    clocks,
    control,
    coupons,
    credit_grants,
    customers,
    discounts,
    event_stream,
    events,
    invoice_items,
    invoice_routes,
    items,
    manual_invoices,
    meter_events,
    meters,
    previews,
    prices,
    products,
    subscription_starts,
    subscriptions,
    webhooks,
)
from .background import Background
from .books import Books, read_books
from .door import Door
from .errors import Refusal, clash, rate_limited, server_fault
from .faults import BEFORE, Fault, Faults, header_fault
from .pages import Pages
from .service import Service
from .store import Dump, Store
from .switches import Switches
from .upkeep import catch_up
from .wire import Answer, Request
from .world import Call, Route, World

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES = 4 * 1024 * 1024
ROUTES: tuple[Route, ...] = (
    *meter_events.ROUTES,
    *event_stream.ROUTES,
    *meters.ROUTES,
    *products.ROUTES,
    *prices.ROUTES,
    *customers.ROUTES,
    *coupons.ROUTES,
    *discounts.ROUTES,
    *subscription_starts.ROUTES,
    *subscriptions.ROUTES,
    *items.ROUTES,
    *previews.ROUTES,
    *invoice_routes.ROUTES,
    *manual_invoices.ROUTES,
    *invoice_items.ROUTES,
    *credit_grants.ROUTES,
    *alerts.ROUTES,
    *clocks.ROUTES,
    *events.ROUTES,
    *webhooks.ROUTES,
)
logger = logging.getLogger("llm_metering.sandbox")


def create_app(
    db: str | Path | None = None,
    *,
    now: Callable[[], float] = time.time,
    switches: Switches | None = None,
    seed: int | str | None = None,
    keys: Collection[str] | None = None,
) -> SandboxApp:
    """A new sandbox, as an ASGI app.

    Args:
        db: SQLite file that keeps its state; None keeps it in memory.
        now: The sandbox's clock, Unix seconds.
        switches: What it assumes where no source settles what Stripe does.
        seed: Makes its ids repeatable.
        keys: The API keys that it accepts; None accepts any that looks like one (`sk_test_…`, `rk_live_…`).
    """
    return SandboxApp(db, now=now, switches=switches or Switches(), seed=seed, keys=keys)


class SandboxApp:
    """The ASGI app, and what tests ask of it directly. Its methods may be called from any thread."""

    def __init__(
        self,
        db: str | Path | None,
        *,
        now: Callable[[], float],
        switches: Switches,
        seed: int | str | None,
        keys: Collection[str] | None,
    ) -> None:
        self.store = Store(db)
        self.world = World(self.store, now=now, switches=switches, seed=seed)
        self.service = Service(self.world, ROUTES, keys)
        self.faults = Faults()
        self.door = Door()
        self.background = Background(self.world, self.faults)
        self.under_way: set[tuple[str, ...]] = set()
        self._snapshots: dict[str, Dump] = {}
        self.pages = Pages(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
            return
        body = await _read_body(receive)
        if body is None:
            return
        request = Request(
            scope["method"],
            scope["path"],
            scope["query_string"].decode("latin-1"),
            dict(scope["headers"]),
            body,
        )
        if len(body) > MAX_BODY_BYTES:
            await _send(send, self.service.refuse(request, Refusal(413, "The request is too large.")))
            return
        if request.path.startswith("/_sandbox") or self.pages.takes(request):
            await _send(send, await self._own(request))
            await self._close_port()
            return
        await self._play(request, scope, receive, send)

    def books(self, *, account: str | None = None, identifiers: bool = False) -> Books:
        """What the accepted events add up to, straight from the raw events."""
        with self.store.lock:
            return read_books(self.store, account=account, identifiers=identifiers)

    def settle(self) -> int:
        """Count every event that waits for its delay now, and report what is wrong; return how many were
        counted."""
        with self.store.transaction():
            return sum(
                catch_up(Call(self.world, account, {}), all_of_them=True) for account in self.store.accounts()
            )

    async def deliver_webhooks(self) -> int:
        """Send every webhook that waits, whatever its time; return how many were taken."""
        return await self.background.deliver(None)

    def reset(self) -> None:
        """Forget everything: objects, events, remembered answers, faults and snapshots. Switches stay."""
        with self.store.lock:
            self.store.forget_everything()
            self.service.forget()
            self._snapshots.clear()
        self.faults.clear()

    def snapshot(self, name: str = "default") -> None:
        """Keep objects, events and remembered answers as they are now, in memory, under a name."""
        with self.store.lock:
            self._snapshots[name] = self.store.dump()

    def restore(self, name: str = "default") -> None:
        """Put back what `snapshot` kept; `ValueError` where there is none of that name. It may be put back
        again. Ids made since are not made again."""
        with self.store.lock:
            if name not in self._snapshots:
                raise ValueError(f"there is no snapshot {name!r}")
            self.store.load(self._snapshots[name])
            self.service.forget()

    def set_switches(self, **changes: Any) -> Switches:
        """Change switches of the running sandbox; `ValueError` for what cannot be."""
        with self.store.lock:
            self.world.switches = self.world.switches.changed(changes)
            return self.world.switches

    def close(self) -> None:
        self.store.close()

    async def _own(self, request: Request) -> Answer:
        """Answer what is not Stripe's: the sandbox's own API and its pages."""
        if request.path.startswith("/_sandbox"):
            return await control.answer(self, request)
        return await self.pages.answer(request)

    async def _play(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, with the fault that it meets."""
        fault = self._fault(request)
        if fault is None:
            await _send(send, await self._answer(request, None))
            return
        if fault.kind in BEFORE:
            answer = self.service.refuse(request, _refusal(fault))
        elif fault.kind == "html":
            answer = await self._page(request, fault)
        else:
            answer = await self._answer(request, fault)
        answer.headers.update(fault.headers)
        if fault.kind == "truncated":
            await _send_half(send, answer)
            await self.door.drop(scope, receive)
        elif fault.kind == "accept_then_hang":
            await self.door.hang(scope, receive, fault.seconds)
        elif fault.kind == "accept_then_reset":
            await self.door.reset(scope, receive)
        else:
            await _send(send, answer)

    def _fault(self, request: Request) -> Fault | None:
        header = request.header(b"sandbox-fault")
        if header is not None:
            return header_fault(header)
        if not self.faults:
            return None
        return self.faults.meet(request.method, request.path, request.customer())

    async def _answer(self, request: Request, fault: Fault | None) -> Answer:
        """Carry the request out, after the time that it takes."""
        delay = 0.0
        if request.path == "/v1/billing/meter_events":
            delay = self.world.switches.meter_event_latency_s
        if fault is not None and fault.kind == "slow":
            delay += 10.0 if fault.seconds is None else fault.seconds
        instead = server_fault() if fault is not None and fault.kind == "500_after" else None
        if not delay and not self.under_way:
            return self.service.answer(request, instead=instead)
        held = _held(request)
        refusal = self._clash(held)
        if refusal is not None:
            return self.service.refuse(request, refusal)
        self.under_way |= held
        try:
            await anyio.sleep(delay)
            return self.service.answer(request, instead=instead)
        finally:
            self.under_way -= held

    def _clash(self, held: set[tuple[str, ...]]) -> Refusal | None:
        """What a request gets whose idempotency key, or customer and meter, is being worked on."""
        for kind, *_ in held & self.under_way:
            if kind == "key":
                return Refusal(
                    409,
                    "There is currently another in-progress request using this idempotency key. Please try "
                    "again later.",
                    type=self.world.switches.idempotency_clash_type,
                    stored=False,
                )
            return clash(self.world.switches.clash_answer)
        return None

    async def _page(self, request: Request, fault: Fault) -> Answer:
        """A page as a proxy in between would send it."""
        status = fault.status or 200
        if status < 400:
            await self._answer(request, fault)
        return Answer(status, b"<html><body><h1>Gateway</h1></body></html>", {}, "text/html")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        work = asyncio.create_task(self.background.run())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        await send({"type": "lifespan.shutdown.complete"})

    async def _close_port(self) -> None:
        for fault in self.faults.take_refusals():
            await self.door.refuse(1.0 if fault.seconds is None else fault.seconds)


def _held(request: Request) -> set[tuple[str, ...]]:
    """What a request works on that no other may at the same time."""
    authorization = request.header(b"authorization") or ""
    held: set[tuple[str, ...]] = set()
    key = request.header(b"idempotency-key")
    if key is not None and request.method == "POST":
        held.add(("key", authorization, key))
    if request.path == "/v1/billing/meter_events":
        try:
            event_name = str(request.params().get("event_name"))
        except Refusal:
            return held
        held.add(("meter", authorization, event_name, str(request.customer())))
    return held


def _refusal(fault: Fault) -> Refusal:
    if fault.kind == "429":
        return rate_limited("endpoint-rate")
    if fault.kind == "429_lock":
        return clash("429")
    if fault.kind == "409":
        return clash("409")
    if fault.kind == "401":
        return Refusal(401, "Invalid API Key provided: sk_test_***", stored=False)
    if fault.kind == "403":
        return Refusal(403, "The provided key does not have the required permissions.", stored=False)
    return server_fault()


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None where the client went away before it was complete."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        return bytes(message.get("body", b""))
    parts: list[bytes] = []
    while message["type"] == "http.request":
        if sum(map(len, parts)) <= MAX_BODY_BYTES:
            parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
    return None


async def _send(send: Send, answer: Answer) -> None:
    await send(_start(answer))
    await send({"type": "http.response.body", "body": answer.body})


async def _send_half(send: Send, answer: Answer) -> None:
    await send(_start(answer))
    await send(
        {"type": "http.response.body", "body": answer.body[: len(answer.body) // 2], "more_body": True}
    )


def _start(answer: Answer) -> Message:
    headers = [
        (b"content-type", answer.content_type.encode()),
        (b"content-length", str(len(answer.body)).encode()),
    ]
    headers += [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()
    ]
    return {"type": "http.response.start", "status": answer.status, "headers": headers}
