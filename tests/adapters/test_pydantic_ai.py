"""PydanticAI's agents over a metered model, with its own models and the provider stand-in."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pydantic_ai", reason="pydantic-ai-slim is not installed")

from llm_metering import count_text
from llm_metering.adapters.pydantic_ai import MeteredModel
from llm_metering.usage import Usage
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.exceptions import FallbackExceptionGroup
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import RequestUsage

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def openai_model(provider: Any, wrap: Any = None) -> OpenAIChatModel:
    client: Any = AsyncOpenAI(base_url=provider.base_url, api_key="k")
    return OpenAIChatModel(
        "gpt-5-mini", provider=OpenAIProvider(openai_client=client if wrap is None else wrap(client))
    )


def test_every_request_of_a_run_with_tools_is_recorded(metering, used):
    agent: Any = Agent(MeteredModel(TestModel(), metering, feature="agent"))

    @agent.tool_plain
    def weather(city: str) -> str:
        return "sun in " + city

    result = agent.run_sync("Hello")
    records = used.records(2)
    told = result.usage
    assert sum(r.usage.input_total or 0 for r in records) == told.input_tokens
    assert sum(r.usage.output_total or 0 for r in records) == told.output_tokens
    assert {(r.surface, r.customer, r.dimensions["feature"]) for r in records} == {
        ("pydantic_ai", "cus_a", "agent")
    }


def test_parts_that_totals_include_are_taken_apart(metering, used):
    def answer(messages: Any, info: AgentInfo) -> ModelResponse:
        usage = RequestUsage(
            input_tokens=350, output_tokens=240, cache_read_tokens=100, cache_write_tokens=200,
            details={"reasoning_tokens": 90},
        )  # fmt: skip
        return ModelResponse(parts=[TextPart("Hello")], usage=usage, provider_response_id="resp_1")

    asyncio.run(Agent(MeteredModel(FunctionModel(answer), metering)).run("Hi"))
    record = used.only()
    assert record.usage == Usage(input=50, cached_input=100, cached_write=200, output=150, reasoning=90)
    assert record.response_id == "resp_1"


def test_a_real_providers_answer_and_stream_are_recorded_as_it_counted(metering, used, provider):
    agent: Any = Agent(MeteredModel(openai_model(provider), metering))

    async def both() -> None:
        await agent.run("Hello there")
        async with agent.run_stream("Hello again") as stream:
            async for _ in stream.stream_text(delta=True):
                pass

    asyncio.run(both())
    for record in used.records(2):
        assert record.usage.total == sum(provider.tokens(str(record.response_id)).values())
        assert record.provider == "openai"


def test_a_stream_that_is_left_is_billed_for_what_came(metering, used, provider):
    model = MeteredModel(openai_model(provider), metering)

    async def leave() -> None:
        asked = [ModelRequest.user_text_prompt("Hello")]
        async with model.request_stream(asked, None, ModelRequestParameters()) as stream:
            n = 0
            async for _ in stream:
                n += 1
                if n == 5:
                    break

    asyncio.run(leave())
    record = used.only()
    whole = provider.tokens(str(record.response_id))
    assert 0 < (record.usage.output or 0) < whole["output"]
    assert record.provenance != "reported"


def test_a_wrapped_client_inside_counts_once(metering, used, provider):
    agent: Any = Agent(MeteredModel(openai_model(provider, metering.wrap), metering))

    async def both() -> None:
        await agent.run("Hello there")
        async with agent.run_stream("Hello again") as stream:
            assert await stream.get_output()

    asyncio.run(both())
    assert {record.surface for record in used.still(2)} == {"client"}


def test_calls_without_an_id_count_once_too_and_others_beside_them_stay(metering, used, provider):
    """Two equal calls, of which the wrapped client sees one: by its counts it is known to be the same."""
    client = metering.wrap(AsyncOpenAI(base_url=provider.base_url, api_key="k"))

    def model(asks: bool) -> Any:
        async def answer(messages: Any, info: AgentInfo) -> ModelResponse:
            usage = RequestUsage(input_tokens=17, output_tokens=4)
            if asks:
                said = await client.chat.completions.create(
                    model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}]
                )
                assert said.usage
                usage = RequestUsage(
                    input_tokens=said.usage.prompt_tokens, output_tokens=said.usage.completion_tokens
                )
            return ModelResponse(parts=[TextPart("Hello")], usage=usage)

        return MeteredModel(FunctionModel(answer), metering)

    async def calls() -> None:
        await asyncio.gather(*(Agent(model(asks)).run("Hi") for asks in (True, False, True, False)))

    asyncio.run(calls())
    surfaces = sorted(record.surface for record in used.still(4))
    assert surfaces == ["client", "client", "pydantic_ai", "pydantic_ai"]


def test_a_model_that_fails_records_nothing(metering, used):
    def answer(messages: Any, info: AgentInfo) -> ModelResponse:
        raise ConnectionError("down")

    with pytest.raises(ConnectionError):
        asyncio.run(Agent(MeteredModel(FunctionModel(answer), metering)).run("Hi"))
    used.records(0)


def answers(words: str, **more: Any) -> FunctionModel:
    def answer(messages: Any, info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[TextPart(words)], **more)

    return FunctionModel(answer, model_name=words)


tells_of_attempts = pytest.mark.skipif(
    "failed_attempts" not in {each.name for each in fields(ModelResponse)},
    reason="this PydanticAI does not tell of them",
)


@tells_of_attempts
def test_an_answer_that_a_fallback_model_moved_on_from_is_billed_too(metering, used):
    def is_odd(response: ModelResponse) -> bool:
        return response.text == "odd"

    first = answers("odd", usage=RequestUsage(input_tokens=10, output_tokens=1))
    second = answers("even", usage=RequestUsage(input_tokens=20, output_tokens=2), provider_response_id="r2")
    model = FallbackModel(first, second, fallback_on=[is_odd])
    asyncio.run(Agent(MeteredModel(model, metering)).run("Hi"))
    assert {(r.model, r.usage.input, r.usage.output, r.response_id) for r in used.records(2)} == {
        ("odd", 10, 1, None),
        ("even", 20, 2, "r2"),
    }


@tells_of_attempts
def test_answers_that_were_all_moved_on_from_are_billed(metering, used):
    def never(response: ModelResponse) -> bool:
        return True

    model = FallbackModel(answers("odd", usage=RequestUsage(input_tokens=10)), fallback_on=[never])
    with pytest.raises(FallbackExceptionGroup):
        asyncio.run(Agent(MeteredModel(model, metering)).run("Hi"))
    assert used.only().usage == Usage(input=10, output=0)


def test_words_that_came_are_billed_where_only_the_prompt_was_reported(metering, used):
    """As Anthropic's streams do: the answer's count comes in their last event but one."""
    usage = RequestUsage(input_tokens=50, output_tokens=1)
    model = MeteredModel(answers("one two three four", usage=usage, state="interrupted"), metering)
    asyncio.run(model.request([ModelRequest.user_text_prompt("Hi")], None, ModelRequestParameters()))
    record = used.only()
    assert (record.provenance, record.usage.input) == ("partial", 50)
    assert record.usage.output == count_text("one two three four", model="gpt-4o")


def test_a_response_that_goes_on_in_the_background_is_not_recorded_until_it_says_what_it_used(metering, used):
    class Given(TestModel):
        async def request(self, *asked: Any) -> ModelResponse:
            return ModelResponse(parts=[], provider_response_id="resp_1", **told.pop(0))

    def ask() -> None:
        model = MeteredModel(Given(), metering)
        asyncio.run(model.request([ModelRequest.user_text_prompt("Hi")], None, ModelRequestParameters()))

    told: list[Any] = [{"state": "suspended"}, {"state": "suspended"}]
    told.append({"usage": RequestUsage(input_tokens=50, output_tokens=7)})
    for _ in range(3):
        ask()
    assert used.only().usage == Usage(input=50, output=7)


def test_a_compaction_is_a_call_that_is_billed(metering, used):
    class Compacts(TestModel):
        async def compact_messages(self, request_context: Any, *, instructions: Any = None) -> ModelResponse:
            usage = RequestUsage(input_tokens=900, output_tokens=40)
            return ModelResponse(parts=[TextPart("in short")], usage=usage)

    model = MeteredModel(Compacts(), metering)
    context: Any = SimpleNamespace(messages=[ModelRequest.user_text_prompt("Hi")])
    asyncio.run(model.compact_messages(context, instructions="be short"))
    assert used.only().usage == Usage(input=900, output=40)
