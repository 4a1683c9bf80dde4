"""What becomes of a lane that may not be the only one of its kind, or that has forgotten what it sent.

A copy of a lane, a restored backup and a file whose last transactions are gone have one thing in common:
what they hold as unsent may have been sent by another, or under a name that is lost. So nothing of it goes
out by itself. Usage that is not frozen is held, since freezing it again would give it another identifier;
events that are not settled are IN_DOUBT. Both stand in the books with the reason, until a person (or, for
events, Stripe's summaries) decides. Every function works inside a transaction of the lane's.
"""

# ruff: noqa: S608  (nothing but names of our own columns is put into SQL; values are bound)
from __future__ import annotations

import sqlite3

from .._values import dataclass
from . import rows

COPIED = "copied lane"
"""How the reason of what was held in a copy begins. The original may yet send it: that Stripe does not have
it says nothing."""
FORGETFUL = "damaged lane"

_WHO = "llm_metering"
_UNSETTLED = "state IN ('PENDING', 'SENDING', 'AMBIGUOUS')"


@dataclass(frozen=True, slots=True)
class Kept:
    """What was kept from going out."""

    records: int
    events: int


def suspect(db: sqlite3.Connection, lane: str, why: str, *, now: float) -> Kept:
    """Let nothing of this lane go out by itself."""
    db.execute(
        f"INSERT INTO usage ({rows.RECORD}) SELECT {rows.RECORD} FROM progress WHERE true "
        "ORDER BY recorded_at ON CONFLICT (id) DO NOTHING"
    )
    db.execute("DELETE FROM progress")
    records = db.execute("UPDATE usage SET held = ? WHERE freeze IS NULL AND held IS NULL", (why,)).rowcount
    db.execute(
        "INSERT INTO attempt (identifier, number, fence, started_at, ended_at, outcome, message) "
        "SELECT identifier, attempts, fence, attempt_started_at, ?, 'ambiguous', ? FROM meter_event "
        "WHERE state = 'SENDING' ON CONFLICT (identifier, number) DO UPDATE SET "
        "ended_at = excluded.ended_at, outcome = excluded.outcome, message = excluded.message",
        (now, why),
    )
    events = db.execute(
        "UPDATE meter_event SET state = 'IN_DOUBT', reason = ?, next_attempt_at = NULL, lease_until = NULL, "
        # An answer to what was being sent comes under an older fence, and changes nothing.
        "fence = fence + 1, first_ambiguous_at = coalesce(first_ambiguous_at, attempt_started_at, ?) "
        f"WHERE {_UNSETTLED}",
        (why, now),
    ).rowcount
    db.execute(
        "INSERT INTO action (at, who, why, what, subject, before, after) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (now, _WHO, why, "suspect", lane, None, f"{records} records held, {events} events in doubt"),
    )
    return Kept(records, events)
