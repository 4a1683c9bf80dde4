"""The books of a SQLite ledger for readers: every lane, live or left behind, opened so that it cannot be
written, and never in the way of its writer."""

# ruff: noqa: S608  (nothing but names of our own columns is put into SQL; values are bound)
from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from ..decisions import Decision, Pause, Ruling
from ..errors import LedgerError
from ..protocols import (
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
from . import folder as files
from . import histories, rows, rulings, schema, spool
from .books import Tally, UsageRow
from .forking import GATE
from .windows import Windows, events_within

_BILLABLE = "freeze IS NULL AND held IS NULL AND customer IS NOT NULL"
_SET_ASIDE = "freeze IS NULL AND (held IS NOT NULL OR customer IS NULL)"
_COUNTS = f"""
    SELECT (SELECT count(*) FROM usage),
        (SELECT count(*) FROM usage WHERE {_BILLABLE}),
        (SELECT count(*) FROM usage WHERE {_SET_ASIDE}),
        (SELECT count(*) FROM usage WHERE {_SET_ASIDE} AND customer IS NULL),
        (SELECT count(*) FROM usage WHERE {_SET_ASIDE} AND held IS NOT NULL),
        (SELECT count(*) FROM progress),
        (SELECT min(used_at) FROM usage WHERE {_BILLABLE}),
        (SELECT min(timestamp) FROM meter_event WHERE next_attempt_at IS NOT NULL OR state = 'SENDING'),
        (SELECT count(*) FROM meter_event WHERE state = 'DEAD' AND {rulings.WRITTEN_OFF}),
        (SELECT value FROM meta WHERE name = 'paused')
"""


DOUBTED = "SELECT min(first_ambiguous_at) FROM meter_event WHERE state IN ('AMBIGUOUS', 'SENDING')"
_TROUBLE = """
    SELECT attempt_started_at, reason FROM meter_event
    WHERE state IN ('PENDING', 'AMBIGUOUS') AND reason IS NOT NULL AND attempt_started_at IS NOT NULL
    ORDER BY attempt_started_at DESC LIMIT 1
"""
_PULSE = f"""
    SELECT (SELECT min(used_at) FROM usage WHERE {_BILLABLE}),
        (SELECT min(timestamp) FROM meter_event WHERE next_attempt_at IS NOT NULL),
        (SELECT min(timestamp) FROM meter_event WHERE state = 'SENDING'),
        (SELECT value FROM meta WHERE name = 'paused')
"""
_CHUNK = 10_000


class LedgerView:
    """Reads a ledger's folder, whoever is writing to it.

    Each lane is read in one transaction, so its books are of one moment; lanes are read one after another.

    Args:
        folder: Of the ledger.
        lane: Which lane this process writes to, if it does.
        is_full: Whether the disk was found to be full, and has not recovered.
    """

    def __init__(self, folder: str | os.PathLike[str], *, lane: str = "", is_full: bool = False) -> None:
        self._folder = Path(folder)
        self._lane = lane
        self._is_full = is_full

    @property
    def folder(self) -> Path:
        return self._folder

    def balances(self) -> list[Balance]:
        return self._tally(events=True).balances()

    def usage_sums(self) -> list[UsageSum]:
        return self._tally(events=False).usage_sums()

    def pulse(self) -> Pulse:
        found: list[float] = []
        paused: list[str] = []

        def read(db: sqlite3.Connection, _: str) -> None:
            *times, why = db.execute(_PULSE).fetchone()
            found.extend(at for at in times if at is not None)
            paused.extend([why] if why else [])

        self._each(read)
        pause = spool.pause_of(self._folder)
        why = next(iter(paused), None) if pause is None else f"by {pause.who}: {pause.why}"
        return Pulse(
            min(found, default=None),
            why,
            files.free_bytes(self._folder),
            is_full=self._is_full,
            read_only=bool(self._lane) and not files.takes_writes(self._folder, self._lane),
        )

    def status(self, *, now: float) -> LedgerStatus:
        glance = _Glance()
        self._each(glance.add)
        pause = spool.pause_of(self._folder)
        return LedgerStatus(
            usage_records=glance.counts[0],
            unfrozen_records=glance.counts[1] + glance.counts[2],
            unresolved_records=glance.counts[3],
            held_records=glance.counts[4],
            streams_under_way=glance.counts[5],
            events=glance.events,
            oldest_pending_at=min(glance.oldest, default=None),
            conserved=all(balance.conserved for balance in glance.tally.balances()),
            account=files.bound_account(self._folder),
            lanes=glance.lanes,
            paused=glance.paused if pause is None else f"by {pause.who}: {pause.why}",
            paused_by=pause,
            written_off=glance.written_off,
            decisions_waiting=len(spool.posted(self._folder)),
            disk_free_bytes=files.free_bytes(self._folder),
            doubted_since=min(glance.doubted, default=None),
            last_trouble=max(glance.troubles)[1] if glance.troubles else None,
        )

    def events(
        self,
        *,
        states: Sequence[State] = (),
        limit: int = 100,
        customer: str | None = None,
        since: float | None = None,
    ) -> list[EventRow]:
        found: list[tuple[float, int, EventRow]] = []

        def read(db: sqlite3.Connection, name: str) -> None:
            found.extend(
                histories.events(db, name, states=states, limit=limit, customer=customer, since=since)
            )

        self._each(read)
        found.sort(key=lambda item: item[:2], reverse=True)
        return [row for _, _, row in found[:limit]]

    def history(self, identifier: str) -> EventHistory | None:
        found: list[EventHistory | None] = []
        self._each(lambda db, name: found.append(histories.history(db, name, identifier)))
        return next((each for each in found if each is not None), None)

    def set_aside(
        self,
        which: histories.Aside,
        *,
        limit: int = 100,
        customer: str | None = None,
        since: float | None = None,
    ) -> list[RecordRow]:
        found: list[RecordRow] = []

        def read(db: sqlite3.Connection, name: str) -> None:
            found.extend(histories.set_aside(db, name, which, limit=limit, customer=customer, since=since))

        self._each(read)
        found.sort(key=lambda row: row.record.used_at)
        return found[:limit]

    def pause(self) -> Pause | None:
        """A person's pause."""
        return spool.pause_of(self._folder)

    def answer(self, decision: Decision) -> list[Ruling] | None:
        """What a decision did, None if nobody has carried it out yet."""
        found: list[Ruling] = []

        def read(db: sqlite3.Connection, _: str) -> None:
            found.extend(rulings.answer(db, decision) or ())

        self._each(read)
        return found or None

    def event_sums(
        self, *, since: float, until: float, window_s: int = 3600, customer: str | None = None
    ) -> list[EventSum]:
        windows = Windows(since, until, window_s, customer)
        self._each(lambda db, _: windows.lane(db))
        return windows.sums()

    def events_within(
        self, customer: str, event_name: str, *, since: float, until: float, limit: int = 10_000
    ) -> list[EventRow]:
        found: list[EventRow] = []
        self._each(
            lambda db, name: found.extend(
                events_within(db, name, customer, event_name, since=since, until=until, limit=limit)
            )
        )
        return sorted(found, key=lambda row: row.event.timestamp, reverse=True)[:limit]

    def meta(self, name: str) -> str | None:
        found: list[str] = []

        def read(db: sqlite3.Connection, _: str) -> None:
            found.extend(value for (value,) in db.execute("SELECT value FROM meta WHERE name = ?", (name,)))

        self._each(read)
        return found[0] if found else None

    def _tally(self, *, events: bool) -> Tally:
        tally = Tally()
        self._each(lambda db, name: _add_up(db, name, tally, events=events))
        return tally

    def _each(self, read: Callable[[sqlite3.Connection, str], object]) -> None:
        """Read each lane that is ours to understand, in one transaction of its own."""
        if not self._folder.is_dir():
            raise LedgerError(f"there is no ledger at {self._folder}")
        for name in files.lane_names(self._folder):
            path = files.lane_path(self._folder, name)
            try:
                with GATE, closing(files.read_lane(path)) as db:
                    db.execute("BEGIN")
                    if schema.version_of(db) == schema.VERSION:
                        read(db, name)
            except sqlite3.Error as exc:
                if path.exists():  # else it was set apart while we looked
                    raise LedgerError(f"lane {name} cannot be read: {exc}") from exc


class _Glance:
    """What `status` gathers from lane after lane."""

    def __init__(self) -> None:
        self.counts = [0, 0, 0, 0, 0, 0]
        self.events: dict[State, int] = {}
        self.oldest: list[float] = []
        self.doubted: list[float] = []
        self.troubles: list[tuple[float, str]] = []
        self.written_off = 0
        self.paused: str | None = None
        self.lanes = 0
        self.tally = Tally()

    def add(self, db: sqlite3.Connection, name: str) -> None:
        *counts, unfrozen, waiting, written_off, paused = db.execute(_COUNTS).fetchone()
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.oldest += [at for at in (unfrozen, waiting) if at is not None]
        self.written_off += written_off
        self.paused = self.paused or paused
        for state, count in db.execute("SELECT state, count(*) FROM meter_event GROUP BY state"):
            self.events[state] = self.events.get(state, 0) + count
        self.doubted += [at for (at,) in db.execute(DOUBTED) if at is not None]
        self.troubles += db.execute(_TROUBLE).fetchall()
        _add_up(db, name, self.tally, events=True)
        self.lanes += 1


def _add_up(db: sqlite3.Connection, lane: str, tally: Tally, *, events: bool) -> None:
    keys = rows.LineKeys(db)
    readings = db.execute("SELECT EXISTS (SELECT 1 FROM line_key WHERE aggregation = 'last')").fetchone()
    (_add_readings if readings[0] else _add_sums)(db, lane, tally, keys)
    if events:
        for customer, number, state, value in db.execute(
            "SELECT customer, line_key, state, value FROM meter_event"
        ):
            key = keys.key(number)
            tally.event(customer, key.event_name, key.dimensions, state, rows.value_of(value))


def _add_sums(db: sqlite3.Connection, lane: str, tally: Tally, keys: rows.LineKeys) -> None:
    """Usage where order and time do not matter: gathered by SQLite, some thousand records at a time, since
    every row that is stepped to gives up the interpreter's lock."""
    (last,) = db.execute("SELECT max(seq) FROM usage").fetchone()
    for start in range(0, (last or 0) + 1, _CHUNK):
        for customer, model, unfrozen, texts in db.execute(
            "SELECT customer, model, freeze IS NULL, group_concat(lines) FROM usage "
            "WHERE seq >= ? AND seq < ? GROUP BY customer, model, freeze IS NULL",
            (start, start + _CHUNK),
        ):
            for pairs in json.loads(f"[{texts}]"):
                lines = rows.lines_of(pairs, keys)
                tally.usage(UsageRow(customer, model, 0.0, None if unfrozen else 1, lines), lane)


def _add_readings(db: sqlite3.Connection, lane: str, tally: Tally, keys: rows.LineKeys) -> None:
    """Usage of which a part is for a "last" meter: each record counts by its time and freeze."""
    for customer, model, used_at, freeze, text in db.execute(
        "SELECT customer, model, used_at, freeze, lines FROM usage ORDER BY seq"
    ):
        lines = rows.lines_of(json.loads(text), keys)
        tally.usage(UsageRow(customer, model, used_at, freeze, lines), lane)
