"""Responses that go on in the background, where an app serves them: one record, whoever asks how often."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llm_metering.capture.middleware import MeteringMiddleware
from llm_metering.usage import Usage

pytestmark = pytest.mark.anyio

ASKED = b'{"model": "gpt-5", "background": true, "input": "Hello there"}'
USAGE = {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13}
PATH = "/v1/responses"


def response(status: str, usage: Any = None, *, background: bool = True, **more: Any) -> dict[str, Any]:
    output = [{"type": "message", "content": [{"type": "output_text", "text": "Hi"}]}] if usage else []
    return {
        "id": "resp_1",
        "object": "response",
        "status": status,
        "background": background,
        "model": "gpt-5",
        "output": output,
        "usage": usage,
        **more,
    }


def serving(answer: Any, size: int = 10**9) -> Any:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    kind = b"text/event-stream" if isinstance(answer, bytes) else b"application/json"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for at in range(0, len(body), size):
            await send({"type": "http.response.body", "body": body[at : at + size], "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


async def ask(home: Any, wire: Any, answer: Any, path: str = PATH, method: str = "POST", **how: Any) -> None:
    body = ASKED if method == "POST" else b""
    await wire.exchange(MeteringMiddleware(serving(answer, **how), home), path, body, method=method)


@pytest.mark.parametrize("size", [10**9, 50])
@pytest.mark.parametrize("status", ["queued", "in_progress", "failed", "cancelled"])
async def test_what_brought_nothing_yet_or_never_is_no_record(new_home, wire, status, size):
    home = new_home(customer="cus_x")
    await ask(home, wire, response(status), size=size)
    assert (home.books.records, home.books.noted, home.failures) == ([], [], {})


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed", "cancelled"])
async def test_it_is_recorded_once_however_often_it_is_asked_for(new_home, wire, status):
    home = new_home(customer="cus_x")
    await ask(home, wire, response("queued"))
    for _ in range(3):
        await ask(home, wire, response("in_progress"), f"{PATH}/resp_1", "GET")
    for size in (10**9, 50, 10**9):
        await ask(home, wire, response(status, USAGE), f"{PATH}/resp_1", "GET", size=size)
    record = home.books.only
    assert (record.usage, record.provenance) == (Usage(input=9, output=4), "reported")
    assert (record.response_id, record.customer) == ("resp_1", "cus_x")


async def test_what_was_recorded_when_it_was_made_is_not_recorded_again(new_home, wire):
    home = new_home(customer="cus_x")
    for method, path in (("POST", PATH), ("GET", f"{PATH}/resp_1"), ("GET", f"{PATH}/resp_1")):
        await ask(home, wire, response("completed", USAGE, background=False), path, method)
    assert home.books.only.usage.total == 13


@pytest.mark.parametrize("path", [f"{PATH}/resp_1/input_items", "/v1/models/m", "/surveys/responses/7"])
async def test_other_answers_to_get_are_not_read(new_home, wire, path):
    home = new_home(customer="cus_x")
    await ask(home, wire, {"object": "list", "data": [response("completed", USAGE)]}, path, "GET")
    await ask(home, wire, {"id": 7, "text": "Fine"}, path, "GET")
    assert home.books.records == []


async def test_a_stream_that_is_taken_up_again_is_the_same_record(new_home, wire):
    home = new_home(customer="cus_x")
    events = [
        {"type": "response.created", "response": response("in_progress")},
        {"type": "response.output_text.delta", "delta": "Hi"},
        {"type": "response.completed", "response": response("completed", USAGE)},
    ]
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    await ask(home, wire, b"".join(lines[:2]), size=100)
    assert home.books.records == []  # it goes on; the row stands for it
    assert len(home.books.rows) == 1
    for _ in range(2):
        await ask(home, wire, b"".join(lines), f"{PATH}/resp_1", "GET", size=100)
    assert home.books.only.usage.total == 13
    assert home.books.rows == {}


@pytest.mark.parametrize("asked", [b'"background": true', b'"metadata": {"background": true}'])
async def test_a_chat_that_claims_to_go_on_is_billed_to_each_customer_though_its_id_comes_again(
    new_home, wire, asked
):
    home = new_home(lambda connection: connection.headers["x-customer"])
    body = b'{"model": "gpt-4o", "stream": true, "messages": [], ' + asked + b"}"
    events = wire.events(["Hi"], id="chatcmpl-7", usage={"prompt_tokens": 9, "completion_tokens": 4})
    app = MeteringMiddleware(serving(b"".join(events)), home)
    for customer in ("cus_a", "cus_b"):
        await wire.exchange(app, "/v1/chat/completions", body, headers={"x-customer": customer})
    assert home.books.totals() == {"cus_a": 13, "cus_b": 13}
    assert home.books.rows == {}


async def test_a_chat_that_claims_to_go_on_is_billed_when_it_is_broken_off(new_home, wire):
    home = new_home(customer="cus_x")
    body = b'{"model": "gpt-4o", "stream": true, "messages": [], "background": true}'

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await serving(wire.events(["Hi"])[0])(scope, receive, send)

    await wire.exchange(MeteringMiddleware(app, home), "/v1/chat/completions", body)
    assert home.counter.settle(30)
    assert (home.books.only.provenance, home.books.rows) == ("partial", {})


async def test_a_response_is_no_background_one_for_what_stands_deeper_in_its_request(new_home, wire):
    home = new_home(customer="cus_x")
    body = b'{"model": "gpt-5", "stream": true, "input": "Hello", "metadata": {"background": true}}'
    begun = {"type": "response.created", "response": response("in_progress", background=False)}
    stream = b"data: " + json.dumps(begun).encode() + b"\n\n"
    stream += b'data: {"type": "response.output_text.delta", "delta": "Hi"}\n\n'
    await wire.exchange(MeteringMiddleware(serving(stream), home), PATH, body)
    assert home.counter.settle(30)
    assert len(home.books.records) == 1
    assert home.books.rows == {}
