"""Readers on input that nobody thought of. LLM_METERING_FUZZ=60 tries sixty times as much."""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from llm_metering.providers import StreamTally, WireTally, read_response, read_stream
from llm_metering.usage import Reading

from .conftest import compact, payloads, sse

TIMES = int(os.environ.get("LLM_METERING_FUZZ", "1"))
NAMES = st.sampled_from(
    [
        "id", "object", "type", "model", "usage", "choices", "delta", "message", "content", "text", "index",
        "finish_reason", "prompt_tokens", "completion_tokens", "input_tokens", "output_tokens",
        "total_tokens", "prompt_tokens_details", "cached_tokens", "completion_tokens_details",
        "reasoning_tokens", "response", "usageMetadata", "promptTokenCount", "candidates", "parts",
        "output", "meta", "tokens", "done", "tool_calls", "function", "arguments", "name", "error",
        "chunk", "bytes", "data", "event",
    ]
)  # fmt: skip
WORDS = st.sampled_from(
    ["chat.completion", "chat.completion.chunk", "message", "response", "list", "thread.run", "message_start",
     "message_delta", "content_block_delta", "response.completed", "response.output_text.delta", "stop",
     '"usage":{"prompt_tokens":1}', 'a"usage', "\\", '\\"', "data: {}\n\n", "[DONE]", "é😀", "\ud800"]
)  # fmt: skip
NUMBERS = st.sampled_from([0, 1, 7, 2**63 - 1, 2**63, -1]) | st.integers() | st.floats()
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=6)
    ),
    max_leaves=24,
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=8)
CASES = [case.get("events") or [case["body"]] for _, case in payloads()]


def is_sound(reading: Reading) -> bool:
    assert reading.problem is None or not reading.usage
    assert reading.usage.total is None or reading.usage.total >= 0
    assert reading.text is None or isinstance(reading.text, str)
    return reading.provenance in ("reported", "partial")


@settings(max_examples=150 * TIMES, deadline=None)
@given(JSON | OBJECTS)
def test_no_answer_raises(answer: Any) -> None:
    assert is_sound(read_response(answer))
    assert is_sound(read_response(answer, api="chat", keep_text=True))


@settings(max_examples=150 * TIMES, deadline=None)
@given(st.lists(OBJECTS | JSON, max_size=6))
def test_no_stream_raises(events: list[Any]) -> None:
    assert is_sound(read_stream(events, keep_text=True))


@settings(max_examples=150 * TIMES, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([None, "application/json", "text/event-stream"]))
def test_no_bytes_raise(body: bytes, content_type: str | None) -> None:
    tally = WireTally(content_type=content_type)
    for at in range(0, len(body), 7):
        tally.feed(body[at : at + 7])
    assert is_sound(tally.result())


@settings(max_examples=150 * TIMES, deadline=None)
@given(OBJECTS, st.sampled_from([None, 1]), st.booleans())
def test_bytes_are_read_as_the_decoded_answer_is(answer: Any, indent: int | None, ascii: bool) -> None:
    body = json.dumps(answer, indent=indent, ensure_ascii=ascii).encode("utf-8", "replace")
    tally = WireTally(content_type="application/json")
    tally.feed(body)
    decoded = read_response(body)
    assert repr(tally.result()) == repr(decoded)


@settings(max_examples=150 * TIMES, deadline=None)
@given(st.sampled_from(CASES), st.data())
def test_a_payload_with_anything_in_its_place_is_read_or_set_aside(events: list[Any], data: Any) -> None:
    changed = json.loads(compact(events))
    spot = data.draw(st.sampled_from(list(spots(changed))))
    spot[0][spot[1]] = data.draw(JSON)
    tally = StreamTally()
    for event in changed:
        assert is_sound(read_response(event))
        tally.feed(event)
    assert is_sound(tally.result())
    assert is_sound(tally.so_far())


@settings(max_examples=150 * TIMES, deadline=None)
@given(
    st.sampled_from([c for c in CASES if len(c) > 1]), st.lists(st.integers(1, 400), min_size=1, max_size=9)
)
def test_any_cuts_of_a_stream_read_the_same(events: list[Any], sizes: list[int]) -> None:
    body = sse(events)
    tally = WireTally(content_type="text/event-stream")
    at = 0
    while at < len(body):
        size = sizes[at % len(sizes)]
        tally.feed(body[at : at + size])
        at += size
    assert tally.result() == read_stream(events)


def spots(value: Any) -> Any:
    """All places in a JSON value, as (container, key)."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(each, (dict, list)):
            yield from spots(each)
