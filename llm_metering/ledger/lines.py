"""Values of lines, exact however large, and the key under which lines are added up."""

from __future__ import annotations

from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow, Rounded
from typing import Literal, NamedTuple

from ..usage import Line

Value = int | Decimal

MAX_PLACES = 30
MAX_DIGITS = 60

# An addition that would round raises instead: a sum is exact or it is an error.
_EXACT = Context(prec=400, traps=[Inexact, Rounded, InvalidOperation, Overflow, DivisionByZero])


class LineKey(NamedTuple):
    """Which meter a line goes to, and how it stands in the payload. Lines of one key can be added up."""

    event_name: str
    dimensions: tuple[tuple[str, str], ...]
    customer_key: str
    value_key: str
    aggregation: Literal["sum", "count", "last"]


def key_of(line: Line) -> LineKey:
    return LineKey(line.event_name, line.dimensions, line.customer_key, line.value_key, line.aggregation)


def add(a: Value, b: Value) -> Value:
    """The exact sum."""
    if type(a) is int and type(b) is int:
        return a + b
    return _EXACT.add(Decimal(a), Decimal(b))


def less(a: Value, b: Value) -> Value:
    """The exact difference."""
    if type(a) is int and type(b) is int:
        return a - b
    return _EXACT.subtract(Decimal(a), Decimal(b))


def decimal(value: Value) -> Decimal:
    return value if isinstance(value, Decimal) else Decimal(value)


def checked(value: object) -> Value:
    """A value that can be stored and added up; anything else is a ValueError."""
    if type(value) is int:
        return value
    if isinstance(value, Decimal) and value.is_finite():
        places = -int(value.as_tuple().exponent)
        if places <= MAX_PLACES and value.adjusted() < MAX_DIGITS:
            return value
    raise ValueError(
        f"a line's value must be a whole number or a Decimal of at most {MAX_PLACES} places, not {value!r}"
    )


def plain(value: Value) -> str:
    """Plain decimal notation without exponent or idle zeros: Stripe reads no `1e-05`."""
    if type(value) is int:
        return str(value)
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def clean(text: str) -> str:
    """The text with lone surrogates written out, which no database and no wire would take."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
