"""Reads what can still be read of a damaged lane into a fresh one, and says what could not.

Rows keep their ids, identifiers and numbers, so that doing it twice changes nothing. Afterwards the books
are made to balance: usage whose meter event is gone gets one IN_DOUBT, since nobody knows whether it was
sent; a meter event whose usage is gone is proof of it, and the usage is written down again without its
details. The damaged file is only read, as a copy.
"""

# ruff: noqa: S608  (nothing but names of our own tables and columns is put into SQL; values are bound)
from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Any, get_args

from ..protocols import State
from . import homes, migrating, rows, schema, suspicion
from .freezing import Draft, meter_event
from .lines import LineKey, Value, add, plain

_MAX_FAILED_READS = 20_000
_FAR = 2**40
_RECORD = f"seq, {rows.RECORD}, freeze"
_EVENT = (
    "seq, identifier, freeze, line_key, customer, event_name, value, timestamp, payload, frozen_at, "
    "replaces, state, attempts, fence, lease_until, attempt_started_at, first_ambiguous_at, "
    "next_attempt_at, backoff_s, reason"
)
_KEY = "id, event_name, dimensions, customer_key, value_key, aggregation"
_STATES = frozenset(get_args(State))
_NOT_KEPT = frozenset(("name", "gaps"))


@dataclass(slots=True)
class Salvaged:
    """What came out of a damaged lane."""

    records: int = 0
    events: int = 0
    lost_records: int = 0
    lost_events: int = 0
    """At least; what stood behind the last one that can be read is not known."""
    rewritten_records: int = 0
    """Usage that only its meter event shows."""
    doubted_events: int = 0
    """Meter events made anew, in doubt, for usage that had been frozen."""
    unsure_records: int = 0
    """Held, since table and index do not agree whether they were billed."""
    kept: suspicion.Kept | None = None
    """What does not go out by itself, because the lane forgot what it sent."""
    unreadable: list[str] = field(default_factory=list)
    """Tables of which a part cannot be read."""

    def __str__(self) -> str:
        said = (
            f"{self.records} records and {self.events} meter events were salvaged, {self.lost_records} "
            f"records and {self.lost_events} meter events are lost"
        )
        if self.rewritten_records or self.doubted_events:
            said += (
                f"; {self.rewritten_records} records are known by their meter events alone, and "
                f"{self.doubted_events} meter events were made anew, in doubt"
            )
        if self.unsure_records:
            said += f"; {self.unsure_records} records are held, since they may have been billed"
        if self.kept:
            said += (
                f"; {self.kept.records} records are held and {self.kept.events} meter events are in doubt, "
                "since it is not known whether they were sent"
            )
        return said


def salvage(
    damaged: Path,
    fresh: Path,
    *,
    records: int,
    sends: tuple[int, int],
    noted_home: homes.Home | None,
    new_id: Callable[[], str],
    now: float,
) -> Salvaged:
    """Build `fresh`, a sound lane, from what is readable of `damaged`.

    Args:
        records: How many records it held, by the mark beside it.
        sends: How many freezes and attempts it held, by the mark beside it.
        noted_home: Where it was at home, by the note beside it.
    """
    import shutil  # it loads compression, and salvage is rare

    scratch = fresh.with_name(f"{fresh.name}.scratch")
    for ending in ("", "-wal", "-shm"):
        Path(f"{fresh}{ending}").unlink(missing_ok=True)
        Path(f"{scratch}{ending}").unlink(missing_ok=True)
    try:
        for ending in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{damaged}{ending}", f"{scratch}{ending}")
        with closing(sqlite3.connect(fresh, isolation_level=None)) as db:
            fresh.chmod(0o600)
            db.execute("PRAGMA synchronous = FULL")
            schema.create(db)
            found = _Reader(scratch, records).read_into(db)
            db.execute("BEGIN IMMEDIATE")
            _balance(db, found, new_id, now)
            _judge(db, found, damaged, sends, noted_home, now)
            db.execute("COMMIT")
        return found
    finally:
        for ending in ("", "-wal", "-shm", "-journal"):
            Path(f"{scratch}{ending}").unlink(missing_ok=True)


