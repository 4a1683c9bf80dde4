"""One call that everything sees at once is one record: client, middleware, decorator and all adapters."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from llm_metering import MeteringMiddleware, from_state
from openai import AsyncOpenAI
from opentelemetry.sdk.trace import TracerProvider
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

pytest.importorskip("agents", reason="openai-agents is not installed")
pytest.importorskip("langchain_core", reason="langchain-core is not installed")
pytest.importorskip("litellm", reason="litellm is not installed")
pytest.importorskip("pydantic_ai", reason="pydantic-ai-slim is not installed")

import agents
import litellm
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from agents.models.openai_responses import OpenAIResponsesModel
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from llm_metering.adapters.langchain import LangChainCallback
from llm_metering.adapters.litellm import LiteLLMCallback
from llm_metering.adapters.openai_agents import MeteringHooks
from llm_metering.adapters.opentelemetry import GenAISpanProcessor
from llm_metering.adapters.pydantic_ai import MeteredModel
from llm_metering.capture.transport import MeteringTransport
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.usage import RequestUsage

OPENAI_HTTP: Any = importlib.import_module("httpx" if int(openai.__version__.split(".")[0]) < 3 else "httpx2")
"""What the SDK is built on."""

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ASK: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello there"}]}


CALLS = ["wrapped", "over_a_transport", "through_litellm", "wrapped through_litellm"]
LITELLM = (
    "completion", "acompletion", "text_completion", "atext_completion", "embedding", "aembedding",
    "responses", "aresponses",
)  # fmt: skip


class Over(BaseChatModel):
    """A LangChain model over any call that answers as OpenAI does."""

    call: Any

    @property
    def _llm_type(self) -> str:
        return "over"

    def _generate(self, *given: Any, **more: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(self, *given: Any, **more: Any) -> ChatResult:
        said = await self.call()
        usage = said.usage
        message = AIMessage(
            said.choices[0].message.content,
            usage_metadata={
                "input_tokens": usage.prompt_tokens,
                "output_tokens": usage.completion_tokens,
                "total_tokens": usage.total_tokens,
                "output_token_details": {
                    "reasoning": usage.completion_tokens_details.reasoning_tokens,
                },
            },
            response_metadata={"id": said.id, "model_name": said.model},
        )
        message.additional_kwargs["said"] = said
        return ChatResult(generations=[ChatGeneration(message=message)])


class Layers:
    """Every adapter there is, one over the other, down to one call."""

    def __init__(self, metering: Any, provider: Any) -> None:
        self.metering = metering
        self.client: Any = metering.wrap(AsyncOpenAI(base_url=provider.base_url, api_key="k"))
        traces = TracerProvider()
        traces.add_span_processor(GenAISpanProcessor(metering))
        self.tracer = traces.get_tracer("layers")
        self.langchain = LangChainCallback(metering)
        self.hooks = MeteringHooks(metering)
        self.api_base = provider.base_url

    async def traced(self, call: Any) -> Any:
        attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-5-mini"}
        with self.tracer.start_as_current_span("chat", attributes=attributes) as span:
            said = await call()
            span.set_attribute("gen_ai.response.id", said.id)
            span.set_attribute("gen_ai.usage.input_tokens", said.usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", said.usage.completion_tokens)
            return said

    async def chained(self, call: Any) -> Any:
        answer = await Over(call=lambda: self.traced(call)).ainvoke(
            "Hello there", config={"callbacks": [self.langchain]}
        )
        return answer.additional_kwargs["said"]

    async def agent(self, call: Any, *, with_id: bool) -> Any:
        """PydanticAI over LangChain over OpenTelemetry."""
        found = []

        async def answer(messages: Any, info: Any) -> ModelResponse:
            said = await self.chained(call)
            found.append(said)
            usage = RequestUsage(
                input_tokens=said.usage.prompt_tokens, output_tokens=said.usage.completion_tokens
            )
            named = said.id if with_id else None
            return ModelResponse([TextPart("Hello")], usage=usage, provider_response_id=named)

        await Agent(MeteredModel(FunctionModel(answer), self.metering)).run("Hello there")
        return found[0]

    async def wrapped(self) -> Any:
        return await self.client.chat.completions.create(**ASK)

    async def over_a_transport(self) -> Any:
        """A client that nothing wraps, but its HTTP."""
        transport: Any = MeteringTransport(self.metering)
        async with AsyncOpenAI(
            base_url=self.api_base, api_key="k", http_client=OPENAI_HTTP.AsyncClient(transport=transport)
        ) as client:
            return await client.chat.completions.create(**ASK)

    async def through_litellm(self) -> Any:
        return await litellm.acompletion(
            **{**ASK, "model": "openai/gpt-5-mini"}, api_base=self.api_base, api_key="k"
        )


@pytest.fixture
def layers(metering, provider) -> Iterator[Layers]:
    before = litellm.callbacks
    litellm.callbacks = [LiteLLMCallback(metering)]
    yield Layers(metering, provider)
    ours = litellm.callbacks[0]
    litellm.callbacks = before
    for name in ("success_callback", "_async_success_callback", "failure_callback", "_async_failure_callback",
                 "input_callback", "_async_input_callback"):  # fmt: skip
        setattr(litellm, name, [each for each in getattr(litellm, name, []) if each is not ours])


@pytest.mark.parametrize("with_id", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_every_layer_sees_is_one_record(
    layers, metering, used, serving, provider, monkeypatch, call, with_id
):
    metering.recorder.naming.resolver = from_state("customer")
    if call.startswith("wrapped "):
        for name in LITELLM:
            monkeypatch.setattr(litellm, name, getattr(litellm, name))  # put back in the end
        metering.wrap(litellm)

    @metering.metered(model="gpt-5-mini")
    async def answered() -> Any:
        return await layers.agent(getattr(layers, call.rpartition(" ")[2]), with_id=with_id)

    async def chat(request: Request) -> Response:
        request.state.customer = request.headers["x-test-customer"]
        said = await answered()
        return JSONResponse(said.model_dump(mode="json"))

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    app.add_middleware(MeteringMiddleware, metering=metering)
    url = serving(app)

    async def ask() -> list[Any]:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            return [
                each.json()
                for each in await asyncio.gather(*(
                    client.post("/v1/chat/completions", json=ASK, headers={"x-test-customer": f"cus_{n}"})
                    for n in range(4)
                ))
            ]  # fmt: skip

    answers = asyncio.run(ask())
    records = used.still(4)
    assert sorted(str(r.response_id) for r in records) == sorted(answer["id"] for answer in answers)
    assert sorted(str(r.customer) for r in records) == [f"cus_{n}" for n in range(4)]
    for record in records:
        assert record.usage.total == sum(provider.tokens(str(record.response_id)).values())


@pytest.mark.parametrize("model", [OpenAIResponsesModel, OpenAIChatCompletionsModel])
def test_an_agents_run_with_hooks_wrapped_client_and_spans_is_one_record(layers, used, model):
    agent = agents.Agent(name="a", model=model("gpt-5-mini", layers.client))
    quiet = agents.RunConfig(tracing_disabled=True)

    async def run() -> None:
        with layers.tracer.start_as_current_span("invoke_agent"):
            await agents.Runner.run(agent, "Hello", hooks=layers.hooks, run_config=quiet)

    asyncio.run(run())
    used.still(1)


def test_a_stream_of_litellm_behind_the_middleware_is_one_record(layers, metering, used, serving):
    async def chat(request: Request) -> Response:
        stream = await litellm.acompletion(
            **{**ASK, "model": "openai/gpt-5-mini"}, api_base=layers.api_base, api_key="k",
            stream=True, stream_options={"include_usage": True},
        )  # fmt: skip

        async def events() -> Any:
            async for chunk in stream:
                yield f"data: {chunk.model_dump_json()}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    app.add_middleware(MeteringMiddleware, metering=metering)
    answer = httpx.post(serving(app) + "/v1/chat/completions", json=ASK, timeout=30)
    assert "[DONE]" in answer.text
    assert used.still(1)[0].provenance == "reported"


@pytest.mark.parametrize("streamed", [False, True])
def test_an_app_that_answers_under_an_id_of_its_own_is_billed_once(layers, metering, used, serving, streamed):
    """LiteLLM tells of a call when the app has answered, and the middleware has read that, already."""

    async def chat(request: Request) -> Response:
        said = await litellm.acompletion(
            **{**ASK, "model": "openai/gpt-5-mini"}, api_base=layers.api_base, api_key="k",
            stream=streamed, **({"stream_options": {"include_usage": True}} if streamed else {}),
        )  # fmt: skip
        if not streamed:
            return JSONResponse({**said.model_dump(mode="json"), "id": "chatcmpl-mine"})

        async def events() -> Any:
            async for chunk in said:
                body = {**chunk.model_dump(mode="json"), "id": "chatcmpl-mine"}
                yield f"data: {json.dumps(body)}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    app.add_middleware(MeteringMiddleware, metering=metering)
    url = serving(app)

    async def ask() -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            await asyncio.gather(*(client.post(f"{url}/v1/chat/completions", json=ASK) for _ in range(4)))

    asyncio.run(ask())
    used.still(4)


def test_an_adapter_loads_no_library_but_its_own():
    code = "import sys, llm_metering.adapters.opentelemetry; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(out.stdout.split())
    assert "opentelemetry.sdk.trace" in loaded
    assert not {"agents", "langchain_core", "litellm", "openai", "pydantic_ai"} & loaded
