"""A call that a wrapped client is making: what stands below it, a `MeteringTransport`, leaves it alone."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar, Token

_by: ContextVar[object | None] = ContextVar("llm_metering_claim", default=None)

is_needed = False
"""Whether there is anything below that could see the same call; until then nobody claims."""


def need() -> None:
    """From now on wrapped clients say when they make a call."""
    global is_needed
    is_needed = True


class claimed:  # noqa: N801  (used like a function)
    """`with claimed(recorder):` the call that is made inside is recorded by whoever makes it."""

    __slots__ = ("_recorder", "_token")

    def __init__(self, recorder: object) -> None:
        self._recorder = recorder
        self._token: Token[object | None] | None = None

    def __enter__(self) -> None:
        if is_needed:
            self._token = _by.set(self._recorder)

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            with suppress(ValueError):  # a call that is given up may be closed in another context
                _by.reset(self._token)


def is_claimed(recorder: object) -> bool:
    """Whether a wrapped client of the same recorder is making a call in this task or thread."""
    return _by.get() is recorder
