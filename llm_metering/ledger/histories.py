"""What is on record of single meter events and records, for a person who has to decide. Read only."""

# ruff: noqa: S608  (nothing but names of our own columns is put into SQL; values are bound)
from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from ..decisions import ActionRow, AttemptRow
from ..protocols import EventHistory, EventRow, RecordRow, State
from . import rows
from .lines import decimal
from .rulings import WRITTEN_OFF

_ATTEMPT = "number, started_at, ended_at, outcome, status, code, message, request_id"
_ACTION = "at, who, why, what, subject, before, after"
_WHICH = {"unresolved": "customer IS NULL", "held": "held IS NOT NULL"}

Aside = Literal["unresolved", "held"]


def events(
    db: rows.Db,
    lane: str,
    *,
    states: Sequence[State],
    limit: int,
    customer: str | None,
    since: float | None,
) -> Iterator[tuple[float, int, EventRow]]:
    """The newest meter events of a lane, with what they are ordered by."""
    where, values = _where(
        (f"state IN ({','.join('?' * len(states))})", states),
        ("customer = ?", () if customer is None else (customer,)),
        ("timestamp >= ?", () if since is None else (since,)),
    )
    found = db.execute(
        f"SELECT {rows.EVENT}, state = 'DEAD' AND {WRITTEN_OFF}, frozen_at, seq FROM meter_event {where} "
        "ORDER BY seq DESC LIMIT ?",
        (*values, limit),
    )
    for row in found:
        *_, written_off, frozen_at, seq = row
        yield frozen_at, seq, replace(rows.event_row_of(row, lane), written_off=bool(written_off))


def history(db: rows.Db, lane: str, identifier: str) -> EventHistory | None:
    row = db.execute(
        f"SELECT {rows.EVENT}, state = 'DEAD' AND {WRITTEN_OFF}, frozen_at, replaces, (SELECT c.identifier "
        "FROM meter_event c WHERE c.replaces = e.identifier) FROM meter_event e WHERE identifier = ?",
        (identifier,),
    ).fetchone()
    if row is None:
        return None
    *_, written_off, frozen_at, replaces, replaced_by = row
    return EventHistory(
        replace(rows.event_row_of(row, lane), written_off=bool(written_off)),
        frozen_at,
        replaces,
        replaced_by,
        tuple(_attempts(db, row)),
        tuple(
            ActionRow(*a)
            for a in db.execute(f"SELECT {_ACTION} FROM action WHERE subject = ? ORDER BY seq", (identifier,))
        ),
    )


def _attempts(db: rows.Db, row: rows.Row) -> Iterator[AttemptRow]:
    """Every attempt; one that is under way stands in the event's own row until it ends."""
    number = 0
    for found in db.execute(
        f"SELECT {_ATTEMPT} FROM attempt WHERE identifier = ? ORDER BY number", (row[0],)
    ):
        number = found[0]
        yield AttemptRow(*found)
    if row[6] == "SENDING" and number < row[7]:
        yield AttemptRow(row[7], row[8], None, None, None, None, None, None)


def set_aside(
    db: rows.Db,
    lane: str,
    which: Aside,
    *,
    limit: int,
    customer: str | None,
    since: float | None,
) -> Iterator[RecordRow]:
    """Records of a lane that are not frozen because of what they lack, the oldest first."""
    where, values = _where(
        ("customer = ?", () if customer is None else (customer,)),
        ("used_at >= ?", () if since is None else (since,)),
        begin=f"freeze IS NULL AND {_WHICH[which]}",
    )
    keys = rows.LineKeys(db)
    for row in db.execute(
        f"SELECT {rows.RECORD} FROM usage {where} ORDER BY used_at, seq LIMIT ?", (*values, limit)
    ):
        lines = rows.lines_of(json.loads(row[10]), keys)
        worth = tuple((key.event_name, decimal(value)) for key, value in lines)
        yield RecordRow(rows.record_of(row), worth, row[12], lane)


def _where(*conditions: tuple[str, Sequence[Any]], begin: str = "") -> tuple[str, list[Any]]:
    """Those conditions that have values."""
    used = [(text, values) for text, values in conditions if values]
    texts = [text for text in (begin, *(text for text, _ in used)) if text]
    return f"WHERE {' AND '.join(texts)}" if texts else "", [v for _, values in used for v in values]
