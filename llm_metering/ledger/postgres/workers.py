"""Who works on the ledger, and on which customers: workers, and the partitions that each of them holds.

Customers are told apart by hash into 64 partitions. A worker that freezes or sends leases its share of them,
each lease with a fence of its own; what is a partition's is frozen and sent by its holder only, so that one
call at a time for each customer and meter holds however many workers there are. A worker that is gone, or
silent for longer than its lease, loses its partitions to the others; what it was sending is then AMBIGUOUS,
and whatever it writes later under its old fences changes nothing.
"""

from __future__ import annotations

import os
import socket

from ...protocols import Transition
from .connecting import Db
from .sending import crash_sending

PARTITIONS = 64
HOLD_S = 60.0
"""How long a worker may be silent before others take its partitions."""
STREAMS_S = 900.0
"""How long a process may be silent before its streams under way count as ended. A process that records is
heard of every `flush_every_s`."""
_TOUCH_EVERY_S = 10.0

_TOUCH = """
    INSERT INTO worker (id, host, pid, seen_at, delivers_until)
    VALUES (%(id)s, %(host)s, %(pid)s, %(now)s, %(until)s)
    ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at, gone = false,
        delivers_until = coalesce(excluded.delivers_until, worker.delivers_until)
"""
_SHARE = """
    SELECT (SELECT count(*) FROM partition),
        (SELECT count(*) FROM worker WHERE delivers_until > %(now)s AND NOT gone)
"""
_LOCK = "SELECT number FROM partition WHERE worker = %(id)s ORDER BY number FOR UPDATE SKIP LOCKED"
_RENEW = "UPDATE partition SET lease_until = %(until)s WHERE number = ANY(%(numbers)s::smallint[])"
_RELEASE = """
    UPDATE partition p SET worker = NULL, lease_until = NULL
    WHERE number = ANY(%(numbers)s::smallint[]) AND NOT EXISTS (
        SELECT 1 FROM meter_event e WHERE e.partition = p.number AND e.state = 'SENDING')
    RETURNING number
"""
_FREE = """
    SELECT number FROM partition
    WHERE (worker IS NULL OR lease_until <= %(now)s) AND worker IS DISTINCT FROM %(id)s
    ORDER BY number LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""
_TAKE = """
    UPDATE partition SET worker = %(id)s, lease_until = %(until)s, fence = nextval('fence')
    WHERE number = ANY(%(numbers)s::smallint[])
"""


class Post:
    """One worker's place among the others. Every method works inside a transaction."""

    def __init__(self, worker: str, hold_s: float = HOLD_S) -> None:
        self.worker = worker
        self._hold_s = hold_s
        self.partitions: list[int] | None = None
        """Those that it held when it last looked; None if it never did, as one that only records."""
        self._touched_at = float("-inf")
        self._renewed_at = float("-inf")

    def touch(self, db: Db, now: float, *, delivers: bool = False) -> None:
        """Say that this process is at work; seldom more than every ten seconds."""
        if not delivers and 0 <= now - self._touched_at < _TOUCH_EVERY_S:
            return
        until = now + self._hold_s if delivers else None
        host = socket.gethostname()
        db.run(_TOUCH, id=self.worker, host=host, pid=os.getpid(), now=now, until=until)
        self._touched_at = now

    def hold(self, db: Db, now: float, *, balance: bool = False) -> tuple[list[int], list[Transition]]:
        """The partitions that are this worker's for the rest of the transaction, and what taking some of
        them from others changed.

        Args:
            balance: Look whether the share is right, as others may have come or gone.
        """
        mine = [number for (number,) in db.run(_LOCK, id=self.worker)]
        due = not 0 <= now - self._renewed_at < self._hold_s / 6
        if due:
            self.touch(db, now, delivers=True)
            db.run(_RENEW, numbers=mine, until=now + self._hold_s)
        changed: list[Transition] = []
        if due or balance or not self.partitions:
            mine, changed = self._balance(db, now, mine)
        self._renewed_at = now if due else self._renewed_at
        self.partitions = mine
        return mine, changed

    def leave(self, db: Db) -> None:
        """Let everything go at once."""
        db.run("UPDATE partition SET worker = NULL, lease_until = NULL WHERE worker = %(id)s", id=self.worker)
        db.run("UPDATE worker SET gone = true WHERE id = %(id)s", id=self.worker)
        self.forget()

    def forget(self) -> None:
        """What was known may have changed."""
        self.partitions = None
        self._touched_at = self._renewed_at = float("-inf")

    def _balance(self, db: Db, now: float, mine: list[int]) -> tuple[list[int], list[Transition]]:
        all_of_them, workers = db.one(_SHARE, now=now)
        share = -(-all_of_them // max(workers, 1))
        if len(mine) > share:
            given = {number for (number,) in db.run(_RELEASE, numbers=mine[share:])}
            return [number for number in mine if number not in given], []
        return self._take(db, now, mine, share - len(mine)) if len(mine) < share else (mine, [])

    def _take(self, db: Db, now: float, mine: list[int], wanted: int) -> tuple[list[int], list[Transition]]:
        free = [number for (number,) in db.run(_FREE, id=self.worker, now=now, limit=wanted)]
        if not free:
            return mine, []
        db.run(_TAKE, id=self.worker, until=now + self._hold_s, numbers=free)
        return sorted(mine + free), crash_sending(db, now, free)


def crash_orphans(db: Db, now: float) -> list[Transition]:
    """What was being sent from partitions that nobody holds."""
    free = [number for (number,) in db.run(_FREE, id="", now=now, limit=None)]
    return crash_sending(db, now, free)
