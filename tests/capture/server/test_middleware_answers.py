"""The middleware reads the app's own answers on provider-shaped routes, and changes nothing."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from llm_metering.capture.middleware import MeteringMiddleware
from llm_metering.errors import ConfigurationError
from llm_metering.usage import Reading, Usage

pytestmark = pytest.mark.anyio

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def answering(
    *chunks: bytes, content_type: str | None = "application/json", status: int = 200, **headers: str
):
    """A bare ASGI app that answers with these chunks."""
    head = [(b"content-type", content_type.encode())] if content_type else []
    head += [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": status, "headers": head})
        for i, chunk in enumerate(chunks):
            await send({"type": "http.response.body", "body": chunk, "more_body": i < len(chunks) - 1})

    return app


def metered(app: Any, home: Any, **options: Any) -> MeteringMiddleware:
    return MeteringMiddleware(app, home, **options)


async def test_a_json_answer_is_recorded_and_passes_byte_for_byte(home, wire):
    body = json.dumps(wire.chat()).encode()
    passed = await wire.exchange(metered(answering(body), home))
    assert passed.body == body
    record = home.books.only
    assert (record.usage.input, record.usage.output, record.usage.total) == (12, 3, 15)
    assert (record.customer, record.model) == ("cus_a", "gpt-4o-mini-2024-07-18")
    assert (record.surface, record.provenance, record.held) == ("middleware", "reported", None)
    assert record.response_id == "chatcmpl-1"


async def test_every_message_of_a_stream_passes_as_the_same_object_in_order(home, wire):
    sent: list[dict[str, Any]] = []
    app = answering(*wire.events(["Hel", "lo"], usage=USAGE), content_type="text/event-stream")

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        async def note(message: Any) -> None:
            sent.append(message)
            await send(message)

        await app(scope, receive, note)

    passed = await wire.exchange(metered(noting, home))
    assert [id(m) for m in passed.messages] == [id(m) for m in sent]
    assert home.books.only.usage.total == 13
    assert home.books.rows == {}


async def test_chunks_are_passed_on_before_the_next_is_made(home, wire):
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for i, event in enumerate(wire.events(["a", "b"], usage=USAGE)):
            order.append(f"made {i}")
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    count = iter(range(99))
    await wire.exchange(
        metered(app, home),
        on_send=lambda m: order.append(f"sent {next(count)}") if m.get("body") else None,
    )
    assert order == [f"{word} {i}" for i in range(5) for word in ("made", "sent")]


async def test_a_stream_cut_at_every_byte_counts_the_same(new_home, wire):
    whole = b"".join(wire.events(["Grü", "ße 🎈"], usage=USAGE))
    for line_end in (b"\n", b"\r\n", b"\r"):
        raw = whole.replace(b"\n", line_end)
        for cut in range(len(raw) + 1):
            home = new_home(customer="cus_a")
            app = answering(raw[:cut], raw[cut:], content_type="text/event-stream; charset=utf-8")
            passed = await wire.exchange(metered(app, home))
            assert passed.body == raw
            assert home.books.only.usage.as_dict() == {"input": 9, "output": 4}, (line_end, cut)


async def test_a_stream_fed_byte_by_byte_counts_the_same(home, wire):
    raw = b"".join(wire.events(["Grü", "ße 🎈"], usage=USAGE))
    app = answering(*(raw[i : i + 1] for i in range(len(raw))), content_type="text/event-stream")
    assert (await wire.exchange(metered(app, home))).body == raw
    assert home.books.only.usage.total == 13


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_anthropic_and_openai_streams_are_read(home, wire, provider):
    events = wire.events(["Hi"], usage=USAGE)
    path = "/v1/chat/completions"
    if provider == "anthropic":
        path = "/v1/messages"
        events = [
            b"event: " + e["type"].encode() + b"\ndata: " + json.dumps(e).encode() + b"\n\n"
            for e in (
                {
                    "type": "message_start",
                    "message": {
                        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-opus-4-8",
                        "content": [], "usage": {"input_tokens": 9, "output_tokens": 1},
                    },
                },
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"},
                 "usage": {"output_tokens": 4}},
                {"type": "message_stop"},
            )
        ]  # fmt: skip
    await wire.exchange(metered(answering(*events, content_type="text/event-stream"), home), path)
    record = home.books.only
    assert (record.provider, record.usage.total, record.provenance) == (provider, 13, "reported")


@pytest.mark.parametrize("streamed", [False, True])
async def test_gemini_shaped_routes_are_read(home, wire, streamed):
    parts = [
        {
            "candidates": [{"content": {"parts": [{"text": text}], "role": "model"}}],
            "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": n, "totalTokenCount": 9 + n},
            "modelVersion": "gemini-2.5-flash", "responseId": "g1",
        }
        for text, n in (("He", 2), ("llo", 4))
    ]  # fmt: skip
    path = "/v1beta/models/gemini-2.5-flash:generateContent"
    app = answering(json.dumps(parts[-1]).encode())
    if streamed:
        path = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"
        events = (b"data: " + json.dumps(part).encode() + b"\r\n\r\n" for part in parts)
        app = answering(*events, content_type="text/event-stream")
    await wire.exchange(metered(app, home), path, b'{"contents": [{"parts": [{"text": "Hi"}]}]}')
    record = home.books.only
    assert (record.usage.total, record.model, record.held) == (13, "gemini-2.5-flash", None)


async def test_embeddings_and_responses_are_read(new_home, wire):
    embeddings = {
        "object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.1] * 5000}],
        "model": "text-embedding-3-small", "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }  # fmt: skip
    responses = {
        "id": "resp_1", "object": "response", "model": "gpt-5-mini", "output": [],
        "usage": {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12},
    }  # fmt: skip
    for path, body, total in (("/v1/embeddings", embeddings, 8), ("/openai/v1/responses", responses, 12)):
        home = new_home(customer="cus_a")
        await wire.exchange(metered(answering(json.dumps(body).encode()), home), path)
        assert home.books.only.usage.total == total


async def test_send_stays_a_coroutine_function_for_those_who_ask(home, wire):
    """asgiref's bridge for WSGI apps warns of a `send` that is none, and warnings are errors here."""
    sync = pytest.importorskip("asgiref.sync", reason="asgiref is not installed")
    async_to_sync, sync_to_async = sync.async_to_sync, sync.sync_to_async
    body = json.dumps(wire.chat()).encode()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sync_send = async_to_sync(send)
        async_to_sync(receive)
        head = [(b"content-type", b"application/json")]
        await sync_to_async(sync_send)({"type": "http.response.start", "status": 200, "headers": head})
        await sync_to_async(sync_send)({"type": "http.response.body", "body": body[:9], "more_body": True})
        await sync_to_async(sync_send)({"type": "http.response.body", "body": body[9:]})

    for path in ("/v1/chat/completions", "/other"):
        assert (await wire.exchange(metered(app, home), path)).body == body
    assert home.books.only.usage.total == 15


