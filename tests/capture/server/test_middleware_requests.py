"""Who is billed: the context of a request, its customer, and how layers above and below see it."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from llm_metering.capture import context
from llm_metering.capture.middleware import MeteringMiddleware
from llm_metering.customers import from_api_key, from_auth, from_header, from_state
from llm_metering.usage import Reading, Usage
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient

pytestmark = pytest.mark.anyio

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def used(home: Any, tokens: int = 1) -> None:
    """What a wrapped client would record."""
    home.recorder.record(Reading(Usage(input=tokens)), surface="client")


async def call(app: Any, path: str = "/", method: str = "POST", **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        return await client.request(method, path, **options)


async def test_state_set_in_a_fastapi_dependency_names_the_customer(new_home, wire):
    """Authentication runs as a dependency, after the middleware has opened the request."""
    home = new_home(from_state("stripe_customer_id"))

    async def authenticated(request: Request) -> None:
        request.state.stripe_customer_id = "cus_dep"

    app = FastAPI(dependencies=[Depends(authenticated)])
    app.add_middleware(MeteringMiddleware, metering=home)

    @app.post("/ask")
    def ask() -> str:  # in a worker thread
        used(home)
        return "ok"

    @app.post("/v1/chat/completions")
    async def gateway() -> Any:
        return wire.chat()

    assert (await call(app, "/ask")).status_code == 200
    assert (await call(app, "/v1/chat/completions")).status_code == 200
    assert home.books.totals() == {"cus_dep": 16}
    assert home.failures == {}


async def test_usage_before_the_dependency_that_names_the_customer_waits_for_it(new_home):
    home = new_home(from_state())
    app = FastAPI()
    app.add_middleware(MeteringMiddleware, metering=home)

    async def early() -> None:
        used(home, 5)
        assert home.books.records == []
        assert [row.usage.total for row in home.books.rows.values()] == [5]

    async def late(request: Request) -> None:
        request.state.stripe_customer_id = "cus_late"

    @app.post("/", dependencies=[Depends(early), Depends(late)])
    async def ask() -> str:
        return "ok"

    assert (await call(app)).status_code == 200
    assert home.books.totals() == {"cus_late": 5}
    assert home.books.rows == {}


class KeyBackend(AuthenticationBackend):
    async def authenticate(self, conn: Any) -> Any:
        user = SimpleUser("ann")
        user.stripe_customer_id = "cus_" + conn.headers["x-user"]  # type: ignore[attr-defined]
        return AuthCredentials(["authenticated"]), user


@pytest.mark.parametrize("inside", [True, False])
async def test_authentication_middleware_is_seen_inside_and_outside(new_home, inside):
    home = new_home(from_auth("stripe_customer_id"))

    async def ask(request: Any) -> Response:
        used(home)
        return PlainTextResponse("ok")

    layers = [
        Middleware(MeteringMiddleware, metering=home),
        Middleware(AuthenticationMiddleware, backend=KeyBackend()),
    ]
    app = Starlette(routes=[Route("/", ask, methods=["POST"])], middleware=layers if inside else layers[::-1])
    await call(app, headers={"x-user": "ann"})
    assert home.books.totals() == {"cus_ann": 1}


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("streamed", [True, False])
async def test_base_http_middleware_above_and_below_changes_nothing(new_home, wire, above, streamed):
    home = new_home(from_state())
    events = wire.events(["Hel", "lo"], usage=USAGE)

    async def dispatch(request: Any, call_next: Any) -> Any:
        request.state.stripe_customer_id = "cus_base"
        return await call_next(request)

    async def ask(request: Any) -> Response:
        await request.json()

        async def chunks() -> Any:
            for event in events:
                yield event

        return (
            StreamingResponse(chunks(), media_type="text/event-stream")
            if streamed
            else JSONResponse(wire.chat(usage=USAGE))
        )

    layers = [
        Middleware(BaseHTTPMiddleware, dispatch=dispatch),
        Middleware(MeteringMiddleware, metering=home),
    ]
    app = Starlette(
        routes=[Route("/v1/chat/completions", ask, methods=["POST"])],
        middleware=layers if above else layers[::-1],
    )
    answer = await call(app, "/v1/chat/completions", json={"model": "gpt-4o-mini"})
    assert answer.status_code == 200
    if streamed:
        assert answer.content == b"".join(events)
    assert home.books.totals() == {"cus_base": 13}
    assert home.failures == {}


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("streamed", [True, False])
async def test_gzip_middleware_above_and_below_changes_nothing(new_home, wire, above, streamed):
    home = new_home(customer="cus_z")
    events = wire.events(["word "] * 200, usage=USAGE)

    async def ask(request: Any) -> Response:
        async def chunks() -> Any:
            for event in events:
                yield event

        # GZipMiddleware leaves event streams alone; JSON lines it compresses as they come.
        if streamed:
            return StreamingResponse(chunks(), media_type="application/x-ndjson")
        return JSONResponse(wire.chat("word " * 500, usage=USAGE))

    layers = [
        Middleware(GZipMiddleware, minimum_size=100),
        Middleware(MeteringMiddleware, metering=home),
    ]
    app = Starlette(
        routes=[Route("/v1/chat/completions", ask, methods=["POST"])],
        middleware=layers if above else layers[::-1],
    )
    answer = await call(app, "/v1/chat/completions", json={"model": "gpt-4o-mini"})
    assert answer.headers["content-encoding"] == "gzip"
    assert (answer.content == b"".join(events)) if streamed else (answer.json()["usage"] == USAGE)
    assert home.books.totals() == {"cus_z": 13}
    assert home.books.only.held is None


async def test_several_middlewares_and_mounted_apps_count_once(new_home, wire):
    home = new_home(from_state())

    async def ask(request: Any) -> Response:
        request.state.stripe_customer_id = "cus_deep"
        return JSONResponse(wire.chat())

    inner = Starlette(
        routes=[Route("/v1/chat/completions", ask, methods=["POST"])],
        middleware=[Middleware(MeteringMiddleware, metering=home)],
    )
    app = Starlette(
        routes=[Mount("/tenant", inner)],
        middleware=[Middleware(MeteringMiddleware, metering=home)] * 2,
    )
    assert (await call(app, "/tenant/v1/chat/completions")).status_code == 200
    assert home.books.totals() == {"cus_deep": 15}


async def test_an_inner_middleware_reads_the_routes_that_the_outer_does_not(new_home, wire):
    home = new_home(customer="cus_a")

    async def say(request: Any) -> Response:
        return JSONResponse(wire.chat())

    inner = Starlette(
        routes=[Route("/say", say, methods=["POST"])],
        middleware=[Middleware(MeteringMiddleware, metering=home, paths=["*/say"])],
    )
    app = Starlette(routes=[Mount("/bot", inner)], middleware=[Middleware(MeteringMiddleware, metering=home)])
    await call(app, "/bot/say")
    assert home.books.totals() == {"cus_a": 15}


async def test_an_inner_middleware_sees_authentication_that_copied_the_scope(new_home):
    home = new_home(from_auth("id"))

    class Copying:
        """A layer that passes a copy of the scope on, so that what it adds is not seen further out."""

        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app({**scope, "user": {"id": "cus_copy"}}, receive, send)

    async def ask(request: Any) -> Response:
        used(home)
        return PlainTextResponse("ok")

    app = Starlette(
        routes=[Route("/", ask, methods=["POST"])],
        middleware=[
            Middleware(MeteringMiddleware, metering=home),
            Middleware(Copying),
            Middleware(MeteringMiddleware, metering=home),
        ],
    )
    await call(app)
    assert home.books.totals() == {"cus_copy": 1}


async def test_two_meterings_in_one_app_each_bill_their_own_customer(new_home):
    eu = new_home(from_state("eu"))
    us = new_home(from_state("us"))

    async def ask(request: Any) -> Response:
        request.state.eu, request.state.us = "cus_eu", "cus_us"
        used(eu, 1)
        used(us, 2)
        return PlainTextResponse("ok")

    app = Starlette(
        routes=[Route("/", ask, methods=["POST"])],
        middleware=[
            Middleware(MeteringMiddleware, metering=eu),
            Middleware(MeteringMiddleware, metering=us),
            Middleware(MeteringMiddleware, metering=eu),
        ],
    )
    await call(app)
    assert (eu.books.totals(), us.books.totals()) == ({"cus_eu": 1}, {"cus_us": 2})


# Resolvers.


async def test_an_async_resolver_is_asked_once_and_only_where_something_was_used(new_home):
    asked: list[str] = []

    async def lookup(key: str) -> str | None:
        asked.append(key)
        await asyncio.sleep(0)
        return {"k1": "cus_1"}.get(key)

    home = new_home(from_api_key(lookup))

    async def ask(request: Any) -> Response:
        if request.query_params:
            for _ in range(3):
                used(home)
        return PlainTextResponse("ok")

    app = MeteringMiddleware(Starlette(routes=[Route("/", ask, methods=["POST"])]), home)
    await call(app, headers={"authorization": "Bearer k1"})
    assert asked == []
    await call(app, "/?use=1", headers={"authorization": "Bearer k1"})
    await call(app, "/?use=1", headers={"x-api-key": "k1"})
    assert asked == ["k1", "k1"]
    assert home.books.totals() == {"cus_1": 6}


async def test_unresolved_usage_is_kept_without_a_customer(new_home):
    async def nobody(connection: Any) -> None:
        return None

    for resolver in (from_state(), from_api_key(lambda key: None), nobody, None):
        home = new_home(resolver)

        async def ask(request: Any, home: Any = home) -> Response:
            used(home, 7)
            return PlainTextResponse("ok")

        await call(MeteringMiddleware(Starlette(routes=[Route("/", ask, methods=["POST"])]), home))
        assert home.books.totals() == {None: 7}
        assert home.books.only.held is None
        assert home.telemetry.snapshot()["usage.unresolved"] == 1


@pytest.mark.parametrize("bad", [7, "cus 1", "cus_1\r\nX: y", "ü", "c" * 256, ["cus_1"]])
async def test_a_resolver_that_fails_or_answers_nonsense_leaves_usage_unresolved(new_home, bad):
    def nonsense(connection: Any) -> Any:
        return bad

    async def failing(connection: Any) -> str:
        raise LookupError("the user store is down")

    for resolver in (nonsense, failing):
        home = new_home(resolver)

        async def ask(request: Any, home: Any = home) -> Response:
            used(home)
            return PlainTextResponse("ok")

        app = MeteringMiddleware(Starlette(routes=[Route("/", ask, methods=["POST"])]), home)
        assert (await call(app)).status_code == 200
        assert home.books.totals() == {None: 1}
        assert home.failures["failure.customer.resolver"] >= 1


async def test_what_a_client_claims_is_not_who_is_billed(new_home, wire):
    """Headers, query and body say one customer; only the resolver's word counts."""
    home = new_home(from_state())

    async def ask(request: Any) -> Response:
        request.state.stripe_customer_id = "cus_true"
        await request.json()
        return JSONResponse(wire.chat(customer="cus_evil", metadata={"stripe_customer_id": "cus_evil"}))

    app = Starlette(routes=[Route("/v1/chat/completions", ask, methods=["POST"])])
    await call(
        MeteringMiddleware(app, home),
        "/v1/chat/completions?stripe_customer_id=cus_evil",
        json={"model": "m", "messages": [], "stripe_customer_id": "cus_evil", "user": "cus_evil"},
        headers={
            "x-stripe-customer-id": "cus_evil", "stripe_customer_id": "cus_evil",
            "baggage": "stripe_customer_id=cus_evil", "stripe-account": "acct_evil",
        },
    )  # fmt: skip
    assert home.books.totals() == {"cus_true": 15}
    assert dict(home.books.only.dimensions) == {}


