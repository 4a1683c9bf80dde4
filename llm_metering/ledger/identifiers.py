"""Identifiers of meter events, which are made by the hundred."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

NewId = Callable[[], str]


def new_identifier() -> str:
    """32 hexadecimal digits, no two the same: the moment in milliseconds, then 80 random bits.

    Rows of identifiers that were made together lie together, and what is sent together is then written in
    a few pages of the file rather than in one each.
    """
    return _made(1)[0]


def identifiers(new_id: NewId, count: int) -> list[str]:
    """So many of them, in their order."""
    return sorted(_made(count)) if new_id is new_identifier else [new_id() for _ in range(count)]


def _made(count: int) -> list[str]:
    moment, dice = f"{time.time_ns() // 1_000_000:012x}", os.urandom(10 * count).hex()
    return [moment + dice[place : place + 20] for place in range(0, 20 * count, 20)]
