"""What a provider did not report is counted; what it did report stays."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_metering.counting import audit_difference, count_text, fill, recount
from llm_metering.usage import Reading, Usage, Written

from .test_images import png

TEXT = "Hello, how can I help you today?"
CHAT = Reading(model="gpt-4o-2024-08-06", provider="openai", api="chat", text=TEXT)
REQUEST = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"}
            },
            "required": ["location"],
        },
    },
}


def test_prompt_and_answer_are_counted() -> None:
    reading = fill(CHAT, REQUEST)
    assert reading.usage == Usage(input=8, output=count_text(TEXT, model="gpt-4o"))
    assert (reading.provenance, reading.uncounted, reading.text) == ("counted", None, None)
    assert reading.bound == 0.05


@pytest.mark.parametrize(
    "usage",
    [Usage(input=9, output=0), Usage(input=0, output=0), Usage(output=5), Usage(input=9)],
)
def test_what_was_reported_is_never_replaced(usage: Usage) -> None:
    reading = replace(CHAT, usage=usage)
    assert fill(reading, REQUEST) is reading


def test_a_problem_is_left_as_it_is() -> None:
    reading = replace(CHAT, problem="usage is -5")
    assert fill(reading, REQUEST) is reading
    assert recount(reading, REQUEST) is reading


def test_a_stream_that_broke_off_is_counted_as_far_as_it_came() -> None:
    reading = fill(replace(CHAT, provenance="partial"), REQUEST)
    assert reading.usage == Usage(input=8, output=9)
    assert reading.provenance == "partial"


def test_a_broken_off_anthropic_stream_keeps_its_reported_input() -> None:
    usage = Usage(input=20, cached_input=100, cached_write=0, output=1)
    reading = Reading(usage, "claude-x", "msg_1", "partial", "anthropic", "messages", text=TEXT)
    filled = fill(reading, {"messages": [{"role": "user", "content": "x" * 999}]})
    assert filled.usage == replace(usage, output=round(9 * 1.155))
    assert filled.provenance == "partial"


def test_a_running_total_is_a_floor() -> None:
    usage = Usage(input=20, output=500)
    reading = Reading(usage, "claude-x", "msg_1", "partial", "anthropic", "messages", text=TEXT)
    assert fill(reading, None).usage == usage


def test_an_unknown_model_is_estimated_with_o200k() -> None:
    reading = fill(replace(CHAT, model="house-model"), REQUEST)
    assert reading.provenance == "estimated"
    assert reading.bound is None
    assert reading.usage.output is not None


def test_the_model_of_the_call_is_used_where_the_answer_names_none() -> None:
    reading = fill(Reading(text="お誕生日おめでとう"), "誕生日", model="gpt-4")
    assert reading.usage == Usage(input=count_text("誕生日", model="gpt-4"), output=9)
    assert fill(replace(CHAT, model=None), REQUEST).provenance == "counted"


def test_plain_text_has_nothing_wrapped_round_it() -> None:
    for model in ("gpt-4o", "gpt-5-mini", "gpt-4.1-mini"):
        reading = fill(Reading(text="hello world"), "hello world", model=model)
        assert reading.usage == Usage(input=2, output=2)


def test_without_a_request_the_answer_alone_is_counted() -> None:
    reading = fill(CHAT)
    assert reading.usage == Usage(output=9)
    assert reading.uncounted == "the prompt"
    assert reading.provenance == "estimated"


def test_hidden_reasoning_is_never_billed_from_text() -> None:
    reading = fill(replace(CHAT, model="gpt-5-mini"), REQUEST)
    assert reading.provenance == "estimated"
    assert reading.uncounted == "hidden reasoning"
    assert reading.bound is None


def test_reasoning_that_was_shown_is_counted_apart() -> None:
    words = Written(("Yes",), (), "Let me think about it.")
    reading = fill(Reading(model="deepseek-reasoner", api="chat", written=words), REQUEST)
    assert reading.usage.reasoning == 6
    assert reading.usage.output == 1


def test_several_choices_are_all_counted() -> None:
    reading = fill(replace(CHAT, written=Written((TEXT, TEXT, TEXT))), REQUEST)
    assert reading.usage.output == 27


def test_a_tool_call_is_counted_with_what_is_wrapped_round_it() -> None:
    words = Written((), (("get_current_weather", '{"location":"San Francisco"}'),))
    request = {
        "messages": [{"role": "user", "content": "What's the weather like in San Francisco?"}],
        "tools": [TOOL],
    }
    reading = Reading(model="gpt-3.5-turbo-0125", api="chat", written=words)
    filled = fill(reading, request)
    # As gpt-3.5-turbo-0125 reported it.
    assert filled.usage == Usage(input=68, output=16)
    assert (filled.provenance, filled.bound) == ("estimated", 0.30)


def test_a_schema_is_counted() -> None:
    schema = {
        "properties": {
            "rating": {"title": "Rating", "type": "integer"},
            "joke": {"title": "Joke", "type": "string"},
        },
        "required": ["rating", "joke"],
        "title": "StructuredAnswer",
        "type": "object",
        "additionalProperties": False,
    }
    request = {
        "messages": [{"role": "user", "content": "Tell me a joke about opentelemetry"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"schema": schema, "name": "StructuredAnswer", "strict": True},
        },
    }
    # As gpt-4o-2024-08-06 reported it.
    assert fill(CHAT, request).usage.input == 68


def test_an_image_is_counted_from_its_size() -> None:
    url = "data:image/png;base64," + base64.b64encode(png(1024, 1024)).decode()
    content = [
        {"type": "text", "text": "Hello"},
        {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
    ]
    reading = fill(CHAT, {"messages": [{"role": "user", "content": content}]})
    assert reading.usage.input == 8 + 765
    assert reading.provenance == "estimated"
    parts = [{"type": "input_text", "text": "Hello"}, {"type": "input_image", "image_url": url}]
    reading = fill(replace(CHAT, api="responses"), {"input": [{"role": "user", "content": parts}]})
    assert reading.usage.input == 8 + 765


def test_a_remote_image_is_marked_not_fetched() -> None:
    content = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
    reading = fill(CHAT, {"messages": [{"role": "user", "content": content}]})
    assert reading.uncounted == "an image of unknown size"
    assert reading.bound is None


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"tools": [{"type": "web_search_preview"}]}, "hosted tools (web_search_preview)"),
        ({"previous_response_id": "resp_0"}, "what previous_response_id refers to"),
        ({"conversation": "conv_1"}, "what conversation refers to"),
    ],
)
def test_what_cannot_be_counted_is_named(more: dict[str, Any], named: str) -> None:
    reading = fill(replace(CHAT, api="responses"), {"input": "Hello", **more})
    assert reading.uncounted == named
    assert reading.bound is None
    assert reading.provenance == "estimated"


def test_audio_and_files_are_named() -> None:
    content = [{"type": "input_audio", "input_audio": {"data": "…", "format": "wav"}}]
    reading = fill(CHAT, {"messages": [{"role": "user", "content": content}]})
    assert reading.uncounted == "a input_audio in a message"


def test_embeddings_have_no_output() -> None:
    reading = Reading(model="text-embedding-3-small", api="embeddings")
    for given_input in ("hello world", ["hello", " world"], [15339, 1917], [[15339], [1917]]):
        assert fill(reading, {"input": given_input}).usage == Usage(input=2)


def test_completions_have_nothing_wrapped_round_them() -> None:
    reading = Reading(model="gpt-3.5-turbo-instruct", api="completions", text="hello world")
    assert fill(reading, {"prompt": ["hello world", "hello world"]}).usage == Usage(input=4, output=2)


def test_an_answer_that_nobody_knows_is_not_counted_as_nothing() -> None:
    reading = Reading(response_id="x")
    assert fill(reading) is reading
    assert fill(reading, {"unheard": "of"}) is reading


def test_a_rerank_answer_is_left_as_it_is() -> None:
    reading = Reading(model="rerank-x", api="rerank")
    assert fill(reading, {"query": "a", "documents": ["b"]}) is reading


def test_every_shape_of_a_request_is_understood() -> None:
    payload = json.dumps(REQUEST)
    messages = REQUEST["messages"]
    for request in (
        REQUEST,
        payload.encode(),
        messages,
        [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
    ):
        assert fill(CHAT, request).usage.input == 8
    gemini = Reading(model="gemini-x", api="generate_content", text="x")
    for contents in ("Hello", ["Hello"], [{"role": "user", "parts": [{"text": "Hello"}]}]):
        assert fill(gemini, {"contents": contents}).usage.input == 1
    claude = Reading(model="claude-x", api="messages", text="x")
    request = {
        "system": [{"type": "text", "text": "Hello"}],
        "messages": [{"role": "user", "content": "Hello"}],
    }
    assert fill(claude, request).usage.input == round(2 * 1.155 + 8)


def test_objects_of_the_sdks_are_understood_in_a_conversation() -> None:
    from openai.types.chat import ChatCompletionMessage

    said = ChatCompletionMessage(role="assistant", content="Hello")
    as_dict = {"role": "assistant", "content": "Hello"}
    messages: list[Any] = REQUEST["messages"]  # type: ignore[assignment]
    assert (
        fill(CHAT, {"messages": [*messages, said]}).usage
        == fill(CHAT, {"messages": [*messages, as_dict]}).usage
    )


def test_a_recount_ignores_what_was_reported() -> None:
    reading = replace(CHAT, usage=Usage(input=900, cached_input=100, output=900))
    assert recount(reading, REQUEST).usage == Usage(input=8, output=9)


@pytest.mark.parametrize(
    ("usage", "differs"),
    [
        (Usage(input=8, output=9), None),
        (Usage(input=4, cached_input=4, output=9), None),
        (Usage(input=8, output=13), None),
        (Usage(input=8, output=9, reasoning=500), None),
        (Usage(input=8, output=15), "answer: 15 reported, 9 counted"),
        (Usage(input=80, output=9), "prompt: 80 reported, 8 counted"),
    ],
)
def test_an_audit_finds_what_differs_beyond_the_bound(usage: Usage, differs: str | None) -> None:
    reported = replace(CHAT, usage=usage)
    found = audit_difference(reported, recount(reported, REQUEST))
    assert (found is None) == (differs is None)
    assert differs is None or differs in (found or "")


def test_an_audit_holds_nothing_to_a_bound_that_is_not_there() -> None:
    reported = replace(CHAT, model="house-model", usage=Usage(input=900, output=900))
    assert audit_difference(reported, recount(reported, REQUEST)) is None
    hosted = {"input": "Hello", "tools": [{"type": "web_search"}]}
    reported = replace(CHAT, api="responses", usage=Usage(input=900, output=9))
    assert audit_difference(reported, recount(reported, hosted)) is None


def test_a_request_that_is_nested_too_deep_is_marked() -> None:
    deep: Any = "Hello"
    for _ in range(50_000):
        deep = [{"type": "tool_result", "content": deep}]
    reading = fill(CHAT, {"messages": [{"role": "user", "content": deep}]})
    assert reading.uncounted is not None


def test_a_schema_whose_references_multiply_is_cut_off() -> None:
    node = {"type": "object", "properties": {str(n): {"$ref": "#/$defs/node"} for n in range(20)}}
    tool = {"type": "function", "name": "f", "parameters": {**node, "$defs": {"node": node}}}
    reading = fill(replace(CHAT, api="responses"), {"input": "Hello", "tools": [tool]})
    assert reading.usage.input is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["messages", "role", "content", "type", "text", "input", "tools", "function", "name",
             "parameters", "properties", "$ref", "enum", "items", "anyOf", "image_url", "url", "source",
             "data", "tool_calls", "response_format", "json_schema", "schema", "contents", "parts", "system",
             "prompt", "config", "arguments", "tool_choice", "functions", "inputSchema", "json", "toolUse",
             "tool_result"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    JSON, st.sampled_from(["gpt-4o", "gpt-5", "claude-x", "x"]), st.sampled_from(["chat", "responses", None])
)
def test_no_request_raises(request: Any, model: str, api: str | None) -> None:
    reading = fill(Reading(model=model, api=api, text="a", provenance="partial"), request)
    assert reading.usage.output is not None
