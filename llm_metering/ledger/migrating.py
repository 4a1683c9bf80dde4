"""Brings the file of an older version up to this one, one number at a time, with a backup beside it.

It runs where a lane is taken, under its lock. The backup is whole and on disk before the first change; each
step is one transaction that also counts the number up, so a crash leaves a file of one version or the next.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from .._failpoints import failpoint
from . import folder as files
from . import schema


def migrate(folder: Path, name: str, db: sqlite3.Connection) -> Path | None:
    """Bring an open lane up to `schema.VERSION`; return the backup, None if nothing was to do."""
    version = schema.version_of(db)
    if version is None or version >= schema.VERSION:
        return None
    backup = back_up(folder, name, db, version)
    failpoint("after_backup")
    bring_up(db)
    failpoint("after_migration")
    return backup


def is_passing(exc: Exception) -> bool:
    """Whether what went wrong says nothing of the migration: a disk, a lock, a folder that can be mended."""
    return not isinstance(exc, sqlite3.Error) or any(said in str(exc) for said in _PASSING)


def bring_up(db: sqlite3.Connection) -> None:
    """Take each step that is missing."""
    while (version := schema.version_of(db)) is not None and version < schema.VERSION:
        db.execute("BEGIN IMMEDIATE")
        try:
            schema.step(db, version)
            failpoint("in_migration")
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise


def back_up(folder: Path, name: str, db: sqlite3.Connection, version: int) -> Path:
    """A whole copy of the lane, on disk when this returns. A later one of the same version replaces it: it
    is made before the file changes, so it holds no less."""
    place = files.subfolder(folder, "backups")
    target = place / f"lane-{name}-schema{version}.db"
    draft = place / f".{target.name}.{os.getpid()}"
    try:
        with closing(sqlite3.connect(draft)) as copy:
            draft.chmod(0o600)
            db.backup(copy)
        fd = os.open(draft, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        draft.rename(target)
        files.sync(place)
    finally:
        draft.unlink(missing_ok=True)
    return target


_PASSING = (
    "disk I/O error",
    "database or disk is full",
    "database is locked",
    "database table is locked",
    "unable to open database file",
    "attempt to write a readonly database",
    "interrupted",
)
"""What SQLite says of things that pass. Its error codes have names from Python 3.11 on only."""