async def test_from_header_trusts_the_gateway_but_not_two_values(new_home):
    home = new_home(from_header("x-customer"))

    async def ask(request: Any) -> Response:
        used(home)
        return PlainTextResponse("ok")

    app = MeteringMiddleware(Starlette(routes=[Route("/", ask, methods=["POST"])]), home)
    await call(app, headers=[("x-customer", "cus_gate")])
    await call(app, headers=[("x-customer", "cus_gate"), ("X-Customer", "cus_evil")])
    assert home.books.totals() == {"cus_gate": 1, None: 1}


async def test_a_bound_customer_wins_over_the_resolver(new_home):
    home = new_home(from_state())

    async def ask(request: Any) -> Response:
        request.state.stripe_customer_id = "cus_state"
        used(home, 1)
        here = context.current()
        assert here is not None
        here.customer = "cus_bound"
        here.dimensions["feature"] = "chat"
        used(home, 2)
        inner = context.Scope(parent=here, customer="cus_inner", dimensions={"step": "2"})
        with context.entered(inner):
            used(home, 4)
        used(home, 8)
        return PlainTextResponse("ok")

    await call(MeteringMiddleware(Starlette(routes=[Route("/", ask, methods=["POST"])]), home))
    assert home.books.totals() == {"cus_state": 1, "cus_bound": 10, "cus_inner": 4}
    assert dict(home.books.records[2].dimensions) == {"feature": "chat", "step": "2"}
    assert dict(home.books.records[3].dimensions) == {"feature": "chat"}


