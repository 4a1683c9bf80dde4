"""A ledger's database that goes back to a copy of itself, in a twentieth of the time that a server takes.

What a base backup and a promotion are to a server, `CREATE DATABASE … TEMPLATE` is here: all tables and
sequences are those of the copy, and every session ends. Which timeline the server writes, and how far it has
come, are told by us, as a real one would tell them; `test_going_back.py` does the same with real servers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import llm_metering.ledger.postgres.connecting as connecting
import psycopg
import pytest
from llm_metering.ledger.postgres import migrate
from tests.ledger.postgres.cluster import Cluster

_numbers = itertools.count()
_END = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = %s AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


@dataclass(frozen=True)
class Copy:
    database: str
    written: int
    """How far the server had come."""
    at: float
    early: float | None
    """When somebody froze buckets early, as far as it knows."""


class Rewinding:
    """One database of a cluster, and the copies that were taken of it."""

    def __init__(self, cluster: Cluster, template: str) -> None:
        self._db = psycopg.connect(cluster.url(), autocommit=True)
        self._names: list[str] = []
        self._timeline, self._less = 1, 0
        self._name = self._copied(template)
        self.url = cluster.url(self._name)
        self._say()

    def copy(self, now: float) -> Copy:
        return Copy(self._copied(self._name), self._written(), now, self.early())

    def early(self) -> float | None:
        with psycopg.connect(self.url) as db:
            row = db.execute("SELECT value FROM llm_metering.meta WHERE name = 'frozen_early'").fetchone()
        return None if row is None else float(row[0])

    def go_back(self, copy: Copy, *, promoted: bool) -> None:
        """The server is gone; the copy stands in its place, on a timeline of its own if it was promoted."""
        self._drop(self._name)
        self._copied(copy.database, self._name)
        self._timeline += promoted
        self._less += self._written() - copy.written
        self._say()

    def remove(self) -> None:
        for name in list(self._names):
            self._drop(name)
        self._db.close()

    def _written(self) -> int:
        ((at,),) = self._db.execute("SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint").fetchall()
        return int(at) - self._less

    def _say(self) -> None:
        """Where the server is in its history, for each transaction that looks."""
        written = f"(pg_current_wal_flush_lsn() - '0/0')::bigint - {self._less}"
        connecting._PLACE = f"'{self._timeline:08X}', {written}, 0.0"

    def _copied(self, database: str, name: str | None = None) -> str:
        name = name or f"rewinding{next(_numbers)}"
        self._db.execute(_END, (database,))
        self._db.execute(f"CREATE DATABASE {name} TEMPLATE {database}".encode())
        self._names.append(name)
        return name

    def _drop(self, name: str) -> None:
        self._db.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        self._names.remove(name)


@contextmanager
def template(cluster: Cluster) -> Iterator[str]:
    """The name of a database with the tables of a ledger, to make others from; meanwhile the server has the
    slot of a standby, by which a ledger knows that one may take over."""
    url = cluster.new_database()
    migrate(url)
    slot = url.partition("?")[0].rpartition("/")[2]
    cluster.execute(f"SELECT pg_create_physical_replication_slot('{slot}')")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(connecting, "_PLACE", connecting._PLACE)
        yield slot
    cluster.execute(f"SELECT pg_drop_replication_slot('{slot}')")
