"""Naming the customer of a scope: what was bound, what the resolver says, one customer for all."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from .. import customers

if TYPE_CHECKING:
    from ..protocols import Telemetry
    from .context import Scope


class Naming:
    """Knows who is billed. Asks the resolver until it has named somebody, and then no more.

    Args:
        resolver: Asked with the request; plain or async.
        customer: Who is billed where nobody else is named.
        telemetry: Counts resolvers that fail and answers that can be no customer.
    """

    def __init__(
        self, resolver: customers.Resolver | None, customer: str | None, *, telemetry: Telemetry
    ) -> None:
        self.resolver = resolver
        self.customer = customer
        self._telemetry = telemetry
        self._is_async = False

    def known(self, scope: Scope) -> str | None:
        """The customer as known by now, nobody asked."""
        if scope.parent is None:
            return scope.customer or scope.resolved or self.customer
        return scope.bound_customer() or scope.root.resolved or self.customer

    def now(self, scope: Scope) -> str | None:
        """The customer as far as it can be told without waiting."""
        if self.resolver is None or self._is_async:
            return self.known(scope)
        asgi = self._unasked(scope)
        if asgi is None:
            return self.known(scope)
        try:
            answer = self._ask(asgi)
            if customers.is_async(answer):
                _discard(answer)
            else:
                scope.root.resolved = customers.checked(answer)
        except Exception as exc:
            self._telemetry.failure("customer.resolver", exc)
        return self.known(scope)

    async def wait(self, scope: Scope) -> str | None:
        """The customer, waiting for an async resolver."""
        asgi = self._unasked(scope)
        if asgi is None:
            return self.known(scope)
        try:
            answer = self._ask(asgi)
            if customers.is_async(answer):
                answer = await answer
            scope.root.resolved = customers.checked(answer)
        except Exception as exc:
            self._telemetry.failure("customer.resolver", exc)
        return self.known(scope)

    def needs_waiting(self, scope: Scope) -> bool:
        """Whether only waiting can tell."""
        return self._is_async and self._unasked(scope) is not None

    def checked(self, customer: Any) -> str | None:
        """A customer that the caller named; None, and counted, where it can be none."""
        try:
            return customers.checked(customer)
        except ValueError as exc:
            self._telemetry.failure("customer.invalid", exc)
            return None

    def _unasked(self, scope: Scope) -> MutableMapping[str, Any] | None:
        """The request to show the resolver, None where there is none or no need to ask."""
        if self.resolver is None or scope.bound_customer() is not None:
            return None
        root = scope.root
        return root.asgi if root.resolved is None else None

    def _ask(self, asgi: MutableMapping[str, Any]) -> Any:
        answer = None if self.resolver is None else customers.begin(self.resolver, asgi)
        if customers.is_async(answer):
            self._is_async = True
        return answer


def _discard(awaitable: Any) -> None:
    """Close a coroutine that will not be awaited now, so that Python does not warn of it."""
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()
