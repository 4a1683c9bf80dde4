"""Stripe's errors as sentences: which step failed, what Stripe said, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import BillingError

if TYPE_CHECKING:
    from stripe import StripeError


@contextmanager
def doing(step: str) -> Iterator[None]:
    """Turn what Stripe or the network says during `step` into a `BillingError`."""
    import stripe

    try:
        yield
    except stripe.StripeError as exc:
        raise BillingError(f"{step} failed: {explain(exc)}") from exc


def explain(exc: StripeError) -> str:
    """What went wrong and what to do, in one line, without secrets."""
    import stripe

    said = said_by(exc)
    if isinstance(exc, stripe.APIConnectionError):
        return (
            f"Stripe cannot be reached ({_network(exc)}). Check STRIPE_API_BASE and the network; "
            f"a local sandbox is started with: llm-metering sandbox"
        )
    if isinstance(exc, stripe.AuthenticationError):
        return (
            f"Stripe does not accept this API key ({said}). Check STRIPE_API_KEY: the key must be whole, "
            f"not revoked, and of the account and mode you mean"
        )
    if isinstance(exc, stripe.PermissionError):
        return (
            f"this API key may not do that ({said}). Give the restricted key write access to Billing meters, "
            f"Products, Prices, Customers, Subscriptions and Invoices, or use a secret key"
        )
    for pattern, sentence in _SENTENCES:
        match = re.search(pattern, said)
        if match:
            return sentence(match)
    if isinstance(exc, stripe.RateLimitError):
        return f"Stripe asks to slow down ({said}). Wait a few seconds and run it again"
    if exc.http_status is not None and exc.http_status >= 500:
        return (
            f"Stripe had an error of its own ({exc.http_status}: {said}). Run it again; what is done is kept"
        )
    return said + (f" [{exc.request_id}]" if exc.request_id else "")


def said_by(exc: StripeError) -> str:
    """Stripe's own words in one line, keys masked."""
    words = " ".join((exc.user_message or type(exc).__name__).split())
    return re.sub(r"\b([rs]k_(?:test|live)_)\w{5,}(?=\w{4}\b)", r"\1…", words).rstrip(".")


def is_gone(exc: StripeError) -> bool:
    """Whether an object that was asked for does not exist."""
    return exc.http_status == 404 or exc.code == "resource_missing"


def is_passing(exc: StripeError) -> bool:
    """Whether the same call may fare better the next time: an error of Stripe's, a clash, a lock, or an
    old answer that was replayed for the idempotency key."""
    status = exc.http_status or 0
    headers = {str(name).lower(): value for name, value in (exc.headers or {}).items()}
    replayed = headers.get("idempotent-replayed") == "true"
    return status >= 500 or status == 409 or exc.code == "lock_timeout" or replayed


def _customer(match: re.Match[str]) -> str:
    return (
        f"there is no customer {match[1]!r} on this Stripe account and mode. Check the id and the key; "
        f"a customer is made with create_customer(), or subscribe --new-customer NAME"
    )


def _missing(match: re.Match[str]) -> str:
    return (
        f"there is no {match[1]} {match[2]!r} on this Stripe account and mode. Check the id and that the key "
        f"is of the account that has it"
    )


def _no_meter(match: re.Match[str]) -> str:
    return (
        f"there is no active meter for event name {match[1]!r}. Set it up first (llm-metering setup …), "
        f"or check the name; a meter that was deactivated is reactivated by setting it up again"
    )


def _no_payment_method(_: re.Match[str]) -> str:
    return (
        "the customer has no payment method, and the first invoice is above 0. Bill by invoice "
        '(collection="send_invoice"), start unpaid (collection="default_incomplete"), '
        "or give the customer a payment method first"
    )


def _currency(match: re.Match[str]) -> str:
    return (
        f"the customer is billed in another currency ({match[0]}). A customer has one currency: "
        f"use prices in that currency, or another customer"
    )


_SENTENCES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"[Nn]o such customer: '?([^']*)'?", _customer),
    (r"[Nn]o such ([\w ]+): '?([^']*)'?", _missing),
    (r"No active meter found for event name \"([^\"]*)\"", _no_meter),
    (r"no attached payment source or default payment method", _no_payment_method),
    (r"cannot combine currencies.*", _currency),
)
"""Stripe's wording where its code says too little. The first that fits is taken."""


def _network(exc: StripeError) -> str:
    """The short reason inside a chain of connection errors."""
    words = said_by(exc)
    host = re.search(r"host='([^']+)', port=(\d+)", words)
    where = f"{host[1]}:{host[2]}: " if host else ""
    for pattern, reason in (
        (r"[Cc]onnection refused|Errno 111|Errno 61", "connection refused"),
        (r"[Nn]ame or service not known|getaddrinfo|resolve", "the name cannot be resolved"),
        (r"[Tt]imed? ?out", "no answer in time"),
        (r"[Rr]eset by peer|RemoteDisconnected|aborted", "the connection was cut"),
        (r"SSL|certificate", "the TLS certificate cannot be verified"),
    ):
        if re.search(pattern, words):
            return where + reason
    return where + words[:160]
