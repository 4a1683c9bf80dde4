"""Raw and streaming responses, and the SDKs' parsing helpers: whatever the caller reads, it counts once."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import anthropic
import openai
import pydantic
import pytest
from llm_metering.capture.clients import wrap
from llm_metering.capture.response_bytes import UsageHider

MESSAGES: Any = [{"role": "user", "content": "Say hello."}]
ASK: Any = {"model": "gpt-4o-mini", "messages": MESSAGES}
CLAUDE: Any = {"model": "claude-opus-4-8", "max_tokens": 100, "messages": MESSAGES}


@pytest.fixture
def chat(bench, provider):
    with openai.OpenAI(api_key="k", base_url=provider.origin + "/v1", max_retries=0) as client:
        yield wrap(client, bench.recorder)


@pytest.fixture
def claude(bench, provider):
    with anthropic.Anthropic(api_key="k", base_url=provider.origin, max_retries=0) as client:
        yield wrap(client, bench.recorder)


@pytest.fixture
def run_async(bench, provider):
    def run(main: Any) -> Any:
        async def go() -> Any:
            async with (
                openai.AsyncOpenAI(api_key="k", base_url=provider.origin + "/v1", max_retries=0) as chat,
                anthropic.AsyncAnthropic(api_key="k", base_url=provider.origin, max_retries=0) as claude,
            ):
                return await main(wrap(chat, bench.recorder), wrap(claude, bench.recorder))

        return asyncio.run(go())

    return run


# Raw responses.


@pytest.mark.parametrize("parses", [True, False])
def test_a_raw_response_counts_whether_it_is_parsed_or_not(parses, chat, claude, bench, provider, said):
    provider.json(said.chat())
    provider.json(said.message())
    raw = chat.chat.completions.with_raw_response.create(**ASK)
    other = claude.messages.with_raw_response.create(**CLAUDE)
    if parses:
        assert raw.parse() is raw.parse()
        assert raw.parse().usage.total_tokens == 25
        assert other.parse().usage.output_tokens == 6
    assert raw.headers["content-type"] == "application/json"
    assert [record.usage.total for record in bench.records] == [25, 168]


def test_async_raw_responses_count(bench, provider, said, run_async):
    provider.json(said.chat())
    provider.json(said.message())

    async def main(chat, claude):
        raw = await chat.chat.completions.with_raw_response.create(**ASK)
        other = await claude.messages.with_raw_response.create(**CLAUDE)
        return raw.parse(), other.headers

    answer, _ = run_async(main)
    assert answer.id == "chatcmpl-1"
    assert [record.usage.total for record in bench.records] == [25, 168]


def test_a_raw_stream_counts_and_hides_the_usage_we_asked_for(chat, bench, provider, said):
    provider.events(said.chat_events())
    raw = chat.chat.completions.with_raw_response.create(**ASK, stream=True)
    stream = raw.parse()
    assert type(stream) is openai.Stream
    assert [len(chunk.choices) for chunk in stream] == [1] * 7
    assert provider.asked[0].body["stream_options"] == {"include_usage": True}
    assert (bench.only().usage.total, bench.only().provenance) == (25, "reported")


@pytest.mark.needs("openai.resources.responses")
def test_a_raw_background_response_is_recorded_like_any_other(chat, bench, provider, said):
    provider.json(said.responses(status="queued", background=True, usage=None, output=[]))
    provider.json(said.responses(background=True))
    chat.responses.with_raw_response.create(model="gpt-4o-mini", input="Hello", background=True)
    chat.responses.with_raw_response.retrieve("resp_1")
    chat.responses.retrieve("resp_1")
    assert (bench.only().id, bench.only().usage.total) == ("background-resp_1", 39)


# Streaming responses.


@pytest.mark.parametrize("way", ["parse", "read", "json", "text", "iter_bytes", "iter_text", "iter_lines"])
def test_a_streaming_response_counts_however_it_is_read(way, chat, bench, provider, said):
    provider.json(said.chat())
    with chat.chat.completions.with_streaming_response.create(**ASK) as response:
        got = getattr(response, way)()
        whole = got if way in ("parse", "read", "json", "text") else list(got)
        assert whole
        if way == "read":
            assert response.parse().usage.total_tokens == 25, "read twice, counted once"
    assert (bench.only().usage.total, bench.only().provenance) == (25, "reported")


@pytest.mark.parametrize("way", ["parse", "read", "iter_lines", "iter_bytes"])
def test_an_async_streaming_response_counts_however_it_is_read(way, bench, provider, said, run_async):
    provider.json(said.chat())

    async def main(chat, claude):
        async with chat.chat.completions.with_streaming_response.create(**ASK) as response:
            if way.startswith("iter"):
                assert [part async for part in getattr(response, way)()]
            else:
                assert await getattr(response, way)()

    run_async(main)
    assert bench.only().usage.total == 25


def test_a_streaming_response_read_line_by_line_shows_no_usage_that_we_asked_for(chat, bench, provider, said):
    provider.events(said.chat_events())
    with chat.chat.completions.with_streaming_response.create(**ASK, stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
    assert len(lines) == 8
    assert lines[-1] == "data: [DONE]"
    assert not any('"choices": []' in line for line in lines)
    assert bench.only().usage.total == 25


def test_a_streaming_response_of_events_can_be_parsed_into_a_stream(bench, provider, said, run_async):
    provider.events(said.chat_events())
    provider.events(said.message_events())

    async def main(chat, claude):
        async with chat.chat.completions.with_streaming_response.create(**ASK, stream=True) as response:
            chunks = [chunk async for chunk in await response.parse()]
        async with claude.messages.with_streaming_response.create(**CLAUDE, stream=True) as response:
            return chunks, [event async for event in await response.parse()]

    chunks, events = run_async(main)
    assert len(chunks) == 7
    assert events[-1].type == "message_stop"
    assert [record.usage.total for record in bench.records] == [25, 168]


def test_a_streaming_response_that_is_left_early_bills_what_came(chat, bench, provider, said):
    gate = threading.Event()
    provider.events(said.chat_events(), first=4, gate=gate)
    with chat.chat.completions.with_streaming_response.create(**ASK, stream=True) as response:
        for line in response.iter_lines():
            if '"content": ","' in line:
                break
    assert bench.only().provenance == "partial"
    assert bench.only().usage.output_total == 3


def test_a_streaming_response_that_is_not_read_records_nothing(chat, bench, provider, said):
    provider.json(said.chat())
    with chat.chat.completions.with_streaming_response.create(**ASK):
        pass
    assert bench.records == []


# Parsing helpers.


class City(pydantic.BaseModel):
    name: str


@pytest.mark.needs("openai.resources.responses", "openai.resources.chat.completions.Completions.parse")
def test_parse_helpers_count(chat, bench, provider, said):
    provider.json(said.chat('{"name": "Paris"}'))
    provider.json(said.responses('{"name": "Paris"}'))
    answer = chat.chat.completions.parse(**ASK, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Paris")
    other = chat.responses.parse(model="gpt-4o-mini", input="Where?", text_format=City)
    assert other.output_parsed == City(name="Paris")
    assert [record.usage.total for record in bench.records] == [25, 39]


@pytest.mark.needs("anthropic.resources.messages.Messages.parse")
def test_the_anthropic_parse_helper_counts(claude, bench, provider, said):
    provider.json(said.message('{"name": "Paris"}'))
    answer = claude.messages.parse(**CLAUDE, output_format=City)
    assert answer.parsed_output == City(name="Paris")
    assert bench.only().usage.total == 168


@pytest.mark.needs("openai.resources.chat.completions.Completions.parse")
def test_async_parse_helpers_count(bench, provider, said, run_async):
    provider.json(said.chat('{"name": "Paris"}'))

    async def main(chat, claude):
        return await chat.chat.completions.parse(**ASK, response_format=City)

    assert run_async(main).choices[0].message.parsed == City(name="Paris")
    assert bench.only().usage.total == 25


@pytest.mark.needs("openai.resources.chat.completions.Completions.parse")
def test_an_answer_that_cannot_be_parsed_was_paid_for_and_the_error_is_the_same(bench, provider, said):
    provider.json(said.chat('{"city": "Paris"}'))
    raised = []
    for wrapped in (False, True):
        with openai.OpenAI(api_key="k", base_url=provider.origin + "/v1") as client:
            if wrapped:
                wrap(client, bench.recorder)
            with pytest.raises(pydantic.ValidationError) as caught:
                client.chat.completions.parse(**ASK, response_format=City)
            raised.append(str(caught.value))
    assert raised[0] == raised[1]
    assert bench.only().usage.total == 25


@pytest.mark.needs("openai.resources.chat.completions.Completions.parse")
def test_an_answer_cut_by_its_length_was_paid_for(chat, bench, provider, said):
    body = said.chat('{"na')
    body["choices"][0]["finish_reason"] = "length"
    provider.json(body)
    with pytest.raises(openai.LengthFinishReasonError):
        chat.chat.completions.parse(**ASK, response_format=City)
    assert bench.only().usage.total == 25


def test_an_answer_that_strict_validation_refuses_was_paid_for(bench, provider, said):
    provider.json({**said.chat(), "created": "yesterday"})
    with (
        openai.OpenAI(
            api_key="k", base_url=provider.origin + "/v1", _strict_response_validation=True
        ) as client,
        pytest.raises(openai.APIResponseValidationError),
    ):
        wrap(client, bench.recorder).chat.completions.create(**ASK)
    assert bench.only().usage.total == 25


# Odd answers.


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_an_answer_that_is_no_json_is_as_it_was(body, bench, provider):
    provider.raw(body)
    outcomes = []
    for wrapped in (False, True):
        with openai.OpenAI(api_key="k", base_url=provider.origin + "/v1", max_retries=0) as client:
            if wrapped:
                wrap(client, bench.recorder)
            try:
                outcomes.append(repr(client.chat.completions.create(**ASK)))
            except Exception as exc:
                outcomes.append(f"{type(exc)} {exc}")
    assert outcomes[0] == outcomes[1]
    assert bench.records == []
    assert bench.notes.counts["client.unread"] == 1


# Hiding, by bytes.


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
def test_the_usage_event_is_hidden_wherever_the_bytes_are_cut(end, said):
    events = [f"data: {json.dumps(event)}{end}" for event in said.chat_events(["Hi", " é"])]
    usage = events.pop()
    first = f": keep-alive{end}event: x\r\ndata: {{}}{end}" if end != "\r\r" else ""
    shown = (first + "".join(events) + f"data: [DONE]{end}").encode()
    whole = shown.replace(b"data: [DONE]", usage.encode() + b"data: [DONE]")
    for size in (1, 2, 3, 7, 50, 10_000):
        hider = UsageHider()
        got = b"".join(hider.feed(whole[at : at + size]) for at in range(0, len(whole), size))
        assert got + hider.close() == shown


def test_a_stream_of_bytes_without_an_end_is_shown_as_far_as_it_came(said):
    hider = UsageHider()
    event = f"data: {json.dumps(said.chat_events()[1])}".encode()
    assert hider.feed(event) == b""
    assert hider.close() == event


@pytest.mark.parametrize("size", [1000, 70_001, 10**9])
def test_bytes_that_hold_no_event_for_long_are_not_kept_back(size, said):
    usage = f"data: {json.dumps(said.chat_events()[-1])}\n\n".encode()
    long = b'data: {"usage": {}, "choices": [1], "x": "' + b"x" * 200_000 + b'"}\n\n'
    hider, held, got = UsageHider(), 0, b""
    for at in range(0, len(long), size):
        got += hider.feed(long[at : at + size])
        held = max(held, min(at + size, len(long)) - len(got))
    assert held <= 64 * 1024
    assert got + hider.feed(usage + b"data: [DONE]\n\n") + hider.close() == long + b"data: [DONE]\n\n"
