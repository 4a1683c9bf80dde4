"""A stream on its way to a client: searched for what carries usage, decoded only to be counted."""

from __future__ import annotations

import json
import re
from collections import deque
from time import sleep

from ..sse import SSEDecoder, SSEvent, lines_of
from ..usage import Reading
from .answers import read_response
from .streams import StreamTally

WINDOW = 64 * 1024
"""How much of a stream is searched at a time."""
FOLD = 1024 * 1024
"""Of a longer stream the oldest part is decoded as more comes, and only its text is kept."""

_USAGE = re.compile(rb'"usage(?!":\s*null)')
"""A key of a usage, but for the `"usage": null` that some providers put into every event."""
_ANY_USAGE, _NO_USAGE, _TIGHT_USAGE = b'"usage', b'"usage":null', b'"usage":{'
"""Bytes are searched from the end: that skips by the length of what it looks for, and takes a fifth of the
time that the pattern does."""


class WireEvents:
    """A stream of server-sent events, or of JSON lines."""

    __slots__ = (
        "_api", "_carry", "_chunks", "_full", "_keep_text", "_light", "_max", "_named", "_needle", "_next",
        "_provider", "_raw", "_raw_size", "_seen", "_size", "_unsure", "tokens_so_far",
    )  # fmt: skip

    def __init__(self, provider: str | None, api: str | None, max_bytes: int, keep_text: bool) -> None:
        self._provider = provider
        self._api = api
        self._max = max_bytes
        self._keep_text = keep_text
        self._chunks: list[bytes] = []
        self._size = 0
        self._next = WINDOW
        self._carry = b""
        self._raw: deque[bytes] = deque()
        self._raw_size = 0
        self._seen = 0
        self._full: _Decoded | None = None
        self._light = StreamTally(provider=provider, api=api)
        self._unsure = False
        self._named = False
        self._needle = _ANY_USAGE
        self.tokens_so_far = 0

    def feed(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)
        self.tokens_so_far += 1
        if self._size > self._next:
            self._scan()

    def feed_all(self, chunks: list[bytes]) -> None:
        """Take several, in order."""
        self._chunks += chunks
        self.tokens_so_far += len(chunks)
        self._scan()

    @property
    def complete(self) -> bool:
        self._scan()
        return self._light.complete

    @property
    def left_to_decode(self) -> int:
        return 0 if self.complete and not (self._unsure or self._keep_text) else self._raw_size

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
        if self._full is None and (whole := self._whole()) is not None:
            return whole
        decoded = self._decoded()
        while self._raw:
            self._fold()
            sleep(0)  # where this is not the event loop's thread, that one goes on meanwhile
        decoded.feed(self._carry)
        self._carry = b""
        return decoded.result()

    def _whole(self) -> Reading | None:
        """The reading of an answer in one piece, which some servers call a stream; None if it is none."""
        body = b"".join(self._raw) + self._carry
        if body.lstrip()[:1] != b"{":
            return None
        reading = read_response(body, provider=self._provider, api=self._api, keep_text=self._keep_text)
        return reading if reading.usage else None

    def so_far(self) -> Reading:
        self._scan()
        return self._light.so_far(at_least=self.tokens_so_far)

    def _scan(self) -> None:
        """Search what came since the last time; keep its beginnings of lines for the next."""
        if not self._chunks:
            return
        window = b"".join([self._carry, *self._chunks])
        self._chunks.clear()
        self._size = 0
        cut = max(window.rfind(b"\n"), window.rfind(b"\r")) + 1
        self._carry = window[cut:]
        # A line that is longer than the window is copied seldom enough to stay linear.
        self._next = max(WINDOW, len(self._carry))
        if cut:
            whole = window[:cut]
            self._search(whole)
            self._keep(whole)
        elif len(self._carry) > self._max:
            self._carry, self._unsure = b"", True

    def _search(self, window: bytes) -> None:
        done = 0
        if not self._named:
            # The first event names the answer.
            self._named = True
            self._peek(window)
        if window.rfind(self._needle, done) < 0:
            return
        while (found := _USAGE.search(window, done)) is not None:
            at = found.start()
            begin = max(window.rfind(b"\n", done, at), window.rfind(b"\r", done, at)) + 1 or done
            ends = [end for end in (window.find(b"\n", at), window.find(b"\r", at)) if end >= 0]
            done = min(ends, default=len(window))
            try:
                self._light.feed(json.loads(_payload(window[begin:done])))
            except (ValueError, RecursionError):
                self._unsure = True
        if not done and _NO_USAGE in window:
            # Who writes so tightly writes a usage so, too; should another hand write it, all is decoded at
            # the end.
            self._needle = _TIGHT_USAGE

    def _peek(self, window: bytes) -> None:
        begin = window.find(b"data:")
        line = lines_of(window[max(begin, 0) :][:WINDOW])[0]
        try:
            self._light.feed(json.loads(_payload(line)))
        except (ValueError, RecursionError):
            self._named = begin < 0

    def _keep(self, raw: bytes) -> None:
        self._seen += len(raw)
        if self._seen > self._max:
            # Only the usage is still looked for.
            self._decoded().cut_short = True
            self._light.forget_text()
            return
        self._raw.append(raw)
        self._raw_size += len(raw)
        if self._raw_size > FOLD:
            # A window for each that comes: never so much at a time that an event loop would notice.
            self._fold()

    def _decoded(self) -> _Decoded:
        if self._full is None:
            self._full = _Decoded(self._provider, self._api, self._keep_text)
        return self._full

    def _fold(self) -> None:
        """Decode the oldest of what is kept as it came."""
        raw = self._raw.popleft()
        self._raw_size -= len(raw)
        self._decoded().feed(raw)


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
            self.tally.ended = not self.cut_short
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
