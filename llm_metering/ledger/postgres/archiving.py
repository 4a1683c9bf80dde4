"""Rows that nobody needs every day leave the tables that are at work, in steps of a few thousand.

What may go: meter events of long ago that nothing moves any more, and frozen usage whose events are gone.
Each step is one transaction that moves rows into the archive's months, adds them to the sums that the books
keep, and notes the ids of records: no step changes what is recorded, accepted or known.
"""

# ruff: noqa: S608  (nothing but names of our own columns is put into SQL; values are bound)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from .. import rows, states
from ..rulings import WRITTEN_OFF
from .connecting import Db

LEAST_AGE_S = 40 * states.DAY_S
"""Nothing younger is archived: Stripe takes usage of up to 35 days, and may refuse late what it accepted."""
STEP = 5000
"""The most rows of one transaction."""
TABLES = ("archive_usage", "archive_event", "archive_attempt")
"""By month of the use, or of the event that an attempt is of."""

_ALONE = "SELECT pg_try_advisory_xact_lock(1819045217, hashtext(current_schema()))"
_USAGE = (
    "seq, id, customer, model, provider, provenance, response_id, surface, used_at, counts, dimensions, "
    'lines, recorded_at, "freeze"'
)
_EVENT = (
    'seq, identifier, "freeze", line_key, customer, event_name, value, timestamp, payload, frozen_at, '
    "replaces, state, attempts, fence, attempt_started_at, first_ambiguous_at, next_attempt_at, backoff_s, "
    "reason"
)
_ATTEMPT = "identifier, number, fence, started_at, ended_at, outcome, status, code, message, request_id"
_WINDOW = """
    SELECT max(seq), min(made_at),
        array_agg(DISTINCT to_char(to_timestamp(at) AT TIME ZONE 'UTC', 'YYYY_MM'))
            FILTER (WHERE at >= 0 AND at < %(before)s)
    FROM (
        SELECT seq, {made_at} AS made_at, {at} AS at FROM {table}
        WHERE seq > %(after)s ORDER BY seq LIMIT %(step)s
    ) w
"""
_COUNT = """
    INSERT INTO archived_rows (kind, rows) VALUES (%(kind)s, %(rows)s)
    ON CONFLICT (kind) DO UPDATE SET rows = archived_rows.rows + excluded.rows
"""
# Readings of "last" meters stay: which of them counts shows only beside the others of their freeze.
_READINGS = "SELECT coalesce(array_agg(id), '{}') FROM line_key WHERE aggregation = 'last'"
_MOVE_EVENTS = f"""
    WITH chosen AS (
        SELECT seq FROM meter_event
        WHERE seq > %(after)s AND seq <= %(to)s AND timestamp >= 0 AND timestamp < %(before)s
            AND frozen_at < %(before)s
            AND (state IN ('ACCEPTED', 'SETTLED', 'CLOSED') OR state = 'DEAD' AND {WRITTEN_OFF})
            AND line_key <> ALL(%(readings)s::bigint[])
        ORDER BY seq FOR UPDATE SKIP LOCKED
    ), moved AS (
        DELETE FROM meter_event e USING chosen c WHERE e.seq = c.seq RETURNING e.*
    ), kept AS (
        INSERT INTO archive_event ({_EVENT}) SELECT {_EVENT} FROM moved
    ), tried AS (
        DELETE FROM attempt a USING moved m WHERE a.identifier = m.identifier RETURNING m.timestamp, a.*
    ), kept_attempts AS (
        INSERT INTO archive_attempt (timestamp, {_ATTEMPT}) SELECT timestamp, {_ATTEMPT} FROM tried
    ), summed AS (
        INSERT INTO archived_event_sum AS s (customer, line_key, state, value)
        SELECT customer, line_key, state, sum(value) FROM moved GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (customer, line_key, state) DO UPDATE SET value = s.value + excluded.value
    )
    SELECT count(*) FROM moved
"""
_UNDECIDED = """
    SELECT coalesce(array_agg(DISTINCT "freeze"), '{}') FROM meter_event
    WHERE state IN ('PENDING', 'SENDING', 'AMBIGUOUS', 'IN_DOUBT', 'DEAD') AND timestamp < %(before)s
"""
_MOVE_USAGE = f"""
    WITH chosen AS (
        SELECT seq FROM usage
        WHERE seq > %(after)s AND seq <= %(to)s AND used_at >= 0 AND used_at < %(before)s
            AND recorded_at < %(before)s
            AND "freeze" IS NOT NULL AND "freeze" <> ALL(%(undecided)s::bigint[])
            AND NOT EXISTS (SELECT 1 FROM json_array_elements(lines::json) l (line)
                WHERE (line ->> 0)::bigint = ANY(%(readings)s::bigint[]))
        ORDER BY seq FOR UPDATE SKIP LOCKED
    ), moved AS (
        DELETE FROM usage u USING chosen c WHERE u.seq = c.seq RETURNING u.*
    ), kept AS (
        INSERT INTO archive_usage ({_USAGE}) SELECT {_USAGE} FROM moved
    ), known AS (
        INSERT INTO archived_record (id) SELECT md5(id)::uuid FROM moved ORDER BY 1 ON CONFLICT DO NOTHING
    ), summed AS (
        INSERT INTO archived_usage_sum AS s (customer, model, line_key, added, taken)
        SELECT customer, min(model), (line ->> 0)::bigint, coalesce(sum(amount) FILTER (WHERE amount > 0), 0),
            coalesce(sum(amount) FILTER (WHERE amount < 0), 0)
        FROM moved CROSS JOIN LATERAL json_array_elements(lines::json) AS l (line)
            CROSS JOIN LATERAL (SELECT (line ->> 1)::numeric AS amount) v
        WHERE amount <> 0 GROUP BY customer, coalesce(model, ''), 3 ORDER BY 1, 3, coalesce(min(model), '')
        ON CONFLICT (customer, line_key, coalesce(model, ''))
            DO UPDATE SET added = s.added + excluded.added, taken = s.taken + excluded.taken
    )
    SELECT count(*) FROM moved
"""
# Whoever offers a record again may have seen neither the old row, which was just being moved, nor its id,
# which was just being noted; a statement of its own sees the one or the other.
_FORGET_KNOWN = """
    DELETE FROM usage u USING (
        SELECT i FROM unnest(%(ids)s::text[]) AS g (i)
        WHERE EXISTS (SELECT 1 FROM archived_record a WHERE a.id = md5(i)::uuid)
    ) k WHERE u.id = k.i
"""


