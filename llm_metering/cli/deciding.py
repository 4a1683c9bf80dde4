"""What only a person can decide: replay, write off, settle a doubt, assign, release, pause.

Each command shows what it is about to do and asks; each decision is kept with who, when and why.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from .. import customers
from ..decisions import What
from ..errors import ConfigurationError, LedgerError
from ..ledger.desk import Decided
from ..ledger.places import desk_of
from ..ledger.states import HORIZON_S
from ..protocols import EventRow, RecordRow, State
from .asking import WAIT, Reason, Wait, Who, Yes, confirm, person, report
from .looking import records_table, show_events
from .options import Json
from .screen import Screen, moment, number
from .standing import Folder, open_ledger

if TYPE_CHECKING:
    from ..ledger.places import View

_ALL = 1_000_000
Identifiers = Annotated[
    list[str] | None, typer.Argument(metavar="[IDENTIFIER]...", help="Of meter events; see the list.")
]
Records = Annotated[
    list[str] | None, typer.Argument(metavar="[RECORD]...", help="Ids of records; see the list.")
]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


def replay(
    reason: Reason,
    identifiers: Identifiers = None,
    everything: All = False,
    who: Who = None,
    yes: Yes = False,
    wait: Wait = WAIT,
    ledger: Folder = None,
    as_json: Json = False,
) -> None:
    """Send dead meter events again, each as a new one that takes its place. Harmless when run twice."""
    screen, folder, view = _begin(reason, ledger, as_json)
    found = _dead(view, folder, identifiers or (), everything)
    if not found:
        return _nothing(screen, folder, "dead")
    _show(screen, found, "to be replayed: a new one of the same value and time takes the place of each")
    confirm(screen, f"Replay {len(found):,} meter events?", yes=yes)
    decided = _decide(view, "replay", found, who, reason, wait)
    return report(screen, folder, decided, done="replayed")


def write_off(
    reason: Reason,
    identifiers: Identifiers = None,
    everything: All = False,
    who: Who = None,
    yes: Yes = False,
    wait: Wait = WAIT,
    ledger: Folder = None,
    as_json: Json = False,
) -> None:
    """Give dead meter events up: they stay in the books as dead, and nobody is reminded of them."""
    screen, folder, view = _begin(reason, ledger, as_json)
    found = _dead(view, folder, identifiers or (), everything)
    if not found:
        return _nothing(screen, folder, "dead")
    _show(screen, found, "to be written off: this usage will never be billed")
    confirm(screen, f"Write off {len(found):,} meter events?", yes=yes)
    decided = _decide(view, "write_off", found, who, reason, wait)
    return report(screen, folder, decided, done="written off")


def resolve(
    identifier: Annotated[str, typer.Argument(metavar="IDENTIFIER", help="Of a meter event in doubt.")],
    reason: Reason,
    arrived: Annotated[
        bool | None, typer.Option("--arrived/--not-arrived", help="Whether Stripe has counted it.")
    ] = None,
    who: Who = None,
    yes: Yes = False,
    wait: Wait = WAIT,
    ledger: Folder = None,
    as_json: Json = False,
) -> None:
    """Settle a doubt by a person's word: it arrived, or it did not and is sent as a new meter event."""
    if arrived is None:
        raise ConfigurationError("say whether Stripe has counted it: --arrived or --not-arrived")
    screen, folder, view = _begin(reason, ledger, as_json)
    found = _named(view, folder, [identifier])
    _show(
        screen,
        found,
        "taken as billed by Stripe: it will not be sent again"
        if arrived
        else "taken as not billed: a new meter event of the same value takes its place. If Stripe has "
        "counted the old one after all, the customer is billed twice",
    )
    confirm(screen, "Settle it so?", yes=yes)
    decided = _decide(view, "arrived" if arrived else "not_arrived", found, who, reason, wait)
    return report(screen, folder, decided, done="settled")


def assign(
    customer: Annotated[str, typer.Option("--customer", help="Stripe customer id: who is billed.")],
    reason: Reason,
    records: Records = None,
    ids: Annotated[
        str | None, typer.Option("--ids", metavar="A,B,…", help="The same, separated by commas.")
    ] = None,
    everything: All = False,
    who: Who = None,
    yes: Yes = False,
    wait: Wait = WAIT,
    ledger: Folder = None,
    as_json: Json = False,
) -> None:
    """Name the customer of usage that has none. Usage that has one is never moved."""
    try:
        customers.checked(customer)
    except ValueError as exc:
        raise ConfigurationError(f"--customer {customer!r} cannot be billed: {exc}") from exc
    screen, folder, view = _begin(reason, ledger, as_json)
    named = [*(records or ()), *(i.strip() for i in (ids or "").split(",") if i.strip())]
    found = _records(view, "unresolved", named, everything)
    if not found:
        return _nothing(screen, folder, "unresolved")
    _show_records(screen, found, f"to be billed to {customer}")
    confirm(screen, f"Assign {len(found):,} records to {customer}?", yes=yes)
    decided = desk_of(view, wait).decide(
        "assign",
        _by_lane([(r.lane, r.record.id) for r in found]),
        who=person(who),
        why=reason,
        customer=customer,
    )
    return report(screen, folder, decided, done=f"assigned to {customer}", subject="record")