# Rejecting.


@pytest.fixture
def strict(new_home) -> Any:
    return new_home(from_api_key({"good": "cus_good"}.get), on_missing_customer="reject")


async def test_a_request_without_customer_is_refused_before_the_app_runs(strict):
    ran: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ran.append(scope["path"])
        used(strict)
        await PlainTextResponse("ok")(scope, receive, send)

    guarded = MeteringMiddleware(app, strict)
    refused = await call(guarded, "/anything", headers={"authorization": "Bearer bad"})
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "missing_customer"
    assert ran == []
    assert (await call(guarded, "/x", headers={"authorization": "Bearer good"})).status_code == 200
    assert strict.books.totals() == {"cus_good": 1}


async def test_probes_and_preflights_pass_without_a_customer(strict):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("ok")(scope, receive, send)

    guarded = MeteringMiddleware(app, strict)
    assert (await call(guarded, "/healthz", "GET")).status_code == 200
    asking = {"origin": "https://a", "access-control-request-method": "POST"}
    assert (await call(guarded, "/ask", "OPTIONS", headers=asking)).status_code == 200
    assert (await call(guarded, "/ask", "OPTIONS")).status_code == 401
    opened = MeteringMiddleware(app, strict, public_paths=["/docs*"])
    assert (await call(opened, "/docs/oauth2-redirect", "GET")).status_code == 200
    assert (await call(opened, "/healthz", "GET")).status_code == 401


