"""Stripe's webhooks about meters, as an ASGI app to mount: checked, noted, and looked at in the background.

Stripe ──signed thin event──▶ StripeWebhooks ──event id──▶ ledger, Settler ──▶ DEAD where confirmed
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any

from .errors import ConfigurationError
from .metering import Metering
from .protocols import Ledger
from .reports import HEARD, key_of, note
from .senders.error_events import TYPES
from .senders.stripe_v1 import mode_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES = 10 * 1024 * 1024
TOLERANCE_S = 300
MAX_ID = 255


def stripe_webhooks(metering: Metering, *, secret: str | Sequence[str]) -> StripeWebhooks:
    """An ASGI app for Stripe's error reports about meters.

        app.mount("/stripe/webhooks", stripe_webhooks(metering, secret="whsec_..."))

    Point an event destination with thin payloads at it, for `v1.billing.meter.error_report_triggered` and
    `v1.billing.meter.no_meter_found`. Other types are answered with 200 and ignored.

    Args:
        metering: Whose events it is about. It needs STRIPE_API_KEY, since a thin event says little by itself.
        secret: The destination's signing secret; several while a secret is being rolled.

    Raises:
        ConfigurationError: A secret is none, or metering has no key.
    """
    secrets = [secret] if isinstance(secret, str) else list(secret)
    if not secrets or not all(s.strip().startswith("whsec_") for s in secrets):
        raise ConfigurationError(
            "secret must be the signing secret of the event destination, which begins with whsec_"
        )
    if metering.settler is None or metering.settings.stripe_api_key is None:
        raise ConfigurationError(
            "stripe_webhooks needs Metering with STRIPE_API_KEY and without a sender of its own: what an "
            "event says is fetched from Stripe"
        )
    return StripeWebhooks(metering, [s.strip() for s in secrets])


class StripeWebhooks:
    """See `stripe_webhooks`."""

    def __init__(self, metering: Metering, secrets: Sequence[str]) -> None:
        self._metering = metering
        self._secrets = secrets
        self._is_live = mode_of(metering.settings.stripe_api_key or "") == "live"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        status, message = await self._answer(scope, receive)
        if status >= 400:
            self._metering.telemetry.count(f"webhooks.{status}")
        body = json.dumps({"message": message}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 405:
            headers.append((b"allow", b"POST"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, str]:
        if scope["method"] != "POST":
            return 405, "POST only"
        body = await _read(scope, receive)
        if body is None:
            return 413, f"at most {MAX_BODY_BYTES} bytes"
        if not self._is_signed(body, _header(scope["headers"], b"stripe-signature")):
            return 400, "the signature does not fit the body, or is older than 5 minutes"
        event = _event(body)
        if event is None:
            return 400, "not an event of Stripe's"
        try:
            if problem := await self._foreign(event):
                return 400, problem
            return await self._take(event["id"]) if event["type"] in TYPES else (200, "ignored")
        except Exception as exc:
            # Stripe sends it again, which is better than to forget it.
            self._metering.telemetry.failure("webhooks.note", exc)
            return 503, "the ledger cannot take it now"

    def _is_signed(self, body: bytes, header: str | None) -> bool:
        return any(_is_signed_with(secret, body, header) for secret in self._secrets)

    async def _foreign(self, event: dict[str, Any]) -> str | None:
        """Why an event is not for us, None if it is."""
        if event.get("livemode") is not self._is_live:
            return f"this endpoint takes events of {'live' if self._is_live else 'test'} mode only"
        context = event.get("context") or event.get("account")
        if context is None:
            return None
        bound_to = await self._on_ledger(lambda ledger: ledger.account()) or ""
        ours = bound_to.partition(" ")[0]
        if ours.startswith("acct_") and context != ours:
            return "this event belongs to another account"
        return None

    async def _take(self, event_id: str) -> tuple[int, str]:
        if not await self._on_ledger(lambda ledger: heard(ledger, event_id)):
            return 200, "known already"
        if (settler := self._metering.settler) is not None:
            settler.hear(event_id)
        return 200, "taken"

    async def _on_ledger(self, function: Callable[[Ledger], Any]) -> Any:
        from anyio.to_thread import run_sync

        return await run_sync(self._metering.run_on_ledger, function)


def _is_signed_with(secret: str, body: bytes, header: str | None) -> bool:
    from stripe import SignatureVerificationError, WebhookSignature

    try:
        return bool(WebhookSignature.verify_header(body, header, secret, TOLERANCE_S))
    except (SignatureVerificationError, UnicodeDecodeError, TypeError):
        return False  # a TypeError is a signature of letters that no digest has


def heard(ledger: Ledger, event_id: str) -> bool:
    """Note an event, unless any process of this ledger has."""
    if ledger.view().meta(key_of(event_id)) is not None:
        return False
    return note(ledger, event_id, HEARD)


async def _read(scope: Scope, receive: Receive) -> bytes | None:
    """The body, None if it is too long."""
    length = _header(scope["headers"], b"content-length") or ""
    if length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES:
        return None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _event(body: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict):
        return None
    named = event.get("id")
    is_id = isinstance(named, str) and 0 < len(named) <= MAX_ID and named.isascii() and named.isprintable()
    return event if is_id and isinstance(event.get("type"), str) else None


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), None)
