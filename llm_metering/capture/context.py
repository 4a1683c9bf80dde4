"""The request's context: who is billed, what for, and which answers have been counted.

The context variable holds one mutable object a request, set by the outermost layer. Threads and tasks copy
the context but share that object, so what an endpoint counts the middleware sees. Most requests count
nothing: what the middleware sets is a `Request`, which makes its `Scope` when anything asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from threading import Lock
from typing import Any, Protocol
from weakref import ref

from ..protocols import Ticket
from ..usage import NOTHING, Reading, Surface, UsageRecord

CURRENT: ContextVar[Scope | Request | None] = ContextVar("llm_metering_scope", default=None)
"""What this task or thread is in; `current` reads it."""

_MAX_KEYS = 4096


class OpenStream(Protocol):
    """A provider's stream that a wrapped client or decorator is reading on behalf of a scope."""

    def leave_progress(self) -> None:
        """Note in the ledger what came so far: the request is over, and the rest may never be read.

        Called once at the end of the request; never raises, never waits. Whoever closes or collects the
        stream afterwards still records it, under the same id.
        """


class Heard:
    """A record that was made while an adapter had a call under way."""

    __slots__ = ("claimed", "reading", "surface")

    def __init__(self, reading: Reading, surface: Surface) -> None:
        self.reading = reading
        self.surface: Surface = surface
        self.claimed: set[Surface] = set()
        """The surfaces that saw the same call and left it at this record."""


class Opened:
    """A stream that was opened while an adapter had a call under way, and is recorded when it is closed."""

    __slots__ = ("claimed", "is_over", "tally")

    def __init__(self, tally: object) -> None:
        self.tally = tally
        self.is_over = False
        self.claimed: set[Surface] = set()
        """The surfaces that saw the same call and left it to this stream."""


class Listening:
    """What an adapter hears of while it has a call under way."""

    __slots__ = ("records", "streams")

    def __init__(self) -> None:
        self.records: list[Heard] = []
        self.streams: list[Opened] = []


