"""Where everything is kept: accounts, documents, meter events and remembered answers, in one SQLite file.

One connection, used under one lock. Documents are Stripe's objects as JSON; keys that begin with an
underscore are the sandbox's own and never leave it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Doc = dict[str, Any]
Dump = dict[str, list[tuple[Any, ...]]]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS account (
  n INTEGER PRIMARY KEY, id TEXT NOT NULL, livemode INTEGER NOT NULL, UNIQUE (id, livemode));
CREATE TABLE IF NOT EXISTS document (
  seq INTEGER PRIMARY KEY, account INTEGER NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL,
  owner TEXT NOT NULL, alias TEXT NOT NULL, clock TEXT NOT NULL, due INTEGER, body TEXT NOT NULL,
  UNIQUE (account, kind, id));
CREATE INDEX IF NOT EXISTS document_kind ON document (account, kind, seq);
CREATE INDEX IF NOT EXISTS document_owner ON document (account, kind, owner);
CREATE INDEX IF NOT EXISTS document_alias ON document (account, kind, alias) WHERE alias <> '';
CREATE INDEX IF NOT EXISTS document_due ON document (account, clock, due) WHERE due IS NOT NULL;
CREATE TABLE IF NOT EXISTS meter_event (
  seq INTEGER PRIMARY KEY, account INTEGER NOT NULL, identifier TEXT NOT NULL, event_name TEXT NOT NULL,
  payload TEXT NOT NULL, timestamp INTEGER NOT NULL, received REAL NOT NULL, due REAL NOT NULL,
  via TEXT NOT NULL, state TEXT NOT NULL, error TEXT, meter TEXT, customer TEXT, value TEXT,
  judged REAL, reported INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS meter_event_identifier ON meter_event (account, identifier, received);
CREATE INDEX IF NOT EXISTS meter_event_waiting ON meter_event (account, due) WHERE state = 'waiting';
CREATE INDEX IF NOT EXISTS meter_event_usage ON meter_event (account, meter, customer, timestamp)
  WHERE state = 'counted';
CREATE INDEX IF NOT EXISTS meter_event_unreported ON meter_event (account)
  WHERE state = 'refused' AND reported = 0;
CREATE TABLE IF NOT EXISTS delivery (
  n INTEGER PRIMARY KEY, account INTEGER NOT NULL, endpoint TEXT NOT NULL, event TEXT NOT NULL,
  url TEXT NOT NULL, secret TEXT NOT NULL, body TEXT NOT NULL, due REAL NOT NULL,
  attempts INTEGER NOT NULL, state TEXT NOT NULL, status INTEGER);
CREATE INDEX IF NOT EXISTS delivery_waiting ON delivery (due) WHERE state = 'waiting';
CREATE TABLE IF NOT EXISTS answer (
  account INTEGER NOT NULL, key TEXT NOT NULL, path TEXT NOT NULL, form BLOB NOT NULL,
  status INTEGER NOT NULL, body BLOB NOT NULL, request TEXT NOT NULL, until REAL NOT NULL,
  PRIMARY KEY (account, key)) WITHOUT ROWID;
"""
_TABLES = ("account", "document", "meter_event", "delivery", "answer")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Account:
    """One side (test or live) of one Stripe account. Nothing is shared between two of them."""

    n: int
    id: str
    livemode: bool


