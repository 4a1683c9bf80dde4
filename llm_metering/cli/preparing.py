"""`ledger migrate`: makes the tables of a shared ledger, or brings them up to this version."""

from __future__ import annotations

from ..errors import ConfigurationError
from ..ledger.places import view_of
from ..settings import Settings, is_postgres
from .options import Json
from .screen import Screen
from .standing import Folder


def migrate(ledger: Folder = None, as_json: Json = False) -> None:
    """Make the tables of a ledger in PostgreSQL, or bring them up to this version. May be run again."""
    where = ledger or Settings.from_env().ledger
    if not is_postgres(where):
        raise ConfigurationError(
            "only a ledger in PostgreSQL is migrated by hand: name it with --ledger postgresql://… or in "
            "LLM_METERING_LEDGER; a ledger in a folder is brought up when it is opened"
        )
    view_of(where)  # says what to install, if psycopg is missing
    from ..ledger.postgres import PostgresBooks, migrate

    taken = migrate(where)
    place = PostgresBooks(where).place
    screen = Screen(as_json=as_json)
    screen.document({"ledger": place, "taken": taken})
    screen.say(f"{place}: {', '.join(taken)}" if taken else f"{place} is up to date; nothing was changed.")
