"""The bytes of an answer of the app's: inflated where that is needed, added up, and seen together with what
was asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..providers import WireTally
from ..providers.wire import STREAMED
from ..providers.wire_frames import FRAMED
from ..usage import Reading, Usage
from .bodies import Inflater, KeptBody, model_in

if TYPE_CHECKING:
    from .recorder import Recorder

STREAMS = frozenset((*STREAMED, FRAMED))
"""Content types of answers that come event by event."""

QUICK = 16 * 1024
"""So many bytes of events are decoded in less than a millisecond."""

QUICK_WHOLE = 256 * 1024
"""And so many of an answer that is one object."""

_CALL_KEYS = (b'"model"', b'"messages"', b'"contents"', b'"prompt"', b'"input"')


class AnswerTally:
    """Adds up the bytes of one answer, inflating them where that is needed.

    What cannot be read gives a reading with the reason; what is no model's answer an empty one.
    """

    __slots__ = (
        "_chunks", "_inflater", "_is_sure", "_recorder", "_request", "_unread", "_wire", "feed", "is_stream",
    )  # fmt: skip

    feed: Callable[[bytes], None]

    def __init__(
        self,
        recorder: Recorder,
        request: KeptBody,
        content_type: str | None,
        encoding: str | None,
        *,
        api: str | None = None,
        is_sure: bool = True,
        keep_text: bool,
    ) -> None:
        limit = recorder.settings.max_body_bytes
        self._recorder = recorder
        self._request = request
        self._is_sure = is_sure
        self._unread: str | None = None
        self._inflater: Inflater | None = None
        self._wire = wire = WireTally(
            content_type=content_type, api=api, max_bytes=limit, keep_text=keep_text
        )
        self.is_stream = content_type in STREAMS
        self._chunks = 1
        # Until the first bytes have shown what it is, the wire tally replaces its own `feed`.
        self.feed = wire.feed if content_type else lambda chunk: wire.feed(chunk)
        if encoding is not None:
            self._inflater = Inflater(encoding, limit)
            recorder.tell_unread(encoding, self._inflater.problem)
            self.feed = self._feed_inflated

    def feed_aside(self, chunks: list[bytes]) -> None:
        """Take chunks that were put aside, and empty the list."""
        if chunks:
            self._chunks += len(chunks)
            if self._inflater is None and self._unread is None:
                self._wire.feed_all(chunks)
                chunks.clear()
                return
            joined = b"".join(chunks)
            chunks.clear()
            self.feed(joined)

    @property
    def tokens_so_far(self) -> int:
        """About how many tokens came of a stream: as many as there were chunks, if not more."""
        return max(self._chunks, self._wire.tokens_so_far)

    @property
    def complete(self) -> bool:
        return self._wire.complete

    @property
    def is_slow(self) -> bool:
        """Whether what came has to be decoded, and is too much for the event loop."""
        return self._wire.left_to_decode > (QUICK if self.is_stream else QUICK_WHOLE)

    @property
    def body(self) -> bytes:
        """All of an answer in JSON, as far as it is kept."""
        return self._wire.body

    @property
    def is_recognised(self) -> bool:
        """Whether what came of a stream so far is a provider's."""
        reading = self._wire.so_far()
        return reading.provider is not None or self._wire.complete

    def so_far(self) -> Reading:
        reading = self._wire.so_far()
        if (reading.usage.output or 0) >= self.tokens_so_far or reading.problem is not None:
            return reading
        return replace(reading, usage=Usage(**{**reading.usage.as_dict(), "output": self.tokens_so_far}))

    def result(self) -> Reading:
        """What the answer says."""
        if self._unread is not None:
            return self._given_up(self._unread)
        reading = self._wire.result()
        if reading.model is None and (model := self._requested_model()) is not None:
            reading = replace(reading, model=model)
        if reading.usage or reading.problem or reading.text or reading.written:
            if self._request.is_too_large and reading.usage.input_total is None and reading.problem is None:
                self._recorder.tell_long_prompt()
            return reading
        if not (self._is_sure and self._is_call()):
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
        """What could not be read to its end; of a stream, that which came before still counts."""
        self._recorder.telemetry.count("middleware.unread")
        if self.is_stream:
            reading = self._wire.result()
            if reading.usage or reading.text or reading.written:
                return reading
        return Reading(problem=reason, model=self._requested_model())

    def _feed_inflated(self, chunk: bytes) -> None:
        if self._inflater is None:
            return
        if plain := self._inflater.feed(chunk):
            self._wire.feed(plain)
        if self._inflater.problem is not None:
            self.give_up(self._inflater.problem)

    # What the client asked.

    def _is_call(self) -> bool:
        """Whether the request looks like a call of a model; one that is too long to say does."""
        body = self._request.bytes()
        if body is None:
            return self._request.is_too_large
        return any(key in body for key in _CALL_KEYS)

    def _requested_model(self) -> str | None:
        return model_in(self._request.bytes() or b"")


def _ignore(chunk: bytes) -> None:
    pass
