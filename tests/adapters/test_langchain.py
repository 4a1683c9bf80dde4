"""LangChain's callbacks, with its own chat models."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("langchain_core", reason="langchain-core is not installed")

from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from llm_metering import count_text
from llm_metering.adapters.langchain import LangChainCallback
from llm_metering.capture.context import current
from llm_metering.usage import Usage

USAGE = {
    "input_tokens": 350,
    "output_tokens": 240,
    "total_tokens": 590,
    "input_token_details": {"cache_creation": 200, "cache_read": 100},
    "output_token_details": {"reasoning": 90},
}
APART = Usage(input=50, cached_input=100, cached_write=200, output=150, reasoning=90)


class Model(BaseChatModel):
    """Answers as a provider's model does; optionally breaks off."""

    usage: dict[str, Any] | None = USAGE
    breaks: bool = False

    @property
    def _llm_type(self) -> str:
        return "test"

    @property
    def said(self) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "model_name": "gpt-5-mini", "model_provider": "openai"}

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **more: Any) -> ChatResult:
        message = AIMessage("Hello there", usage_metadata=self.usage, response_metadata=self.said)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: Any,
        stop: Any = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **more: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for text in ("Hello ", "there ", "you"):
            yield ChatGenerationChunk(message=AIMessageChunk(text, response_metadata={"id": "chatcmpl-1"}))
        if self.breaks:
            raise ConnectionError("broke off")
        last = AIMessageChunk(
            "",
            usage_metadata=self.usage,
            response_metadata={"model_name": "gpt-5-mini"},
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last)

    async def _astream(self, *args: Any, **more: Any) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(*args, **more):
            yield chunk


def test_an_answer_is_recorded_in_disjoint_leaves(metering, used):
    Model().invoke("Hi", config={"callbacks": [LangChainCallback(metering, feature="chain")]})
    record = used.only()
    assert record.usage == APART
    assert (record.model, record.response_id, record.provider) == ("gpt-5-mini", "chatcmpl-1", "openai")
    assert (record.surface, record.customer, record.provenance) == ("langchain", "cus_a", "reported")
    assert record.dimensions == {"feature": "chain"}


def test_streams_and_async_calls_are_recorded_once_each(metering, used):
    config: Any = {"callbacks": [LangChainCallback(metering)]}
    assert "".join(str(chunk.content) for chunk in Model().stream("Hi", config=config)) == "Hello there you"

    async def calls() -> None:
        await Model().ainvoke("Hi", config=config)
        assert [chunk async for chunk in Model().astream("Hi", config=config)]

    asyncio.run(calls())
    records = used.records(3)
    assert [record.usage for record in records] == [APART] * 3


def test_each_prompt_of_a_batch_is_one_record(metering, used):
    config: Any = {"callbacks": [LangChainCallback(metering)]}
    Model().batch(["a", "b", "c"], config=config)
    assert [record.usage for record in used.records(3)] == [APART] * 3


def test_what_a_model_does_not_report_is_counted_from_its_words(metering, used):
    config: Any = {"callbacks": [LangChainCallback(metering)]}
    GenericFakeChatModel(messages=iter([AIMessage("one two three")])).invoke("Hi there", config=config)
    FakeListLLM(responses=["four five"]).invoke("Hello", config=config)
    chat, plain = used.records(2)
    assert (chat.usage.output, plain.usage.output) == (3, 2)
    assert (chat.usage.input or 0) > 2
    assert {chat.provenance, plain.provenance} == {"estimated"}


def test_a_stream_that_breaks_off_is_billed_for_what_came(metering, used):
    config: Any = {"callbacks": [LangChainCallback(metering)]}
    with pytest.raises(ConnectionError):
        list(Model(breaks=True).stream("Hi", config=config))
    record = used.only()
    assert (record.provenance, record.usage.output) == ("partial", 3)


def test_a_stream_that_nobody_reads_on_is_billed_for_what_came(metering, used):
    callback = LangChainCallback(metering)
    stream = Model().stream("Hi", config={"callbacks": [callback]})
    next(stream)
    next(stream)
    stream.close()
    record = used.only()
    assert (record.provenance, record.usage.output) == ("partial", count_text("Hello there ", model="gpt-4o"))
    assert callback._calls == {}


def test_the_customer_is_the_one_at_the_start_of_the_call(metering, used):
    callback = LangChainCallback(metering)

    async def call(customer: str) -> None:
        with metering.bound(customer=customer):
            await Model().ainvoke("Hi", config={"callbacks": [callback]})

    async def both() -> None:
        await asyncio.gather(*(call(f"cus_{n}") for n in range(8)))

    asyncio.run(both())
    assert sorted(str(r.customer) for r in used.records(8)) == [f"cus_{n}" for n in range(8)]


def test_numbers_that_cannot_be_tokens_are_held(metering, used):
    bad = {**USAGE, "input_token_details": {"cache_read": 9999}}
    Model(usage=bad).invoke("Hi", config={"callbacks": [LangChainCallback(metering)]})
    assert "believed" in str(used.only().held)


def test_what_langchain_answers_from_its_cache_is_not_billed(metering, used):
    config: Any = {"callbacks": [LangChainCallback(metering)]}
    model = Model(cache=InMemoryCache())
    model.invoke("Hi", config=config)
    asyncio.run(model.ainvoke("Hi", config=config))
    model.invoke("Hi", config=config)
    assert used.only().usage == APART
    assert metering.telemetry.snapshot()["langchain.not_billed"] == 2