async def test_one_customer_for_all_is_never_missing(new_home):
    home = new_home(customer="cus_all", on_missing_customer="reject")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        used(home)
        await PlainTextResponse("ok")(scope, receive, send)

    assert (await call(MeteringMiddleware(app, home))).status_code == 200
    assert home.books.totals() == {"cus_all": 1}


def test_a_websocket_without_customer_is_refused(strict):
    async def talk(websocket: Any) -> None:
        await websocket.accept()
        await websocket.send_text("in")
        await websocket.close()

    app = MeteringMiddleware(Starlette(routes=[WebSocketRoute("/ws", talk)]), strict)
    client = TestClient(app)
    from starlette.testclient import WebSocketDenialResponse

    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/ws"):
        pass
    assert refused.value.status_code == 401
    with client.websocket_connect("/ws", headers={"x-api-key": "good"}) as websocket:
        assert websocket.receive_text() == "in"


# Websockets, background tasks, tasks that outlive their request.


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_websocket_is_one_request_and_what_waits_is_settled_as_it_goes(new_home, asynchronous):
    async def later(connection: Any) -> str | None:
        return connection.scope["state"].get("stripe_customer_id")

    home = new_home(later if asynchronous else from_state())
    settled: list[dict[Any, int]] = []

    async def talk(websocket: Any) -> None:
        await websocket.accept()
        websocket.state.stripe_customer_id = await websocket.receive_text()
        for _ in range(3):
            used(home)
            await websocket.send_text("ok")
            settled.append(home.books.totals())
        used(home)
        await websocket.close()

    app = MeteringMiddleware(Starlette(routes=[WebSocketRoute("/ws", talk)]), home)
    with TestClient(app).websocket_connect("/ws") as websocket:
        websocket.send_text("cus_ws")
        for _ in range(3):
            websocket.receive_text()
    assert settled == [{"cus_ws": 1}, {"cus_ws": 2}, {"cus_ws": 3}]
    assert home.books.totals() == {"cus_ws": 4}


