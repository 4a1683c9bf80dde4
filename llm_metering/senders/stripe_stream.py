"""Stripe's v2 meter event stream: up to 100 events a request, for volume.

What a 200 says is weaker than under v1: the events were taken in for processing, and whatever is wrong with
one of them, a second event under the same identifier included, is found later. Three things follow.

- An event that the stream took is ACCEPTED, and only SETTLED once Stripe's summaries show it, so that this
  sender is not to be used without reconciliation.
- A request without an answer leaves its whole hundred in doubt, together.
- No duplicate is refused here, and none is needed as proof: within 24 hours Stripe counts an identifier once,
  so an event sent again within the ledger's 22 hours is taken, and counted once, whichever of the two it is.
  Of a cloned disk the stream tells nothing; the summaries do.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from ..protocols import Outcome, ServerTime
from ..settings import DEFAULT_API_BASE, DEFAULT_METER_EVENTS_BASE
from ..usage import MeterEvent
from .connection import Answer, NoAnswer
from .outcomes import outcome_of, outcome_of_failure
from .pool import Pool
from .stripe_v1 import (
    HALFWAY,
    STRIPE_VERSION,
    StripeSender,
    checked_endpoint,
    checked_key,
    fresh_key,
    headers_of,
    mode_of,
    tls_context,
)

SESSION_S = 15 * 60.0
"""How long a session lasts, where its answer does not say."""
RETRY_SESSION_S = 30.0
"""How long a session goes on being used after it could not be renewed, while it is still good."""


@dataclass(slots=True)
class _Session:
    """A token for the stream; the times are on the monotonic clock."""

    head: bytes
    """Of a request, awaiting an idempotency key and a length."""
    renew_at: float
    good_until: float


class StripeStream:
    """Sends meter events to Stripe's v2 meter event stream. Safe to use from several threads.

    Stripe documents it for live mode only, with 10 000 events a second. Sessions last 15 minutes and are
    renewed after ten.

    Args:
        api_key: A secret (`sk_…`) or restricted (`rk_…`) key that may write meter events.
        api_base: Where Stripe's API is, which gives out sessions.
        meter_events_base: Where the stream is; a sandbox serves both at one URL.
        timeout_s: The longest that one request may take, connecting included.
        stripe_version: The API version to ask for.
        now: The clock, Unix seconds.
        monotonic: The clock for waiting.

    Raises:
        ConfigurationError: The key, a URL or a proxy cannot work.
    """

    max_batch = 100

    def __init__(
        self,
        api_key: str,
        *,
        api_base: str = DEFAULT_API_BASE,
        meter_events_base: str = DEFAULT_METER_EVENTS_BASE,
        timeout_s: float = 30.0,
        stripe_version: str = STRIPE_VERSION,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        key = checked_key(api_key)
        self._v1 = StripeSender(
            key, api_base=api_base, timeout_s=timeout_s, stripe_version=stripe_version, now=now
        )
        self.key_hint = self._v1.key_hint
        self._mode = mode_of(key)
        self._version = stripe_version
        self._timeout_s = timeout_s
        self._now = now
        self._monotonic = monotonic
        self._api = Pool(checked_endpoint(api_base, key), tls_context, self._v1.clock)
        self._events = Pool(checked_endpoint(meter_events_base, key), tls_context, self._v1.clock)
        self._ask = _head(self._api, _SESSIONS, key, stripe_version)
        self._session: _Session | None = None
        self._has_taken = False

    def __repr__(self) -> str:
        return f"StripeStream({self.key_hint!r}, meter_events_base={self._events.endpoint.authority!r})"

    def send(self, events: Sequence[MeterEvent]) -> list[Outcome]:
        """Send one request; one outcome for each event, in order. Never raises for what the network does."""
        until = self._monotonic() + 2 * self._timeout_s
        outcome = self._post(events)
        if len(events) == 1 or not _is_of_one(outcome):
            outcomes = [outcome] * len(events)
        elif self._has_taken:
            outcomes = self._halves(events, until)
        else:
            outcomes = self._a_few_first(events, outcome, until)
        return outcomes if self._has_taken else [self._unblamed(each) for each in outcomes]

    def check(self) -> Outcome:
        """Ask Stripe whose the key is, as `StripeSender.check`."""
        return self._v1.check()

    def server_time(self) -> ServerTime | None:
        """Stripe's clock, by the latest answer that told it."""
        return self._v1.server_time()

    def close(self) -> None:
        """Close idle connections. Sending again opens new ones."""
        for each in (self._api, self._events, self._v1):
            each.close()

    # A request is refused as a whole, and has taken none of its events: find those that Stripe will not have.
    # It is not said to happen, as what is wrong with an event is found later.

    def _halves(self, events: Sequence[MeterEvent], until: float) -> list[Outcome]:
        middle = len(events) // 2
        return self._some(events[:middle], until) + self._some(events[middle:], until)

    def _some(self, events: Sequence[MeterEvent], until: float) -> list[Outcome]:
        outcome = self._post(events)
        if len(events) == 1 or not _is_of_one(outcome):
            return [outcome] * len(events)
        if self._monotonic() >= until:
            return [replace(outcome, kind="not_sent")] * len(events)
        return self._halves(events, until)

    def _a_few_first(self, events: Sequence[MeterEvent], outcome: Outcome, until: float) -> list[Outcome]:
        """As long as the stream took nothing at all, it is more likely to refuse us than the events."""
        few = [self._post([event]) for event in events[:_FEW]]
        if not self._has_taken and all(each.kind == "refused_data" for each in few):
            return [outcome] * len(events)
        return few + (self._some(events[_FEW:], until) if len(events) > _FEW else [])

    def _unblamed(self, outcome: Outcome) -> Outcome:
        """The stream has taken nothing yet: that is no event's fault."""
        if outcome.kind != "refused_data":
            return outcome
        hint = (
            "; Stripe documents it for live mode only, sender='v1' is for both"
            if self._mode == "test"
            else ""
        )
        message = f"the event stream takes nothing: {outcome.message}{hint}"
        return replace(outcome, kind="refused_config", message=message)

    # One request.

    def _post(self, events: Sequence[MeterEvent]) -> Outcome:
        body = body_of(events)
        outcome = self._post_once(body)
        if outcome.status == 401 or _is_expiry(outcome):
            outcome = self._post_once(body)  # under a new session: this one has expired, or is not known
        if _is_expiry(outcome):
            return replace(outcome, kind="not_sent")
        self._has_taken = self._has_taken or outcome.kind == "accepted"
        return outcome

    def _post_once(self, body: bytes) -> Outcome:
        session = self._current_session()
        if isinstance(session, Outcome):
            return session
        request = session.head % (fresh_key(), len(body)) + body
        try:
            answer = self._events.exchange(request, self._timeout_s, HALFWAY)
        except NoAnswer as exc:
            return outcome_of_failure(exc.cause, sent=exc.sent)
        outcome = self._outcome_of(answer)
        if (outcome.status in (401, 403) or _is_expiry(outcome)) and self._session is session:
            self._session = None
        return outcome

    def _outcome_of(self, answer: Answer) -> Outcome:
        outcome = outcome_of(answer.status, answer.headers, answer.body, now=self._now(), whole=answer.whole)
        # An expired session is named by its type, whatever code stands beside it. A message may hold these
        # words because a user wrote them.
        return replace(outcome, code=_EXPIRED[0]) if _type_of_error(answer) == _EXPIRED[0] else outcome

    # Sessions. Two threads may ask for one each at the same time; a lock could be left locked by a fork.

    def _current_session(self) -> _Session | Outcome:
        """A session that is good, or why none can be had: then nothing was sent."""
        session, mono = self._session, self._monotonic()
        if session is not None and mono < session.renew_at:
            return session
        made = self._new_session(mono)
        if isinstance(made, _Session):
            self._session = made
        elif session is not None and mono < session.good_until and made.kind != "refused_config":
            session.renew_at = min(mono + RETRY_SESSION_S, session.good_until)
            return session
        return made

    def _new_session(self, mono: float) -> _Session | Outcome:
        try:
            answer = self._api.exchange(self._ask % (fresh_key(), 2) + b"{}", self._timeout_s)
        except NoAnswer as exc:
            return replace(outcome_of_failure(exc.cause, sent=False), message=f"no session: {exc.cause}")
        outcome = self._outcome_of(answer)
        if outcome.kind != "accepted":
            return _without_session(outcome)
        token, lasts_s = _read_session(answer.body)
        if token is None:
            return Outcome("not_sent", answer.status, message="no session: the answer holds no token")
        head = _head(self._events, _STREAM, token, self._version)
        return _Session(head, mono + lasts_s * 2 / 3, mono + lasts_s)


