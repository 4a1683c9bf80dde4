"""Whether a lane's file says what it can mean. SQLite keeps no checksums: it finds a broken page, but not a
letter that changed inside of a text, and one such text would stop freezing or sending for all."""

# ruff: noqa: S608  (nothing but names of our own tables and columns is put into SQL; values are bound)
from __future__ import annotations

import json
import sqlite3
from decimal import Decimal
from typing import Any

_CHUNK = 10_000
_TEXTS = {
    "usage": ("id", "customer", "model", "provider", "response_id", "counts", "dimensions", "lines", "held"),
    "meter_event": ("identifier", "customer", "event_name", "value", "payload", "state", "reason"),
}
_JSON = {"usage": ("counts", "dimensions"), "meter_event": ("payload",)}
_WAITING = """
    SELECT e.event_name, e.customer, e.value, e.payload, k.event_name, k.customer_key, k.value_key
    FROM meter_event e LEFT JOIN line_key k ON k.id = e.line_key
    WHERE e.next_attempt_at IS NOT NULL OR e.state = 'SENDING'
"""


def check(db: sqlite3.Connection, *, indexes: bool, texts: bool) -> None:
    """Raise `sqlite3.DatabaseError` if the file is damaged.

    Args:
        indexes: Hold each index against its table, too.
        texts: Read every text, too.
    """
    how = "integrity_check" if indexes else "quick_check"
    (found,) = db.execute(f"PRAGMA {how}(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(str(found))
    if texts:
        try:
            _check_texts(db)
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            ArithmeticError,
            sqlite3.OperationalError,
        ) as exc:
            if isinstance(exc, sqlite3.OperationalError) and "decode" not in str(exc):
                raise
            raise sqlite3.DatabaseError(f"a text in it is not what it was: {exc}") from exc


def _check_texts(db: sqlite3.Connection) -> None:
    keys = {number for (number,) in db.execute("SELECT id FROM line_key")}
    for table, columns in _TEXTS.items():
        invalid = " OR ".join(f"NOT json_valid({column})" for column in _JSON[table])
        together = " || ' ' || ".join(f"ifnull({column}, '')" for column in columns)
        lines = "group_concat(lines)" if table == "usage" else "NULL"
        (last,) = db.execute(f"SELECT max(seq) FROM {table}").fetchone()
        for start in range(0, (last or 0) + 1, _CHUNK):
            bad, text, pairs = db.execute(
                f"SELECT total({invalid}), CAST(group_concat({together}, ' ') AS BLOB), "
                f"CAST({lines} AS BLOB) FROM {table} WHERE seq >= ? AND seq < ?",
                (start, start + _CHUNK),
            ).fetchone()
            if bad:
                raise ValueError(f"{int(bad)} texts in {table} are no JSON")
            (text or b"").decode()
            _check_lines(json.loads(b"[" + (pairs or b"") + b"]"), keys)
    for row in db.execute(_WAITING):
        _check_payload(*row)


def _check_payload(
    event_name: str, customer: str, value: str, payload: str, meter: str, customer_key: str, value_key: str
) -> None:
    """What will be sent is what the books hold."""
    found = json.loads(payload)
    if (event_name, customer, value) != (meter, found.get(customer_key), found.get(value_key)):
        raise ValueError("a meter event contradicts its payload")


def _check_lines(records: Any, keys: set[int]) -> None:
    for pairs in records:
        for number, value in pairs:
            if number not in keys or not (type(value) is int or Decimal(value).is_finite()):
                raise ValueError("a record adds to nothing that is known")