# What is not read.


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503, 302])
async def test_an_answer_that_is_no_success_is_no_usage(home, wire, status):
    body = json.dumps(wire.chat()).encode()
    passed = await wire.exchange(metered(answering(body, status=status), home))
    assert (passed.status, passed.body) == (status, body)
    assert home.books.records == []


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/chat/completions"), ("POST", "/v1/models"), ("POST", "/v1/chat/completions/chatcmpl-1")],
)
async def test_other_routes_are_not_read(home, wire, method, path):
    body = json.dumps(wire.chat()).encode()
    await wire.exchange(metered(answering(body), home), path, method=method)
    assert home.books.records == []


async def test_reading_can_be_switched_off_and_pointed_elsewhere(new_home, wire):
    body = json.dumps(wire.chat()).encode()
    for options, path, count in (
        ({"read_answers": False}, "/v1/chat/completions", 0),
        ({"paths": ["/ask"]}, "/ask", 1),
        ({"paths": ["/ask"]}, "/v1/chat/completions", 0),
        ({"paths": ["/bots/*/say"]}, "/bots/7/say", 1),
        ({}, "/deep/mount/v1/chat/completions/", 1),
    ):
        home = new_home(customer="cus_a")
        await wire.exchange(metered(answering(body), home, **options), path)
        assert len(home.books.records) == count, (options, path)