class Sightings:
    """Which answers which surface has seen, so that one answer counts once however many saw it.

    Each surface counts how often it saw a key; the answer is counted as often as the surface that saw it
    most. So a wrapped client that receives the same id twice (a stub, a cache, a vendor with short ids)
    counts twice, and a decorator round both adds nothing.
    """

    listeners: tuple[Listening, ...] = ()
    """What is recorded and opened is noted in each of these, for the adapters that have a call under way."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[Surface, int]] = {}
        self._customers: dict[str, str] = {}
        self._lock = Lock()

    def is_new(self, key: str, surface: Surface) -> bool:
        """Note a sighting; whether it is to be counted."""
        first = {surface: 1}
        # Of two that come at once, one only finds its own: `setdefault` is one step.
        seen = self._seen.setdefault(key, first)
        if seen is first:
            if len(self._seen) > _MAX_KEYS:
                self._forget()
            return True
        with self._lock:
            most = max(seen.values())
            seen[surface] = seen.get(surface, 0) + 1
            return seen[surface] > most

    def of_customer(self, key: str, customer: str | None) -> str:
        """The key, told apart where it was another customer's first: then it is another answer."""
        if customer is None:
            return key
        if len(self._customers) > _MAX_KEYS:
            self._customers.clear()
        return key if self._customers.setdefault(key, customer) == customer else f"{key}:{customer}"

    def listen(self, listening: Listening) -> None:
        """Note in `listening` what is recorded and opened from now on."""
        with self._lock:
            self.listeners = (*self.listeners, listening)

    def unlisten(self, listening: Listening) -> None:
        """Note nothing more in it."""
        with self._lock:
            self.listeners = tuple(each for each in self.listeners if each is not listening)

    def _forget(self) -> None:
        """Forget the oldest, some at a time."""
        for key in list(self._seen)[: _MAX_KEYS // 16]:
            self._seen.pop(key, None)


class Scope:
    """One request, or one `bound(...)` block inside or outside of a request."""

    # One is made for every request, whatever it does: what few need stands here until it is set.

    asgi: MutableMapping[str, Any] | None = None
    """The request's ASGI scope, on the outermost scope; what a resolver is shown."""
    parent: Scope | None = None
    owner: object | None = None
    """The recorder it belongs to; None serves any."""
    customer: str | None = None
    """Named by `bind` or `bound`."""
    resolved: str | None = None
    """Named by the resolver."""
    outer: Scope | Request | None = None
    """What is round this one, whosever it is."""
    tickets: list[Ticket] | None = None
    """Records of this request that may not be committed yet (kept by the outermost scope)."""
    parked: list[UsageRecord] | None = None
    """Records that wait for the customer to be known (kept by the outermost scope)."""
    recorded = 0
    """How many answers were recorded or parked in it (kept by every scope up the line)."""
    embedded = 0
    """How many of those were embeddings."""
    seen: Sightings | None = None
    opened: dict[int, ref[OpenStream]] | None = None
    is_unanswered = False
    """Whether the resolver did not answer in time while its websocket was open."""
    is_read = False
    """Whether the middleware reads this request's answer."""
    is_call = False
    """Whether it is one call of a decorated function."""
    closed = False
    _dimensions: dict[str, str] | None = None

    def __init__(
        self,
        *,
        asgi: MutableMapping[str, Any] | None = None,
        parent: Scope | None = None,
        customer: str | None = None,
        dimensions: Mapping[str, str] | None = None,
        owner: object | None = None,
    ) -> None:
        self.asgi = asgi
        self.parent = parent
        self.owner = owner if owner is not None or parent is None else parent.owner
        if customer is not None:
            self.customer = customer
        if dimensions:
            self._dimensions = dict(dimensions)

    @property
    def root(self) -> Scope:
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    @property
    def dimensions(self) -> dict[str, str]:
        """Named by `bind` or `bound` on this very scope."""
        if self._dimensions is None:
            self._dimensions = {}
        return self._dimensions

    @property
    def sightings(self) -> Sightings:
        """Kept by the outermost scope."""
        root = self.root
        if root.seen is None:
            root.seen = Sightings()
        return root.seen

    @property
    def is_listened_to(self) -> bool:
        """Whether an adapter has a call under way, which has to know at its end what was recorded."""
        seen = self.root.seen
        return seen is not None and bool(seen.listeners)

    @property
    def streams(self) -> list[OpenStream]:
        """The streams that were opened in it and are not finished."""
        if not self.opened:
            return []
        return [stream for known in list(self.opened.values()) if (stream := known()) is not None]

    def bind(self, customer: str | None, dimensions: Mapping[str, str]) -> None:
        """Name the customer or dimensions from here on. From inside a decorated function that holds for
        the request round it too."""
        scope: Scope | None = self
        while scope is not None:
            if customer is not None:
                scope.customer = customer
            scope.dimensions.update(dimensions)
            scope = scope.parent if scope.is_call else None

    def bound_customer(self) -> str | None:
        """The customer that `bind` or `bound` named, innermost first."""
        scope: Scope | None = self
        while scope is not None:
            if scope.customer is not None:
                return scope.customer
            scope = scope.parent
        return None

    def all_dimensions(self) -> Mapping[str, str]:
        """Dimensions of this scope and those round it; inner ones win."""
        own = self._dimensions or NOTHING
        if self.parent is None:
            return own
        return {**self.parent.all_dimensions(), **own}

    def note_recorded(self, api: str | None = None) -> None:
        """An answer was recorded in it."""
        scope: Scope | None = self
        while scope is not None:
            scope.recorded += 1
            scope.embedded += api == "embeddings"
            scope = scope.parent

    def note_opened(self, stream: OpenStream) -> None:
        """A stream is read in it from now on. It is held weakly: an abandoned one can be collected."""
        scope: Scope | None = self
        while scope is not None:
            if scope.opened is None:
                scope.opened = {}
            scope.opened[id(stream)] = ref(stream)
            scope = scope.parent

    def note_finished(self, stream: OpenStream) -> None:
        """The stream has been recorded, or there was nothing to record."""
        scope: Scope | None = self
        while scope is not None:
            if scope.opened is not None:
                scope.opened.pop(id(stream), None)
            scope = scope.parent

    def others_opened(self, besides: Iterable[object]) -> bool:
        """Whether streams other than these are open. One that was abandoned is, until it is recorded: it is
        known by its number, since the garbage collector forgets references before it calls anybody."""
        if not self.opened:
            return False
        own = {id(stream) for stream in besides}
        return any(number not in own for number in list(self.opened))

    def covers(self, api: str | None, *, besides: object | None = None) -> bool:
        """Whether something inside may have counted an answer of this kind, or is about to.

        A chat answer that is passed on may come from any generation that was counted inside, under
        whatever id; an embedding that was looked up on the way is another thing.

        Args:
            api: Such as "chat" or "embeddings"; None is some generation.
            besides: A stream that does not count.
        """
        if self.others_opened(() if besides is None else (besides,)):
            return True
        if api == "embeddings":
            return self.embedded > 0
        return self.recorded > self.embedded


_bare_scope: Callable[[type[Scope]], Scope] = object.__new__


class Request:
    """One request that is served, until anything in it asks for its scope.

    One is made for every request, so it has no `__init__`: the middleware sets what it needs, for half the
    price.
    """

    __slots__ = ("asgi", "made", "over", "owner", "token")

    asgi: MutableMapping[str, Any]
    owner: object
    """The recorder it belongs to."""
    made: list[Scope]
    """Its scope, once it was asked for."""
    over: bool
    """Whether it has ended: a scope that is made afterwards is closed."""
    token: Token[Scope | Request | None]

    @property
    def outer(self) -> Scope | Request | None:
        return _old_value(self.token)

    def scope(self) -> Scope:
        """Its one scope, whichever thread asks first."""
        made = self.made
        if not made:
            fresh = _bare_scope(Scope)  # it has nothing of what `__init__` would look for
            fresh.asgi, fresh.owner = self.asgi, self.owner
            if (outer := self.outer) is not None:
                fresh.outer = outer
            # Of two that come at once the first is everybody's. No lock, which a signal might find held.
            made.append(fresh)
            if self.over:
                made[0].closed = True
        return made[0]


def current(owner: object | None = None) -> Scope | None:
    """The scope that this task or thread is in.

    Args:
        owner: A recorder: the innermost scope that is not another's, where two `Metering` objects share
            a process.
    """
    return innermost(CURRENT.get(), owner)


def innermost(found: Scope | Request | None, owner: object | None) -> Scope | None:
    """As `current`, of a context that was current: what `CURRENT` held then."""
    if owner is not None:
        while found is not None and found.owner is not None and found.owner is not owner:
            found = found.outer
    return found.scope() if isinstance(found, Request) else found


@contextmanager
def entered(scope: Scope) -> Iterator[Scope]:
    """Make `scope` the current one, and leave the context as found."""
    token = enter(scope)
    try:
        yield scope
    finally:
        leave(scope, token)


def enter(scope: Scope) -> Token[Scope | Request | None]:
    """Make `scope` the current one, until `leave` is called with the token in the same task."""
    token = CURRENT.set(scope)
    if (outer := _old_value(token)) is not None:
        scope.outer = outer
    return token


def _old_value(token: Token[Scope | Request | None]) -> Scope | Request | None:
    old = token.old_value
    return None if old is Token.MISSING else old


def leave(scope: Scope, token: Token[Scope | Request | None]) -> None:
    """Leave the context as found. Records made in `scope` from now on no longer wait for a customer."""
    scope.closed = True
    put_back(token)


def put_back(token: Token[Scope | Request | None]) -> None:
    """Leave the context as found."""
    try:  # noqa: SIM105  (as long as nothing is raised this costs nothing)
        CURRENT.reset(token)
    except ValueError:
        # A generator that is closed from another task leaves from a context that it never entered.
        pass


def forget_ended() -> None:
    """Where this task was begun in the context of a request that has ended, begin with nobody's: a connection
    would keep all requests that it ever brought."""
    found = CURRENT.get()
    if isinstance(found, Request) and found.over:
        CURRENT.set(None)


def _forget() -> None:
    """In a forked child: it begins with nobody's context. A worker of a process pool lives on after the
    request in which it happened to be started, and would bill everything to that customer."""
    CURRENT.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def is_on_disk(request: Scope) -> bool:
    """Whether everything that a request recorded so far is committed."""
    if request.parked:
        return False
    for ticket in request.tickets or ():  # noqa: SIM110  (asked for every response, mostly of one)
        if not ticket.done:
            return False
    return True
