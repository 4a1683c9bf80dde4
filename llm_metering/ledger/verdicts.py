"""What became known of accepted events of one lane afterwards, from Stripe's summaries and error reports.

What `states` decides is carried out here. Every method but `unsettled` works inside a transaction of the
lane's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..protocols import EventRow, Transition
from . import rows
from .states import Standing, Step


def unsettled(db: rows.Db, lane: str, *, before: float, since: float, limit: int) -> list[EventRow]:
    """Events ACCEPTED or IN_DOUBT, the oldest first."""
    found = db.execute(
        f"SELECT {rows.EVENT} FROM meter_event WHERE state IN ('ACCEPTED', 'IN_DOUBT') "  # noqa: S608
        "AND timestamp >= ? AND (attempt_started_at IS NULL OR attempt_started_at < ?) "
        "ORDER BY timestamp, seq LIMIT ?",
        (since, before, limit),
    )
    return [rows.event_row_of(row, lane) for row in found]


def move(
    db: rows.Db, identifiers: Sequence[str], step_of: Callable[[Standing], Step | None]
) -> list[Transition]:
    """Let each event go where `step_of` says; those that it leaves, or that are not here, are left out."""
    moved = []
    for identifier in identifiers:
        row = db.execute(
            f"SELECT {rows.EVENT} FROM meter_event WHERE identifier = ?",  # noqa: S608
            (identifier,),
        ).fetchone()
        if row is None or (step := step_of(rows.standing_of(row))) is None:
            continue
        after = step.standing
        db.execute(
            "UPDATE meter_event SET state = ?, reason = ? WHERE identifier = ?",
            (after.state, after.reason, identifier),
        )
        moved.append(Transition(identifier, row[6], after.state, after.reason, step.alarm))
    return moved
