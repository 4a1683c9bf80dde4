"""What every command that changes a ledger shares: asking, naming who decides, telling what came of it."""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Annotated, overload

import typer
from rich.table import Table

from ..decisions import Ruling
from ..errors import ConfigurationError, MeteringError
from ..ledger.desk import WAIT_S, Decided
from .screen import Screen, row, table

Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept with the decision.")]
Who = Annotated[
    str | None, typer.Option("--who", help="Who decides (default: this user and host); it is kept, too.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Wait = Annotated[
    float,
    typer.Option("--wait", metavar="SECONDS", min=0, help="For a running service to take the decision up."),
]
WAIT = WAIT_S

_AGO = re.compile(r"(\d{1,6})\s*([mhdw])")
_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Declined(MeteringError):
    """The person who was asked said no."""


def confirm(screen: Screen, question: str, *, yes: bool, changes: str = "the ledger") -> None:
    """Go on only if a person says so."""
    if yes:
        return
    if screen.as_json or not sys.stdin.isatty():
        raise ConfigurationError(f"this changes {changes}; where nobody can be asked, say --yes")
    if not typer.confirm(question, err=True):
        raise Declined("nothing was changed")


def person(who: str | None) -> str:
    """Who decides."""
    return who if who is not None else f"{_user()}@{socket.gethostname()}"


def report(screen: Screen, folder: str, decided: Decided, *, done: str, subject: str = "meter event") -> None:
    """Say what became of it; exit with 1 unless all of it was done."""
    screen.document(
        {
            "ledger": folder,
            "done": decided.done,
            "refused": decided.refused,
            "waiting": decided.waiting,
        }
    )
    if decided.done:
        screen.table(_rulings(decided.done, subject))
    screen.say(f"{len(decided.done):,} {done}.", "green" if decided.done else "")
    for ruling in decided.refused:
        screen.say(f"{ruling.subject}: nothing was done, {ruling.refused}.", "yellow")
    if decided.waiting:
        screen.say(
            f"{len(decided.waiting):,} wait for the process that holds them, which has not come to it yet. "
            "The decision is on disk and will be carried out; look again later.",
            "yellow",
        )
    if decided.refused or decided.waiting:
        raise typer.Exit(1)


@overload
def moment_of(text: str, option: str, *, now: float | None = None) -> float: ...


@overload
def moment_of(text: str | None, option: str, *, now: float | None = None) -> float | None: ...


def moment_of(text: str | None, option: str, *, now: float | None = None) -> float | None:
    """Unix seconds from `7d`, `24h`, `2026-11-20` or `2026-11-20T08:00:00Z`; in UTC where no zone is said."""
    if text is None:
        return None
    if ago := _AGO.fullmatch(text.strip()):
        return (time.time() if now is None else now) - int(ago[1]) * _UNITS[ago[2]]
    try:
        # Python 3.10 knows no Z.
        at = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text.strip()))
        return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError) as exc:
        raise ConfigurationError(
            f"{option} {text} is no time; write it like 24h, 7d, 2026-11-20 or 2026-11-20T08:00:00Z (UTC)"
        ) from exc


def _rulings(done: Sequence[Ruling], subject: str) -> Table:
    shown = table(subject, "before", "now", "new meter event")
    for ruling in done:
        row(shown, ruling.subject, ruling.before or "-", ruling.after or "-", ruling.replaced_by)
    return shown


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without a name for its user
        return f"uid {os.getuid()}"
