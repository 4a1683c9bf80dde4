"""What a decorated function returns or yields: providers' answers, events of streams, or plain text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..sse import SSEDecoder
from ..usage import Reading, Usage
from .streams import StreamTap

if TYPE_CHECKING:
    from ..providers import StreamTally

_MAX_DEPTH = 3
_MAX_ITEMS = 1000
_WHOLE = frozenset(("chat.completion", "response", "list"))
_BEGINS = frozenset(("message_start", "response.created"))


def parts_of(value: Any, read: Callable[[Any], Reading], depth: int = 0) -> Iterator[Reading | str]:
    """The answers and texts in a returned value: itself, the items of a tuple or list, the values of a dict
    that is no answer itself. Of a dict only answers are taken: its texts may be anything."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (bytes, bytearray)):
        yield bytes(value).decode("utf-8", "replace")
    elif isinstance(value, Reading):
        yield value
    elif isinstance(value, Usage):
        yield Reading(usage=value)
    elif isinstance(value, (tuple, list)):
        if depth < _MAX_DEPTH:
            for item in value[:_MAX_ITEMS]:
                yield from parts_of(item, read, depth + 1)
    elif value is not None and not isinstance(value, (bool, int, float)):
        yield from _parts_of_object(value, read, depth)


def _parts_of_object(value: Any, read: Callable[[Any], Reading], depth: int) -> Iterator[Reading | str]:
    reading = read(value)
    if is_answer(reading):
        yield reading
    elif isinstance(value, Mapping):
        if depth < _MAX_DEPTH:
            for item in list(value.values())[:_MAX_ITEMS]:
                found = parts_of(item, read, depth + 1) if not isinstance(item, (str, bytes)) else ()
                yield from (part for part in found if isinstance(part, Reading))
    elif (raw := getattr(value, "_raw_response", None)) is not None and is_answer(reading := read(raw)):
        # Instructor leaves the answer on the model that it was parsed into.
        yield reading


def is_answer(reading: Reading) -> bool:
    """Whether a reading is of something that a model answered."""
    return bool(reading.usage or reading.problem or reading.text or reading.written or reading.api)


def is_whole(item: Any) -> bool:
    """Whether a yielded object is a whole answer rather than an event of a stream."""
    if isinstance(item, (Reading, Usage)):
        return True
    return _get(item, "object") in _WHOLE or _get(item, "type") == "message"


def unframed(text: str) -> list[Any]:
    """What is inside of text that is framed as server-sent events: decoded events, or the plain text."""
    if not text.startswith(("data:", "event:")) or not text.endswith("\n"):
        return [text]
    decoder = SSEDecoder()
    found = []
    for event in [*decoder.feed(text.encode("utf-8", "replace")), *decoder.close()]:
        if event.data.strip() == "[DONE]":
            continue
        try:
            decoded = json.loads(event.data)
        except (ValueError, RecursionError):
            decoded = event.data
        found.append(decoded if isinstance(decoded, dict) else event.data)
    return found


class Streams:
    """Sorts the events that a function yields into the streams that they belong to.

    An agent relays one stream after another, or several at a time. A new one begins with an event that
    only begins streams, or with another id once the one before has ended; some vendors change the id with
    each event, and that alone begins nothing.
    """

    def __init__(
        self, new_tap: Callable[[StreamTally], StreamTap], new_tally: Callable[[], StreamTally]
    ) -> None:
        self._new_tap = new_tap
        self._new_tally = new_tally
        self._by_id: dict[str, StreamTap] = {}
        self._last: StreamTap | None = None
        self.taps: list[StreamTap] = []

    def feed(self, event: Any) -> None:
        self._tap_for(event).feed(event)

    def _tap_for(self, event: Any) -> StreamTap:
        key = _get(event, "id")
        if isinstance(key, str) and key in self._by_id:
            self._last = self._by_id[key]
        elif self._last is None or self._begins(event, key):
            self._last = self._new_tap(self._new_tally())
            self.taps.append(self._last)
            if isinstance(key, str) and key:
                self._by_id[key] = self._last
        return self._last

    def _begins(self, event: Any, key: Any) -> bool:
        if _get(event, "type") in _BEGINS:
            return True
        if not isinstance(key, str) or not key or not self._by_id:
            return False
        tally: Any = None if self._last is None else self._last.tally
        return bool(getattr(tally, "ended", False) or _names_role(event))


def _names_role(event: Any) -> bool:
    choices = _get(event, "choices")
    if not isinstance(choices, (list, tuple)) or not choices:
        return False
    return _get(_get(choices[0], "delta"), "role") is not None


def _get(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name)
    try:
        return getattr(value, name, None)
    except Exception:
        return None
