"""However a request ends, what was used is recorded once; and the last message waits for the disk."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import time
from typing import Any

import anyio
import pytest
from llm_metering.capture import context
from llm_metering.capture.middleware import MeteringMiddleware
from llm_metering.capture.streams import StreamTap
from llm_metering.customers import from_api_key, from_state
from llm_metering.providers import StreamTally
from llm_metering.usage import Reading, Usage
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

pytestmark = pytest.mark.anyio

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
EVENT_STREAM = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream")],
}
JSON_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json")],
}


def used(home: Any, tokens: int = 1) -> None:
    home.recorder.record(Reading(Usage(input=tokens)), surface="client")


def streaming(events: list[bytes], then: Any = None) -> Any:
    """An app that streams these events and then does as it is told."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(EVENT_STREAM)
        for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        if then is not None:
            await then()
        await send({"type": "http.response.body", "body": b""})

    return app


async def test_an_error_of_the_app_in_mid_stream_reaches_the_server_unchanged_and_is_billed(home, wire):
    class AppError(Exception):
        pass

    error = AppError("mine")

    async def fail() -> None:
        raise error

    app = MeteringMiddleware(streaming(wire.events(["One", " two", " three"])[:3], fail), home)
    with pytest.raises(AppError) as caught:
        await wire.exchange(app)
    assert caught.value is error
    record = home.books.only
    assert (record.usage.output, record.provenance, record.customer) == (3, "partial", "cus_a")
    assert home.books.rows == {}


async def test_an_error_before_the_answer_leaves_no_record(home, wire):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await wire.exchange(MeteringMiddleware(app, home))
    assert home.books.records == []


async def test_an_error_after_a_wrapped_client_was_used_leaves_its_record(new_home, wire):
    home = new_home(from_state())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        used(home, 5)  # nobody knows yet for whom
        scope["state"]["stripe_customer_id"] = "cus_err"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await wire.exchange(MeteringMiddleware(app, home))
    assert home.books.totals() == {"cus_err": 5}


@pytest.mark.parametrize("how", ["task.cancel", "timeout", "cancel scope"])
async def test_a_cancelled_stream_is_billed_for_what_came_and_the_cancellation_goes_on(new_home, wire, how):
    """The customer is looked up by an async resolver even while the request is being cancelled."""

    async def lookup(key: str) -> str:
        await asyncio.sleep(0.01)
        return "cus_" + key

    home = new_home(from_api_key(lookup))
    waiting = asyncio.Event()

    async def wait() -> None:
        waiting.set()
        await anyio.sleep_forever()

    app = MeteringMiddleware(streaming(wire.events(["One", " two"])[:2], wait), home)
    request = wire.exchange(app, headers={"x-api-key": "k"})
    if how == "cancel scope":
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: request)
                await waiting.wait()
                scope.cancel()
        assert scope.cancelled_caught
    elif how == "timeout":
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(request, 1)
    else:
        task = asyncio.create_task(request)
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    record = home.books.only
    assert (record.customer, record.usage.output, record.provenance) == ("cus_k", 2, "partial")
    assert home.books.rows == {}


async def test_a_second_cancellation_during_the_lookup_still_leaves_the_record(new_home, wire):
    asked = asyncio.Event()

    async def lookup(key: str) -> str:
        asked.set()
        await asyncio.sleep(3600)
        return "never"

    home = new_home(from_api_key(lookup))
    app = MeteringMiddleware(streaming(wire.events(["One"])[:1], anyio.sleep_forever), home)
    task = asyncio.create_task(wire.exchange(app, headers={"x-api-key": "k"}))
    await asyncio.sleep(0.01)
    task.cancel()
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert home.books.only.customer is None
    assert home.books.only.usage.output == 1


async def test_a_resolver_that_hangs_delays_nothing_for_longer_than_the_limit(new_home, wire):
    async def lookup(key: str) -> str:
        await asyncio.sleep(3600)
        return "never"

    home = new_home(from_api_key(lookup), commit_timeout_s=0.05)
    app = MeteringMiddleware(streaming(wire.events(["One"], usage=USAGE)), home)
    began = time.monotonic()
    passed = await wire.exchange(app, headers={"x-api-key": "k"})
    assert time.monotonic() - began < 20
    assert passed.body.endswith(b"[DONE]\n\n")
    assert home.books.totals() == {None: 13}


async def test_a_background_task_that_raises_after_the_answer_changes_nothing(home, wire):
    from starlette.background import BackgroundTask
    from starlette.responses import JSONResponse

    class TaskError(Exception):
        pass

    def task() -> None:
        used(home, 2)
        raise TaskError

    app = JSONResponse(wire.chat(), background=BackgroundTask(task))
    with pytest.raises(TaskError):
        await wire.exchange(MeteringMiddleware(app, home))
    assert home.books.totals() == {"cus_a": 17}


