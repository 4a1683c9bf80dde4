"""Answers as bytes on their way to a client: JSON or server-sent events, hardly looked at."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

from ..usage import Reading
from .answers import read_answer, read_response
from .ends import ends_of
from .recognised import forms_of
from .shapes import shape_of
from .streams import StreamTally
from .wire_events import WireEvents
from .wire_frames import FRAMED, WireFrames

DEFAULT_MAX_BYTES = 16 * 1024 * 1024

STREAMED = frozenset(
    (
        "text/event-stream",
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/jsonlines",
        "application/stream+json",  # Cohere's first version
    )
)
"""Content types of streams that consist of lines."""

_KEPT = 64 * 1024
"""How much of both ends of an overlong answer is kept."""
_LONGEST_SNIFF = 4096
_BOM = b"\xef\xbb\xbf"
_EVENT_BEGINS = (b"data:", b"event:", b"id:", b"retry:", b":")
_NEXT_LINE = b"}\n{"
_OBJECT_BEGINS = re.compile(rb'\[?\s*\{\s*"')
_BRACKETS = b"[{ \t\r\n"


def begins_as(head: bytes) -> Literal["events", "json", "text"] | None:
    """What an answer with these first bytes is, by its looks; None where it takes more to tell."""
    begin = head.removeprefix(_BOM).lstrip()
    if begin.startswith(_EVENT_BEGINS):
        return "events"
    if _OBJECT_BEGINS.match(begin):
        return "json"
    is_open = not begin.strip(_BRACKETS) or _BOM.startswith(begin)
    is_open = is_open or any(each.startswith(begin) for each in _EVENT_BEGINS)
    return None if is_open and len(head) <= _LONGEST_SNIFF else "text"


def read_known(body: bytes) -> Reading | None:
    """Read an answer in JSON that looks as others before it did; None where `WireTally` has to read it."""
    return None if _is_ranking(body) else forms_of(None, None).read(body, body)


def _is_ranking(head: bytes) -> bool:
    # A list of ranks begins as one of embeddings does.
    return head.find(b'"relevance_score"', 0, 1024) >= 0


class WireTally:
    """Reads an answer from its bytes, cut anywhere. `feed` is cheap and never raises; memory is bounded.

    Args:
        content_type: The answer's content type; without one the first bytes decide.
        provider: Whose answer it is, where you know better than the shape shows.
        api: "chat", "responses", "messages", … where the shape does not say.
        max_bytes: Of a longer answer only both ends are kept (JSON), or no more text is kept (events).
        keep_text: Keep what the model wrote even where the usage was reported.
    """

    __slots__ = ("_body", "_options", "_sniffed", "feed")

    feed: Callable[[bytes], None]
    """Take the next bytes."""

    def __init__(
        self,
        *,
        content_type: str | None = None,
        provider: str | None = None,
        api: str | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        keep_text: bool = False,
    ) -> None:
        self._options = (provider, api, max_bytes, keep_text)
        self._sniffed = b""
        self._body: _Json | WireEvents | WireFrames | None = None
        self.feed = self._sniff
        kind = (content_type or "").partition(";")[0].strip().lower()
        if kind in STREAMED:
            self._start(WireEvents)
        elif kind == "application/json" or kind.endswith("+json"):
            self._start(_Json)
        elif kind == FRAMED:
            self._start(WireFrames)

    def feed_all(self, chunks: list[bytes]) -> None:
        """Take several, in order."""
        body = self._body
        if type(body) is WireEvents:
            body.feed_all(chunks)
        else:
            self.feed(b"".join(chunks))

    def result(self) -> Reading:
        """What the answer says; to be called once it has ended or broken off."""
        if self._body is None:
            return Reading(problem="the answer is empty")
        return self._body.result()

    @property
    def left_to_decode(self) -> int:
        """How many bytes `result` has to decode, because no usage was found in them so far."""
        body = self._body
        return body.left_to_decode if type(body) is WireEvents or type(body) is _Json else 0

    @property
    def body(self) -> bytes:
        """All of an answer in JSON; empty where it is none, or too long to be kept."""
        return b"".join(self._body.chunks) if type(self._body) is _Json else b""

    def so_far(self) -> Reading:
        """A cheap estimate of what is to be billed should the stream break off now; for progress rows."""
        return self._body.so_far() if self._body is not None else Reading(provenance="partial")

    @property
    def complete(self) -> bool:
        """Whether the provider's final usage came; for JSON it is known only by `result`."""
        return self._body is not None and self._body.complete

    @property
    def failed(self) -> bool:
        """Whether the provider reported an error in mid-stream; known once `result` was asked for."""
        return self._body is not None and self._body.failed

    @property
    def tokens_so_far(self) -> int:
        """About how many tokens came; 0 for JSON, which comes as a whole."""
        return self._body.tokens_so_far if self._body is not None else 0

    def _start(self, kind: type[_Json] | type[WireEvents] | type[WireFrames]) -> None:
        self._body = kind(*self._options)
        self.feed = self._body.feed
        if self._sniffed:
            self.feed(self._sniffed)

    def _sniff(self, chunk: bytes) -> None:
        self._sniffed += chunk
        begin = self._sniffed.removeprefix(_BOM).lstrip()
        if (begin and not _BOM.startswith(begin)) or len(self._sniffed) > _LONGEST_SNIFF:
            self._start(_Json if begin[:1] in b"{[" else WireFrames if begin[:1] == b"\0" else WireEvents)