class Store:
    """The sandbox's memory. `path=None` keeps it in memory only."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.lock = threading.RLock()
        self.db = sqlite3.connect(
            ":memory:" if path is None else str(path),
            timeout=0.5,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._open(path)
        except BaseException:
            self.db.close()
            raise

    def close(self) -> None:
        with self.lock:
            self.db.close()

    def _open(self, path: str | Path | None) -> None:
        if path is not None:
            # Another sandbox on the same file would not see this one's clock or running keys.
            self.db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=NORMAL")
            # Each checkpoint waits for the disk; at 40 MB they are rare enough not to be noticed.
            self.db.execute("PRAGMA wal_autocheckpoint=10000")
        version = self.db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise ValueError(f"{path} was written by another version of the sandbox; take a new file")
        self.db.executescript(_SCHEMA)
        self.db.execute(f"PRAGMA user_version={_VERSION}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. The lock is held throughout, so requests are carried out one by one."""
        with self.lock:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Inside a transaction: whatever is changed in here is taken back at the end."""
        self.db.execute("SAVEPOINT undone")
        try:
            yield
        finally:
            self.db.execute("ROLLBACK TO undone")
            self.db.execute("RELEASE undone")

    def forget_everything(self) -> None:
        with self.transaction():
            for table in _TABLES:
                self.db.execute(f"DELETE FROM {table}")  # noqa: S608 -- names from a constant

    def dump(self) -> Dump:
        """Everything that is kept, for `load`."""
        with self.lock:
            return {
                table: self.db.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608
                for table in _TABLES
            }

    def load(self, dump: Dump) -> None:
        """Put back what `dump` gave, and nothing else."""
        with self.transaction():
            for table in _TABLES:
                self.db.execute(f"DELETE FROM {table}")  # noqa: S608
                for row in dump[table]:
                    holes = ",".join("?" * len(row))
                    self.db.execute(f"INSERT INTO {table} VALUES ({holes})", row)  # noqa: S608

    def account(self, id: str, livemode: bool) -> Account:
        """The account of that id and mode, made when it is first seen."""
        row = self.db.execute("SELECT n FROM account WHERE id=? AND livemode=?", (id, livemode)).fetchone()
        if row is None:
            cursor = self.db.execute("INSERT INTO account (id, livemode) VALUES (?, ?)", (id, livemode))
            row = (cursor.lastrowid,)
        return Account(row[0], id, livemode)

    def accounts(self) -> list[Account]:
        rows = self.db.execute("SELECT n, id, livemode FROM account ORDER BY n").fetchall()
        return [Account(n, id, bool(live)) for n, id, live in rows]  # noqa: A001

    def documents(self) -> int:
        """How many documents there are."""
        count: int = self.db.execute("SELECT COUNT(*) FROM document").fetchone()[0]
        return count

    def insert(
        self,
        account: Account,
        doc: Doc,
        *,
        owner: str = "",
        alias: str = "",
        clock: str = "",
        due: int | None = None,
    ) -> None:
        """Keep a new document. `owner` and `alias` are what it can be found by; `due` is when something is
        to happen to it, on the test clock `clock` or in real time."""
        self.db.execute(
            "INSERT INTO document (account, kind, id, owner, alias, clock, due, body) "
            "VALUES (?,?,?,?,?,?,?,?)",
            (account.n, doc["object"], doc["id"], owner, alias, clock, due, json.dumps(doc)),
        )

    def save(self, account: Account, doc: Doc) -> None:
        """Keep a document's new state."""
        self.db.execute(
            "UPDATE document SET body=? WHERE account=? AND kind=? AND id=?",
            (json.dumps(doc), account.n, doc["object"], doc["id"]),
        )

    def set_alias(self, account: Account, doc: Doc, alias: str) -> None:
        self.db.execute(
            "UPDATE document SET alias=? WHERE account=? AND kind=? AND id=?",
            (alias, account.n, doc["object"], doc["id"]),
        )

    def set_due(self, account: Account, doc: Doc, due: int | None) -> None:
        self.db.execute(
            "UPDATE document SET due=? WHERE account=? AND kind=? AND id=?",
            (due, account.n, doc["object"], doc["id"]),
        )

    def remove(self, account: Account, doc: Doc) -> None:
        self.db.execute(
            "DELETE FROM document WHERE account=? AND kind=? AND id=?", (account.n, doc["object"], doc["id"])
        )

    def get(self, account: Account, kind: str, id: str) -> Doc | None:
        row = self.db.execute(
            "SELECT body FROM document WHERE account=? AND kind=? AND id=?", (account.n, kind, id)
        ).fetchone()
        return None if row is None else json.loads(row[0])

    def clock_of(self, account: Account, customer: str) -> str:
        """The test clock of a customer, empty for none; without reading the document."""
        row = self.db.execute(
            "SELECT clock FROM document WHERE account=? AND kind='customer' AND id=?", (account.n, customer)
        ).fetchone()
        return "" if row is None else row[0]

    def by_alias(self, account: Account, kind: str, alias: str) -> Doc | None:
        row = self.db.execute(
            "SELECT body FROM document WHERE account=? AND kind=? AND alias=? AND alias <> ''",
            (account.n, kind, alias),
        ).fetchone()
        return None if row is None else json.loads(row[0])

    def owned(self, account: Account, kind: str, owner: str) -> list[Doc]:
        """Documents of one owner, oldest first."""
        rows = self.db.execute(
            "SELECT body FROM document WHERE account=? AND kind=? AND owner=? ORDER BY seq",
            (account.n, kind, owner),
        ).fetchall()
        return [json.loads(body) for (body,) in rows]

    def newest_first(self, account: Account, kind: str, *, after: str | None = None) -> Iterator[Doc]:
        """Documents of a kind, newest first; `after` starts below that id."""
        return self._walk(account, kind, "<", "DESC", after)

    def oldest_first(self, account: Account, kind: str, *, after: str | None = None) -> Iterator[Doc]:
        return self._walk(account, kind, ">", "ASC", after)

    def next_due(self, account: Account, clock: str, until: int) -> tuple[Doc, int] | None:
        """The document to which something happens first, not later than `until`, and when."""
        row = self.db.execute(
            "SELECT body, due FROM document WHERE account=? AND clock=? AND due<=? ORDER BY due, seq LIMIT 1",
            (account.n, clock, until),
        ).fetchone()
        return None if row is None else (json.loads(row[0]), row[1])

    def on_clock(self, account: Account, clock: str) -> list[Doc]:
        """Everything that lives on a test clock."""
        rows = self.db.execute(
            "SELECT body FROM document WHERE account=? AND clock=? ORDER BY seq", (account.n, clock)
        ).fetchall()
        return [json.loads(body) for (body,) in rows]

    def _walk(self, account: Account, kind: str, side: str, order: str, after: str | None) -> Iterator[Doc]:
        edge = 2**62 if side == "<" else 0
        if after is not None:
            edge = self.db.execute(
                "SELECT seq FROM document WHERE account=? AND kind=? AND id=?", (account.n, kind, after)
            ).fetchone()[0]
        while True:
            rows = self.db.execute(
                f"SELECT seq, body FROM document WHERE account=? AND kind=? AND seq {side} ? "  # noqa: S608
                f"ORDER BY seq {order} LIMIT 200",
                (account.n, kind, edge),
            ).fetchall()
            for seq, body in rows:
                yield json.loads(body)
                edge = seq
            if len(rows) < 200:
                return