class _Reader:
    """Reads the tables of a damaged file, round the places that cannot be read."""

    def __init__(self, scratch: Path, records: int) -> None:
        self._scratch = scratch
        self._records = records
        self._failed = 0
        self.found = Salvaged()

    def read_into(self, db: sqlite3.Connection) -> Salvaged:
        try:
            source = sqlite3.connect(self._scratch, isolation_level=None)
        except sqlite3.Error:
            source = sqlite3.connect(":memory:")
        with closing(source):
            # Bytes that are no text come out as such, and are refused below.
            source.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            with suppress(sqlite3.Error):
                source.execute("PRAGMA journal_mode = WAL").fetchone()
                migrating.bring_up(source)
            db.execute("BEGIN IMMEDIATE")
            self._copy(source, db)
            db.execute("COMMIT")
        return self.found

    def _copy(self, source: sqlite3.Connection, db: sqlite3.Connection) -> None:
        keys = {row[0]: row for row in self._line_keys(source)}
        _insert(db, "line_key", _KEY, keys.values())
        freezes = self._rows(source, "freeze", "id", "id, bucket, bucket_s, records, frozen_at")
        _insert(db, "freeze", "id, bucket, bucket_s, records, frozen_at", freezes)
        top = self._records
        billable = self._billable(source)
        records = [
            self._checked(r, billable)
            for r in self._rows(source, "usage", "seq", _RECORD, top)
            if _is_record(r[1:], keys, r[14])
        ]
        self.found.records = _insert(db, "usage", _RECORD, records)
        seqs = [r[0] for r in records]
        self.found.lost_records = max(top, self._top(source, "usage"), *seqs, 0) - self.found.records
        named = self._named(source)
        events = [
            r
            for r in self._rows(source, "meter_event", "seq", _EVENT)
            if _is_event(r, keys) and named.get(r[0], r[1]) == r[1]
        ]
        self.found.events = _insert(db, "meter_event", _EVENT, events)
        last = max(self._top(source, "meter_event"), *(r[0] for r in events), 0)
        self.found.lost_events = last - self.found.events
        streams = [r for r in self._whole(source, "progress", rows.RECORD) if _is_record(r, keys, None)]
        _insert(db, "progress", rows.RECORD, streams)
        self._copy_notes(source, db)
        db.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('gaps', ?)", (str(_gaps(db)),))

    def _copy_notes(self, source: sqlite3.Connection, db: sqlite3.Connection) -> None:
        columns = (
            "identifier, number, fence, started_at, ended_at, outcome, status, code, message, request_id"
        )
        _insert(db, "attempt", columns, self._whole(source, "attempt", columns))
        columns = "seq, at, who, why, what, subject, before, after"
        _insert(db, "action", columns, self._whole(source, "action", columns))
        notes = self._whole(source, "meta", "name, value")
        _insert(db, "meta", "name, value", [(n, v) for n, v in notes if n not in _NOT_KEPT])

    def _billable(self, source: sqlite3.Connection) -> set[int]:
        """Usage that was not frozen, by the index that says so."""
        query = "SELECT seq FROM usage INDEXED BY usage_billable WHERE freeze IS NULL AND held IS NULL "
        found: set[int] = set()
        with suppress(sqlite3.Error):
            for (seq,) in source.execute(f"{query} AND customer IS NOT NULL"):
                found.add(seq)
        return found

    def _checked(self, row: tuple[Any, ...], billable: set[int]) -> tuple[Any, ...]:
        """A row that says it is not frozen while the index does not may have been billed."""
        is_billable = row[14] is None and row[12] is None and row[2] is not None
        if not is_billable or row[0] in billable:
            return row
        self.found.unsure_records += 1
        return (*row[:12], f"{suspicion.FORGETFUL}: perhaps it was billed", *row[13:])

    def _named(self, source: sqlite3.Connection) -> dict[int, str]:
        """The identifiers of meter events, by their index: a changed one would be sent as a new event."""
        found: dict[int, str] = {}
        with suppress(sqlite3.Error, UnicodeError):
            found.update(
                source.execute(
                    "SELECT seq, identifier FROM meter_event INDEXED BY sqlite_autoindex_meter_event_1"
                )
            )
        return found

    def _line_keys(self, source: sqlite3.Connection) -> list[tuple[Any, ...]]:
        """Few rows that all usage hangs on; their index holds them a second time."""
        found = {row[0]: row for row in self._rows(source, "line_key", "id", _KEY)}
        with suppress(sqlite3.Error):
            for row in source.execute(f"SELECT {_KEY} FROM line_key INDEXED BY sqlite_autoindex_line_key_1"):
                found.setdefault(row[0], row)
        return [row for row in found.values() if _is_key(row)]

    def _rows(
        self, source: sqlite3.Connection, table: str, key: str, columns: str, top: int = 0
    ) -> list[tuple[Any, ...]]:
        """All rows that can be read, by halving what cannot."""
        found: list[tuple[Any, ...]] = []
        top = max(top, self._top(source, table)) or _FAR
        left = [(0, top + 1)]
        while left and self._failed < _MAX_FAILED_READS:
            start, end = left.pop()
            some: list[tuple[Any, ...]] = []
            try:
                query = f"SELECT {columns} FROM {table} WHERE {key} >= ? AND {key} < ? ORDER BY {key}"
                for row in source.execute(query, (start, end)):
                    some.append(row)  # noqa: PERF402  (what came before an error is good)
            except (sqlite3.Error, UnicodeError, OverflowError):
                self._failed += 1
                self._note_unreadable(table)
                if some and isinstance(some[-1][0], int):
                    start = max(start, some[-1][0] + 1)
                if end - start > 1:
                    middle = (start + end) // 2
                    left += [(middle, end), (start, middle)]
            found += some
        return list({row[0]: row for row in found}.values())

    def _whole(self, source: sqlite3.Connection, table: str, columns: str) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        try:
            for row in source.execute(f"SELECT {columns} FROM {table}"):
                found.append(row)  # noqa: PERF402
        except (sqlite3.Error, UnicodeError):
            self._note_unreadable(table)
        return found

    def _top(self, source: sqlite3.Connection, table: str) -> int:
        key = "id" if table in ("line_key", "freeze") else "seq"
        with suppress(sqlite3.Error):
            (top,) = source.execute(f"SELECT max({key}) FROM {table}").fetchone()
            if isinstance(top, int) and 0 <= top < _FAR:
                return top
        return 0

    def _note_unreadable(self, table: str) -> None:
        if table not in self.found.unreadable:
            self.found.unreadable.append(table)


