"""Options that several commands share, and the Stripe client that they lead to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ..billing.connection import SANDBOX_KEY, SANDBOX_URL, connect, is_loopback
from ..errors import BillingError, ConfigurationError
from ..settings import Settings

if TYPE_CHECKING:
    from stripe import StripeClient

_STRIPE = "Stripe account"

ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        help="Secret or restricted key. Better set in the environment, where `ps` does not show it "
        "(env: STRIPE_API_KEY).",
        rich_help_panel=_STRIPE,
    ),
]
ApiBase = Annotated[
    str | None,
    typer.Option(
        "--api-base", help="Where Stripe is (env: STRIPE_API_BASE).", metavar="URL", rich_help_panel=_STRIPE
    ),
]
Sandbox = Annotated[
    str | None,
    typer.Option(
        "--sandbox",
        help=f"Use a local sandbox (default {SANDBOX_URL}) with a test key.",
        metavar="[URL]",
        rich_help_panel=_STRIPE,
    ),
]
Live = Annotated[
    bool,
    typer.Option("--live", help="Allow a live key: real customers, real money.", rich_help_panel=_STRIPE),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


class Command(TyperCommand):
    """A command whose `--sandbox` may stand without a URL."""

    def parse_args(self, ctx: Any, args: Any) -> list[str]:
        return super().parse_args(ctx, with_sandbox_url(args))


def with_sandbox_url(args: Sequence[str]) -> list[str]:
    """`--sandbox` followed by anything but a URL means the default one."""
    full: list[str] = []
    for i, arg in enumerate(args):
        full.append(arg)
        if arg == "--":
            return [*full, *args[i + 1 :]]
        after = args[i + 1] if i + 1 < len(args) else ""
        if arg == "--sandbox" and not after.startswith(("http://", "https://")):
            full.append(SANDBOX_URL)
    return full


@contextmanager
def stripe_at(
    api_key: str | None, api_base: str | None, sandbox: str | None, live: bool
) -> Iterator[StripeClient]:
    """The client that the options and the environment name.

    A sandbox that does not answer is reported with how to start it.
    """
    key, base = _where(api_key, api_base, sandbox)
    client = connect(key, api_base=base, live=live)
    import stripe

    stripe.enable_telemetry = False  # it writes into the user's home, and tells Stripe how long we took
    try:
        yield client
    except BillingError as exc:
        if isinstance(exc.__cause__, stripe.APIConnectionError) and is_loopback(base):
            port = base.rstrip("/").rpartition(":")[2]
            raise BillingError(
                f"no sandbox answers at {base}; start it in another terminal with: "
                f"llm-metering sandbox --port {port}"
            ) from exc
        raise


def _where(api_key: str | None, api_base: str | None, sandbox: str | None) -> tuple[str | None, str]:
    if sandbox is not None:
        if api_base is not None:
            raise ConfigurationError("--sandbox and --api-base exclude each other; give one URL")
        return api_key or SANDBOX_KEY, sandbox
    given: dict[str, Any] = {"stripe_api_key": api_key, "stripe_api_base": api_base}
    settings = Settings.from_env(**{name: value for name, value in given.items() if value is not None})
    key = settings.stripe_api_key
    if key is None and is_loopback(settings.stripe_api_base):
        key = SANDBOX_KEY
    return key, settings.stripe_api_base