@pytest.mark.parametrize("paths", ["*/chat", ["chat"], [7]])
def test_paths_that_cannot_match_are_refused_with_a_sentence(home, paths):
    with pytest.raises(ConfigurationError, match="paths"):
        metered(answering(b"{}"), home, paths=paths)


def test_something_that_is_no_metering_is_refused(home):
    with pytest.raises(ConfigurationError, match="metering=Metering"):
        MeteringMiddleware(answering(b""), "cus_a")  # type: ignore[arg-type]


async def test_a_route_that_is_only_named_like_a_providers_leaves_no_record(home, wire):
    """POST /messages of a chat app, or any other JSON that no model wrote."""
    app = metered(answering(b'{"id": 7, "text": "hi"}'), home)
    passed = await wire.exchange(app, "/api/messages", b'{"text": "hi"}')
    assert passed.body == b'{"id": 7, "text": "hi"}'
    assert home.books.records == []
    assert home.telemetry.snapshot()["middleware.no_answer"] == 1


@pytest.mark.parametrize("content_type", ["text/html", "audio/mpeg", "application/octet-stream"])
async def test_other_content_types_pass_unread(home, wire, content_type):
    await wire.exchange(metered(answering(b"\x00\x01", content_type=content_type), home))
    assert home.books.records == []


async def test_an_answer_without_content_type_is_told_by_its_first_bytes(new_home, wire):
    for chunks in ([json.dumps(wire.chat()).encode()], wire.events(["x"], usage=USAGE)):
        home = new_home(customer="cus_a")
        await wire.exchange(metered(answering(*chunks, content_type=None), home))
        assert home.books.only.held is None


# What cannot be read.


