"""The app's own answer, read as it passes: what the middleware does on a provider-shaped route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from ..providers.headers import with_headers
from ..providers.wire import begins_as, read_known
from ..usage import Reading
from .answer_tally import QUICK_WHOLE, STREAMS, AnswerTally
from .bodies import KeptBody
from .client_routes import model_of
from .context import is_on_disk
from .lasting import is_in_background, standing
from .streams import StreamTap
from .waiting import asyncio_loop

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from ..protocols import Ticket
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


class AppAnswer:
    """Reads one answer of the app and records it, unless something inside has counted it.

    Args:
        recorder: Where the record goes.
        scope: The request's.
        api: "embeddings" where the route says so; None is some generation.
        path: The route, which may name the model.
        is_sure: Whether the route is a model's for sure, so that what is not understood is kept, too.
        is_lookup: Whether the answer was made earlier, and counts only where it went on without us.
        send: Where the messages go on to.
        send_last: Where the last one does.
        hold: Sends a last message once what was recorded is on disk; None where nothing waits for that.
    """

    __slots__ = (
        "_api", "_began", "_headers", "_hold", "_is_lookup", "_is_sure", "_keeps_text", "_kind", "_left",
        "_noted", "_path", "_recorder", "_request", "_scope", "_send", "_send_last", "_tally", "_tap",
        "_timer", "_undecided", "_whole", "aside", "feed", "over", "room",
    )  # fmt: skip

    feed: Callable[[bytes], None] | None
    """Take the next bytes of the body; None where nothing is read."""

    def __init__(
        self,
        recorder: Recorder,
        scope: Scope,
        *,
        api: str | None,
        path: str,
        is_sure: bool,
        is_lookup: bool,
        send: Send,
        send_last: Send,
        hold: Callable[[Scope, Send, Message], Awaitable[None]] | None,
    ) -> None:
        self._recorder = recorder
        self._scope = scope
        self._api = api
        self._path = path
        self._is_sure = is_sure
        self._is_lookup = is_lookup
        self._headers: Any = ()
        self._send = send
        self._send_last = send_last
        self._hold = hold
        self._request: KeptBody | None = None
        self._tally: AnswerTally | None = None
        self._tap: StreamTap | None = None
        self._whole: bytes | None = None
        """An answer that came in one piece so far, as most do: it may be of a form that has been seen."""
        self._undecided = b""
        """First bytes that do not show yet whether they are a stream's."""
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
            return self._hold(scope, self._send_last, message)
        return self._send_last(message)

    def start(self, message: MutableMapping[str, Any]) -> None:
        """Look at the head of the answer, and read on only where there can be usage."""
        try:
            if not 200 <= message["status"] < 300 or self._is_covered():
                return
            self._headers = headers = message.get("headers") or ()
            if type(headers) is not list and type(headers) is not tuple:
                # They may be an iterator, which could be read only once.
                self._headers = message["headers"] = list(headers)
            content_type, encoding = self._kind = _kind_of(self._headers)
            is_unsaid = encoding is None and content_type in _UNSAID
            if not (is_unsaid or _is_readable(content_type)):
                return
            self._keeps_text = self._recorder.wants_text()
            is_plain = content_type == "application/json" and encoding is None and not self._keeps_text
            if is_unsaid:
                self.feed = self._begin_unsaid
            else:
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
                known = self._known()
                if known is None and self._is_slow():
                    self._recorder.later(self._scope, self._read_and_record, self._api)
                    return
                self._record(self._result() if known is None else known)
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

    def _begin_unsaid(self, chunk: bytes) -> None:
        """The first bytes of what does not call itself a model's answer: they show whether it may be one."""
        head = self._undecided + chunk
        looks = begins_as(head)
        if looks is None:
            self._undecided = head
            return
        if self._kind[0]:
            if looks == "text":
                self.feed = None
                return
            self._is_sure = False  # what only looks like an answer is kept where it is one
        self._kind = "text/event-stream" if looks == "events" else None, None
        self._begin(head)

    def _begin_whole(self, chunk: bytes) -> None:
        """The first bytes of plain JSON, and probably all of them."""
        if chunk[:1] in _EVENTS_BEGIN:
            self._kind = "text/event-stream", None
            self._begin(chunk)
            return
        self._began = True
        self._whole = chunk
        self.feed = self._go_on

    def _go_on(self, chunk: bytes) -> None:
        """There is more of it."""
        self.feed = self._in_pieces().feed
        self.feed(chunk)

    def _in_pieces(self) -> AnswerTally:
        """Leave what came in one piece so far to a tally."""
        whole, self._whole = self._whole, None
        self._tally = tally = self._new_tally()
        if whole is not None:
            tally.feed(whole)
        return tally

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
            model=model_of(self._path),
            lasting=self._is_lookup or is_in_background(self._asked.bytes()),
            covered=self._is_covered if self._is_sure else self._is_left_alone,
        )
        self._tap.feed(chunk)  # writes the first row
        self._noted = tally.tokens_so_far
        if self._look_after(SECOND_ROW_AFTER_S):
            self.feed = self.aside.append
            self._make_room(self._recorder.settings.progress_every_tokens)
        else:
            self.feed = self._tap.feed

    def _new_tally(self) -> AnswerTally:
        return AnswerTally(
            self._recorder,
            self._asked,
            *self._kind,
            api=self._api if not self._is_sure else None,
            is_sure=self._is_sure,
            keep_text=self._keeps_text,
        )

    def _result(self) -> Reading:
        """The reading of an answer of a form that is new, or that came in pieces."""
        tally = self._in_pieces() if self._whole is not None else self._tally
        reading = Reading() if tally is None else tally.result()
        return reading if self._is_sure else with_headers(reading, _texts(self._headers))

    def _known(self) -> Reading | None:
        """The reading of an answer that came in one piece and is of a form that has been seen."""
        whole = self._whole
        if whole is None or len(whole) > self._recorder.settings.max_body_bytes:
            return None
        return read_known(whole)

    def _is_slow(self) -> bool:
        """Whether an answer of a new form is too long for the event loop, and no adapter waits for it."""
        if self._whole is not None and len(self._whole) > QUICK_WHOLE:
            self._in_pieces()
        tally = self._tally
        return tally is not None and tally.is_slow and not self._scope.is_listened_to

    def _read_and_record(self) -> Ticket | None:
        try:
            return self._record(self._result())
        except Exception as exc:
            self._recorder.telemetry.failure("middleware.read", exc)
            return None
        finally:
            self._tally = None

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

    def _record(self, reading: Reading) -> Ticket | None:
        if reading.provider or reading.usage or reading.problem:
            asked = None if self._request is None else self._request.bytes()
            is_of_use, lasting = standing(reading, self._body())
            if not is_of_use or (self._is_lookup and lasting is None):
                return None
            return self._recorder.record(
                reading,
                surface="middleware",
                id=lasting,
                closes=lasting,
                request=asked,
                model=model_of(self._path) if reading.model is None else None,
                scope=self._scope,
            )
        return None

    def _body(self) -> bytes:
        """All of the answer, as far as it is kept."""
        if self._whole is not None:
            return self._whole
        return self._tally.body if self._tally is not None else b""

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

    def _is_left_alone(self) -> bool:
        """Whether a stream is no business of ours, or not known to be yet."""
        return self._is_covered() or self._tally is None or not self._tally.is_recognised


def _texts(headers: Any) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}


def _kind_of(headers: Any) -> tuple[str | None, str | None]:
    """Content type without parameters, and content encoding where it is not plain."""
    content_type = encoding = None
    for name, value in headers:
        if len(name) == 12 and name.lower() == b"content-type":
            content_type = _COMMON.get(value) or value.partition(b";")[0].strip().lower().decode("latin-1")
        elif len(name) == 16 and name.lower() == b"content-encoding":
            encoding = value.strip().lower().decode("latin-1")
    return content_type, encoding if encoding != "identity" else None


_UNSAID = frozenset((None, "", "text/plain", "application/octet-stream"))
"""Content types that do not say what comes: apps that stream often leave it at one."""
_EVENTS_BEGIN = frozenset((b"d", b"e", b"i", b"r", b":"))
"""With which letters events begin, and JSON never does."""

_COMMON = {b"application/json": "application/json", b"text/event-stream": "text/event-stream"}


def _is_readable(content_type: str | None) -> bool:
    if not content_type:
        return True
    return content_type == "application/json" or content_type in STREAMS or content_type.endswith("+json")
