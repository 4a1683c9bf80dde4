"""Questions to Stripe's API over a lean connection: GET only, gently paced, asked again where that is safe.

Numbers in answers become `Decimal` or `int`, never float.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from .._redact import one_line
from ..errors import ConfigurationError, StripeUnavailable
from ..settings import DEFAULT_API_BASE
from .connection import Answer, Connection, NoAnswer, endpoint_of
from .outcomes import outcome_of
from .stripe_v1 import LOOPBACK, STRIPE_VERSION, checked_key, headers_of, mode_of, tls_context

if TYPE_CHECKING:
    import ssl

Params = Mapping[str, str | int | None]
Object = Mapping[str, Any]
"""A JSON object of Stripe's, as it came; whoever asked reads it into a type of their own."""


class StripeReader:
    """Asks Stripe one question at a time. Safe to use from several threads, which then take turns.

    Args:
        api_key: A secret or restricted key that may read what is asked for.
        api_base: Where Stripe is; the URL of a sandbox while you develop.
        timeout_s: The longest that one request may take.
        per_s: At most so many requests a second, so that others have room within the account's limit
            (25 a second in test mode, 100 in live mode).
        sleep: Waits; may return early.

    Raises:
        ConfigurationError: The key, the URL or a proxy cannot work.
    """

    def __init__(
        self,
        api_key: str,
        *,
        api_base: str = DEFAULT_API_BASE,
        timeout_s: float = 30.0,
        per_s: float = 5.0,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        key = checked_key(api_key)
        self.mode = mode_of(key)
        """"live" or "test"."""
        self._endpoint = endpoint_of(api_base)
        if self.mode == "live" and not self._endpoint.secure and self._endpoint.host not in LOOPBACK:
            raise ConfigurationError(f"a live key is not sent over http://; use https:// for {api_base}")
        self._headers = headers_of(key, STRIPE_VERSION)
        self._timeout_s = timeout_s
        self._gap_s = 1 / per_s
        self._monotonic = monotonic
        self._sleep = sleep
        self._next_at = 0.0
        self._turn = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._connection = Connection(self._endpoint, self._tls_context, monotonic=monotonic)

    def get(self, path: str, params: Params | None = None) -> Object:
        """The object at `path`.

        Raises:
            StripeUnavailable: Stripe refused, or did not answer within a few tries.
        """
        query = urlencode({k: v for k, v in (params or {}).items() if v is not None}, quote_via=quote)
        request = self._request(f"{path}?{query}" if query else path)
        with self._turn:
            for wait_s in (*_WAITS_S, None):
                self._pace()
                found, trouble, asked_to_wait = self._ask(request)
                if found is not None:
                    return found
                if wait_s is None or trouble.status in _FINAL:
                    raise trouble
                self._sleep(max(wait_s, min(asked_to_wait or 0.0, _LONGEST_WAIT_S)))
        raise AssertionError  # the last wait is None

    def pages(self, path: str, params: Params | None = None) -> Iterator[Object]:
        """Every item of a v1 list, page after page."""
        after: str | None = None
        for _ in range(_MAX_PAGES):
            page = self.get(path, {"limit": 100, **(params or {}), "starting_after": after})
            items = [item for item in page.get("data", ()) if isinstance(item, dict)]
            yield from items
            if not (page.get("has_more") and items):
                return
            after = str(items[-1].get("id"))
        raise StripeUnavailable(f"{path} has more than {_MAX_PAGES} pages")

    def close(self) -> None:
        """Close the connection. Asking again opens a new one."""
        self._connection.close()

    def _request(self, target: str) -> bytes:
        return f"{self._endpoint.head('GET', target)}{self._headers}\r\n".encode("latin-1")

    def _pace(self) -> None:
        wait_s = self._next_at - self._monotonic()
        if wait_s > 0:
            self._sleep(wait_s)
        self._next_at = self._monotonic() + self._gap_s

    def _ask(self, request: bytes) -> tuple[Object | None, StripeUnavailable, float | None]:
        try:
            answer = self._connection.exchange(request, self._timeout_s)
        except NoAnswer as exc:
            said = one_line(f"Stripe did not answer: {type(exc.cause).__name__}: {exc.cause}")
            return None, StripeUnavailable(said), None
        found = _object(answer) if 200 <= answer.status < 300 else None
        retry_after_s = outcome_of(answer.status, answer.headers, answer.body, now=time.time()).retry_after_s
        return found, _trouble(answer), retry_after_s

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = tls_context()
        return self._tls


_WAITS_S = (0.5, 1.0, 2.0)
_LONGEST_WAIT_S = 30.0
_FINAL = frozenset({400, 401, 402, 403, 404})
"""Asked again, these would be answered alike."""
_MAX_PAGES = 1000


def _object(answer: Answer) -> Object | None:
    """The answer's object, None if it is cut short or is none."""
    try:
        found = json.loads(answer.body, parse_float=Decimal) if answer.whole else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _trouble(answer: Answer) -> StripeUnavailable:
    found = _object(answer) or {}
    error = found.get("error")
    error = error if isinstance(error, dict) else {}
    said = one_line(str(error.get("message") or "not an answer of Stripe's"))
    code, param = error.get("code"), error.get("param")
    return StripeUnavailable(
        f"{said} (HTTP {answer.status})",
        status=answer.status,
        code=code if isinstance(code, str) else None,
        param=param if isinstance(param, str) else None,
    )
