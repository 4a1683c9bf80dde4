"""Records and meter events as rows, and back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Protocol, cast

from .._values import maker
from ..protocols import Entry, EventRow, State
from ..usage import LEAVES, Line, MeterEvent, Usage, UsageRecord
from .freezing import LATEST
from .lines import LineKey, Value, checked, clean, key_of, plain
from .states import Standing

Row = tuple[Any, ...]
Lines = Sequence[tuple[LineKey, Value]]

RECORD = (
    "id, customer, model, provider, provenance, response_id, surface, used_at, counts, dimensions, lines, "
    "held, recorded_at"
)
"""The columns that usage and progress share."""

EVENT = (
    "identifier, event_name, customer, value, timestamp, payload, state, attempts, attempt_started_at, "
    "first_ambiguous_at, next_attempt_at, backoff_s, reason, fence"
)

_Key = tuple[str, tuple[tuple[str, str], ...], str, str, str]
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode
_key_of: Callable[[Line], _Key] = attrgetter(
    "event_name", "dimensions", "customer_key", "value_key", "aggregation"
)
_meter_event = maker(MeterEvent)
_MAX_CACHED = 4096
STEP = 64
"""The most rows of one step: 64 of 13 columns stay below the 999 parameters of older SQLites."""
_SIZES = (STEP, 32, 16, 8, 4, 2, 1)


class Found(Protocol):
    """Rows, as a database gives them."""

    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Db(Protocol):
    """A transaction of whichever database: what is spelled for both of them is written once, with `?` where
    values go."""

    def execute(self, query: str, values: Sequence[Any] = ..., /) -> Found: ...


class LineKeys:
    """The line keys of one ledger, by key and by number.

    Numbers that were given out in a transaction are only good once it is committed; `forget` what a
    rollback may have taken away.
    """

    def __init__(self, db: Db) -> None:
        self._db = db
        self._numbers: dict[_Key, int] = {}
        self._keys: dict[int, LineKey] = {}
        self._seen: dict[int, tuple[_Key, int]] = {}
        """Numbers by the identity of the dimensions, which are kept here and so keep it."""

    def number(self, key: LineKey) -> int:
        found = self._numbers.get(key)
        return found if found is not None else self._give(key)

    def pairs_json(self, lines: Sequence[Line]) -> str:
        """What `usage.lines` holds: the number of each line's key, and its value."""
        pairs = []
        for line in lines:
            # A meter gives all lines of one kind the very same dimensions, whose hash would cost more.
            key = _key_of(line)
            seen = self._seen.get(id(line.dimensions))
            number = seen[1] if seen is not None and seen[0] == key else self._look_up(line, key)
            value = line.value
            if type(value) is int:
                pairs.append(f"[{number},{value}]")
            else:
                pairs.append(f'[{number},"{plain(checked(value))}"]')
        return f"[{','.join(pairs)}]"

    def _look_up(self, line: Line, key: _Key) -> int:
        number = self._numbers.get(key)
        if number is None:
            number = self._give(key_of(line))
        if len(self._seen) >= _MAX_CACHED:
            self._seen.clear()
        self._seen[id(line.dimensions)] = key, number
        return int(number)

    def key(self, number: int) -> LineKey:
        found = self._keys.get(number)
        if found is None:
            self._load()
            found = self._keys[number]
        return found

    def forget(self) -> None:
        self._numbers.clear()
        self._keys.clear()
        self._seen.clear()

    def _give(self, key: LineKey) -> int:
        if len(self._numbers) > 50 * _MAX_CACHED:
            self.forget()
        row = (key.event_name, _encode(key.dimensions), key.customer_key, key.value_key, key.aggregation)
        self._db.execute(
            "INSERT INTO line_key (event_name, dimensions, customer_key, value_key, aggregation) "
            "VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            row,
        )
        (number,) = self._db.execute(
            "SELECT id FROM line_key WHERE event_name = ? AND dimensions = ? AND customer_key = ? "
            "AND value_key = ? AND aggregation = ?",
            row,
        ).fetchone()
        self._numbers[key] = number
        self._keys[number] = key
        return int(number)

    def _load(self) -> None:
        rows = self._db.execute(
            "SELECT id, event_name, dimensions, customer_key, value_key, aggregation FROM line_key"
        )
        for number, event_name, dimensions, customer_key, value_key, aggregation in rows:
            pairs = tuple((name, value) for name, value in json.loads(dimensions))
            self._keys[number] = LineKey(event_name, pairs, customer_key, value_key, aggregation)


