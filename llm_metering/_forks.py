"""What a forked child forgets: threads, locks and connections are its parent's.

Whoever holds such a thing says so with `watch` when it is made. In a child `after_fork` of each is called
before anything else runs, in the order in which they were made.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakKeyDictionary


class Forgetful(Protocol):
    """Holds what a fork does not carry over. It is kept apart by identity, and not kept alive."""

    def after_fork(self) -> None:
        """Forget what is the parent's; must not fail."""


_watched: WeakKeyDictionary[Forgetful, None] = WeakKeyDictionary()  # which keeps an order, as a set does not


def watch(it: Forgetful) -> None:
    """Call its `after_fork` in every forked child, for as long as it lives."""
    _watched[it] = None


def _after_fork() -> None:
    for it in list(_watched):
        it.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
