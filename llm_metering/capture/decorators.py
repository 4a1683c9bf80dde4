"""`@metering.metered(...)`: one decorator for plain, async, generator and async generator functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .. import customers
from ..errors import ConfigurationError
from . import context
from .relays import AsyncSteps
from .runs import Run

if TYPE_CHECKING:
    from .recorder import Recorder

F = TypeVar("F", bound=Callable[..., Any])

PROMPTS = ("messages", "prompt", "input", "text")
"""The names of arguments that are taken for the prompt, the first of them first."""


@overload
def metered(recorder: Recorder, function: F, /) -> F: ...


@overload
def metered(
    recorder: Recorder,
    /,
    *,
    model: str | None = None,
    customer: str | Callable[..., str | Awaitable[str | None] | None] | None = None,
    prompt: str | None = None,
    provider: str | None = None,
    **dimensions: str,
) -> Callable[[F], F]: ...


def metered(
    recorder: Recorder,
    function: Any = None,
    /,
    *,
    model: str | None = None,
    customer: Any = None,
    prompt: str | None = None,
    provider: str | None = None,
    **dimensions: str,
) -> Any:
    """Meter a function; its signature, kind, results and errors stay what they are.

    What it returns or yields is read: a provider's answer or the events of its stream (objects or dicts,
    alone, in tuples, lists or values of a dict), or plain text, which is counted with the tokenizer of
    `model`. Text counts only where nothing inside, such as a wrapped client, was recorded. Anything else
    adds nothing and is counted as `decorator.unread`. Records made inside carry the customer and the
    dimensions named here.

    Args:
        recorder: Where records go.
        function: When used without parentheses.
        model: Names the tokenizer for plain text, and the model where the answer names none.
        customer: Who is billed, or a callable of the function's arguments. Default: the context's.
        prompt: The argument that holds the prompt. Default: the first of messages, prompt, input, text.
        provider: Whose shape the answer has, where it does not say.
        dimensions: Such as feature="digest".

    Raises:
        ConfigurationError: An argument cannot work.
    """
    options = Options(recorder, model, _checked(customer), prompt, provider, _texts(dimensions))
    return options.decorate if function is None else options.decorate(function)


class Options:
    """What was named in the decorator's parentheses."""

    def __init__(
        self,
        recorder: Recorder,
        model: str | None,
        customer: Any,
        prompt: str | None,
        provider: str | None,
        dimensions: dict[str, str],
    ) -> None:
        self.recorder = recorder
        self.model = model
        self.customer = customer
        self.prompt = prompt
        self.provider = provider
        self.dimensions = dimensions

    def decorate(self, function: Any) -> Any:
        if isinstance(function, (staticmethod, classmethod)):
            return type(function)(self.decorate(function.__func__))
        if not callable(function) or isinstance(function, type):
            raise ConfigurationError(f"metered() decorates a function, not {function!r}")
        return _wrapper_of(function)(Site(self, function))


class Site:
    """A decorated function, and where its prompt stands."""

    def __init__(self, options: Options, function: Callable[..., Any]) -> None:
        self.options = options
        self.function = function
        self._place, self._name, self._default = _prompt_parameter(function, options.prompt)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
        """One call of the function."""
        options = self.options
        return Run(
            options.recorder,
            model=options.model,
            provider=options.provider,
            customer=self._customer(args, kwargs) if callable(options.customer) else options.customer,
            dimensions=options.dimensions,
            prompt=self._prompt(args, kwargs),
        )

    def _customer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self.options.customer(*args, **kwargs)
        except Exception as exc:
            self.options.recorder.telemetry.failure("decorator.customer", exc)
            return None

    def _prompt(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """The prompt, as it is now: the function may go on adding to a list of messages."""
        name = self._name
        if name is None:
            return None
        given = args[self._place] if 0 <= self._place < len(args) else kwargs.get(name, self._default)
        if isinstance(given, (list, tuple)):
            return {"messages": list(given)}
        return {"prompt": given} if isinstance(given, str) else None


def _prompt_parameter(function: Any, named: str | None) -> tuple[int, str | None, Any]:
    """Place, name and default of the parameter that holds the prompt."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if named is not None and named not in parameters and not takes_any and parameters:
        raise ConfigurationError(
            f"metered(prompt={named!r}): {function!r} has no such argument; it has {', '.join(parameters)}"
        )
    name = named or next((each for each in PROMPTS if each in parameters), None)
    if name is None or name not in parameters:
        return -1, name, None
    parameter = parameters[name]
    default = None if parameter.default is parameter.empty else parameter.default
    if parameter.kind is parameter.KEYWORD_ONLY:
        return -1, name, default
    return list(parameters).index(name), name, default


def _wrapper_of(function: Any) -> Callable[[Site], Any]:
    if not inspect.isroutine(function) and not isinstance(function, functools.partial):
        function = getattr(function, "__call__", function)  # noqa: B004  (an object with `__call__`)
    if inspect.isasyncgenfunction(function):
        return _async_generator
    if inspect.iscoroutinefunction(function):
        return _coroutine
    return _generator if inspect.isgeneratorfunction(function) else _plain


def _plain(site: Site) -> Any:
    @functools.wraps(site.function)
    def call(*args: Any, **kwargs: Any) -> Any:
        run = site.run(args, kwargs)
        run.name_customer()
        token = context.enter(run.scope)
        try:
            result = site.function(*args, **kwargs)
        finally:
            context.leave(run.scope, token)
        return run.returned(result)

    return call


def _coroutine(site: Site) -> Any:
    @functools.wraps(site.function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        run = site.run(args, kwargs)
        await run.name_customer_async()
        token = context.enter(run.scope)
        try:
            result = await site.function(*args, **kwargs)
        finally:
            context.leave(run.scope, token)
        return run.returned(result)

    return call


def _generator(site: Site) -> Any:
    @functools.wraps(site.function)
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        run = site.run(args, kwargs)
        run.name_customer()
        return (yield from run.generated(site.function(*args, **kwargs)))

    return call


def _async_generator(site: Site) -> Any:
    @functools.wraps(site.function)
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        run = site.run(args, kwargs)
        await run.name_customer_async()
        # As `relayed`; it is written out since only a function that yields is an async generator function.
        steps = AsyncSteps(run, site.function(*args, **kwargs))
        more = await steps.go_on()
        while more:
            thrown = None
            sent = None
            try:
                sent = yield steps.item
            except GeneratorExit:
                await steps.close()
                raise
            except BaseException as exc:
                thrown = exc
            more = await (steps.go_on(sent) if thrown is None else steps.throw(thrown))

    return call


def _checked(customer: Any) -> Any:
    if callable(customer):
        return customer
    try:
        return customers.checked(customer)
    except ValueError as exc:
        raise ConfigurationError(f"metered(customer={customer!r}): {exc}") from exc


def _texts(dimensions: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in dimensions.items() if value is not None}
