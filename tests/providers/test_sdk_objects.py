"""What the real SDKs give, objects and stream events, is read as the bytes are."""

from __future__ import annotations

from typing import Any

import pytest
from llm_metering.providers import StreamTally, read_response, read_stream
from llm_metering.usage import Usage

from .conftest import leaves

Row = dict[str, Any]


def sdk_types() -> dict[tuple[str, str, bool], Any]:
    from anthropic.types import Message, RawMessageStreamEvent
    from openai.types import Completion, CreateEmbeddingResponse
    from openai.types.beta.threads import Run
    from openai.types.chat import ChatCompletion, ChatCompletionChunk
    from openai.types.responses import Response, ResponseStreamEvent

    return {
        ("openai", "chat", False): ChatCompletion,
        ("openai", "chat", True): ChatCompletionChunk,
        ("openai", "completions", False): Completion,
        ("openai", "embeddings", False): CreateEmbeddingResponse,
        ("openai", "responses", False): Response,
        ("openai", "responses", True): ResponseStreamEvent,
        ("openai", "assistants", False): Run,
        ("anthropic", "messages", False): Message,
        ("anthropic", "messages", True): RawMessageStreamEvent,
    }


def built(provider: str, kind: Any, value: Any) -> Any:
    """As the SDK builds it from an answer, which is without validation."""
    if provider == "anthropic":
        from anthropic import _models
    else:
        from openai import _models  # type: ignore[no-redef]
    return _models.construct_type(type_=kind, value=value)


COMPATIBLE = ("openai", "azure-openai", "groq", "mistral", "deepseek", "together", "anthropic")


@pytest.mark.needs("openai.types.responses")
@pytest.mark.parametrize("provider", COMPATIBLE)
def test_objects_of_the_sdks_are_read_as_their_json_is(
    exchanges: dict[str, list[Row]], provider: str
) -> None:
    sdk = "anthropic" if provider == "anthropic" else "openai"
    types = sdk_types()
    read = 0
    for row in exchanges[provider]:
        kind = types.get((sdk, row["api"], row["stream"]))
        if kind is None:
            continue
        if row["stream"]:
            objects = [built(sdk, kind, event) for event in row["response"]]
            assert read_stream(objects, keep_text=True) == read_stream(row["response"], keep_text=True)
        else:
            answer = built(sdk, kind, row["response"])
            assert read_response(answer, keep_text=True) == read_response(row["response"], keep_text=True)
        read += 1
    assert read >= len(exchanges[provider]) - 6  # streams of Assistants have envelopes, tested below


def test_events_of_the_assistants_sdk_are_read(exchanges: dict[str, list[Row]]) -> None:
    from openai.types.beta import AssistantStreamEvent

    streams = [r for r in exchanges["openai"] if r["api"] == "assistants" and r["stream"]]
    assert streams
    for row in streams:
        events = [
            built("openai", AssistantStreamEvent, {"event": named(event), "data": event})
            for event in row["response"]
        ]
        assert leaves(read_stream(events).usage) == leaves(read_stream(row["response"]).usage) != {}


def named(event: Row) -> str:
    kind = event["object"]
    return kind if kind.endswith("delta") else f"{kind}.{event.get('status') or 'created'}"


@pytest.mark.needs("openai.lib.streaming.chat.ChatCompletionStreamState")
def test_the_chat_stream_helper_is_read_once() -> None:
    from openai.lib.streaming.chat import ChatCompletionStreamState
    from openai.types.chat import ChatCompletionChunk

    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    state: Any = ChatCompletionStreamState()
    tally = StreamTally()
    kinds = set()
    for delta, finish in (({"role": "assistant", "content": "Hi"}, None), ({}, "stop"), (None, None)):
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
        raw = {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": choices,
            "usage": None if choices else usage,
        }
        for event in state.handle_chunk(built("openai", ChatCompletionChunk, raw)):
            kinds.add(event.type)
            tally.feed(event)
    assert kinds >= {"chunk", "content.delta", "content.done"}
    assert tally.result().usage == Usage(input=5, output=1)
    assert tally.text == "Hi"
    assert tally.unreadable == 0


def test_the_message_stream_helper_is_read_once() -> None:
    from anthropic.types import RawContentBlockDeltaEvent, RawMessageStartEvent

    tally = StreamTally()
    start = {
        "type": "message_start",
        "message": {"id": "msg_1", "model": "claude-x", "usage": {"input_tokens": 4, "output_tokens": 1}},
    }
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}
    tally.feed(built("anthropic", RawMessageStartEvent, start))
    tally.feed(built("anthropic", RawContentBlockDeltaEvent, delta))
    # What `messages.stream()` adds.
    tally.feed({"type": "text", "text": "Hi", "snapshot": "Hi"})
    assert tally.text == "Hi"
    assert tally.result().usage == Usage(input=4, output=1)


def test_a_vendors_own_fields_are_read_from_the_sdks_objects() -> None:
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107, "prompt_cache_hit_tokens": 64}
    answer = built(
        "openai", ChatCompletion, {"id": "c", "object": "chat.completion", "model": "m", "usage": usage}
    )
    assert read_response(answer).usage == Usage(input=36, cached_input=64, output=7)
    last = {
        "id": "c",
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}, "finish_reason": "stop"}],
        "x_groq": {"usage": {"prompt_tokens": 3, "completion_tokens": 2}},
    }
    reading = read_stream([built("openai", ChatCompletionChunk, last)], keep_text=True)
    assert reading.usage == Usage(input=3, output=2)
    assert reading.written is not None
    assert reading.written.thoughts == "Hm."


def test_counts_behind_properties_are_read() -> None:
    class Counts:
        __slots__ = ()

        @property
        def prompt_token_count(self) -> int:
            return 5

        @property
        def candidates_token_count(self) -> int:
            return 3

    class Answer:
        usage_metadata = Counts()
        candidates = ()

    assert read_response(Answer()).usage == Usage(input=5, output=3)


def test_a_mock_is_no_answer() -> None:
    from unittest.mock import MagicMock

    reading = read_response(MagicMock())
    assert reading.usage == Usage()
    assert reading.problem is None
    reading = read_response(
        MagicMock(usage=MagicMock(prompt_tokens=5, completion_tokens=3), object="chat.completion")
    )
    assert reading.usage == Usage(input=5, output=3)