async def test_background_tasks_bill_the_customer_of_their_request(new_home):
    home = new_home(from_state())

    def in_thread() -> None:
        used(home, 2)

    async def ask(request: Any) -> Response:
        request.state.stripe_customer_id = "cus_bg"
        return PlainTextResponse("ok", background=BackgroundTask(in_thread))

    await call(MeteringMiddleware(Starlette(routes=[Route("/", ask, methods=["POST"])]), home))
    assert home.books.totals() == {"cus_bg": 2}


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_task_that_outlives_its_request_bills_that_requests_customer(new_home, asynchronous):
    async def slow(connection: Any) -> str | None:
        await asyncio.sleep(0)
        return connection.scope["state"].get("stripe_customer_id")

    home = new_home(slow if asynchronous else from_state())
    go = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def after() -> None:
        await go.wait()
        used(home, 3)

    async def ask(request: Any) -> Response:
        request.state.stripe_customer_id = "cus_" + request.query_params["c"]
        tasks.append(asyncio.create_task(after()))
        return PlainTextResponse("ok")

    app = MeteringMiddleware(Starlette(routes=[Route("/", ask, methods=["POST"])]), home)
    await call(app, "/?c=one")
    await call(app, "/?c=two")
    go.set()
    await asyncio.gather(*tasks)
    for _ in range(5):
        await asyncio.sleep(0)
    assert home.books.totals() == {"cus_one": 3, "cus_two": 3}


@pytest.mark.parametrize("durability", ["memory", "commit"])
async def test_a_long_text_counted_after_the_request_bills_an_async_resolvers_customer(new_home, durability):
    async def lookup(connection: Any) -> str:
        await asyncio.sleep(0)
        return "cus_long"

    home = new_home(lookup, durability=durability)
    gate = threading.Event()
    if durability == "memory":
        home.counter.later(lambda: gate.wait(10) and None)

    async def ask(request: Any) -> Response:
        long = Reading(text="word " * 20_000, model="gpt-4o", provenance="partial")
        home.recorder.record(long, surface="client")
        return PlainTextResponse("ok")

    await call(MeteringMiddleware(Starlette(routes=[Route("/", ask, methods=["POST"])]), home))
    gate.set()
    done = threading.Event()
    home.counter.later(done.set)
    await asyncio.to_thread(done.wait, 10)
    assert home.books.totals().keys() == {"cus_long"}