async def test_a_client_that_hangs_up_makes_send_fail_and_is_billed(home, wire):
    sent = 0

    def gone(message: dict[str, Any]) -> None:
        nonlocal sent
        sent += bool(message.get("body"))
        if sent == 3:
            raise OSError("client disconnected")

    app = MeteringMiddleware(streaming(wire.events(["One", " two", " three", " four"])), home)
    with pytest.raises(OSError, match="client disconnected"):
        await wire.exchange(app, on_send=gone)
    # The third was produced for it, and paid for.
    assert (home.books.only.usage.output, home.books.only.provenance) == (3, "partial")


async def test_an_answer_whose_usage_came_before_the_end_broke_off_is_reported(home, wire):
    async def fail() -> None:
        raise OSError

    app = MeteringMiddleware(streaming(wire.events(["a"], usage=USAGE)[:3], fail), home)
    with pytest.raises(OSError):
        await wire.exchange(app)
    assert (home.books.only.usage.total, home.books.only.provenance) == (13, "reported")


async def test_nothing_is_recorded_where_nothing_came(home, wire):
    async def fail() -> None:
        raise OSError

    with pytest.raises(OSError):
        await wire.exchange(MeteringMiddleware(streaming([], fail), home))
    assert home.books.records == []
    assert home.books.rows == {}


# Progress rows.


async def test_a_stream_under_way_is_noted_at_its_first_token_and_as_it_goes(new_home, wire):
    home = new_home(customer="cus_p", progress_every_tokens=100)
    rows_during: list[int] = []

    async def look() -> None:
        rows_during.append(len(home.books.rows))

    events = wire.events([" word"] * 450, usage=USAGE)
    await wire.exchange(MeteringMiddleware(streaming(events, look), home))
    assert rows_during == [1]
    noted = [(row.customer, row.usage.output or 0, row.provenance) for row in home.books.noted]
    assert {customer for customer, _, _ in noted} == {"cus_p"}
    assert {provenance for _, _, provenance in noted} == {"partial"}
    outputs = [output for _, output, _ in noted]
    assert outputs[0] <= 2
    assert all(0 <= b - a <= 100 for a, b in itertools.pairwise(outputs))
    assert outputs[-1] >= 330
    assert home.books.rows == {}
    assert home.books.only.id == home.books.noted[0].id


async def test_what_came_is_noted_in_time_even_where_nothing_more_comes(new_home, wire):
    home = new_home(customer="cus_p", progress_every_s=0.02)
    stalled = asyncio.Event()

    async def stall() -> None:
        await stalled.wait()

    app = MeteringMiddleware(streaming(wire.events([" word"] * 10)[:10], stall), home)
    task = asyncio.create_task(wire.exchange(app))
    while not home.books.noted or (home.books.noted[-1].usage.output or 0) < 10:
        await asyncio.sleep(0.005)
    written = len(home.books.noted)
    await asyncio.sleep(0.1)
    assert len(home.books.noted) <= written + 1  # and nothing is written for nothing new
    stalled.set()
    await task
    assert home.books.rows == {}
    assert home.books.only.usage.output == 10


async def test_no_progress_is_noted_for_json(home, wire):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(JSON_START)
        await send({"type": "http.response.body", "body": json.dumps(wire.chat()).encode()})

    await wire.exchange(MeteringMiddleware(app, home))
    assert home.books.noted == []


# Streams of wrapped clients.


def chunk(text: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-w", "object": "chat.completion.chunk", "model": "gpt-4o-mini",
        "choices": [{"index": 0, "delta": {"content": text}}],
    }  # fmt: skip


async def test_a_generator_that_is_never_closed_leaves_a_row_and_is_billed_once_when_collected(
    new_home,
):
    """The client hangs up; the endpoint's generator, and the provider's stream in it, stay open."""
    home = new_home(from_state())
    kept: list[Any] = []

    async def ask(request: Any) -> Any:
        request.state.stripe_customer_id = "cus_open"

        async def chunks() -> Any:
            tap = StreamTap(home.recorder, tally=StreamTally(), surface="client")
            kept.append(tap)
            for text in ("One", " two", " three"):
                tap.feed(chunk(text))
                yield json.dumps(chunk(text)) + "\n"

        return StreamingResponse(Held(chunks()), media_type="application/x-ndjson")

    class Held:
        def __init__(self, inner: Any) -> None:
            self.inner = inner
            kept.append(inner)

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> Any:
            return await self.inner.__anext__()

    app = MeteringMiddleware(Starlette(routes=[Route("/v1/chat/completions", ask, methods=["POST"])]), home)
    sent = 0

    async def send(message: Any) -> None:
        nonlocal sent
        sent += bool(message.get("body"))
        if sent == 2:
            raise OSError("gone")

    asgi = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b"",
        "asgi": {"spec_version": "2.4"},
    }  # fmt: skip

    async def receive() -> Any:
        await anyio.sleep_forever()

    with pytest.raises(Exception):  # noqa: B017
        await app(asgi, receive, send)
    assert home.books.records == []
    assert [(row.customer, row.provenance) for row in home.books.rows.values()] == [("cus_open", "partial")]
    await kept[0].aclose()
    kept.clear()
    gc.collect()
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    home.counter.later(lambda: loop.call_soon_threadsafe(done.set))
    await done.wait()
    record = home.books.only
    assert (record.customer, record.usage.output, record.provenance) == ("cus_open", 2, "partial")
    assert home.books.rows == {}


