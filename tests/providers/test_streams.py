"""Streams as they come: broken off, failing, odd, and what is known of them on the way."""

from __future__ import annotations

from typing import Any

import pytest
from llm_metering.providers import StreamTally, more_steps, read_stream, steps
from llm_metering.usage import Usage, Written


def chunk(delta: dict[str, Any] | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta or {}, "finish_reason": more.pop("finish", None)}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "model": "gpt-4o",
        "choices": [choice],
        **more,
    }


def text_chunks(*pieces: str) -> list[dict[str, Any]]:
    return [chunk({"content": piece}) for piece in pieces]


ANTHROPIC_START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "model": "claude-x",
        "usage": {"input_tokens": 20, "cache_read_input_tokens": 5, "output_tokens": 1},
    },
}


def anthropic_text(piece: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}


def test_a_stream_that_breaks_off_keeps_the_text_that_came() -> None:
    reading = read_stream(text_chunks("Hello", ", ", "world"))
    assert (reading.provenance, reading.text, reading.usage) == ("partial", "Hello, world", Usage())


def test_a_stream_that_ends_without_usage_is_whole() -> None:
    reading = read_stream([*text_chunks("Hello"), chunk(finish="stop")])
    assert (reading.provenance, reading.text, reading.usage) == ("reported", "Hello", Usage())


def test_a_stream_of_two_choices_is_whole_only_when_both_have_ended() -> None:
    events = [
        chunk({"content": "A"}),
        chunk({"content": "B"}, index=1),
        chunk(finish="stop"),
    ]
    assert read_stream(events).provenance == "partial"
    reading = read_stream([*events, chunk(index=1, finish="stop")])
    assert reading.provenance == "reported"
    assert reading.written == Written(("A", "B"))


def test_an_anthropic_stream_that_breaks_off_keeps_the_input_and_the_text() -> None:
    reading = read_stream([ANTHROPIC_START, anthropic_text("Hel"), anthropic_text("lo")])
    assert reading.usage == Usage(input=20, cached_input=5, output=1)
    assert (reading.provenance, reading.text) == ("partial", "Hello")


@pytest.mark.parametrize(
    "error",
    [
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        {"error": {"message": "boom", "code": 500}},
    ],
)
def test_an_error_in_mid_stream_is_partial(error: dict[str, Any]) -> None:
    for events in ([ANTHROPIC_START, anthropic_text("Hi"), error], [*text_chunks("Hi"), error]):
        reading = read_stream(events)
        assert (reading.provenance, reading.text) == ("partial", "Hi")


def test_a_failed_response_is_partial_unless_its_usage_was_reported() -> None:
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"id": "resp_1", "model": "m"}},
        {"type": "response.output_text.delta", "delta": "Hi"},
    ]
    failed = {"type": "response.failed", "response": {"id": "resp_1", "model": "m", "usage": None}}
    reading = read_stream([*events, failed])
    assert (reading.provenance, reading.text) == ("partial", "Hi")
    billed = {**failed, "response": {**failed["response"], "usage": {"input_tokens": 3, "output_tokens": 1}}}  # type: ignore[dict-item]
    reading = read_stream([*events, billed])
    assert (reading.provenance, reading.usage) == ("reported", Usage(input=3, output=1))


def test_tool_calls_are_put_together() -> None:
    call = {"index": 0, "id": "call_1", "type": "function"}
    events = [
        chunk({"tool_calls": [{**call, "function": {"name": "get_weather", "arguments": ""}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]}),
        chunk({"tool_calls": [{"index": 1, "function": {"name": "now", "arguments": "{}"}}]}),
    ]
    assert read_stream(events).written == Written((), (("get_weather", '{"city":"Oslo"}'), ("now", "{}")))


def test_anthropic_tool_calls_and_thinking_are_put_together() -> None:
    events = [
        ANTHROPIC_START,
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "name": "f"}},
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": '{"a":1}'},
        },
    ]
    assert read_stream(events).written == Written((), (("f", '{"a":1}'),), "Hm.")


def test_responses_calls_and_thoughts_are_put_together() -> None:
    events = [
        {"type": "response.created", "response": {"id": "resp_1", "model": "m"}},
        {"type": "response.reasoning_summary_text.delta", "delta": "Hm."},
        {
            "type": "response.output_item.added",
            "output_index": 1,
            "item": {"type": "function_call", "name": "f"},
        },
        {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{}"},
        {"type": "response.refusal.delta", "delta": "No."},
    ]
    assert read_stream(events).written == Written(("No.",), (("f", "{}"),), "Hm.")


def test_deepseek_reasoning_is_kept_apart() -> None:
    events = [chunk({"content": None, "reasoning_content": "Hm."}), chunk({"content": "Yes"})]
    assert read_stream(events).written == Written(("Yes",), (), "Hm.")


def test_tokens_so_far_grow_with_the_deltas() -> None:
    tally = StreamTally()
    assert tally.tokens_so_far == 0
    for n, event in enumerate(text_chunks(*"abcdefghij"), 1):
        tally.feed(event)
        assert tally.tokens_so_far == n
    assert tally.text == "abcdefghij"
    tally.feed(chunk({"content": "x" * 400}))
    assert tally.tokens_so_far == 102
    assert tally.text.endswith("x" * 400)
    assert tally.tokens_so_far == 102


def test_tokens_so_far_take_in_calls_thoughts_and_further_choices() -> None:
    tally = StreamTally()
    tally.feed(chunk({"content": "a"}, index=1))
    tally.feed(chunk({"reasoning_content": "b"}))
    tally.feed(chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "c"}}]}))
    assert tally.tokens_so_far == 3


