"""Calls of LiteLLM: functions of a module, whose answers are objects of its own and whose streams iterate."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..fields import fields, get, is_object, items
from ..providers import read_response
from . import claims
from .client_routes import Route
from .http_calls import HttpCall, HttpMeter
from .streams import is_billable

if TYPE_CHECKING:
    from .streams import StreamTap

_TAP = "_llm_metering_tap"


def metered(api: str) -> Callable[[Any, HttpMeter], Any]:
    """Makes what stands in for a function, plain or async, that answers in the shape of this API."""
    route = Route(api)

    def replace(inner: Any, meter: HttpMeter) -> Any:
        return (_async if inspect.iscoroutinefunction(inner) else _plain)(inner, meter, route)

    return replace


def _plain(inner: Any, meter: HttpMeter, route: Route) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        begun = _begin(meter, route, args, kwargs)
        if begun is None:
            return inner(*args, **kwargs)
        with claims.claimed(meter.recorder):
            answer = inner(*args, **kwargs)
        return _taken(begun, route, answer)

    return call


def _async(inner: Any, meter: HttpMeter, route: Route) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        begun = _begin(meter, route, args, kwargs)
        if begun is None:
            return await inner(*args, **kwargs)
        with claims.claimed(meter.recorder):
            answer = await inner(*args, **kwargs)
        return _taken(begun, route, answer)

    return call


def _begin(meter: HttpMeter, route: Route, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HttpCall | None:
    """None for a call that one of these functions makes of another."""
    try:
        if claims.is_claimed(meter.recorder):
            return None
        names = (
            ("input", "model")
            if route.api == "responses"
            else ("model", _ASKED.get(route.api or "", "input"))
        )
        request = {**dict(zip(names, args)), **kwargs}  # noqa: B905
        model = request.get("model")
        return HttpCall(meter, route, request, model if isinstance(model, str) else None)
    except Exception as exc:
        meter.recorder.telemetry.failure("capture.client", exc)
        return None


_ASKED = {"chat": "messages", "completions": "prompt"}


def _taken(call: HttpCall, route: Route, answer: Any) -> Any:
    try:
        kind = type(answer)
        if hasattr(kind, "__next__") or hasattr(kind, "__anext__"):
            if getattr(answer, "custom_llm_provider", None) != "cached_response":
                _tap(answer, call.tap())
        elif not _is_cached(answer):
            reading = read_response(answer, api=route.api, keep_text=call.wants_text)
            if is_billable(reading) or route.api == "embeddings":
                call.record(reading)
    except Exception as exc:
        call.failure(exc)
    return answer


def _is_cached(answer: Any) -> bool:
    hidden = getattr(answer, "_hidden_params", None)
    return isinstance(hidden, dict) and hidden.get("cache_hit") is True


def _tap(stream: Any, tap: StreamTap) -> None:
    """See what a stream gives: iteration is looked up on the class, so the stream gets one of its own."""
    kind: Any = type(stream)
    stream.__class__ = _tapped(kind)
    setattr(stream, _TAP, _Fed(tap))


class _Fed:
    """Feeds a tap the words that LiteLLM gives, and at the end the usage that it got of the provider.

    What it gives holds no usage, or one that it worked out itself where the provider said nothing. What it
    got stands in its `chunks`: one provider says all in the last, another the prompt's count in the first.
    """

    def __init__(self, tap: StreamTap) -> None:
        self.tap = tap

    def take(self, stream: Any, event: Any) -> None:
        if getattr(event, "usage", None) is not None and isinstance(getattr(stream, "chunks", None), list):
            event = {"id": event.id, "model": event.model, "choices": event.choices}
        self.tap.feed(event)

    def end(self, stream: Any, complete: bool) -> None:
        got = getattr(stream, "chunks", None)
        usages = [fields(usage) for chunk in items(got) if (usage := get(chunk, "usage")) is not None]
        if usages and complete:
            self.tap.feed({"choices": [], "usage": _largest(usages)})
        self.tap.finish(complete)


def _largest(usages: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The largest count under each name: all of them are running totals, or 0 where nothing is said."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for usage in usages for name in usage):
        values = [value for usage in usages if (value := usage.get(name)) is not None]
        counts = [value for value in values if type(value) is int]
        nested = [fields(value) for value in values if is_object(value)]
        if counts:
            found[name] = max(counts)
        elif nested:
            found[name] = _largest(nested)
    return found


@functools.lru_cache(maxsize=64)
def _tapped(kind: type) -> type:
    def __next__(self: Any) -> Any:  # noqa: N807
        fed: _Fed = getattr(self, _TAP)
        try:
            event = kind.__next__(self)  # type: ignore[attr-defined]
        except StopIteration:
            fed.end(self, complete=True)
            raise
        except BaseException:
            fed.end(self, complete=False)
            raise
        fed.take(self, event)
        return event

    async def __anext__(self: Any) -> Any:  # noqa: N807
        fed: _Fed = getattr(self, _TAP)
        try:
            event = await kind.__anext__(self)  # type: ignore[attr-defined]
        except StopAsyncIteration:
            fed.end(self, complete=True)
            raise
        except BaseException:
            fed.end(self, complete=False)
            raise
        fed.take(self, event)
        return event

    own: dict[str, Any] = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    if hasattr(kind, "__next__"):
        own["__next__"] = __next__
    if hasattr(kind, "__anext__"):
        own["__anext__"] = __anext__
    return type(kind.__name__, (kind,), own)