class _Json:
    """A whole answer in JSON."""

    __slots__ = ("_api", "_head", "_keep_text", "_max", "_provider", "_read", "_size", "_tail", "chunks")

    complete = False
    failed = False
    tokens_so_far = 0

    def __init__(self, provider: str | None, api: str | None, max_bytes: int, keep_text: bool) -> None:
        self._provider = provider
        self._api = api
        self._max = max_bytes
        self._keep_text = keep_text
        self.chunks: list[bytes] = []
        self._size = 0
        self._head = b""
        self._tail: list[bytes] | None = None
        self._read: Reading | None = None
        """What both ends said of the whole, once they were looked at."""

    def feed(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._tail is not None:
            self._tail.append(chunk[-_KEPT:])
            if len(self._tail) > 64:
                self._tail = [b"".join(self._tail)[-_KEPT:]]
            return
        self.chunks.append(chunk)
        if self._size > self._max:
            whole = b"".join(self.chunks)
            self._head, self.chunks = whole[:_KEPT], []
            self._tail = [whole[_KEPT:][-_KEPT:]]

    def result(self) -> Reading:
        if self._tail is not None:
            tail = b"".join(self._tail)[-_KEPT:]
            return self._quick(self._head, tail) or Reading(
                provider=self._provider,
                api=self._api,
                problem=f"the answer is longer than {self._max} bytes and was not read",
            )
        found = self._at_the_ends()
        if found is not None:
            return found
        body = self.chunks[0]
        reading = read_response(body, provider=self._provider, api=self._api, keep_text=self._keep_text)
        return self._as_events(body) or reading if reading.problem is not None else reading

    @property
    def left_to_decode(self) -> int:
        """The whole length, where both ends do not tell everything; to be asked once all of it came."""
        return self._size if self._tail is None and self._at_the_ends() is None else 0

    def _at_the_ends(self) -> Reading | None:
        if len(self.chunks) != 1:
            self.chunks = [b"".join(self.chunks)]
        if self._read is None and not self._keep_text:
            self._read = self._quick(self.chunks[0], self.chunks[0])
        return self._read

    def _as_events(self, body: bytes) -> Reading | None:
        """The reading of a stream that called itself JSON, as some proxies have it; None if it is none."""
        begin = body[:_LONGEST_SNIFF].removeprefix(_BOM).lstrip()
        if begin.startswith(b"["):
            return self._as_list(body)
        if not begin.startswith(_EVENT_BEGINS) and not (begin.startswith(b"{") and _NEXT_LINE in body):
            return None
        events = WireEvents(self._provider, self._api, self._max, self._keep_text)
        events.feed(body)
        reading = events.result()
        return reading if reading.usage or reading.text or reading.written else None

    def _as_list(self, body: bytes) -> Reading | None:
        """The reading of a list that broke off: Gemini streams one where it is not asked for events."""
        tally = StreamTally(provider=self._provider, api=self._api, keep_text=self._keep_text)
        for event in whole_items(body):
            tally.feed(event)
        reading = tally.result()
        return reading if reading.usage or reading.text or reading.written else None

    def so_far(self) -> Reading:
        return Reading(provider=self._provider, api=self._api, provenance="partial")

    def _quick(self, head: bytes, tail: bytes) -> Reading | None:
        """Read both ends only; None where that does not tell everything for sure."""
        if _is_ranking(head):
            return None
        forms = forms_of(self._provider, self._api)
        known = forms.read(head, tail)
        if known is not None:
            return known
        answer = ends_of(head, tail)
        if answer is None:
            return None
        shape = shape_of(answer, self._api)
        if shape is None:
            return None
        reading = read_answer(answer, provider=self._provider, api=self._api, shape=shape)
        if not reading.usage or reading.model is None:
            return None
        if reading.response_id is None and reading.api != "embeddings":
            return None
        forms.learn(head, tail, answer, shape, reading)
        return reading


def whole_items(body: bytes) -> Iterator[Any]:
    """The items of a JSON list that are there in full."""
    text = body.decode("utf-8-sig", "replace")
    decoder, at = json.JSONDecoder(), text.find("[") + 1
    while (begin := _ITEM.match(text, at)) is not None:
        try:
            item, at = decoder.raw_decode(text, begin.end())
        except (ValueError, RecursionError):
            return
        yield item


_ITEM = re.compile(r"[\s,]*(?=\{)")
