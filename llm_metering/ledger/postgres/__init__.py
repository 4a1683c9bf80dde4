"""The ledger of a fleet: one PostgreSQL that any number of services record to and any number of workers
deliver from. Needs the extra `postgres`."""

from .books import PostgresBooks
from .desk import PostgresDesk
from .ledger import PostgresLedger
from .marks import restore_mark
from .migrating import migrate

__all__ = ["PostgresBooks", "PostgresDesk", "PostgresLedger", "migrate", "restore_mark"]
