"""Stripe's v1 API: one meter event a request, over keep-alive connections of our own.

The wire format is Stripe's; the `stripe` package is left out here because it costs about ten times the CPU.
It has no retries: the ledger must see every attempt.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import count
from typing import TYPE_CHECKING
from urllib.parse import quote_plus

from .._failpoints import VARIABLE, failpoint
from .._redact import one_line
from ..errors import ConfigurationError
from ..protocols import Outcome, ServerTime
from ..settings import DEFAULT_API_BASE
from ..usage import MeterEvent
from .connection import Answer, Connection, Endpoint, NoAnswer, endpoint_of
from .outcomes import outcome_of, outcome_of_failure
from .pool import Pool
from .server_clock import ServerClock
from .threads import Begun, begun

if TYPE_CHECKING:
    import ssl

STRIPE_VERSION = "2026-10-28.endive"
"""The API version of these requests; what the official Python SDK 16.1.0 sends."""


class StripeSender:
    """Sends meter events to Stripe's v1 API. Safe to use from several threads.

    It keeps one connection for each thread that sends at a time, connects when first needed, honours
    HTTPS_PROXY and NO_PROXY, and checks certificates against the system's roots and certifi's (only
    SSL_CERT_FILE's where that is set).

    Args:
        api_key: A secret (`sk_…`) or restricted (`rk_…`) key that may write meter events. If it may also
            read the account, keys can be changed without a question about whose they are.
        api_base: Where Stripe is; the URL of a sandbox while you develop.
        timeout_s: The longest that one request may take, connecting included.
        stripe_version: The API version to ask for.
        now: The clock, Unix seconds.

    Raises:
        ConfigurationError: The key, the URL or a proxy cannot work.
    """

    max_batch = 1

    def __init__(
        self,
        api_key: str,
        *,
        api_base: str = DEFAULT_API_BASE,
        timeout_s: float = 30.0,
        stripe_version: str = STRIPE_VERSION,
        now: Callable[[], float] = time.time,
    ) -> None:
        from hashlib import sha256  # loads OpenSSL

        key = checked_key(api_key)
        if not re.fullmatch(r"[\w.-]+", stripe_version, re.ASCII):
            raise ConfigurationError(f"stripe_version={stripe_version!r} is not a version of Stripe's API")
        endpoint = checked_endpoint(api_base, key)
        self._mode = mode_of(key)
        self._timeout_s = timeout_s
        self._now = now
        self._account = _account_in(key)
        digest = sha256(f"{key} {endpoint.authority}{endpoint.prefix}".encode()).hexdigest()[:16]
        self.key_hint = f"{self._mode}:{digest}"
        self._heads = _heads(endpoint, key, stripe_version)
        self.clock = ServerClock()
        self._pool = Pool(endpoint, tls_context, self.clock)

    def __repr__(self) -> str:
        return f"StripeSender({self.key_hint!r}, api_base={self._pool.endpoint.authority!r})"

    def send(self, events: Sequence[MeterEvent]) -> list[Outcome]:
        """Send each event; one outcome for each, in order. Does not raise for what the network does."""
        return [self._ended(self._begun(event)) for event in events]

    def begin(self, event: MeterEvent) -> Begun:
        """Send an event, and read later what becomes of it: several may be under way on one thread."""
        sent = self._begun(event)
        if isinstance(sent, Outcome):
            return begun(-1, 0.0, lambda: sent)
        _, connection = sent
        return begun(connection.fileno(), connection.left_s, partial(self._ended, sent))

    def check(self) -> Outcome:
        """Ask Stripe whose the key is. The outcome's message is the account and mode, or what is wrong."""
        outcome, answer = self._get("/v1/account")
        if outcome.kind == "accepted" and answer is not None:
            account = _account_of(answer)
            if account is None:
                return Outcome("refused_config", outcome.status, message="the answer names no account")
            return Outcome("accepted", outcome.status, message=f"{account} ({self._mode})")
        if outcome.status not in (403, 404):
            return outcome
        # A restricted key need not see the account. That it may see meters shows that it is well.
        outcome, _ = self._get("/v1/billing/meters?limit=1")
        if outcome.kind != "accepted":
            return outcome
        label = self._account or f"key {self.key_hint.partition(':')[2]}"
        return Outcome("accepted", outcome.status, message=f"{label} ({self._mode})")

    def server_time(self) -> ServerTime | None:
        """Stripe's clock, by the latest answer that told it."""
        return self.clock.time()

    def close(self) -> None:
        """Close idle connections. Sending again opens new ones."""
        self._pool.close()

    def _begun(self, event: MeterEvent) -> tuple[str, Connection] | Outcome:
        body = form_of(event)
        head = self._heads["POST"] % (fresh_key(), len(body))
        try:
            return event.identifier, self._pool.begin(head + body, self._timeout_s, HALFWAY)
        except NoAnswer as exc:
            return outcome_of_failure(exc.cause, sent=exc.sent)

    def _ended(self, begun: tuple[str, Connection] | Outcome) -> Outcome:
        if isinstance(begun, Outcome):
            return begun
        identifier, connection = begun
        try:
            answer = self._pool.end(connection)
        except NoAnswer as exc:
            return outcome_of_failure(exc.cause, sent=exc.sent)
        return self._outcome_of(answer, identifier)

    def _get(self, path: str) -> tuple[Outcome, Answer | None]:
        try:
            answer = self._pool.exchange(self._heads[path], self._timeout_s)
        except NoAnswer as exc:
            return outcome_of_failure(exc.cause, sent=exc.sent), None
        return self._outcome_of(answer), answer

    def _outcome_of(self, answer: Answer, identifier: str | None = None) -> Outcome:
        return outcome_of(
            answer.status,
            answer.headers,
            answer.body,
            now=self._now(),
            whole=answer.whole,
            identifier=identifier,
        )


def form_of(event: MeterEvent) -> bytes:
    """The request's body: the same bytes for the same event, always."""
    keys, values = event.payload.keys(), event.payload.values()
    all_plain = _is_plain("".join((event.event_name, event.identifier, *keys, *values)))
    quote = str if all_plain else quoted
    payload = "".join(f"&payload[{quote(k)}]={quote(v)}" for k, v in event.payload.items())
    return (
        f"event_name={quote(event.event_name)}&identifier={quote(event.identifier)}"
        f"&timestamp={event.timestamp:d}{payload}"
    ).encode("ascii")


def fresh_key() -> bytes:
    """An idempotency key that no other request has, in whichever process."""
    return b"%s-%x-%x-%x" % (_OF_THIS_PROCESS, os.getpid(), time.time_ns(), next(_numbers))


_OF_THIS_PROCESS = os.urandom(12).hex().encode()
# A forked child has both of these from its parent, and a number of its own. Random bytes for each request
# would be one more moment in which other threads take the interpreter.
_numbers = count()


def quoted(text: str) -> str:
    """As `quote_plus`, which most of what goes out passes unchanged."""
    return text if _is_plain(text) else _quoted(text)


_is_plain = re.compile(r"[A-Za-z0-9_.~-]*", re.ASCII).fullmatch
_quoted = lru_cache(maxsize=4096)(quote_plus)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MID_BODY = "sender_mid_body"
# A request goes out in one write; only a test that wants to die in the middle of it has it cut in two.
HALFWAY = partial(failpoint, _MID_BODY) if os.environ.get(VARIABLE, "").startswith(_MID_BODY) else None

_LABELLED_ACCOUNT = re.compile(r"[a-z]+_(?:live|test)_5(1[A-Za-z0-9]{15})[A-Za-z0-9]{20,}")


def checked_key(key: str) -> str:
    """The key without blanks around it; `ConfigurationError` if it cannot be one that sends usage."""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(
            "the Stripe API key holds blanks or characters that no key has, or is empty; "
            "set STRIPE_API_KEY to a key that begins with sk_ or rk_"
        )
    if key.startswith(("pk_", "whsec_")):
        raise ConfigurationError(
            f"this is a {'publishable key' if key.startswith('pk_') else 'webhook secret'} of Stripe, which "
            "cannot send usage; set STRIPE_API_KEY to a key that begins with sk_ or rk_"
        )
    return key


def checked_endpoint(api_base: str, key: str) -> Endpoint:
    """Where requests with this key go; `ConfigurationError` where they must not."""
    endpoint = endpoint_of(api_base)
    if mode_of(key) == "live" and not endpoint.secure and endpoint.host not in LOOPBACK:
        raise ConfigurationError(f"a live key is not sent over http:// to {endpoint.host}; use https://")
    return endpoint


def mode_of(key: str) -> str:
    """ "test" or "live"."""
    # A key of a form unknown to us counts as live, which is the careful reading.
    return "test" if re.match(r"[a-z]+_test_", key) else "live"


def _account_in(key: str) -> str | None:
    """Keys made since 2019 carry their account's id, behind a 5."""
    match = _LABELLED_ACCOUNT.fullmatch(key)
    return f"acct_{match[1]}" if match else None


def _account_of(answer: Answer) -> str | None:
    try:
        content = json.loads(answer.body)
    except ValueError:
        return None
    named = content.get("id") if isinstance(content, dict) else None
    return one_line(named, 100) if isinstance(named, str) and named else None


def headers_of(key: str, stripe_version: str) -> str:
    """The headers that every request carries."""
    from importlib.metadata import version

    return (
        f"Authorization: Bearer {key}\r\nStripe-Version: {stripe_version}\r\n"
        f"User-Agent: llm_metering/{version('llm_metering')}\r\n"
        "Accept: application/json\r\nAccept-Encoding: identity\r\n"
    )


def _heads(endpoint: Endpoint, key: str, stripe_version: str) -> dict[str, bytes]:
    """Request heads by path; "POST" awaits an idempotency key, fresh for every attempt, and a length."""
    common = headers_of(key, stripe_version)
    post = (
        f"{endpoint.head('POST', '/v1/billing/meter_events')}{common}".replace("%", "%%")
        + "Content-Type: application/x-www-form-urlencoded\r\n"
        + "Idempotency-Key: %s\r\nContent-Length: %d\r\n\r\n"
    )
    gets = ("/v1/account", "/v1/billing/meters?limit=1")
    heads = {path: f"{endpoint.head('GET', path)}{common}\r\n".encode("latin-1") for path in gets}
    return {"POST": post.encode("latin-1"), **heads}


def tls_context() -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        try:
            import certifi
        except ImportError:  # the system's roots alone, then
            return context
        context.load_verify_locations(certifi.where())
    return context