def body_of(events: Sequence[MeterEvent]) -> bytes:
    """The request's body: the same bytes for the same events, always."""
    listed = [
        {
            "event_name": event.event_name,
            "identifier": event.identifier,
            "payload": dict(event.payload),
            "timestamp": _moment(event.timestamp),
        }
        for event in events
    ]
    return _encode({"events": listed}).encode("ascii")


_FEW = 3
_SESSIONS = "/v2/billing/meter_event_session"
_STREAM = "/v2/billing/meter_event_stream"
_EXPIRED = ("temporary_session_expired", "billing_meter_event_session_expired")
_encode = json.JSONEncoder(separators=(",", ":")).encode


@lru_cache(maxsize=4096)
def _moment(timestamp: int) -> str:
    """RFC 3339 with milliseconds, which is how v2 reads times."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(timestamp))


def _head(pool: Pool, path: str, key: str, stripe_version: str) -> bytes:
    """A request's head, awaiting an idempotency key, fresh for every attempt, and a length."""
    head = f"{pool.endpoint.head('POST', path)}{headers_of(key, stripe_version)}".replace("%", "%%")
    more = "Content-Type: application/json\r\nIdempotency-Key: %s\r\nContent-Length: %d\r\n\r\n"
    return f"{head}{more}".encode("latin-1")


