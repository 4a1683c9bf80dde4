"""The app's own answer, read as it passes: what the middleware does on a provider-shaped route."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..providers import WireTally
from ..providers.wire import STREAMED, read_known
from ..providers.wire_frames import FRAMED
from ..usage import Reading, Usage
from .bodies import Inflater, KeptBody
from .context import is_on_disk
from .streams import StreamTap
from .waiting import asyncio_loop

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from .context import Scope
    from .lifespan import Message, Send
    from .recorder import Recorder

LAST = frozenset(("http.response.body", "http.response.pathsend", "websocket.close"))
"""Messages that may be the last of a response."""

LOOK_AFTER_CHUNKS = 128
LOOK_AFTER_BYTES = 16_384
"""Chunks of a stream are put aside and looked at together: after so many, after one of such a size, or when a
progress row is due, whichever comes first."""

SECOND_ROW_AFTER_S = 0.25

_STREAMS = frozenset((*STREAMED, FRAMED))
_CALL_KEYS = (b'"model"', b'"messages"', b'"contents"', b'"prompt"', b'"input"')
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')


class AppAnswer:
    """Reads one answer of the app and records it, unless something inside has counted it.

    Args:
        recorder: Where the record goes.
        scope: The request's.
        api: "embeddings" where the route says so; None is some generation.
        send: Where the messages go on to.
        hold: Sends a last message once what was recorded is on disk; None where nothing waits for that.
    """

    __slots__ = (
        "_api", "_began", "_hold", "_keeps_text", "_kind", "_left", "_noted", "_recorder", "_request",
        "_scope", "_send", "_tally", "_tap", "_timer", "_whole", "aside", "feed", "over", "room",
    )  # fmt: skip

    feed: Callable[[bytes], None] | None
    """Take the next bytes of the body; None where nothing is read."""

    def __init__(
        self,
        recorder: Recorder,
        scope: Scope,
        *,
        api: str | None,
        send: Send,
        hold: Callable[[Scope, Send, Message], Awaitable[None]] | None,
    ) -> None:
        self._recorder = recorder
        self._scope = scope
        self._api = api
        self._send = send
        self._hold = hold
        self._request: KeptBody | None = None
        self._tally: AnswerTally | None = None
        self._tap: StreamTap | None = None
        self._whole: bytes | None = None
        """An answer that came in one piece so far, as most do: it may be of a form that has been seen."""
        self._began = False
        self.over = False
        self._noted = 0
        self._left = 0
        """How many chunks may be put aside before one has to be looked at."""
        self.aside: list[bytes] = []
        """Chunks of a stream that were not looked at yet."""
        self.room = LOOK_AFTER_CHUNKS
        """How many chunks may be put aside before they are looked at."""
        self._timer: TimerHandle | None = None
        self.feed = None

    def keep_request(self, message: MutableMapping[str, Any]) -> None:
        """Keep what the client asked, for counting what the answer does not report."""
        try:
            if chunk := message.get("body"):
                self._asked.feed(chunk)
        except Exception as exc:
            self._recorder.telemetry.failure("middleware.read", exc)

    def pass_on(self, message: Message) -> Awaitable[None]:
        """Look at a message of the answer, and send it.

        Not a coroutine of its own: a message costs no more than a look at it, unless it has to wait.
        """
        if left := self._left:
            # Most chunks of a stream are put aside and nothing else; only bodies can have more to come. This
            # is asked for every chunk: a subscript takes half the time of a `get`.
            try:
                has_more, body = message["more_body"], message["body"]
            except KeyError:
                has_more, body = False, None
            if has_more and type(body) is bytes and 0 < len(body) < LOOK_AFTER_BYTES:
                self._left = left - 1
                self.aside.append(body)
                return self._send(message)
        if message["type"] != "http.response.body":
            return self._pass_other(message)
        if (feed := self.feed) is not None and (chunk := message.get("body")):
            try:
                feed(chunk if type(chunk) is bytes else bytes(chunk))
                if len(self.aside) >= self.room or len(chunk) >= LOOK_AFTER_BYTES:
                    self.look()
            except Exception as exc:
                self.fail(exc)
        return self._send(message) if message.get("more_body") else self._pass_last(message)

    def _pass_other(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        if kind == "http.response.start":
            self.start(message)
        return self._pass_last(message) if kind in LAST else self._send(message)

    def _pass_last(self, message: Message) -> Awaitable[None]:
        if not self.over:
            self.finish(complete=True)
        scope = self._scope
        if self._hold is not None and scope.recorded and not is_on_disk(scope):
            return self._hold(scope, self._send, message)
        return self._send(message)

    def start(self, message: MutableMapping[str, Any]) -> None:
        """Look at the head of the answer, and read on only where there can be usage."""
        try:
            if not 200 <= message["status"] < 300 or self._is_covered():
                return
            content_type, encoding = self._kind = _kind_of(message.get("headers") or ())
            if _is_readable(content_type):
                self._keeps_text = self._recorder.wants_text()
                is_plain = content_type == "application/json" and encoding is None and not self._keeps_text
                self.feed = self._begin_whole if is_plain else self._begin
        except Exception as exc:
            self.fail(exc)

    def look(self, *, is_due: bool = False) -> None:
        """Read what was put aside of a stream, and note how far it has come where that is due."""
        tally, tap = self._tally, self._tap
        if tally is None or tap is None:
            return
        try:
            tally.feed_aside(self.aside)
            every = self._recorder.settings.progress_every_tokens
            new = tally.tokens_so_far - self._noted
            if (is_due and new) or new >= every:
                self._noted, new = tally.tokens_so_far, 0
                tap.leave_progress()
            self._make_room(every - new)
        except Exception as exc:
            self.fail(exc)

    def finish(self, *, complete: bool) -> None:
        """The answer is over, or broke off: record it. Only the first call does anything."""
        if self.over:
            return
        self.over, self.feed, self._left = True, None, 0
        if self._timer is not None:
            self._timer.cancel()
        if not self._began:
            return
        try:
            if (tap := self._tap) is not None:
                self._finish_stream(tap, complete)
            elif not self._is_covered():
                self._record(self._result())
        except Exception as exc:
            self._recorder.telemetry.failure("middleware.read", exc)
        # The tap knows us, and we know the tap: let go, so that nothing waits for the garbage collector.
        self._tally = self._tap = self._timer = None

    def fail(self, exc: Exception) -> None:
        """An error of our own while reading: the answer goes on, and what is read of it is marked."""
        self._recorder.telemetry.failure("middleware.read", exc)
        self.feed, self._left = None, 0
        if self._tally is not None:
            self._tally.give_up(f"the answer could not be read: {type(exc).__name__}")

    def _begin_whole(self, chunk: bytes) -> None:
        """The first bytes of plain JSON, and probably all of them."""
        self._began = True
        self._whole = chunk
        self.feed = self._go_on

    def _go_on(self, chunk: bytes) -> None:
        """There is more of it."""
        whole, self._whole = self._whole, None
        self._tally = tally = self._new_tally()
        self.feed = tally.feed
        if whole is not None:
            tally.feed(whole)
        tally.feed(chunk)

    def _begin(self, chunk: bytes) -> None:
        """The first bytes: from here on there is something to record."""
        self._began = True
        self._tally = tally = self._new_tally()
        if not tally.is_stream:
            self.feed = tally.feed
            tally.feed(chunk)
            return
        self._tap = StreamTap(
            self._recorder,
            tally=tally,
            surface="middleware",
            request=self._asked.bytes(),
            scope=self._scope,
            covered=self._is_covered,
        )
        self._tap.feed(chunk)  # writes the first row
        self._noted = tally.tokens_so_far
        if self._look_after(SECOND_ROW_AFTER_S):
            self.feed = self.aside.append
            self._make_room(self._recorder.settings.progress_every_tokens)
        else:
            self.feed = self._tap.feed

    def _new_tally(self) -> AnswerTally:
        return AnswerTally(self._recorder, self._asked, *self._kind, keep_text=self._keeps_text)

    def _result(self) -> Reading:
        whole = self._whole
        if whole is None:
            return Reading() if self._tally is None else self._tally.result()
        if len(whole) <= self._recorder.settings.max_body_bytes and (known := read_known(whole)) is not None:
            return known
        tally = self._new_tally()
        tally.feed(whole)
        return tally.result()

    def _finish_stream(self, tap: StreamTap, complete: bool) -> None:
        if self._tally is not None:
            self._tally.feed_aside(self.aside)
        if self._is_covered():
            tap.discard()
        else:
            tap.finish(complete)

    def _make_room(self, tokens: int) -> None:
        """Put chunks aside until so many tokens may have come; the last of them is looked at."""
        self.room = min(LOOK_AFTER_CHUNKS, tokens)
        # Without a timer nothing is put aside: what comes is looked at as it comes.
        self._left = 0 if self._timer is None or self.feed is None else self.room - 1

    def _look_after(self, delay_s: float) -> bool:
        """Set a timer, so that what came is noted in time even where nothing more comes."""
        loop = asyncio_loop()
        if loop is None:
            return False
        delay_s = min(delay_s, self._recorder.settings.progress_every_s)
        self._timer = loop.call_later(delay_s, self._look_in_time)
        return True

    def _look_in_time(self) -> None:
        if not self.over:
            self.look(is_due=True)
            self._look_after(self._recorder.settings.progress_every_s)

    def _record(self, reading: Reading) -> None:
        if reading.provider or reading.usage or reading.problem:
            asked = None if self._request is None else self._request.bytes()
            self._recorder.record(reading, surface="middleware", request=asked, scope=self._scope)

    @property
    def _asked(self) -> KeptBody:
        """What the client asked, as far as it is kept."""
        if self._request is None:
            self._request = KeptBody(self._recorder.settings.max_body_bytes)
        return self._request

    def _is_covered(self) -> bool:
        scope = self._scope
        # Nearly always nothing was.
        return bool(scope.recorded or scope.opened) and scope.covers(self._api, besides=self._tap)


class AnswerTally:
    """Adds up the bytes of one answer, inflating them where that is needed.

    What cannot be read gives a reading with the reason; what is no model's answer an empty one.
    """

    __slots__ = (
        "_chunks", "_inflater", "_recorder", "_request", "_unread", "_wire", "feed", "is_stream",
    )  # fmt: skip

    feed: Callable[[bytes], None]

    def __init__(
        self,
        recorder: Recorder,
        request: KeptBody,
        content_type: str | None,
        encoding: str | None,
        *,
        keep_text: bool,
    ) -> None:
        limit = recorder.settings.max_body_bytes
        self._recorder = recorder
        self._request = request
        self._unread: str | None = None
        self._inflater: Inflater | None = None
        self._wire = wire = WireTally(content_type=content_type, max_bytes=limit, keep_text=keep_text)
        self.is_stream = content_type in _STREAMS
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
            content_type = _COMMON.get(value) or value.partition(b";")[0].strip().lower().decode("latin-1")
        elif len(name) == 16 and name.lower() == b"content-encoding":
            encoding = value.strip().lower().decode("latin-1")
    return content_type, encoding if encoding != "identity" else None


_COMMON = {b"application/json": "application/json", b"text/event-stream": "text/event-stream"}


def _is_readable(content_type: str | None) -> bool:
    if not content_type:
        return True
    return content_type == "application/json" or content_type in _STREAMS or content_type.endswith("+json")
