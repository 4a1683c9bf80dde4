"""Archived rows become files: whole months, each written, counted and then dropped in one transaction."""

# ruff: noqa: S608  (nothing but names of our own tables is put into SQL)
from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from ...errors import LedgerError
from . import migrating
from .archiving import LEAST_AGE_S, TABLES, Moved, Mover, span
from .connecting import SCHEMA, Db, Link

_MONTHS = """
    SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = %(table)s::regclass ORDER BY 1
"""
# Two control characters that JSON never holds, so that a row is written as it is.
_COPY = (
    "COPY (SELECT row_to_json(t) FROM {table} t) TO STDOUT (FORMAT csv, DELIMITER E'\\x02', QUOTE E'\\x01')"
)
_NOTE = """
    INSERT INTO archived_file (kind, month, until, rows, file, written_at)
    VALUES (%(kind)s, %(month)s, %(until)s, %(rows)s, %(file)s, %(now)s)
"""


@dataclass(frozen=True, slots=True)
class Shelved:
    """One month of one kind, in a file."""

    kind: str
    month: str
    rows: int
    file: str


class Archivist:
    """Archives rows of a ledger, and writes the archive's months to files.

    Its role has to own the tables, as the one that `ledger migrate` was run with does: months are tables.
    """

    def __init__(self, url: str, *, schema: str = SCHEMA) -> None:
        self._link = Link(url, schema=schema)

    def close(self) -> None:
        self._link.close()

    def archive(self, older_than_s: float, told: Callable[[Moved], object] = lambda _: None) -> Moved:
        """Move what is older out of the tables that are at work.

        Raises:
            LedgerError: The server failed; what was moved until then stays moved.
            ValueError: It is too young to be archived.
        """
        if older_than_s < LEAST_AGE_S:
            raise ValueError(f"nothing younger than {LEAST_AGE_S / 86_400:.0f} days is archived")
        mover = Mover(self._link.run(partial(_checked, link=self._link)) - older_than_s)
        while not mover.done:
            if (step := self._link.run(mover.step)) is None:
                raise LedgerError("another process archives this ledger just now; try again later")
            mover.advance(step)
            told(mover.moved)
        return mover.moved

    def shelve(self, folder: Path, older_than_s: float) -> list[Shelved]:
        """Write the months that lie wholly before to files in a folder, and drop them.

        Raises:
            LedgerError: The server failed; a month is dropped only once its file is on the disk.
        """
        folder.mkdir(parents=True, exist_ok=True)
        before = self._link.run(partial(_checked, link=self._link)) - older_than_s
        due = self._link.run(partial(_due, before=before))
        return [self._shelve(folder, *each) for each in due]

    def _shelve(self, folder: Path, table: str, kind: str, month: str, until: int) -> Shelved:
        return self._link.run(lambda db: _to_file(db, folder, table, kind, month, until))


def _checked(db: Db, link: Link) -> float:
    migrating.check(db, link)
    return db.began_at


def _due(db: Db, before: float) -> list[tuple[str, str, str, int]]:
    """The months that are over: table, kind, month, end."""
    found = []
    for parent in TABLES:
        for (table,) in db.run(_MONTHS, table=parent).fetchall():
            month = table.removeprefix(f"{parent}_")
            _, end = span(month)
            if end <= before:
                found.append((table, parent.removeprefix("archive_"), month.replace("_", "-"), end))
    return found


def _to_file(db: Db, folder: Path, table: str, kind: str, month: str, until: int) -> Shelved:
    db.run(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
    (count,) = db.one(f"SELECT count(*) FROM {table}")
    path = _free(folder, f"{kind}-{month}")
    part = path.with_name(f"{path.name}.part")
    part.touch(mode=0o600)
    with part.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as out:
        for data in db.copied(_COPY.format(table=table)):
            out.write(data)
        out.close()
        _to_disk(raw)
    if (written := _lines(part)) != count:
        raise LedgerError(f"{part} holds {written} rows of {count}; nothing was dropped")
    part.rename(path)
    _folder_to_disk(folder)
    db.run(_NOTE, kind=kind, month=month, until=until, rows=count, file=str(path), now=db.began_at)
    db.run(f"DROP TABLE {table}")
    return Shelved(kind, month, count, str(path))


def _free(folder: Path, name: str) -> Path:
    """A name that no file has: rows of a month may be archived after its file was written."""
    path, n = folder / f"{name}.jsonl.gz", 1
    while path.exists():
        n += 1
        path = folder / f"{name}.{n}.jsonl.gz"
    return path


def _lines(path: Path) -> int:
    """How many rows a file holds, each read back."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return sum(1 for line in lines if isinstance(json.loads(line), dict))


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _folder_to_disk(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
