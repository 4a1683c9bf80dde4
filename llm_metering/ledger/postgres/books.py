"""The books of a PostgreSQL ledger for readers: each answer is of one moment, and no writer waits for it."""

# ruff: noqa: S608  (nothing but names of our own columns is put into SQL; values are bound)
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar

from ...decisions import Pause
from ...errors import LedgerError
from ...protocols import (
    Balance,
    EventHistory,
    EventRow,
    EventSum,
    LedgerStatus,
    Pulse,
    RecordRow,
    State,
    UsageSum,
)
from .. import histories, rows, windows
from ..books import Tally, UsageRow
from ..rulings import WRITTEN_OFF
from . import migrating, staff
from .archiving import Archive
from .connecting import SCHEMA, Db, Link
from .sending import LANE

T = TypeVar("T")

PAUSE = "pause"
"""The name of the small fact that holds a person's pause."""
_BILLABLE = '"freeze" IS NULL AND held IS NULL AND customer IS NOT NULL'
_SET_ASIDE = '"freeze" IS NULL AND (held IS NOT NULL OR customer IS NULL)'
_WAITS = "next_attempt_at IS NOT NULL OR state = 'SENDING'"
_COUNTS = f"""
    SELECT (SELECT count(*) FROM usage),
        (SELECT count(*) FROM usage WHERE {_BILLABLE}) + (SELECT count(*) FROM usage WHERE {_SET_ASIDE}),
        (SELECT count(*) FROM usage WHERE {_SET_ASIDE} AND customer IS NULL),
        (SELECT count(*) FROM usage WHERE {_SET_ASIDE} AND held IS NOT NULL),
        (SELECT count(*) FROM progress),
        (SELECT count(*) FROM meter_event WHERE state = 'DEAD' AND {WRITTEN_OFF})
"""
_OLDEST = f"""
    SELECT least((SELECT min(used_at) FROM usage WHERE {_BILLABLE}),
        (SELECT min(timestamp) FROM meter_event WHERE {_WAITS}))
"""
# What is added and what is taken away apart, so that a customer whose sum is zero is not left out.
_SUMS = """
    SELECT customer, model, "freeze" IS NULL, (line ->> 0)::bigint,
        sum(amount) FILTER (WHERE amount > 0), sum(amount) FILTER (WHERE amount < 0)
    FROM usage CROSS JOIN LATERAL json_array_elements(lines::json) AS l (line)
        CROSS JOIN LATERAL (SELECT (line ->> 1)::numeric AS amount) v
    WHERE amount <> 0 GROUP BY 1, 2, 3, 4
"""
_READINGS = 'SELECT customer, model, used_at, "freeze", lines FROM usage ORDER BY seq'
_EVENT_SUMS = """
    SELECT customer, line_key, state, sum(value) FROM meter_event GROUP BY customer, line_key, state
"""
_ARCHIVED_SUMS = "SELECT customer, model, line_key, added, taken FROM archived_usage_sum"
_ARCHIVED_EVENT_SUMS = "SELECT customer, line_key, state, value FROM archived_event_sum"
_WINDOWS = """
    SELECT customer, event_name, timestamp - timestamp %% %(window_s)s, state, sum(value)
    FROM (
        SELECT customer, event_name, timestamp, state, value FROM meter_event
        UNION ALL SELECT customer, event_name, timestamp, state, value FROM archive_event
    ) e
    WHERE timestamp >= %(since)s AND timestamp < %(until)s
        AND (%(customer)s::text IS NULL OR customer = %(customer)s)
    GROUP BY 1, 2, 3, 4
"""


