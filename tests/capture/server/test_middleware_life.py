"""Metering starts and stops with the app, however the app's host goes about it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from llm_metering.capture.middleware import MeteringMiddleware
from llm_metering.errors import LedgerError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

pytestmark = pytest.mark.anyio


async def run_lifespan(app: Any, *, until: str = "lifespan.shutdown") -> list[dict[str, Any]]:
    """What a server does: start, and stop when the start went well."""
    sent: list[dict[str, Any]] = []
    to_send = [{"type": "lifespan.startup"}, {"type": until}]

    async def receive() -> dict[str, Any]:
        if not to_send:
            await anyio.sleep_forever()
        return to_send.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return sent


def noting_app(home: Any) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        home.life.append("app starts")
        yield {"kept": 1}
        home.life.append("app stops")

    return Starlette(lifespan=lifespan)


async def test_metering_starts_before_the_app_and_stops_after_it(home):
    sent = await run_lifespan(MeteringMiddleware(noting_app(home), home))
    assert [m["type"] for m in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert home.life == ["start", "app starts", "app stops", "stop"]


async def test_it_has_stopped_before_the_server_is_told_that_shutdown_is_complete(home):
    stopped: list[bool] = []

    async def watch(scope: Any, receive: Any, send: Any) -> None:
        async def watched(message: Any) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                stopped.append(not home.is_started)
            await send(message)

        await MeteringMiddleware(noting_app(home), home)(scope, receive, watched)

    await run_lifespan(watch)
    assert stopped == [True]


async def test_a_configuration_that_cannot_work_fails_the_start_with_a_sentence(home):
    home.start_error = LedgerError("the ledger folder /x cannot be written: make it writable")
    sent = await run_lifespan(MeteringMiddleware(noting_app(home), home))
    assert sent == [
        {
            "type": "lifespan.startup.failed",
            "message": "the ledger folder /x cannot be written: make it writable",
        }
    ]
    assert home.life == ["start"]  # the app was not even begun


async def test_a_bug_of_ours_at_start_is_counted_and_the_app_starts(new_home):
    home = new_home()
    home.start_error = RuntimeError("ours")
    sent = await run_lifespan(MeteringMiddleware(noting_app(home), home))
    assert [m["type"] for m in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert home.failures == {"failure.metering.start": 1}


async def test_a_bug_of_ours_at_stop_is_counted_and_shutdown_completes(new_home):
    home = new_home()

    def stop() -> None:
        raise RuntimeError("ours")

    home.stop = stop
    sent = await run_lifespan(MeteringMiddleware(noting_app(home), home))
    assert sent[-1]["type"] == "lifespan.shutdown.complete"
    assert home.failures["failure.metering.stop"] >= 1


async def test_an_app_that_fails_to_start_fails_as_before_and_metering_stops(home):
    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        raise ValueError("no database")
        yield

    with pytest.raises(ValueError, match="no database"):
        await run_lifespan(MeteringMiddleware(Starlette(lifespan=lifespan), home))
    assert home.life == ["start", "stop"]


async def test_several_middlewares_start_and_stop_once(home):
    inner = Starlette(middleware=[Middleware(MeteringMiddleware, metering=home)])
    app = Starlette(
        routes=[Mount("/sub", inner)], middleware=[Middleware(MeteringMiddleware, metering=home)] * 3
    )
    await run_lifespan(app)
    assert home.life == ["start", "stop"]


async def test_an_app_without_lifespan_is_started_by_its_first_request(home, wire):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http", "no lifespan here"
        await PlainTextResponse("ok")(scope, receive, send)

    metered = MeteringMiddleware(app, home)
    with pytest.raises(AssertionError, match="no lifespan"):
        await run_lifespan(metered)
    await wire.exchange(metered, "/a", method="GET")
    await wire.exchange(metered, "/b", method="GET")
    assert home.life == ["start", "stop", "start_soon"]


async def test_a_start_that_fails_in_a_request_is_counted_and_the_request_goes_on(new_home, wire):
    home = new_home()

    def start_soon() -> None:
        raise RuntimeError("ours")

    home.start_soon = start_soon
    app = MeteringMiddleware(PlainTextResponse("ok"), home)
    assert (await wire.exchange(app, "/a")).body == b"ok"
    assert home.failures == {"failure.metering.start": 1}


def test_the_state_of_the_lifespan_reaches_requests(home):
    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        yield {"kept": "here"}

    async def read(request: Any) -> Any:
        return PlainTextResponse(request.state.kept)

    app = MeteringMiddleware(Starlette(routes=[Route("/", read)], lifespan=lifespan), home)
    with TestClient(app) as client:
        assert client.get("/").text == "here"
    assert home.life == ["start", "stop"]


async def test_other_kinds_of_scopes_pass(home):
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await MeteringMiddleware(app, home)({"type": "smtp"}, None, None)  # type: ignore[arg-type]
    assert seen == ["smtp"]
    assert home.life == []
