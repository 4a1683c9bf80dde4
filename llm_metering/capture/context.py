"""The request's context: who is billed, what for, and which answers have been counted.

The context variable holds one mutable `Scope` a request, set by the outermost layer. Threads and tasks copy
the context but share that object, so what an endpoint counts the middleware sees.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

from ..protocols import Ticket
from ..usage import Surface, UsageRecord

_current: ContextVar[Scope | None] = ContextVar("llm_metering_scope", default=None)

_MAX_KEYS = 4096


class Sightings:
    """Which answers which surface has seen, so that one answer counts once however many saw it.

    Each surface counts how often it saw a key; the answer is counted as often as the surface that saw it
    most. So a wrapped client that receives the same id twice (a stub, a cache, a vendor with short ids)
    counts twice, and a decorator round both adds nothing.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[str, dict[Surface, int]] = OrderedDict()
        self._lock = Lock()

    def is_new(self, key: str, surface: Surface) -> bool:
        """Note a sighting; whether it is to be counted."""
        with self._lock:
            seen = self._seen.setdefault(key, {})
            most = max(seen.values(), default=0)
            seen[surface] = seen.get(surface, 0) + 1
            if len(self._seen) > _MAX_KEYS:
                self._seen.popitem(last=False)
            return seen[surface] > most


class Scope:
    """One request, or one `bound(...)` block inside or outside of a request."""

    __slots__ = (
        "asgi", "closed", "customer", "dimensions", "parent", "parked", "recorded", "resolved",
        "sightings", "tickets",
    )  # fmt: skip

    def __init__(
        self,
        *,
        asgi: MutableMapping[str, Any] | None = None,
        parent: Scope | None = None,
        customer: str | None = None,
        dimensions: Mapping[str, str] | None = None,
    ) -> None:
        self.asgi = asgi
        self.parent = parent
        self.customer = customer
        """Named by `bind` or `bound`."""
        self.resolved: str | None = None
        """Named by the resolver."""
        self.dimensions: dict[str, str] = dict(dimensions or {})
        self.sightings: Sightings = parent.sightings if parent else Sightings()
        self.tickets: list[Ticket] = []
        """Records of this request that may not be committed yet (kept by the outermost scope)."""
        self.parked: list[UsageRecord] = []
        """Records that wait for the customer to be known (kept by the outermost scope)."""
        self.recorded = 0
        """How many answers were recorded or parked in it (kept by every scope up the line)."""
        self.closed = False

    @property
    def root(self) -> Scope:
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    def bound_customer(self) -> str | None:
        """The customer that `bind` or `bound` named, innermost first."""
        scope: Scope | None = self
        while scope is not None:
            if scope.customer is not None:
                return scope.customer
            scope = scope.parent
        return None

    def all_dimensions(self) -> dict[str, str]:
        """Dimensions of this scope and those round it; inner ones win."""
        if self.parent is None:
            return self.dimensions
        return {**self.parent.all_dimensions(), **self.dimensions}

    def note_recorded(self) -> None:
        scope: Scope | None = self
        while scope is not None:
            scope.recorded += 1
            scope = scope.parent


def current() -> Scope | None:
    """The scope that this task or thread is in."""
    return _current.get()


@contextmanager
def entered(scope: Scope) -> Iterator[Scope]:
    """Make `scope` the current one, and leave the context as found."""
    token = _current.set(scope)
    try:
        yield scope
    finally:
        scope.closed = True
        _current.reset(token)
