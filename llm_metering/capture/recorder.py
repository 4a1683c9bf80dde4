"""From a reading to a record: dedupe, count what is missing, name the customer, hand it to the ledger.

Everything that sees an answer (middleware, decorator, wrapped client, `record`) ends here.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import customers
from ..protocols import Sink, Telemetry, Ticket
from ..settings import Settings
from ..usage import NOTHING, Reading, Surface, Usage, UsageRecord
from . import context
from .context import Scope, Sightings

if TYPE_CHECKING:
    from .counter import Counter


def new_id() -> str:
    """A fresh record or call id."""
    return uuid.uuid4().hex


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
        default_customer: str | None = None,
        now: Callable[[], float] = time.time,
        new_id: Callable[[], str] = new_id,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings
        self.sink = sink
        self.telemetry = telemetry
        self.counter = counter
        self.resolver = resolver
        self.default_customer = default_customer
        """Billed where neither caller, scope nor resolver names a customer."""
        self.now = now
        self.new_id = new_id
        self._random = random
        self._ambient = Sightings()

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
            request: The call's arguments, for counting what the provider did not report.
            customer: Named by the caller; wins over the scope and the resolver.
            model: Used where the reading names none.
            dimensions: Win over the scope's.
            id: Makes recording idempotent: the same id is recorded once for good.
            used_at: When the usage happened, Unix seconds; default now.
            closes: Id of the progress row this record replaces.
            scope: Default: the current one.
        """
        try:
            scope = scope or context.current()
            if not self.is_new(reading, surface, scope):
                if closes is not None:
                    self._drop_progress(closes)
                return None
            if scope is not None:
                scope.note_recorded()
            record = self._record(reading, surface, customer, model, dimensions, id, used_at, scope)
            return self._count_and_put(record, reading, request, closes, scope)
        except Exception as exc:
            self.telemetry.failure("capture.record", exc)
            return None

    def is_new(self, reading: Reading, surface: Surface, scope: Scope | None) -> bool:
        """Note that `surface` saw this answer; False where another has counted it."""
        if reading.response_id is None:
            return True
        sightings = self._ambient if scope is None else scope.sightings
        return sightings.is_new(f"{reading.api}:{reading.response_id}", surface)

    def progress(self, record: UsageRecord) -> None:
        """Note what is to be billed, as partial, should this process die now."""
        try:
            self.sink.progress(record)
        except Exception as exc:
            self.telemetry.failure("capture.progress", exc)

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
        record = self._record(reading, surface, customer, model, dimensions, id, None, scope)
        if record.customer is None:
            record = replace(record, customer=self._resolved_now(scope))
        return record

    # The customer.

    def _resolved_now(self, scope: Scope | None) -> str | None:
        """The customer as far as it can be told without waiting."""
        if scope is None:
            return self.default_customer
        root = scope.root
        if (bound := scope.bound_customer()) is not None:
            return bound
        if root.resolved is not None or self.resolver is None or root.asgi is None:
            return root.resolved or self.default_customer
        try:
            answer = customers.begin(self.resolver, root.asgi)
            if customers.is_async(answer):
                _discard(answer)
                return None
            root.resolved = customers.checked(answer)
        except Exception as exc:
            self.telemetry.failure("customer.resolver", exc)
        return root.resolved or self.default_customer

    async def resolve(self, scope: Scope) -> str | None:
        """The customer of a request, waiting for an async resolver."""
        root = scope.root
        if (bound := scope.bound_customer()) is not None:
            return bound
        if root.resolved is not None or self.resolver is None or root.asgi is None:
            return root.resolved or self.default_customer
        try:
            answer = customers.begin(self.resolver, root.asgi)
            if customers.is_async(answer):
                answer = await answer
            root.resolved = customers.checked(answer)
        except Exception as exc:
            self.telemetry.failure("customer.resolver", exc)
        return root.resolved or self.default_customer

    async def settle(self, scope: Scope) -> None:
        """Hand over what waited for the customer; at the latest at the end of the request."""
        if not scope.parked:
            return
        customer = await self.resolve(scope)
        parked, scope.parked = scope.parked, []
        for record in parked:
            self._put(replace(record, customer=customer), closes=record.id, scope=scope)

    async def committed(self, scope: Scope) -> bool:
        """Wait until all records of the request are on disk; False if that took too long."""
        from .waiting import wait_for

        tickets = [ticket for ticket in scope.tickets if not ticket.done]
        if not tickets:
            return True
        if await wait_for(tickets, timeout_s=self.settings.commit_timeout_s):
            return True
        self.telemetry.alarm(
            "ledger.slow",
            f"usage was not on disk within {self.settings.commit_timeout_s} s; the response went on",
        )
        return False

    # The record.

    def _record(
        self,
        reading: Reading,
        surface: Surface,
        customer: str | None,
        model: str | None,
        dimensions: Mapping[str, str],
        id: str | None,
        used_at: float | None,
        scope: Scope | None,
    ) -> UsageRecord:
        if scope is not None and (outer := scope.all_dimensions()):
            dimensions = {**outer, **dimensions}
        if customer is not None:
            customer = self._checked(customer)
        elif scope is not None:
            customer = scope.bound_customer()
        return UsageRecord(
            id=id or self.new_id(),
            usage=reading.usage if reading.problem is None else Usage(),
            used_at=self.now() if used_at is None else used_at,
            customer=customer,
            model=reading.model or model,
            provider=reading.provider,
            provenance=reading.provenance,
            response_id=reading.response_id,
            dimensions=dict(dimensions) if dimensions else NOTHING,
            surface=surface,
            held=reading.problem,
        )

    def _checked(self, customer: Any) -> str | None:
        try:
            return customers.checked(customer)
        except ValueError as exc:
            self.telemetry.failure("customer.invalid", exc)
            return None

    def _count_and_put(
        self,
        record: UsageRecord,
        reading: Reading,
        request: Any,
        closes: str | None,
        scope: Scope | None,
    ) -> Ticket:
        def finish(counted: Reading) -> Ticket:
            return self._finish(record, counted, closes, scope)

        audit = self.settings.audit
        if audit and reading.provenance == "reported" and self._random() < audit:
            self.counter.audit(reading, request, record.model)
        if reading.problem is not None or not self.counter.is_needed(reading):
            return finish(reading)
        ticket = self.counter.count(reading, request, record.model, finish)
        if scope is not None:
            scope.root.tickets.append(ticket)
        return ticket

    def _finish(
        self, record: UsageRecord, reading: Reading, closes: str | None, scope: Scope | None
    ) -> Ticket:
        record = replace(record, usage=reading.usage, provenance=reading.provenance)
        record = replace(record, held=record.held or reading.problem or self._why_held(record))
        if record.customer is None:
            record = replace(record, customer=self._resolved_now(scope))
        if record.customer is None and self._may_still_resolve(scope):
            assert scope is not None
            return self._park(record, closes, scope.root)
        return self._put(record, closes=closes, scope=scope)

    def _why_held(self, record: UsageRecord) -> str | None:
        if not record.usage:
            return "the answer carries no usage, and nothing in it could be counted"
        if self.settings.bill[record.provenance] == "hold":
            return f"usage that is {record.provenance} is set to hold"
        return None

    def _may_still_resolve(self, scope: Scope | None) -> bool:
        return scope is not None and scope.root.asgi is not None and not scope.root.closed

    def _park(self, record: UsageRecord, closes: str | None, root: Scope) -> Ticket:
        """Keep a record until the customer is known. The ledger has it already, should we be killed."""
        from .waiting import LateTicket

        if closes is not None and closes != record.id:
            self._drop_progress(closes)
        self.sink.progress(record)
        root.parked.append(record)
        return LateTicket.done_already()

    def _put(self, record: UsageRecord, *, closes: str | None, scope: Scope | None) -> Ticket:
        if record.customer is None:
            self.telemetry.count("usage.unresolved")
        ticket = self.sink.put(record, closes=closes)
        if scope is not None:
            _keep(scope.root.tickets, ticket)
        return ticket

    def _drop_progress(self, id: str) -> None:
        """The answer was counted elsewhere: what its progress row says is not to be billed."""
        self.sink.drop(id)


def _keep(tickets: list[Ticket], ticket: Ticket) -> None:
    if len(tickets) >= 64:
        tickets[:] = [t for t in tickets if not t.done]
    tickets.append(ticket)


def _discard(awaitable: Any) -> None:
    """Close a coroutine that will not be awaited now, so that Python does not warn of it."""
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()
