"""Who is billed: resolvers that name the Stripe customer of a request, on the server's side only.

A resolver is any callable, plain or async, that takes Starlette's `HTTPConnection` and returns a Stripe
customer id or None. It never reads a body: what a caller claims is not who they are. It is called on the
event loop when the first usage of a request is recorded, and again later in the request as long as it
returns None; one that looks something up elsewhere should be async.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

Resolver = Callable[["HTTPConnection"], "str | Awaitable[str | None] | None"]

MAX_CUSTOMER_LENGTH = 255


def from_state(name: str = "stripe_customer_id") -> Resolver:
    """Read `request.state.<name>`, which your authentication sets.

    Args:
        name: The attribute of `request.state`.
    """
    _named(name, "from_state", "stripe_customer_id")

    def resolve(connection: HTTPConnection) -> str | None:
        state = connection.scope.get("state")
        return state.get(name) if isinstance(state, dict) else getattr(state, name, None)

    return resolve


def from_auth(attribute: str = "stripe_customer_id") -> Resolver:
    """Read `request.user.<attribute>`, as Starlette's `AuthenticationMiddleware` leaves it.

    Args:
        attribute: The attribute (or key) of the user object.
    """
    _named(attribute, "from_auth", "stripe_customer_id")

    def resolve(connection: HTTPConnection) -> str | None:
        user = connection.scope.get("user")
        if isinstance(user, dict):
            return user.get(attribute)
        return getattr(user, attribute, None)

    return resolve


def from_api_key(lookup: Callable[[str], str | Awaitable[str | None] | None]) -> Resolver:
    """Look the caller's API key up in your own store.

    The key is taken from `Authorization: Bearer …`, `x-api-key` (Anthropic's), `api-key` (Azure's) or
    `x-goog-api-key` (Gemini's): the first of them that is known, so that nobody who is let in by one hides
    behind another that means nothing. It is never stored.

    Args:
        lookup: Plain or async; takes the key, returns the customer id, or None for a key that it does
            not know.
    """
    if not callable(lookup):
        raise ConfigurationError(f"from_api_key takes a function from API key to customer id, not {lookup!r}")

    def resolve(connection: HTTPConnection) -> str | Awaitable[str | None] | None:
        keys = _api_keys(connection)
        for at, key in enumerate(keys):
            found = lookup(key)
            if inspect.isawaitable(found):
                others = keys[at + 1 :]
                return _FirstKnown(found, others, lookup) if others else found
            if found:
                return found
        return None

    return resolve


def from_header(name: str) -> Resolver:
    """Read a request header. Only for a service behind a gateway that sets this header itself and removes
    it from what clients send: otherwise anybody can have their usage billed to somebody else.

    Args:
        name: The header, such as "x-stripe-customer-id".
    """
    _named(name, "from_header", "x-stripe-customer-id")

    def resolve(connection: HTTPConnection) -> str | None:
        values = connection.headers.getlist(name)
        # Two values, joined by a proxy or not, mean that somebody added one: trust neither.
        return values[0] if len(values) == 1 and "," not in values[0] else None

    return resolve


def begin(resolver: Resolver, asgi: MutableMapping[str, Any]) -> Any:
    """Call a resolver on an ASGI scope; what it returns may have to be awaited."""
    from starlette.requests import HTTPConnection

    return resolver(HTTPConnection(asgi))


def is_async(answer: Any) -> bool:
    """Whether a resolver's answer has to be awaited."""
    return inspect.isawaitable(answer)


def checked(customer: Any) -> str | None:
    """A customer id as it may be stored and sent; None for nothing.

    Raises:
        ValueError: It is not a string, is too long, or holds spaces or control characters.
    """
    if customer is None or customer == "":
        return None
    if not isinstance(customer, str):
        raise ValueError(f"a customer id is a string, not {type(customer).__name__}")
    if len(customer) > MAX_CUSTOMER_LENGTH:
        raise ValueError(f"a customer id has at most {MAX_CUSTOMER_LENGTH} characters, not {len(customer)}")
    if not customer.isascii() or not customer.isprintable() or " " in customer:
        raise ValueError("a customer id is printable ASCII without spaces, such as cus_123")
    return customer


class _FirstKnown:
    """The answer of an async lookup, asked for the other keys where the first is unknown."""

    def __init__(
        self,
        found: Awaitable[str | None],
        others: list[str],
        lookup: Callable[[str], str | Awaitable[str | None] | None],
    ) -> None:
        self._found = found
        self._others = others
        self._lookup = lookup

    def __await__(self) -> Generator[Any, None, str | None]:
        return self._wait().__await__()

    def close(self) -> None:
        """It will not be awaited."""
        close = getattr(self._found, "close", None)
        if close is not None:
            close()

    async def _wait(self) -> str | None:
        customer = await self._found
        for key in self._others:
            if customer:
                break
            answer = self._lookup(key)
            customer = await answer if inspect.isawaitable(answer) else answer
        return customer


def _api_keys(connection: HTTPConnection) -> list[str]:
    """The keys that came, each once."""
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    named = [connection.headers.get(name, "") for name in ("x-api-key", "api-key", "x-goog-api-key")]
    keys = [key.strip() if scheme.lower() == "bearer" else "", *named]
    return [key for key in dict.fromkeys(keys) if key]


def _named(name: object, function: str, example: str) -> None:
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f'{function} takes a name, such as {function}("{example}"), not {name!r}')
