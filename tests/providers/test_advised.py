"""What other models used for an answer of Anthropic's, and its usage leaves out."""

from __future__ import annotations

import json
from typing import Any

from llm_metering.providers import WireTally, read_response, read_stream
from llm_metering.usage import Reading, Usage

from .conftest import sse


def iteration(kind: str, input: int, output: int, **more: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "input_tokens": input,
        "output_tokens": output,
        "cache_read_input_tokens": 0,
        **more,
    }


USAGE: dict[str, Any] = {
    "input_tokens": 2411,
    "output_tokens": 145,
    "iterations": [
        iteration("message", 1128, 135),
        iteration("advisor_message", 2543, 18, model="claude-opus-4-8"),
        iteration("message", 1283, 10),
    ],
}
MESSAGE = {"id": "msg_1", "type": "message", "model": "claude-sonnet-5", "content": [], "usage": USAGE}
EVENTS = [
    {"type": "message_start", "message": {**MESSAGE, "usage": {"input_tokens": 1128, "output_tokens": 2}}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": USAGE},
    {"type": "message_stop"},
]


def wire(body: bytes) -> Reading:
    tally = WireTally()
    tally.feed(body)
    return tally.result()


def test_an_advisor_is_a_reading_of_its_own_beside_the_answer() -> None:
    whole, stream = json.dumps(MESSAGE).encode(), sse(EVENTS, done=False)
    for reading in (read_response(MESSAGE), wire(whole), read_stream(EVENTS), wire(stream)):
        assert reading.usage == Usage(input=2411, output=145)
        assert reading.model == "claude-sonnet-5"
        (other,) = reading.beside
        assert other.usage == Usage(input=2543, cached_input=0, output=18)
        assert (other.model, other.response_id, other.provenance) == (
            "claude-opus-4-8",
            "msg_1:1",
            "reported",
        )
        assert (other.provider, other.api) == ("anthropic", "messages")


def test_an_advisor_whose_numbers_cannot_be_believed_is_set_aside_alone() -> None:
    bad = iteration("advisor_message", -1, 18, model="m")
    reading = read_response({**MESSAGE, "usage": {**USAGE, "iterations": [bad, 7, None]}})
    assert reading.usage == Usage(input=2411, output=145)
    assert [(other.usage, "negative" in (other.problem or "")) for other in reading.beside] == [
        (Usage(), True)
    ]


ASKED, SERVED = "claude-fable-5", "claude-opus-4-8"
CHAIN: dict[str, Any] = {
    "input_tokens": 2,
    "output_tokens": 13658,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 79214,
    "iterations": [
        iteration("message", 2, 578, model=ASKED, cache_creation_input_tokens=10421),
        iteration("message", 1, 40, model=SERVED),  # before it called a tool of the server's
        iteration("fallback_message", 1, 13618, model=SERVED, cache_read_input_tokens=79214),
    ],
}


def readings_of(usage: dict[str, Any], *, begins_as: str) -> list[Reading]:
    """A whole answer names who served it, a stream that a model declined in mid-answer who was asked."""
    whole = {**MESSAGE, "model": SERVED, "usage": usage}
    start = {**MESSAGE, "model": begins_as, "usage": {"input_tokens": 2, "output_tokens": 1}}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": start},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
        {"type": "message_stop"},
    ]
    return [
        read_response(whole),
        wire(json.dumps(whole).encode()),
        read_stream(events),
        wire(sse(events, done=False)),
    ]


def test_a_model_that_declined_in_mid_answer_is_billed_beside_the_one_that_went_on() -> None:
    for reading in readings_of(CHAIN, begins_as=ASKED):
        assert (reading.model, reading.usage.output) == (SERVED, 13658)
        (declined,) = reading.beside
        assert (declined.model, declined.response_id) == (ASKED, "msg_1:0")
        assert declined.usage == Usage(input=2, cached_input=0, cached_write=10421, output=578)


def test_a_model_that_declined_before_its_first_word_is_not_charged() -> None:
    silent = {**CHAIN, "iterations": [iteration("message", 412, 0, model=ASKED), CHAIN["iterations"][2]]}
    for reading in readings_of(silent, begins_as=SERVED):
        assert (reading.model, reading.usage.output, reading.beside) == (SERVED, 13658, ())


def test_turns_of_one_model_are_in_its_usage_already() -> None:
    turns = {
        **USAGE,
        "iterations": [iteration("message", 1128, 135), iteration("message", 1283, 10, model="m")],
    }
    for reading in readings_of(turns, begins_as=SERVED):
        assert (reading.model, reading.beside) == (SERVED, ())
