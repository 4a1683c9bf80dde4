"""The middleware under uvicorn, on real sockets, over a real ledger on disk."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI, Request
from llm_metering import Metering, MeteringMiddleware, Settings, from_api_key
from llm_metering.capture import context
from llm_metering.ledger import LedgerView
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, StreamingResponse

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
"""Eight tokens: three a message, the role, the word, three for the answer."""
KEYS = {"ann": "cus_ann", "ben": "cus_ben"}
Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: Any, **options: Any) -> str:
        config = uvicorn.Config(app, port=0, log_level="warning", access_log=False, **options)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        until(lambda: server.started or not thread.is_alive())
        assert server.started
        start.stop = lambda: stop(server, thread)  # type: ignore[attr-defined]
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    def stop(server: uvicorn.Server, thread: threading.Thread) -> None:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()

    yield start
    for server, thread in running:
        stop(server, thread)


def until(done: Callable[[], Any], limit_s: float = 15) -> None:
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def metering(folder: Path) -> Metering:
    return Metering(customer=from_api_key(KEYS.get), settings=Settings(ledger=str(folder)))


def tokens(folder: Path) -> dict[str | None, int]:
    """What the ledger on disk holds, by customer, read as another process would."""
    sums: dict[str | None, int] = {}
    for row in LedgerView(folder).usage_sums():
        sums[row.customer] = sums.get(row.customer, 0) + int(row.value)
    return sums


def status(folder: Path) -> Any:
    return LedgerView(folder).status(now=time.time())


def chat_app(metering: Metering, wire: Any, *, base: bool = False) -> FastAPI:
    app = FastAPI()
    app.add_middleware(MeteringMiddleware, metering=metering)
    if base:

        async def dispatch(request: Any, call_next: Any) -> Any:
            return await call_next(request)

        app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)

    @app.post("/v1/chat/completions")
    async def chat(request: Request, n: int = 0) -> Any:
        asked = await request.json()
        if not asked.get("stream"):
            return JSONResponse(wire.chat(id=f"chatcmpl-{n}", usage=USAGE))

        async def events() -> Any:
            whole = wire.events([" word"] * asked.get("words", 3), id=f"chatcmpl-{n}", usage=USAGE)
            for i, event in enumerate(whole):
                if i == asked.get("stall_after"):
                    await asyncio.sleep(3600)
                yield event

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


def post_and_hang_up(url: str, body: dict[str, Any], *, words: int) -> None:
    """A client that closes its connection once it has seen so many words of the stream."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), 10) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n"
        connection.sendall(head.encode() + b"x-api-key: ann\r\n\r\n" + content)
        seen = b""
        while seen.count(b" word") < words:
            part = connection.recv(65536)
            assert part
            seen += part


@pytest.mark.parametrize("base", [False, True], ids=["plain", "under BaseHTTPMiddleware"])
def test_a_client_that_hangs_up_half_way_is_billed_once_without_noise(
    serve, metering, folder, wire, caplog, base
):
    url = serve(chat_app(metering, wire, base=base))
    with caplog.at_level(logging.WARNING):
        asked = {**ASKED, "words": 9, "stall_after": 6}
        post_and_hang_up(url, asked, words=6)
        until(lambda: status(folder).usage_records == 1)
    assert status(folder).streams_under_way == 0
    assert tokens(folder) == {"cus_ann": 6 + 8}
    noise = [r for r in caplog.records if "delivery.paused" not in r.getMessage()]
    assert noise == []


@pytest.mark.parametrize("lifespan", ["on", "off"])
def test_when_a_client_has_its_whole_answer_its_usage_is_on_disk(serve, metering, folder, wire, lifespan):
    url = serve(chat_app(metering, wire), lifespan=lifespan)
    with httpx.Client(base_url=url, headers={"x-api-key": "ben"}) as client:
        for n in range(20):
            body = {"model": "gpt-4o-mini", "stream": bool(n % 2)}
            client.post(f"/v1/chat/completions?n={n}", json=body).raise_for_status()
            assert tokens(folder) == {"cus_ben": 13 * (n + 1)}
    serve.stop()
    metering.stop()


def test_64_clients_of_two_customers_at_once_are_each_billed_their_own(serve, folder, wire):
    async def lookup(key: str) -> str | None:
        await asyncio.sleep(0.002)
        return KEYS.get(key)

    metering = Metering(customer=from_api_key(lookup), settings=Settings(ledger=str(folder)))
    app = chat_app(metering, wire)

    async def slow(n: int) -> None:
        await asyncio.sleep(0.001 * (n % 5))

    @app.post("/thread", dependencies=[Depends(slow)])
    def thread(n: int) -> str:
        metering.bind(feature=f"f{n % 2}")
        metering.record(wire.chat(id=f"t-{n}", usage=USAGE))
        return "ok"

    url = serve(app)

    async def client(http: httpx.AsyncClient, n: int) -> None:
        headers = {"x-api-key": ("ann", "ben")[n % 2]}
        body = {"model": "gpt-4o-mini", "stream": bool(n % 3), "words": n % 7}
        for path in ("/v1/chat/completions", "/thread", "/v1/chat/completions"):
            (await http.post(f"{path}?n={n}", json=body, headers=headers)).raise_for_status()

    async def all_clients() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            await asyncio.gather(*(client(http, n) for n in range(64)))

    asyncio.run(all_clients())
    assert tokens(folder) == {"cus_ann": 32 * 3 * 13, "cus_ben": 32 * 3 * 13}
    assert status(folder).usage_records == 64 * 3
    assert status(folder).streams_under_way == 0


