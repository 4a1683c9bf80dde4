"""What people decide of the records and events of a ledger, and where they hand it in.

Every function works inside a transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Literal

from ...decisions import MAX_SUBJECTS, SENDING, Decision, Pause, Ruling, What, new_decision_id
from ..desk import Decided
from ..identifiers import new_identifier
from ..rulings import Rulings
from . import migrating, staff
from .books import PAUSE, PostgresBooks, meta, pause_of
from .connecting import Db, Link

_CHANGED = """
    WITH old AS (
        SELECT seq, {column} AS before FROM usage
        WHERE "freeze" IS NULL AND {condition} AND (%(all)s OR id = ANY(%(ids)s::text[]))
        ORDER BY seq FOR UPDATE
    ), changed AS (
        UPDATE usage u SET {column} = %(value)s FROM old WHERE u.seq = old.seq RETURNING u.id, old.before
    )
    INSERT INTO action (at, who, why, what, subject, before, after)
    SELECT %(at)s, %(who)s, %(why)s, %(what)s, id, before, %(value)s FROM changed
"""
_METERS = "paused_meters"
_HOW = {
    "assign": ("customer", "customer IS NULL"),
    "hold": ("held", "held IS NULL"),
    "release": ("held", "held IS NOT NULL"),
}


class PostgresDesk:
    """Carries out decisions at once, whoever works on the ledger beside it.

    Args:
        books: Of the ledger.
    """

    def __init__(self, books: PostgresBooks) -> None:
        self._link = Link(books.url, schema=books.schema, keep=False)
        self._rulings = Rulings(self._link.db, new_identifier)

    def decide(
        self,
        what: What,
        subjects: Mapping[str, Sequence[str]],
        *,
        who: str,
        why: str,
        customer: str | None = None,
    ) -> Decided:
        """Decide of events or records, which are named by the lane that they are in.

        Raises:
            LedgerError: The server failed.
            ValueError: It is no decision that could be carried out.
        """
        names = tuple(dict.fromkeys(name for some in subjects.values() for name in some))
        groups = [names[i : i + MAX_SUBJECTS] for i in range(0, len(names), MAX_SUBJECTS)]
        decided = Decided()
        for group in groups:
            decided.rulings += self._decide(what, group, who, why, customer)
        return decided

    def pause(self, *, who: str, why: str) -> Decided:
        """Let nothing be sent from any process, those to come included."""
        return Decided(self._decide("pause", (SENDING,), who, why))

    def resume(self, *, who: str, why: str) -> Decided:
        """Lift a person's pause."""
        return Decided(self._decide("resume", (SENDING,), who, why))

    def give_partition(self, number: int, to: str | None) -> str | None:
        """Let a worker have a partition, or whoever is short of one; return why that cannot be now."""

        def body(db: Db) -> str | None:
            migrating.check(db, self._link)
            return staff.give(db, number, to, now=db.began_at)

        return self._link.run(body)

    def _decide(
        self, what: What, names: tuple[str, ...], who: str, why: str, customer: str | None = None
    ) -> list[Ruling]:
        id_ = new_decision_id()

        def body(db: Db) -> list[Ruling]:
            migrating.check(db, self._link)
            return carry_out(db, self._rulings, Decision(what, names, who, why, db.began_at, id_, customer))

        return self._link.run(body, isolation="REPEATABLE READ")


def carry_out(db: Db, rulings: Rulings, decision: Decision) -> list[Ruling]:
    """Do it, once, and put it on record."""
    if decision.what in ("pause", "resume"):
        decision = replace(decision, before="paused" if pause_of(db) else "sending")
        pause = Pause(decision.who, decision.why, decision.at) if decision.what == "pause" else None
        set_meta(db, PAUSE, None if pause is None else json.dumps(asdict(pause)))
    return rulings.carry_out(decision, now=decision.at)


def change(
    db: Db,
    what: Literal["assign", "hold", "release"],
    value: str | None,
    ids: Sequence[str] | None,
    *,
    who: str,
    why: str,
    now: float,
) -> int:
    """Change records that are not frozen yet, and note who did it and why; return how many."""
    column, condition = _HOW[what]
    return db.run(
        _CHANGED.format(column=column, condition=condition),
        all=ids is None,
        ids=list(ids or ()),
        value=value,
        at=now,
        who=who,
        why=why,
        what=what,
    ).rowcount


def set_meta(db: Db, name: str, value: str | None) -> None:
    if value is None:
        db.run("DELETE FROM meta WHERE name = %(name)s", name=name)
        return
    db.run(
        "INSERT INTO meta (name, value) VALUES (%(name)s, %(value)s) "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        name=name,
        value=value,
    )


def paused_meters(db: Db) -> dict[str, str]:
    return dict(json.loads(meta(db, _METERS) or "{}"))


def pause_meter(db: Db, event_name: str, why: str | None) -> None:
    paused: dict[str, str | None] = {**paused_meters(db), event_name: why}
    kept = {name: reason for name, reason in paused.items() if reason is not None}
    set_meta(db, _METERS, json.dumps(kept) if kept else None)
