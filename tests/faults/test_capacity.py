"""A service whose ledger has no room: the three policies, and that nobody else is in their way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from llm_metering import Metering, MeteringMiddleware, Settings, SqliteLedger
from llm_metering.ledger import pen as pen_module
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

ANSWER = {
    "id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-5-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pen_module, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(pen_module, "LONGEST_RETRY_S", 0.02)


class Service:
    """An app that calls a model in some of its routes, and its ledger."""

    def __init__(self, folder: Path, policy: Any) -> None:
        self.ledger = SqliteLedger(folder)
        self.alarms: list[str] = []
        self.served: list[str] = []
        self.metering = Metering(
            customer="cus_1",
            ledger=self.ledger,
            settings=Settings(at_capacity=policy, commit_timeout_s=0.6, encodings=()),
            on_alarm=lambda alarm: self.alarms.append(alarm.name),
        )
        routes = [
            Route("/chat/{thread}", self.chat, methods=["POST", "GET"]),
            Route("/v1/chat/completions", self.gateway, methods=["POST"]),
            Route("/health", self.health),
            Route("/quiet", self.health, methods=["POST"]),
            WebSocketRoute("/live/{thread}", self.live),
        ]
        self.app = MeteringMiddleware(Starlette(routes=routes), self.metering)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://service")

    async def chat(self, request: Request) -> JSONResponse:
        self.served.append(request.url.path)
        self.metering.record(ANSWER, id=f"call-{len(self.served)}")
        return JSONResponse({})

    async def gateway(self, request: Request) -> JSONResponse:
        self.served.append(request.url.path)
        return JSONResponse({**ANSWER, "id": f"chatcmpl-{len(self.served)}"})

    async def health(self, request: Request) -> JSONResponse:
        return JSONResponse({})

    async def live(self, socket: Any) -> None:
        await socket.accept()
        self.served.append(socket.url.path)
        self.metering.record(ANSWER, id=f"call-{len(self.served)}")
        await socket.close()

    def take_room(self) -> None:
        self.ledger._lanes.room._max = 1

    def give_room(self) -> None:
        self.ledger._lanes.room._max = 0

    async def fill(self) -> None:
        """One request that nobody could stop, since nothing was known of its path, meets the full disk."""
        self.take_room()
        assert (await self.http.post("/chat/1")).status_code == 200
        await wait_for(lambda: not self.metering.has_room())

    def recorded(self) -> int:
        return self.metering.status().usage_records


async def wait_for(ready: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < ends_at, "it did not come true"
        await asyncio.sleep(0.005)


def run(folder: Path, policy: Any, play: Callable[[Service], Any]) -> None:
    async def main() -> None:
        service = Service(folder / "ledger", policy)
        async with service.metering:
            await play(service)

    asyncio.run(main())


def test_reject_answers_503_before_the_model_is_called_and_only_where_requests_are_metered(tmp_path):
    async def play(service: Service) -> None:
        await service.fill()
        before = list(service.served)
        answer = await service.http.post("/chat/2")  # another thread of the same route
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert answer.json()["error"]["code"] == "metering_unavailable"
        assert (await service.http.post("/v1/chat/completions", json={})).status_code == 503
        assert service.served == before, "the model was called"
        for method, path in (("GET", "/health"), ("POST", "/quiet"), ("GET", "/nothing")):
            assert (await service.http.request(method, path)).status_code in (200, 404)
        assert "ledger.full" in service.alarms
        service.give_room()
        await wait_for(service.metering.has_room)
        assert (await service.http.post("/chat/2")).status_code == 200
        assert service.recorded() == 2, "what was used while there was no room was kept"

    run(tmp_path, "reject", play)


def test_reject_closes_a_websocket_that_would_use_something(tmp_path):
    async def connect(service: Service) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": "/live/1", "headers": [], "query_string": b"", "root_path": ""}
        await service.app({**scope, "scheme": "ws", "subprotocols": []}, receive, send)
        return sent

    async def play(service: Service) -> None:
        assert (await connect(service))[0]["type"] == "websocket.accept"
        await service.fill()
        before = list(service.served)
        assert await connect(service) == [
            {"type": "websocket.close", "code": 1013, "reason": "try again later"}
        ]
        assert service.served == before

    run(tmp_path, "reject", play)


def test_block_waits_for_room_and_no_longer_than_it_may(tmp_path):
    async def play(service: Service) -> None:
        await service.fill()
        began = time.monotonic()
        assert (await service.http.post("/chat/2")).status_code == 503
        assert 0.55 <= time.monotonic() - began < 10
        waiting = asyncio.ensure_future(service.http.post("/chat/3"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        service.give_room()
        assert (await waiting).status_code == 200
        assert service.served == ["/chat/1", "/chat/3"]

    run(tmp_path, "block", play)


def test_allow_unmetered_serves_without_delay_counts_and_raises_an_alarm(tmp_path):
    async def play(service: Service) -> None:
        await service.fill()
        began = time.monotonic()
        for _ in range(5):
            assert (await service.http.post("/chat/2")).status_code == 200
        assert time.monotonic() - began < 5 * 0.6, "it waited for a disk that takes nothing"
        assert service.metering.telemetry.snapshot()["capacity.unmetered"] == 5
        assert service.alarms.count("capacity.unmetered") == 1
        service.give_room()
        await wait_for(service.metering.has_room)
        assert service.recorded() == 6, "what memory could hold was kept all the same"

    run(tmp_path, "allow_unmetered", play)
