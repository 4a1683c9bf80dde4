"""The hooks in runs of OpenAI's Agents SDK, against the provider stand-in."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest

pytest.importorskip("agents", reason="openai-agents is not installed")

from agents import Agent, RunConfig, RunContextWrapper, RunHooks, Runner, function_tool, handoff
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from agents.models.openai_responses import OpenAIResponsesModel
from llm_metering.adapters.openai_agents import MeteringHooks
from llm_metering.capture.context import current
from openai import AsyncOpenAI

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
QUIET = RunConfig(tracing_disabled=True)


@pytest.fixture(params=["responses", "chat"])
def kind(request) -> str:
    return str(request.param)


def agent_of(provider: Any, kind: str, *, wrap: Any = None, **more: Any) -> Any:
    client: Any = AsyncOpenAI(base_url=provider.base_url, api_key="k")
    client = client if wrap is None else wrap(client)
    model: Any = OpenAIResponsesModel if kind == "responses" else OpenAIChatCompletionsModel
    return Agent(name="a", model=model("gpt-5-mini", client), **more)


def test_a_run_is_recorded_as_the_provider_counted(metering, used, provider, kind):
    before = len(provider.answers())
    asyncio.run(
        Runner.run(
            agent_of(provider, kind), "Hello", hooks=MeteringHooks(metering, feature="a"), run_config=QUIET
        )
    )
    record = used.only()
    said = provider.answers()[before]
    assert record.usage.total == sum(said["tokens"].values())
    assert (record.usage.reasoning or 0) == said["reasoning_tokens"]
    assert (record.surface, record.model, record.dimensions) == (
        "openai_agents", "gpt-5-mini", {"feature": "a"},
    )  # fmt: skip
    if kind == "responses":
        assert record.response_id == said["id"]


def test_a_streamed_run_is_recorded(metering, used, provider, kind):
    async def run() -> None:
        result = Runner.run_streamed(
            agent_of(provider, kind), "Hello", hooks=MeteringHooks(metering), run_config=QUIET
        )
        async for _ in result.stream_events():
            pass

    before = len(provider.answers())
    asyncio.run(run())
    record = used.only()
    said = provider.answers()[before]
    if record.provenance == "reported":
        assert record.usage.total == sum(said["tokens"].values())
    else:  # the SDK does not ask other servers than OpenAI's for the usage of chat streams
        assert kind == "chat"
        assert record.usage.output == said["tokens"]["output"] - said["reasoning_tokens"]
        assert record.usage.input


def test_a_wrapped_client_inside_counts_once(metering, used, provider, kind):
    agent = agent_of(provider, kind, wrap=metering.wrap)

    async def run() -> None:
        await Runner.run(agent, "Hello", hooks=MeteringHooks(metering), run_config=QUIET)
        result = Runner.run_streamed(agent, "Hello", hooks=MeteringHooks(metering), run_config=QUIET)
        async for _ in result.stream_events():
            pass

    asyncio.run(run())
    assert {record.surface for record in used.still(2)} == {"client"}


def test_runs_at_once_are_billed_to_their_own_customers(metering, used, provider, kind):
    agent = agent_of(provider, kind)
    hooks = MeteringHooks(metering)

    async def run(customer: str) -> None:
        with metering.bound(customer=customer):
            await Runner.run(agent, "Hello", hooks=hooks, run_config=QUIET)

    async def all_at_once() -> None:
        await asyncio.gather(*(run(f"cus_{n}") for n in range(8)))

    asyncio.run(all_at_once())
    assert sorted(str(r.customer) for r in used.records(8)) == [f"cus_{n}" for n in range(8)]
    assert hooks._calls == {}


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_run_that_is_cancelled_in_mid_answer_is_counted_as_unanswered_and_billed_by_a_wrapped_client(
    metering, used, provider, kind, is_wrapped
):
    """The SDK tells hooks neither of a cancelled call nor of a failed one, nor which of the two it was."""
    agent = agent_of(provider, kind, wrap=metering.wrap if is_wrapped else None)
    hooks = MeteringHooks(metering)

    async def run() -> None:
        result = Runner.run_streamed(agent, "Write a long story, please", hooks=hooks, run_config=QUIET)
        async for event in result.stream_events():
            if event.type == "raw_response_event" and "delta" in event.data.type:
                result.cancel()
        await agent.model._client.close()

    asyncio.run(run())
    deadline = time.monotonic() + 30
    while hooks._calls and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert hooks._calls == {}
    assert metering.telemetry.snapshot()["openai_agents.unanswered"] == 1
    if is_wrapped:
        record = used.only()
        assert record.surface == "client"
        assert record.usage.input  # and of the words, as many as had come
    else:
        assert used.still(0) == []


def test_a_run_whose_call_failed_is_no_usage(metering, used, provider, kind):
    model: Any = OpenAIResponsesModel if kind == "responses" else OpenAIChatCompletionsModel

    async def run() -> None:
        async with AsyncOpenAI(base_url=provider.url + "/nowhere", api_key="k", max_retries=0) as client:
            agent = Agent(name="a", model=model("m", client))
            with pytest.raises(Exception, match=r"404|Not Found"):
                await Runner.run(agent, "Hello", hooks=MeteringHooks(metering), run_config=QUIET)

    asyncio.run(run())
    assert used.still(0) == []


def test_other_hooks_are_called_as_if_alone(metering, used, provider):
    heard = []

    class Mine(RunHooks):  # type: ignore[misc]
        async def on_llm_start(self, *given: Any) -> None:
            heard.append("start")

        async def on_llm_end(self, *given: Any) -> None:
            heard.append("end")

        async def on_agent_end(self, *given: Any) -> None:
            heard.append("over")

    agent = agent_of(
        provider, "responses", tools=[function_tool(len_of)], handoffs=[handoff(Agent(name="b"))]
    )
    asyncio.run(Runner.run(agent, "Hello", hooks=MeteringHooks(metering, inner=Mine()), run_config=QUIET))
    assert heard == ["start", "end", "over"]
    used.only()


def len_of(text: str) -> int:
    """How long a text is."""
    return len(text)


def test_a_call_that_is_begun_anew_before_it_was_answered_leaves_nothing_behind(metering, used):
    hooks, context, agent = MeteringHooks(metering), RunContextWrapper(None), Agent(name="a")
    with metering.bound(customer="cus_a"):
        scope = current()
        for _ in range(3):
            asyncio.run(hooks.on_llm_start(context, agent, None, []))
        assert scope is not None
        assert len(scope.sightings.listeners) == 1
    assert metering.telemetry.snapshot()["openai_agents.unanswered"] == 2
