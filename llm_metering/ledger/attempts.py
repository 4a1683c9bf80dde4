"""Attempts to send the meter events of one lane: which are due, how one begins, ends or is cut off.

What `states` decides is carried out here. Every method works inside a transaction of the lane's.

Two things are kept in memory between transactions, so that they need not be read again: rows that were read
ahead, and the rows of attempts under way. Both are a cache and no more than that: each write names the state
and the fence that it expects, and where the file says otherwise it is undone (`Stale`) and done again by the
file alone.
"""

# ruff: noqa: S608  (nothing but names of our own columns is put into SQL; values are bound)
from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from .._values import maker
from ..protocols import Claim, Outcome, State, Transition
from . import rows, states

Pair = tuple[str, str]
"""A customer and a meter: at most one attempt at a time is under way for each."""

Head = tuple[rows.Row, states.Standing]
"""The row of an event that is to be sent, and where it stands; many share the one standing, and with it the
time of one of them."""
_UnderWay = tuple[rows.Row, states.Standing, int]
"""A row as it was read, and where it stands now that it is being sent, and its fence."""
_Ended = tuple[_UnderWay, states.Step, Outcome]


@dataclass(slots=True)
class _Change:
    """The rows that are changed alike, as most are: written in one step."""

    state: str
    fence: int
    """What stands in the file."""
    standing: states.Standing
    new_fence: int
    lease_until: float | None = None
    numbers: list[int] = field(default_factory=list)


_ROW = f"{rows.EVENT}, seq"
# An attempt under way stands in its event's row, which says since when and under which fence. A row of its
# own it gets as it ends; one that an earlier version wrote at the beginning is completed.
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
    "next_attempt_at = ?, backoff_s = ?, reason = ?, fence = ?, lease_until = ? "
    "WHERE state = ? AND fence = ?"
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
_AHEAD = 128
"""How many rows are read at least, though fewer are wanted now."""
_claim = maker(Claim)
_transition = maker(Transition)


class Stale(Exception):
    """The file says otherwise than what was kept in memory."""


