"""Server-sent events from bytes, however they are cut. Sans I/O; stands below the readers.

Follows https://html.spec.whatwg.org/multipage/server-sent-events.html, but gives the last event even
where the closing blank line is missing: a provider's final usage often comes just before a cut.
"""

from __future__ import annotations

from ._values import dataclass

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""A longer event is dropped, so that a stream without line ends cannot fill the memory."""

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class SSEvent:
    """One event. `data` is text; bytes that are not UTF-8 are replaced."""

    data: str
    event: str = "message"
    id: str | None = None


class SSEDecoder:
    """Decodes a stream of bytes, cut anywhere: inside characters, line ends, the byte order mark.

    Comments, keep-alives and unknown fields are skipped. `[DONE]` is an event like any other.

    Args:
        max_event_bytes: A longer event is dropped and counted in `dropped`.
    """

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.dropped = 0
        """How many events were too long."""
        self._max = max_event_bytes
        self._partial = bytearray()
        """The beginning of a line whose end has not come yet."""
        self._begun = False
        self._after_cr = False
        self._overlong = False
        self._size = 0
        self._data: list[bytes] = []
        self._event = b""
        self._id: str | None = None

    def feed(self, chunk: bytes | bytearray | memoryview) -> list[SSEvent]:
        """The events that `chunk` completes."""
        chunk = bytes(chunk)
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[:1] == b"\n":
                chunk = chunk[1:]
        if not chunk:
            return []
        if b"\n" not in chunk and b"\r" not in chunk:
            self._hold(chunk)
            return []
        self._after_cr = chunk.endswith(b"\r")
        self._partial += chunk
        lines = lines_of(bytes(self._partial))
        self._partial = bytearray(lines.pop())
        events: list[SSEvent] = []
        for line in lines:
            self._line(line, events)
        self._hold(b"")
        return events

    def close(self) -> list[SSEvent]:
        """The event that the end of the stream cut short, if there is one."""
        events: list[SSEvent] = []
        if self._partial:
            line = bytes(self._partial)
            self._partial.clear()
            self._line(line, events)
        self._line(b"", events)
        return events

    def _hold(self, chunk: bytes) -> None:
        self._partial += chunk
        if len(self._partial) + self._size > self._max:
            self._partial = self._partial[:16]
            self._too_long()

    def _too_long(self) -> None:
        self._overlong = True
        self._data.clear()
        self._size = 0

    def _line(self, line: bytes, events: list[SSEvent]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BOM)
        if not line:
            self._dispatch(events)
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._size += len(value)
            if self._size > self._max:
                self._too_long()
            elif not self._overlong:
                self._data.append(value)
        elif name == b"event":
            self._event = value[:256]
        elif name == b"id" and b"\0" not in value:
            self._id = value[:1024].decode("utf-8", "replace")

    def _dispatch(self, events: list[SSEvent]) -> None:
        if self._overlong:
            self.dropped += 1
        elif self._data:
            data = b"\n".join(self._data).decode("utf-8", "replace")
            events.append(SSEvent(data, self._event.decode("utf-8", "replace") or "message", self._id))
        self._data.clear()
        self._size = 0
        self._event = b""
        self._overlong = False


def lines_of(text: bytes) -> list[bytes]:
    """Split at LF, CR and CRLF; the last item is what follows the last line end."""
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return text.split(b"\n")
