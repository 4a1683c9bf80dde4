"""Who works on the ledger and on which customers, for a person who looks, and for one who moves a partition.

Every function works inside a transaction.
"""

from __future__ import annotations

from dataclasses import dataclass

from .connecting import Db
from .workers import HOLD_S


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A process that records or delivers."""

    id: str
    host: str
    pid: int
    seen_at: float
    delivers: bool
    """Whether it takes part in delivery, as of its last word."""
    partitions: tuple[int, ...]
    """Those that it holds."""


@dataclass(frozen=True, slots=True)
class PartitionRow:
    """The customers of one hash: who sends for them, and what waits."""

    number: int
    worker: str | None
    host: str | None
    fence: int
    lease_until: float | None
    unfrozen_records: int
    pending: int
    """Meter events to be sent."""
    sending: int
    oldest_pending_at: float | None
    """When the oldest usage was that Stripe has not accepted."""


_WORKERS = """
    SELECT w.id, w.host, w.pid, w.seen_at, coalesce(w.delivers_until > %(now)s, false),
        coalesce(array_agg(p.number ORDER BY p.number) FILTER (WHERE p.number IS NOT NULL), '{}')
    FROM worker w LEFT JOIN partition p ON p.worker = w.id
    WHERE NOT w.gone GROUP BY w.id ORDER BY w.host, w.pid, w.id
"""
_PARTITIONS = """
    WITH waits AS (
        SELECT partition, count(*) FILTER (WHERE state <> 'SENDING') AS pending,
            count(*) FILTER (WHERE state = 'SENDING') AS sending, min(timestamp) AS oldest
        FROM meter_event WHERE next_attempt_at IS NOT NULL OR state = 'SENDING' GROUP BY partition
    ), unfrozen AS (
        SELECT partition, count(*) AS records, min(used_at) AS oldest FROM usage
        WHERE "freeze" IS NULL AND held IS NULL AND customer IS NOT NULL GROUP BY partition
    )
    SELECT p.number, p.worker, w.host, p.fence, p.lease_until, coalesce(u.records, 0),
        coalesce(e.pending, 0), coalesce(e.sending, 0), least(u.oldest, e.oldest)
    FROM partition p LEFT JOIN worker w ON w.id = p.worker
        LEFT JOIN waits e ON e.partition = p.number LEFT JOIN unfrozen u ON u.partition = p.number
    ORDER BY p.number
"""
# Its holder locks it for each of its transactions, so none of them is under way beside this.
_LOCK = "SELECT worker FROM partition WHERE number = %(number)s FOR UPDATE"
_BUSY = "SELECT count(*) FROM meter_event WHERE partition = %(number)s AND state = 'SENDING'"
_GIVE = """
    UPDATE partition SET worker = %(to)s, fence = nextval('fence'),
        lease_until = CASE WHEN %(to)s::text IS NULL THEN NULL ELSE %(until)s END
    WHERE number = %(number)s
"""
_DELIVERS = "SELECT count(*) FROM worker WHERE id = %(id)s AND NOT gone AND delivers_until > %(now)s"


def workers(db: Db) -> list[WorkerRow]:
    return [
        WorkerRow(id_, host, pid, seen_at, delivers, tuple(numbers))
        for id_, host, pid, seen_at, delivers, numbers in db.run(_WORKERS, now=db.began_at)
    ]


def partitions(db: Db) -> list[PartitionRow]:
    return [PartitionRow(*row) for row in db.run(_PARTITIONS)]


def give(db: Db, number: int, to: str | None, *, now: float) -> str | None:
    """Take a partition from whoever holds it, for this worker or for whoever is short of one; return why
    that cannot be now, None if it was done.

    Nothing is taken in the middle of a call to Stripe: that of its holder would be in doubt, and the next
    holder would send beside it.
    """
    if db.run(_LOCK, number=number).fetchone() is None:
        return f"there is no partition {number}"
    if to is not None and not db.one(_DELIVERS, id=to, now=now)[0]:
        return f"no worker {to} delivers"
    if busy := db.one(_BUSY, number=number)[0]:
        return f"{busy} of its meter events are being sent"
    db.run(_GIVE, number=number, to=to, until=now + HOLD_S)
    return None
