"""One call of a wrapped client: what is added to its request, and what its answer is."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from ..providers import StreamTally, WireTally, read_response
from ..usage import Reading
from .client_routes import Route, route_of
from .streams import StreamTap, Tally, is_billable, lasting_id
from .tallies import ReportTally
from .taps import hold_rest, response_of, tap_response, tap_stream

if TYPE_CHECKING:
    from .recorder import Recorder


class Meter:
    """What a wrapped client and the copies made of it share."""

    __slots__ = ("_refusing", "dimensions", "recorder")

    def __init__(self, recorder: Recorder, dimensions: Mapping[str, str]) -> None:
        self.recorder = recorder
        self.dimensions = dimensions
        self._refusing: set[str] = set()
        """Servers that do not know stream_options."""

    def begin(self, client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        """Look at a call of `request` before it is made; None where it can bring no usage. Never raises."""
        try:
            options = args[1] if len(args) > 1 else kwargs["options"]
            route = route_of(options.method, options.url)
            if route is None:
                return None
            call = Call(self, options, route)
            if kwargs.get("stream") and route.api in ("chat", "completions"):
                call.ask_for_usage(str(client.base_url))
            if callable(options.post_parser):
                call.look_over(options.post_parser)
        except Exception as exc:
            self.recorder.telemetry.failure("capture.client", exc)
            return None
        return call

    def refuses(self, server: str) -> bool:
        return server in self._refusing

    def note_refusal(self, server: str) -> None:
        self._refusing.add(server)
        self.recorder.telemetry.count("client.stream_options_refused")


class Call:
    """A call under way."""

    __slots__ = ("_given", "_is_again", "_meter", "_options", "_parsed", "_request", "_route", "_server")

    def __init__(self, meter: Meter, options: Any, route: Route) -> None:
        self._meter = meter
        self._options = options
        self._route = route
        self._request = _arguments(options)
        self._given: tuple[str, Any] | None = None
        """The field of the options that we changed, and what the caller gave."""
        self._server = ""
        self._is_again = False
        """Whether it is made once more, without what we added."""
        self._parsed: Any = None

    def ask_for_usage(self, server: str) -> None:
        """Have the provider report the usage of a stream, unless the caller decided otherwise.

        Every server is asked. One that refuses is asked again without, and remembered if that was it.
        """
        chosen = self._request.get("stream_options")
        if chosen is not None and not isinstance(chosen, Mapping):
            return
        if self._meter.refuses(server) or (chosen and chosen.get("include_usage") is not None):
            return
        options = self._options
        extra = options.extra_json
        name = "extra_json" if extra and "stream_options" in extra else "json_data"
        given = getattr(options, name)
        if not isinstance(given, Mapping):
            return
        self._server = server
        self._given = name, given
        wanted = {**(chosen or {}), "include_usage": True}
        setattr(options, name, {**given, "stream_options": wanted})

    def look_over(self, parse: Any) -> None:
        """See what the SDK's own parsing helper is given: if that raises, the answer was paid for still."""

        @functools.wraps(parse)
        def seen(answer: Any) -> Any:
            self._parsed = answer
            return parse(answer)

        self._options.post_parser = seen

    def failed(self, exc: BaseException) -> bool:
        """The call raised. True where it is to be made again without what we added. Never raises."""
        try:
            if self._given is not None and _names_stream_options(exc):
                name, given = self._given
                setattr(self._options, name, given)
                self._given = None
                self._is_again = True
                return True
            answer = self._parsed if self._parsed is not None else _answer_in(exc)
            if answer is not None and _kind_of(answer.__class__) == "whole":
                self._whole(answer)
            elif isinstance(exc, (ValueError, RecursionError)):
                # An answer came, and the SDK could not decode it.
                self._meter.recorder.telemetry.count("client.unread")
        except Exception as error:
            self._meter.recorder.telemetry.failure("capture.client", error)
        return False

    def answered(self, answer: Any) -> Any:
        """Take the answer and give it on. Never raises."""
        try:
            if self._is_again:
                # It was what we added, then. A refusal that names it for what the caller's users wrote proves
                # nothing: it comes again.
                self._meter.note_refusal(self._server)
            kind = _kind_of(answer.__class__)
            if kind == "whole":
                self._whole(answer)
            elif kind == "stream":
                self._stream(answer)
            else:
                self._raw(answer.http_response if kind == "raw" else answer)
        except Exception as exc:
            self._meter.recorder.telemetry.failure("capture.client", exc)
        return answer

    def _whole(self, answer: Any) -> None:
        reading = read_response(answer, api=self._route.api, keep_text=self._meter.recorder.wants_text())
        self._record(reading, answer)

    def _record(self, reading: Reading, answer: Any) -> None:
        lasting = self._route.lasting or (
            self._route.api == "responses" and _field(answer, "background") is True
        )
        if not self._is_due(reading, answer, lasting):
            return
        record_id = lasting_id(reading.response_id) if lasting and reading.response_id else None
        self._meter.recorder.record(
            reading,
            surface="client",
            request=self._request,
            model=self._model,
            dimensions=self._meter.dimensions,
            id=record_id,
            closes=record_id,
        )

    def _is_due(self, reading: Reading, answer: Any, lasting: bool) -> bool:
        """Whether this answer is one to record, here and now."""
        if reading.problem is not None:
            return self._route.counted
        if reading.usage:
            # What is merely looked up was recorded when it was made, unless it was made behind our back.
            return lasting or not self._route.lookup
        if not self._route.counted or self._route.lookup or _field(answer, "error") is not None:
            return False
        if _field(answer, "status") in ("queued", "in_progress"):
            return False
        if is_billable(reading):
            return True
        self._meter.recorder.telemetry.count("client.unread")
        return False

    def _stream(self, stream: Any) -> None:
        api = self._route.api
        tally: Tally = ReportTally(api=api)
        if self._route.counted or self._route.lasting:
            tally = StreamTally(api=api, keep_text=self._meter.recorder.wants_text())
        tap = self._tap(tally)
        if tap_stream(stream, tap, wire_tally=self._wire_tally, api=api, hide_usage=self._given is not None):
            hold_rest(self._meter.recorder, response_of(stream), tap, wire_tally=self._wire_tally)
        else:
            self._meter.recorder.telemetry.alarm(
                "client.unmetered",
                f"a stream of {type(stream).__module__} has a form that is not known: it is not counted",
            )

    def _raw(self, response: Any) -> None:
        content = _content_of(response)
        if content is None:
            tap = self._tap(self._wire_tally(response))
            tap_response(response, tap, wire_tally=self._wire_tally, hide_usage=self._given is not None)
            if "stream" in (response.headers.get("content-type") or ""):
                hold_rest(self._meter.recorder, response, tap, wire_tally=self._wire_tally)
            return
        keep_text = self._meter.recorder.wants_text()
        reading = read_response(content, api=self._route.api, keep_text=keep_text)
        self._record(reading, _decoded(content) if self._route.api == "responses" else None)

    def _wire_tally(self, response: Any) -> WireTally:
        return WireTally(
            content_type=response.headers.get("content-type"),
            api=self._route.api,
            keep_text=self._meter.recorder.wants_text(),
        )

    def _tap(self, tally: Any) -> StreamTap:
        return StreamTap(
            self._meter.recorder,
            tally=tally,
            surface="client",
            request=self._request,
            model=self._model,
            dimensions=self._meter.dimensions,
            covered=None if self._route.counted else _always,
            lasting=self._request.get("background") is True or self._route.lookup,
        )

    @property
    def _model(self) -> str | None:
        model = self._request.get("model")
        return model if isinstance(model, str) else None


