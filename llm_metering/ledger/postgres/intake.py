"""Usage comes in: records and streams under way, and what becomes of streams that nobody ends any more.

Every function works inside a transaction. What is known already, by its id, changes nothing.
"""

# ruff: noqa: S608  (nothing but names of our own columns is put into SQL; values are bound)
from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from ...protocols import Entry, Progress
from .. import rows
from . import archiving
from .connecting import Db
from .storable import Column, floats, storable, texts
from .workers import STREAMS_S

_MAX_ID = 500
_NAMES = rows.RECORD.split(", ")
_NUMBERS = ("used_at", "recorded_at")
_COLUMNS = ", ".join(f"%({n})s::{'float8' if n in _NUMBERS else 'text'}[]" for n in _NAMES)
_GIVEN = f"unnest({_COLUMNS}) WITH ORDINALITY AS v ({rows.RECORD}, place)"
_NEW_USAGE = f"""
    INSERT INTO usage ({rows.RECORD}) SELECT {rows.RECORD} FROM {_GIVEN} ORDER BY place
    ON CONFLICT (id) DO NOTHING
"""
_NEW_PROGRESS = f"""
    INSERT INTO progress ({rows.RECORD}, worker) SELECT {rows.RECORD}, %(worker)s FROM {_GIVEN}
    WHERE NOT EXISTS (SELECT 1 FROM usage u WHERE u.id = v.id) ORDER BY v.id
    ON CONFLICT (id) DO UPDATE SET
        {", ".join(f"{n} = excluded.{n}" for n in _NAMES if n != "id")}, worker = excluded.worker
"""
_DEAD = """
    SELECT id FROM worker WHERE gone OR seen_at <= %(before)s ORDER BY id FOR UPDATE SKIP LOCKED
"""
_FORGOTTEN = """
    SELECT DISTINCT worker FROM progress p WHERE NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = p.worker)
"""
_RECOVER = f"""
    WITH left_behind AS (DELETE FROM progress WHERE worker = ANY(%(dead)s::text[]) RETURNING *)
    INSERT INTO usage ({rows.RECORD}) SELECT {rows.RECORD} FROM left_behind ORDER BY recorded_at
    ON CONFLICT (id) DO NOTHING RETURNING id
"""


class Intake:
    """Writes what one process records."""

    def __init__(self, db: Db, worker: str) -> None:
        self._db = db
        self._worker = worker
        self.keys = rows.LineKeys(db)
        self._records = rows.RecordRows(self.keys)

    def commit(
        self, entries: Sequence[Entry], progress: Sequence[Progress], drops: Sequence[str], now: float
    ) -> int:
        """Write all of it; return how many records were new."""
        # First what streams left behind, so that a record in the same group may close it.
        if progress:
            latest = {p.entry.record.id: p.entry for p in progress}
            self._run(_NEW_PROGRESS, list(latest.values()), now, worker=self._worker)
        new = self._run(_NEW_USAGE, entries, now) if entries else 0
        closed = [entry.closes for entry in entries if entry.closes is not None]
        if closed or drops:
            ids = sorted(_id(i) for i in (*closed, *drops))
            self._db.run("DELETE FROM progress WHERE id = ANY(%(ids)s::text[])", ids=ids)
        return new

    def take(self, records: Sequence[rows.Row], progress: Sequence[rows.Row], worker: str) -> int:
        """Write rows as they are, of which `worker` is heard; return how many records were new."""
        if progress:
            self._write(_NEW_PROGRESS, progress, worker=worker)
        return self._write(_NEW_USAGE, records) if records else 0

    def forget(self) -> None:
        """What a rollback may have taken away."""
        self.keys.forget()

    def _run(self, query: str, entries: Sequence[Entry], now: float, **more: Any) -> int:
        return self._write(query, [self._records.row(entry, now) for entry in entries], **more)

    def _write(self, query: str, found: Sequence[rows.Row], **more: Any) -> int:
        made = dict(zip(_NAMES, zip(*found, strict=True), strict=True))
        made["id"] = tuple([_id(i) for i in made["id"]])
        columns: dict[str, Column] = {
            name: floats(values) if name in _NUMBERS else texts(values) for name, values in made.items()
        }
        new = self._db.run(query, **columns, **more).rowcount
        return new - archiving.forget_known(self._db, columns["id"]) if new and query is _NEW_USAGE else new


def recover(db: Db, now: float, *, awake_since: float = 0.0) -> None:
    """What processes left under way that are gone, or not heard of any more, becomes usage.

    Args:
        awake_since: When the ledger could be reached again. Who was silent while it could not may be well,
            and about to forward how its streams ended.
    """
    before = now - STREAMS_S if now - awake_since >= STREAMS_S else float("-inf")
    dead = [id_ for (id_,) in db.run(_DEAD, before=before)]
    dead += [id_ for (id_,) in db.run(_FORGOTTEN)]
    if dead:
        archiving.forget_known(db, [id_ for (id_,) in db.run(_RECOVER, dead=dead)])
        db.run("DELETE FROM worker WHERE id = ANY(%(dead)s::text[])", dead=dead)


def _id(given: str) -> str:
    """The id of a record, or one that stands for it: no index takes texts without end."""
    text = storable(given) or ""
    return text if len(text) <= _MAX_ID else f"{text[:100]}…{sha256(text.encode()).hexdigest()}"
