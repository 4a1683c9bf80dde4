"""`ledger partition`: which worker sends for which customers, and how to move them by hand."""

from __future__ import annotations

import time

from ..errors import ConfigurationError
from .options import Json
from .screen import Screen
from .staff import Number, Release, To, Wait, checked, moved, postgres_books, show_partitions
from .standing import Folder, open_ledger


def partition(
    which: Number = None,
    release: Release = False,
    to: To = None,
    wait: Wait = 15.0,
    ledger: Folder = None,
    as_json: Json = False,
) -> None:
    """Show the partitions of a ledger in PostgreSQL, and let another worker have one."""
    checked(which, release, to)
    place, view = open_ledger(ledger)
    books = postgres_books(view)
    if which is not None and (release or to is not None):
        moved(view, which, to, wait)
    found = [p for p in books.partitions() if which in (None, p.number)]
    if not found:
        raise ConfigurationError(f"there is no partition {which}: they are numbered from 0 to 63")
    screen = Screen(as_json=as_json)
    screen.document({"ledger": place, "partitions": found})
    show_partitions(screen, found, time.time())
