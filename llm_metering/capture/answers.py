"""The app's own answer, read as it passes: what the middleware does on a provider-shaped route."""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..usage import Reading
from .bodies import Inflater, KeptBody, UnreadableBody
from .streams import StreamTap

if TYPE_CHECKING:
    from ..providers import WireTally
    from .context import Scope
    from .recorder import Recorder

_STREAMS = ("text/event-stream", "application/x-ndjson", "application/jsonl")
_CALL_KEYS = (b'"model"', b'"messages"', b'"contents"', b'"prompt"', b'"input"')
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')


class AppAnswer:
    """Reads one answer of the app and records it, unless something inside has counted it.

    Args:
        recorder: Where the record goes.
        scope: The request's.
        api: "embeddings" where the route says so; None is some generation.
    """

    __slots__ = ("_api", "_begun", "_recorder", "_request", "_scope", "_tally", "_tap", "feed")

    feed: Callable[[bytes], None] | None
    """Take the next bytes of the body; None where nothing is read."""

    def __init__(self, recorder: Recorder, scope: Scope, *, api: str | None) -> None:
        self._recorder = recorder
        self._scope = scope
        self._api = api
        self._request = KeptBody(recorder.settings.max_body_bytes)
        self._tally: AnswerTally | None = None
        self._tap: StreamTap | None = None
        self._begun = False
        self.feed = None

    def keep_request(self, chunk: bytes) -> None:
        """Keep what the client asked, for counting what the answer does not report."""
        self._request.feed(chunk)

    def start(self, message: MutableMapping[str, Any]) -> None:
        """Look at the head of the answer, and read on only where there can be usage."""
        try:
            self._start(message)
        except Exception as exc:
            self.fail(exc)

    def _start(self, message: MutableMapping[str, Any]) -> None:
        if not 200 <= message["status"] < 300 or self._scope.covers(self._api):
            return
        content_type, encoding = _kind_of(message.get("headers") or ())
        if _is_readable(content_type):
            self._tally = AnswerTally(self._recorder, self._request, content_type, encoding)
            self.feed = self._begin

    def _begin(self, chunk: bytes) -> None:
        """The first bytes: from here on there is something to record."""
        if (tally := self._tally) is None:
            return
        self._begun = True
        if tally.is_stream:
            self._tap = StreamTap(
                self._recorder,
                tally=tally,
                surface="middleware",
                request=self._request.bytes(),
                scope=self._scope,
                covered=self._is_covered,
            )
        self.feed = tally.feed if self._tap is None else self._tap.feed
        self.feed(chunk)

    def finish(self, *, complete: bool) -> None:
        """The answer is over, or broke off: record it. Only the first call does anything."""
        tally, self._tally, self.feed = self._tally, None, None
        if tally is None or not self._begun:
            return
        try:
            if self._tap is None:
                self._record(tally)
            elif self._is_covered():
                self._tap.discard()
            else:
                self._tap.finish(complete)
        except Exception as exc:
            self._recorder.telemetry.failure("middleware.read", exc)

    def fail(self, exc: Exception) -> None:
        """An error of our own while reading: the answer goes on, and what is read of it is marked."""
        self._recorder.telemetry.failure("middleware.read", exc)
        self.feed = None
        if self._tally is not None:
            self._tally.give_up(f"the answer could not be read: {type(exc).__name__}")

    def _record(self, tally: AnswerTally) -> None:
        if self._is_covered():
            return
        reading = tally.result()
        if reading.usage or reading.problem or reading.provider:
            self._recorder.record(
                reading, surface="middleware", request=self._request.bytes(), scope=self._scope
            )

    def _is_covered(self) -> bool:
        return self._scope.covers(self._api, besides=self._tap)


