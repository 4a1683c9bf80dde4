"""Plain text is told apart from other events only where that is sure: the readings stay the same."""

from __future__ import annotations

import json
import os
import pkgutil
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(os.environ.get("LLM_METERING_SHARED", Path(__file__).parents[3] / "shared")) / "exchanges"
TYPES = {
    "chat": "openai.types.chat.ChatCompletionChunk",
    "messages": "anthropic.types.RawMessageStreamEvent",
    "responses": "openai.types.responses.ResponseStreamEvent",
}
RESPONSES = pytest.mark.needs("openai.types.responses")


class Tap:
    """As much of a tap as reading needs."""

    def __init__(self, tally: Any) -> None:
        self.tally = tally
        self.fed = 0

    def feed(self, event: Any) -> None:
        self.fed += 1
        self.tally.feed(event)

    def look(self) -> float:
        return 0.0

    def finish(self, complete: bool = True) -> None:
        self.reading = self.tally.result()


def objects(api: str, events: list[dict[str, Any]]) -> list[Any]:
    """As the SDK makes them of what came over the wire."""
    from openai._models import construct_type

    type_ = pkgutil.resolve_name(TYPES[api])
    return [construct_type(value=event, type_=type_) for event in events]


def both(api: str, events: list[Any]) -> tuple[Any, Any, int]:
    from llm_metering.capture.reading import read
    from llm_metering.providers import StreamTally

    quick = Tap(StreamTally(api=api, keep_text=True))
    plain = Tap(StreamTally(api=api, keep_text=True))
    assert list(read(iter(events), quick, api=api, hide_usage=False)) == events
    list(read(iter(events), plain, api=None, hide_usage=False))
    assert plain.fed == len(events)
    return quick.reading, plain.reading, quick.fed


@pytest.mark.parametrize("api", ["chat", "messages", pytest.param("responses", marks=RESPONSES)])
def test_text_is_told_apart_and_counts_the_same(api, said):
    events = {"chat": said.chat_events, "messages": said.message_events, "responses": said.responses_events}
    made = objects(api, events[api](["Hello"] * 50))
    quick, plain, fed = both(api, made)
    assert quick == plain
    assert fed == len(made) - 50


@pytest.mark.parametrize("as_objects", [pytest.param(True, marks=RESPONSES), False])
def test_recorded_streams_read_the_same(as_objects):
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is missing: recorded exchanges")
    read = 0
    for path in sorted(SHARED.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            exchange = json.loads(line)
            if not exchange["stream"] or (api := exchange["api"]) not in TYPES:
                continue
            events = [event for event in exchange["response"] if isinstance(event, dict)]
            made = objects(api, events) if as_objects else events
            quick, plain, _ = both(api, made)
            assert quick == plain, (path.name, exchange["source"])
            read += 1
    assert read > 50


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "Hi", "role": "assistant"},
        {"content": "Hi", "reasoning_content": "Hm."},
        {"content": "Hi", "tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]},
        {"content": ""},
        {"content": None},
        {"refusal": "No."},
        {},
    ],
)
def test_a_delta_with_anything_more_is_read_in_full(delta, said):
    events = said.chat_events()
    for event in events[2:5]:
        event["choices"][0]["delta"] = delta
    quick, plain, fed = both("chat", objects("chat", events))
    assert quick == plain
    assert fed == 3 + 3


def test_other_choices_and_ends_are_read_in_full(said):
    events = said.chat_events()
    events[2]["choices"][0]["index"] = 1
    events[3]["choices"] = 2 * events[3]["choices"]
    events[4]["choices"][0]["finish_reason"] = "length"
    events[5]["usage"] = said.chat_usage()
    quick, plain, fed = both("chat", objects("chat", events))
    assert quick == plain
    assert fed == 3 + 4
