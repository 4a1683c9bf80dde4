"""Who works on a ledger that a fleet shares: shown by `status`, and moved by `ledger partition`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigurationError, LedgerError
from ..ledger.view import LedgerView
from .screen import Screen, moment, number, row, table

if TYPE_CHECKING:
    from ..ledger.places import View
    from ..ledger.postgres import PostgresBooks
    from ..ledger.postgres.staff import PartitionRow, WorkerRow


def team(view: View, *, by_partition: bool) -> dict[str, object]:
    """What `status --json` says of it; nothing of a ledger on one host."""
    if isinstance(view, LedgerView):
        return {}
    shown: dict[str, object] = {"workers": view.workers()}
    return {**shown, "partitions": view.partitions()} if by_partition else shown


def show_team(screen: Screen, view: View, now: float, *, by_partition: bool) -> None:
    if isinstance(view, LedgerView):
        return
    _show_workers(screen, view.workers(), now)
    if by_partition:
        show_partitions(screen, view.partitions(), now)


def show_partitions(screen: Screen, rows: list[PartitionRow], now: float) -> None:
    counts = ["not frozen", "pending", "sending"]
    shown = table("partition", "worker", "fence", "lease", *counts, "oldest", right=["fence", *counts])
    for p in rows:
        left = "-" if p.lease_until is None else f"{p.lease_until - now:.0f} s"
        who = "-" if p.worker is None else f"{p.worker[:8]} {p.host or ''}"
        oldest = "-" if p.oldest_pending_at is None else moment(p.oldest_pending_at)
        waits = (number(p.unfrozen_records), number(p.pending), number(p.sending))
        row(shown, str(p.number), who, str(p.fence), left, *waits, oldest)
    screen.table(shown)


def _show_workers(screen: Screen, rows: list[WorkerRow], now: float) -> None:
    shown = table("worker", "host", "pid", "last seen", "delivers", "partitions", right=["pid", "partitions"])
    for w in rows:
        seen = f"{max(now - w.seen_at, 0):.0f} s ago"
        row(shown, w.id, w.host, str(w.pid), seen, "yes" if w.delivers else "no", number(len(w.partitions)))
    screen.table(shown)


def postgres_books(view: View) -> PostgresBooks:
    """The books of a ledger that a fleet shares; refused for one in a folder."""
    if isinstance(view, LedgerView):
        raise ConfigurationError(
            "only a ledger in PostgreSQL has this: name it with --ledger postgresql://… or in "
            "LLM_METERING_LEDGER"
        )
    return view


def moved(view: View, which: int, to: str | None, wait_s: float) -> None:
    """Hand a partition over, once nothing of it is being sent.

    Raises:
        LedgerError: That cannot be, or not in time.
    """
    from ..ledger.postgres import PostgresDesk

    desk, deadline = PostgresDesk(postgres_books(view)), time.monotonic() + wait_s
    while (why := desk.give_partition(which, to)) is not None:
        if "being sent" not in why or time.monotonic() >= deadline:
            raise LedgerError(f"partition {which} stays where it is: {why}")
        time.sleep(0.2)


Number = Annotated[int | None, typer.Argument(help="The partition that is meant; all are shown without.")]
Release = Annotated[
    bool, typer.Option("--release", help="Take it from its holder; a worker that is short of one takes it.")
]
To = Annotated[str | None, typer.Option("--to", help="Let this worker have it.", metavar="WORKER")]
Wait = Annotated[
    float,
    typer.Option(
        "--wait", metavar="SECONDS", min=0, help="How long to wait until nothing of it is being sent."
    ),
]


def checked(which: int | None, release: bool, to: str | None) -> None:
    if release and to is not None:
        raise ConfigurationError("--release and --to exclude each other")
    if (release or to is not None) and which is None:
        raise ConfigurationError("say which partition: llm-metering ledger partition NUMBER --release")
