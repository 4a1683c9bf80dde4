"""Values as PostgreSQL takes them: texts without lone surrogates and NUL, and whole columns as literals.

A column is written in a few strokes however many rows it has: psycopg's own arrays cost three times as much
as all else that is done for a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..lines import clean

Column = str | list[Any]
"""A literal, or a list where the values hold what marks a literal's parts."""

_NEXT, _NONE = "\x1f", "\x1e"


def storable(text: str | None) -> str | None:
    """The text, with what cannot be stored written out."""
    return None if text is None else clean(text).replace("\x00", "\\x00")


def texts(column: Iterable[str | None]) -> Column:
    """A column for `::text[]`, of texts that can be stored."""
    given = list(column)
    joined = _NEXT.join([_NONE if v is None else v for v in given])
    if not joined.isascii() or "\x00" in joined:
        given = [storable(v) for v in given]
        joined = _NEXT.join([_NONE if v is None else v for v in given])
    if not given or joined.count(_NEXT) != len(given) - 1 or joined.count(_NONE) != given.count(None):
        return given
    escaped = joined.replace("\\", "\\\\").replace('"', '\\"').replace(_NEXT, '","')
    return f'{{"{escaped}"}}'.replace(f'"{_NONE}"', "NULL")


def whole(column: Iterable[int | None]) -> Column:
    """A column for `::bigint[]` and its like."""
    return f"{{{','.join(['NULL' if v is None else str(v) for v in column])}}}"


def floats(column: Iterable[float | None]) -> Column:
    """A column for `::float8[]`."""
    return f"{{{','.join(['NULL' if v is None else repr(float(v)) for v in column])}}}"