def _insert(db: sqlite3.Connection, table: str, columns: str, values: Any) -> int:
    marks = ",".join("?" * len(columns.split(",")))
    before = db.total_changes
    query = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"
    for row in values:
        with suppress(sqlite3.Error, UnicodeError, OverflowError):
            db.execute(query, row)
    return db.total_changes - before


def _gaps(db: sqlite3.Connection) -> int:
    there, last = db.execute("SELECT count(*), coalesce(max(seq), 0) FROM usage").fetchone()
    return int(last) - int(there)


# ---- is it what it says?


def _is_key(row: Sequence[Any]) -> bool:
    with suppress(ValueError, TypeError, LookupError):
        pairs = json.loads(row[2])
        texts = (row[1], row[3], row[4])
        return (
            all(isinstance(t, str) for t in texts)
            and all(isinstance(n, str) and isinstance(v, str) for n, v in pairs)
            and row[5] in ("sum", "count", "last")
        )
    return False


def _is_record(row: Sequence[Any], keys: Any, freeze: object) -> bool:
    """Whether the columns of `rows.RECORD` hold a record."""
    with suppress(ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
        rows.record_of(row)
        pairs = json.loads(row[10])
        return (
            isinstance(row[0], str)
            and isinstance(row[1], (str, type(None)))
            and isinstance(row[7], (int, float))
            and isfinite(row[7])
            and isinstance(row[11], (str, type(None)))
            and isinstance(freeze, (int, type(None)))
            and all(n in keys and (type(v) is int or Decimal(v).is_finite()) for n, v in pairs)
        )
    return False


def _is_event(row: Sequence[Any], keys: Any) -> bool:
    with suppress(ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
        payload = json.loads(row[8])
        return (
            isinstance(row[1], str)
            and row[3] in keys
            and isinstance(row[4], str)
            and row[5] == keys[row[3]][1]
            and Decimal(row[6]).is_finite()
            and isinstance(row[7], int)
            and payload[keys[row[3]][3]] == row[4]
            and payload[keys[row[3]][4]] == row[6]
            and row[11] in _STATES
            and isinstance(row[12], int)
            and isinstance(row[13], int)
            and all(isinstance(t, (int, float, type(None))) for t in (row[9], *row[14:19]))
        )
    return False


# ---- the books


@dataclass(slots=True)
class _Side:
    """One customer's usage of one key in one freeze, or the meter events of it."""

    value: Value = 0
    count: int = 0
    at: float = 0.0


_Place = tuple[int, str, int]
"""A freeze, a customer and the number of a line key."""


def _balance(db: sqlite3.Connection, found: Salvaged, new_id: Callable[[], str], now: float) -> None:
    """Whatever was frozen stands on both sides of the books."""
    keys = rows.LineKeys(db)
    used, sent = _used(db, keys), _sent(db, keys)
    for place in sorted(used.keys() | sent.keys()):
        u, e, key = used.get(place, _Side()), sent.get(place, _Side()), keys.key(place[2])
        if key.aggregation != "last":
            missing = add(u.value, -e.value)
        elif not e.count:
            missing = u.value
        else:  # the latest reading is what was sent; where it is not there, its usage is gone
            missing = 0 if u.value == e.value else -e.value
        if missing > 0:
            count = max(u.count - e.count, 1) if key.aggregation == "count" else 1
            found.doubted_events += _doubt(db, place, key, missing, count, u.at, new_id, now)
        elif missing < 0:
            _rewrite(db, place, key, -missing, max(u.at, e.at), new_id, now)
            found.rewritten_records += 1


def _used(db: sqlite3.Connection, keys: rows.LineKeys) -> dict[_Place, _Side]:
    sides: dict[_Place, _Side] = defaultdict(_Side)
    for customer, freeze, used_at, text in db.execute(
        "SELECT customer, freeze, used_at, lines FROM usage WHERE freeze IS NOT NULL ORDER BY seq"
    ):
        for number, raw in json.loads(text):
            value: Value = raw if type(raw) is int else Decimal(raw)
            _put(sides[freeze, customer, number], keys.key(number), value, used_at)
    return sides


def _sent(db: sqlite3.Connection, keys: rows.LineKeys) -> dict[_Place, _Side]:
    sides: dict[_Place, _Side] = defaultdict(_Side)
    for customer, freeze, number, value, at in db.execute(
        "SELECT customer, freeze, line_key, value, timestamp FROM meter_event WHERE state != 'CLOSED' "
        "ORDER BY seq"
    ):
        _put(sides[freeze, customer, number], keys.key(number), rows.value_of(value), at)
    return sides


def _put(side: _Side, key: LineKey, value: Value, at: float) -> None:
    side.count += 1
    if key.aggregation != "last":
        side.value = add(side.value, value)
    elif at >= side.at:
        side.value = value
    side.at = max(side.at, at)


def _doubt(
    db: sqlite3.Connection,
    place: _Place,
    key: LineKey,
    value: Value,
    count: int,
    at: float,
    new_id: Callable[[], str],
    now: float,
) -> int:
    """The meter event of this usage is gone: perhaps it was sent."""
    freeze, customer, number = place
    parts: list[Value] = [1] * (count - 1)
    parts.append(add(value, -(count - 1)))
    for part in parts:
        event = meter_event(Draft(customer, key, part, at), new_id(), now=now)
        db.execute(
            "INSERT INTO meter_event (identifier, freeze, line_key, customer, event_name, value, timestamp, "
            "payload, frozen_at, first_ambiguous_at, state, reason) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                event.identifier, freeze, number, customer, key.event_name, plain(part), event.timestamp,
                rows.payload_json(event), now, now, "IN_DOUBT",
                f"{suspicion.FORGETFUL}: its meter event cannot be read; perhaps it was sent",
            ),
        )  # fmt: skip
    return count


def _rewrite(
    db: sqlite3.Connection,
    place: _Place,
    key: LineKey,
    value: Value,
    at: float,
    new_id: Callable[[], str],
    now: float,
) -> None:
    """The usage behind this meter event is gone: write down what the event shows of it."""
    freeze, customer, number = place
    text = str(value) if type(value) is int else f'"{plain(value)}"'
    model = dict(key.dimensions).get("model")
    db.execute(
        f"INSERT INTO usage ({rows.RECORD}, freeze) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            f"salvaged-{new_id()}", customer, model, None, "partial", None, "record", at, "{}",
            json.dumps(dict(key.dimensions)), f"[[{number},{text}]]", None, now, freeze,
        ),
    )  # fmt: skip


