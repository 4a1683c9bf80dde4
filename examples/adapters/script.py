"""Libraries that make the calls themselves, each with its adapter: all is billed to the same customer.

OPENAI_API_KEY=… python script.py
"""

from __future__ import annotations

import asyncio
import os

import agents
import litellm
from agents.models.openai_responses import OpenAIResponsesModel
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from llm_metering import Metering
from llm_metering.adapters.langchain import LangChainCallback
from llm_metering.adapters.litellm import LiteLLMCallback
from llm_metering.adapters.openai_agents import MeteringHooks
from llm_metering.adapters.opentelemetry import GenAISpanProcessor
from llm_metering.adapters.pydantic_ai import MeteredModel
from openai import AsyncOpenAI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from pydantic_ai import Agent

MODEL = "gpt-4o-mini"
ASK = "Tell me of the sea"

metering = Metering()


def with_langchain() -> None:
    """Any chat model of LangChain takes the callback; this one invents its answers."""
    model = GenericFakeChatModel(messages=iter([AIMessage("Waves come and go")]))
    model.invoke(ASK, config={"callbacks": [LangChainCallback(metering, via="langchain")]})


def with_litellm() -> None:
    litellm.callbacks = [LiteLLMCallback(metering, via="litellm")]
    litellm.completion(
        model=f"openai/{MODEL}",
        messages=[{"role": "user", "content": ASK}],
        api_base=os.environ.get("OPENAI_BASE_URL"),
    )


async def with_pydantic_ai() -> None:
    await Agent(MeteredModel(f"openai-chat:{MODEL}", metering, via="pydantic-ai")).run(ASK)


async def with_openai_agents() -> None:
    agent = agents.Agent(name="sailor", model=OpenAIResponsesModel(MODEL, AsyncOpenAI()))
    quiet = agents.RunConfig(tracing_disabled=True)
    await agents.Runner.run(agent, ASK, hooks=MeteringHooks(metering, via="openai-agents"), run_config=quiet)


def with_opentelemetry() -> None:
    """Whatever is instrumented for GenAI makes such spans; here it is done by hand."""
    provider = TracerProvider()
    provider.add_span_processor(GenAISpanProcessor(metering, via="opentelemetry"))
    trace.set_tracer_provider(provider)
    said = {"gen_ai.operation.name": "chat", "gen_ai.request.model": MODEL}
    with trace.get_tracer("script").start_as_current_span("chat", attributes=said) as span:
        span.set_attribute("gen_ai.usage.input_tokens", 40)
        span.set_attribute("gen_ai.usage.output_tokens", 9)


if __name__ == "__main__":
    with metering, metering.bound(customer="cus_ada"):
        with_langchain()
        with_litellm()
        asyncio.run(with_pydantic_ai())
        asyncio.run(with_openai_agents())
        with_opentelemetry()
