"""Attempts to send the meter events of one lane: which are due, how one begins, ends or is cut off.

What `states` decides is carried out here. Every method works inside a transaction of the lane's.
"""

# ruff: noqa: S608  (nothing but names of our own columns is put into SQL; values are bound)
from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from ..protocols import Claim, Outcome, Transition
from . import rows, states

Pair = tuple[str, str]
"""A customer and a meter: at most one attempt at a time is under way for each."""

_STANDING = (
    "UPDATE meter_event SET state = ?, attempts = ?, attempt_started_at = ?, first_ambiguous_at = ?, "
    "next_attempt_at = ?, backoff_s = ?, reason = ?"
)


class Attempts:
    """The meter events of one file, on their way."""

    def __init__(self, db: sqlite3.Connection, random: Callable[[], float]) -> None:
        self._db = db
        self._random = random
        self._after: Pair = ("", "")

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

    def heads(self, now: float, limit: int, ambiguous_only: bool, busy: set[Pair]) -> Iterator[Sequence[Any]]:
        """Events to be sent now, each of another pair: the doubtful ones first, then one pair after another
        from where the last claim ended, so that a customer with a long queue does not hold up the rest."""
        doubtful = self._events("state = 'AMBIGUOUS'", (), "ORDER BY first_ambiguous_at")
        for row in chain(doubtful, () if ambiguous_only else self._round(now)):
            if limit <= 0:
                return
            pair = (row[2], row[1])
            if pair not in busy and states.may_send(rows.standing_of(row), now=now):
                busy.add(pair)
                limit -= 1
                yield row

    def start(self, row: Sequence[Any], lane: str, now: float, lease_s: float) -> Claim:
        event, before = rows.event_of(row), rows.standing_of(row)
        after = states.started(before, now=now)
        fence = row[13] + 1
        self._write(event.identifier, after, ", fence = ?, lease_until = ?", (fence, now + lease_s))
        self._db.execute(
            "INSERT INTO attempt (identifier, number, fence, started_at) VALUES (?, ?, ?, ?)",
            (event.identifier, after.attempts, fence, now),
        )
        return Claim(event, after.attempts, fence, lane, before.first_ambiguous_at)

    def finish(self, claim: Claim, outcome: Outcome, now: float) -> Transition | None:
        found = self._events(
            "identifier = ? AND fence = ? AND state = 'SENDING'", (claim.event.identifier, claim.fence)
        )
        if not found:
            return None
        step = states.ended(rows.standing_of(found[0]), outcome, now=now, random=self._random)
        self._end_attempt(claim.event.identifier, claim.attempt, outcome, now)
        return self._move(found[0], step)

    def crash_all(self, now: float) -> list[Transition]:
        """Whoever was sending is gone."""
        return self._crash("state = 'SENDING'", (), now)

    def pass_time(self, now: float) -> list[Transition]:
        """Expire leases and move states by age."""
        changed = self._crash("state = 'SENDING' AND lease_until <= ?", (now,), now)
        for row in self._events(
            "(state = 'AMBIGUOUS' AND first_ambiguous_at <= ?) "
            "OR (next_attempt_at IS NOT NULL AND timestamp <= ?)",
            (now - states.HORIZON_S, now - states.EXPIRY_S),
        ):
            if step := states.aged(rows.standing_of(row), now=now):
                changed.append(self._move(row, step))
        return changed

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
        return self._db.execute(
            f"SELECT {rows.EVENT} FROM meter_event WHERE {where} {more}",
            values,
        ).fetchall()

    def _round(self, now: float) -> Iterator[Sequence[Any]]:
        """The earliest due event of each pair, from `_after` on and round to it again."""
        start = pair = self._after
        while found := self._next_due(pair, now):
            pair = self._after = (found[2], found[1])
            yield found
        pair = ("", "")
        while (found := self._next_due(pair, now)) and (found[2], found[1]) <= start:
            pair = self._after = (found[2], found[1])
            yield found

    def _next_due(self, after: Pair, now: float) -> Sequence[Any] | None:
        found = self._events(
            # The plus keeps SQLite from the index on state, which would sort all that waits for each row.
            "next_attempt_at IS NOT NULL AND (customer, event_name) > (?, ?) AND +state = 'PENDING' "
            "AND (next_attempt_at <= ? OR next_attempt_at > ?) AND timestamp > ?",
            (*after, now, now + states.MAX_WAIT_S, now - states.EXPIRY_S),
            "ORDER BY customer, event_name, next_attempt_at LIMIT 1",
        )
        return found[0] if found else None

    def _crash(self, where: str, values: Sequence[Any], now: float) -> list[Transition]:
        changed = []
        for row in self._events(where, values):
            standing = rows.standing_of(row)
            step = states.crashed(standing, now=now)
            outcome = Outcome("ambiguous", message=step.standing.reason)
            self._end_attempt(row[0], standing.attempts, outcome, now)
            changed.append(self._move(row, step))
        return changed

    def _end_attempt(self, identifier: str, number: int, o: Outcome, now: float) -> None:
        self._db.execute(
            "UPDATE attempt SET ended_at = ?, outcome = ?, status = ?, code = ?, message = ?, "
            "request_id = ? WHERE identifier = ? AND number = ?",
            (now, o.kind, o.status, o.code, o.message, o.request_id, identifier, number),
        )

    def _move(self, row: Sequence[Any], step: states.Step) -> Transition:
        identifier, before, after = row[0], row[6], step.standing
        self._write(identifier, after, ", lease_until = NULL", ())
        return Transition(identifier, before, after.state, after.reason, step.alarm, after.next_attempt_at)

    def _write(self, identifier: str, s: states.Standing, more: str, values: Sequence[Any]) -> None:
        self._db.execute(
            f"{_STANDING}{more} WHERE identifier = ?",
            (
                s.state, s.attempts, s.attempt_started_at, s.first_ambiguous_at, s.next_attempt_at,
                s.backoff_s, s.reason, *values, identifier,
            ),
        )  # fmt: skip