@dataclass(slots=True)
class Moved:
    """What was archived so far."""

    events: int = 0
    records: int = 0


class Mover:
    """Goes through the tables once, step by step. `step` works inside a transaction.

    Args:
        before: Unix seconds; what was used, recorded and frozen before may go.
    """

    def __init__(self, before: float, step: int = STEP) -> None:
        self.moved = Moved()
        self.done = False
        self._before = before
        self._size = step
        self._after = 0
        self._events_done = False

    def step(self, db: Db) -> tuple[int, int, bool, bool] | None:
        """Move what may go of the next rows; tell what `advance` is to be told once it is committed. None
        where another process archives just now."""
        if not db.one(_ALONE)[0]:
            return None
        last, made_at, found = self._window(db)
        if last is None or made_at >= self._before:
            return 0, 0, True, self._events_done
        make_months(db, found or ())
        count = self._move(db, last)
        db.run(_COUNT, kind="usage" if self._events_done else "event", rows=count)
        return last, count, False, self._events_done

    def advance(self, told: tuple[int, int, bool, bool]) -> None:
        last, count, over, was_usage = told
        if was_usage:
            self.moved.records += count
        else:
            self.moved.events += count
        self._after = 0 if over else last
        self.done = over and was_usage
        self._events_done = was_usage or over

    def _window(self, db: Db) -> tuple[Any, ...]:
        names = {"table": "meter_event", "made_at": "frozen_at", "at": "timestamp"}
        if self._events_done:
            names = {"table": "usage", "made_at": "recorded_at", "at": "used_at"}
        return db.one(_WINDOW.format(**names), after=self._after, step=self._size, before=self._before)

    def _move(self, db: Db, last: int) -> int:
        (readings,) = db.one(_READINGS)
        span = {"after": self._after, "to": last, "before": self._before, "readings": readings}
        if not self._events_done:
            return int(db.one(_MOVE_EVENTS, **span)[0])
        (undecided,) = db.one(_UNDECIDED, before=self._before)
        return int(db.one(_MOVE_USAGE, **span, undecided=undecided)[0])


def forget_known(db: Db, ids: Any) -> int:
    """Take back those of the records just written that the archive knows; return how many."""
    return db.run(_FORGET_KNOWN, ids=ids).rowcount


def span(month: str) -> tuple[int, int]:
    """Start and end of a month such as "2026_11", in Unix seconds."""
    at = datetime.strptime(month, "%Y_%m").replace(tzinfo=timezone.utc)
    end = at.replace(year=at.year + at.month // 12, month=at.month % 12 + 1)
    return int(at.timestamp()), int(end.timestamp())


def make_months(db: Db, wanted: Sequence[str]) -> None:
    """Make the tables of these months that are not there."""
    names = {f"{table}_{month}": (table, month) for month in wanted for table in TABLES}
    found = db.run(
        "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace "
        "AND relname = ANY(%(names)s::text[])",
        names=list(names),
    )
    there = {name for (name,) in found}
    for name, (table, month) in names.items():
        start, end = span(month)
        if name not in there:
            db.run(f"CREATE TABLE {name} PARTITION OF {table} FOR VALUES FROM ({start}) TO ({end})")


class Archive:
    """The archive to those who read what is at work: the same names, and the archive's rows."""

    def __init__(self, db: Db) -> None:
        self._db = db

    def execute(self, query: str, values: Sequence[Any] = (), /) -> rows.Found:
        for name in ("meter_event", "attempt"):
            query = query.replace(f" {name} ", f" archive_{name.removeprefix('meter_')} ")
        return self._db.execute(query, values)
