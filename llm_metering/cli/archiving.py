"""`ledger archive`: old rows leave the tables that are at work, and whole months become files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from .options import Json
from .screen import Screen, number
from .staff import postgres_books
from .standing import Folder, open_ledger

_LEAST_DAYS = 40

OlderThan = Annotated[
    str,
    typer.Option(
        "--older-than", metavar="DAYS", help=f"Such as 90d, or 90; at least {_LEAST_DAYS}: Stripe takes 35."
    ),
]
To = Annotated[
    Path | None,
    typer.Option(
        "--to", metavar="DIR", help="Write months that are wholly older to files there, and drop them."
    ),
]


def archive(older_than: OlderThan, to: To = None, ledger: Folder = None, as_json: Json = False) -> None:
    """Move what nobody moves any more out of the tables of a ledger in PostgreSQL that are at work."""
    older_than_s = _days(older_than) * 86_400.0
    place, view = open_ledger(ledger)
    books = postgres_books(view)
    from ..ledger.postgres.shelving import Archivist

    archivist = Archivist(books.url, schema=books.schema)
    try:
        moved = archivist.archive(older_than_s)
        files = [] if to is None else archivist.shelve(to, older_than_s)
    finally:
        archivist.close()
    screen = Screen(as_json=as_json)
    screen.document({"ledger": place, "archived": moved, "files": files})
    screen.say(f"{number(moved.records)} records and {number(moved.events)} meter events were archived.")
    for shelved in files:
        screen.say(f"{shelved.file}: {number(shelved.rows)} rows of {shelved.month}, no more in the database")


def _days(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,5})d?", text.strip())
    if found is None or int(found[1]) < _LEAST_DAYS:
        raise ConfigurationError(
            f"--older-than {text} must be days such as 90d, and at least {_LEAST_DAYS}: Stripe takes usage "
            "of up to 35 days, and what is younger may be needed"
        )
    return int(found[1])
