"""Usage becomes meter events, in one transaction for all closed buckets of the partitions that are held."""

# ruff: noqa: S608  (nothing but names of our own columns is put into SQL; values are bound)
from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from .. import rows
from ..freezing import Draft, bucket_of, drafts, meter_event
from ..lines import plain
from .connecting import Db
from .storable import Column, texts, whole

_OURS = '"freeze" IS NULL AND customer IS NOT NULL AND partition = ANY(%(mine)s::smallint[])'
_BILLABLE = f"{_OURS} AND held IS NULL"
_DOUBTED = f"{_OURS} AND held = %(held)s"
# One row a customer, not one a record. What is committed meanwhile is not in it, and is left to the next.
_TAKEN = """
    WITH taken AS (
        UPDATE usage SET "freeze" = %(freeze)s, held = NULL
        WHERE {which} AND used_at >= %(start)s AND used_at < %(end)s
        RETURNING customer, used_at, seq, lines
    )
    SELECT customer, count(*), string_agg(
        '[' || trunc(used_at * 1000000)::bigint || ',' || seq || ',' || lines || ']', ',')
    FROM taken GROUP BY customer ORDER BY customer
"""
_NEW_EVENTS = """
    INSERT INTO meter_event (identifier, "freeze", line_key, customer, event_name, value, timestamp, payload,
        frozen_at, next_attempt_at, state)
    SELECT identifier, %(freeze)s, line_key, customer, event_name, value, timestamp, payload,
        %(now)s, %(due)s, 'PENDING'
    FROM unnest(%(identifier)s::text[], %(line_key)s::bigint[], %(customer)s::text[], %(event_name)s::text[],
        %(value)s::numeric[], %(timestamp)s::bigint[], %(payload)s::text[]) WITH ORDINALITY
        AS v (identifier, line_key, customer, event_name, value, timestamp, payload, place)
    ORDER BY place
"""
# As if one attempt had been made, of which nobody knows how it ended.
_IN_DOUBT = """
    WITH doubted AS (
        UPDATE meter_event SET state = 'IN_DOUBT', attempts = 1, attempt_started_at = %(at)s,
            first_ambiguous_at = %(since)s, next_attempt_at = NULL, reason = %(why)s, fence = nextval('fence')
        WHERE "freeze" = %(freeze)s RETURNING identifier, attempts, fence
    )
    INSERT INTO attempt (identifier, number, fence, started_at, ended_at, outcome, message)
    SELECT identifier, attempts, fence, %(since)s, %(at)s, 'ambiguous', %(why)s FROM doubted
"""


class Freezer:
    """Freezes usage. Its method works inside a transaction."""

    def __init__(self, db: Db, keys: rows.LineKeys, new_id: Callable[[], str]) -> None:
        self._db = db
        self._keys = keys
        self._new_id = new_id

    def freeze(
        self,
        mine: Sequence[int],
        *,
        now: float,
        bucket_s: int,
        everything: bool,
        early_at: Callable[[], float],
    ) -> int:
        """Freeze what is billable; return how many events that made.

        Args:
            everything: Usage of buckets that are open still, too.
            early_at: Asked for where there is such usage: from when on its events may be sent.
        """
        made = 0
        after = float("-inf")
        while (first := self._first(mine, after)) is not None:
            start, end = bucket_of(first, bucket_s)
            if now >= end:
                made += self._freeze_bucket(mine, start, end, now, now)[1]
            elif everything:
                made += self._freeze_bucket(mine, start, end, now, early_at())[1]
            elif start > now:
                break
            after = end
        return made

    def doubt(
        self, mine: Sequence[int], held: str, *, since: float, at: float, now: float, bucket_s: int
    ) -> int:
        """Make events IN_DOUBT of usage that is held for this reason; return how many.

        Args:
            since: When they may have been sent at the earliest.
            at: And at the latest.
        """
        made = 0
        after = float("-inf")
        while (first := self._first(mine, after, _DOUBTED, held=held)) is not None:
            start, after = bucket_of(first, bucket_s)
            freeze, count = self._freeze_bucket(mine, start, after, now, now, _DOUBTED, held=held)
            self._db.run(_IN_DOUBT, freeze=freeze, since=since, at=at, why=held)
            made += count
        return made

    def _first(self, mine: Sequence[int], after: float, which: str = _BILLABLE, **more: str) -> float | None:
        query = f"SELECT min(used_at) FROM usage WHERE {which} AND used_at >= %(after)s"
        first: float | None = self._db.one(query, mine=list(mine), after=after, **more)[0]
        return first

    def _freeze_bucket(
        self,
        mine: Sequence[int],
        start: int,
        end: int,
        now: float,
        due: float,
        which: str = _BILLABLE,
        **more: str,
    ) -> tuple[int, int]:
        """The number of the freeze, and how many events it made."""
        (freeze,) = self._db.one(
            'INSERT INTO "freeze" (bucket, bucket_s, records, frozen_at) '
            "VALUES (%(start)s, %(length)s, 0, %(now)s) RETURNING id",
            start=start,
            length=end - start,
            now=now,
        )
        query = _TAKEN.format(which=which)
        taken = self._db.run(query, freeze=freeze, mine=list(mine), start=start, end=end, **more).fetchall()
        made = drafts(chain.from_iterable(self._unpack(customer, text) for customer, _, text in taken))
        self._insert(made, freeze, now, due)
        self._db.run(
            'UPDATE "freeze" SET records = %(records)s WHERE id = %(freeze)s',
            records=sum(count for _, count, _ in taken),
            freeze=freeze,
        )
        return int(freeze), len(made)

    def _unpack(self, customer: str, text: str) -> Iterator[tuple[str, float, rows.Lines]]:
        for used_us, _, pairs in sorted(json.loads(f"[{text}]")):
            yield customer, used_us / 1e6, rows.lines_of(pairs, self._keys)

    def _insert(self, made: Sequence[Draft], freeze: int, now: float, due: float) -> None:
        if not made:
            return
        events = [meter_event(draft, self._new_id(), now=now) for draft in made]
        columns: dict[str, Column] = {
            "identifier": texts(e.identifier for e in events),
            "line_key": whole(self._keys.number(draft.key) for draft in made),
            "customer": texts(e.customer for e in events),
            "event_name": texts(e.event_name for e in events),
            "value": texts(plain(e.value) for e in events),
            "timestamp": whole(e.timestamp for e in events),
            "payload": texts(rows.payload_json(e) for e in events),
        }
        self._db.run(_NEW_EVENTS, freeze=freeze, now=now, due=due, **columns)
