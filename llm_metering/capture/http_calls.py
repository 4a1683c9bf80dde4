"""One HTTP exchange with a provider, seen below its SDK: where a client sends it, or in a transport."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..providers import StreamTally, WireTally
from ..providers.headers import with_headers
from ..usage import NOTHING, Reading, Surface
from . import claims
from .answer_tally import STREAMS
from .bodies import model_in
from .client_routes import Route, model_of, route_of
from .lasting import is_in_background, standing
from .response_bytes import InflatedTally
from .streams import StreamTap, is_billable, lasting_id
from .taps import hold_rest, tap_response

if TYPE_CHECKING:
    from .recorder import Recorder
    from .streams import Tally


_END_CHUNKS, _END_BYTES = 256, 16 * 1024
"""Of the rest of a long body so much is kept: what chunks of a few bytes make up holds a usage, too."""


class HttpMeter:
    """What the exchanges of one client or transport have in common.

    Args:
        recorder: Where records go.
        surface: Who sees the exchanges.
        provider: Whose answers they are, where that is known.
        dimensions: Added to every record.
    """

    __slots__ = ("_provider", "_surface", "dimensions", "recorder")

    def __init__(
        self,
        recorder: Recorder,
        *,
        surface: Surface,
        provider: str | None = None,
        dimensions: Mapping[str, str] = NOTHING,
    ) -> None:
        self.recorder = recorder
        self.dimensions = dimensions
        self._surface: Surface = surface
        self._provider = provider

    def begin(self, request: Any) -> HttpCall | None:
        """Look at a request before it is sent; None where it can bring no usage. Never raises.

        Args:
            request: Of httpx or httpx2.
        """
        try:
            if claims.is_claimed(self.recorder):
                return None
            path = request.url.raw_path.decode("ascii", "replace")
            route = route_of(request.method, path)
            if route is None:
                return None
            content = _content_of(request)
            model = model_of(path.partition("?")[0]) or model_in(content or b"")
            return HttpCall(self, route, content, model)
        except Exception as exc:
            self.recorder.telemetry.failure("capture.http", exc)
            return None

    def tally(self, route: Route, headers: Mapping[str, Any]) -> ExchangeTally:
        """What adds up one answer's bytes."""
        wire = WireTally(
            content_type=headers.get("content-type"),
            provider=self._provider,
            api=route.api,
            max_bytes=self.recorder.settings.max_body_bytes,
            keep_text=self.recorder.wants_text(),
        )
        return ExchangeTally(wire, route, headers)

    def events(self, route: Route) -> StreamTally:
        """What adds up the decoded events of one answer."""
        return StreamTally(provider=self._provider, api=route.api, keep_text=self.recorder.wants_text())

    @property
    def surface(self) -> Surface:
        return self._surface


