"""Real provider answers through the whole chain: wire, SDK, service, ledger, delivery, Stripe's books.

Each recorded exchange is served by a local server in its original wire form and called through the real SDK
inside a metered service under uvicorn. The sandbox's books must then hold what the providers reported.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import Response, StreamingResponse
from llm_metering import Metering, MeteringMiddleware, Settings, TokenMeter, billing, from_state
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

PROVIDERS = ("openai", "azure-openai", "groq", "mistral", "deepseek", "together", "anthropic")
BASE = {"groq": "/openai/v1", "deepseek": "/beta"}
SKIPPED_APIS = {"assistants"}  # runs on OpenAI's servers; no answer passes through the service
SHARED = Path(os.environ.get("LLM_METERING_SHARED", Path(__file__).parents[3] / "shared"))
EXCHANGES = Path(os.environ.get("LLM_METERING_EXCHANGES", SHARED / "exchanges"))

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not EXCHANGES.is_dir(), reason=f"recorded exchanges are missing: {EXCHANGES}"),
]


def recorded(provider: str) -> list[dict[str, Any]]:
    lines = (EXCHANGES / f"{provider}.jsonl").read_text().splitlines()
    return [each for each in map(json.loads, lines) if each["api"] not in SKIPPED_APIS]


# The provider: answers as they were recorded.


def provider(exchanges: dict[str, dict[str, Any]]) -> FastAPI:
    app = FastAPI()

    @app.post("/{path:path}")
    async def answer(request: Request, x_exchange: Annotated[str, Header()]) -> Response:
        exchange = exchanges[x_exchange]
        if request.url.path != exchange["path"]:
            raise HTTPException(404, f"recorded at {exchange['path']}, called at {request.url.path}")
        if exchange["stream"]:
            return StreamingResponse(wire(exchange), media_type="text/event-stream")
        return Response(json.dumps(exchange["response"]), media_type="application/json")

    return app


async def wire(exchange: dict[str, Any]) -> AsyncIterator[str]:
    for event in exchange["response"]:
        named = f"event: {event['type']}\n" if exchange["api"] in ("messages", "responses") else ""
        yield f"{named}data: {json.dumps(event)}\n\n"
    if exchange["api"] in ("chat", "completions"):
        yield "data: [DONE]\n\n"


# The service: a metered FastAPI app that calls the provider through its SDK.


def clients(metering: Metering, url: str, provider: str, deployment: str | None) -> tuple[Any, Any]:
    """A plain and an async SDK client, both metered."""
    if provider == "anthropic":
        made: list[Any] = [kind(base_url=url, api_key="any") for kind in (Anthropic, AsyncAnthropic)]
    elif provider == "azure-openai":
        made = [
            kind(azure_endpoint=url, azure_deployment=deployment, api_key="any", api_version="2024-10-21")
            for kind in (AzureOpenAI, AsyncAzureOpenAI)
        ]
    else:
        base_url = url + BASE.get(provider, "/v1")
        made = [kind(base_url=base_url, api_key="any") for kind in (OpenAI, AsyncOpenAI)]
    plain, concurrent = map(metering.wrap, made)
    return plain, concurrent


def client_of(exchange: dict[str, Any]) -> tuple[str, str | None]:
    """Provider, and for Azure the deployment, which is part of the URL."""
    is_azure = exchange["provider"] == "azure-openai"
    return exchange["provider"], exchange["path"].split("/")[3] if is_azure else None


def call(client: Any, exchange: dict[str, Any]) -> Any:
    """The recorded request through the SDK; what its signature does not know goes into the body as it is."""
    resources = {
        "chat": lambda: client.chat.completions,
        "completions": lambda: client.completions,
        "embeddings": lambda: client.embeddings,
        "responses": lambda: client.responses,
        "messages": lambda: client.messages,
    }
    create = resources[exchange["api"]]().create
    request = {name: value for name, value in exchange["request"].items() if value is not None}
    known = inspect.signature(create).parameters
    return create(
        **{name: value for name, value in request.items() if name in known},
        extra_body={name: value for name, value in request.items() if name not in known},
        extra_headers={"x-exchange": exchange["id"]},
    )


def service(
    metering: Metering, url: str, exchanges: dict[str, dict[str, Any]], customers: dict[str, str]
) -> FastAPI:
    app = FastAPI()
    app.add_middleware(MeteringMiddleware, metering=metering)
    sdk = {key: clients(metering, url, *key) for key in {client_of(each) for each in exchanges.values()}}

    def authenticate(request: Request, x_api_key: Annotated[str, Header()]) -> None:
        request.state.stripe_customer_id = customers[x_api_key]

    auth = [Depends(authenticate)]

    @app.post("/plain/{id}", dependencies=auth)
    def plain(id: str) -> Response:
        metering.bind(exchange=id)
        answer = call(sdk[client_of(exchanges[id])][0], exchanges[id])
        if not exchanges[id]["stream"]:
            return Response(answer.model_dump_json(warnings=False), media_type="application/json")

        def events() -> Iterator[str]:
            for event in answer:
                yield f"data: {event.model_dump_json(warnings=False)}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.post("/async/{id}", dependencies=auth)
    async def concurrent(id: str) -> Response:
        metering.bind(exchange=id)
        answer = await call(sdk[client_of(exchanges[id])][1], exchanges[id])
        if not exchanges[id]["stream"]:
            return Response(answer.model_dump_json(warnings=False), media_type="application/json")

        async def events() -> AsyncIterator[str]:
            async for event in answer:
                yield f"data: {event.model_dump_json(warnings=False)}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


# What the provider billed.


def billed(exchange: dict[str, Any]) -> dict[str, int]:
    """Token types as reported, worked out here and not by the package's readers."""
    usage = exchange["usage"]
    if exchange["api"] == "messages":
        counts = {
            "input": usage["input_tokens"],
            "cached_input": usage.get("cache_read_input_tokens") or 0,
            "cached_write": usage.get("cache_creation_input_tokens") or 0,
            "output": usage["output_tokens"],
        }
    else:
        of = "input" if exchange["api"] == "responses" else "prompt"
        details = usage.get(f"{of}_tokens_details") or {}
        cached = details.get("cached_tokens") or usage.get("prompt_cache_hit_tokens") or 0
        output = usage.get("output_tokens" if of == "input" else "completion_tokens") or 0
        counts = {"input": usage[f"{of}_tokens"] - cached, "cached_input": cached, "output": output}
    return {kind: count for kind, count in counts.items() if count}