class AnswerTally:
    """Adds up the bytes of one answer, inflating them where that is needed.

    What cannot be read gives a reading with the reason; what is no model's answer an empty one.
    """

    __slots__ = ("_inflater", "_recorder", "_request", "_unread", "_wire", "feed", "is_stream")

    feed: Callable[[bytes], None]

    def __init__(
        self, recorder: Recorder, request: KeptBody, content_type: str | None, encoding: str | None
    ) -> None:
        from ..providers import WireTally

        limit = recorder.settings.max_body_bytes
        self._recorder = recorder
        self._request = request
        self._unread: str | None = None
        self._inflater: Inflater | None = None
        self._wire: WireTally = WireTally(
            content_type=content_type, max_bytes=limit, keep_text=recorder.wants_text()
        )
        self.is_stream = content_type in _STREAMS
        self.feed = self._wire.feed if content_type else self._feed_wire
        if encoding is not None:
            self._inflate_with(encoding, limit)

    @property
    def complete(self) -> bool:
        return self._wire.complete

    @property
    def tokens_so_far(self) -> int:
        return self._wire.tokens_so_far

    def so_far(self) -> Reading:
        return self._wire.so_far()

    def result(self) -> Reading:
        """What the answer says."""
        if self._unread is not None:
            return self._given_up(self._unread)
        reading = self._wire.result()
        if reading.model is None and (model := self._requested_model()) is not None:
            reading = replace(reading, model=model)
        if reading.usage or reading.problem or reading.text or reading.written:
            return reading
        if not self._is_call():
            # A route of the app that is only named like a provider's.
            self._recorder.telemetry.count("middleware.no_answer")
            return Reading()
        if reading.provider is None:
            return replace(reading, problem="the answer has a shape that is not known")
        return reading

    def give_up(self, reason: str) -> None:
        """Read no further."""
        self._unread = reason
        self.feed = _ignore

    def _given_up(self, reason: str) -> Reading:
        """What could not be read to its end; of a stream that which came before still counts."""
        self._recorder.telemetry.count("middleware.unread")
        if self.is_stream and self._wire.tokens_so_far:
            reading = self._wire.result()
            if reading.usage or reading.text or reading.written:
                return replace(reading, provenance="partial")
        return Reading(problem=reason, model=self._requested_model())

    def _feed_wire(self, chunk: bytes) -> None:
        # Until the first bytes have shown what it is, the wire tally replaces its own `feed`.
        self._wire.feed(chunk)

    # Compressed answers.

    def _inflate_with(self, encoding: str, limit: int) -> None:
        try:
            self._inflater = Inflater(encoding, limit)
            self.feed = self._feed_inflated
        except UnreadableBody as exc:
            self.give_up(str(exc))

    def _feed_inflated(self, chunk: bytes) -> None:
        try:
            if self._inflater is not None and (plain := self._inflater.feed(chunk)):
                self._wire.feed(plain)
        except UnreadableBody as exc:
            self.give_up(str(exc))

    # What the client asked.

    def _is_call(self) -> bool:
        """Whether the request looks like a call of a model; one that is too long to say does."""
        body = self._request.bytes()
        if body is None:
            return self._request.is_too_large
        return any(key in body for key in _CALL_KEYS)

    def _requested_model(self) -> str | None:
        body = self._request.bytes() or b""
        found = _MODEL.match(body, max(body.rfind(b'"model"'), 0))
        return found.group(1).decode("utf-8", "replace") if found else None


def _ignore(chunk: bytes) -> None:
    pass


def _kind_of(headers: Any) -> tuple[str | None, str | None]:
    """Content type without parameters, and content encoding where it is not plain."""
    content_type = encoding = None
    for name, value in headers:
        if len(name) == 12 and name.lower() == b"content-type":
            content_type = value.partition(b";")[0].strip().lower().decode("latin-1")
        elif len(name) == 16 and name.lower() == b"content-encoding":
            encoding = value.strip().lower().decode("latin-1")
    return content_type, encoding if encoding != "identity" else None


def _is_readable(content_type: str | None) -> bool:
    if not content_type:
        return True
    return content_type == "application/json" or content_type in _STREAMS or content_type.endswith("+json")
