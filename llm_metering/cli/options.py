"""Options that several commands share, and the Stripe client that they lead to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Target:
    """The Stripe account that the options and the environment name."""

    api_key: str | None
    api_base: str | None
    sandbox: str | None
    live: bool

    @contextmanager
    def client(self) -> Iterator[StripeClient]:
        """A client of it. A sandbox that does not answer is reported with how to start it."""
        key, base = self.place()
        client = connect(key, api_base=base, live=self.live)
        import stripe

        stripe.enable_telemetry = False  # it writes into the user's home and times their calls
        try:
            yield client
        except BillingError as exc:
            if isinstance(exc.__cause__, stripe.APIConnectionError) and is_loopback(base):
                raise BillingError(no_sandbox(base)) from exc
            raise

    @property
    def flags(self) -> str:
        """What the next command has to say to mean the same account; never a key."""
        said = [] if self.api_base is None else [f"--api-base {self.api_base}"]
        if self.sandbox is not None:
            said.append("--sandbox" if self.sandbox == SANDBOX_URL else f"--sandbox {self.sandbox}")
        return "".join(f" {option}" for option in [*said, *(["--live"] if self.live else [])])

    def place(self) -> tuple[str | None, str]:
        """The key and the URL that are meant."""
        if self.sandbox is not None:
            if self.api_base is not None:
                raise ConfigurationError("--sandbox and --api-base exclude each other; give one URL")
            return self.api_key or SANDBOX_KEY, self.sandbox
        given: dict[str, Any] = {"stripe_api_key": self.api_key, "stripe_api_base": self.api_base}
        settings = Settings.from_env(**{name: value for name, value in given.items() if value is not None})
        base = settings.stripe_api_base
        # A sandbox takes any test key, so none need be set to use one.
        return settings.stripe_api_key or (SANDBOX_KEY if is_loopback(base) else None), base


def no_sandbox(base: str) -> str:
    """What to do where no sandbox answers."""
    port = base.rstrip("/").rpartition(":")[2]
    how = f"llm-metering sandbox --port {port}" if port.isdigit() else "llm-metering sandbox"
    return f"no sandbox answers at {base}; start it in another terminal with: {how}"
