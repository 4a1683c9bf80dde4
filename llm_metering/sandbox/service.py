"""From a request to its answer, without I/O: keys, idempotency, parameters, the handler, errors.

Handlers run one at a time, each in a transaction, so any number of clients sees a request carried out
wholly or not at all. What an idempotency key remembers is committed with what the request did.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterable
from email.utils import formatdate
from functools import lru_cache

from .errors import Refusal, bad_key, call_not_played, invalid, server_fault, unknown_url
from .expansion import expand_answer
from .forms import decode_form, read_params
from .limits import Limits
from .store import Account
from .upkeep import catch_up
from .wire import Answer, Request, api_key, bearer, json_body
from .world import API_VERSION, SESSION, Call, Route, World, account_id

logger = logging.getLogger("llm_metering.sandbox")

V1_KEY_LIFE_S = 86_400
KEPT_BODY_BYTES = 4096
NOT_PLAYED = re.compile(
    r"/v1/(subscription_schedules|promotion_codes|tax|tax_rates|tax_ids|tax_codes|checkout|payment_intents"
    r"|setup_intents|payment_methods|payment_links|charges|refunds|credit_notes|quotes|plans|billing_portal"
    r"|billing/analytics|invoice_payments|invoice_rendering_templates|disputes|payouts|transfers"
    r"|entitlements|file_links|files|shipping_rates|sources|tokens)(/|$)"
    r"|/v1/subscriptions/[^/]+/(pause|resume)$"
    r"|/v1/invoices/[^/]+/(add_lines|update_lines|remove_lines|attach_payment|lines/[^/]+)$"
    r"|/v1/customers/[^/]+/(discount|balance_transactions|cash_balance|payment_methods|sources|tax_ids)(/|$)"
    r"|/v2/billing/(?!meter_event)"
)
"""Calls that Stripe has and the sandbox does not play: it says so, where 404 would look like a mistake."""


class Service:
    """Answers requests."""

    def __init__(self, world: World, routes: Iterable[Route], keys: Collection[str] | None) -> None:
        self.world = world
        self.keys = keys
        self._limits = Limits()
        self._accounts: dict[tuple[str, str | None], Account] = {}
        routes = tuple(routes)
        self._static = {(r.method, r.path): r for r in routes if "{}" not in r.path}
        self._patterns: dict[tuple[str, int], list[tuple[list[str], Route]]] = {}
        for route in routes:
            if "{}" in route.path:
                parts = route.path.split("/")
                self._patterns.setdefault((route.method, len(parts)), []).append((parts, route))

    def answer(self, request: Request, *, instead: Refusal | None = None, limited: bool = True) -> Answer:
        """Carry a request out.

        Args:
            instead: Carried out as ever, and then answered (and remembered) with this.
            limited: Whether rate limits hold and count it, where they are switched on.
        """
        with self.world.store.lock:
            try:
                route, args = self._route(request)
                account = self._session_account(request) if route.by_session else self.account(request)
                if limited:
                    self._check_limits(request, account, route)
                answer = self._remembered(request, account) or self._carry_out(
                    request, account, route, args, instead
                )
            except Refusal as refusal:
                answer = _refused(request, refusal)
            except Exception:
                logger.exception("%s %s failed inside the sandbox", request.method, request.path)
                answer = _refused(request, server_fault())
        return self.stamped(request, answer)

    def refuse(self, request: Request, refusal: Refusal) -> Answer:
        """The answer to a request that is not carried out."""
        return self.stamped(request, _refused(request, refusal))

    def stamped(self, request: Request, answer: Answer) -> Answer:
        """An answer with the headers that every one of Stripe's has."""
        answer.headers.setdefault("Request-Id", self.world.new_request_id())
        answer.headers["Date"] = _date(int(self.world.now()))
        answer.headers["Stripe-Version"] = request.header(b"stripe-version") or API_VERSION
        key = request.header(b"idempotency-key")
        if key is not None:
            answer.headers["Idempotency-Key"] = key
        return answer

    def account(self, request: Request) -> Account:
        """The account and mode that a request's key belongs to."""
        key = api_key(request)
        if self.keys is not None and key not in self.keys:
            raise bad_key(key)
        other = request.header(b"stripe-account")
        known = self._accounts.get((key, other))
        if known is None:
            known = self.world.store.account(other or account_id(key), key.split("_")[1] == "live")
            self._accounts[(key, other)] = known
        return known

    def _session_account(self, request: Request) -> Account:
        """The account of a meter event session, by the token that stands for a key."""
        token = bearer(request)
        parts = token.split("_")
        number = parts[1] if len(parts) == 3 and parts[0] == "mestk" else ""
        account = next((one for one in self.world.store.accounts() if str(one.n) == number), None)
        session = None if account is None else self.world.store.by_alias(account, SESSION, token)
        if account is None or session is None or session["_expires_at"] <= self.world.now():
            raise Refusal(
                401,
                "The billing meter event session has expired, or there was none. Create a new one.",
                type="temporary_session_expired",
                code="billing_meter_event_session_expired",
                doc_url="https://docs.stripe.com/error-codes#billing-meter-event-session-expired",
            )
        return account

    def forget(self) -> None:
        """Forget what is remembered outside of the store."""
        self._accounts.clear()
        self._limits.forget()

    def _check_limits(self, request: Request, account: Account, route: Route) -> None:
        if not self.world.switches.rate_limits:
            return
        events = request.body.count(b'"event_name"')
        refusal = self._limits.check(account, f"{route.method} {route.path}", events, self.world.now())
        if refusal is not None:
            raise refusal

    def _route(self, request: Request) -> tuple[Route, tuple[str, ...]]:
        route = self._static.get((request.method, request.path))
        if route is not None:
            return route, ()
        parts = request.path.split("/")
        for pattern, candidate in self._patterns.get((request.method, len(parts)), ()):
            if all(want in ("{}", got) for want, got in zip(pattern, parts, strict=True)):
                args = tuple(got for want, got in zip(pattern, parts, strict=True) if want == "{}")
                if all(args):
                    return candidate, args
        if NOT_PLAYED.match(request.path):
            raise call_not_played(request.method, request.path)
        raise unknown_url(request.method, request.path)

    def _carry_out(
        self, request: Request, account: Account, route: Route, args: tuple[str, ...], instead: Refusal | None
    ) -> Answer:
        try:
            params = read_params(request.params(), route.params)
            call = Call(self.world, account, params, args)
            if route.catches_up:
                with self.world.store.transaction():
                    catch_up(Call(self.world, account, {}))
            with self.world.store.transaction():
                doc = route.handler(call)
                if "expand" in params:
                    expand_answer(call, doc)
                answer = Answer(200, json_body(doc), call.headers)
                if instead is not None:
                    answer = _refused(request, instead)
                self._remember(request, account, answer)
        except Refusal as refusal:
            answer = _refused(request, refusal)
            if refusal.stored:
                self._remember(request, account, answer)
        return answer

    def _remembered(self, request: Request, account: Account) -> Answer | None:
        key = _idempotency_key(request)
        if key is None:
            return None
        row = self.world.store.db.execute(
            "SELECT path, form, status, body, request FROM answer WHERE account=? AND key=? AND until>?",
            (account.n, key, self.world.now()),
        ).fetchone()
        if row is None:
            return None
        path, form, status, body, request_id = row
        if path != f"{request.method} {request.path}":
            raise _idempotency_error(
                "Keys for idempotent requests can only be used for the same endpoint they were first used "
                f"for ('{path.partition(' ')[2]}' vs '{request.path}').",
                key,
            )
        if form != _form(request) and _tree(request, form) != _tree(request, request.body):
            raise _idempotency_error(
                "Keys for idempotent requests can only be used with the same parameters they were first used "
                "with.",
                key,
            )
        return Answer(status, body, {"Idempotent-Replayed": "true", "Original-Request": request_id})

    def _remember(self, request: Request, account: Account, answer: Answer) -> None:
        key = _idempotency_key(request)
        if key is None or (request.v2 and answer.status >= 400):
            return
        answer.headers["Request-Id"] = request_id = self.world.new_request_id()
        life = self.world.switches.v2_idempotency_s if request.v2 else V1_KEY_LIFE_S
        self.world.store.db.execute(
            "INSERT OR REPLACE INTO answer (account, key, path, form, status, body, request, until) "
            "VALUES (?,?,?,?,?,?,?,?)",
            (
                account.n,
                key,
                f"{request.method} {request.path}",
                _form(request),
                answer.status,
                answer.body,
                request_id,
                self.world.now() + life,
            ),
        )


@lru_cache(maxsize=4)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _idempotency_key(request: Request) -> str | None:
    if request.method != "POST" and not (request.v2 and request.method == "DELETE"):
        return None
    key = request.header(b"idempotency-key")
    if key is not None and len(key) > 255:
        raise invalid("Idempotency keys have at most 255 characters.")
    return key or None


def _idempotency_error(message: str, key: str) -> Refusal:
    return Refusal(
        400,
        f"{message} Try using a key other than '{key}' if you meant to execute a different request.",
        type="idempotency_error",
        stored=False,
    )


def _form(request: Request) -> bytes:
    """What is kept of a body: itself, or a digest of a long one."""
    if len(request.body) <= KEPT_BODY_BYTES:
        return request.body
    return b"sha256:" + hashlib.sha256(request.body).digest()


def _tree(request: Request, body: bytes) -> object:
    """A body without the order of its parameters."""
    if body.startswith(b"sha256:"):
        return body
    return Request(request.method, request.path, "", {}, body).params() if body else decode_form("")


def _refused(request: Request, refusal: Refusal) -> Answer:
    return Answer(refusal.status, json_body(refusal.body(v2=request.v2)), dict(refusal.headers))