def model_of(exchange: dict[str, Any]) -> str:
    answer = exchange["response"]
    for event in answer if isinstance(answer, list) else [answer]:
        for part in (event, event.get("response"), event.get("message")):
            if isinstance(part, dict) and part.get("model"):
                return str(part["model"])
    return str(exchange["request"]["model"])


async def ask_all(url: str, exchanges: list[dict[str, Any]]) -> None:
    gate = asyncio.Semaphore(8)

    async def ask(client: httpx.AsyncClient, n: int, exchange: dict[str, Any]) -> None:
        path = f"{url}/{'plain' if n % 2 else 'async'}/{exchange['id']}"
        async with gate:
            answer = await client.post(path, headers={"x-api-key": exchange["provider"]})
        assert answer.status_code == 200, (exchange["id"], answer.text)
        assert answer.content, exchange["id"]

    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        await asyncio.gather(*(ask(client, n, each) for n, each in enumerate(exchanges)))


@pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")
def test_stripes_books_hold_what_the_providers_reported(serve, sandbox, tmp_path, capsys):
    everything = [each for provider in PROVIDERS for each in recorded(provider)]
    exchanges = {each["id"]: each for each in everything}
    assert len(exchanges) == len(everything) > 300
    settings = Settings(stripe_api_key=sandbox.api_key, stripe_api_base=sandbox.url, bucket_s=1)
    # One more dimension than the default, so that every single exchange can be held against the books.
    meter = TokenMeter(dimensions=("model", "token_type", "exchange"))
    metering = Metering(
        customer=from_state("stripe_customer_id"),
        settings=settings,
        ledger=tmp_path / "ledger",
        meters=[meter],
    )
    stripe = sandbox.client()
    billing.apply(billing.PayAsYouGo(), stripe)
    customers = {name: billing.create_customer(stripe, name) for name in PROVIDERS}
    url = serve(service(metering, serve(provider(exchanges)), exchanges, customers))
    asyncio.run(ask_all(url, everything))
    assert metering.flush(60) == 0

    rows = sandbox.books()
    by_exchange: dict[str, Counter[tuple[str, str, str]]] = defaultdict(Counter)
    for row in rows:
        kind = (row.customer, row.dimensions["model"], row.dimensions["token_type"])
        by_exchange[row.dimensions["exchange"]][kind] += int(row.value)

    exact: Counter[str] = Counter()
    wrong = []
    for exchange in everything:
        found = dict(by_exchange.get(exchange["id"], {}))
        customer, model = customers[exchange["provider"]], model_of(exchange)
        expected = {(customer, model, kind): count for kind, count in billed(exchange).items()}
        if found == expected:
            exact[exchange["provider"]] += 1
        else:
            wrong.append((exchange["id"], exchange["source"], expected, found))
    with capsys.disabled():
        print()
        for name in PROVIDERS:
            print(f"  {name:<14}{exact[name]:>4} of {len(recorded(name)):>4} exact in Stripe's books")
    assert not wrong, wrong[:5]
    assert by_exchange.keys() == exchanges.keys()
    status = metering.status()
    assert status.usage_records == len(everything)
    assert status.conserved
    assert status.unresolved_records == status.held_records == 0
