"""Calls of google-genai: its API client sends every request of models and chats, whatever carries it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from typing import TYPE_CHECKING, Any

from . import claims
from .client_routes import model_of, route_of
from .http_calls import HttpCall, HttpMeter

if TYPE_CHECKING:
    from .streams import StreamTap

_JSON = {"content-type": "application/json"}


def whole(inner: Any, meter: HttpMeter) -> Any:
    """Stands in for `request`."""

    def request(*args: Any, **kwargs: Any) -> Any:
        call = _begin(meter, args, kwargs)
        with claims.claimed(meter.recorder):
            answer = inner(*args, **kwargs)
        return answer if call is None else _taken(call, answer)

    return request


def whole_async(inner: Any, meter: HttpMeter) -> Any:
    """Stands in for `async_request`."""

    async def async_request(*args: Any, **kwargs: Any) -> Any:
        call = _begin(meter, args, kwargs)
        with claims.claimed(meter.recorder):
            answer = await inner(*args, **kwargs)
        return answer if call is None else _taken(call, answer)

    return async_request


def streamed(inner: Any, meter: HttpMeter) -> Any:
    """Stands in for `request_streamed`, a generator function."""

    def request_streamed(*args: Any, **kwargs: Any) -> Any:
        call = _begin(meter, args, kwargs)
        if call is None:
            return inner(*args, **kwargs)
        return _read(inner(*args, **kwargs), call.tap(), meter)

    return request_streamed


def streamed_async(inner: Any, meter: HttpMeter) -> Any:
    """Stands in for `async_request_streamed`, which is awaited for an async generator."""

    async def async_request_streamed(*args: Any, **kwargs: Any) -> Any:
        call = _begin(meter, args, kwargs)
        with claims.claimed(meter.recorder):
            answer = await inner(*args, **kwargs)
        return answer if call is None else _read_async(answer, call.tap())

    return async_request_streamed


def _begin(meter: HttpMeter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HttpCall | None:
    try:
        given = {**dict(zip(("http_method", "path", "request_dict"), args)), **kwargs}  # noqa: B905
        path = "/" + str(given["path"]).partition("?")[0].lstrip("/")
        route = route_of(str(given["http_method"]), path)
        if route is None:
            return None
        body = given["request_dict"]
        return HttpCall(meter, route, {**body} if isinstance(body, dict) else None, model_of(path))
    except Exception as exc:
        meter.recorder.telemetry.failure("capture.client", exc)
        return None


def _taken(call: HttpCall, answer: Any) -> Any:
    try:
        if isinstance(answer.body, str):
            call.whole(answer.body.encode("utf-8", "surrogatepass"), _JSON)
    except Exception as exc:
        call.failure(exc)
    return answer


def _read(inner: Generator[Any, None, None], tap: StreamTap, meter: HttpMeter) -> Generator[Any, None, None]:
    try:
        while True:
            with claims.claimed(meter.recorder):
                answer = next(inner, None)
            if answer is None:
                break
            _feed(tap, answer)
            yield answer
    except BaseException:
        inner.close()
        tap.finish(complete=False)
        raise
    tap.finish()


async def _read_async(inner: AsyncIterator[Any], tap: StreamTap) -> AsyncGenerator[Any, None]:
    try:
        async for answer in inner:
            _feed(tap, answer)
            yield answer
    except BaseException:
        tap.finish(complete=False)
        raise
    tap.finish()


def _feed(tap: StreamTap, answer: Any) -> None:
    try:
        event = json.loads(answer.body)
    except (ValueError, TypeError, RecursionError):
        return
    tap.feed(event)
