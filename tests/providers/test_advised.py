"""What Anthropic's advisor used: another model's tokens, which the usage itself leaves out."""

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
