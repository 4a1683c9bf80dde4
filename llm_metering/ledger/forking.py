"""No fork while SQLite is at work.

A child inherits SQLite's own locks as they are, and none of the threads that hold them: one that was forked
from under a busy writer would wait for ever to open a lane, and write nothing.
"""

from __future__ import annotations

import os
import threading

PATIENCE_S = 2.0
"""A disk that hangs, or books that take long to read, hold up a fork no longer than this."""


class Gate:
    """Any number of threads may be inside of SQLite; a fork waits for them, and they for the fork.

    Args:
        patience_s: How long a fork waits, and how long others wait for it, at most.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._mine = threading.local()
        self.begin_anew()

    def __enter__(self) -> None:
        depth = self._depth()
        if not depth:
            with self._turn:
                self._turn.wait_for(lambda: not self._forks, self._patience_s)
                self._inside += 1
        self._mine.depth = depth + 1

    def __exit__(self, *_: object) -> None:
        self._mine.depth = depth = self._depth() - 1
        if not depth:
            with self._turn:
                self._inside -= 1
                self._turn.notify_all()

    def before_fork(self) -> None:
        """Let nobody in any more, and wait until the others are out."""
        with self._turn:
            self._forks += 1
            own = bool(self._depth())
            self._turn.wait_for(lambda: self._inside <= own, self._patience_s)

    def after_fork(self) -> None:
        with self._turn:
            self._forks -= 1
            self._turn.notify_all()

    def begin_anew(self) -> None:
        """In a child: of those who were inside, only the thread that forked is there."""
        self._turn = threading.Condition()
        self._forks = 0
        self._inside = int(bool(self._depth()))

    def _depth(self) -> int:
        return getattr(self._mine, "depth", 0)


GATE = Gate()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=GATE.before_fork, after_in_parent=GATE.after_fork, after_in_child=GATE.begin_anew
    )
