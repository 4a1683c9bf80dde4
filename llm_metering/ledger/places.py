"""Which ledger a text names: a folder of this host, or a PostgreSQL database that a fleet shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..settings import is_postgres
from .desk import Desk
from .sqlite import SqliteLedger
from .view import LedgerView

if TYPE_CHECKING:
    from typing import TypeAlias

    from .postgres import PostgresBooks, PostgresDesk, PostgresLedger

    View: TypeAlias = LedgerView | PostgresBooks


def view_of(where: str) -> View:
    """The books, for readers.

    Raises:
        MissingExtra: It is a database, and psycopg is not installed.
    """
    if not is_postgres(where):
        return LedgerView(where)
    from .postgres import PostgresBooks

    return PostgresBooks(where)


def unfrozen_elsewhere(view: View, before: float) -> int:
    """Records from before this moment, Unix seconds, that are in no meter event because another worker holds
    their customers: one that works makes an event of them soon, one that is gone loses them within a minute.

    On one host there are none: a lane is its process's own while that lives, and free at once after it.
    """
    return 0 if isinstance(view, LedgerView) else view.unfrozen(before)


def desk_of(view: View, wait_s: float) -> Desk | PostgresDesk:
    """Where decisions about this ledger are handed in."""
    if isinstance(view, LedgerView):
        return Desk(view.folder, wait_s=wait_s)
    from .postgres import PostgresDesk

    return PostgresDesk(view)


def worker_of(view: View, rounds_s: float, archive_after_s: float = 0.0) -> SqliteLedger | PostgresLedger:
    """The ledger, for a process that delivers from it what others record, looking every so often."""
    if isinstance(view, LedgerView):
        # Lanes are let go on purpose here, so none need be left to those who start.
        return SqliteLedger(view.folder, adopt_after_s=0)
    from .postgres import PostgresLedger

    return PostgresLedger(view.url, schema=view.schema, rounds_s=rounds_s, archive_after_s=archive_after_s)
