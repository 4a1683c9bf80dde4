"""One connection to PostgreSQL, and transactions on it that leave nothing behind in the session.

Each transaction says for itself how it is isolated and where its tables are, nothing is prepared, and no lock
outlives it; so the server may be reached through a pooler that gives each transaction another session.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from threading import RLock
from typing import Any, Literal, TypeVar

from ...errors import ConfigurationError, LedgerError, LedgerFull, LedgerUnreachable, MissingExtra

try:
    import psycopg
except ImportError as exc:  # pragma: no cover - the extra is installed where tests run
    raise MissingExtra("psycopg", "postgres") from exc

from psycopg import conninfo, errors
from psycopg.pq import TransactionStatus

T = TypeVar("T")

Connection = psycopg.Connection[tuple[Any, ...]]
Isolation = Literal["READ COMMITTED", "REPEATABLE READ"]

SCHEMA = "llm_metering"
# A server that vanished without a word is noticed within half a minute, not after hours.
_DEFAULTS: Mapping[str, Any] = {
    "application_name": "llm_metering",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
TRIES = 10
"""How often a transaction that others disturbed is run before it is given up."""

_TIME = "SELECT extract(epoch FROM clock_timestamp())::float8"
_PLACE = """
    CASE WHEN pg_is_in_recovery() THEN NULL ELSE left(pg_walfile_name(pg_current_wal_flush_lsn()), 8) END,
    CASE WHEN pg_is_in_recovery() THEN NULL ELSE (pg_current_wal_flush_lsn() - '0/0')::bigint END,
    extract(epoch FROM pg_postmaster_start_time())::float8
"""
"""The timeline that the server writes, how far it has written durably, and since when it runs. A server that
is restored, or a standby that took over, shows by one of the first two that it is not where it was."""
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_DISTURBED = (errors.SerializationFailure, errors.DeadlockDetected)
_FULL = (errors.DiskFull, errors.InsufficientResources)
_BAD_VALUE = (
    errors.DataError,
    errors.IntegrityError,
    errors.ProgramLimitExceeded,  # such as an id that no index takes
    UnicodeEncodeError,
)


class Db:
    """The transaction under way. Outside of one it can do nothing."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.began_at = 0.0
        """The server's clock when the transaction began."""
        self.session = 0
        """Which connection this is, counted from 1."""
        self.timeline: str | None = None
        """Of the server, where the link watches for it."""
        self.written = 0
        """How far it had written durably, in bytes."""
        self.up_since = 0.0
        """When it was started, by its own clock."""

    def execute(self, query: str, values: Sequence[Any] = (), /) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run what is spelled for both databases, with `?` where values go."""
        return self._connection().execute(_respelled(query), values or None)

    def run(self, query: str, /, **values: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run what is spelled for PostgreSQL, with `%(name)s` where values go."""
        return self._connection().execute(query.encode(), values or None)

    def one(self, query: str, /, **values: Any) -> tuple[Any, ...]:
        """As `run`, for what always has one row."""
        (row,) = self.run(query, **values).fetchall()
        return row

    def copied(self, query: str) -> Iterator[bytes]:
        """What a `COPY … TO STDOUT` says, piece by piece."""
        with self._connection().cursor() as cursor, cursor.copy(query.encode()) as copy:
            yield from map(bytes, copy)

    def clock(self) -> float:
        """The server's clock, now."""
        return float(self.one(_TIME)[0])

    def _connection(self) -> Connection:
        if self.connection is None:
            raise LedgerError("the ledger is not open")
        return self.connection