class HttpCall:
    """One exchange under way."""

    __slots__ = ("_content", "_meter", "_model", "_route", "_scope")

    def __init__(self, meter: HttpMeter, route: Route, content: Any, model: str | None) -> None:
        self._meter = meter
        self._route = route
        self._content = content
        self._model = model
        self._scope = meter.recorder.scope_here()

    def answered(self, response: Any) -> Any:
        """Take the response and give it on. Never raises."""
        try:
            if 200 <= response.status_code < 300:
                self._take(response)
        except Exception as exc:
            self._meter.recorder.telemetry.failure("capture.http", exc)
        return response

    def _take(self, response: Any) -> None:
        kind = (response.headers.get("content-type") or "").partition(";")[0].strip().lower()
        content = _content_of(response)
        if content is not None:
            self.whole(content, response.headers)
            return
        if kind not in STREAMS:
            tap_response(response, BodyTap(self, response.headers), wire_tally=self._tally)
            return
        tap = self.tap(self._tally(response))
        tap_response(response, tap, wire_tally=self._tally)
        hold_rest(self._meter.recorder, response, tap, wire_tally=self._tally)

    def whole(self, content: bytes, headers: Mapping[str, Any]) -> None:
        """Record an answer that has been read."""
        tally = self._meter.tally(self._route, headers)
        tally.feed(content)
        reading = tally.result()
        is_of_use, lasting = standing(reading, content)
        if not is_of_use:
            return
        if self._route.lasting and reading.response_id:
            lasting = lasting_id(reading.response_id)
        if self._route.lookup and lasting is None:
            return  # it was recorded when it was made
        if not (is_billable(reading) or (self._route.api == "embeddings" and b'"embedding' in content)):
            self._meter.recorder.telemetry.count("client.unread")
            return
        self.record(reading, lasting)

    def record(self, reading: Reading, record_id: str | None = None) -> None:
        """Record what was read."""
        self._meter.recorder.record(
            reading,
            surface=self._meter.surface,
            request=self._content,
            model=self._model,
            dimensions=self._meter.dimensions,
            id=record_id,
            closes=record_id,
            scope=self._scope,
        )

    def tap(self, tally: Tally | None = None) -> StreamTap:
        """A tap for the events of a stream, decoded unless there is a tally for something else."""
        content = self._content
        return StreamTap(
            self._meter.recorder,
            tally=self._meter.events(self._route) if tally is None else tally,
            surface=self._meter.surface,
            request=content,
            model=self._model,
            dimensions=self._meter.dimensions,
            scope=self._scope,
            covered=None if self._route.counted else _always,
            lasting=self._route.lookup or (isinstance(content, bytes) and is_in_background(content)),
        )

    def _tally(self, response: Any) -> ExchangeTally:
        return self._meter.tally(self._route, response.headers)

    def later(self, job: Callable[[], None]) -> None:
        """Run `job` on a thread of ours. Takes no lock: safe while objects die."""
        self._meter.recorder.counter.later(job)

    def failure(self, exc: Exception) -> None:
        """An error of ours."""
        self._meter.recorder.telemetry.failure("capture.http", exc)

    @property
    def wants_text(self) -> bool:
        """Whether an answer's text is to be kept, to count it too."""
        return self._meter.recorder.wants_text()

    @property
    def limit(self) -> int:
        """How much of a body is kept."""
        return self._meter.recorder.settings.max_body_bytes


class BodyTap:
    """Keeps the bytes of an answer that is no stream, and has it recorded once it has been read."""

    def __init__(self, call: HttpCall, headers: Mapping[str, Any]) -> None:
        self.tally: Any = None
        self._call = call
        self._headers = headers
        self._chunks: list[bytes] = []
        self._ends: deque[bytes] = deque(maxlen=_END_CHUNKS)
        """The last chunks of a body that is too long to be kept: its usage stands at its end."""
        self._size = 0
        self._finished = False

    def feed(self, chunk: bytes) -> None:
        if isinstance(self.tally, InflatedTally):
            chunk = self.tally.inflated(chunk)
        if self._size <= self._call.limit:
            self._size += len(chunk)
            self._chunks.append(chunk)
        elif chunk:
            # A longer one is only read at both ends.
            self._ends.append(chunk[-_END_BYTES:])

    def finish(self, complete: bool = True) -> None:
        """The body has ended, or broken off. Never raises."""
        if self._finished or not (self._chunks or with_headers(Reading(), self._headers).usage):
            return
        self._finished = True
        try:
            self._call.whole(b"".join((*self._chunks, *self._ends)), self._headers)
        except Exception as exc:
            self._call.failure(exc)

    def __del__(self) -> None:
        if not getattr(self, "_finished", True) and (self._chunks or self._headers):
            with suppress(Exception):  # nobody closed it; what came was paid for all the same
                self._call.later(self.finish)


class ExchangeTally:
    """Adds up the bytes of one answer, and what its headers say."""

    __slots__ = ("_headers", "_route", "_wire")

    def __init__(self, wire: WireTally, route: Route, headers: Mapping[str, Any]) -> None:
        self._wire = wire
        self._route = route
        self._headers = headers

    def feed(self, chunk: bytes, /) -> None:
        self._wire.feed(chunk)

    @property
    def complete(self) -> bool:
        return self._wire.complete

    @property
    def failed(self) -> bool:
        return self._wire.failed

    @property
    def tokens_so_far(self) -> int:
        return self._wire.tokens_so_far

    def so_far(self) -> Reading:
        return self._wire.so_far()

    def result(self) -> Reading:
        reading = with_headers(self._wire.result(), self._headers)
        if self._route.counted or reading.usage:
            return reading
        return Reading(provider=reading.provider, api=reading.api)


def _content_of(message: Any) -> bytes | None:
    """The body of a request or response, if it has been read."""
    try:
        content = message.content
    except Exception:
        return None
    return content if isinstance(content, bytes) else None


def _always() -> bool:
    return True
