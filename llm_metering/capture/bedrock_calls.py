"""Calls of boto3's `bedrock-runtime` client: all of its methods go through `_make_api_call`."""

# ruff: noqa: SLF001  (botocore's streams have no public way in)

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import proxy

from ..providers import read_response
from .client_routes import Route
from .http_calls import BodyTap, HttpCall, HttpMeter

if TYPE_CHECKING:
    from .streams import StreamTap

_OPERATIONS = {
    "Converse": Route("converse"),
    "ConverseStream": Route("converse"),
    "InvokeModel": Route(None),
    "InvokeModelWithResponseStream": Route(None),
}


def api_call(inner: Any, meter: HttpMeter) -> Any:
    """Stands in for `_make_api_call`."""

    def _make_api_call(operation_name: Any, api_params: Any, *args: Any, **kwargs: Any) -> Any:
        call = _begin(meter, operation_name, api_params)
        answer = inner(operation_name, api_params, *args, **kwargs)
        return answer if call is None else _taken(call, answer)

    return _make_api_call


def _begin(meter: HttpMeter, operation: Any, params: Any) -> HttpCall | None:
    try:
        route = _OPERATIONS.get(operation)
        if route is None:
            return None
        model = params.get("modelId")
        body = params.get("body")
        request = {**params} if body is None else body.encode() if isinstance(body, str) else body
        known = isinstance(request, (dict, bytes))
        return HttpCall(meter, route, request if known else None, model if isinstance(model, str) else None)
    except Exception as exc:
        meter.recorder.telemetry.failure("capture.client", exc)
        return None


def _taken(call: HttpCall, answer: Any) -> Any:
    try:
        stream = answer.get("stream") or answer.get("body")
        if stream is None:
            call.record(read_response(answer, provider="bedrock", api="converse", keep_text=call.wants_text))
        elif hasattr(stream, "_parse_event"):
            _tap_events(stream, call.tap())
        else:
            _tap_body(stream, BodyTap(call, _headers_of(answer)))
    except Exception as exc:
        call.failure(exc)
    return answer


def _headers_of(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    found = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return {str(name).lower(): value for name, value in found.items()}


def _tap_events(stream: Any, tap: StreamTap) -> None:
    """See each event of botocore's `EventStream` once it was parsed."""
    # A reference to the stream of its own would leave one that is dropped to the garbage collector.
    parse = functools.partial(type(stream)._parse_event, proxy(stream))
    raw = stream._raw_stream

    def parse_event(event: Any) -> Any:
        try:
            parsed = parse(event)
        except BaseException:
            tap.finish(complete=False)
            raise
        if parsed:
            tap.feed(parsed)
        return parsed

    def close() -> None:
        tap.finish(complete=False)
        raw.close()

    stream._parse_event = parse_event
    stream._event_generator = _watched(stream._event_generator, tap)
    stream.close = close


def _watched(inner: Iterator[Any], tap: StreamTap) -> Iterator[Any]:
    try:
        yield from inner
    except BaseException:
        tap.finish(complete=False)
        raise
    tap.finish()


def _tap_body(body: Any, tap: BodyTap) -> None:
    """See what is read of botocore's `StreamingBody`, on the response beneath it: all its ways go there."""
    raw = body._raw_stream
    read, close = raw.read, raw.close
    length = str(getattr(body, "_content_length", None))
    left = int(length) if length.isdecimal() else None

    def read_seen(amt: int | None = None, *args: Any, **kwargs: Any) -> Any:
        nonlocal left
        try:
            chunk = read(amt, *args, **kwargs)
        except BaseException:
            tap.finish(complete=False)
            raise
        if chunk:
            tap.feed(chunk)
            left = None if left is None else left - len(chunk)
        # Who knows how long it is may read that much, and no further.
        if amt is None or amt < 0 or (not chunk and amt) or left == 0:
            tap.finish()
        return chunk

    def close_seen() -> Any:
        tap.finish(complete=False)
        return close()

    with suppress(AttributeError, TypeError):
        raw.read, raw.close = read_seen, close_seen
        return
    body._raw_stream = _SeenBytes(raw, read_seen, close_seen)


class _SeenBytes:
    """Stands in for a raw stream that takes no attributes, such as the `BytesIO` of a stub."""

    def __init__(self, raw: Any, read: Any, close: Any) -> None:
        self._raw = raw
        self.read = read
        self.close = close

    def readinto(self, buffer: Any) -> int:
        chunk = self.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)
