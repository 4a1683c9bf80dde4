"""The ledger of a fleet: one PostgreSQL that any number of services record to and any number of workers
deliver from. Needs the extra `postgres`."""

from .books import PostgresBooks
from .ledger import PostgresLedger
from .migrating import migrate

__all__ = ["PostgresBooks", "PostgresLedger", "migrate"]
