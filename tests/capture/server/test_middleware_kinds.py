"""Answers whose content type does not say what they are: their first bytes do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llm_metering.capture.middleware import MeteringMiddleware

pytestmark = pytest.mark.anyio

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
UNSAID = [None, "", "text/plain", "Text/Plain; charset=utf-8", "application/octet-stream"]


def answering(chunks: list[bytes], content_type: str | None) -> Any:
    head = [] if content_type is None else [(b"content-type", content_type.encode())]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def lines(wire: Any) -> list[bytes]:
    """The chunks of a stream as JSON lines."""
    events = wire.events(["Hel", "lo"], usage=USAGE)[:-1]
    return [event.removeprefix(b"data: ").rstrip() + b"\n" for event in events]


@pytest.mark.parametrize("content_type", [*UNSAID, "application/json"])
async def test_a_stream_of_events_is_read_by_whatever_type_it_goes(home, wire, content_type):
    events = wire.events(["Hel", "lo"], usage=USAGE)
    passed = await wire.exchange(MeteringMiddleware(answering(events, content_type), home))
    assert passed.body == b"".join(events)
    assert (home.books.only.usage.total, home.books.only.response_id) == (13, "chatcmpl-s1")


@pytest.mark.parametrize("content_type", [*UNSAID, "application/json"])
async def test_what_came_of_it_is_noted_as_it_comes_as_of_any_stream(new_home, wire, content_type):
    home = new_home(customer="cus_a", progress_every_tokens=1)
    begun = wire.events(["word "] * 8)[:8]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answering(begun, content_type)(scope, receive, passing(send))
        raise ConnectionError("the client left")

    def passing(send: Any) -> Any:
        async def pass_on(message: Any) -> None:
            if message["type"] != "http.response.body" or message["body"]:
                await send(message)

        return pass_on

    with pytest.raises(ConnectionError):
        await wire.exchange(MeteringMiddleware(app, home))
    assert home.books.noted
    assert home.books.only.provenance == "partial"
    assert (home.books.only.usage.output or 0) >= 8


@pytest.mark.parametrize("content_type", [*UNSAID, "application/json", "application/ndjson"])
async def test_json_lines_are_read_by_whatever_type_they_go(home, wire, content_type):
    await wire.exchange(MeteringMiddleware(answering(lines(wire), content_type), home))
    assert home.books.only.usage.total == 13


@pytest.mark.parametrize("content_type", UNSAID)
async def test_an_answer_in_json_is_read_by_whatever_type_it_goes(home, wire, content_type):
    body = json.dumps(wire.chat()).encode()
    await wire.exchange(MeteringMiddleware(answering([body[:30], body[30:]], content_type), home))
    assert home.books.only.usage.total == 15


@pytest.mark.parametrize("content_type", UNSAID)
async def test_first_bytes_may_be_cut_anywhere(new_home, wire, content_type):
    raw = b"\xef\xbb\xbf\n: hello\n\n" + b"".join(wire.events(["Hi"], usage=USAGE))
    for cut in range(30):
        home = new_home(customer="cus_a")
        chunks = [raw[:cut], raw[cut : cut + 1], raw[cut + 1 :]]
        passed = await wire.exchange(MeteringMiddleware(answering(chunks, content_type), home))
        assert passed.body == raw
        assert (home.books.only.usage.total, home.failures) == (13, {}), cut


@pytest.mark.parametrize(
    "body",
    [
        b"Hello there",
        b"data: what else",
        b":) hello",
        b"id",
        b"{braces}",
        b'{"a": 1}',
        b"[1, 2]",
        b"event",
        b" ",
    ],
)
async def test_a_plain_text_on_a_models_route_is_none_of_our_business(home, wire, body):
    passed = await wire.exchange(MeteringMiddleware(answering([body], "text/plain"), home))
    assert passed.body == body
    assert home.books.records == []


async def test_another_type_is_not_looked_at(home, wire):
    events = wire.events(["Hi"], usage=USAGE)
    await wire.exchange(MeteringMiddleware(answering(events, "text/html"), home))
    assert home.books.records == []
