"""What people decide of the records and events of a ledger. Every function works inside a transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from ...decisions import Pause
from .books import PAUSE, meta
from .connecting import Db

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
_HOW = {
    "assign": ("customer", "customer IS NULL"),
    "hold": ("held", "held IS NULL"),
    "release": ("held", "held IS NOT NULL"),
}


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


def set_pause(db: Db, pause: Pause | None) -> None:
    set_meta(db, PAUSE, None if pause is None else json.dumps(asdict(pause)))


_METERS = "paused_meters"


def paused_meters(db: Db) -> dict[str, str]:
    return dict(json.loads(meta(db, _METERS) or "{}"))


def pause_meter(db: Db, event_name: str, why: str | None) -> None:
    paused: dict[str, str | None] = {**paused_meters(db), event_name: why}
    kept = {name: reason for name, reason in paused.items() if reason is not None}
    set_meta(db, _METERS, json.dumps(kept) if kept else None)