async def test_the_context_is_left_as_found_and_the_scope_holds_nothing_of_ours(home, wire):
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await JSONResponse(wire.chat())(scope, receive, send)

    before = context.current()
    for path in ("/v1/chat/completions", "/other"):
        await wire.exchange(MeteringMiddleware(app, home), path)
    assert context.current() is before
    assert all(not [k for k in scope if "metering" in k] for scope in seen)


async def test_a_request_inside_a_request_is_billed_to_its_own_customer(new_home):
    """An app that calls itself through an in-process client."""
    home = new_home(from_header("x-customer"))

    async def inner(request: Any) -> Response:
        used(home, 1)
        return PlainTextResponse("ok")

    async def outer(request: Any) -> Response:
        await call(app, "/inner", headers={"x-customer": "cus_inner"})
        used(home, 2)
        return PlainTextResponse("ok")

    routes = [Route("/inner", inner, methods=["POST"]), Route("/", outer, methods=["POST"])]
    app = MeteringMiddleware(Starlette(routes=routes), home)
    await call(app, headers={"x-customer": "cus_outer"})
    assert home.books.totals() == {"cus_inner": 1, "cus_outer": 2}


async def test_64_concurrent_requests_of_two_customers_never_mix(new_home, wire):
    """Canaries: every record carries its request's number, and numbers belong to one customer each."""
    home = new_home(from_state())
    app = FastAPI()
    app.add_middleware(MeteringMiddleware, metering=home)

    async def authenticated(request: Request, n: int) -> None:
        await asyncio.sleep(0.001 * (n % 3))
        request.state.stripe_customer_id = f"cus_{n % 2}"

    def record(n: int, where: str) -> None:
        home.recorder.record(Reading(Usage(input=1)), surface="client", dimensions={"n": str(n), "w": where})

    @app.post("/thread", dependencies=[Depends(authenticated)])
    def thread(n: int) -> str:
        record(n, "thread")
        return "ok"

    @app.post("/tasks", dependencies=[Depends(authenticated)])
    async def tasks(n: int) -> Response:
        async with asyncio.TaskGroup() if hasattr(asyncio, "TaskGroup") else _Gather() as group:
            for _ in range(3):
                group.create_task(asyncio.to_thread(record, n, "task"))
        return PlainTextResponse("ok", background=BackgroundTask(record, n, "background"))

    @app.post("/v1/chat/completions", dependencies=[Depends(authenticated)])
    async def stream(n: int) -> Response:
        async def chunks() -> Any:
            for event in wire.events(["a", "b"], id=f"chatcmpl-{n}", usage=USAGE):
                await asyncio.sleep(0)
                yield event

        return StreamingResponse(chunks(), media_type="text/event-stream")

    paths = ("/thread", "/tasks", "/v1/chat/completions", "/thread")
    answers = await asyncio.gather(*(call(app, f"{paths[n % 4]}?n={n}") for n in range(64)))
    assert [a.status_code for a in answers] == [200] * 64
    for r in home.books.records:
        number = int(r.dimensions.get("n") or (r.response_id or "-x").split("-")[1])
        assert r.customer == f"cus_{number % 2}"
    assert len(home.books.records) == 16 * (1 + 4 + 1 + 1)
    assert home.failures == {}


class _Gather:
    """asyncio.TaskGroup for Python 3.10, as far as it is needed here."""

    async def __aenter__(self) -> _Gather:
        self._tasks: list[asyncio.Task[Any]] = []
        return self

    def create_task(self, work: Any) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.gather(*self._tasks)


async def test_json_stays_readable_for_the_app_under_the_middleware(home):
    async def echo(request: Any) -> Response:
        return JSONResponse(await request.json())

    app = MeteringMiddleware(Starlette(routes=[Route("/v1/chat/completions", echo, methods=["POST"])]), home)
    sent = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "é" * 5000}]}
    assert (await call(app, "/v1/chat/completions", json=sent)).json() == json.loads(json.dumps(sent))
