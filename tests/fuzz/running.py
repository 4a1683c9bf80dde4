"""Trying a target for a time, each round from another seed, so that what is found can be found again."""

from __future__ import annotations

import time

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tests.fuzz.targets import TARGETS

ROUND = 250
"""Examples of one seed."""


def fuzz(name: str, *, seconds: float, first_seed: int) -> int:
    """Try one target; how many seeds were tried. What fails is raised, shrunk, with its seed."""
    target, strategies = TARGETS[name]
    ends_at = time.monotonic() + seconds
    number = first_seed
    while number == first_seed or time.monotonic() < ends_at:
        one_round = given(st.tuples(*strategies))(_fresh(target))
        one_round = settings(
            max_examples=ROUND,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.target, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )(seed(number)(one_round))
        try:
            one_round()
        except BaseException as exc:
            if isinstance(exc, KeyboardInterrupt):
                raise
            raise AssertionError(f"{name}, seed {number}: {type(exc).__name__}: {exc}") from exc
        number += 1
    return number - first_seed


def _fresh(target):  # type: ignore[no-untyped-def]
    """A function of its own: Hypothesis remembers settings and seeds on the one that it is given."""

    def one(drawn):  # type: ignore[no-untyped-def]
        target(*drawn)

    one.__name__ = one.__qualname__ = target.__name__
    return one