def test_a_stream_that_outlives_the_grace_period_is_in_the_books_after_a_restart(
    serve, metering, folder, wire
):
    app = chat_app(metering, wire)
    url = serve(app, timeout_graceful_shutdown=1)
    asked = {**ASKED, "words": 50, "stall_after": 40}
    client = threading.Thread(
        target=lambda: _read_until_it_breaks(url, asked), daemon=True, name="client of a stream"
    )
    client.start()
    until(lambda: folder.exists() and status(folder).streams_under_way == 1)
    time.sleep(0.4)  # past the second row
    serve.stop()
    client.join(10)
    with Metering(settings=Settings(ledger=str(folder))) as again:
        until(lambda: again.status().streams_under_way == 0)
        assert again.status().usage_records == 1
    assert tokens(folder) == {"cus_ann": 40 + 8}


def _read_until_it_breaks(url: str, asked: dict[str, Any]) -> None:
    try:
        httpx.post(f"{url}/v1/chat/completions", json=asked, headers={"x-api-key": "ann"}, timeout=20)
    except httpx.HTTPError:
        return


def test_a_ledger_that_cannot_be_written_keeps_the_server_from_starting_and_says_why(tmp_path, wire, caplog):
    (tmp_path / "file").write_text("not a folder")
    metering = Metering("cus_1", settings=Settings(ledger=str(tmp_path / "file")))
    server = uvicorn.Server(uvicorn.Config(chat_app(metering, wire), port=0, log_level="error"))
    with pytest.raises(SystemExit), caplog.at_level(logging.ERROR):
        server.run()
    assert not server.started
    assert str(tmp_path / "file") in caplog.text


class Connection:
    """One keep-alive connection, such as a proxy has for the requests of all of its clients."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=15)
        self._file = self._socket.makefile("rb")

    def send(self, *requests: tuple[str, str, bytes], lacks: int = 0) -> None:
        """Send requests at once; of the last one's body so many bytes are still to come."""
        written = b""
        for path, key, body in requests:
            head = f"POST {path} HTTP/1.1\r\nHost: app\r\nAuthorization: Bearer {key}\r\n"
            written += f"{head}Content-Length: {len(body) + lacks}\r\n\r\n".encode() + body
        self._socket.sendall(written)

    def send_late(self, rest: bytes) -> None:
        """The rest of a body, once the app waits for it."""
        time.sleep(0.3)
        self._socket.sendall(rest)

    def answer(self) -> bytes:
        length = 0
        while (line := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = line.lower().partition(b":")
            length = int(value) if name == b"content-length" else length
        return self._file.read(length)

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.fixture
def shared(serve: Serve, metering: Metering) -> Iterator[Connection]:
    """A connection to an app that is metered in one part, and uses something in another."""

    async def use(request: Request) -> JSONResponse:
        await request.body()
        metering.record({"id": str(time.time_ns()), "usage": USAGE, "object": "chat.completion"})
        return JSONResponse({})

    async def ignore(request: Request) -> JSONResponse:
        return JSONResponse({})

    async def bound(scope: Any, receive: Any, send: Any) -> None:
        with metering.bound(customer="cus_ann"):
            await JSONResponse({"length": len(await Request(scope, receive).body())})(scope, receive, send)

    part = FastAPI()
    part.mount("/bound", bound)
    part.add_route("/use", use, methods=["POST"])
    part.add_route("/ignore", ignore, methods=["POST"])
    app = FastAPI()
    app.add_route("/use", use, methods=["POST"])
    app.mount("/metered", MeteringMiddleware(part, metering))
    with metering:
        connection = Connection(serve(app))
        yield connection
        connection.close()


LONG = b"x" * 1_000_000
"""So much that the server stops reading, and reads on when the app asks for it or has answered."""


@pytest.mark.parametrize(
    ("path", "body", "at_once"),
    [("/metered/use", LONG, False), ("/metered/use", b"", True), ("/metered/ignore", LONG, False),
     ("/metered/bound", LONG, False), ("/metered/bound", b"", True)],
)  # fmt: skip
def test_who_comes_next_on_a_connection_is_nobody_who_came_before(
    shared, metering, folder, path, body, at_once
):
    first, second = (path, "ann", body), ("/use", "ben", b"{}")
    if at_once:
        shared.send(first, second)
        shared.answer()
    else:
        shared.send(first)
        shared.answer()
        shared.send(second)
    shared.answer()
    until(lambda: None in tokens(folder))
    by_ann = {"cus_ann": 13} if path == "/metered/use" else {}
    assert tokens(folder) == {**by_ann, None: 13}


@pytest.mark.parametrize("path", ["/metered/use", "/metered/bound"])
def test_nor_who_comes_after_a_body_that_was_waited_for(shared, metering, folder, path):
    """The server reads on as the app asks for more, and stays with that until the next request."""
    shared.send((path, "ann", LONG), lacks=1)
    shared.send_late(b"x")
    shared.answer()
    shared.send(("/use", "ben", b"{}"))
    shared.answer()
    until(lambda: None in tokens(folder))
    by_ann = {"cus_ann": 13} if path == "/metered/use" else {}
    assert tokens(folder) == {**by_ann, None: 13}


def test_a_connection_that_is_used_again_and_again_holds_no_request_that_is_over(shared):
    before = requests_alive()
    for _ in range(20):
        # Nothing is recorded, or the timers of waiting for the disk would keep some for a while.
        shared.send(("/metered/ignore", "ann", LONG), ("/metered/ignore", "ann", b"{}"))
        shared.answer()
        shared.answer()
    assert requests_alive() - before < 10


def requests_alive() -> int:
    gc.collect()
    return sum(isinstance(each, context.Request) for each in gc.get_objects())
