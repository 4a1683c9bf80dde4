"""From a reading to a record: dedupe, count what is missing, name the customer, hand it to the ledger.

Everything that sees an answer (middleware, decorator, wrapped client, `record`) ends here.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from .. import customers
from .._values import maker
from ..protocols import Sink, Telemetry, Ticket
from ..settings import Settings
from ..usage import NOTHING, Reading, Surface, Usage, UsageRecord
from . import context
from .context import Scope, Sightings
from .naming import Naming
from .overhearing import tell
from .waiting import LateTicket, asyncio_loop, wait_for

if TYPE_CHECKING:
    from asyncio import Future

    from .counter import Counter
    from .draining import Drains

MAX_PARKED = 256
"""A request (a long websocket) keeps at most so many records waiting for its customer; more are put away as
unresolved, to be assigned later."""

AHEAD_S = 86_400.0
"""Clocks differ, but not by more than a day."""
_MAX_TICKETS = 64
_MAX_ENCODINGS = 16
_new_record = maker(UsageRecord)


# Seeded by the system; asking it for each id would be the dearest part of recording.
_random = random.Random()  # noqa: S311  (an id is unique, not secret)
os.register_at_fork(after_in_child=_random.seed)


def new_id() -> str:
    """A fresh record or call id: the time in nanoseconds and a random number, 16 hexadecimal digits each.

    The time keeps the ids of two machines apart that were restored from one image.
    """
    return (time.time_ns() << 64 | _random.getrandbits(64)).to_bytes(16, "big").hex()


def odd_time(used_at: Any, now: float) -> str | None:
    """Why this is no time at which something was used, None if it may be one. In milliseconds, say, it would
    lie ahead for thousands of years, and never be billed."""
    if isinstance(used_at, (int, float)) and 0 <= used_at <= now + AHEAD_S:
        return None
    said = repr(used_at)[:50]
    return f"used_at={said} is no time in Unix seconds up to now; it was recorded under the time of recording"


class Recorder:
    """Turns readings into records and queues them. Safe to call from any thread; never raises."""

    def __init__(
        self,
        *,
        settings: Settings,
        sink: Sink,
        telemetry: Telemetry,
        counter: Counter,
        resolver: customers.Resolver | None = None,
        customer: str | None = None,
        now: Callable[[], float] = time.time,
        new_id: Callable[[], str] = new_id,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings
        self.sink = sink
        self.telemetry = telemetry
        self.counter = counter
        self.naming = Naming(resolver, customer, telemetry=telemetry)
        self.now = now
        self.new_id = new_id
        self._random = random
        self._ambient = Sightings()
        self._parking = Lock()
        self._asking: set[Future[None]] = set()
        self.drains: Drains | None = None
        """Rests of streams that are being read; None until there is one."""
        self._unreadable: set[str] = set()
        """Content encodings of answers that could not be read."""

    def record(
        self,
        reading: Reading,
        *,
        surface: Surface,
        request: Any = None,
        customer: str | None = None,
        model: str | None = None,
        dimensions: Mapping[str, str] = NOTHING,
        id: str | None = None,
        used_at: float | None = None,
        closes: str | None = None,
        scope: Scope | None = None,
    ) -> Ticket | None:
        """Record one answer; None where another surface has counted it already.

        Args:
            reading: What a reader found.
            surface: Who saw it.
            request: The call's arguments, or its body in bytes, for counting what the provider did not
                report.
            customer: Named by the caller; wins over the scope and the resolver.
            model: Used where the reading names none.
            dimensions: Win over the scope's.
            id: Makes recording idempotent: the same id is recorded once in the lane of this process.
            used_at: When the usage happened, Unix seconds; default now. What cannot be is held.
            closes: Id of the progress row this record replaces.
            scope: Default: the current one.
        """
        try:
            scope = scope or self.scope_here()
            if not self.is_new(reading, surface, scope, customer):
                self.drop(closes)
                return None
            scope.note_recorded(reading.api)
            if (seen := scope.root.seen) is not None and seen.listeners:
                tell(seen.listeners, reading, surface)
            for each in reading.beside:
                name = None if id is None else f"{id}:{each.response_id}"
                self.record(
                    each,
                    surface=surface,
                    customer=customer,
                    dimensions=dimensions,
                    id=name,
                    used_at=used_at,
                    scope=scope,
                )
            if used_at is not None and (odd := odd_time(used_at, self.now())):
                fixed = self._fixed(surface, customer, model, dimensions, id, None, scope)
                held = partial(self._made_and_held, odd, *fixed)
                return self._count_and_put(held, reading, request, model, closes, scope)
            fixed = self._fixed(surface, customer, model, dimensions, id, used_at, scope)
            if self._is_plain(reading):
                return self._finish(self._made(*fixed, reading), closes, scope)
            return self._count_and_put(partial(self._made, *fixed), reading, request, model, closes, scope)
        except Exception as exc:
            self.telemetry.failure("capture.record", exc)
            return None

    def later(self, scope: Scope, record: Callable[[], Ticket | None], api: str | None = None) -> LateTicket:
        """Have `record` called on the counter's thread. Takes no lock; the request waits for it all the same.

        Args:
            scope: Whose answer it is.
            record: Reads what takes long to read, and records it.
            api: What kind of answer it is.
        """
        late = LateTicket()
        root = scope.root
        if root.tickets is None:
            root.tickets = []
        root.tickets.append(late)
        # Counted from now on, so that nothing round it counts the same text.
        scope.note_recorded(api)

        def job() -> None:
            ticket = record()
            late.fail(None) if ticket is None else late.follow(ticket)

        self.counter.later(job)
        return late

    def is_new(self, reading: Reading, surface: Surface, scope: Scope, customer: str | None = None) -> bool:
        """Note that `surface` saw this answer; False where another has counted it.

        Args:
            customer: Named by the caller.
        """
        if reading.response_id is None:
            return True
        # Layers may name the api differently, but none takes an embedding for a generation.
        kind = "e" if reading.api == "embeddings" else ""
        key, seen = f"{kind}:{reading.response_id}", scope.sightings
        if seen is self._ambient:
            # Outside of all requests an id may come again much later: some vendors have a thousand of them.
            key = seen.of_customer(key, customer or scope.bound_customer())
        return seen.is_new(key, surface)

    def wants_text(self) -> bool:
        """Whether a reader shall keep an answer's text even where the usage is reported, to count it too.

        Drawn anew for each answer where a share of them is audited.
        """
        settings = self.settings
        if settings.tokens_from == "tiktoken":
            return True
        return settings.audit > 0 and self._random() < settings.audit

    def scope_here(self) -> Scope:
        """The scope for what ends later, on another task or thread: the current one, or one of its own, so
        that it never lands on whoever happens to be served then."""
        return self.scope_of(context.CURRENT.get())

    def scope_of(self, found: Scope | context.Request | None) -> Scope:
        """As `scope_here`, for a place where `context.CURRENT` held this."""
        scope = context.innermost(found, self)
        if scope is None:
            scope = Scope(owner=self)
            scope.seen = self._ambient
        return scope

    def draft(
        self,
        reading: Reading,
        *,
        surface: Surface,
        id: str,
        customer: str | None = None,
        model: str | None = None,
        dimensions: Mapping[str, str] = NOTHING,
        scope: Scope | None = None,
    ) -> UsageRecord:
        """The record that `record` would make now, for a progress row."""
        scope = scope or self.scope_here()
        return self._made(*self._fixed(surface, customer, model, dimensions, id, None, scope), reading)

    def progress(self, record: UsageRecord) -> None:
        """Note what is to be billed, as partial, should this process die now."""
        try:
            self.sink.progress(record)
        except Exception as exc:
            self.telemetry.failure("capture.progress", exc)

    def tell_unread(self, encoding: str, problem: str | None) -> None:
        """Raise an alarm, the first time only, where answers come in an encoding that cannot be read."""
        if problem is None or encoding in self._unreadable or len(self._unreadable) >= _MAX_ENCODINGS:
            return
        self._unreadable.add(encoding)
        self.telemetry.alarm(
            "middleware.encoding", f"{problem}; its usage is unknown. llm_metering[compression] reads it"
        )

    def tell_long_prompt(self) -> None:
        """Raise an alarm where a prompt would have to be counted, and is too long to be kept."""
        self.telemetry.alarm(
            "middleware.long_prompt",
            f"a request of more than {self.settings.max_body_bytes} bytes was answered without its usage: "
            "the answer is billed as counted, its prompt is not; have the provider report it "
            "(include_usage), or raise LLM_METERING_MAX_BODY_BYTES",
        )

    def drop(self, id: str | None) -> None:
        """Forget a progress row: its answer was counted elsewhere."""
        if id is None:
            return
        try:
            self.sink.drop(id)
        except Exception as exc:
            self.telemetry.failure("capture.progress", exc)

    def stop_draining(self, within_s: float) -> None:
        """Wait for what is still read of streams that nobody reads, then bill what came."""
        if self.drains is not None:
            self.drains.stop(within_s)

    # The end of a request.

    async def resolve(self, scope: Scope) -> str | None:
        """The customer of a request, waiting for an async resolver."""
        return await self.naming.wait(scope)

    async def settle(self, scope: Scope) -> None:
        """Hand over what waited for the customer, at the latest at the end of the request."""
        if scope.root.parked:
            await self.resolve(scope)
            self.release(scope)

    def release(self, scope: Scope) -> None:
        """Hand over what waited for the customer, whether it is known by now or not."""
        if self.naming.customer is not None:
            return  # nothing ever waits
        root = scope.root
        with self._parking:
            parked, root.parked = root.parked, None
        if not parked:
            return
        customer = self.naming.now(root)
        for record in parked:
            self._put_parked(replace(record, customer=customer), root)

    async def committed(self, scope: Scope, *, within_s: float | None = None) -> bool:
        """Wait until all records of the request are on disk; False if that took too long.

        Args:
            scope: The request's.
            within_s: Default: `settings.commit_timeout_s`.
        """
        root = scope.root
        tickets = [ticket for ticket in root.tickets or () if not ticket.done]
        if not tickets:
            return True
        limit_s = self.settings.commit_timeout_s
        if await wait_for(tickets, timeout_s=limit_s if within_s is None else within_s):
            root.tickets = None if root.tickets is None else [t for t in root.tickets if not t.done]
            return True
        self.telemetry.alarm(
            "ledger.slow",
            f"usage was not on disk within {limit_s} s; the response went on",
        )
        return False

    # The record.

    def _fixed(
        self,
        surface: Surface,
        customer: str | None,
        model: str | None,
        dimensions: Mapping[str, str],
        id: str | None,
        used_at: float | None,
        scope: Scope,
    ) -> tuple[Surface, str | None, str | None, Mapping[str, str], str, float]:
        """Fix who, what for and when now; the counts may come later, from another thread."""
        # Asked now, on the caller's thread; counting may end on another.
        customer = self.naming.now(scope) if customer is None else self.naming.checked(customer)
        if outer := scope.all_dimensions():
            dimensions = {**outer, **dimensions}
        elif dimensions:
            dimensions = dict(dimensions)
        return (
            surface,
            customer,
            model,
            dimensions or NOTHING,
            id or self.new_id(),
            self.now() if used_at is None else used_at,
        )

    def _made(
        self,
        surface: Surface,
        customer: str | None,
        model: str | None,
        dimensions: Mapping[str, str],
        id: str,
        used_at: float,
        reading: Reading,
    ) -> UsageRecord:
        problem = reading.problem
        return _new_record(
            id,
            reading.usage if problem is None else Usage(),
            used_at,
            customer,
            reading.model or model,
            reading.provider,
            reading.provenance,
            reading.response_id,
            dimensions,
            surface,
            problem or self._why_held(reading),
        )

    def _made_and_held(self, why: str, *fixed_and_reading: Any) -> UsageRecord:
        record = self._made(*fixed_and_reading)
        return replace(record, held=record.held or why)

    def _is_plain(self, reading: Reading) -> bool:
        """Whether there is nothing to count: the provider said it all, and nobody wants a second count."""
        if reading.problem is not None or reading.text is not None or reading.written is not None:
            return False
        return not self.counter.is_needed(reading)

    def _why_held(self, reading: Reading) -> str | None:
        usage = reading.usage
        if usage.output is None and not usage:
            return "the answer carries no usage, and nothing in it could be counted"
        if self.settings.bill[reading.provenance] == "hold":
            return f"usage that is {reading.provenance} is set to hold"
        return None

    def _count_and_put(
        self,
        make: Callable[[Reading], UsageRecord],
        reading: Reading,
        request: Any,
        model: str | None,
        closes: str | None,
        scope: Scope,
    ) -> Ticket:
        def finish(counted: Reading) -> Ticket:
            return self._finish(make(counted), closes, scope)

        model = reading.model or model
        if reading.provenance == "reported" and reading.usage and self._is_audited(reading):
            self.counter.audit(reading, request, model)
        if reading.problem is not None or not self.counter.is_needed(reading):
            return finish(reading)
        ticket = self.counter.count(reading, request, model, finish)
        if not ticket.done:
            self._keep(scope.root, ticket)
        return ticket

    def _is_audited(self, reading: Reading) -> bool:
        if not self.settings.audit or self.settings.tokens_from == "tiktoken":
            return False
        # The text was kept because `wants_text` said so.
        return reading.text is not None or reading.written is not None

    def _finish(self, record: UsageRecord, closes: str | None, scope: Scope) -> Ticket:
        if record.customer is not None:
            return self._put(record, closes=closes, root=scope if scope.parent is None else scope.root)
        customer = self.naming.now(scope)
        if customer is not None:
            return self._put(replace(record, customer=customer), closes=closes, root=scope.root)
        if self._park(record, closes, scope.root):
            return LateTicket.done_already()
        return self._ask_first(record, closes, scope) or self._put(record, closes=closes, root=scope.root)

    def _park(self, record: UsageRecord, closes: str | None, root: Scope) -> bool:
        """Keep a record until the customer is known; False where nobody will come to tell."""
        if root.asgi is None:
            return False
        with self._parking:
            # Closed is looked at under the lock: `release` comes after it is set, and finds what is here.
            if root.closed or (root.parked is not None and len(root.parked) >= MAX_PARKED):
                return False
            if root.parked is None:
                root.parked = []
            root.parked.append(record)
            # Should we be killed meanwhile, the ledger has it; before `release` can close the row.
            self.progress(record)
        if closes != record.id:
            self.drop(closes)
        return True

    def _ask_first(self, record: UsageRecord, closes: str | None, scope: Scope) -> Ticket | None:
        """What a task used after its request was over, with an async resolver: ask in a task of its own."""
        loop = asyncio_loop() if self.naming.needs_waiting(scope) else None
        if loop is None:
            return None
        late = LateTicket()
        self.progress(record)
        task = loop.create_task(self._put_when_named(record, closes, scope, late))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return late

    async def _put_when_named(
        self, record: UsageRecord, closes: str | None, scope: Scope, late: LateTicket
    ) -> None:
        try:
            await self.naming.wait(scope)
        finally:
            self.drop(closes if closes != record.id else None)
            ticket = self._put_parked(replace(record, customer=self.naming.known(scope)), scope.root)
            late.follow(ticket or LateTicket.done_already())

    def _put_parked(self, record: UsageRecord, root: Scope) -> Ticket | None:
        try:
            return self._put(record, closes=record.id, root=root)
        except Exception as exc:
            self.telemetry.failure("capture.record", exc)
            return None

    def _put(self, record: UsageRecord, *, closes: str | None, root: Scope) -> Ticket:
        if record.customer is None:
            self.telemetry.count("usage.unresolved")
        ticket = self.sink.put(record, closes=closes)
        self._keep(root, ticket)
        return ticket

    def _keep(self, root: Scope, ticket: Ticket) -> None:
        """Remember what the end of the request has to wait for."""
        if root.tickets is None:
            root.tickets = [ticket]
            return
        if len(root.tickets) >= _MAX_TICKETS:
            root.tickets = [t for t in root.tickets if not t.done]
        root.tickets.append(ticket)
