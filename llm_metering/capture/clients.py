"""Wrapping a provider's SDK client, so that every answer that it receives is recorded.

The SDKs of OpenAI, Anthropic and many others (Groq, Together, Cerebras, Writer, …) are made by one generator:
whatever a resource does (`create`, `parse`, `stream`, raw and streaming responses, beta namespaces), it
passes through the client's `request(cast_to, options, stream=, stream_cls=)`. That method is replaced on
the instance. The object stays the one it was: its type, attributes, signatures and exceptions.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigurationError
from . import claims, sdks
from .calls import Call, Meter
from .http_calls import HttpMeter

if TYPE_CHECKING:
    from .recorder import Recorder

C = TypeVar("C")

_METER = sdks.METER


def wrap(client: C, recorder: Recorder, **dimensions: str) -> C:
    """Meter a provider's SDK client; it keeps its type and behaviour, streams included.

    The very object is metered and returned, and so are the clients that its `copy` and `with_options` make.
    One that is metered already is left as it is; with other dimensions, or for another recorder, a copy of
    it is metered with them instead. No SDK is imported.

    Raises:
        ConfigurationError: The object is not a client that can be metered.
    """
    if not is_supported(client):
        raise ConfigurationError(
            f"wrap() cannot meter {_described(client)}; it takes clients such as OpenAI(), Anthropic(), "
            "google.genai.Client(), Mistral(), cohere.ClientV2(), Groq() or boto3's bedrock-runtime. For "
            "others use a MeteringTransport, metering.record(answer) or @metering.metered"
        )
    named = {name: str(value) for name, value in dimensions.items() if value is not None}
    if (sdk := sdks.sdk_of(client)) is not None:
        _wrap_by_table(client, sdk, recorder, named)
        return client
    present = _meter_of(client)
    if present is None:
        return _attach(client, Meter(recorder, named))
    wanted = {**present.dimensions, **named} if present.recorder is recorder else named
    if present.recorder is recorder and wanted == present.dimensions:
        return client
    return _attach(_bare_copy(client), Meter(recorder, wanted))


def is_supported(client: object) -> bool:
    """Whether `wrap` can meter it. Told from the names of its classes: no SDK is imported."""
    return _is_generated(client) or sdks.sdk_of(client) is not None


def meter_of(client: object) -> Meter | HttpMeter | None:
    """What meters this client, None if nothing does."""
    if (sdk := sdks.sdk_of(client)) is not None:
        return sdks.meter_of(client, sdk)
    return _meter_of(client)


def _meter_of(client: object) -> Meter | None:
    return getattr(vars(client).get("request"), _METER, None)


def _is_generated(client: object) -> bool:
    """Whether it is a client of the generator that made OpenAI's SDK."""
    return not isinstance(client, type) and any(
        base.__name__ in ("SyncAPIClient", "AsyncAPIClient") and base.__module__.endswith("._base_client")
        for base in type(client).__mro__
    )


def _wrap_by_table(client: object, sdk: sdks.Sdk, recorder: Recorder, named: dict[str, str]) -> None:
    present = sdks.meter_of(client, sdk)
    if present is None:
        meter = HttpMeter(recorder, surface="client", provider=sdk.provider, dimensions=named)
        sdks.attach(client, sdk, meter)
    elif present.recorder is not recorder or {**present.dimensions, **named} != present.dimensions:
        raise ConfigurationError(
            f"this {type(client).__name__} is metered already, and cannot be copied to be metered otherwise; "
            "make another client, or name what differs with metering.bound(...)"
        )


def _described(client: object) -> str:
    if inspect.ismodule(client):
        return f"the module {client.__name__}"
    if isinstance(client, type):
        return f"the class {client.__name__} (make a client of it first)"
    return f"a {type(client).__module__}.{type(client).__qualname__}"


def _attach(client: C, meter: Meter) -> C:
    target: Any = client
    inner = target.request
    request = _async_request(target, inner, meter) if _is_async(target) else _request(target, inner, meter)
    setattr(request, _METER, meter)
    target.request = request
    for name in ("copy", "with_options"):
        if hasattr(type(target), name):
            setattr(target, name, _metered_copy(getattr(target, name), meter))
    return client


def _is_async(client: object) -> bool:
    return any(base.__name__ == "AsyncAPIClient" for base in type(client).__mro__)


def _request(client: Any, inner: Any, meter: Meter) -> Any:
    @functools.wraps(inner)
    def request(*args: Any, **kwargs: Any) -> Any:
        call = meter.begin(client, args, kwargs)
        if call is None:
            return inner(*args, **kwargs)
        try:
            if claims.is_needed:
                with claims.claimed(meter.recorder):
                    answer = inner(*args, **kwargs)
            else:
                answer = inner(*args, **kwargs)
        except BaseException as exc:
            if not call.failed(exc):
                raise
        else:
            return call.answered(answer)
        with claims.claimed(meter.recorder):
            return _again(call, inner, args, kwargs)

    return request


def _again(call: Call, inner: Any, args: Any, kwargs: Any) -> Any:
    """What we added to the request was refused: ask as the caller did."""
    try:
        answer = inner(*args, **kwargs)
    except BaseException as exc:
        call.failed(exc)
        raise
    return call.answered(answer)


def _async_request(client: Any, inner: Any, meter: Meter) -> Any:
    @functools.wraps(inner)
    async def request(*args: Any, **kwargs: Any) -> Any:
        call = meter.begin(client, args, kwargs)
        if call is None:
            return await inner(*args, **kwargs)
        try:
            if claims.is_needed:
                with claims.claimed(meter.recorder):
                    answer = await inner(*args, **kwargs)
            else:
                answer = await inner(*args, **kwargs)
        except BaseException as exc:
            if not call.failed(exc):
                raise
        else:
            return call.answered(answer)
        with claims.claimed(meter.recorder):
            return await _again_async(call, inner, args, kwargs)

    return request


async def _again_async(call: Call, inner: Any, args: Any, kwargs: Any) -> Any:
    try:
        answer = await inner(*args, **kwargs)
    except BaseException as exc:
        call.failed(exc)
        raise
    return call.answered(answer)


def _metered_copy(inner: Any, meter: Meter) -> Any:
    @functools.wraps(inner)
    def copy(*args: Any, **kwargs: Any) -> Any:
        made = inner(*args, **kwargs)
        if _is_generated(made) and _meter_of(made) is None:
            _attach(made, meter)
        return made

    copy.__llm_metering_inner__ = inner  # type: ignore[attr-defined]
    return copy


def _bare_copy(client: C) -> C:
    """A client like this one that nothing meters yet."""
    copy = vars(client).get("copy")
    inner = getattr(copy, "__llm_metering_inner__", None)
    if inner is None:
        raise ConfigurationError(
            f"this {type(client).__name__} is metered already, and cannot be copied to be metered otherwise"
        )
    made: C = inner()
    return made


__all__ = ["is_supported", "meter_of", "wrap"]