def release(
    reason: Reason,
    records: Records = None,
    everything: All = False,
    who: Who = None,
    yes: Yes = False,
    wait: Wait = WAIT,
    ledger: Folder = None,
    as_json: Json = False,
) -> None:
    """Let usage be billed that was kept out of billing."""
    screen, folder, view = _begin(reason, ledger, as_json)
    found = _records(view, "held", records or (), everything)
    if not found:
        return _nothing(screen, folder, "held")
    _show_records(screen, found, "to be billed as they stand")
    confirm(screen, f"Release {len(found):,} records?", yes=yes)
    by_lane = _by_lane([(each.lane, each.record.id) for each in found])
    decided = desk_of(view, wait).decide("release", by_lane, who=person(who), why=reason)
    return report(screen, folder, decided, done="released", subject="record")


def pause(
    reason: Reason,
    who: Who = None,
    yes: Yes = False,
    wait: Wait = WAIT,
    ledger: Folder = None,
    as_json: Json = False,
) -> None:
    """Send nothing to Stripe, from any process on this ledger, until `resume`. Usage is recorded as ever."""
    screen, folder, view = _begin(reason, ledger, as_json)
    screen.say(f"Nothing that is in {folder} will be sent to Stripe until: llm-metering resume")
    standing = view.status(now=time.time())
    if standing.doubted_since is not None:
        until = standing.doubted_since + HORIZON_S
        count = standing.events.get("AMBIGUOUS", 0) + standing.events.get("SENDING", 0)
        screen.say(
            f"Stripe may have {count:,} of its meter events. They can be sent again until {moment(until)}; "
            "if the pause lasts longer they fall in doubt, for Stripe's sums or a person to decide.",
            "yellow",
        )
    confirm(screen, "Pause sending?", yes=yes)
    _told(screen, folder, view, desk_of(view, wait).pause(who=person(who), why=reason), "Sending is paused.")


def resume(
    reason: Reason = "no reason given",
    who: Who = None,
    yes: Yes = False,
    wait: Wait = WAIT,
    ledger: Folder = None,
    as_json: Json = False,
) -> None:
    """Lift a pause that a person made. What the key is paused for is lifted by a good key alone."""
    screen, folder, view = _begin(reason, ledger, as_json)
    standing = view.pause()
    if standing is None:
        screen.document({"ledger": folder, "paused": False, "changed": False, "on_record": True})
        screen.say("No person has paused sending; nothing was changed.")
        return
    screen.say(f"Sending was paused by {standing.who}: {standing.why}")
    confirm(screen, "Resume sending?", yes=yes)
    _told(screen, folder, view, desk_of(view, wait).resume(who=person(who), why=reason), "Sending goes on.")


# Underneath.


def _begin(reason: str, ledger: str | None, as_json: bool) -> tuple[Screen, str, View]:
    if not reason.strip() or not reason.isprintable():
        raise ConfigurationError("--reason must say why, on one line")
    folder, view = open_ledger(ledger)
    return Screen(as_json=as_json), folder, view


def _decide(
    view: View, what: What, found: Sequence[EventRow], who: str | None, why: str, wait_s: float
) -> Decided:
    by_lane = _by_lane([(each.lane, each.event.identifier) for each in found])
    return desk_of(view, wait_s).decide(what, by_lane, who=person(who), why=why)


def _by_lane(places: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    by_lane: dict[str, list[str]] = {}
    for lane, name in places:
        by_lane.setdefault(lane, []).append(name)
    return by_lane


def _dead(view: View, folder: str, names: Sequence[str], everything: bool) -> list[EventRow]:
    if bool(names) == everything:
        raise ConfigurationError("name meter events, or say --all")
    if names:
        return _named(view, folder, names)
    states: tuple[State, ...] = ("DEAD",)
    return [each for each in view.events(states=states, limit=_ALL) if not each.written_off]


def _named(view: View, folder: str, names: Sequence[str]) -> list[EventRow]:
    found = []
    for name in dict.fromkeys(names):
        history = view.history(name)
        if history is None:
            raise LedgerError(f"no meter event {name} in {folder}; nothing was changed")
        found.append(history.row)
    return found


def _records(view: View, which: str, names: Sequence[str], everything: bool) -> list[RecordRow]:
    if bool(names) == everything:
        raise ConfigurationError("name records, or say --all")
    aside = view.set_aside("unresolved" if which == "unresolved" else "held", limit=_ALL)
    if everything:
        return aside
    by_id = {each.record.id: each for each in aside}
    if missing := [name for name in names if name not in by_id]:
        raise LedgerError(f"{', '.join(missing[:5])}: no such {which} record; nothing was changed")
    return [by_id[name] for name in dict.fromkeys(names)]


def _show(screen: Screen, found: Sequence[EventRow], what: str) -> None:
    show_events(screen, found)
    total = number(sum((each.event.value for each in found), Decimal(0)))
    screen.say(f"{len(found):,} meter events, {total} in all, {what}.")


def _show_records(screen: Screen, found: Sequence[RecordRow], what: str) -> None:
    records_table(screen, found)
    total = number(sum((value for each in found for _, value in each.values), Decimal(0)))
    screen.say(f"{len(found):,} records, {total} in all, {what}.")


def _nothing(screen: Screen, folder: str, what: str) -> None:
    screen.document({"ledger": folder, "done": [], "refused": [], "waiting": []})
    screen.say(f"Nothing is {what}; nothing was changed.")


def _told(screen: Screen, folder: str, view: View, decided: Decided, sentence: str) -> None:
    """A pause is in force at once; the row that says who made it may follow."""
    paused = view.pause() is not None
    screen.document({"ledger": folder, "paused": paused, "changed": True, "on_record": not decided.waiting})
    screen.say(sentence, "green")
    if decided.waiting:
        screen.say(
            "It is in force; the process that holds the ledger will put it on record with its next round."
        )