@functools.lru_cache(maxsize=256)
def _kind_of(cls: Hashable) -> Literal["whole", "stream", "raw", "response"]:
    if hasattr(cls, "http_request") and hasattr(cls, "parse"):
        return "raw"
    if hasattr(cls, "_iter_events") or hasattr(cls, "__stream__"):
        return "stream"
    return "response" if hasattr(cls, "iter_bytes") and hasattr(cls, "raise_for_status") else "whole"


def _arguments(options: Any) -> dict[str, Any]:
    """The request's body, as it is now: lists are copied, since the caller may go on adding to them."""
    body, extra = options.json_data, options.extra_json
    arguments = {**body} if type(body) is dict or isinstance(body, Mapping) else {}
    if extra is not None and isinstance(extra, Mapping):
        arguments.update(extra)
    for name in ("messages", "input"):
        if type(value := arguments.get(name)) is list:
            arguments[name] = value.copy()
    return arguments


def _names_stream_options(exc: BaseException) -> bool:
    if getattr(exc, "status_code", None) not in (400, 422):
        return False
    said = f"{exc} {getattr(exc, 'body', '')}"
    return "stream_options" in said or "include_usage" in said


def _answer_in(exc: BaseException) -> Any:
    """The answer that came, and could not be turned into what the caller asked for."""
    response = getattr(exc, "response", None)
    status = getattr(response, "status_code", None)
    if not isinstance(status, int) or not 200 <= status < 300:
        return None
    return _content_of(response)


def _content_of(response: Any) -> bytes | None:
    """The body, if it has been read already."""
    try:
        content = response.content
    except Exception:
        return None
    return content if isinstance(content, bytes) else None


def _decoded(content: bytes) -> Any:
    import json

    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _always() -> bool:
    return True


def _field(answer: Any, name: str) -> Any:
    return answer.get(name) if isinstance(answer, dict) else getattr(answer, name, None)
