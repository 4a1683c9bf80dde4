"""`faults`: what goes wrong in a sandbox that runs."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..billing.connection import SANDBOX_URL
from ..errors import ConfigurationError, MeteringError
from .options import Command, Json, Sandbox, no_sandbox
from .screen import Screen, row, table

if TYPE_CHECKING:
    from ..sandbox import Fault

_TIMEOUT_S = 10.0
faults = typer.Typer(help="What goes wrong in a sandbox that runs: list, add, clear.", no_args_is_help=True)
Wanted = Annotated[
    list[str],
    typer.Argument(
        metavar="FAULT…",
        help="A kind, such as 500_after or 429, and what it is about: 'KIND;path=/v1/*;count=3'. Names: "
        "method, path, customer, count (or forever), after, rate, seconds, status.",
    ),
]


@faults.command("list", cls=Command)
def show(sandbox: Sandbox = None, as_json: Json = False) -> None:
    """Show the faults that wait for a request to meet."""
    _show(_call(sandbox, "GET"), as_json)


@faults.command("add", cls=Command)
def add(wanted: Wanted, sandbox: Sandbox = None, as_json: Json = False) -> None:
    """Let something go wrong: docs/sandbox.md lists the kinds."""
    given = [read_fault(one).as_dict() for one in wanted]
    _show(_call(sandbox, "POST", {"faults": given}), as_json)


@faults.command("clear", cls=Command)
def clear(sandbox: Sandbox = None, as_json: Json = False) -> None:
    """Take all faults away."""
    _show(_call(sandbox, "DELETE"), as_json)


def read_fault(text: str) -> Fault:
    """A fault from the command line."""
    from ..sandbox import parse_fault

    try:
        return parse_fault(text)
    except ValueError as exc:
        raise ConfigurationError(f"fault {text!r}: {exc}") from exc


def _show(found: list[dict[str, Any]], as_json: bool) -> None:
    from ..sandbox import shown_fault
    from ..sandbox.faults import read_fault as from_json

    screen = Screen(as_json=as_json)
    screen.document({"faults": found})
    if not found:
        screen.say("No faults.")
        return
    made = table("Kind", "Left", "Fault", right=("Left",))
    for one in found:
        left = "forever" if one["count"] is None else one["count"]
        row(made, one["kind"], left, shown_fault(from_json(one)))
    screen.table(made)


def _call(url: str | None, method: str, body: Any = None) -> list[dict[str, Any]]:
    base = (url or SANDBOX_URL).rstrip("/")
    request = urllib.request.Request(  # noqa: S310 -- the option takes http and https only
        f"{base}/_sandbox/faults",
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={"Content-Type": "application/json"},
    )
    # A sandbox is reached directly, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            faults: list[dict[str, Any]] = json.load(answer)["faults"]
            return faults
    except urllib.error.HTTPError as exc:
        with exc:
            raise MeteringError(
                f"{base} is no sandbox, or of another version: it answered {exc.code}"
            ) from exc
    except (OSError, ValueError, KeyError) as exc:
        raise MeteringError(no_sandbox(base)) from exc
