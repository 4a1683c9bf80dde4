"""Messages of websocket conversations: one reading for each answer, and none for anything else."""

from __future__ import annotations

from typing import Any

import pytest
from llm_metering.providers.realtime import read_event, session_model
from llm_metering.usage import MAX_TOKENS

from .conftest import leaves

USAGE = {
    "total_tokens": 253,
    "input_tokens": 132,
    "output_tokens": 121,
    "input_token_details": {
        "text_tokens": 99,
        "audio_tokens": 33,
        "image_tokens": 0,
        "cached_tokens": 64,
        "cached_tokens_details": {"text_tokens": 44, "audio_tokens": 20, "image_tokens": 0},
    },
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}


def done(usage: Any = USAGE, **more: Any) -> dict[str, Any]:
    response = {"object": "realtime.response", "id": "resp_1", "status": "completed", "usage": usage, **more}
    return {"type": "response.done", "event_id": "event_1", "response": response}


def test_an_answer_is_read_into_disjoint_leaves() -> None:
    reading = read_event(done())
    assert reading is not None
    assert leaves(reading.usage) == {
        "input": 132 - 33 - 44,
        "input_audio": 33 - 20,
        "cached_input": 44,
        "cached_input_audio": 20,
        "input_image": 0,
        "cached_input_image": 0,
        "output": 30,
        "output_audio": 91,
    }
    assert reading.usage.total == 253
    assert (reading.response_id, reading.provider, reading.api) == ("resp_1", "openai", "realtime")


def test_a_cancelled_answer_is_read_as_far_as_it_was_billed() -> None:
    reading = read_event(done({"input_tokens": 9, "output_tokens": 0, "total_tokens": 9}, status="cancelled"))
    assert reading is not None
    assert leaves(reading.usage) == {"input": 9, "output": 0}


def test_a_transcription_is_billed_beside_the_answer_under_its_own_name() -> None:
    event = {
        "type": "conversation.item.input_audio_transcription.completed",
        "item_id": "item_3",
        "content_index": 1,
        "transcript": "hello",
        "usage": {
            "type": "tokens",
            "total_tokens": 22,
            "input_tokens": 13,
            "input_token_details": {"text_tokens": 0, "audio_tokens": 13},
            "output_tokens": 9,
        },
    }
    reading = read_event(event)
    assert reading is not None
    assert leaves(reading.usage) == {"input": 0, "input_audio": 13, "output": 9}
    assert (reading.api, reading.response_id) == ("audio", "item_3:1")
    assert read_event({**event, "usage": {"type": "duration", "seconds": 2}}) is None


def test_a_live_turn_is_read_once_and_not_in_its_middle() -> None:
    usage = {
        "promptTokenCount": 30,
        "responseTokenCount": 70,
        "thoughtsTokenCount": 5,
        "totalTokenCount": 105,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": 10},
            {"modality": "AUDIO", "tokenCount": 20},
        ],
        "responseTokensDetails": [{"modality": "AUDIO", "tokenCount": 70}],
    }
    middle = {"serverContent": {"modelTurn": {"parts": [{"text": "Hi"}]}}, "usageMetadata": usage}
    assert read_event(middle) is None
    reading = read_event({"serverContent": {"turnComplete": True}, "usageMetadata": usage})
    assert reading is not None
    assert leaves(reading.usage) == {
        "input": 10, "input_audio": 20, "output": 0, "output_audio": 70, "reasoning": 5,
    }  # fmt: skip
    assert reading.usage.total == 105
    assert reading.api == "live"


@pytest.mark.parametrize(
    "event",
    [
        None, "text", 7, [], {}, {"type": None}, {"type": "response.done"}, done(None),
        {"type": "response.done", "response": "x"},
        {"type": "response.created", "response": {"usage": USAGE}},
        {"type": "response.text.delta", "delta": "hi"}, {"type": "error", "error": {"message": "no"}},
        {"type": "rate_limits.updated", "rate_limits": []}, {"setupComplete": {}},
    ],
)  # fmt: skip
def test_what_says_nothing_of_usage_gives_no_reading(event: Any) -> None:
    assert read_event(event) is None


@pytest.mark.parametrize(
    "usage", [{"input_tokens": -1}, {"input_tokens": "9"}, {"input_tokens": 2**80}, "x", 4]
)
def test_usage_that_cannot_be_believed_is_a_problem_and_never_a_number(usage: Any) -> None:
    reading = read_event(done(usage))
    assert reading is not None
    assert not reading.usage
    assert reading.problem


def test_the_largest_count_is_read() -> None:
    reading = read_event(done({"input_tokens": MAX_TOKENS, "output_tokens": 0}))
    assert reading is not None
    assert reading.usage.input == MAX_TOKENS


def test_the_session_names_the_model() -> None:
    assert session_model({"type": "session.created", "session": {"model": "gpt-realtime"}}) == "gpt-realtime"
    assert session_model({"type": "session.updated", "session": {}}) is None
    assert session_model({"setup": {"model": "models/gemini-live"}}) == "models/gemini-live"
    assert session_model(None) is None
