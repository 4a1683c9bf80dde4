"""What became of an attempt: a pure function of the answer, or of the error that came instead.

One rule above all: only Stripe's own words make an event final. A definite no needs a whole answer with
Stripe's error object; what a proxy, a half answer or silence says is never taken for one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from .._redact import one_line
from .._values import maker
from ..protocols import Outcome, OutcomeKind

DUPLICATE = "An event already exists with identifier"
"""How v1 says that it has this event; there is no code for it."""
NO_METER = "No active meter found"
"""How v1 says that the event name has no active meter: curable without touching the event. The code
`archived_meter`, documented for v2 and later reports, is read the same way."""

MAX_RETRY_AFTER_S = 3600.0


def outcome_of(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    whole: bool = True,
    identifier: str | None = None,
) -> Outcome:
    """What an answer means for the event that was sent.

    Args:
        status: HTTP status.
        headers: By lower-case name.
        body: As far as it was read.
        now: Unix seconds, for a `Retry-After` date.
        whole: Whether the body was read to its end.
        identifier: The event's, to be compared with the one that the answer names.
    """
    if status == 200 and whole and identifier is not None and _names(body, identifier):
        return _outcome("accepted", status, None, None, _text(headers.get("request-id")))
    content = _parsed(body) if whole else None
    error = _error(content)
    kind, note = _kind(status, headers, content, error, whole=whole, identifier=identifier)
    message = error.get("message") if error else None
    return Outcome(
        kind=kind,
        status=status,
        code=_code(kind, error),
        message=_message(status, note, message, body),
        request_id=_text(headers.get("request-id")),
        retry_after_s=_retry_after_s(headers.get("retry-after"), now),
    )


_outcome = maker(Outcome)


def _names(body: bytes, identifier: str) -> bool:
    """Whether this is plainly the answer to this event, as nearly every one is. It is looked for as Stripe
    writes it, at a tenth of what reading all of it takes."""
    at = body.find(b'"identifier": "')
    name = identifier.encode()
    return at >= 0 and body.startswith(name, at + 15) and body.startswith(b'"', at + 15 + len(name))


def outcome_of_failure(error: BaseException, *, sent: bool) -> Outcome:
    """What a failure without an answer means.

    Args:
        error: What the network, or the deadline, raised.
        sent: Whether a byte of the request may have left this machine.
    """
    what = one_line(f"{type(error).__name__}: {error}") if str(error) else type(error).__name__
    return Outcome("ambiguous" if sent else "not_sent", code=type(error).__name__, message=what)


def _kind(
    status: int,
    headers: Mapping[str, str],
    content: Any,
    error: Mapping[str, Any] | None,
    *,
    whole: bool,
    identifier: str | None,
) -> tuple[OutcomeKind, str | None]:
    if 200 <= status < 300:
        return _accepted(content, whole=whole, identifier=identifier)
    if status == 429:
        return "throttled", None
    if status in (401, 403):
        return "refused_config", None
    if 300 <= status < 400:
        return "refused_config", f"a redirect, which is not followed: {headers.get('location', '?')}"
    if status == 408 or not 400 <= status < 500:
        return "ambiguous", None
    return _refused(status, headers, error, whole=whole, identifier=identifier)


def _accepted(content: Any, *, whole: bool, identifier: str | None) -> tuple[OutcomeKind, str | None]:
    if not whole:
        return "accepted", "accepted, but the answer was cut short"
    if not isinstance(content, dict):
        return "accepted", "accepted, but the answer was not JSON"
    named = content.get("identifier")
    if identifier is not None and named is not None and named != identifier:
        # An answer to something else: a proxy or cache mixed up two requests.
        return "ambiguous", f"the answer is for another event, {named}"
    return "accepted", None


def _refused(
    status: int,
    headers: Mapping[str, str],
    error: Mapping[str, Any] | None,
    *,
    whole: bool,
    identifier: str | None,
) -> tuple[OutcomeKind, str | None]:
    message = str(error.get("message") or "") if error else ""
    if _says_duplicate(message, identifier):
        return "duplicate", None
    if status in (409, 425) or headers.get("stripe-should-retry") == "true" or not whole:
        return "not_sent", None
    if error is None:
        return "refused_config", "not an answer of Stripe; is the API base right, or a proxy in between?"
    if error.get("type") == "idempotency_error" or _lacks_meter(error):
        return "not_sent", None
    if message.startswith("Unrecognized request URL"):
        return "refused_config", None
    return "refused_data", None


def _says_duplicate(message: str, identifier: str | None) -> bool:
    """Whether these are Stripe's words. Quoted from a payload, in the midst of others, they are a user's."""
    if message.startswith(DUPLICATE):
        return True
    return (DUPLICATE if identifier is None else f"{DUPLICATE} {identifier}") in message


def _lacks_meter(error: Mapping[str, Any]) -> bool:
    # Further inside, these words are quoted from what somebody else wrote.
    return str(error.get("message")).startswith(NO_METER) or error.get("code") == "archived_meter"


def _code(kind: OutcomeKind, error: Mapping[str, Any] | None) -> str | None:
    if kind == "not_sent" and error and _lacks_meter(error):
        return "no_meter"
    return _text(error.get("code") or error.get("type")) if error else None


def _message(status: int, note: str | None, message: Any, body: bytes) -> str | None:
    if message:
        return one_line(str(message))
    if note:
        return one_line(f"HTTP {status}: {note}")
    if 200 <= status < 300:
        return None
    return one_line(f"HTTP {status}: {body[:200].decode('utf-8', 'replace')}" if body else f"HTTP {status}")


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _error(content: Any) -> Mapping[str, Any] | None:
    error = content.get("error") if isinstance(content, dict) else None
    return error if isinstance(error, dict) else None


def _text(value: Any) -> str | None:
    # Every answer names its request: what has only letters and digits after `req_` hides no secret.
    if value is None or (type(value) is str and _is_request_id(value)):
        return value
    return one_line(str(value), 100)


_is_request_id = re.compile(r"req_[A-Za-z0-9]{1,64}").fullmatch


def _retry_after_s(text: str | None, now: float) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        from datetime import timezone
        from email.utils import parsedate_to_datetime

        try:
            when = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
        seconds = when.timestamp() - now
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None
