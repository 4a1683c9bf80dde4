"""Whether usage is safe right now: a value for programs, and an endpoint for probes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol

from ._redact import one_line
from ._values import dataclass
from .protocols import Pulse

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]

_A_GROUP_BYTES = 64 * 1024
"""With less than this free, the next group of records may find no room in the log."""


@dataclass(frozen=True, slots=True)
class Health:
    """How metering stands. Nothing in it is secret."""

    ready: bool
    """Whether usage that is recorded now reaches the disk. Stripe being down does not change that."""
    reasons: tuple[str, ...]
    """Why it is not ready, each in one line."""
    queued_records: int
    """In memory, about to be committed."""
    oldest_pending_age_s: float | None
    """Age of the oldest usage that Stripe has not accepted; None if nothing waits, or it cannot be told."""
    paused: str | None
    """Why nothing is sent to Stripe, None if it is. Usage is kept meanwhile."""
    disk_free_bytes: int | None
    """Where the ledger is; None where it is on no disk."""
    counters: Mapping[str, int]
    """What was counted since the process began, by name."""
    unforwarded_records: int | None = None
    """On this host's disk, and not in PostgreSQL yet; None where nothing is forwarded."""
    unforwarded_age_s: float | None = None
    """Age of the oldest of them."""


class Watched(Protocol):
    """What can be asked for its health; `Metering`."""

    def health(self) -> Health: ...

    def start_soon(self) -> None: ...


def health_endpoint(metering: Watched) -> _App:
    """An ASGI app for readiness probes: 200 while usage is safe, else 503, with the reasons as JSON.

    It starts metering where nothing else has yet, and answers 503 until it has started.

        app.mount("/health/metering", health_endpoint(metering))
    """

    async def endpoint(scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"health_endpoint answers http requests, not {scope['type']}")
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, b"", (b"allow", b"GET, HEAD"))
            return
        from anyio.to_thread import run_sync

        metering.start_soon()
        health = await run_sync(metering.health)
        body = json.dumps(document(health)).encode()
        await _answer(send, 200 if health.ready else 503, b"" if scope["method"] == "HEAD" else body)

    return endpoint


def foreseen_trouble(pulse: Pulse, min_free_bytes: int) -> str | None:
    """Why usage would not reach the disk, where nothing has been written that would have found it out."""
    if pulse.read_only:
        return "the ledger's disk is read-only"
    free = pulse.disk_free_bytes
    if pulse.is_full or (free is not None and free < max(min_free_bytes, _A_GROUP_BYTES)):
        return f"there is no room for more usage: {free} bytes are free on the ledger's disk"
    return None


def document(health: Health) -> dict[str, Any]:
    """The value as JSON can hold it."""
    return {
        "ready": health.ready,
        "reasons": [one_line(reason) for reason in health.reasons],
        "queued_records": health.queued_records,
        "oldest_pending_age_s": health.oldest_pending_age_s,
        "paused": None if health.paused is None else one_line(health.paused),
        "disk_free_bytes": health.disk_free_bytes,
        "unforwarded_records": health.unforwarded_records,
        "unforwarded_age_s": health.unforwarded_age_s,
        "counters": dict(health.counters),
    }


async def _answer(send: _Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    fixed = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})
