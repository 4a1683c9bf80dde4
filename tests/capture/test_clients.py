"""Wrapped clients of the real SDKs, against a provider on a socket."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest
from llm_metering.capture.clients import wrap

MESSAGES: Any = [{"role": "user", "content": "Say hello."}]
ASK: Any = {"model": "gpt-4o-mini", "messages": MESSAGES}
CLAUDE: Any = {"model": "claude-opus-4-8", "max_tokens": 100, "messages": MESSAGES}


@pytest.fixture
def chat(bench, provider):
    with openai.OpenAI(api_key="sk-test", base_url=provider.origin + "/v1", max_retries=0) as client:
        yield wrap(client, bench.recorder)


@pytest.fixture
def claude(bench, provider):
    with anthropic.Anthropic(api_key="sk-test", base_url=provider.origin, max_retries=0) as client:
        yield wrap(client, bench.recorder)


def test_a_chat_answer_is_recorded_as_reported(chat, bench, provider, said):
    provider.json(said.chat())
    answer = chat.chat.completions.create(**ASK)
    assert answer.choices[0].message.content == "Hello there."
    record = bench.only()
    assert record.usage.as_dict() == {
        "input": 12, "cached_input": 8, "output": 3, "reasoning": 2, "input_audio": 0, "output_audio": 0,
    }  # fmt: skip
    assert (record.model, record.response_id) == ("gpt-4o-mini-2024-07-18", "chatcmpl-1")
    assert (record.provenance, record.surface) == ("reported", "client")


def test_a_stream_is_recorded_from_the_usage_we_asked_for_and_the_caller_does_not_see_it(
    chat, bench, provider, said
):
    provider.events(said.chat_events())
    chunks = list(chat.chat.completions.create(**ASK, stream=True))
    assert provider.asked[0].body["stream_options"] == {"include_usage": True}
    assert [len(chunk.choices) for chunk in chunks] == [1] * 7
    assert all(chunk.usage is None for chunk in chunks)
    assert bench.only().usage.input_total == 20
    assert bench.only().provenance == "reported"


def test_messages_and_their_streams_are_recorded(claude, bench, provider, said):
    provider.json(said.message())
    claude.messages.create(**CLAUDE)
    provider.replies.clear()
    provider.events(said.message_events())
    events = list(claude.messages.create(**CLAUDE, stream=True))
    assert events[-1].type == "message_stop"
    assert [record.usage.as_dict() for record in bench.records] == 2 * [
        {"input": 12, "cached_input": 50, "cached_write": 100, "output": 6}
    ]
    assert not bench.sink.rows