class RecordRows:
    """Makes rows of entries; keeps the JSON of dimensions that it has seen before."""

    def __init__(self, keys: LineKeys) -> None:
        self._keys = keys
        self._dimensions: dict[tuple[tuple[str, str], ...], str] = {}

    def row(self, entry: Entry, now: float) -> Row:
        r = entry.record
        if not -LATEST <= r.used_at <= LATEST:
            raise ValueError(f"used_at must be Unix seconds, not {r.used_at!r}")
        return (
            r.id, r.customer, r.model, r.provider, r.provenance, r.response_id, r.surface, r.used_at,
            counts_json(r.usage), self._dimensions_json(r.dimensions), self._keys.pairs_json(entry.lines),
            r.held, now,
        )  # fmt: skip

    def _dimensions_json(self, dimensions: Mapping[str, str]) -> str:
        if not dimensions:
            return "{}"
        name = tuple(dimensions.items())
        text = self._dimensions.get(name)
        if text is None:
            if len(self._dimensions) >= _MAX_CACHED:
                self._dimensions.clear()
            text = self._dimensions[name] = _encode(dict(name))
        return text


def insert(db: sqlite3.Connection, head: str, tail: str, values: Sequence[Row]) -> int:
    """Insert many rows in few steps; return the number of the last that is new.

    Every step lets go of the interpreter's lock, and a busy thread elsewhere may keep it for milliseconds:
    `executemany`, with a step a row, would take seconds for a group beside a loaded event loop.
    """
    place = last = 0
    for size in _SIZES:
        while len(values) - place >= size:
            some = values[place : place + size]
            done = db.execute(_insert_of(head, tail, len(some[0]), size), tuple(chain.from_iterable(some)))
            last = done.lastrowid or last
            place += size
    return last


@lru_cache
def _insert_of(head: str, tail: str, columns: int, count: int) -> str:
    marks = ",".join([f"({','.join('?' * columns)})"] * count)
    return f"{head} VALUES {marks} {tail}"


_STEP_OF_COUNTS = """
    if (n := usage.{name}) is not None:
        text = f'{{text}},"{name}":{{n}}'"""


def _counts_writer() -> Callable[[Usage], str]:
    """What writes the known counts as JSON. It runs for each record: a step for each leaf, written out."""
    steps = "".join(_STEP_OF_COUNTS.format(name=name) for name in LEAVES)
    made: dict[str, Any] = {}
    exec(f"def counts_json(usage):\n    text = ''{steps}\n    return '{{' + text[1:] + '}}'", made)  # noqa: S102
    writer: Callable[[Usage], str] = made["counts_json"]
    return writer


counts_json = _counts_writer()


def lines_of(pairs: Sequence[Sequence[Any]], keys: LineKeys) -> Lines:
    """Lines from the decoded JSON of `usage.lines`."""
    return [(keys.key(n), v if type(v) is int else Decimal(v)) for n, v in pairs]


def printable(row: Row) -> Row:
    """The row with lone surrogates written out, which no database and no wire would take."""
    return tuple(clean(v) if isinstance(v, str) else v for v in row)


def record_of(row: Sequence[Any]) -> UsageRecord:
    """A record from the columns of `RECORD`."""
    (id_, customer, model, provider, provenance, response_id, surface, used_at, counts, dimensions) = row[:10]
    return UsageRecord(
        id=id_,
        usage=Usage(**json.loads(counts)),
        used_at=used_at,
        customer=customer,
        model=model,
        provider=provider,
        provenance=provenance,
        response_id=response_id,
        dimensions=MappingProxyType(json.loads(dimensions)),
        surface=surface,
        held=row[11],
    )


def event_of(row: Sequence[Any]) -> MeterEvent:
    """A meter event from the columns of `EVENT`."""
    identifier, event_name, customer, value, timestamp, payload = row[:6]
    return _meter_event(
        identifier, event_name, customer, Decimal(value), timestamp, MappingProxyType(_decode(payload)[0])
    )


def standing_of(row: Sequence[Any]) -> Standing:
    """Where it stands, from the columns of `EVENT`."""
    return Standing(
        cast("State", row[6]),
        row[4],
        attempts=row[7],
        attempt_started_at=row[8],
        first_ambiguous_at=row[9],
        next_attempt_at=row[10],
        backoff_s=row[11],
        reason=row[12],
    )


def event_row_of(row: Sequence[Any], lane: str) -> EventRow:
    standing = standing_of(row)
    return EventRow(
        event=event_of(row),
        state=standing.state,
        attempts=standing.attempts,
        first_ambiguous_at=standing.first_ambiguous_at,
        next_attempt_at=standing.next_attempt_at,
        reason=standing.reason,
        lane=lane,
        attempted_at=standing.attempt_started_at,
    )


def payload_json(event: MeterEvent) -> str:
    return _encode(dict(event.payload))


def value_of(text: str) -> Value:
    """A value from plain decimal notation."""
    return Decimal(text) if "." in text else int(text)
