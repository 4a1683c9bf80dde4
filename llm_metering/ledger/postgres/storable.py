"""Values as PostgreSQL takes them: texts without lone surrogates and NUL, columns of one type of number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..lines import clean


def storable(text: str | None) -> str | None:
    """The text, with what cannot be stored written out."""
    return None if text is None else clean(text).replace("\x00", "\\x00")


def floats(column: Iterable[float | None]) -> list[float | None]:
    return [None if value is None else float(value) for value in column]


def storable_row(row: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(storable(v) if isinstance(v, str) else v for v in row)
