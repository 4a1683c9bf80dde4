"""Carries out what a person decided, in one lane: the change, the row that says who and why, and the answer
are one transaction. Every method works inside a transaction of the lane's.
"""

# ruff: noqa: S608  (nothing but names of our own columns is put into SQL; values are bound)
from __future__ import annotations

from collections.abc import Callable, Sequence

from ..decisions import (
    OF_EVENTS,
    OF_RECORDS,
    Decision,
    Ruling,
    rulings_from_json,
    rulings_to_json,
)
from . import rows
from .judging import Judged, judge
from .states import DAY_S

WRITTEN_OFF = "identifier IN (SELECT subject FROM action WHERE what = 'write_off')"
_ACTION = "INSERT INTO action (at, who, why, what, subject, before, after) VALUES (?, ?, ?, ?, ?, ?, ?)"
_CHILD = (
    "INSERT INTO meter_event (identifier, freeze, line_key, customer, event_name, value, timestamp, payload, "
    "frozen_at, next_attempt_at, replaces, state) SELECT ?, freeze, line_key, customer, event_name, value, "
    "timestamp, payload, ?, ?, identifier, 'PENDING' FROM meter_event WHERE identifier = ?"
)
_PREFIX = "decision:"
_KEPT_S = DAY_S
"""How long answers are kept for those who wait for them."""


class Rulings:
    """What people decided of the events and records of one file."""

    def __init__(self, db: rows.Db, new_id: Callable[[], str]) -> None:
        self._db = db
        self._new_id = new_id

    def knows(self, decision: Decision) -> list[str]:
        """Which of its subjects are here."""
        if decision.what not in (*OF_EVENTS, *OF_RECORDS):
            return list(decision.subjects)
        place = "meter_event WHERE identifier" if decision.what in OF_EVENTS else "usage WHERE id"
        query = f"SELECT 1 FROM {place} = ?"
        return [s for s in decision.subjects if self._db.execute(query, (s,)).fetchone()]

    def carry_out(self, decision: Decision, *, now: float) -> list[Ruling]:
        """Do it, unless it was done before; in both cases return what was done."""
        if (known := answer(self._db, decision)) is not None:
            return known
        self._forget_old(now)
        done = [self._rule(decision, subject, now) for subject in decision.subjects]
        self._db.execute(
            "INSERT INTO meta (name, value) VALUES (?, ?)", (_name(decision), rulings_to_json(done))
        )
        return done

    def _rule(self, decision: Decision, subject: str, now: float) -> Ruling:
        if decision.what in OF_EVENTS:
            return self._rule_event(decision, subject, now)
        if decision.what in OF_RECORDS:
            return self._rule_record(decision, subject, now)
        after = "paused" if decision.what == "pause" else "sending"
        self._note(decision, subject, decision.before, after, now)
        return Ruling(subject, decision.before, after)

    def _rule_event(self, decision: Decision, identifier: str, now: float) -> Ruling:
        row = self._db.execute(
            f"SELECT {rows.EVENT}, {WRITTEN_OFF}, (SELECT c.identifier FROM meter_event c "
            "WHERE c.replaces = meter_event.identifier) FROM meter_event WHERE identifier = ?",
            (identifier,),
        ).fetchone()
        if row is None:
            return Ruling(identifier, refused="no meter event has this identifier")
        standing = rows.standing_of(row)
        *_, written_off, replaced_by = row
        judged = judge(decision, standing, written_off=bool(written_off), replaced_by=replaced_by, now=now)
        if isinstance(judged, str):
            return Ruling(identifier, standing.state, standing.state, refused=judged)
        child = self._move(identifier, judged, now)
        self._note(decision, identifier, standing.state, judged.after, now)
        return Ruling(identifier, standing.state, judged.after, child)

    def _move(self, identifier: str, judged: Judged, now: float) -> str | None:
        s = judged.standing
        self._db.execute(
            "UPDATE meter_event SET state = ?, next_attempt_at = ?, reason = ? WHERE identifier = ?",
            (s.state, s.next_attempt_at, s.reason, identifier),
        )
        if not judged.replaced:
            return None
        child = self._new_id()
        self._db.execute(_CHILD, (child, now, now, identifier))
        return child

    def _rule_record(self, decision: Decision, id_: str, now: float) -> Ruling:
        row = self._db.execute("SELECT customer, held, freeze FROM usage WHERE id = ?", (id_,)).fetchone()
        if row is None:
            return Ruling(id_, refused="no record has this id")
        customer, held, freeze = row
        before = customer if decision.what == "assign" else held
        if refused := refuse_record(decision, customer, held, frozen=freeze is not None):
            return Ruling(id_, before, before, refused=refused)
        column, after = _CHANGES[decision.what](decision)
        self._db.execute(f"UPDATE usage SET {column} = ? WHERE id = ?", (after, id_))
        self._note(decision, id_, before, after, now)
        return Ruling(id_, before, after)

    def _note(self, d: Decision, subject: str, before: str | None, after: str | None, now: float) -> None:
        self._db.execute(_ACTION, (now, d.who, d.why, d.what, subject, before, after))

    def _forget_old(self, now: float) -> None:
        self._db.execute(
            "DELETE FROM meta WHERE name >= ? AND name < ?", (_PREFIX, f"{_PREFIX}{_second(now - _KEPT_S)}")
        )


def answer(db: rows.Db, decision: Decision) -> list[Ruling] | None:
    """What a decision did, None if it was not carried out yet."""
    row = db.execute("SELECT value FROM meta WHERE name = ?", (_name(decision),)).fetchone()
    return None if row is None else rulings_from_json(row[0])


def refuse_record(d: Decision, customer: str | None, held: str | None, *, frozen: bool) -> str | None:
    """Why a record cannot be changed, None if it can."""
    if frozen:
        return "it is part of a meter event already"
    if d.what == "assign" and customer is not None:
        return f"it is {customer}'s, and usage is never moved from one customer to another"
    if d.what == "release" and held is None:
        return "it is not held"
    return "it is held already" if d.what == "hold" and held is not None else None


_CHANGES: dict[str, Callable[[Decision], tuple[str, str | None]]] = {
    "assign": lambda d: ("customer", d.customer),
    "hold": lambda d: ("held", d.why),
    "release": lambda _: ("held", None),
}


def _name(decision: Decision) -> str:
    return f"{_PREFIX}{_second(decision.at)}:{decision.id}"


def _second(at: float) -> str:
    return f"{max(int(at), 0):012d}"


def merge(decision: Decision, found: Sequence[Ruling]) -> list[Ruling]:
    """One ruling for each subject, in the order in which they were named."""
    by_subject = {ruling.subject: ruling for ruling in found}
    missing = "it is nowhere in the ledger, or where another process holds it"
    return [by_subject.get(s) or Ruling(s, refused=missing) for s in decision.subjects]