class PostgresBooks:
    """Reads a ledger, whoever is writing to it. Any thread may use it.

    Args:
        url: Such as "postgresql://metering@db/billing".
        schema: Where its tables are.
        link: The connection, if there is one already.
    """

    def __init__(self, url: str, *, schema: str = SCHEMA, link: Link | None = None) -> None:
        self.url = url
        self.schema = schema
        self._link = Link(url, schema=schema, keep=False) if link is None else link
        self._known = False

    @property
    def place(self) -> str:
        """Where the ledger is, without the password."""
        return self._link.place

    def balances(self) -> list[Balance]:
        return self._read(lambda db: _tally(db, events=True)).balances()

    def usage_sums(self) -> list[UsageSum]:
        return self._read(lambda db: _tally(db, events=False)).usage_sums()

    def pulse(self) -> Pulse:
        return self._read(lambda db: Pulse(_oldest(db), paused(db)))

    def status(self, *, now: float) -> LedgerStatus:
        return self._read(_status)

    def events(
        self,
        *,
        states: Sequence[State] = (),
        limit: int = 100,
        customer: str | None = None,
        since: float | None = None,
    ) -> list[EventRow]:
        def read(db: Db) -> list[EventRow]:
            found = histories.events(db, LANE, states=states, limit=limit, customer=customer, since=since)
            return [row for _, _, row in found]

        return self._read(read)

    def history(self, identifier: str) -> EventHistory | None:
        return self._read(
            lambda db: (
                histories.history(db, LANE, identifier) or histories.history(Archive(db), LANE, identifier)
            )
        )

    def set_aside(
        self,
        which: histories.Aside,
        *,
        limit: int = 100,
        customer: str | None = None,
        since: float | None = None,
    ) -> list[RecordRow]:
        return self._read(
            lambda db: list(histories.set_aside(db, LANE, which, limit=limit, customer=customer, since=since))
        )

    def event_sums(
        self, *, since: float, until: float, window_s: int = 3600, customer: str | None = None
    ) -> list[EventSum]:
        def read(db: Db) -> list[EventSum]:
            sums: dict[tuple[str, str, int], dict[State, Any]] = {}
            _refuse_what_is_on_files(db, since)
            for who, event_name, start, state, value in db.run(
                _WINDOWS, since=since, until=until, window_s=window_s, customer=customer
            ):
                sums.setdefault((who, event_name, start), {})[state] = value
            return [EventSum(*name, values) for name, values in sorted(sums.items())]

        return self._read(read)

    def events_within(
        self, customer: str, event_name: str, *, since: float, until: float, limit: int = 10_000
    ) -> list[EventRow]:
        def read(db: Db) -> list[EventRow]:
            found: list[EventRow] = []
            for where in (db, Archive(db)):
                found += windows.events_within(
                    where, LANE, customer, event_name, since=since, until=until, limit=limit
                )
            return found

        return sorted(self._read(read), key=lambda row: row.event.timestamp, reverse=True)[:limit]

    def unfrozen(self, before: float) -> int:
        """Records from before this moment, Unix seconds, that could be in a meter event and are in none."""
        query = f"SELECT count(*) FROM usage WHERE {_BILLABLE} AND recorded_at < %(before)s"
        return self._read(lambda db: int(db.one(query, before=before)[0]))

    def workers(self) -> list[staff.WorkerRow]:
        """Who records and delivers, those that are gone left out."""
        return self._read(staff.workers)

    def partitions(self) -> list[staff.PartitionRow]:
        """Who sends for which customers, and what waits there."""
        return self._read(staff.partitions)

    def meta(self, name: str) -> str | None:
        return self._read(lambda db: meta(db, name))

    def pause(self) -> Pause | None:
        """A person's pause."""
        return self._read(pause_of)

    def _read(self, read: Callable[[Db], T]) -> T:
        def body(db: Db) -> T:
            if not self._known:
                migrating.check(db, self._link)
            return read(db)

        found = self._link.run(body, isolation="REPEATABLE READ", read_only=True)
        self._known = True
        return found


def meta(db: Db, name: str) -> str | None:
    row = db.run("SELECT value FROM meta WHERE name = %(name)s", name=name).fetchone()
    return None if row is None else str(row[0])


