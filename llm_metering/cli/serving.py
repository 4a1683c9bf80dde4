"""`sandbox`: run the local Stripe in the foreground."""

from __future__ import annotations

import errno
import sqlite3
from typing import Annotated

import typer

from ..billing.connection import SANDBOX_URL
from ..errors import ConfigurationError, MeteringError, MissingExtra
from .faulting import read_fault
from .options import Json
from .screen import Screen


def sandbox(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 12111,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    db: Annotated[
        str | None, typer.Option("--db", metavar="FILE", help="Keep its state here (default: in memory).")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes its ids repeatable.")] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option("--fault", metavar="FAULT", help="What goes wrong from the start; see `faults add`."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a local Stripe for development and tests, until Ctrl-C."""
    from ..sandbox import serve

    _check_extra()
    faults = [read_fault(one) for one in fault or ()]
    screen = Screen(as_json=as_json)

    def ready(url: str) -> None:
        screen.document({"url": url, "db": db})
        screen.say(f"A local Stripe listens on {url} (state: {db or 'in memory'}). Ctrl-C ends it.")
        screen.say("Open that address in a browser to look at it, and to follow the guides by clicking.")
        where = "" if url == SANDBOX_URL else f" {url}"
        screen.say(f"In another terminal: llm-metering setup pay-as-you-go --sandbox{where}")
        screen.say(f"In your service:     STRIPE_API_BASE={url} STRIPE_API_KEY=sk_test_sandbox")

    try:
        serve(host, port, db, seed=seed, faults=faults, ready=ready)
    except OSError as exc:
        raise _cannot_listen(exc, host, port) from exc
    except (sqlite3.Error, ValueError) as exc:
        raise ConfigurationError(f"--db {db} cannot be used: {exc}") from exc


def _check_extra() -> None:
    try:
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as exc:
        raise MissingExtra("uvicorn", "sandbox") from exc


def _cannot_listen(exc: OSError, host: str, port: int) -> MeteringError:
    if exc.errno == errno.EADDRINUSE:
        return MeteringError(
            f"port {port} is taken; perhaps a sandbox runs already. Choose another: --port (0: a free one)"
        )
    return MeteringError(f"cannot listen on {host}:{port}: {exc.strerror or exc}")