@pytest.mark.parametrize(
    "body",
    [
        b"<html>not JSON</html>",
        b'{"id": "x", "usage": {"prompt_tokens": 5,',
        b"\xff\xfe\x00garbage",
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
    ids=["html", "cut short", "not UTF-8", "deep and cut", "deep"],
)
async def test_an_unreadable_answer_passes_and_is_kept_with_the_reason(home, wire, body):
    passed = await wire.exchange(metered(answering(body), home))
    assert (passed.status, passed.body) == (200, body)
    record = home.books.only
    assert record.held
    assert not record.usage
    assert record.customer == "cus_a"


async def test_an_unknown_shape_on_a_model_call_is_kept_with_the_reason(home, wire):
    await wire.exchange(metered(answering(b'{"odd": 1, "answer": "Hi"}'), home))
    record = home.books.only
    assert "shape" in (record.held or "")
    assert record.model == "gpt-4o-mini"  # as the request asked for


@pytest.mark.parametrize(
    "number", ["-5", "1.5", '"12"', "true", "1e400", "NaN", "Infinity", str(2**63), "[]"]
)
async def test_a_number_that_cannot_be_tokens_is_set_aside(home, wire, number):
    body = json.dumps(wire.chat()).replace(": 12,", f": {number},").encode()
    assert (await wire.exchange(metered(answering(body), home))).body == body
    record = home.books.only
    assert record.held
    assert not record.usage


async def test_a_hundred_megabytes_pass_in_flat_memory_and_are_counted_from_both_ends(home, wire):
    import tracemalloc

    head, tail = json.dumps(wire.chat("§")).encode().split(b"\\u00a7")
    block = b"x" * (1 << 20)
    sizes = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        head_ = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": head_})
        await send({"type": "http.response.body", "body": head, "more_body": True})
        for _ in range(100):
            await send({"type": "http.response.body", "body": bytes(block), "more_body": True})
        await send({"type": "http.response.body", "body": tail})

    async def count(scope: Any, receive: Any, send: Any) -> None:
        async def counted(message: Any) -> None:
            nonlocal sizes
            sizes += len(message.get("body", b""))

        await metered(app, home)(scope, receive, counted)

    tracemalloc.start()
    try:
        await wire.exchange(count)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sizes == len(head) + len(tail) + 100 * len(block)
    assert peak < 64 * (1 << 20)
    assert (home.books.only.usage.total, home.books.only.held) == (15, None)


async def test_a_request_of_a_hundred_megabytes_is_not_kept(new_home, wire):
    import tracemalloc

    home = new_home(customer="cus_a", max_body_bytes=1 << 20)
    block = b" " * (1 << 20)
    body = json.dumps(wire.chat(usage=None)).encode()
    tracemalloc.start()
    try:
        await wire.exchange(metered(answering(body), home), chunks=[block] * 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * (1 << 20)
    assert home.books.only.usage.output  # counted from the answer's text alone


# Compressed answers.


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "raw deflate"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_compressed_answers_are_read_and_pass_compressed(home, wire, encoding, streamed):
    events = wire.events(["Hel", "lo"], usage=USAGE)
    plain = b"".join(events) if streamed else json.dumps(wire.chat(usage=USAGE)).encode()
    if "gzip" in encoding:
        packed = gzip.compress(plain[:40]) + gzip.compress(plain[40:])  # two members
    else:
        press = zlib.compressobj(wbits=-15 if "raw" in encoding else 15)
        packed = press.compress(plain) + press.flush()
    chunks = [packed[i : i + 7] for i in range(0, len(packed), 7)]
    kind = "text/event-stream" if streamed else "application/json"
    app = answering(*chunks, content_type=kind, content_encoding=encoding.split()[-1])
    assert (await wire.exchange(metered(app, home))).body == packed
    assert home.books.only.usage.total == 13


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_bomb_is_not_inflated(new_home, wire, streamed):
    import tracemalloc

    home = new_home(customer="cus_a", max_body_bytes=1 << 20)
    bomb = gzip.compress(b" " * (64 << 20), 9)
    kind = "text/event-stream" if streamed else "application/json"
    app = metered(answering(bomb, content_type=kind, content_encoding="gzip"), home)
    tracemalloc.start()
    try:
        passed = await wire.exchange(app)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert passed.body == bomb
    assert peak < 16 * (1 << 20)
    assert "inflates to more than" in (home.books.only.held or "")


@pytest.mark.parametrize(("encoding", "why"), [("compress", "'compress'"), ("gzip", "cannot be inflated")])
async def test_what_cannot_be_inflated_passes_and_is_marked(home, wire, encoding, why):
    body = b"\x00\x01\x02 no such thing"
    passed = await wire.exchange(metered(answering(body, content_encoding=encoding), home))
    assert passed.body == body
    assert why in (home.books.only.held or "")


async def test_a_stream_past_the_bound_is_billed_for_what_was_read_of_it(new_home, wire):
    home = new_home(customer="cus_a", max_body_bytes=20_000)
    raw = b"".join(wire.events([" word"] * 500, usage=USAGE))
    packed = zlib.compressobj(wbits=31)
    chunks = []
    for i in range(0, len(raw), 1000):
        chunks.append(packed.compress(raw[i : i + 1000]) + packed.flush(zlib.Z_SYNC_FLUSH))
    chunks.append(packed.flush())
    app = answering(*chunks, content_type="text/event-stream", content_encoding="gzip")
    assert (await wire.exchange(metered(app, home))).body == b"".join(chunks)
    record = home.books.only
    assert record.provenance != "reported"
    assert 50 < (record.usage.output or 0) < 500


# Counting what is not reported.


async def test_a_stream_without_usage_is_counted_from_its_text_and_the_request(home, wire):
    app = answering(*wire.events(["One", " two", " three"]), content_type="text/event-stream")
    await wire.exchange(metered(app, home))
    record = home.books.only
    assert record.usage.output == 3
    assert record.usage.input == 8  # 3 a message, "user", "Hi", 3 for the answer
    assert record.provenance == "counted"


async def test_an_answer_without_usage_is_counted(home, wire):
    body = json.dumps(wire.chat("One two three", usage=None)).encode()
    await wire.exchange(metered(answering(body), home))
    assert (home.books.only.usage.output, home.books.only.provenance) == (3, "counted")


async def test_tokens_from_tiktoken_counts_what_was_reported_too(new_home, wire):
    home = new_home(customer="cus_a", tokens_from="tiktoken")
    body = json.dumps(wire.chat("One two three", completion=999)).encode()
    await wire.exchange(metered(answering(body), home))
    assert home.books.only.usage.output == 3


async def test_the_request_reaches_the_app_unchanged_in_any_number_of_pieces(home, wire):
    got: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            got.append(await receive())
            if not got[-1]["more_body"]:
                break
        body = json.dumps(wire.chat(usage=None)).encode()
        await answering(body)(scope, lambda: done(), send)

    async def done() -> dict[str, Any]:
        return {"type": "http.request"}

    chunks = [b'{"model":"gpt-4o-mini",', b"", b'"messages":[{"role":"user",', b'"content":"Hi"}]}']
    await wire.exchange(metered(app, home), chunks=chunks)
    assert [m["body"] for m in got] == chunks
    assert home.books.only.usage.input == 8


# What is counted inside.


async def test_an_answer_that_was_recorded_inside_is_not_recorded_again(home, wire):
    inside = answering(json.dumps(wire.chat(id="rewritten")).encode())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reading = Reading(Usage(input=12, output=3), response_id="chatcmpl-1", api="chat")
        home.recorder.record(reading, surface="client")
        await inside(scope, receive, send)

    await wire.exchange(metered(app, home))
    assert home.books.only.surface == "client"


async def test_an_embedding_looked_up_on_the_way_does_not_hide_the_answer(home, wire):
    inside = answering(json.dumps(wire.chat()).encode())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        home.recorder.record(Reading(Usage(input=5), api="embeddings"), surface="client")
        await inside(scope, receive, send)

    await wire.exchange(metered(app, home))
    assert [r.usage.total for r in home.books.records] == [5, 15]


class Opened:
    """A stream that a wrapped client is reading."""

    def __init__(self) -> None:
        self.left = 0

    def leave_progress(self) -> None:
        self.left += 1


async def test_a_stream_that_a_wrapped_client_reads_is_left_to_it(home, wire):
    from llm_metering.capture.context import current

    opened = Opened()
    events = wire.events(["a"] * 40, usage=USAGE)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def late(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                here = current()
                assert here is not None
                here.note_opened(opened)

        await answering(*events, content_type="text/event-stream")(scope, receive, late)

    await wire.exchange(metered(app, home))
    assert home.books.records == []
    assert home.books.rows == {}
    assert home.books.noted == []
    assert opened.left == 1


# A failure of ours.


@pytest.mark.parametrize("pieces", [1, 2])
async def test_an_error_of_our_own_is_counted_and_the_answer_goes_on(new_home, wire, monkeypatch, pieces):
    from llm_metering.providers import WireTally
    from llm_metering.providers.recognised import Forms

    home = new_home(customer="cus_a")
    body = json.dumps(wire.chat()).encode()

    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(WireTally, "result", broken)
    monkeypatch.setattr(Forms, "read", broken)
    cut = [body] if pieces == 1 else [body[:100], body[100:]]
    passed = await wire.exchange(metered(answering(*cut), home))
    assert (passed.status, passed.body) == (200, body)
    assert sum(home.failures.values()) == 1


async def test_a_recorder_that_fails_breaks_nothing(new_home, wire, monkeypatch):
    home = new_home(customer="cus_a")
    monkeypatch.setattr(home.books, "put", None)
    monkeypatch.setattr(home.books, "progress", None)
    events = wire.events(["x"], usage=USAGE)
    passed = await wire.exchange(metered(answering(*events, content_type="text/event-stream"), home))
    assert passed.body == b"".join(events)
    assert sum(home.failures.values()) == 2


async def test_headers_that_can_be_read_only_once_reach_the_client(home, wire):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = ((name, value) for name, value in [(b"content-type", b"application/json"), (b"x-a", b"b")])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(wire.chat()).encode()})

    passed = await wire.exchange(MeteringMiddleware(app, home))
    assert list(passed.messages[0]["headers"]) == [(b"content-type", b"application/json"), (b"x-a", b"b")]
    assert home.books.only.usage.total == 15


@pytest.mark.parametrize("usage", [None, USAGE])
async def test_a_prompt_that_is_too_long_to_be_counted_is_told(new_home, wire, usage, caplog):
    home = new_home(customer="cus_x", max_body_bytes=10_000)
    app = answering(*wire.events(["Hi"], usage=usage), content_type="text/event-stream")
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "word " * 5000}]})
    await wire.exchange(MeteringMiddleware(app, home), body=body.encode())
    assert home.counter.settle(30)
    assert home.books.only.usage.input_total == (9 if usage else None)
    told = [record for record in caplog.records if getattr(record, "event", "") == "middleware.long_prompt"]
    assert len(told) == (0 if usage else 1)
