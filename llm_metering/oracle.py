"""What Stripe's summaries say of meter events: which of them were counted, if that can be told. Pure.

Stripe shows sums, never events. An event is known to have been counted, or not, only where the sums leave
exactly one explanation; everything else is left to a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal, localcontext

_SURE_DIGITS = 15
"""Decimals of so many digits survive a double, and Stripe's answers may have passed through one."""
_MAX_SUMS = 4096
_EXACT = Context(prec=200)


def same(stripe: Decimal, ours: Decimal) -> bool:
    """Whether Stripe's number is ours, as far as a double can tell."""
    if stripe == ours:
        return True
    return len(ours.normalize(_EXACT).as_tuple().digits) > _SURE_DIGITS and float(stripe) == float(ours)


def total(values: Sequence[Decimal]) -> Decimal:
    """The exact sum."""
    with localcontext(_EXACT):
        return sum(values, Decimal(0))


def minus(a: Decimal, b: Decimal) -> Decimal:
    """The exact difference."""
    return _EXACT.subtract(a, b)


def explanations(
    base: Decimal, values: Sequence[Decimal], stripe: Decimal, *, at_most: int = 2
) -> list[tuple[int, ...]] | None:
    """Which of `values` (by place) must be added to `base` to come to Stripe's number.

    Returns:
        Every set of them that does, but no more than `at_most`; None where there are too many sums to tell.
    """
    # All sums that can be reached, each with a few of the ways that lead there.
    ways: dict[Decimal, list[tuple[int, ...]]] = {base: [()]}
    for place, value in enumerate(values):
        reached = {key: list(found) for key, found in ways.items()}
        for key, found in ways.items():
            into = reached.setdefault(_EXACT.add(key, value), [])
            into += [(*way, place) for way in found][: at_most - len(into)]
        if len(reached) > _MAX_SUMS:
            return None
        ways = reached
    fits = [way for key, found in ways.items() if same(stripe, key) for way in found]
    return fits[:at_most]
