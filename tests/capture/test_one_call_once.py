"""A service under a real server, where middleware, decorator and wrapped client all see the same calls."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from llm_metering import Metering, MeteringMiddleware, from_header
from llm_metering.capture.clients import wrap
from llm_metering.capture.decorators import metered
from llm_metering.settings import Settings
from openai import AsyncOpenAI, OpenAI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

ASK: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello."}]}


class Service:
    """An app that relays a provider, on every kind of route."""

    def __init__(self, origin: str) -> None:
        settings = Settings(deliver="external", encodings=())
        self.metering = metering = Metering(from_header("x-customer"), settings=settings, ledger="memory:")
        self.openai = metering.wrap(AsyncOpenAI(api_key="k", base_url=origin + "/v1", max_retries=0))
        self.sync = metering.wrap(OpenAI(api_key="k", base_url=origin + "/v1", max_retries=0))
        self.create = metering.metered(model="gpt-4o", layer="decorator")(self._create)
        self.words = metering.metered(model="gpt-4o")(self._words)
        self.summarise = metering.metered(model="gpt-4o")(self._summarise)
        app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.relay, methods=["POST"]),
                Route("/words", self.stream_words, methods=["POST"]),
                Route("/thread", self.in_a_thread, methods=["POST"]),
                Route("/background", self.in_the_background, methods=["POST"]),
                Route("/text", self.text, methods=["POST"]),
            ]
        )
        app.add_middleware(MeteringMiddleware, metering=metering)
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
        self.done = threading.Event()
        self._thread = threading.Thread(target=self.server.run, daemon=True)

    async def _create(self, messages: Any) -> Any:
        return await self.openai.chat.completions.create(**ASK)

    async def _words(self, messages: Any) -> AsyncIterator[str]:
        async for chunk in await self.openai.chat.completions.create(**ASK, stream=True):
            yield chunk.choices[0].delta.content or ""

    def _summarise(self, prompt: str) -> str:
        return self.sync.chat.completions.create(**ASK).choices[0].message.content or ""

    async def relay(self, request: Request) -> Response:
        if (await request.json()).get("stream"):
            return StreamingResponse(self._sse(), media_type="text/event-stream")
        answer = await self.create(ASK["messages"])
        return JSONResponse(answer.model_dump())

    async def _sse(self) -> AsyncIterator[str]:
        async for chunk in await self.openai.chat.completions.create(
            **ASK, stream=True, stream_options={"include_usage": True}
        ):
            yield f"data: {chunk.model_dump_json()}\n\n"
        yield "data: [DONE]\n\n"

    async def stream_words(self, request: Request) -> Response:
        return StreamingResponse(self.words(ASK["messages"]), media_type="text/plain")

    async def in_a_thread(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self.summarise, "Say hello."))

    async def in_the_background(self, request: Request) -> Response:
        async def later() -> None:
            await self.create(ASK["messages"])
            self.done.set()

        return JSONResponse({}, background=BackgroundTask(later))

    async def text(self, request: Request) -> Response:
        @self.metering.metered(model="gpt-4o")
        async def answer(prompt: str) -> str:
            await asyncio.sleep(0)
            return "Hello there."

        return JSONResponse(await answer("Say hello."))

    def start(self) -> str:
        self._thread.start()
        while not self.server.started:
            self._thread.join(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        self.sync.close()
        self.server.should_exit = True
        self._thread.join(10)

    def tokens(self) -> dict[str | None, int]:
        """What the ledger holds, by customer."""
        sums: dict[str | None, int] = {}
        for each in self.metering.run_on_ledger(lambda ledger: ledger.usage_sums()):
            sums[each.customer] = sums.get(each.customer, 0) + int(each.value)
        return sums


@pytest.fixture
def service(provider) -> Iterator[Service]:
    service = Service(provider.origin)
    service.url = service.start()
    yield service
    service.stop()


def post(service: Any, path: str, customer: str = "cus_1", **body: Any) -> httpx.Response:
    return httpx.post(service.url + path, json={**ASK, **body}, headers={"x-customer": customer})


def test_an_answer_that_all_three_see_counts_once(service, provider, said):
    provider.json(said.chat())
    assert post(service, "/v1/chat/completions").json()["usage"]["total_tokens"] == 25
    assert service.tokens() == {"cus_1": 25}


def test_a_stream_that_all_three_see_counts_once(service, provider, said):
    provider.events(said.chat_events())
    assert post(service, "/v1/chat/completions", stream=True).text.endswith("data: [DONE]\n\n")
    assert service.tokens() == {"cus_1": 25}


def test_words_of_a_relayed_stream_count_once(service, provider, said):
    provider.events(said.chat_events())
    assert post(service, "/words").text == "Hello there, friend."
    assert service.tokens() == {"cus_1": 25}


def test_text_that_only_the_decorator_sees_is_counted(service):
    assert post(service, "/text").json() == "Hello there."
    (counted,) = service.tokens().values()
    assert counted > 3


def test_calls_in_threads_and_in_background_tasks_belong_to_their_request(service, provider, said):
    provider.json(said.chat())
    post(service, "/thread", "cus_thread")
    post(service, "/background", "cus_background")
    assert service.done.wait(5)
    assert service.metering.run_on_ledger(lambda ledger: None) is None
    assert service.tokens() == {"cus_thread": 25, "cus_background": 25}


def test_a_reader_who_hangs_up_is_billed_for_what_was_produced(service, provider, said):
    gate = threading.Event()
    provider.events(said.chat_events(), first=4, gate=gate)
    with httpx.stream("POST", service.url + "/words", json=ASK, headers={"x-customer": "cus_1"}) as response:
        got = next(response.iter_text())
    assert got
    gate.set()
    for _ in range(200):
        if service.tokens():
            break
        threading.Event().wait(0.02)
    (billed,) = service.tokens().values()
    # The prompt, and the words that came before the server noticed.
    assert 11 <= billed <= 25


def test_no_usage_lands_on_another_customer_under_load(service, provider, said):
    """Canaries: each customer calls a number of its own, over every kind of route."""
    provider.json(said.chat())
    routes = ["/v1/chat/completions", "/thread", "/background"]
    numbers = {f"cus_{n}": 1 + n % 4 for n in range(20)}

    async def load() -> None:
        limits = httpx.Limits(max_connections=20)
        async with httpx.AsyncClient(base_url=service.url, limits=limits, timeout=30) as client:
            await asyncio.gather(*(
                client.post(routes[turn % 3], json=ASK, headers={"x-customer": customer})
                for customer, number in numbers.items()
                for turn in range(number)
            ))  # fmt: skip

    asyncio.run(load())
    expected = {customer: 25 * number for customer, number in numbers.items()}
    for _ in range(200):
        if service.tokens() == expected:
            break
        threading.Event().wait(0.02)
    assert service.tokens() == expected


def test_what_is_dropped_in_cycles_under_constant_collection_counts_once(bench, provider, said):
    """The collector closes dropped streams and generators in any order, on any thread, at any moment."""
    provider.events(said.chat_events())
    client = wrap(OpenAI(api_key="k", base_url=provider.origin + "/v1"), bench.recorder)

    @functools.partial(metered, bench.recorder, model="gpt-4o")()
    def words(prompt: str) -> Iterator[str]:
        for chunk in client.chat.completions.create(**ASK, stream=True):
            yield chunk.choices[0].delta.content or ""

    def work(turns: range) -> None:
        for turn in turns:
            stream: Any = words("Hello") if turn % 2 else client.chat.completions.create(**ASK, stream=True)
            holder: list[Any] = [stream]
            holder.append(holder)
            for n, _ in enumerate(stream):
                if n == turn % 8:
                    break
            del stream, holder

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        threads = [threading.Thread(target=work, args=(range(n, n + 16),), daemon=True) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a collection waits for a lock that its own thread holds"
    finally:
        gc.set_threshold(*before)
        client.close()
    for _ in range(3):
        gc.collect()
        bench.drain()
    assert len(bench.records) == 3 * 16
    assert not bench.sink.rows
    assert {record.surface for record in bench.records} == {"client"}
