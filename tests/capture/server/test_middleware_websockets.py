"""Realtime-shaped websockets: usage in what the app says, each answer once."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from llm_metering.capture.middleware import MeteringMiddleware
from llm_metering.customers import from_state
from llm_metering.usage import Reading, Usage
from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

pytest.importorskip("websockets", reason="websockets is not installed")

from websockets.sync.client import connect

SESSION = {"type": "session.created", "session": {"id": "sess_1", "model": "gpt-realtime"}}


def done(n: int = 1, *, text: int = 20, audio: int = 100, out: int = 50) -> dict[str, Any]:
    """The message that ends one answer of the model."""
    return {
        "type": "response.done",
        "event_id": f"event_{n}",
        "response": {
            "id": f"resp_{n}",
            "object": "realtime.response",
            "status": "completed",
            "usage": {
                "total_tokens": text + audio + out,
                "input_tokens": text + audio,
                "output_tokens": out,
                "input_token_details": {"text_tokens": text, "audio_tokens": audio, "cached_tokens": 0},
                "output_token_details": {"text_tokens": 10, "audio_tokens": out - 10},
            },
        },
    }


LIVE = {
    "usageMetadata": {"promptTokenCount": 30, "responseTokenCount": 12, "totalTokenCount": 42},
    "serverContent": {"turnComplete": True},
}


def talking(*said: Any, path: str = "/v1/realtime", middleware: Any = None) -> Starlette:
    """An app that accepts, says these messages (as text, or as bytes) and closes."""

    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        for each in said:
            if isinstance(each, bytes):
                await socket.send_bytes(each)
            else:
                await socket.send_text(each if isinstance(each, str) else json.dumps(each))
        await socket.close()

    return Starlette(routes=[WebSocketRoute(path, talk)])


def heard_by(app: Any, path: str = "/v1/realtime") -> list[Any]:
    """What a client receives until the end."""
    found = []
    with TestClient(app).websocket_connect(path) as socket:
        while True:
            message = socket.receive()
            if message["type"] == "websocket.close":
                return found
            found.append(message.get("text") or message.get("bytes"))


@pytest.mark.parametrize("as_bytes", [False, True])
def test_each_answer_of_a_conversation_is_recorded_and_every_message_passes(home, as_bytes):
    said = [SESSION, done(1), {"type": "response.output_audio.delta", "delta": "AAAA"}, done(2, out=70)]
    messages = [json.dumps(each) for each in said]
    sent = [each.encode() for each in messages] if as_bytes else messages
    assert heard_by(MeteringMiddleware(talking(*sent), home)) == sent
    first, second = home.books.records
    assert first.usage == Usage(input=20, cached_input=0, output=10, input_audio=100, output_audio=40)
    assert (first.model, first.response_id, first.surface) == ("gpt-realtime", "resp_1", "middleware")
    assert (second.response_id, second.usage.output_audio) == ("resp_2", 60)


def test_the_model_of_the_url_is_taken_until_the_session_names_one(home):
    app = MeteringMiddleware(talking(done(1), SESSION, done(2)), home)
    heard_by(app, "/v1/realtime?model=gpt-4o-realtime-preview")
    assert [r.model for r in home.books.records] == ["gpt-4o-realtime-preview", "gpt-realtime"]


def test_turns_of_a_live_conversation_are_recorded_though_they_have_no_id(home):
    running = {"usageMetadata": {"promptTokenCount": 30}, "serverContent": {"modelTurn": {}}}
    heard_by(MeteringMiddleware(talking(json.dumps(running), json.dumps(LIVE).encode(), LIVE), home))
    assert [r.usage.total for r in home.books.records] == [42, 42]


@pytest.mark.parametrize(
    "said",
    [
        "not json with \"usage\"",
        '{"type": "response.done"',
        b"\xff\xfe\"usage\"",
        {"type": "response.done", "response": {"id": "resp_1", "usage": None}},
        {"type": "chat", "usage": {"prompt_tokens": 5}},
        "[" * 100_000 + '"usage"',
        {"type": "response.done", "response": {"usage": {}}, "pad": "x" * (1 << 20)},
    ],
)  # fmt: skip
def test_other_messages_pass_and_count_nothing(home, said):
    sent = said if isinstance(said, (bytes, str)) else json.dumps(said)
    assert heard_by(MeteringMiddleware(talking(sent), home)) == [sent]
    assert home.books.records == []


def test_numbers_that_cannot_be_tokens_are_held(home):
    heard_by(MeteringMiddleware(talking(done(1, text=-5)), home))
    assert "believed" in (home.books.only.held or "")


def test_what_a_client_sends_is_never_read(home):
    async def listen(socket: WebSocket) -> None:
        await socket.accept()
        await socket.receive_text()
        await socket.close()

    app = MeteringMiddleware(Starlette(routes=[WebSocketRoute("/v1/realtime", listen)]), home)
    with TestClient(app).websocket_connect("/v1/realtime") as client:
        client.send_text(json.dumps(done(1)))
    assert home.books.records == []


@pytest.mark.parametrize("has_id", [True, False])
def test_an_answer_that_was_recorded_inside_is_not_recorded_again(home, has_id):
    """As by a wrapped client of the upstream, or by hand."""

    async def relay(socket: WebSocket) -> None:
        await socket.accept()
        for n in (1, 2):
            usage = Usage(input=20, cached_input=0, output=10, input_audio=100, output_audio=40)
            reading = Reading(usage, response_id=f"resp_{n}" if has_id else None, api="realtime")
            home.recorder.record(reading, surface="client" if has_id else "record")
            await socket.send_text(json.dumps(done(n)))
        await socket.send_text(json.dumps(done(3)))
        await socket.close()

    heard_by(MeteringMiddleware(Starlette(routes=[WebSocketRoute("/v1/realtime", relay)]), home))
    assert [r.surface for r in home.books.records][:2] == ["client" if has_id else "record"] * 2
    assert [r.response_id for r in home.books.records][2:] == ["resp_3"]


def test_several_middlewares_and_mounts_count_once(home):
    inner = MeteringMiddleware(talking(done(1), done(2)), home)
    mounted = Starlette(routes=[Mount("/api", app=inner)])
    heard_by(MeteringMiddleware(MeteringMiddleware(mounted, home), home), "/api/v1/realtime")
    assert len(home.books.records) == 2


def test_an_inner_middleware_reads_where_the_outer_does_not(home):
    inner = MeteringMiddleware(talking(done(1)), home)
    heard_by(MeteringMiddleware(inner, home, read_answers=False))
    assert len(home.books.records) == 1


def test_reading_can_be_switched_off(home):
    heard_by(MeteringMiddleware(talking(done(1)), home, read_answers=False))
    assert home.books.records == []


def test_nothing_listens_on_after_a_conversation(home):
    for _ in range(3):
        heard_by(MeteringMiddleware(talking(done(1)), home))
    assert home.recorder._ambient.listeners == ()


# On real sockets.


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    running = []

    def start(app: Any) -> str:
        taken = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="wsproto")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        running.append((server, thread, taken))
        return f"ws://127.0.0.1:{taken.getsockname()[1]}"

    yield start
    for server, thread, taken in running:
        server.should_exit = True
        thread.join(10)
        taken.close()


def test_a_relay_of_many_conversations_bills_each_to_its_own_customer(new_home, serve):
    """Canaries: customer n has n answers; the app relays an upstream on another socket."""
    home = new_home(from_state("customer"))

    async def upstream(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(json.dumps(SESSION))
        asked = 0
        async for text in socket.iter_text():
            asked += 1
            owner = json.loads(text)["owner"]
            await socket.send_text(json.dumps(done(f"{owner}-{asked}")))  # type: ignore[arg-type]

    url = serve(Starlette(routes=[WebSocketRoute("/", upstream)]))

    async def relay(socket: WebSocket) -> None:
        from websockets.asyncio.client import connect as connect_upstream

        socket.state.customer = "cus_" + socket.query_params["key"]
        await socket.accept()
        async with connect_upstream(url) as above:
            await socket.send_text(str(await above.recv()))
            async for text in socket.iter_text():
                await above.send(text)
                await socket.send_text(str(await above.recv()))

    app = MeteringMiddleware(Starlette(routes=[WebSocketRoute("/realtime", relay)]), home)
    app_url = serve(app)

    async def talk(n: int) -> None:
        def turns() -> None:
            with connect(f"{app_url}/realtime?key={n}") as client:
                client.recv()
                for _ in range(n):
                    client.send(json.dumps({"owner": n}))
                    assert json.loads(client.recv())["response"]["id"].startswith(f"resp_{n}-")

        await asyncio.to_thread(turns)

    async def talk_all() -> None:
        await asyncio.gather(*(talk(n) for n in range(1, 9)))

    asyncio.run(talk_all())
    expected = {f"cus_{n}": 170 * n for n in range(1, 9)}
    deadline = time.monotonic() + 5
    while home.books.totals() != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert home.books.totals() == expected
    assert {record.model for record in home.books.records} == {"gpt-realtime"}
    assert home.failures == {}


def test_a_client_that_hangs_up_in_mid_conversation_is_billed_for_what_was_answered(new_home, serve):
    home = new_home(from_state("customer"))

    async def talk(socket: WebSocket) -> None:
        socket.state.customer = "cus_1"
        await socket.accept()
        await socket.send_text(json.dumps(done(1)))
        await socket.receive_text()

    with connect(
        serve(MeteringMiddleware(Starlette(routes=[WebSocketRoute("/ws", talk)]), home)) + "/ws"
    ) as ws:
        ws.recv()
        ws.socket.shutdown(socket.SHUT_RDWR)
    assert home.books.totals() == {"cus_1": 170}


def test_a_resolver_that_does_not_answer_holds_up_one_message_of_a_conversation(new_home):
    asked = []

    async def resolve(connection: Any) -> str:
        asked.append(connection)
        await asyncio.sleep(3600)
        raise AssertionError

    home = new_home(resolve, commit_timeout_s=0.1)
    messages = [json.dumps(each) for each in [done(1), *[{"type": "x", "n": n} for n in range(20)]]]
    assert heard_by(MeteringMiddleware(talking(*messages), home)) == messages
    # To name who is billed, while the first message waits, and once more at the end.
    assert len(asked) <= 4
    assert (home.books.only.customer, home.books.only.usage.total) == (None, 170)