# Waiting for the disk.


async def holding(
    home: Any, app: Any, wire: Any, path: str = "/v1/chat/completions"
) -> tuple[Any, list[str]]:
    """Run a request whose records are not committed; say what was sent until then."""
    home.books.slow = True
    sent: list[str] = []
    task = asyncio.create_task(
        wire.exchange(
            MeteringMiddleware(app, home),
            path,
            on_send=lambda m: sent.append("more" if m.get("more_body") else m["type"].split(".")[-1]),
        )
    )
    for _ in range(100):
        await asyncio.sleep(0)
    await asyncio.sleep(0.02)
    return task, sent


async def test_the_last_message_waits_until_usage_is_on_disk(home, wire):
    app = streaming(wire.events(["a"], usage=USAGE))
    task, sent = await holding(home, app, wire)
    assert sent == ["start", "more", "more", "more", "more"]
    assert not task.done()
    home.books.commit_all()
    await task
    assert sent[-1] == "body"


async def test_on_other_routes_the_last_message_waits_too_if_something_was_used(home, wire):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        used(home)
        used(home)
        await send(JSON_START)
        await send({"type": "http.response.body", "body": b"{}"})

    task, sent = await holding(home, app, wire, "/ask")
    assert sent == ["start"]
    home.books.receipts[0].commit()
    await asyncio.sleep(0.02)
    assert sent == ["start"]  # both have to be there
    home.books.commit_all()
    await task
    assert sent == ["start", "body"]


async def test_usage_that_waited_for_its_customer_is_on_disk_before_the_end_too(new_home, wire):
    async def lookup(key: str) -> str:
        await asyncio.sleep(0)
        return "cus_late"

    home = new_home(from_api_key(lookup))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["headers"].append((b"x-api-key", b"k"))
        used(home)
        await send(JSON_START)
        await send({"type": "http.response.body", "body": b"{}"})

    task, sent = await holding(home, app, wire, "/ask")
    assert sent == ["start"]
    assert home.books.totals() == {"cus_late": 1}
    home.books.commit_all()
    await task


async def test_a_text_counted_on_another_thread_is_waited_for(new_home, wire):
    home = new_home(from_state())
    text = "word " * 20_000
    body = json.dumps(wire.chat(text, usage=None)).encode()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(JSON_START)
        scope["state"]["stripe_customer_id"] = "cus_long"
        await send({"type": "http.response.body", "body": body})
        assert home.books.totals().keys() == {"cus_long"}

    await wire.exchange(MeteringMiddleware(app, home))
    assert (home.books.only.usage.output or 0) > 19_000


async def test_memory_never_waits(new_home, wire):
    home = new_home(customer="cus_m", durability="memory")
    task, _ = await holding(home, streaming(wire.events(["a"], usage=USAGE)), wire)
    assert task.done()


async def test_a_response_that_used_nothing_never_waits(home, wire):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(JSON_START)
        await send({"type": "http.response.body", "body": b"{}"})

    task, _ = await holding(home, app, wire, "/ask")
    assert task.done()


async def test_a_slow_disk_delays_the_end_by_the_limit_at_most_and_raises_an_alarm(new_home, wire):
    home = new_home(customer="cus_s", commit_timeout_s=0.05)
    home.books.slow = True
    began = time.monotonic()
    passed = await wire.exchange(MeteringMiddleware(streaming(wire.events(["a"], usage=USAGE)), home))
    assert 0.04 < time.monotonic() - began < 20
    assert passed.messages[-1] == {"type": "http.response.body", "body": b""}
    assert home.telemetry.snapshot()["alarm.ledger.slow"] == 1
    assert home.books.totals() == {"cus_s": 13}


async def test_a_cancellation_while_waiting_for_the_disk_goes_on_and_records_once(home, wire):
    task, sent = await holding(home, streaming(wire.events(["a"], usage=USAGE)), wire)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sent[-1] == "more"
    assert home.books.totals() == {"cus_a": 13}


async def test_trailers_pathsend_and_early_hints_are_left_alone(home, wire):
    messages = [
        {"type": "http.response.early_hint", "links": [b"</a>; rel=preload"]},
        {**JSON_START, "trailers": True},
        {"type": "http.response.body", "body": json.dumps(wire.chat()).encode()},
        {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]},
    ]
    file = [dict(JSON_START), {"type": "http.response.pathsend", "path": "/some/file.json"}]
    for sent, records in ((messages, 1), (file, 1)):

        async def app(scope: Any, receive: Any, send: Any, sent: Any = sent) -> None:
            for message in sent:
                await send(message)

        passed = await wire.exchange(MeteringMiddleware(app, home))
        assert [id(m) for m in passed.messages] == [id(m) for m in sent]
        assert len(home.books.records) == records


async def test_nothing_is_left_in_the_context_of_a_cancelled_request(home, wire):
    before = context.current()
    app = MeteringMiddleware(streaming(wire.events(["a"])[:1], anyio.sleep_forever), home)
    with anyio.move_on_after(0.02):
        await wire.exchange(app)
    assert context.current() is before
    assert len(home.books.records) == 1
