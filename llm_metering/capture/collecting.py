"""Whether this very thread is collecting garbage: then any lock may be held by the code beneath.

A stream or generator that is dropped in a reference cycle is closed by the collector, in the middle of
whatever this thread was doing, our own locked sections included.
"""

from __future__ import annotations

import gc
from threading import get_ident
from typing import Any

_thread = 0


def is_collecting() -> bool:
    """Whether this thread runs finalizers, called by the garbage collector."""
    return _thread == get_ident()


def watch() -> None:
    """Have the collector say when it runs. Harmless when repeated."""
    if _note not in gc.callbacks:
        gc.callbacks.append(_note)


def _note(phase: str, info: dict[str, Any]) -> None:
    global _thread
    _thread = get_ident() if phase == "start" else 0
