"""`events` and the lists of `dead`, `doubt`, `unresolved` and `held`: read only, beside the services."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, cast, get_args

import typer

from ..errors import ConfigurationError, LedgerError
from ..protocols import EventHistory, EventRow, RecordRow, State
from .asking import moment_of
from .options import Json
from .screen import Screen, moment, number, row, table
from .standing import Folder, open_ledger

Customer = Annotated[str | None, typer.Option("--customer", help="Only this customer's.")]
Since = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="WHEN", help="Only usage since: 24h, 7d, 2026-11-20, 2026-11-20T08:00:00Z."
    ),
]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]

_STATES: tuple[State, ...] = get_args(State)


def list_events(
    state: Annotated[
        list[str] | None, typer.Option("--state", help="Only in this state; may be repeated.")
    ] = None,
    customer: Customer = None,
    since: Since = None,
    limit: Limit = 100,
    ledger: Folder = None,
    as_json: Json = False,
) -> None:
    """List meter events, the newest first."""
    _list(_states(state or ()), customer, since, limit, ledger, as_json)


def list_dead(
    written_off: Annotated[
        bool, typer.Option("--written-off", help="Show those that were written off, too.")
    ] = False,
    customer: Customer = None,
    since: Since = None,
    limit: Limit = 100,
    ledger: Folder = None,
    as_json: Json = False,
) -> None:
    """List what Stripe refused for good, and why."""
    _list(("DEAD",), customer, since, limit, ledger, as_json, written_off=written_off)


def list_doubt(
    customer: Customer = None,
    since: Since = None,
    limit: Limit = 100,
    ledger: Folder = None,
    as_json: Json = False,
) -> None:
    """List what Stripe may have or not: sent without an answer, and too long ago to be sent again."""
    _list(("IN_DOUBT",), customer, since, limit, ledger, as_json)


def list_unresolved(
    since: Since = None, limit: Limit = 100, ledger: Folder = None, as_json: Json = False
) -> None:
    """List usage without a customer."""
    folder, view = open_ledger(ledger)
    found = view.set_aside("unresolved", limit=limit, since=moment_of(since, "--since"))
    show_records(Screen(as_json=as_json), folder, found, "unresolved")


def list_held(
    customer: Customer = None,
    since: Since = None,
    limit: Limit = 100,
    ledger: Folder = None,
    as_json: Json = False,
) -> None:
    """List usage that is kept out of billing, and why."""
    folder, view = open_ledger(ledger)
    found = view.set_aside("held", limit=limit, customer=customer, since=moment_of(since, "--since"))
    show_records(Screen(as_json=as_json), folder, found, "held")


def show(
    identifier: Annotated[str, typer.Argument(metavar="IDENTIFIER", help="Of a meter event.")],
    ledger: Folder = None,
    as_json: Json = False,
) -> None:
    """Show all that is on record of a meter event: attempts, outcomes, decisions."""
    folder, view = open_ledger(ledger)
    history = view.history(identifier)
    if history is None:
        raise LedgerError(f"no meter event {identifier} in {folder}; see: llm-metering events list")
    screen = Screen(as_json=as_json)
    screen.document({"ledger": folder, "event": event_document(history.row), **_history_document(history)})
    _show_history(screen, history)


def show_events(screen: Screen, found: Sequence[EventRow]) -> None:
    """A table of meter events."""
    shown = table(
        "meter event", "state", "customer", "meter", "value", "used until", "attempts", "reason",
        right=["value", "attempts"],
    )  # fmt: skip
    for each in found:
        e = each.event
        state = "DEAD, written off" if each.written_off else each.state
        used = moment(e.timestamp)
        row(
            shown,
            e.identifier,
            state,
            e.customer,
            e.event_name,
            number(e.value),
            used,
            each.attempts,
            each.reason,
        )
    screen.table(shown)


def show_records(screen: Screen, folder: str, found: Sequence[RecordRow], which: str) -> None:
    """A table of records, or with --json a document."""
    screen.document({"ledger": folder, which: [record_document(each) for each in found]})
    records_table(screen, found)
    screen.say(f"{len(found):,} {which}.")


def records_table(screen: Screen, found: Sequence[RecordRow]) -> None:
    shown = table("record", "customer", "model", "used at", "adds", "held because", right=["adds"])
    for each in found:
        r = each.record
        adds = sum((value for _, value in each.values), Decimal(0))
        row(shown, r.id, r.customer or "(unresolved)", r.model, moment(r.used_at), number(adds), r.held)
    screen.table(shown)


def event_document(each: EventRow) -> dict[str, Any]:
    e = each.event
    return {
        "identifier": e.identifier,
        "state": each.state,
        "written_off": each.written_off,
        "customer": e.customer,
        "event_name": e.event_name,
        "value": e.value,
        "timestamp": e.timestamp,
        "payload": e.payload,
        "attempts": each.attempts,
        "first_ambiguous_at": each.first_ambiguous_at,
        "next_attempt_at": each.next_attempt_at,
        "reason": each.reason,
        "lane": each.lane,
    }


def record_document(each: RecordRow) -> dict[str, Any]:
    r = each.record
    return {
        "id": r.id,
        "customer": r.customer,
        "model": r.model,
        "provider": r.provider,
        "provenance": r.provenance,
        "used_at": r.used_at,
        "recorded_at": each.recorded_at,
        "counts": r.usage.as_dict(),
        "dimensions": r.dimensions,
        "adds": [{"event_name": name, "value": value} for name, value in each.values],
        "held": r.held,
        "lane": each.lane,
    }


def _list(
    states: Sequence[State],
    customer: str | None,
    since: str | None,
    limit: int,
    ledger: str | None,
    as_json: bool,
    *,
    written_off: bool = True,
) -> None:
    folder, view = open_ledger(ledger)
    found = view.events(
        states=states,
        limit=limit if written_off else limit + view.status(now=0.0).written_off,
        customer=customer,
        since=moment_of(since, "--since"),
    )
    found = [each for each in found if written_off or not each.written_off][:limit]
    screen = Screen(as_json=as_json)
    screen.document({"ledger": folder, "events": [event_document(each) for each in found]})
    show_events(screen, found)
    screen.say(f"{len(found):,} meter events{', and perhaps more: --limit' if len(found) == limit else ''}.")


def _states(given: Sequence[str]) -> tuple[State, ...]:
    states = tuple(s.upper().replace("-", "_") for s in given)
    if unknown := set(states) - set(_STATES):
        raise ConfigurationError(
            f"--state {', '.join(sorted(unknown))} is none; a meter event is {', '.join(_STATES)}"
        )
    return cast("tuple[State, ...]", states)


def _history_document(history: EventHistory) -> dict[str, Any]:
    return {
        "frozen_at": history.frozen_at,
        "replaces": history.replaces,
        "replaced_by": history.replaced_by,
        "attempts": history.attempts,
        "actions": history.actions,
    }


def _show_history(screen: Screen, history: EventHistory) -> None:
    show_events(screen, [history.row])
    e = history.row.event
    facts = table("fact", "")
    row(facts, "payload", ", ".join(f"{name}={value}" for name, value in sorted(e.payload.items())))
    row(facts, "frozen", moment(history.frozen_at))
    row(facts, "next attempt", moment(history.row.next_attempt_at) or "none")
    row(facts, "takes the place of", history.replaces or "none")
    row(facts, "its place is taken by", history.replaced_by or "none")
    screen.table(facts)
    attempts = table("attempt", "began", "ended", "outcome", "status", "code", "said", "request")
    for a in history.attempts:
        ended = moment(a.ended_at) or "under way"
        row(
            attempts,
            a.number,
            moment(a.started_at),
            ended,
            a.outcome,
            a.status,
            a.code,
            a.message,
            a.request_id,
        )
    screen.table(attempts)
    actions = table("decided", "by", "what", "why", "before", "after")
    for d in history.actions:
        row(actions, moment(d.at), d.who, d.what, d.why, d.before, d.after)
    screen.table(actions)
