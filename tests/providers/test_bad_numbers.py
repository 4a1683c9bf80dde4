"""Usage that cannot be believed is set aside with its reason, and never counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llm_metering.providers import StreamTally, WireTally, read_response, read_stream
from llm_metering.usage import Reading, Usage

from .conftest import sse

BAD: list[tuple[Any, str]] = [
    (-5, "negative"),
    (float("nan"), "nan"),
    (float("inf"), "inf"),
    (1e400, "inf"),
    (12.0, "12.0"),
    (12.5, "12.5"),
    ("12", "'12'"),
    (True, "True"),
    (None, "null"),
    (2**63, "above 2**63-1"),
    (10**30, "above 2**63-1"),
    ([12], "list"),
    ({"a": 1}, "dict"),
]


def chat(usage: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-4o",
        "choices": [{"index": 0, "message": {"content": "Hello."}, "finish_reason": "stop"}],
        "usage": usage,
    }


def message(usage: Any) -> dict[str, Any]:
    return {"id": "msg_1", "type": "message", "model": "claude-x", "content": [], "usage": usage}


def is_set_aside(reading: Reading, reason: str) -> bool:
    assert reading.problem is not None
    assert reason in reading.problem
    assert len(reading.problem) < 200
    return reading.usage == Usage() and reading.response_id is not None and reading.model is not None


@pytest.mark.parametrize(("value", "reason"), BAD)
@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens"])
def test_a_count_that_is_no_count_is_set_aside(field: str, value: Any, reason: str) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, field: value}
    assert is_set_aside(read_response(chat(usage)), reason)


@pytest.mark.parametrize(("value", "reason"), BAD)
@pytest.mark.parametrize("field", ["input_tokens", "output_tokens"])
def test_a_message_whose_count_is_no_count_is_set_aside(field: str, value: Any, reason: str) -> None:
    assert is_set_aside(read_response(message({"input_tokens": 9, "output_tokens": 2, field: value})), reason)


@pytest.mark.parametrize(("value", "reason"), [b for b in BAD if b[0] is not None])
def test_a_detail_that_is_no_count_is_set_aside(value: Any, reason: str) -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": value},
    }
    assert is_set_aside(read_response(chat(usage)), reason)


@pytest.mark.parametrize(("value", "reason"), BAD)
def test_bytes_with_a_count_that_is_no_count_are_set_aside(value: Any, reason: str) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": value, "total_tokens": 11}
    tally = WireTally(content_type="application/json")
    tally.feed(json.dumps(chat(usage)).encode())
    assert is_set_aside(tally.result(), reason)


@pytest.mark.parametrize(("value", "reason"), [b for b in BAD if b[0] is not None])
def test_a_stream_with_a_count_that_is_no_count_is_set_aside(value: Any, reason: str) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": value, "total_tokens": 11}
    events = [
        {
            "id": "c",
            "object": "chat.completion.chunk",
            "model": "m",
            "choices": [{"delta": {"content": "a"}}],
        },
        {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": usage},
    ]
    assert is_set_aside(read_stream(events), reason)
    tally = WireTally(content_type="text/event-stream")
    tally.feed(sse(events))
    assert is_set_aside(tally.result(), reason)


@pytest.mark.parametrize("usage", [5, "12", True, [1, 2]])
def test_a_usage_that_is_no_object_is_set_aside(usage: Any) -> None:
    assert is_set_aside(read_response(chat(usage)), "not an object")


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 10}},
        {"prompt_tokens": 9, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 3}},
        {
            "prompt_tokens": 9,
            "completion_tokens": 9,
            "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 5},
        },
    ],
)
def test_parts_that_exceed_their_total_are_set_aside(usage: Any) -> None:
    assert is_set_aside(read_response(chat(usage)), "more than their total")


def test_more_reasoning_than_was_billed_is_cut_where_the_total_confirms_what_was() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 5}}
    assert read_response(chat({**usage, "total_tokens": 13})).usage == Usage(input=9, output=0, reasoning=4)
    assert is_set_aside(read_response(chat({**usage, "total_tokens": 12})), "more than their total")
    usage["completion_tokens_details"] = {"reasoning_tokens": 3, "audio_tokens": 5}
    assert is_set_aside(read_response(chat({**usage, "total_tokens": 13})), "more than their total")


@pytest.mark.parametrize("total", [None, "99", 99.0, True, 13, 12, -1])
def test_a_total_that_shows_nothing_changes_nothing(total: Any) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": total}
    assert read_response(chat(usage)).usage == Usage(input=9, output=4)


def test_a_reported_reasoning_of_none_stays_none_whatever_the_total() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 0}}
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 20, **details}
    assert read_response(chat(usage)).usage == Usage(input=9, output=4, reasoning=0)


def test_the_largest_count_is_believed() -> None:
    largest = 2**63 - 1
    reading = read_response(chat({"prompt_tokens": largest, "completion_tokens": 0, "total_tokens": largest}))
    assert reading.problem is None
    assert reading.usage.input == largest


def test_numbers_that_are_not_tokens_do_not_matter() -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "total_tokens": 11,
        "queue_time": 0.25,
        "cost": None,
        "service_tier": "default",
        "prompt_tokens_details": {"text_tokens": "nine"},
    }
    assert read_response(chat(usage)).usage == Usage(input=9, output=2)


@pytest.mark.parametrize("usage", [None, {}, {"unknown": 5}])
def test_an_answer_without_usage_keeps_its_text(usage: Any) -> None:
    reading = read_response(chat(usage))
    assert not reading.usage
    assert reading.problem is None
    assert reading.text == "Hello."


def test_a_good_total_after_a_bad_one_is_believed() -> None:
    tally = StreamTally()
    for tokens in (-1, 2):
        tally.feed(
            {
                "id": "c",
                "object": "chat.completion.chunk",
                "model": "m",
                "choices": [],
                "usage": {"prompt_tokens": 9, "completion_tokens": tokens},
            }
        )
    assert tally.result().usage == Usage(input=9, output=2)
