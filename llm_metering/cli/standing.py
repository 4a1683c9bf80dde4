"""`status` and `usage`: what the ledger holds, read while others write to it. Nothing is sent or changed."""

from __future__ import annotations

import csv
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import ConfigurationError, LedgerError
from ..ledger import LedgerView
from ..ledger.outbox import Waiting, waiting_in
from ..ledger.places import view_of
from ..protocols import Balance, LedgerStatus, UsageSum
from ..settings import Settings, is_postgres
from .explaining import explanations
from .options import Json
from .screen import Screen, moment, number, row, table
from .staff import show_team, team

if TYPE_CHECKING:
    from ..ledger.places import View
    from ..ledger.postgres import PostgresBooks

Folder = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        metavar="FOLDER",
        help="The ledger's folder, or postgresql://… (env: LLM_METERING_LEDGER).",
    ),
]


@dataclass(frozen=True, slots=True)
class _Usage:
    """Usage of one customer, model and token type at one meter."""

    customer: str | None
    model: str | None
    token_type: str | None
    event_name: str
    value: Decimal


def status(
    ledger: Folder = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit with 1 if anything waits for a person: paused, in doubt, dead."),
    ] = False,
    lane_folder: Annotated[
        str | None,
        typer.Option(
            "--lane-folder",
            metavar="FOLDER",
            help="With postgresql://…: also what waits on this host (env: LLM_METERING_LANE_FOLDER).",
        ),
    ] = None,
    by_partition: Annotated[
        bool, typer.Option("--partitions", help="Show what waits by partition, too (PostgreSQL).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what is recorded, pending, accepted, in doubt and dead, and whether the books are conserved."""
    folder, view = open_ledger(ledger)
    waiting = _waiting_here(view, lane_folder)
    now = time.time()
    standing, balances, usages = view.status(now=now), view.balances(), _usages(view.usage_sums())
    told = explanations(standing, now)
    screen = Screen(as_json=as_json)
    screen.document(
        {
            "ledger": folder,
            "status": standing,
            "waiting_here": waiting,
            "explanations": told,
            "totals": _totals(balances),
            "balances": [_balance(b) for b in balances],
            "usage": usages,
            **team(view, by_partition=by_partition),
        }
    )
    _show_status(screen, folder, standing, _totals(balances), now)
    if waiting is not None:
        screen.say(f"- {_here(waiting, now)}")
    for each in told:
        screen.say(f"- {each}")
    show_team(screen, view, now, by_partition=by_partition)
    _show_customers(screen, balances)
    _show_usage(screen, usages)
    if not standing.conserved or (check and _needs_a_person(standing)):
        raise typer.Exit(1)


def usage(
    ledger: Folder = None,
    customer: Annotated[str | None, typer.Option("--customer", help="Only this customer's.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
    as_json: Json = False,
) -> None:
    """Show the ledger's usage by customer, model and token type."""
    if as_csv and as_json:
        raise ConfigurationError("--csv and --json exclude each other")
    _, view = open_ledger(ledger)
    usages = [u for u in _usages(view.usage_sums()) if customer in (None, u.customer)]
    if as_csv:
        out = csv.writer(sys.stdout, lineterminator="\n")
        out.writerow(["customer", "model", "token_type", "event_name", "value"])
        out.writerows([u.customer, u.model, u.token_type, u.event_name, format(u.value, "f")] for u in usages)
        return
    screen = Screen(as_json=as_json)
    screen.document({"usage": usages})
    _show_usage(screen, usages)


def open_ledger(ledger: str | None) -> tuple[str, View]:
    """The folder that is meant, or the place of the database, without its password; and its books."""
    folder = ledger or Settings.from_env().ledger
    if is_postgres(folder):
        books = cast("PostgresBooks", view_of(folder))
        return books.place, books
    if folder.startswith("memory:"):
        raise ConfigurationError("a ledger in memory cannot be looked into from outside; name a folder")
    if not Path(folder).is_dir():
        raise LedgerError(
            f"there is no ledger at {folder}; a service makes it at its start. Say where with --ledger"
        )
    return folder, LedgerView(folder)


def _waiting_here(view: View, lane_folder: str | None) -> Waiting | None:
    """What is on its way to a ledger in PostgreSQL from lanes on this host; None where there are none."""
    place = Path(lane_folder or Settings.from_env().lane_folder)
    if lane_folder is not None and not place.is_dir():
        raise LedgerError(f"there are no lanes at {place}; a service with a ledger in PostgreSQL makes them")
    return None if isinstance(view, LedgerView) or not place.is_dir() else waiting_in(place)


def _here(waiting: Waiting, now: float) -> str:
    """In a sentence."""
    told = f"on this host {waiting.records:,} records wait to be forwarded"
    if waiting.records:
        told += f", the oldest of {_age(waiting.since, now)}"
    return f"{told}, and {waiting.kept:,} are kept to be offered again, in {waiting.lanes:,} lanes."


def _usages(sums: Iterable[UsageSum]) -> list[_Usage]:
    """The ledger's sums without dimensions of the user's own, largest first within each customer."""
    added: defaultdict[tuple[str | None, str | None, str | None, str], Decimal] = defaultdict(Decimal)
    for found in sums:
        token_type = dict(found.dimensions).get("token_type")
        added[found.customer, found.model, token_type, found.event_name] += found.value
    usages = [_Usage(*key, value) for key, value in added.items()]
    return sorted(usages, key=lambda u: (u.customer is None, u.customer or "", u.model or "", -u.value))


def _totals(balances: Iterable[Balance]) -> dict[str, Decimal]:
    totals = dict.fromkeys(("recorded", "pending", "accepted", "in_doubt", "dead"), Decimal(0))
    for balance in balances:
        for name in totals:
            totals[name] += getattr(balance, name)
    return totals


def _balance(balance: Balance) -> dict[str, object]:
    names = ("customer", "event_name", "recorded", "pending", "accepted", "in_doubt", "dead", "conserved")
    return {**{n: getattr(balance, n) for n in names}, "dimensions": dict(balance.dimensions)}


def _needs_a_person(standing: LedgerStatus) -> bool:
    stuck = standing.events.get("IN_DOUBT", 0) + standing.events.get("DEAD", 0) - standing.written_off
    return bool(standing.paused or stuck or standing.unresolved_records or standing.held_records)


def _show_status(
    screen: Screen, folder: str, standing: LedgerStatus, totals: dict[str, Decimal], now: float
) -> None:
    facts = table("ledger", folder)
    row(facts, "Stripe account", standing.account or "not bound yet")
    row(facts, "records", number(standing.usage_records))
    row(facts, "  not frozen yet", number(standing.unfrozen_records))
    row(facts, "  unresolved (no customer)", number(standing.unresolved_records))
    row(facts, "  held", number(standing.held_records))
    row(facts, "streams under way", number(standing.streams_under_way))
    row(facts, "meter events", _events(standing))
    row(facts, "  in doubt", _doubt(standing))
    row(facts, "  dead", _dead(standing))
    if standing.archived_records or standing.archived_events:
        archived = f"{number(standing.archived_records)}, {number(standing.archived_events)} meter events"
        row(facts, "archived records", archived)
    row(facts, "oldest pending", _age(standing.oldest_pending_at, now))
    row(facts, "sending", _sending(standing, now))
    row(facts, "decisions not carried out yet", number(standing.decisions_waiting))
    row(facts, "lanes", number(standing.lanes))
    row(facts, "disk free", _size(standing.disk_free_bytes))
    row(facts, "conserved", "yes" if standing.conserved else "NO")
    screen.table(facts)
    numbers = list(totals)
    books = table(*(name.replace("_", " ") for name in numbers), right=[n.replace("_", " ") for n in numbers])
    row(books, *(number(totals[name]) for name in numbers))
    screen.table(books)


def _show_customers(screen: Screen, balances: Iterable[Balance]) -> None:
    by_customer: defaultdict[str | None, list[Balance]] = defaultdict(list)
    for balance in balances:
        by_customer[balance.customer].append(balance)
    names = ["recorded", "pending", "accepted", "in doubt", "dead"]
    books = table("customer", *names, right=names)
    for customer, some in sorted(by_customer.items(), key=lambda item: (item[0] is None, item[0] or "")):
        row(books, customer or "(unresolved)", *(number(n) for n in _totals(some).values()))
    screen.table(books)


def _show_usage(screen: Screen, usages: Iterable[_Usage]) -> None:
    used = table("customer", "model", "token type", "meter", "used", right=["used"])
    for u in usages:
        row(used, u.customer or "(unresolved)", u.model, u.token_type, u.event_name, number(u.value))
    screen.table(used)


def _events(standing: LedgerStatus) -> str:
    return ", ".join(f"{n:,} {state.lower()}" for state, n in standing.events.items() if n) or "none"


def _doubt(standing: LedgerStatus) -> str:
    count = standing.events.get("IN_DOUBT", 0)
    return f"{count:,}; see: llm-metering doubt list" if count else "0"


def _dead(standing: LedgerStatus) -> str:
    count = standing.events.get("DEAD", 0)
    if not standing.written_off:
        return f"{count:,}; see: llm-metering dead list" if count else "0"
    waiting = "; see: llm-metering dead list" if count > standing.written_off else ""
    return f"{count:,}, of which {standing.written_off:,} written off{waiting}"


def _sending(standing: LedgerStatus, now: float) -> str:
    if standing.paused is None:
        return "not paused"
    pause = standing.paused_by
    if pause is None:
        return f"paused: {standing.paused}"
    return f"paused {standing.paused}, {_age(pause.at, now)}; llm-metering resume lifts it"


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:,.1f} GiB"


def _age(at: float | None, now: float) -> str:
    if at is None:
        return "nothing is pending"
    seconds = max(0, int(now - at))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago ({moment(at)})"
    return f"{seconds} s ago ({moment(at)})"
