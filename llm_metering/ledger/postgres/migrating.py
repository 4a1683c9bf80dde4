"""The schema by numbered steps, each a file of SQL and one transaction: 0001_ledger.sql, 0002_….sql, …

They are run by `llm-metering ledger migrate`, never by a service that starts: a service says what to run.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from importlib import resources

from ...errors import LedgerError
from .connecting import SCHEMA, Db, Link

_FOLDER = resources.files(f"{__package__}").joinpath("migrations")
_LOCK = 0x6C6C6D6D  # "llmm"
_MADE = """
CREATE TABLE IF NOT EXISTS migration (
    number integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


def migrate(url: str, *, schema: str = SCHEMA) -> list[str]:
    """Bring a database up to this version; return the names of the steps that were taken.

    It may be run again, by several at once, and while services of the version before are at work.

    Raises:
        LedgerError: The server failed, or a newer version of llm_metering has been here.
    """
    link = Link(url, schema=schema, keep=False)
    taken: list[str] = []
    for number, name in scripts().items():
        if link.run(partial(_take, schema=schema, number=number, name=name)):
            taken.append(name)
    link.run(lambda db: check(db, link))
    return taken


def check(db: Db, link: Link) -> None:
    """Refuse a schema that is not of this version."""
    there, ours = version(db, link.schema), max(scripts())
    where = f"the database {link.place}"
    if there < ours:
        was = f"has the ledger's schema {there}" if there else "has no ledger yet"
        raise LedgerError(
            f"{where} {was}, and this version needs schema {ours}: run 'llm-metering ledger migrate'"
        )
    if there > ours:
        raise LedgerError(
            f"{where} has the ledger's schema {there}, which a newer version of llm_metering made; this one "
            f"knows {ours}: install the newer version here too"
        )


def version(db: Db, schema: str) -> int:
    """The number of the last step that was taken, 0 if none was."""
    if not _exists(db, schema):
        return 0
    return int(db.one("SELECT coalesce(max(number), 0) FROM migration")[0])


@lru_cache(maxsize=1)
def scripts() -> Mapping[int, str]:
    """The steps there are: number → file name, in their order."""
    names = sorted(f.name for f in _FOLDER.iterdir() if f.name.endswith(".sql"))
    return {int(name.partition("_")[0]): name for name in names}


def _take(db: Db, schema: str, number: int, name: str) -> bool:
    """Take a step unless it was taken; the lock lasts as long as the transaction."""
    db.run("SELECT pg_advisory_xact_lock(%(lock)s, hashtext(%(schema)s))", lock=_LOCK, schema=schema)
    if not _exists(db, schema):
        db.run(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        db.run(_MADE)
    if version(db, schema) >= number:
        return False
    db.run((_FOLDER / name).read_text(encoding="utf-8"))
    db.run("INSERT INTO migration (number, name) VALUES (%(number)s, %(name)s)", number=number, name=name)
    return True


def _exists(db: Db, schema: str) -> bool:
    return db.one("SELECT to_regclass(%(name)s)", name=f"{schema}.migration")[0] is not None
