"""Exact decimal arithmetic, rounding and the way amounts are written. Never a float.

Every function here uses its own context, so that a thread's decimal settings change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Context, Decimal

EXACT = Context(prec=120, rounding=ROUND_HALF_UP)
"""Wide enough that sums and products of the values that Stripe allows are never rounded."""

ZERO = Decimal(0)
_ZERO_DECIMAL = "bif clp djf gnf jpy kmf krw mga pyg rwf ugx vnd vuv xaf xof xpf"
ZERO_DECIMAL = frozenset(_ZERO_DECIMAL.split())
"""Currencies whose minor unit is the unit itself."""

_SYMBOLS = {
    "usd": "$",
    "eur": "€",
    "gbp": "£",
    "jpy": "¥",
    "cad": "CA$",
    "aud": "A$",
    "nzd": "NZ$",
    "brl": "R$",
    "inr": "₹",
    "krw": "₩",
}


def add(values: Iterable[Decimal]) -> Decimal:
    """The exact sum."""
    total = ZERO
    for value in values:
        total = EXACT.add(total, value)
    return total


def minor_units(amount: Decimal) -> int:
    """A decimal amount as a whole number of minor units, a half going up."""
    return int(EXACT.quantize(amount, Decimal(1)))


def plain(value: Decimal) -> str:
    """The shortest way to write a number without an exponent: "4", "0.036", "3000"."""
    text = f"{value:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def shown(minor: Decimal, currency: str) -> str:
    """An amount in minor units as people read it: "$0.04", "$0.036", "¥400"."""
    symbol = _SYMBOLS.get(currency, f"{currency.upper()} ")
    if currency in ZERO_DECIMAL:
        return symbol + plain(minor)
    whole, _, rest = plain(EXACT.scaleb(minor, -2)).partition(".")
    return f"{symbol}{whole}.{rest.ljust(2, '0')}"
