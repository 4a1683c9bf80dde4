"""The SDKs that are metered below their methods: one entry of a table for each.

Whatever an SDK's methods do on the way (helpers, retries, functions that are called automatically, batches),
all of it passes one or two narrow doors: the `send` of its HTTP client, or a method of its own through which
every request goes. Those are replaced on the instance, so the client stays the object it was.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any

from .._values import dataclass
from ..fields import Path
from . import bedrock_calls, claims, genai_calls, litellm_calls
from .http_calls import HttpMeter

METER = "__llm_metering__"
"""The attribute of what replaces a method that names its meter."""

MODULE = "(module)"
"""Stands for a class where an SDK is a module of functions."""

Replace = Callable[[Any, HttpMeter], Any]
"""Makes what stands in for a method."""


@dataclass(frozen=True, slots=True)
class Door:
    """A method through which an SDK's requests go."""

    path: Path
    """Attributes that lead from the client to the object whose method it is."""
    method: str
    replace: Replace


@dataclass(frozen=True, slots=True)
class Sdk:
    """Where the requests of one SDK pass."""

    classes: tuple[tuple[str, str], ...]
    """The package and name of its clients' classes, or of a base of theirs."""
    provider: str | None
    """Whose answers they are; None where that differs."""
    doors: tuple[Door, ...]
    pools: tuple[Path, ...] = ()
    """Thread pools of the SDK's own, whose threads shall know who is billed."""


def sdk_of(client: object) -> Sdk | None:
    """The entry for this client, told from the names of its classes: no SDK is imported."""
    if isinstance(client, type):
        return None
    names = {(base.__module__.partition(".")[0], base.__name__) for base in type(client).__mro__}
    if inspect.ismodule(client):
        names = {(client.__name__, MODULE)}
    found = next((sdk for sdk in SDKS if not names.isdisjoint(sdk.classes)), None)
    return found if found is not None and next(_open_doors(client, found), None) is not None else None


def meter_of(client: object, sdk: Sdk) -> HttpMeter | None:
    """What meters this client, None if nothing does."""
    for owner, door in _open_doors(client, sdk):
        meter: HttpMeter | None = getattr(getattr(owner, door.method), METER, None)
        if meter is not None:
            return meter
    return None


def attach(client: object, sdk: Sdk, meter: HttpMeter) -> None:
    """Meter everything that goes through the client's doors."""
    if len({door.method for door in sdk.doors}) > 1:
        claims.need()  # one door stands behind another
    for owner, door in _open_doors(client, sdk):
        inner = getattr(owner, door.method)
        if hasattr(inner, METER):
            continue  # two ways that lead to one object
        metered = functools.wraps(inner)(door.replace(inner, meter))
        setattr(metered, METER, meter)
        setattr(owner, door.method, metered)
    for path in sdk.pools:
        if (pool := _at(client, path)) is not None and not hasattr(pool.submit, METER):
            pool.submit = _with_context(pool.submit)


def _open_doors(client: object, sdk: Sdk) -> Iterator[tuple[Any, Door]]:
    for door in sdk.doors:
        owner = _at(client, door.path)
        if owner is not None and callable(getattr(owner, door.method, None)):
            yield owner, door


def _at(value: Any, path: Path) -> Any:
    for name in path:
        value = getattr(value, name, None)
    return value


def _with_context(submit: Any) -> Any:
    @functools.wraps(submit)
    def submit_here(function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return submit(copy_context().run, function, *args, **kwargs)

    setattr(submit_here, METER, True)
    return submit_here


def metered_send(inner: Any, meter: HttpMeter) -> Any:
    """The `send` of an httpx or httpx2 client, sync or async."""
    return _async_send(inner, meter) if inspect.iscoroutinefunction(inner) else _send(inner, meter)


def _send(inner: Any, meter: HttpMeter) -> Any:
    def send(request: Any, *args: Any, **kwargs: Any) -> Any:
        call = meter.begin(request)
        if call is None:
            return inner(request, *args, **kwargs)
        with claims.claimed(meter.recorder):
            response = inner(request, *args, **kwargs)
        return call.answered(response)

    return send


def _async_send(inner: Any, meter: HttpMeter) -> Any:
    async def send(request: Any, *args: Any, **kwargs: Any) -> Any:
        call = meter.begin(request)
        if call is None:
            return await inner(request, *args, **kwargs)
        with claims.claimed(meter.recorder):
            response = await inner(request, *args, **kwargs)
        return call.answered(response)

    return send


SDKS = (
    Sdk(
        (("mistralai", "Mistral"), ("mistralai", "MistralAzure"), ("mistralai", "MistralGCP")),
        "mistral",
        (
            Door(("sdk_configuration", "client"), "send", metered_send),
            Door(("sdk_configuration", "async_client"), "send", metered_send),
        ),
    ),
    Sdk(
        (("cohere", "BaseCohere"), ("cohere", "AsyncBaseCohere")),
        "cohere",
        (Door(("_client_wrapper", "httpx_client", "httpx_client"), "send", metered_send),),
        pools=(("_executor",),),  # `embed` asks for several batches at a time
    ),
    Sdk((("ollama", "BaseClient"),), "ollama", (Door(("_client",), "send", metered_send),)),
    Sdk(
        (("google", "Client"), ("google", "AsyncClient")),
        "google",
        (
            Door(("_api_client",), "request", genai_calls.whole),
            Door(("_api_client",), "async_request", genai_calls.whole_async),
            Door(("_api_client",), "request_streamed", genai_calls.streamed),
            Door(("_api_client",), "async_request_streamed", genai_calls.streamed_async),
            # Interactions go past the four above.
            Door(("_api_client", "_httpx_client"), "send", metered_send),
            Door(("_api_client", "_async_httpx_client"), "send", metered_send),
        ),
    ),
    Sdk((("botocore", "BedrockRuntime"),), "bedrock", (Door((), "_make_api_call", bedrock_calls.api_call),)),
    Sdk(
        (("litellm", MODULE),),
        None,
        (
            Door((), "completion", litellm_calls.metered("chat")),
            Door((), "acompletion", litellm_calls.metered("chat")),
            Door((), "text_completion", litellm_calls.metered("completions")),
            Door((), "atext_completion", litellm_calls.metered("completions")),
            Door((), "embedding", litellm_calls.metered("embeddings")),
            Door((), "aembedding", litellm_calls.metered("embeddings")),
            Door((), "responses", litellm_calls.metered("responses")),
            Door((), "aresponses", litellm_calls.metered("responses")),
        ),
    ),
)
