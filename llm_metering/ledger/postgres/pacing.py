"""How fast all workers together may send. One that Stripe told to slow down writes it down for the others.

Every function works inside a transaction.
"""

from __future__ import annotations

from math import inf

from ...protocols import Pace
from .connecting import Db
from .workers import PARTITIONS

# Several workers may be refused in one moment: that counts once, as several answers to one of them do.
_SLOW_DOWN = """
    INSERT INTO rate (per_s, cut_at, not_before) VALUES (%(per_s)s, %(now)s, %(until)s)
    ON CONFLICT (one) DO UPDATE SET
        per_s = CASE WHEN excluded.cut_at - rate.cut_at >= 1 THEN excluded.per_s ELSE rate.per_s END,
        cut_at = CASE WHEN excluded.cut_at - rate.cut_at >= 1 THEN excluded.cut_at ELSE rate.cut_at END,
        not_before = greatest(rate.not_before, excluded.not_before)
"""


def slow_down(db: Db, per_s: float, *, wait_s: float, now: float) -> None:
    """Write down what Stripe made of our rate."""
    db.run(_SLOW_DOWN, per_s=float(per_s), now=now, until=now + wait_s)


def pace(db: Db, held: int) -> Pace:
    """What holds for a worker with so many partitions; without end if nobody was told to slow down."""
    row = db.run("SELECT per_s, cut_at, not_before FROM rate").fetchone()
    per_s, cut_at, not_before = (inf, 0.0, 0.0) if row is None else row
    return Pace(per_s, cut_at, not_before, held / PARTITIONS)