class Attempts:
    """The meter events of one file, on their way."""

    def __init__(self, db: sqlite3.Connection, random: Callable[[], float]) -> None:
        self._db = db
        self._random = random
        self._after: Pair = ("", "")
        self._ahead: deque[rows.Row] = deque()
        self._under_way: dict[str, _UnderWay] = {}
        self.without: frozenset[str] = frozenset()
        """Event names of which nothing new is sent: their meters are gone."""
        self.awaits_time = False
        """Nothing is sent again: how old the doubts are is not known until Stripe tells the time."""

    def forget(self) -> None:
        """Go by the file again: something else was written, or what was written is undone."""
        self._ahead.clear()
        self._under_way.clear()

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
        known: dict[rows.Row, states.Standing | None] = {}
        oldest = now - states.EXPIRY_S

        def sendable(row: rows.Row) -> states.Standing | None:
            # Many stand alike but for their time, of which it only matters whether it is too long ago.
            alike = row[6:13] if row[4] > oldest else row[4:13]
            if alike not in known:
                standing = rows.standing_of(row)
                known[alike] = standing if states.may_send(standing, now=now) else None
            return known[alike]

        def take(found: Iterable[rows.Row], *, in_turn: bool) -> None:
            for row in found:
                pair = (row[2], row[1])
                if in_turn:
                    self._after = pair
                if in_turn and row[1] in self.without:
                    continue
                if pair not in busy and (standing := sendable(row)):
                    busy.add(pair)
                    heads.append((row, standing))
                    if len(heads) == limit:
                        return

        if not self.awaits_time:
            take(self._events("state = 'AMBIGUOUS'", (), "ORDER BY first_ambiguous_at"), in_turn=False)
        if not ambiguous_only and len(heads) < limit:
            take(self._round(now, limit, heads), in_turn=True)
        return heads

    def start(self, heads: Sequence[Head], lane: str, now: float, lease_s: float) -> list[Claim]:
        claims = []
        alike: dict[tuple[int, int], _Change] = {}
        for row, before in heads:
            change = alike.get((id(before), row[13]))
            if change is None:
                change = alike[id(before), row[13]] = _Change(
                    before.state, row[13], states.started(before, now=now), row[13] + 1, now + lease_s
                )
            change.numbers.append(row[14])
            after, fence = change.standing, change.new_fence
            event = rows.event_of(row)
            claims.append(_claim(event, after.attempts, fence, lane, before.first_ambiguous_at))
            self._under_way[row[0]] = row, after, fence
        self._write(alike.values())
        return claims

    def finish(self, results: Sequence[tuple[Claim, Outcome]], now: float) -> list[Transition | None]:
        found = self._known([claim.event.identifier for claim, _ in results])
        told: list[Transition | None] = []
        ended: list[_Ended] = []
        accepted: dict[int, states.Step] = {}
        for claim, outcome in results:
            known = found.get(claim.event.identifier)
            if known is None or known[2] != claim.fence or known[1].state != "SENDING":
                told.append(None)
                continue
            del found[claim.event.identifier]  # an attempt ends once
            row, standing, _ = known
            step = accepted.get(id(standing)) if outcome.kind == "accepted" else None
            if step is None:
                own = replace(standing, timestamp=row[4])
                step = states.ended(own, outcome, now=now, random=self._random)
            if outcome.kind == "accepted":
                accepted[id(standing)] = step
            ended.append((known, step, outcome))
            told.append(_moved(row[0], standing.state, step))
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
        self._write(_Change(row[6], row[13], step.standing, row[13], None, [row[14]]) for row, step in aged)
        return changed + [_moved(row[0], row[6], step) for row, step in aged]

    def set_clock_back(self, by_s: float, *, doubt_s: float | None = None) -> None:
        """As `states.clock_set_back`, for all that waits or is being sent."""
        if doubt_s is not None and doubt_s != by_s:
            self._db.execute(
                "UPDATE meter_event SET first_ambiguous_at = "
                "coalesce(first_ambiguous_at, attempt_started_at) - ? "
                "WHERE state IN ('AMBIGUOUS', 'SENDING')",
                (doubt_s - by_s,),
            )
        self._db.execute(
            "UPDATE meter_event SET attempt_started_at = attempt_started_at - :by, "
            "first_ambiguous_at = first_ambiguous_at - :by, next_attempt_at = next_attempt_at - :by, "
            "lease_until = lease_until - :by "
            "WHERE next_attempt_at IS NOT NULL OR state = 'SENDING'",
            {"by": by_s},
        )

    def make_older(self, by_s: float) -> int:
        """Move since when Stripe may have what it may have; how many events there were."""
        return self._db.execute(
            "UPDATE meter_event SET first_ambiguous_at = first_ambiguous_at - ? "
            "WHERE state IN ('AMBIGUOUS', 'SENDING') AND first_ambiguous_at IS NOT NULL",
            (by_s,),
        ).rowcount

    def _events(self, where: str, values: Sequence[Any], more: str = "") -> list[rows.Row]:
        return self._db.execute(f"SELECT {_ROW} FROM meter_event WHERE {where} {more}", values).fetchall()

    def _known(self, identifiers: Sequence[str]) -> dict[str, _UnderWay]:
        """Where these events stand; those under way are known, others are read."""
        found = {i: known for i in identifiers if (known := self._under_way.pop(i, None)) is not None}
        if others := [i for i in identifiers if i not in found]:
            for some in _parts(others):
                read = self._events(f"identifier IN ({_marks(len(some))})", some)
                found |= {row[0]: (row, rows.standing_of(row), row[13]) for row in read}
        return found

    def _round(self, now: float, limit: int, heads: Sequence[Head]) -> Iterator[rows.Row]:
        """The earliest due event of each pair, from where the last claim ended and round to it again."""
        ahead = self._ahead
        while ahead:
            yield ahead.popleft()
        start = self._after
        for after, end in ((start, None), (("", ""), start)):
            more: Pair | None = after
            while more is not None:
                more = self._read_ahead(more, now, max(limit, _AHEAD), heads)
                while ahead:
                    row = ahead.popleft()
                    if end is not None and (row[2], row[1]) > end:
                        return
                    yield row

    def _read_ahead(self, after: Pair, now: float, count: int, heads: Sequence[Head]) -> Pair | None:
        """Read the earliest due event of each pair behind this one; the last pair if there may be more."""
        values = {"now": now, "far": now + states.MAX_WAIT_S, "oldest": now - states.EXPIRY_S}
        group = self._db.execute(
            _HEADS, {**values, "customer": after[0], "event_name": after[1], "limit": count}
        ).fetchall()
        # What is taken already, and not written yet, must not be read ahead for the next time.
        taken = {row[0] for row, _ in heads}
        self._ahead.extend(row for row in group if row[0] not in taken)
        return (group[-1][2], group[-1][1]) if len(group) == count else None

    def _crash(self, where: str, values: Sequence[Any], now: float) -> list[Transition]:
        crashed: list[_Ended] = []
        for row in self._events(where, values):
            before = rows.standing_of(row)
            step = states.crashed(before, now=now)
            outcome = Outcome("ambiguous", message=step.standing.reason)
            crashed.append(((row, before, row[13]), step, outcome))
        self._end(crashed, now)
        return [_moved(row[0], before.state, step) for (row, before, _), step, _ in crashed]

    def _end(self, ended: Sequence[_Ended], now: float) -> None:
        """Attempts end, each the latest of its event."""
        alike: dict[tuple[int, int], _Change] = {}
        attempts = []
        for (row, before, fence), step, o in ended:
            change = alike.get((id(step), fence))
            if change is None:
                change = alike[id(step), fence] = _Change(before.state, fence, step.standing, fence)
            change.numbers.append(row[14])
            attempts.append(
                (
                    row[0], before.attempts, fence, before.attempt_started_at, now, o.kind, o.status, o.code,
                    o.message, o.request_id,
                )
            )  # fmt: skip
        self._write(alike.values())
        rows.insert(self._db, _END, _END_TAIL, attempts)

    def _write(self, changes: Iterable[_Change]) -> None:
        """Write where events stand."""
        for change in changes:
            values = (
                *_columns(change.standing), change.new_fence, change.lease_until, change.state, change.fence,
            )  # fmt: skip
            for some in _parts(change.numbers):
                done = self._db.execute(_write_of(len(some)), (*values, *some))
                if done.rowcount != len(set(some)):
                    raise Stale


def _columns(s: states.Standing) -> rows.Row:
    """The columns that say where an event stands."""
    return (
        s.state, s.attempts, s.attempt_started_at, s.first_ambiguous_at, s.next_attempt_at, s.backoff_s,
        s.reason,
    )  # fmt: skip


def _moved(identifier: str, before: State, step: states.Step) -> Transition:
    after = step.standing
    return _transition(identifier, before, after.state, after.reason, step.alarm, after.next_attempt_at)


def _parts(items: Sequence[Any]) -> Iterator[list[Any]]:
    """Parts of a few sizes; the last is filled up with its last item, which `IN` does not mind."""
    for place in range(0, len(items), _SIZES[-1]):
        part = list(items[place : place + _SIZES[-1]])
        size = next(size for size in _SIZES if size >= len(part))
        yield part + part[-1:] * (size - len(part))


@lru_cache
def _write_of(count: int) -> str:
    return f"{_WRITE} AND seq IN ({_marks(count)})"


def _marks(count: int) -> str:
    return ",".join("?" * count)