def pause_of(db: Db) -> Pause | None:
    text = meta(db, PAUSE)
    return None if text is None else Pause(**json.loads(text))


def paused(db: Db) -> str | None:
    """Why nothing is sent."""
    pause = pause_of(db)
    return meta(db, "paused") if pause is None else f"by {pause.who}: {pause.why}"


def _oldest(db: Db) -> float | None:
    oldest: float | None = db.one(_OLDEST)[0]
    return oldest


def _status(db: Db) -> LedgerStatus:
    records, unfrozen, unresolved, held, streams, written_off = db.one(_COUNTS)
    counted = db.run("SELECT state, count(*) FROM meter_event GROUP BY state")
    return LedgerStatus(
        usage_records=records,
        unfrozen_records=unfrozen,
        unresolved_records=unresolved,
        held_records=held,
        streams_under_way=streams,
        events=dict(counted.fetchall()),
        oldest_pending_at=_oldest(db),
        conserved=all(balance.conserved for balance in _tally(db, events=True).balances()),
        account=meta(db, "account"),
        lanes=1,
        paused=paused(db),
        paused_by=pause_of(db),
        written_off=written_off,
        doubted_since=doubted_since(db),
        last_trouble=_last_trouble(db),
        **_archived(db),
    )


def _archived(db: Db) -> dict[str, int]:
    found = dict(db.run("SELECT kind, rows FROM archived_rows").fetchall())
    return {"archived_records": found.get("usage", 0), "archived_events": found.get("event", 0)}


def doubted_since(db: Db, mine: Sequence[int] | None = None) -> float | None:
    """When the first ambiguous attempt was of what is sent again, in these partitions, or in all for None."""
    here = "" if mine is None else " AND partition = ANY(%(mine)s::smallint[])"
    since: float | None = db.one(
        f"SELECT min(first_ambiguous_at) FROM meter_event WHERE state IN ('AMBIGUOUS', 'SENDING'){here}",
        mine=list(mine or ()),
    )[0]
    return since


def _last_trouble(db: Db) -> str | None:
    found = db.run(
        "SELECT reason FROM meter_event WHERE next_attempt_at IS NOT NULL AND reason IS NOT NULL "
        "AND attempt_started_at IS NOT NULL ORDER BY attempt_started_at DESC LIMIT 1"
    ).fetchone()
    return None if found is None else str(found[0])


def _tally(db: Db, *, events: bool) -> Tally:
    tally = Tally()
    keys = rows.LineKeys(db)
    (readings,) = db.one("SELECT EXISTS (SELECT 1 FROM line_key WHERE aggregation = 'last')")
    if readings:  # each record counts by its time and freeze
        for customer, model, used_at, freeze, text in db.run(_READINGS):
            lines = rows.lines_of(json.loads(text), keys)
            tally.usage(UsageRow(customer, model, used_at, freeze, lines))
    else:
        for customer, model, unfrozen, number, added, taken in db.run(_SUMS):
            key = keys.key(number)
            parts = [(key, value) for value in (added, taken) if value is not None]
            tally.usage(UsageRow(customer, model, 0.0, None if unfrozen else 1, parts))
    for customer, model, number, added, taken in db.run(_ARCHIVED_SUMS):
        parts = [(keys.key(number), added), (keys.key(number), taken)]
        tally.usage(UsageRow(customer, model, 0.0, 1, parts))
    for query in (_EVENT_SUMS, _ARCHIVED_EVENT_SUMS) if events else ():
        for customer, number, state, value in db.run(query):
            key = keys.key(number)
            tally.event(customer, key.event_name, key.dimensions, state, value)
    return tally


def _refuse_what_is_on_files(db: Db, since: float) -> None:
    (until,) = db.one("SELECT max(until) FROM archived_file WHERE kind = 'event'")
    if until is not None and since < until:
        day = datetime.fromtimestamp(until, timezone.utc)
        raise LedgerError(
            f"meter events from before {day:%Y-%m-%d} were archived to files; ask for what is since then"
        )