def test_what_came_so_far_can_be_billed_at_any_time() -> None:
    tally = StreamTally()
    tally.feed(ANTHROPIC_START)
    for _ in range(7):
        tally.feed(anthropic_text("word"))
    reading = tally.so_far()
    assert reading.usage == Usage(input=20, cached_input=5, output=7)
    assert (reading.provenance, reading.text, reading.response_id) == ("partial", None, "msg_1")
    assert not tally.complete


@pytest.mark.parametrize(
    "event",
    [
        None, 0, 1.5, "text", b"bytes", [], {}, object(), {"choices": 5}, {"choices": [None]},
        {"choices": [5]}, {"choices": [{"delta": 5}]}, {"choices": [{"delta": {"content": 5}}]},
        {"choices": [{"delta": {"content": [None, {"text": 5}]}}]}, {"choices": {"a": 1}},
        {"choices": [{"index": "x", "delta": {"content": "a"}}]}, {"choices": [{"index": [], "delta": {}}]},
        {"choices": [{"delta": {"tool_calls": [None]}}]}, {"choices": [{"delta": {"tool_calls": 5}}]},
        {"type": "response.output_text.delta", "delta": None}, {"type": 5}, {"object": 5}, {"usage": 5},
        {"type": "message_start"}, {"type": "message_delta", "usage": "x"}, {"type": "content_block_delta"},
        {"type": "response.completed", "response": []}, {"chunk": {"bytes": b"{"}}, {"event": 1, "data": 2},
        {"object": "thread.run", "usage": []}, {"candidates": 5}, {"candidates": [{"content": 5}]},
    ],
)  # fmt: skip
def test_no_event_raises(event: Any) -> None:
    for events in ([event], [event, event], [*text_chunks("a"), event], [ANTHROPIC_START, event]):
        tally = StreamTally()
        for each in events:
            tally.feed(each)
        assert isinstance(tally.tokens_so_far, int)
        tally.so_far()
        tally.result()
        assert tally.result() == tally.result()


def test_an_object_that_raises_at_every_touch_does_not_matter() -> None:
    class Hostile:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

    tally = StreamTally()
    tally.feed(Hostile())
    tally.feed(chunk({"content": "a"}))
    tally.feed(Hostile())
    assert tally.text == "a"


def test_the_provider_may_be_named_by_the_caller() -> None:
    reading = read_stream(text_chunks("a"), provider="azure", api="chat")
    assert (reading.provider, reading.api) == ("azure", "chat")


def test_an_error_after_everything_came_leaves_it_reported() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    events = [*text_chunks("a"), chunk(finish="stop", usage=usage), {"error": {"message": "late"}}]
    assert read_stream(events).provenance == "reported"


def test_keep_text_keeps_the_text_of_a_reported_stream() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    events = [*text_chunks("a", "b"), chunk(finish="stop", usage=usage)]
    assert read_stream(events).text is None
    assert read_stream(events, keep_text=True).text == "ab"


def test_running_totals_of_two_choices_are_final_only_when_both_have_ended() -> None:
    running = {"prompt_tokens": 5, "completion_tokens": 2}
    events = [
        chunk({"content": "A"}, usage=running),
        chunk({"content": "B"}, index=1, usage=running),
        chunk(finish="stop", usage=running),
    ]
    reading = read_stream(events)
    assert (reading.provenance, reading.usage) == ("partial", Usage(input=5, output=2))
    assert read_stream([*events, chunk(index=1, finish="stop", usage=running)]).provenance == "reported"


def test_the_end_of_a_message_makes_its_usage_final() -> None:
    tally = StreamTally()
    tally.feed(ANTHROPIC_START)
    tally.feed({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 7}})
    assert not tally.complete
    tally.feed({"type": "message_stop"})
    assert tally.complete
    assert tally.result().usage == Usage(input=20, cached_input=5, output=7)


METRICS = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 1, "outputTokenCount": 1}}


@pytest.mark.parametrize(
    ("more", "step"),
    [
        ({}, steps.chat),
        ({"type": None, "event": None}, steps.chat),
        ({"type": "response.created"}, steps.responses),
        ({"event_type": "stream-start"}, steps.cohere),
        ({"event": "thread.message", "data": {"object": "thread.run"}}, steps.runs),
        (METRICS, steps.bedrock),
        ({"token": {"text": "a"}, "generated_text": None}, more_steps.tgi),
    ],
)
def test_what_else_a_chunk_of_a_chat_holds_may_show_whose_it_is(more, step):
    event = {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [], **more}
    found = steps.step_of(event, None)
    assert found is not None
    assert found[1] is step