class Link:
    """A connection that is made when it is first needed, and made anew when it is lost.

    Args:
        url: As libpq takes it, such as "postgresql://metering@db/billing".
        schema: Where the tables are.
        keep: Keep the connection for the next transaction.
    """

    def __init__(self, url: str, *, schema: str = SCHEMA, keep: bool = True) -> None:
        if not _NAME.fullmatch(schema):
            raise ConfigurationError(f"schema={schema!r} must be a plain lower-case name, such as {SCHEMA!r}")
        self._given = _parsed(url)
        self.place = _place(self._given)
        """Where it is, without the password."""
        self.schema = schema
        self.keep = keep
        self.watches = False
        """Whether each transaction looks where the server is in its own history."""
        self.db = Db()
        self._lock = RLock()
        self._idle: Connection | None = None
        self._pid = os.getpid()
        self._of_the_parent: list[Connection] = []

    def run(
        self,
        body: Callable[[Db], T],
        *,
        isolation: Isolation = "READ COMMITTED",
        read_only: bool = False,
        first: str = "",
    ) -> T:
        """Run `body` in one transaction; once more if others disturbed it, so it must bear that.

        Args:
            first: Statements that begin the transaction, each ended by a semicolon.

        Raises:
            LedgerError: The server failed. What was to be committed may be, where the answer was lost.
            ValueError: A value cannot be stored.
        """
        how = f"{isolation}{' READ ONLY' if read_only else ''}"
        asked = f"{_TIME}, {_PLACE}" if self.watches else f"{_TIME}, NULL, 0, 0"
        begin = (
            f"BEGIN ISOLATION LEVEL {how}; SET LOCAL search_path TO {self.schema}; {first} {asked}".encode()
        )
        with self._lock, self._translated():
            tries_left = TRIES
            while True:
                tries_left -= 1
                try:
                    return self._run_once(body, begin)
                except _DISTURBED:
                    if not tries_left:
                        raise

    def can_watch(self) -> bool:
        """Whether the server tells where it is; some that are no PostgreSQL underneath do not."""
        try:
            self.run(lambda db: db.run(f"SELECT {_PLACE}"), read_only=True)
        except LedgerUnreachable:
            raise
        except LedgerError:
            return False
        return True

    def close(self) -> None:
        with self._lock:
            if (connection := self._taken()) is not None:
                _close(connection)

    def _run_once(self, body: Callable[[Db], T], begin: bytes) -> T:
        connection = self._begun(begin)
        self.db.connection = connection
        try:
            done = body(self.db)
            if (said := connection.execute(b"COMMIT").statusmessage) != "COMMIT":
                raise LedgerError(f"{self.place} answered {said} to COMMIT")  # it had failed, unnoticed
        except BaseException:
            self.db.connection = None
            self._roll_back(connection)
            raise
        self.db.connection = None
        self._put_back(connection)
        return done

    def _begun(self, begin: bytes) -> Connection:
        """A connection on which a transaction has begun. An idle one may have been cut off meanwhile."""
        connection = self._taken()
        if connection is not None:
            try:
                return self._begin(connection, begin)
            except psycopg.OperationalError:
                pass  # and nothing was done on it
        connection = psycopg.connect(**self._given, autocommit=True, prepare_threshold=None)
        self.db.session += 1
        return self._begin(connection, begin)

    def _begin(self, connection: Connection, begin: bytes) -> Connection:
        db = self.db
        try:
            cursor = connection.execute(begin)
            while cursor.nextset():
                pass
            ((db.began_at, db.timeline, db.written, db.up_since),) = cursor.fetchall()
        except BaseException:
            _close(connection)
            raise
        return connection

    def _taken(self) -> Connection | None:
        connection, self._idle = self._idle, None
        if self._pid != os.getpid():
            self._pid = os.getpid()
            if connection is not None:
                self._of_the_parent.append(connection)  # closing it would end the parent's session
            return None
        return connection

    def _roll_back(self, connection: Connection) -> None:
        if connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            with suppress(psycopg.Error):
                connection.execute(b"ROLLBACK")
                self._put_back(connection)
                return
        _close(connection)

    def _put_back(self, connection: Connection) -> None:
        if self.keep:
            self._idle = connection
        else:
            connection.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Where the store fails, say so in our own words; what cannot be stored stays the caller's error."""
        try:
            yield
        except _BAD_VALUE as exc:
            raise ValueError(f"cannot be stored: {exc}") from exc
        except _FULL as exc:
            raise LedgerFull(f"the ledger at {self.place} has no room: {_said(exc)}") from exc
        except errors.InsufficientPrivilege as exc:
            raise LedgerError(f"the ledger at {self.place} does not let us: {_said(exc)}") from exc
        except psycopg.OperationalError as exc:
            raise LedgerUnreachable(f"the ledger at {self.place} failed: {_said(exc)}") from exc
        except psycopg.Error as exc:
            raise LedgerError(f"the ledger at {self.place} failed: {_said(exc)}") from exc


def _close(connection: Connection) -> None:
    with suppress(psycopg.Error):
        connection.close()


def _said(exc: BaseException) -> str:
    return " ".join(str(exc).split())


@lru_cache(maxsize=256)
def _respelled(query: str) -> bytes:
    # FREEZE is a word of PostgreSQL's own.
    return re.sub(r"\bfreeze\b", '"freeze"', query.replace("?", "%s")).encode()


def _parsed(url: str) -> dict[str, Any]:
    try:
        given: dict[str, Any] = dict(conninfo.conninfo_to_dict(url))
    except psycopg.ProgrammingError as exc:
        raise ConfigurationError(f"the ledger's URL cannot be read: {_said(exc)}") from None
    return {**_DEFAULTS, **given}


def _place(given: Mapping[str, Any]) -> str:
    host, port = given.get("host") or "localhost", given.get("port")
    return f"postgresql://{host}{f':{port}' if port else ''}/{given.get('dbname') or ''}"
