"""The decorator in its four kinds: what is recorded, and that the function stays what it was."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import Any

import openai
import pytest
from llm_metering import counting
from llm_metering.capture import context
from llm_metering.capture.clients import wrap
from llm_metering.capture.decorators import metered
from llm_metering.errors import ConfigurationError

TEXT = "The quick brown fox jumps over the lazy dog."
OUTPUT = counting.count_text(TEXT, model="gpt-4o")


@pytest.fixture
def decorate(bench):
    return functools.partial(metered, bench.recorder)


def test_plain_text_is_counted_with_the_tokenizer_of_the_model(bench, decorate):
    @decorate(model="gpt-4o", feature="digest")
    def summarise(prompt: str) -> str:
        return TEXT

    assert summarise("Tell me of the fox.") == TEXT
    record = bench.only()
    assert record.usage.output == OUTPUT
    assert record.usage.input
    assert (record.model, record.provenance, record.surface) == ("gpt-4o", "counted", "decorator")
    assert record.dimensions == {"feature": "digest"}


def test_all_four_kinds_count_the_same(bench, decorate):
    words = TEXT.split(" ")
    pieces = [words[0], *(" " + word for word in words[1:])]

    @decorate(model="gpt-4o")
    def plain(prompt):
        return TEXT

    @decorate(model="gpt-4o")
    async def coroutine(prompt):
        return TEXT

    @decorate(model="gpt-4o")
    def generator(prompt):
        yield from pieces

    @decorate(model="gpt-4o")
    async def async_generator(prompt):
        for piece in pieces:
            yield piece

    async def collect():
        return [piece async for piece in async_generator("Fox?")]

    assert plain("Fox?") == TEXT
    assert asyncio.run(coroutine("Fox?")) == TEXT
    assert list(generator("Fox?")) == pieces
    assert asyncio.run(collect()) == pieces
    assert len(bench.records) == 4
    assert len({record.usage for record in bench.records}) == 1
    assert not bench.sink.rows


def test_a_function_keeps_its_kind_name_and_signature(decorate):
    def plain(a: int, *, prompt: str = "x") -> str:
        """Says."""
        return "x"

    async def coroutine(a: int) -> str:
        return "x"

    def generator(a: int):
        yield "x"

    async def async_generator(a: int):
        yield "x"

    for function in (plain, coroutine, generator, async_generator):
        wrapped = decorate(model="m")(function)
        assert inspect.signature(wrapped) == inspect.signature(function)
        assert (wrapped.__name__, wrapped.__doc__) == (function.__name__, function.__doc__)
        for kind in (
            inspect.iscoroutinefunction,
            inspect.isgeneratorfunction,
            inspect.isasyncgenfunction,
        ):
            assert kind(wrapped) is kind(function)


def test_it_decorates_without_parentheses_too(bench):
    @functools.partial(metered, bench.recorder)
    def answer(messages):
        return {"object": "chat.completion", "id": "c", "model": "m", "choices": [], "usage": USAGE}

    answer([])
    assert bench.only().usage.total == 12


USAGE = {"prompt_tokens": 10, "completion_tokens": 2}


def test_methods_static_methods_class_methods_partials_and_callables_are_metered(bench, decorate):
    class Service:
        @decorate(model="gpt-4o")
        def method(self, prompt):
            return TEXT

        @staticmethod
        @decorate(model="gpt-4o")
        def static(prompt):
            return TEXT

        @decorate(model="gpt-4o")
        @staticmethod
        def outer_static(prompt):
            return TEXT

        @decorate(model="gpt-4o")
        @classmethod
        def of_class(cls, prompt):
            assert cls is Service
            return TEXT

    class Callable:
        async def __call__(self, prompt):
            return TEXT

    async def coroutine(style, prompt):
        return TEXT

    Service().method("Fox?")
    Service.static("Fox?")
    Service().outer_static("Fox?")
    Service.of_class("Fox?")
    by_partial = decorate(model="gpt-4o")(functools.partial(coroutine, "short"))
    assert asyncio.run(by_partial("Fox?")) == TEXT
    by_object = decorate(model="gpt-4o")(Callable())
    assert inspect.iscoroutinefunction(by_object)
    assert asyncio.run(by_object("Fox?")) == TEXT
    assert len(bench.records) == 6
    assert len({record.usage for record in bench.records}) == 1


def test_a_plain_function_that_gives_a_coroutine_or_a_generator_is_metered(bench, decorate):
    async def coroutine():
        return TEXT

    async def async_generator():
        yield TEXT

    @decorate(model="gpt-4o")
    def gives(prompt, what):
        return what

    async def collect():
        return [each async for each in gives("Fox?", async_generator())]

    assert asyncio.run(gives("Fox?", coroutine())) == TEXT
    assert list(gives("Fox?", (each for each in [TEXT]))) == [TEXT]
    assert asyncio.run(collect()) == [TEXT]
    assert [record.usage.output for record in bench.records] == [OUTPUT] * 3


def test_a_provider_object_is_read_alone_in_tuples_and_in_values(bench, decorate, said):
    answer = openai.types.chat.ChatCompletion.model_validate(said.chat())

    @decorate()
    def alone():
        return answer

    @decorate()
    def in_a_tuple():
        return answer.choices[0].message.content, {**said.chat(id="b")}

    @decorate()
    def in_a_dict():
        return {"text": "Hello there.", "raw": said.chat(id="c")}

    alone()
    in_a_tuple()
    in_a_dict()
    assert [(r.response_id, r.usage.total) for r in bench.records] == [
        ("chatcmpl-1", 25), ("b", 25), ("c", 25),
    ]  # fmt: skip


def test_what_cannot_be_read_is_counted_as_a_number_and_given_on(bench, decorate):
    class Other:
        pass

    other = Other()

    @decorate(model="gpt-4o")
    def gives(what):
        return what

    assert gives(other) is other
    assert gives(None) is None
    assert gives(7) == 7
    assert bench.records == []
    assert bench.notes.counts["decorator.unread"] == 2


def test_text_adds_nothing_where_a_wrapped_client_inside_recorded_it(bench, decorate, provider, said):
    provider.json(said.chat())
    client = wrap(openai.OpenAI(api_key="k", base_url=provider.origin + "/v1"), bench.recorder)

    @decorate(model="gpt-4o", customer="cus_1", feature="digest")
    def summarise(prompt):
        ask = [{"role": "user", "content": prompt}]
        return client.chat.completions.create(model="gpt-4o", messages=ask).choices[0].message.content

    summarise("Fox?")
    record = bench.only()
    assert (record.surface, record.provenance, record.usage.total) == ("client", "reported", 25)
    assert (record.customer, record.dimensions) == ("cus_1", {"feature": "digest"})


def test_a_relayed_stream_of_a_wrapped_client_counts_once(bench, decorate, provider, said):
    provider.events(said.chat_events())
    client = wrap(openai.OpenAI(api_key="k", base_url=provider.origin + "/v1"), bench.recorder)

    @decorate(model="gpt-4o")
    def relay_text(prompt):
        for chunk in client.chat.completions.create(model="m", messages=[], stream=True):
            yield chunk.choices[0].delta.content or ""

    @decorate(model="gpt-4o")
    def relay_chunks(prompt):
        yield from client.chat.completions.create(model="m", messages=[], stream=True)

    assert "".join(relay_text("Fox?")) == "Hello there, friend."
    assert len(list(relay_chunks("Fox?"))) == 7
    assert [(r.surface, r.usage.total) for r in bench.records] == [("client", 25)] * 2
    assert len({row.id for row in bench.sink.row_history}) == 2, "only the client's progress is noted"
    assert not bench.sink.rows


def test_two_streams_relayed_one_after_another_are_two_records(bench, decorate, said):
    @decorate()
    def agent():
        yield from said.chat_events(id="a")
        yield "a tool was called"
        yield from said.chat_events(id="b")
        yield from said.message_events(id="c")
        yield from said.responses_events(id="resp_d")

    list(agent())
    assert sorted((r.response_id, r.usage.total) for r in bench.records) == [
        ("a", 25), ("b", 25), ("c", 168), ("resp_d", 39),
    ]  # fmt: skip


def test_an_error_keeps_what_was_yielded_and_is_not_changed(bench, decorate):
    class Broken(Exception):
        pass

    error = Broken()

    @decorate(model="gpt-4o")
    def generator(prompt):
        yield TEXT
        raise error

    @decorate(model="gpt-4o")
    async def async_generator(prompt):
        yield TEXT
        raise error

    async def collect():
        async for _ in async_generator("Fox?"):
            pass

    with pytest.raises(Broken) as caught:
        list(generator("Fox?"))
    assert caught.value is error
    with pytest.raises(Broken) as caught:
        asyncio.run(collect())
    assert caught.value is error
    assert [(r.provenance, r.usage.output) for r in bench.records] == [("partial", OUTPUT)] * 2


def test_what_is_sent_and_thrown_reaches_the_generator(bench, decorate):
    @decorate(model="gpt-4o")
    def generator():
        got = yield "one"
        try:
            yield got
        except KeyError:
            yield "caught"
        return "result"

    running = generator()
    assert next(running) == "one"
    assert running.send("two") == "two"
    assert running.throw(KeyError()) == "caught"
    with pytest.raises(StopIteration) as stop:
        next(running)
    assert stop.value.value == "result"
    assert bench.only().usage.output == counting.count_text("onetwocaught", model="gpt-4o")


def test_what_is_sent_and_thrown_reaches_the_async_generator(bench, decorate):
    @decorate(model="gpt-4o")
    async def generator():
        got = yield "one"
        try:
            yield got
        except KeyError:
            yield "caught"

    async def drive():
        running = generator()
        assert await running.__anext__() == "one"
        assert await running.asend("two") == "two"
        assert await running.athrow(KeyError()) == "caught"
        with pytest.raises(StopAsyncIteration):
            await running.__anext__()

    asyncio.run(drive())
    assert bench.only().usage.output == counting.count_text("onetwocaught", model="gpt-4o")


def test_a_closed_generator_runs_its_cleanup_and_is_billed_for_what_came(bench, decorate):
    cleaned = []

    @decorate(model="gpt-4o")
    def generator(prompt):
        try:
            yield TEXT
            yield "never read"
        finally:
            cleaned.append(context.current())

    running = generator("Fox?")
    next(running)
    running.close()
    bench.drain()
    assert cleaned != [None], "the cleanup runs in the function's scope"
    assert (bench.only().provenance, bench.only().usage.output) == ("partial", OUTPUT)


def test_a_cancelled_async_generator_is_billed_for_what_came_and_cancellation_goes_on(bench, decorate):
    @decorate(model="gpt-4o")
    async def generator(prompt):
        yield TEXT
        await asyncio.sleep(60)

    async def read():
        async for _ in generator("Fox?"):
            reading.set()

    async def main():
        task = asyncio.create_task(read())
        await reading.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    reading = asyncio.Event()
    asyncio.run(main())
    assert (bench.only().provenance, bench.only().usage.output) == ("partial", OUTPUT)


def test_the_scope_does_not_leak_out_of_a_generator_between_its_steps(decorate):
    @decorate(model="gpt-4o", customer="cus_inner")
    def generator():
        assert context.current().bound_customer() == "cus_inner"
        yield "one"
        assert context.current().bound_customer() == "cus_inner"

    with context.entered(context.Scope(customer="cus_outer")):
        running = generator()
        next(running)
        assert context.current().bound_customer() == "cus_outer"
        list(running)
    assert context.current() is None


def test_what_is_bound_inside_holds_inside_and_for_the_request_round_it(bench, decorate):
    @decorate(model="gpt-4o", customer="cus_named", feature="digest")
    def bind():
        context.current().bind("cus_bound", {"feature": "bound", "region": "eu"})
        return TEXT

    with context.entered(context.Scope()) as request:
        bind()
    assert request.bound_customer() == "cus_bound"
    assert request.all_dimensions() == {"feature": "bound", "region": "eu"}
    record = bench.only()
    assert (record.customer, record.dimensions) == ("cus_bound", {"feature": "bound", "region": "eu"})


def test_the_customer_may_be_told_from_the_arguments(bench, decorate):
    async def lookup(prompt, user):
        return f"cus_{user}"

    @decorate(model="gpt-4o", customer=lambda prompt, user: f"cus_{user}")
    def plain(prompt, user):
        return TEXT

    @decorate(model="gpt-4o", customer=lookup)
    async def coroutine(prompt, user):
        return TEXT

    plain("Fox?", user="a")
    asyncio.run(coroutine("Fox?", "b"))
    assert [record.customer for record in bench.records] == ["cus_a", "cus_b"]


def test_a_customer_lookup_that_fails_leaves_the_usage_unresolved(make_bench):
    bench = make_bench()

    @metered(bench.recorder, model="gpt-4o", customer=lambda: 1 / 0)
    def plain():
        return TEXT

    assert plain() == TEXT
    assert bench.only().customer is None
    assert [name for name, _ in bench.notes.failures] == ["decorator.customer"]
    bench.notes.failures.clear()


@pytest.mark.parametrize("name", ["messages", "prompt", "input", "text"])
def test_the_prompt_is_found_by_its_name(bench, decorate, name):
    namespace: dict[str, Any] = {"TEXT": TEXT}
    exec(f"def function(style, {name}): return TEXT", namespace)
    decorate(model="gpt-4o")(namespace["function"])("short", TEXT)
    assert bench.only().usage.input >= OUTPUT


def test_the_prompt_may_be_named_and_defaulted(bench, decorate):
    @decorate(model="gpt-4o", prompt="question")
    def answer(text, *, question=TEXT):
        return TEXT

    answer("not this, which is much longer than the question is " * 10)
    assert OUTPUT <= bench.only().usage.input < 2 * OUTPUT


def test_arguments_that_cannot_work_are_refused_at_once(decorate):
    with pytest.raises(ConfigurationError, match="no such argument"):
        decorate(prompt="nothing")(lambda prompt: "")
    with pytest.raises(ConfigurationError, match="customer"):
        decorate(customer="two words")
    with pytest.raises(ConfigurationError, match="decorates a function"):
        decorate(model="m")(42)


def test_events_framed_for_a_browser_are_read_inside_of_their_frames(bench, decorate, said):
    import json

    @decorate(model="gpt-4o")
    def events(prompt):
        for event in said.chat_events():
            yield f"data: {json.dumps(event)}\n\n"
        yield "data: [DONE]\n\n"

    @decorate(model="gpt-4o")
    def framed_text(prompt):
        yield f"data: {TEXT}\n\n"

    list(events("Fox?"))
    list(framed_text("Fox?"))
    assert [record.usage.output_total for record in bench.records] == [5, OUTPUT]