# ---- may it go on by itself?


def _judge(
    db: sqlite3.Connection,
    found: Salvaged,
    damaged: Path,
    sends: tuple[int, int],
    noted_home: homes.Home | None,
    now: float,
) -> None:
    row = db.execute("SELECT value FROM meta WHERE name = 'home'").fetchone()
    db.execute("DELETE FROM meta WHERE name = 'home'")
    home = homes.from_json(row[0]) if row else noted_home
    here = homes.home_of(damaged, homes.this_machine())
    copied = home is None or here.is_copy_of(home)
    freezes, tries = db.execute(
        "SELECT max(coalesce((SELECT max(id) FROM freeze), 0), "
        "coalesce((SELECT max(freeze) FROM usage), 0)), "
        "(SELECT coalesce(sum(attempts), 0) FROM meter_event)"
    ).fetchone()
    forgot = freezes < sends[0] or tries < sends[1]
    if copied or forgot or {"meter_event", "freeze"} & set(found.unreadable):
        why = suspicion.COPIED if copied else suspicion.FORGETFUL
        why += ": it is not known what of it was sent"
        found.kept = suspicion.suspect(db, damaged.name, why, now=now)


def salvaged_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Salvaged lanes that a crash kept from taking the place of the damaged ones."""
    for path in sorted(folder.glob("salvaged-*.db")):
        if path.is_file() and not path.is_symlink():
            yield path.name[len("salvaged-") : -len(".db")], path
