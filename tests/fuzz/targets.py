"""What is thrown at everything that reads bytes or values of others, and what must hold whatever it is.

Payload files of real providers are the seed corpus: whole, cut, repeated, with values in the wrong places and
with bytes changed.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from llm_metering.adapters.counts import reading_of
from llm_metering.capture.bodies import Inflater
from llm_metering.counting import fill
from llm_metering.providers import StreamTally, WireTally, read_response, read_stream
from llm_metering.providers.realtime import read_event, session_model
from llm_metering.sse import SSEDecoder
from llm_metering.usage import MAX_TOKENS, Reading

PAYLOADS = Path(__file__).parents[1] / "providers" / "payloads"
CASES: list[list[Any]] = [
    case.get("events") or [case["body"]]
    for case in (json.loads(path.read_text(encoding="utf-8")) for path in sorted(PAYLOADS.glob("*.json")))
    if "events" in case or "body" in case
]


def _names(value: Any, found: set[str]) -> set[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            found.add(name)
            _names(inner, found)
    elif isinstance(value, list):
        for inner in value:
            _names(inner, found)
    return found


NAMES = st.sampled_from(sorted(_names(CASES, set())))
WORDS = st.sampled_from(
    ["chat.completion", "chat.completion.chunk", "message", "response", "response.done", "message_start",
     "message_delta", "content_block_delta", "response.completed", "response.output_text.delta",
     "session.created", "stop", '"usage":{"prompt_tokens":1}', 'a"usage', "\\", '\\"', "data: {}\n\n",
     "[DONE]", "é😀", "\ud800", "<|endoftext|>", "", "data:image/png;base64,AAAA", "function", "user", "text"]
)  # fmt: skip
NUMBERS = (
    st.sampled_from([0, 1, 7, 2**63 - 1, 2**63, -1, 10**400, 1e400, float("nan")])
    | st.integers()
    | st.floats()
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=6)
    ),
    max_leaves=24,
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=8)
SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=9)
KINDS = st.sampled_from(
    [None, "application/json", "text/event-stream", "application/x-ndjson", "application/jsonl",
     "application/vnd.amazon.eventstream", "text/plain"]
)  # fmt: skip

SPOILERS = [b"\xef\xbb\xbf", b"\r\n\r\n", b"{" * 900, b'"usage":', b"\0"]


@st.composite
def changed_cases(draw: st.DrawFn) -> list[Any]:
    """Events of a real stream, or a real answer, with anything in some places, some left out or repeated."""
    events = json.loads(json.dumps(draw(st.sampled_from(CASES))))
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(events))
        if places:
            holder, key = draw(st.sampled_from(places))
            holder[key] = draw(JSON)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(events)))
        events[at:at] = events[:at][-2:]
    return events[: draw(st.integers(0, len(events)))] if draw(st.booleans()) else events


@st.composite
def changed_bytes(draw: st.DrawFn) -> bytes:
    """The wire form of a stream or an answer, with bytes changed, cut out or put in."""
    events = draw(st.sampled_from(CASES))
    end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    if draw(st.booleans()):
        body = b"".join(b"data: " + _json(each) + b"\n\n" for each in events) + b"data: [DONE]\n\n"
        body = body.replace(b"\n", end)
    else:
        body = _json(events[0] if len(events) == 1 else events)
    changed = bytearray(body[: draw(st.integers(0, len(body)))] if draw(st.booleans()) else body)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(changed)))
        changed[at : at + draw(st.integers(0, 9))] = draw(
            st.binary(max_size=8)
            | st.sampled_from([b"\xef\xbb\xbf", b"\r\n\r\n", b"{" * 900, b'"usage":', b"\0"])
        )
    return bytes(changed)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _places(value: Any) -> Any:
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(each, (dict, list)):
            yield from _places(each)


# What must hold.


def sound(reading: Reading) -> Reading:
    """A reading that may be recorded: believable counts, or a reason, never both."""
    assert reading.problem is None or not reading.usage
    for _, count in reading.usage.leaves():
        assert type(count) is int
        assert 0 <= count <= MAX_TOKENS
    for text in (reading.text, reading.model, reading.response_id, reading.provider):
        assert text is None or isinstance(text, str)
    assert reading.provenance in ("reported", "partial", "counted", "estimated")
    return reading


def pieces(body: bytes, sizes: list[int]) -> list[bytes]:
    found, at, turn = [], 0, 0
    while at < len(body):
        size = sizes[turn % len(sizes)]
        found.append(body[at : at + size])
        at, turn = at + size, turn + 1
    return found


def sse(body: bytes, sizes: list[int]) -> None:
    """Any bytes decode, and cuts do not matter."""
    whole = SSEDecoder()
    expected = [*whole.feed(body), *whole.close()]
    cut = SSEDecoder()
    assert [event for piece in pieces(body, sizes) for event in cut.feed(piece)] + list(
        cut.close()
    ) == expected


def wire(body: bytes, kind: str | None, sizes: list[int], keep_text: bool) -> None:
    """Any bytes of any content type are read, with the same result however they are cut."""
    whole = WireTally(content_type=kind, keep_text=keep_text)
    whole.feed(body)
    sound(whole.so_far())
    expected = sound(whole.result())
    cut = WireTally(content_type=kind, keep_text=keep_text)
    for piece in pieces(body, sizes):
        cut.feed(piece)
    sound(cut.so_far())
    if kind is not None:
        assert repr(cut.result()) == repr(expected)
    else:  # the first piece may be too short to tell what it is
        sound(cut.result())


def wire_bounded(body: bytes, kind: str | None, sizes: list[int]) -> None:
    """A bound that is too small for what comes gives a reason or less, never an error."""
    tally = WireTally(content_type=kind, max_bytes=200)
    for piece in pieces(body, sizes):
        tally.feed(piece)
    sound(tally.result())


def answers(events: list[Any], value: Any, keep_text: bool) -> None:
    """Any value is read as an answer."""
    for each in (*events, value, events):
        sound(read_response(each, keep_text=keep_text))
        sound(read_response(each, api="chat", keep_text=keep_text))


def streams(events: list[Any], keep_text: bool) -> None:
    """Any events are read as a stream, and what they come to so far is always known."""
    tally = StreamTally(keep_text=keep_text)
    for event in events:
        tally.feed(event)
        sound(tally.so_far())
        assert tally.tokens_so_far >= 0
    assert sound(tally.result()) == sound(read_stream(events, keep_text=keep_text))


def conversations(events: list[Any], value: Any) -> None:
    """Any message of a websocket is read."""
    for event in (*events, value):
        reading = read_event(event)
        assert reading is None or sound(reading)
        named = session_model(event)
        assert named is None or isinstance(named, str)


def requests(request: Any, events: list[Any]) -> None:
    """Any request and answer can be counted."""
    reading = sound(read_response(events[0] if events else None, keep_text=True))
    reading = replace(reading, usage=type(reading.usage)(), problem=None)
    for asked in (
        request,
        {"messages": request},
        {"input": request, "tools": request},
        {"contents": request},
    ):
        sound(fill(reading, asked, model="gpt-4o-mini"))


def packed(body: bytes, encoding: str, change: int, value: int, sizes: list[int]) -> None:
    """Compressed bytes inflate to what they were, damaged ones to no more than the bound."""
    data = bytearray(PACKERS[encoding](body))
    if data and change >= 0:
        data[change % len(data)] = value
    limit = 5000
    inflater = Inflater(encoding, limit)
    plain = b"".join(inflater.feed(piece) for piece in pieces(bytes(data), sizes))
    assert len(plain) <= limit
    if change < 0 and len(body) <= limit:
        assert plain == body
        assert inflater.problem is None


def adapters(counts: dict[str, Any], value: Any) -> None:
    """Whatever a library says of counts and names."""
    sound(reading_of(counts, model=value, response_id=value, provider=value))


def _packers() -> dict[str, Callable[[bytes], bytes]]:
    found: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
    for encoding, module in (("br", "brotli"), ("zstd", "backports.zstd")):
        try:
            found[encoding] = import_module(module).compress
        except ImportError:
            continue
    return found


PACKERS = _packers()

COUNTS = st.sampled_from(
    ["input", "output", "cached", "written", "input_audio", "cached_audio", "output_audio", "reasoning"]
)
BYTES = st.binary(max_size=300) | changed_bytes()
ENCODINGS = st.sampled_from(sorted(PACKERS))

TARGETS: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]]] = {
    "sse": (sse, (BYTES, SIZES)),
    "wire": (wire, (BYTES, KINDS, SIZES, st.booleans())),
    "wire_bounded": (wire_bounded, (changed_bytes(), KINDS, SIZES)),
    "answers": (answers, (changed_cases(), JSON | OBJECTS, st.booleans())),
    "streams": (streams, (changed_cases() | st.lists(OBJECTS | JSON, max_size=6), st.booleans())),
    "conversations": (conversations, (changed_cases(), JSON | OBJECTS)),
    "requests": (requests, (JSON | OBJECTS, changed_cases())),
    "packed": (packed, (BYTES, ENCODINGS, st.integers(-1, 2000), st.integers(0, 255), SIZES)),
    "adapters": (adapters, (st.dictionaries(COUNTS, JSON), JSON)),
}
