"""Attempts to send the meter events of one lane: which are due, how one begins, ends or is cut off.

What `states` decides is carried out here. Every method works inside a transaction of the lane's.
"""

# ruff: noqa: S608  (nothing but names of our own columns is put into SQL; values are bound)
from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..protocols import Claim, Outcome, Transition
from . import rows, states

Pair = tuple[str, str]
"""A customer and a meter: at most one attempt at a time is under way for each."""

Head = tuple[Sequence[Any], states.Standing]
"""The row of an event that is to be sent, and where it stands."""
_Change = tuple[Sequence[Any], states.Standing, int, float | None]
"""A row as it was read, where it stands now, its fence and the end of its lease."""

_ROW = f"{rows.EVENT}, seq"
_BEGIN = "INSERT INTO attempt (identifier, number, fence, started_at)"
# The row is there, from before the attempt began; an upsert writes many in one step, on older SQLites too.
_END = (
    "INSERT INTO attempt (identifier, number, fence, started_at, ended_at, outcome, status, code, message, "
    "request_id)"
)
_END_TAIL = (
    "ON CONFLICT (identifier, number) DO UPDATE SET ended_at = excluded.ended_at, "
    "outcome = excluded.outcome, status = excluded.status, code = excluded.code, "
    "message = excluded.message, request_id = excluded.request_id"
)
_WRITE = (
    "UPDATE meter_event SET state = ?, attempts = ?, attempt_started_at = ?, first_ambiguous_at = ?, "
    "next_attempt_at = ?, backoff_s = ?, reason = ?, fence = ?, lease_until = ?"
)
_NEXT = """
    SELECT n.seq FROM meter_event n
    -- The plus keeps SQLite from the index on state, which would sort all that waits for each row.
    WHERE n.next_attempt_at IS NOT NULL AND (n.customer, n.event_name) > ({after}) AND +n.state = 'PENDING'
        AND (n.next_attempt_at <= :now OR n.next_attempt_at > :far) AND n.timestamp > :oldest
    ORDER BY n.customer, n.event_name, n.next_attempt_at LIMIT 1
"""
_HEADS = f"""
    WITH RECURSIVE head (seq) AS (
        SELECT ({_NEXT.format(after=":customer, :event_name")})
        UNION ALL
        SELECT ({_NEXT.format(after="p.customer, p.event_name")})
        FROM head CROSS JOIN meter_event p ON p.seq = head.seq
        LIMIT :limit
    )
    SELECT {rows.EVENT}, e.seq FROM head CROSS JOIN meter_event e ON e.seq = head.seq
"""
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""How many rows one step reads or writes; few sizes, so that each statement is prepared once."""


class Attempts:
    """The meter events of one file, on their way."""

    def __init__(self, db: sqlite3.Connection, random: Callable[[], float]) -> None:
        self._db = db
        self._random = random
        self._after: Pair = ("", "")
        self.without: frozenset[str] = frozenset()
        """Event names of which nothing new is sent: their meters are gone."""

    def sending(self) -> set[Pair]:
        """Customers and meters for which an attempt is under way."""
        return set(self._db.execute("SELECT customer, event_name FROM meter_event WHERE state = 'SENDING'"))

    def due_at(self) -> float | None:
        (at,) = self._db.execute(
            "SELECT min(next_attempt_at) FROM meter_event WHERE next_attempt_at IS NOT NULL"
        ).fetchone()
        return None if at is None else float(at)

    def waiting_since(self) -> tuple[float | None, float | None]:
        """When the oldest event that waits was made, and its oldest use."""
        since, use = self._db.execute(
            "SELECT min(frozen_at), min(timestamp) FROM meter_event "
            "WHERE next_attempt_at IS NOT NULL OR state = 'SENDING'"
        ).fetchone()
        return since, use

    def heads(self, now: float, limit: int, ambiguous_only: bool, busy: set[Pair]) -> list[Head]:
        """Events to be sent now, each of another pair: the doubtful ones first, then one pair after another
        from where the last claim ended, so that a customer with a long queue does not hold up the rest."""
        heads: list[Head] = []
        if limit <= 0:
            return heads

        def take(found: Iterable[Sequence[Any]], *, in_turn: bool) -> None:
            for row in found:
                pair = (row[2], row[1])
                if in_turn:
                    self._after = pair
                if in_turn and row[1] in self.without:
                    continue
                if pair not in busy and states.may_send(standing := rows.standing_of(row), now=now):
                    busy.add(pair)
                    heads.append((row, standing))
                    if len(heads) == limit:
                        return

        take(self._events("state = 'AMBIGUOUS'", (), "ORDER BY first_ambiguous_at"), in_turn=False)
        if not ambiguous_only and len(heads) < limit:
            take(self._round(now, limit), in_turn=True)
        return heads

    def start(self, heads: Sequence[Head], lane: str, now: float, lease_s: float) -> list[Claim]:
        claims, changes, attempts = [], [], []
        for row, before in heads:
            after = states.started(before, now=now)
            fence = row[13] + 1
            event = rows.event_of(row)
            claims.append(Claim(event, after.attempts, fence, lane, before.first_ambiguous_at))
            changes.append((row, after, fence, now + lease_s))
            attempts.append((event.identifier, after.attempts, fence, now))
        self._write(changes)
        rows.insert(self._db, _BEGIN, "", attempts)
        return claims

    def finish(self, results: Sequence[tuple[Claim, Outcome]], now: float) -> list[Transition | None]:
        found = {row[0]: row for row in self._named([claim.event.identifier for claim, _ in results])}
        told: list[Transition | None] = []
        ended: list[tuple[Sequence[Any], states.Step, Outcome]] = []
        for claim, outcome in results:
            row = found.get(claim.event.identifier)
            if row is None or row[13] != claim.fence or row[6] != "SENDING":
                told.append(None)
                continue
            del found[claim.event.identifier]  # an attempt ends once
            step = states.ended(rows.standing_of(row), outcome, now=now, random=self._random)
            ended.append((row, step, outcome))
            told.append(_transition(row, step))
        self._end(ended, now)
        return told

    def crash_all(self, now: float) -> list[Transition]:
        """Whoever was sending is gone."""
        return self._crash("state = 'SENDING'", (), now)

    def pass_time(self, now: float) -> list[Transition]:
        """Expire leases and move states by age."""
        changed = self._crash("state = 'SENDING' AND lease_until <= ?", (now,), now)
        old = self._events(
            "(state = 'AMBIGUOUS' AND first_ambiguous_at <= ?) "
            "OR (next_attempt_at IS NOT NULL AND timestamp <= ?)",
            (now - states.HORIZON_S, now - states.EXPIRY_S),
        )
        aged = [(row, step) for row in old if (step := states.aged(rows.standing_of(row), now=now))]
        self._write((row, step.standing, row[13], None) for row, step in aged)
        return changed + [_transition(row, step) for row, step in aged]

    def set_clock_back(self, by_s: float) -> None:
        """As `states.clock_set_back`, for all that waits or is being sent."""
        self._db.execute(
            "UPDATE meter_event SET attempt_started_at = attempt_started_at - :by, "
            "first_ambiguous_at = first_ambiguous_at - :by, next_attempt_at = next_attempt_at - :by, "
            "lease_until = lease_until - :by "
            "WHERE next_attempt_at IS NOT NULL OR state = 'SENDING'",
            {"by": by_s},
        )

    def _events(self, where: str, values: Sequence[Any], more: str = "") -> list[Sequence[Any]]:
        return self._db.execute(f"SELECT {_ROW} FROM meter_event WHERE {where} {more}", values).fetchall()

    def _named(self, identifiers: Sequence[str]) -> Iterator[Sequence[Any]]:
        for some in _parts(identifiers):
            yield from self._events(f"identifier IN ({_marks(some)})", some)

    def _round(self, now: float, limit: int) -> Iterator[Sequence[Any]]:
        """The earliest due event of each pair, from `_after` on and round to it again."""
        start = self._after
        yield from self._next(start, now, limit)
        for row in self._next(("", ""), now, limit):
            if (row[2], row[1]) > start:
                return
            yield row

    def _next(self, after: Pair, now: float, limit: int) -> Iterator[Sequence[Any]]:
        """The earliest due event of each pair behind this one, read in groups."""
        values = {"now": now, "far": now + states.MAX_WAIT_S, "oldest": now - states.EXPIRY_S, "limit": limit}
        while True:
            customer, event_name = after
            found = self._db.execute(_HEADS, {**values, "customer": customer, "event_name": event_name})
            group = found.fetchall()
            yield from group
            if len(group) < limit:
                return
            after = (group[-1][2], group[-1][1])

    def _crash(self, where: str, values: Sequence[Any], now: float) -> list[Transition]:
        crashed = []
        for row in self._events(where, values):
            step = states.crashed(rows.standing_of(row), now=now)
            crashed.append((row, step, Outcome("ambiguous", message=step.standing.reason)))
        self._end(crashed, now)
        return [_transition(row, step) for row, step, _ in crashed]

    def _end(self, ended: Sequence[tuple[Sequence[Any], states.Step, Outcome]], now: float) -> None:
        """Attempts end, each the latest of its event."""
        self._write((row, step.standing, row[13], None) for row, step, _ in ended)
        attempts = [
            (row[0], row[7], row[13], row[8], now, o.kind, o.status, o.code, o.message, o.request_id)
            for row, _, o in ended
        ]
        rows.insert(self._db, _END, _END_TAIL, attempts)

    def _write(self, changes: Iterable[_Change]) -> None:
        """Write where events stand; those that stand alike, as most do, in one step."""
        alike: dict[tuple[Any, ...], list[int]] = {}
        for row, s, fence, lease_until in changes:
            values = (
                s.state, s.attempts, s.attempt_started_at, s.first_ambiguous_at, s.next_attempt_at,
                s.backoff_s, s.reason, fence, lease_until,
            )  # fmt: skip
            alike.setdefault(values, []).append(row[14])
        for values, numbers in alike.items():
            for some in _parts(numbers):
                self._db.execute(f"{_WRITE} WHERE seq IN ({_marks(some)})", (*values, *some))


def _transition(row: Sequence[Any], step: states.Step) -> Transition:
    after = step.standing
    return Transition(row[0], row[6], after.state, after.reason, step.alarm, after.next_attempt_at)


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Parts of a few sizes; the last is filled up with its last item, which `IN` does not mind."""
    for place in range(0, len(items), _SIZES[-1]):
        part = list(items[place : place + _SIZES[-1]])
        size = next(size for size in _SIZES if size >= len(part))
        yield part + part[-1:] * (size - len(part))


def _marks(items: Sequence[Any]) -> str:
    return ",".join("?" * len(items))
