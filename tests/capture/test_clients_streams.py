"""Streams of wrapped clients: however they are read, broken off, closed, dropped or fail."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from typing import Any

import anthropic
import openai
import pytest
from llm_metering import counting
from llm_metering.capture import context
from llm_metering.capture.clients import wrap

MESSAGES: Any = [{"role": "user", "content": "Say hello."}]
ASK: Any = {"model": "gpt-4o-mini", "messages": MESSAGES, "stream": True}
CLAUDE: Any = {"model": "claude-opus-4-8", "max_tokens": 100, "messages": MESSAGES, "stream": True}
PROMPT = counting.count_text("Say hello.", model="gpt-4o") + 3 + 1 + 3


def counted(text: str) -> int:
    return counting.count_text(text, model="gpt-4o")


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
    """Runs a coroutine function with a wrapped async client of each SDK."""

    def run(main: Any) -> Any:
        async def go() -> Any:
            async with (
                openai.AsyncOpenAI(api_key="k", base_url=provider.origin + "/v1", max_retries=0) as chat,
                anthropic.AsyncAnthropic(api_key="k", base_url=provider.origin, max_retries=0) as claude,
            ):
                return await main(wrap(chat, bench.recorder), wrap(claude, bench.recorder))

        return asyncio.run(go())

    return run


# Read to the end.


def test_the_usage_we_asked_for_is_recorded_and_not_shown(chat, bench, provider, said):
    provider.events(said.chat_events())
    stream = chat.chat.completions.create(**ASK)
    assert type(stream) is openai.Stream
    chunks = list(stream)
    assert provider.asked[0].body["stream_options"] == {"include_usage": True}
    assert [len(chunk.choices) for chunk in chunks] == [1] * 7
    assert all(chunk.usage is None for chunk in chunks)
    assert (bench.only().usage.total, bench.only().provenance) == (25, "reported")


def test_async_streams_are_recorded_like_the_others(bench, provider, said, run_async):
    provider.events(said.chat_events())
    provider.events(said.message_events())

    async def main(chat, claude):
        stream = await chat.chat.completions.create(**ASK)
        assert type(stream) is openai.AsyncStream
        chunks = [chunk async for chunk in stream]
        events = [event async for event in await claude.messages.create(**CLAUDE)]
        return chunks, events

    chunks, events = run_async(main)
    assert len(chunks) == 7
    assert events[-1].type == "message_stop"
    assert [record.usage.total for record in bench.records] == [25, 168]
    assert not bench.sink.rows


def test_a_stream_as_a_context_manager_by_next_and_in_a_loop_counts_the_same(chat, bench, provider, said):
    provider.events(said.chat_events())
    with chat.chat.completions.create(**ASK) as stream:
        assert stream.response.status_code == 200
        first = next(stream)
        rest = list(stream)
    assert first.choices[0].delta.role == "assistant"
    assert len(rest) == 6
    assert bench.only().usage.total == 25


@pytest.mark.needs("openai.resources.responses")
def test_responses_streams_are_recorded(chat, bench, provider, said):
    provider.events(said.responses_events())
    events = list(chat.responses.create(model="gpt-4o-mini", input="Hello", stream=True))
    assert events[-1].type == "response.completed"
    assert "stream_options" not in provider.asked[0].body
    assert (bench.only().usage.total, bench.only().response_id) == (39, "resp_1")


def test_reading_on_after_the_end_is_as_it_was(chat, bench, provider, said):
    provider.events(said.chat_events())
    stream = chat.chat.completions.create(**ASK)
    list(stream)
    assert list(stream) == []
    with pytest.raises(StopIteration):
        next(stream)
    stream.close()
    bench.only()


# stream_options.


def test_a_caller_who_asks_for_usage_sees_it(chat, bench, provider, said):
    provider.events(said.chat_events())
    chunks = list(chat.chat.completions.create(**ASK, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 25
    assert bench.only().usage.total == 25


@pytest.mark.parametrize("way", ["argument", "extra_body"])
def test_a_caller_who_refuses_usage_is_respected_and_we_count(way, chat, bench, provider, said):
    provider.events(said.chat_events(usage=False))
    options: Any = {"stream_options": {"include_usage": False}}
    given = options if way == "argument" else {"extra_body": options}
    list(chat.chat.completions.create(**ASK, **given))
    assert provider.asked[0].body["stream_options"] == {"include_usage": False}
    record = bench.only()
    assert record.provenance == "counted"
    assert (record.usage.input_total, record.usage.output_total) == (PROMPT, counted("Hello there, friend."))


@pytest.mark.parametrize("way", ["argument", "extra_body"])
def test_other_stream_options_of_the_caller_are_kept_and_not_changed_in_place(
    way, chat, bench, provider, said
):
    provider.events(said.chat_events())
    options: Any = {"include_obfuscation": False}
    if way == "argument":
        chunks = list(chat.chat.completions.create(**ASK, stream_options=options))
    else:
        chunks = list(chat.chat.completions.create(**ASK, extra_body={"stream_options": options}))
    assert provider.asked[0].body["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert options == {"include_obfuscation": False}
    assert len(chunks) == 7


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "Unrecognized request argument supplied: stream_options"),
        (422, {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}]}),
    ],
)
def test_a_server_that_refuses_stream_options_is_asked_again_without_and_remembered(
    status, message, chat, bench, provider, said
):
    provider.json({"error": {"message": message}} if isinstance(message, str) else message, status=status)
    provider.events(said.chat_events(usage=False))
    assert len(list(chat.chat.completions.create(**ASK))) == 7
    assert len(list(chat.with_options(timeout=9).chat.completions.create(**ASK))) == 7
    assert [asked.body.get("stream_options") for asked in provider.asked] == [
        {"include_usage": True},
        None,
        None,
    ]
    assert bench.sink.tokens() == [(PROMPT, counted("Hello there, friend."))] * 2
    assert bench.notes.counts["client.stream_options_refused"] == 1


def test_the_async_client_asks_again_too(bench, provider, said, run_async):
    provider.json({"error": {"message": "stream_options is not supported"}}, status=400)
    provider.events(said.chat_events(usage=False))

    async def main(chat, claude):
        return [chunk async for chunk in await chat.chat.completions.create(**ASK)]

    assert len(run_async(main)) == 7
    assert len(provider.asked) == 2
    bench.only()


def test_any_other_refusal_is_raised_as_it_is(chat, bench, provider):
    provider.json({"error": {"message": "messages: too long"}}, status=400)
    with pytest.raises(openai.BadRequestError, match="too long"):
        chat.chat.completions.create(**ASK)
    assert len(provider.asked) == 1


def test_a_refusal_of_the_second_request_is_raised(chat, bench, provider):
    provider.json({"error": {"message": "stream_options?"}}, status=400)
    provider.json({"error": {"message": "model: unknown"}}, status=404)
    with pytest.raises(openai.NotFoundError) as caught:
        chat.chat.completions.create(**ASK)
    assert caught.value.__context__ is None or "stream_options" not in str(caught.value.__context__)
    assert bench.records == []


def test_a_refusal_of_what_a_user_wrote_takes_nobody_elses_reported_usage_away(chat, bench, provider, said):
    message = "Invalid value: 'stream_options'. Supported values are: 'system', 'assistant', 'user'."
    provider.json({"error": {"message": message}}, status=400)
    provider.json({"error": {"message": message}}, status=400)
    provider.events(said.chat_events())
    role: Any = [{"role": "stream_options", "content": "Hello"}]
    with pytest.raises(openai.BadRequestError, match="Invalid value"):
        chat.chat.completions.create(**{**ASK, "messages": role})
    assert bench.records == []
    list(chat.chat.completions.create(**ASK))
    assert provider.asked[-1].body["stream_options"] == {"include_usage": True}
    assert bench.only().provenance == "reported"


def test_whole_answers_are_asked_for_nothing_more(chat, bench, provider, said):
    provider.json(said.chat())
    chat.chat.completions.create(model="m", messages=MESSAGES)
    assert set(provider.asked[0].body) == {"model", "messages"}


# How providers report.


@pytest.mark.needs("openai.types.ImageGenStreamEvent")
def test_streamed_pictures_and_transcriptions_count_what_their_last_event_reports(chat, bench, provider):
    usage = {"total_tokens": 110, "input_tokens": 10, "output_tokens": 100}
    done = {"type": "image_generation.completed", "b64_json": "", "usage": usage}
    provider.events([{"type": "image_generation.partial_image", "b64_json": ""}, done])
    list(chat.images.generate(model="gpt-image-1", prompt="A fox", stream=True))
    provider.replies.clear()
    provider.events([{"type": "transcript.text.delta", "delta": "Hi"}, {"type": "transcript.text.done"}])
    list(chat.audio.transcriptions.create(model="gpt-4o-transcribe", file=b"RIFF", stream=True))
    assert (bench.only().usage.total, bench.only().model) == (110, "gpt-image-1")
    assert bench.sink.row_history == []


def test_usage_beside_a_last_choice_is_counted_and_that_chunk_is_shown(chat, bench, provider, said):
    events = said.chat_events(usage=False)
    events[-1]["usage"] = said.chat_usage()
    provider.events(events)
    chunks = list(chat.chat.completions.create(**ASK))
    assert chunks[-1].usage.total_tokens == 25
    assert bench.only().usage.total == 25
    assert bench.only().usage.reasoning == 2


def test_usage_that_is_repeated_in_every_chunk_counts_once(chat, bench, provider, said):
    events = said.chat_events(usage=False)
    for n, event in enumerate(events):
        event["usage"] = said.chat_usage(20, min(n + 2, 5))
    provider.events(events)
    assert len(list(chat.chat.completions.create(**ASK))) == 7
    assert bench.only().usage.total == 25


def test_a_first_chunk_without_choices_is_shown(chat, bench, provider, said):
    first = {**said.chat_events()[0], "choices": [], "prompt_filter_results": []}
    provider.events([first, *said.chat_events()])
    assert len(list(chat.chat.completions.create(**ASK))) == 8
    assert bench.only().usage.total == 25


def test_a_stream_without_a_done_marker_counts(chat, bench, provider, said):
    provider.events(said.chat_events(), done=False)
    assert len(list(chat.chat.completions.create(**ASK))) == 7
    assert (bench.only().usage.total, bench.only().provenance) == (25, "reported")


def test_tool_calls_without_usage_are_counted(chat, bench, provider, said):
    events = said.chat_events([], usage=False)
    for index, (name, arguments) in enumerate([("find", '{"city":'), ("find", ' "Paris"}')]):
        call = {"index": 0, "function": {"arguments": arguments}}
        if index == 0:
            call |= {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
        event = said.chat_events()[0]
        event["choices"][0]["delta"] = {"tool_calls": [call]}
        events.insert(-1, event)
    provider.events(events)
    list(chat.chat.completions.create(**ASK))
    least = counted("find") + counted('{"city": "Paris"}')
    assert least <= bench.only().usage.output_total <= least + 12


# Broken off.


def partial(bench: Any, text: str) -> None:
    record = bench.only()
    assert record.provenance == "partial"
    assert (record.usage.input_total, record.usage.output_total) == (PROMPT, counted(text))


def test_a_stream_that_is_closed_is_billed_for_what_came(chat, bench, provider, said):
    gate = threading.Event()
    provider.events(said.chat_events(), first=4, gate=gate)
    stream = chat.chat.completions.create(**ASK)
    got = [next(stream) for _ in range(4)]
    assert got[-1].choices[0].delta.content == ","
    stream.close()
    partial(bench, "Hello there,")


def test_leaving_a_with_block_bills_what_came(chat, bench, provider, said):
    provider.events(said.chat_events())
    with chat.chat.completions.create(**ASK) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content == ",":
                break
    partial(bench, "Hello there,")


def test_a_break_and_a_dropped_stream_bill_what_came(chat, bench, provider, said):
    provider.events(said.chat_events())
    for chunk in chat.chat.completions.create(**ASK):
        if chunk.choices[0].delta.content == ",":
            break
    gc.collect()
    bench.drain()
    partial(bench, "Hello there,")


def test_stopping_at_the_finish_reason_counts_the_whole_text(chat, bench, provider, said):
    provider.events(said.chat_events())
    with chat.chat.completions.create(**ASK) as stream:
        for chunk in stream:
            if chunk.choices[0].finish_reason:
                break
    record = bench.only()
    assert (record.usage.input_total, record.usage.output_total) == (PROMPT, counted("Hello there, friend."))


def test_an_anthropic_stream_that_is_closed_keeps_the_reported_prompt(claude, bench, provider, said):
    provider.events(said.message_events())
    with claude.messages.create(**CLAUDE) as stream:
        for event in stream:
            if event.type == "content_block_delta":
                break
    record = bench.only()
    assert record.provenance == "partial"
    assert record.usage.input_total == 162
    assert record.usage.output_total >= 1


def test_a_stream_that_nobody_reads_records_nothing(chat, bench, provider, said):
    provider.events(said.chat_events())
    chat.chat.completions.create(**ASK).close()
    assert bench.records == []
    assert bench.sink.row_history == []


def test_a_provider_that_hangs_up_raises_what_it_raised_and_bills_what_came(bench, provider, said):
    provider.events(said.chat_events()[:4], done=False, hang_up=True)
    raised = []
    for wrapped in (False, True):
        with openai.OpenAI(api_key="k", base_url=provider.origin + "/v1", max_retries=0) as client:
            if wrapped:
                wrap(client, bench.recorder)
            stream = client.chat.completions.create(**ASK)
            # Whose error it is changed between versions of the SDK.
            with pytest.raises(Exception, match=r"(?i)connection") as caught:
                list(stream)
            raised.append(caught.value)
    bare, mine = raised
    assert (type(mine), str(mine), type(mine.__cause__)) == (type(bare), str(bare), type(bare.__cause__))
    partial(bench, "Hello there,")


def test_an_error_in_mid_stream_is_raised_and_bills_what_came(chat, claude, bench, provider, said):
    events = [*said.chat_events()[:4], {"error": {"message": "overloaded", "type": "server_error"}}]
    provider.events(events, done=False)
    with pytest.raises(openai.APIError, match="overloaded"):
        list(chat.chat.completions.create(**ASK))
    partial(bench, "Hello there,")
    bench.records.clear()
    provider.replies.clear()
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    provider.events([*said.message_events()[:5], error])
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        list(claude.messages.create(**CLAUDE))
    assert bench.only().provenance == "partial"
    assert bench.only().usage.input_total == 162


def test_an_error_before_anything_was_said_records_nothing(claude, bench, provider):
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    provider.events([error])
    with pytest.raises(anthropic.APIStatusError):
        list(claude.messages.create(**CLAUDE))
    assert bench.records == []
    assert not bench.sink.rows


def test_a_timeout_in_mid_stream_is_raised_and_bills_what_came(bench, provider, said):
    raised = []
    provider.events(said.chat_events(), first=4, gate=threading.Event())
    for wrapped in (False, True):
        with openai.OpenAI(
            api_key="k", base_url=provider.origin + "/v1", max_retries=0, timeout=0.2
        ) as client:
            if wrapped:
                wrap(client, bench.recorder)
            with pytest.raises(Exception, match=r"(?i)time") as caught:
                list(client.chat.completions.create(**ASK))
            raised.append(caught.value)
    assert [type(exc) for exc in raised] == 2 * [type(raised[0])]
    partial(bench, "Hello there,")


def test_cancellation_in_mid_stream_goes_on_and_bills_what_came(bench, provider, said, run_async):
    gate = threading.Event()
    provider.events(said.chat_events(), first=4, gate=gate)

    async def main(chat, claude):
        async def read():
            async for chunk in await chat.chat.completions.create(**ASK):
                if chunk.choices[0].delta.content == ",":
                    reached.set()

        reached = asyncio.Event()
        task = asyncio.create_task(read())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_async(main)
    partial(bench, "Hello there,")


def test_an_async_stream_that_is_closed_or_dropped_is_billed_for_what_came(bench, provider, said, run_async):
    provider.events(said.chat_events())

    async def main(chat, claude):
        async with await chat.chat.completions.create(**ASK) as stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content == ",":
                    break
        partial(bench, "Hello there,")
        bench.records.clear()
        async for chunk in await chat.chat.completions.create(**ASK):
            if chunk.choices[0].delta.content == ",":
                break
        for _ in range(3):  # each layer of generators is closed by a task of its own
            await asyncio.sleep(0)
            gc.collect()
        await asyncio.sleep(0.01)
        bench.drain()
        partial(bench, "Hello there,")

    run_async(main)


# Elsewhere.


def test_a_stream_belongs_to_whoever_opened_it_wherever_it_is_read(chat, bench, provider, said):
    provider.events(said.chat_events())
    with context.entered(context.Scope(customer="cus_opener")):
        stream = chat.chat.completions.create(**ASK)
    outside = chat.chat.completions.create(**ASK)
    with context.entered(context.Scope(customer="cus_reader")) as reader:
        for each in (stream, outside):
            thread = threading.Thread(target=list, args=(each,))
            thread.start()
            thread.join()
        assert reader.recorded == 0
    assert [record.customer for record in bench.records] == ["cus_opener", None]


def test_a_scope_knows_the_streams_that_are_open_in_it(chat, bench, provider, said):
    provider.events(said.chat_events())
    with context.entered(context.Scope()) as scope:
        stream = chat.chat.completions.create(**ASK)
        next(stream)
        assert len(scope.streams) == 1
        assert scope.covers("chat")
        list(stream)
        assert scope.streams == []
        assert scope.recorded == 1


def test_a_request_that_ends_first_leaves_a_progress_row(chat, bench, provider, said):
    provider.events(said.chat_events(usage=False))
    with context.entered(context.Scope(customer="cus_1")) as scope:
        stream = chat.chat.completions.create(**ASK)
        for _ in range(4):
            next(stream)
        for each in scope.streams:
            each.leave_progress()
    (row,) = bench.sink.rows.values()
    assert (row.customer, row.provenance, row.usage.output_total) == ("cus_1", "partial", 3)
    list(stream)
    assert bench.only().id == row.id
    assert bench.only().usage.output_total == counted("Hello there, friend.")


@pytest.mark.needs("openai.resources.responses")
def test_a_background_stream_that_is_broken_off_is_left_to_whoever_retrieves_it(chat, bench, provider, said):
    provider.events(said.responses_events(background=True))
    ask: Any = {"model": "gpt-4o-mini", "input": "Hello", "background": True, "stream": True}
    with chat.responses.create(**ask) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                break
    assert bench.records == []
    assert list(bench.sink.rows) == ["background-resp_1"]
    provider.replies.clear()
    provider.json(said.responses(background=True))
    chat.responses.retrieve("resp_1")
    assert (bench.only().id, bench.only().usage.total) == ("background-resp_1", 39)


# The SDKs' helpers.


@pytest.mark.needs("openai.resources.chat.completions.Completions.stream")
def test_the_chat_stream_helper_counts_and_shows_what_it_showed(chat, bench, provider, said):
    provider.events(said.chat_events())
    with chat.chat.completions.stream(model="gpt-4o-mini", messages=MESSAGES) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("content.delta") == 6
    assert final.choices[0].message.content == "Hello there, friend."
    assert final.usage is None, "as without us: the caller did not ask for it"
    assert bench.only().usage.total == 25


@pytest.mark.needs("openai.resources.chat.completions.Completions.stream")
def test_leaving_the_chat_stream_helper_bills_what_came(chat, bench, provider, said):
    provider.events(said.chat_events())
    with chat.chat.completions.stream(model="gpt-4o-mini", messages=MESSAGES) as stream:
        for event in stream:
            if event.type == "content.delta" and event.delta == ",":
                break
    partial(bench, "Hello there,")


@pytest.mark.needs("anthropic.resources.beta.messages.Messages.stream")
def test_the_messages_stream_helper_counts(claude, bench, provider, said):
    provider.events(said.message_events())
    options = {name: value for name, value in CLAUDE.items() if name != "stream"}
    with claude.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == "Hello there."
        assert stream.get_final_message().usage.output_tokens == 6
    assert bench.only().usage.total == 168
    with claude.beta.messages.stream(**options) as stream:
        assert stream.get_final_text() == "Hello there."
    assert [record.usage.total for record in bench.records] == [168, 168]


@pytest.mark.needs("openai.resources.responses")
def test_the_responses_stream_helper_counts(chat, bench, provider, said):
    provider.events(said.responses_events())
    with chat.responses.stream(model="gpt-4o-mini", input="Hello") as stream:
        assert stream.get_final_response().output_text == "Hello there."
    assert bench.only().usage.total == 39


@pytest.mark.needs("openai.resources.chat.completions.Completions.stream")
def test_async_helpers_count(bench, provider, said, run_async):
    provider.events(said.chat_events())
    provider.events(said.message_events())
    options = {name: value for name, value in CLAUDE.items() if name != "stream"}

    async def main(chat, claude):
        async with chat.chat.completions.stream(model="gpt-4o-mini", messages=MESSAGES) as stream:
            final = await stream.get_final_completion()
        async with claude.messages.stream(**options) as stream:
            return final, await stream.get_final_message()

    final, message = run_async(main)
    assert final.choices[0].message.content == "Hello there, friend."
    assert message.content[0].text == "Hello there."
    assert [record.usage.total for record in bench.records] == [25, 168]
    assert not bench.sink.rows


def test_a_response_that_is_read_past_its_stream_counts(chat, bench, provider, said):
    provider.events(said.chat_events())
    stream = chat.chat.completions.create(**ASK)
    lines = [line for line in stream.response.iter_lines() if line]
    assert len(lines) == 8, "without the usage that we asked for"
    assert (bench.only().usage.total, bench.only().provenance) == (25, "reported")


def test_an_async_response_that_is_read_past_its_stream_counts(bench, provider, said, run_async):
    provider.events(said.chat_events())

    async def main(chat, claude):
        stream = await chat.chat.completions.create(**ASK)
        return [line async for line in stream.response.aiter_lines() if line]

    assert len(run_async(main)) == 8
    assert (bench.only().usage.total, bench.only().provenance) == (25, "reported")


def test_stream_objects_keep_their_type_names_and_signatures(bench, provider, said):
    provider.events(said.chat_events())
    seen = []
    for wrapped in (False, True):
        with openai.OpenAI(api_key="k", base_url=provider.origin + "/v1") as client:
            if wrapped:
                wrap(client, bench.recorder)
            with client.chat.completions.create(**ASK) as stream:
                seen.append((
                    type(stream), dir(stream), type(stream.response), dir(stream.response),
                    inspect.signature(stream.close), inspect.isgenerator(stream._iterator),
                ))  # fmt: skip
    assert seen[0] == seen[1]