class ReportsEarly(Model):
    """Says at its beginning how long the prompt is, as Anthropic does, and breaks off."""

    error: Any = None

    def _stream(self, *args: Any, **more: Any) -> Iterator[ChatGenerationChunk]:
        prompt: Any = {"input_tokens": 50, "output_tokens": 0, "total_tokens": 50}
        yield ChatGenerationChunk(message=AIMessageChunk("", usage_metadata=prompt))
        for text in ("one ", "two ", "three"):
            yield ChatGenerationChunk(message=AIMessageChunk(text))
        raise ConnectionError("broke off")


def test_words_that_came_before_a_stream_broke_off_are_billed_where_only_the_prompt_was_reported(
    metering, used
):
    config: Any = {"callbacks": [LangChainCallback(metering)]}
    with pytest.raises(ConnectionError):
        list(ReportsEarly().stream("Hi", config=config))
    record = used.only()
    assert (record.provenance, record.usage.input) == ("partial", 50)
    assert record.usage.output == count_text("one two three", model="gpt-4o")


def test_an_error_that_came_with_a_response_is_no_answer(metering, used):
    class Refused(Model):
        def _generate(self, *args: Any, **more: Any) -> ChatResult:
            error = ConnectionError("429")
            error.response = httpx.Response(429, text="slow down")  # type: ignore[attr-defined]
            raise error

    with pytest.raises(ConnectionError):
        Refused().invoke("Hi", config={"callbacks": [LangChainCallback(metering)]})
    used.records(0)
    assert "langchain.unread" not in metering.telemetry.snapshot()


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (  # Anthropic's: then the one number for all that was written is 0
            {
                "input_token_details": {
                    "cache_read": 100,
                    "cache_creation": 0,
                    "ephemeral_5m_input_tokens": 150,
                    "ephemeral_1h_input_tokens": 50,
                }
            },
            Usage(input=50, cached_input=100, cached_write=200, output=240),
        ),
        (  # OpenAI's, by service tier
            {
                "input_token_details": {"flex_cache_read": 100, "flex": 250},
                "output_token_details": {"flex_reasoning": 90, "flex": 150},
            },
            Usage(input=250, cached_input=100, output=150, reasoning=90),
        ),
    ],
)
def test_parts_under_names_of_langchains_partners_are_taken_apart(metering, used, details, expected):
    told = {"input_tokens": 350, "output_tokens": 240, "total_tokens": 590, **details}
    Model(usage=told).invoke("Hi", config={"callbacks": [LangChainCallback(metering)]})
    assert used.only().usage == expected


def test_calls_that_were_cancelled_are_let_go_and_counted(metering, used):
    """LangChain tells nobody of them."""

    class Slow(Model):
        async def _agenerate(self, *args: Any, **more: Any) -> ChatResult:
            begun.release()
            await asyncio.sleep(60)
            raise AssertionError

    callback = LangChainCallback(metering)
    config: Any = {"callbacks": [callback]}
    begun = asyncio.Semaphore(0)

    async def cancelled() -> None:
        task = asyncio.create_task(Slow().ainvoke("Hi", config=config))
        await begun.acquire()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def calls() -> None:
        with metering.bound(customer="cus_a"):
            for _ in range(200):
                await cancelled()
            await Model().ainvoke("Hi", config=config)
            scope = current()
            assert scope is not None
            assert len(scope.sightings.listeners) == len(callback._calls) < 100

    asyncio.run(calls())
    assert metering.telemetry.snapshot()["langchain.unanswered"] > 100
    assert used.only().usage == APART


class OverClient(Model):
    """Streams what a client of OpenAI's streams, and gives no id on."""

    client: Any = None

    async def _astream(self, *args: Any, **more: Any) -> AsyncIterator[ChatGenerationChunk]:
        asked: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello there"}]}
        async with await self.client.chat.completions.create(**asked, stream=True) as stream:
            async for chunk in stream:
                for choice in chunk.choices:
                    yield ChatGenerationChunk(message=AIMessageChunk(choice.delta.content or ""))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_stream_that_is_closed_is_billed_once_over_a_wrapped_client(metering, used, provider):
    """LangChain tells of it before it closes the client's."""
    openai = pytest.importorskip("openai")
    client = metering.wrap(openai.AsyncOpenAI(base_url=provider.base_url, api_key="k"))

    async def begun(model: Model) -> Any:
        stream: Any = model.astream("Hi", config={"callbacks": [LangChainCallback(metering)]})
        for _ in range(3):
            await anext(stream)
        return stream

    async def both() -> None:
        async with client:
            # The one is no client's: what came of it is billed, though another's stream is open meanwhile.
            own, over = await begun(Model()), await begun(OverClient(client=client))
            await own.aclose()
            await over.aclose()
            await (await begun(OverClient(client=client))).aclose()

    with metering.bound(customer="cus_a"):
        asyncio.run(both())
    gc.collect()
    records = used.still(3)
    assert sorted(record.surface for record in records) == ["client", "client", "langchain"]
    assert [r.response_id for r in records if r.surface == "langchain"] == ["chatcmpl-1"]
