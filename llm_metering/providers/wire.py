"""Answers as bytes on their way to a client: JSON or server-sent events, hardly looked at.

What carries usage is found by searching bytes; the rest is decoded only where it has to be counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from ..sse import SSEDecoder, SSEvent, lines_of
from ..usage import Reading
from .answers import read_answer, read_response
from .shapes import shape_of
from .streams import StreamTally

DEFAULT_MAX_BYTES = 16 * 1024 * 1024

_WINDOW = 64 * 1024
"""How much of a stream is searched at a time, and how much of both ends of an overlong answer is kept."""
_FOLD = 1024 * 1024
"""A longer stream is decoded as it comes, and only its text is kept."""

_VALUE = (
    rb'(?:"[^"\\]{0,256}"|[-+.\w]+|\[\]'
    rb'|\{[^{}"\\]{0,256}(?:"[^"\\]{0,64}"[^{}"\\]{0,256}){0,16}\})'
)
_DECODER = json.JSONDecoder()
_HEAD = re.compile(rb'\s*\{\s*(?:"[^"\\]{0,64}"\s*:\s*' + _VALUE + rb"\s*,\s*)*")
"""The plain pairs at the beginning of an object: strings without escapes, numbers, flat objects."""
_USAGE = re.compile(rb'"usage(?!":\s*null)')
"""A key of a usage, but for the `"usage": null` that some providers put into every event."""


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
        self._body: _Json | _Events | None = None
        self.feed = self._sniff
        kind = (content_type or "").partition(";")[0].strip().lower()
        if kind in ("text/event-stream", "application/x-ndjson", "application/jsonl"):
            self._start(_Events)
        elif kind == "application/json" or kind.endswith("+json"):
            self._start(_Json)

    def result(self) -> Reading:
        """What the answer says; to be called once it has ended or broken off."""
        if self._body is None:
            return Reading(problem="the answer is empty")
        return self._body.result()

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

    def _start(self, kind: type[_Json] | type[_Events]) -> None:
        self._body = kind(*self._options)
        self.feed = self._body.feed
        if self._sniffed:
            self.feed(self._sniffed)

    def _sniff(self, chunk: bytes) -> None:
        self._sniffed += chunk
        begin = self._sniffed.removeprefix(b"\xef\xbb\xbf").lstrip()
        if begin:
            self._start(_Json if begin[:1] in b"{[" else _Events)


class _Json:
    """A whole answer in JSON."""

    __slots__ = ("_api", "_chunks", "_head", "_keep_text", "_max", "_provider", "_size", "_tail")

    complete = False
    failed = False
    tokens_so_far = 0

    def __init__(self, provider: str | None, api: str | None, max_bytes: int, keep_text: bool) -> None:
        self._provider = provider
        self._api = api
        self._max = max_bytes
        self._keep_text = keep_text
        self._chunks: list[bytes] = []
        self._size = 0
        self._head = b""
        self._tail: list[bytes] | None = None

    def feed(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._tail is not None:
            self._tail.append(chunk[-_WINDOW:])
            if len(self._tail) > 64:
                self._tail = [b"".join(self._tail)[-_WINDOW:]]
            return
        self._chunks.append(chunk)
        if self._size > self._max:
            whole = b"".join(self._chunks)
            self._head, self._chunks = whole[:_WINDOW], []
            self._tail = [whole[_WINDOW:][-_WINDOW:]]

    def result(self) -> Reading:
        if self._tail is not None:
            tail = b"".join(self._tail)[-_WINDOW:]
            return self._quick(self._head, tail) or Reading(
                provider=self._provider,
                api=self._api,
                problem=f"the answer is longer than {self._max} bytes and was not read",
            )
        if len(self._chunks) != 1:
            self._chunks = [b"".join(self._chunks)]
        body = self._chunks[0]
        found = None if self._keep_text else self._quick(body, body)
        if found is not None:
            return found
        return read_response(body, provider=self._provider, api=self._api, keep_text=self._keep_text)

    def so_far(self) -> Reading:
        return Reading(provider=self._provider, api=self._api, provenance="partial")

    def _quick(self, head: bytes, tail: bytes) -> Reading | None:
        """Read both ends only; None where that does not tell everything for sure."""
        answer = ends_of(head, tail)
        if answer is None or b'"relevance_score"' in head[:1024]:
            return None
        shape = shape_of(answer, self._api)
        if shape is None:
            return None
        reading = read_answer(answer, provider=self._provider, api=self._api, shape=shape)
        if not reading.usage or reading.model is None:
            return None
        if reading.response_id is None and reading.api != "embeddings":
            return None
        return reading


def ends_of(head: bytes, tail: bytes) -> dict[str, Any] | None:
    """The plain pairs at the beginning of a JSON object and all pairs from its usage on to its end.

    Sure where it gives anything: what follows the key closes exactly one brace more than it opens, so the
    key belongs to the outermost object; and a quote inside of a string would have a backslash before it.
    """
    begun = _HEAD.match(head)
    if begun is None:
        return None
    plain = begun.group()
    at = tail.rfind(b'"usage')
    if b'"model"' not in plain and (model := tail.rfind(b'"model"', 0, max(at, 0))) > 0:
        at = model if at - model < 1024 else at
    if at <= 0 or (tail is head and at < len(plain)) or tail[at - 1 : at] == b"\\":
        return None
    try:
        text = (plain + tail[at:]).decode()
        found, end = _DECODER.raw_decode(text)
        if end != len(text) and not text[end:].isspace():
            return None
    except (ValueError, RecursionError):
        return None
    return found if type(found) is dict else None


class _Events:
    """A stream of server-sent events, or of JSON lines."""

    __slots__ = (
        "_api", "_carry", "_chunks", "_full", "_keep_text", "_light", "_max", "_named", "_next", "_provider",
        "_raw", "_raw_size", "_seen", "_size", "_unsure", "tokens_so_far",
    )  # fmt: skip

    def __init__(self, provider: str | None, api: str | None, max_bytes: int, keep_text: bool) -> None:
        self._provider = provider
        self._api = api
        self._max = max_bytes
        self._keep_text = keep_text
        self._chunks: list[bytes] = []
        self._size = 0
        self._next = _WINDOW
        self._carry = b""
        self._raw: list[bytes] = []
        self._raw_size = 0
        self._seen = 0
        self._full: _Decoded | None = None
        self._light = StreamTally(provider=provider, api=api)
        self._unsure = False
        self._named = False
        self.tokens_so_far = 0

    def feed(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)
        self.tokens_so_far += 1
        if self._size > self._next:
            self._scan()

    @property
    def complete(self) -> bool:
        self._scan()
        return self._light.complete

    @property
    def failed(self) -> bool:
        return self._light.failed or (self._full is not None and self._full.tally.failed)

    def result(self) -> Reading:
        self._scan()
        if self._carry:
            self._search(self._carry)
        if self._light.complete and not self._unsure and not self._keep_text:
            reading = self._light.result()
            if reading.usage or reading.problem:
                return reading
        decoded = self._full
        if decoded is None:
            decoded = _Decoded(self._provider, self._api, self._keep_text)
            for raw in self._raw:
                decoded.feed(raw)
        decoded.feed(self._carry)
        self._raw, self._carry, self._full = [], b"", decoded
        return decoded.result()

    def so_far(self) -> Reading:
        self._scan()
        return self._light.so_far(at_least=self.tokens_so_far)

    def _scan(self) -> None:
        """Search what came since the last time; keep its beginnings of lines for the next."""
        window = self._carry + b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        cut = max(window.rfind(b"\n"), window.rfind(b"\r")) + 1
        self._carry = window[cut:]
        # A line that is longer than the window is copied seldom enough to stay linear.
        self._next = max(_WINDOW, len(self._carry))
        if cut:
            self._search(window[:cut])
            self._keep(window[:cut])
        elif len(self._carry) > self._max:
            self._carry, self._unsure = b"", True

    def _search(self, window: bytes) -> None:
        done = 0
        if not self._named:
            # The first event names the answer.
            self._named = True
            self._peek(window)
        while (found := _USAGE.search(window, done)) is not None:
            at = found.start()
            begin = max(window.rfind(b"\n", done, at), window.rfind(b"\r", done, at)) + 1 or done
            ends = [end for end in (window.find(b"\n", at), window.find(b"\r", at)) if end >= 0]
            done = min(ends, default=len(window))
            try:
                self._light.feed(json.loads(_payload(window[begin:done])))
            except (ValueError, RecursionError):
                self._unsure = True

    def _peek(self, window: bytes) -> None:
        begin = window.find(b"data:")
        line = lines_of(window[max(begin, 0) :][:_WINDOW])[0]
        try:
            self._light.feed(json.loads(_payload(line)))
        except (ValueError, RecursionError):
            self._named = begin < 0

    def _keep(self, raw: bytes) -> None:
        self._seen += len(raw)
        if self._full is None:
            self._raw.append(raw)
            self._raw_size += len(raw)
            if self._raw_size > _FOLD:
                self._full = _Decoded(self._provider, self._api, self._keep_text)
                for each in self._raw:
                    self._full.feed(each)
                self._raw = []
        elif self._seen <= self._max:
            self._full.feed(raw)
        else:
            self._full.cut_short = True


def _payload(line: bytes) -> bytes:
    line = line.removeprefix(b"\xef\xbb\xbf")
    return line[5:] if line.startswith(b"data:") else line


class _Decoded:
    """Events decoded one by one, for their text."""

    def __init__(self, provider: str | None, api: str | None, keep_text: bool) -> None:
        self.cut_short = False
        self._decoder: SSEDecoder | _Lines | None = None
        self.tally = StreamTally(provider=provider, api=api, keep_text=keep_text)

    def feed(self, raw: bytes) -> None:
        if self._decoder is None:
            self._decoder = _Lines() if raw.lstrip()[:1] == b"{" else SSEDecoder()
        for event in self._decoder.feed(raw):
            self._take(event.data)

    def result(self) -> Reading:
        for event in self._decoder.close() if self._decoder is not None else ():
            self._take(event.data)
        return self.tally.result()

    def _take(self, data: str) -> None:
        if data.startswith("[DONE]"):
            self.tally.ended = True
            return
        try:
            self.tally.feed(json.loads(data))
        except (ValueError, RecursionError):
            self.tally.unreadable += 1


class _Lines:
    """JSON lines, in the form of a decoder of events."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, raw: bytes) -> list[SSEvent]:
        lines = lines_of(self._partial + raw)
        self._partial = lines.pop()
        return [SSEvent(line.decode("utf-8", "replace")) for line in lines if line]

    def close(self) -> list[SSEvent]:
        return self.feed(b"\n")
