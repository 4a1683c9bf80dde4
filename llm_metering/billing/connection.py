"""A Stripe client for setting up: the official SDK, retrying, pointed at Stripe or at a sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from ..settings import DEFAULT_API_BASE

if TYPE_CHECKING:
    from stripe import StripeClient

SANDBOX_URL = "http://127.0.0.1:12111"
SANDBOX_KEY = "sk_test_sandbox"
"""A sandbox takes any test key; a real one need not be shown to it."""

_LOOPBACK = ("http://127.0.0.1", "http://localhost", "http://[::1]")


def connect(
    api_key: str | None,
    *,
    api_base: str = DEFAULT_API_BASE,
    live: bool = False,
    timeout_s: float = 30.0,
    retries: int = 2,
) -> StripeClient:
    """A `StripeClient` that retries; `ConfigurationError` if the key is missing or of the wrong mode.

    Args:
        api_key: A secret or restricted key.
        api_base: Where Stripe is; the URL of a sandbox while you develop.
        live: Allow a live key. Without it a live key is refused, so that nothing is set up, subscribed or
            sent for real by mistake.
        timeout_s: For one request.
        retries: Of the SDK, with the same idempotency key.
    """
    key = check_key(api_key, live=live)
    check_base(api_base, key)
    import stripe

    http = stripe.RequestsClient(timeout=timeout_s, session=_session(api_base))
    base = api_base.rstrip("/")
    return stripe.StripeClient(
        key,
        base_addresses={"api": base} if base == DEFAULT_API_BASE else {"api": base, "meter_events": base},
        max_network_retries=retries,
        http_client=http,
    )


def check_key(api_key: str | None, *, live: bool) -> str:
    """The key, if it may be used; never shown in an error."""
    key = (api_key or "").strip()
    if not key:
        raise ConfigurationError(
            "no Stripe API key: set STRIPE_API_KEY to a test key (sk_test_…), "
            "or use a local sandbox with --sandbox"
        )
    if key.startswith("pk_"):
        raise ConfigurationError(
            "this is a publishable key (pk_…), which can neither read nor change anything here; "
            "use a secret or restricted one (sk_test_…, rk_test_…)"
        )
    if key.startswith(("sk_live_", "rk_live_")) and not live:
        raise ConfigurationError(
            "this is a live key, and a test key is meant: real customers would be billed. "
            "Use a test key (sk_test_…), or say --live (live=True) if you mean it"
        )
    return key


def check_base(api_base: str, key: str) -> None:
    if not api_base.startswith(("https://", "http://")):
        raise ConfigurationError(f"{api_base!r} is not a URL; it must begin with https:// or http://")
    if api_base.startswith("http://") and key.startswith(("sk_live_", "rk_live_")):
        raise ConfigurationError(
            f"a live key is not sent to {api_base}, which is not encrypted; use https://"
        )


def is_loopback(api_base: str) -> bool:
    return api_base.startswith(_LOOPBACK)


def _session(api_base: str) -> Any:
    """A sandbox on this machine is reached directly, whatever proxy the environment names."""
    if not is_loopback(api_base):
        return None
    import requests

    session = requests.Session()
    session.trust_env = False
    return session
