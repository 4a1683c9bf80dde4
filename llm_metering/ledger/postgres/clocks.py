"""The ledger's clock: noted, and when it went back, what was measured on it is moved along."""

from __future__ import annotations

from collections.abc import Callable

from .. import clocks, states
from .connecting import Db

ASLEEP_S = 60.0
"""Nobody noted the time for longer: the server was away, or nobody could reach it."""
_NOTE, _AWAKE, _STRIPES = "clock", "awake", "stripe_ahead"
_SET = """
    INSERT INTO meta (name, value) VALUES (%(name)s, %(value)s)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
_MOVED = """
    UPDATE meter_event SET attempt_started_at = attempt_started_at - %(by)s,
        first_ambiguous_at = first_ambiguous_at - %(by)s, next_attempt_at = next_attempt_at - %(by)s,
        lease_until = lease_until - %(by)s
    WHERE next_attempt_at IS NOT NULL OR state = 'SENDING'
"""
_OLDER = """
    UPDATE meter_event SET first_ambiguous_at = coalesce(first_ambiguous_at, attempt_started_at) - %(by)s
    WHERE state IN ('AMBIGUOUS', 'SENDING')
"""
_LEASES = "UPDATE partition SET lease_until = lease_until - %(by)s WHERE lease_until IS NOT NULL"
_WORKERS = "UPDATE worker SET seen_at = seen_at - %(by)s, delivers_until = delivers_until - %(by)s"
_RATE = "UPDATE rate SET cut_at = cut_at - %(by)s, not_before = not_before - %(by)s"
# No use lies ahead of the clock: what a clock that ran ahead put there would wait for days, or be refused.
# What Stripe answered, or may have seen, keeps its bytes.
_USAGE = 'UPDATE usage SET used_at = %(now)s WHERE "freeze" IS NULL AND used_at > %(now)s'
_PROGRESS = "UPDATE progress SET used_at = %(now)s WHERE used_at > %(now)s"
_EVENTS = """
    UPDATE meter_event e SET timestamp = %(second)s
    WHERE state = 'PENDING' AND first_ambiguous_at IS NULL AND timestamp > %(second)s AND NOT EXISTS (
        SELECT 1 FROM attempt a WHERE a.identifier = e.identifier
        AND (a.outcome IS DISTINCT FROM 'not_sent' OR a.status IS NOT NULL))
"""


def tell_time(db: Db, clock: Callable[[Db], float]) -> float:
    """Note the time; return by how many seconds the clock went back, 0 if it did not.

    Args:
        clock: Asked again once the note is locked: others may have written a later time while we waited.
    """
    row = db.run("SELECT value FROM meta WHERE name = %(name)s FOR UPDATE", name=_NOTE).fetchone()
    now = clock(db)
    back = float(row[0]) - now if row is not None else 0.0
    if row is not None and abs(back) <= states.CLOCK_GRAIN_S:
        return 0.0
    if back > 0:
        for query in (_MOVED, _LEASES, _WORKERS, _RATE, _USAGE, _PROGRESS, _EVENTS):
            db.run(query, by=back, now=now, second=int(now // 1))
        db.run(_SET, name=_STRIPES, value=repr(_stripe_ahead_s(db) + back))
    if row is not None and -back > ASLEEP_S:
        db.run(_SET, name=_AWAKE, value=repr(now))
    db.run(_SET, name=_NOTE, value=repr(now))
    return max(back, 0.0)


def keep_to(db: Db, ahead_s: float) -> float:
    """Stripe's clock is so far ahead of the ledger's; by how many seconds doubts were made older. `tell_time`
    comes before, and has locked the notes."""
    fell_s = clocks.behind(ahead_s, _stripe_ahead_s(db))
    if fell_s is None:
        return 0.0
    db.run(_SET, name=_STRIPES, value=repr(ahead_s))
    return fell_s if fell_s > 0 and db.run(_OLDER, by=fell_s).rowcount else 0.0


def awake_since(db: Db) -> float:
    """When the ledger could be reached again after nobody had, 0 if that was never so."""
    row = db.run("SELECT value FROM meta WHERE name = %(name)s", name=_AWAKE).fetchone()
    return 0.0 if row is None else float(row[0])


def _stripe_ahead_s(db: Db) -> float:
    row = db.run("SELECT value FROM meta WHERE name = %(name)s", name=_STRIPES).fetchone()
    return 0.0 if row is None else float(row[0])