def _is_expiry(outcome: Outcome) -> bool:
    """Whether the session has expired, so that nothing was taken; what is unclear may have been."""
    return outcome.code in _EXPIRED and outcome.kind != "ambiguous"


def _type_of_error(answer: Answer) -> object:
    try:
        return json.loads(answer.body)["error"]["type"] if answer.status >= 400 else None
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def _is_of_one(outcome: Outcome) -> bool:
    """Whether it can be about one event only, though it came for all of them."""
    return outcome.kind in ("refused_data", "duplicate") or outcome.code == "no_meter"


def _without_session(outcome: Outcome) -> Outcome:
    """What it means for the events that no session was given: none of them was sent."""
    message = f"no session: {outcome.message}"
    if outcome.kind in ("refused_config", "throttled"):
        return replace(outcome, message=message)
    # A session is asked for with nothing in it: what refuses it refuses us.
    refused = outcome.kind in ("refused_data", "duplicate")
    return replace(outcome, kind="refused_config" if refused else "not_sent", code=None, message=message)


def _read_session(body: bytes) -> tuple[str | None, float]:
    """Token and lifetime of a session."""
    try:
        said: Any = json.loads(body)
        token = said["authentication_token"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None, 0.0
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]{1,4096}", token):
        return None, 0.0
    # Taken from the answer's own two times: our clock need not agree with Stripe's.
    created, expires = (_seconds(said.get(name)) for name in ("created", "expires_at"))
    lasts_s = expires - created if created is not None and expires is not None else SESSION_S
    return token, min(max(lasts_s, 0.0), SESSION_S)


def _seconds(text: Any) -> float | None:
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.\d+)?(?:[Zz]|([+-]\d\d:\d\d))", str(text))
    try:
        return datetime.fromisoformat(f"{match[1]}{match[2] or '+00:00'}").timestamp() if match else None
    except ValueError:
        return None
