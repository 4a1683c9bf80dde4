"""`ledger migrate` and `ledger restore-mark`: what is done to a shared ledger itself."""

from __future__ import annotations

from ..errors import ConfigurationError
from ..ledger.places import view_of
from ..settings import Settings, is_postgres
from .asking import Reason, Who, Yes, confirm, person
from .options import Json
from .screen import Screen, moment, number
from .standing import Folder


def migrate(ledger: Folder = None, as_json: Json = False) -> None:
    """Make the tables of a ledger in PostgreSQL, or bring them up to this version. May be run again."""
    where = _database(
        ledger,
        "only a ledger in PostgreSQL is migrated by hand: name it with --ledger postgresql://… or in "
        "LLM_METERING_LEDGER; a ledger in a folder is brought up when it is opened",
    )
    from ..ledger.postgres import PostgresBooks, migrate

    taken = migrate(where)
    place = PostgresBooks(where).place
    screen = Screen(as_json=as_json)
    screen.document({"ledger": place, "taken": taken})
    screen.say(f"{place}: {', '.join(taken)}" if taken else f"{place} is up to date; nothing was changed.")


def restore_mark(
    reason: Reason, who: Who = None, yes: Yes = False, ledger: Folder = None, as_json: Json = False
) -> None:
    """Say that a ledger was restored from a backup, before workers run on it: what it has forgotten that it
    sent is not sent again."""
    where = _database(
        ledger,
        "only a ledger in PostgreSQL is marked: name it with --ledger postgresql://… or in "
        "LLM_METERING_LEDGER; a folder that was restored is noticed when it is opened",
    )
    from ..ledger.postgres import PostgresBooks, restore_mark

    place = PostgresBooks(where).place
    screen = Screen(as_json=as_json)
    screen.say(
        f"{place} counts as older than it was: meter events that are not settled are in doubt, usage that "
        "may have been billed is held, and services offer again what they still hold."
    )
    confirm(screen, "Set the mark?", yes=yes)
    marked = restore_mark(where, who=person(who), why=reason)
    since = marked.mark.since
    screen.document({"ledger": place, "since": since, "events": marked.events, "records": marked.records})
    screen.say(
        f"Marked. It knows nothing of what was done after {moment(since)}. {number(marked.events)} meter "
        f"events may have been sent, {number(marked.records)} records are held; see: llm-metering status"
    )


def _database(ledger: str | None, refusal: str) -> str:
    where = ledger or Settings.from_env().ledger
    if not is_postgres(where):
        raise ConfigurationError(refusal)
    view_of(where)  # says what to install, if psycopg is missing
    return where
