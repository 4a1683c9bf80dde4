"""A client that writes a path oddly reaches the model, and is metered all the same."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from llm_metering.capture.client_routes import route_of
from llm_metering.capture.middleware import MeteringMiddleware
from llm_metering.capture.paths import plain_path
from llm_metering.capture.routes import DEFAULT_PATHS, DEFAULT_PUBLIC_PATHS, path_matcher
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

pytestmark = pytest.mark.anyio

DISGUISES = [
    "/v1/chat/completions\n",
    "/v1/chat/completions?stream=1",
    "/v1/chat/completions#end",
    "/v1/chat/completions;v=2",
    "/v1/chat/completions/.",
    "/v1/chat/completions/x/..",
    "/v1/chat/./completions",
    "/v1//chat//completions/",
    "/v1/chat\\completions",
    "/v1/chat/completion%73",
    "/v1/chat%2Fcompletions",
    "/openai/deployments/gpt/Chat/Completions",
    "/v1beta/models/gemini-pro:GENERATECONTENT",
]


async def test_a_line_end_that_the_router_overlooks_does_not_hide_a_call(new_home, wire):
    home = new_home(customer="cus_x")

    async def chat(request: Any) -> Any:
        return JSONResponse(wire.chat())

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    transport = httpx.ASGITransport(MeteringMiddleware(app, home))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        answer = await client.post("/v1/chat/completions%0A", json={"model": "gpt-4o", "messages": []})
    assert answer.status_code == 200
    assert home.books.only.usage.total == 15


@pytest.mark.parametrize("path", DISGUISES)
async def test_a_gateway_that_passes_any_path_on_meters_it_however_it_is_written(new_home, wire, path):
    home = new_home(customer="cus_x")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse(wire.chat())(scope, receive, send)

    await wire.exchange(MeteringMiddleware(app, home), path)
    assert home.books.only.usage.total == 15
    assert route_of("POST", path) is not None


@pytest.mark.parametrize("path", ["/v1/chat/completionsx", "/Users/1", "/v1/responses/../users", "/a%"])
def test_an_odd_path_that_leads_elsewhere_is_not_a_models(path):
    assert not path_matcher(DEFAULT_PATHS)(path)
    assert route_of("POST", path) is None


@pytest.mark.parametrize("path", ["/v1/chat/completions?/health", "/v1/chat/completions#/ping"])
async def test_a_path_is_public_only_if_every_reader_takes_it_for_that(new_home, wire, path):
    home = new_home(lambda _: None, on_missing_customer="reject")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it was let in")

    assert (await wire.exchange(MeteringMiddleware(app, home), path)).status == 401
    assert path_matcher(DEFAULT_PUBLIC_PATHS, surely=True)("/Health/../health")


@pytest.mark.parametrize("path", ["/", "/users/7/files/a.b-c_d", "/v1/models/gpt-4o:x", "/a,b/~c+d@e=f"])
def test_an_ordinary_path_is_left_as_it_is(path):
    assert plain_path(path) is None
