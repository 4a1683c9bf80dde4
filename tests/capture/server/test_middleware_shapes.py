"""Every shape that the readers know is metered where an app serves it on its usual path."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

import pytest
from llm_metering.capture.middleware import MeteringMiddleware
from llm_metering.providers import read_response, read_stream, shapes
from llm_metering.usage import Reading, Usage

pytestmark = pytest.mark.anyio

PAYLOADS = Path(__file__).parents[2] / "providers" / "payloads"
CASES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(PAYLOADS.glob("*.json"))}
NOT_SERVED = {"langchain-message"}  # an object of a library, not an answer of a server
FRAMED = "application/vnd.amazon.eventstream"

PATHS = {
    ("openai", "chat"): "/v1/chat/completions",
    ("openai", "completions"): "/v1/completions",
    ("openai", "responses"): "/v1/responses",
    ("openai", "embeddings"): "/v1/embeddings",
    ("openai", "rerank"): "/v1/rerank",
    ("openai", "images"): "/v1/images/generations",
    ("openai", "audio"): "/v1/audio/transcriptions",
    ("openai", "assistants"): "/v1/threads/thread_1/runs",
    ("anthropic", "messages"): "/v1/messages",
    ("google", "generate_content"): "/v1beta/models/gemini-x:generateContent",
    ("google", "interactions"): "/v1beta/interactions",
    ("google", "embeddings"): "/v1/projects/p/locations/l/publishers/google/models/e:predict",
    ("bedrock", "converse"): "/model/m/converse",
    ("bedrock", "invoke"): "/model/m/invoke",
    ("cohere", "chat"): "/v2/chat",
    ("ollama", "chat"): "/api/chat",
    ("ollama", "embeddings"): "/api/embed",
    ("mistral", "conversations"): "/v1/conversations",
    ("watsonx", "chat"): "/ml/v1/text/chat",
    ("watsonx", "completions"): "/ml/v1/text/generation",
    ("huggingface", "completions"): "/generate",
}
"""Where an answer of each provider and kind usually comes from."""
MORE_PATHS = {
    "cohere-rerank": "/v2/rerank",
    "cohere-v1-embed": "/v1/embed",
    "openai-responses-compaction": "/v1/responses/compact",
    "openai-images": "/v1/images/edits",
    "stream-bedrock-converse": "/model/m/converse-stream",
    "stream-ollama": "/api/generate",
    "stream-tgi": "/generate_stream",
    "stream-watsonx": "/ml/v1/text/generation_stream",
    "stream-watsonx-chat": "/ml/v1/text/chat_stream",
    "stream-mistral-conversation": "/v1/conversations/conv_1",
    "watsonx-embeddings": "/ml/v1/text/embeddings",
}
UNNAMED = "/v1/audio/translations"
"""For answers that name nobody: a path where only what is understood is recorded."""


def path_of(name: str, reading: Reading) -> str:
    if name in MORE_PATHS:
        return MORE_PATHS[name]
    return PATHS[reading.provider, reading.api] if reading.provider and reading.api else UNNAMED


def on_the_wire(case: dict[str, Any], path: str) -> tuple[str, list[bytes]]:
    if "body" in case:
        return "application/json", [json.dumps(case["body"]).encode()]
    if path.startswith("/model/"):
        return FRAMED, [frame(event) for event in case["events"]]
    if path.startswith("/api/"):
        return "application/x-ndjson", [json.dumps(event).encode() + b"\n" for event in case["events"]]
    return "text/event-stream", [b"data: " + json.dumps(event).encode() + b"\n\n" for event in case["events"]]


def frame(event: dict[str, Any]) -> bytes:
    """One of Amazon's frames, as Converse names its events, or as an invoked model's chunks are packed."""
    ((name, body),) = event.items() if len(event) == 1 else (("chunk", event),)
    if name == "chunk":
        body = {"bytes": base64.b64encode(json.dumps(body).encode()).decode()}
    key, kind, payload = b":event-type", name.encode(), json.dumps(body).encode()
    headers = bytes([len(key)]) + key + b"\x07" + len(kind).to_bytes(2, "big") + kind
    head = (16 + len(headers) + len(payload)).to_bytes(4, "big") + len(headers).to_bytes(4, "big")
    whole = head + binascii.crc32(head).to_bytes(4, "big") + headers + payload
    return whole + binascii.crc32(whole).to_bytes(4, "big")


def serving(content_type: str, chunks: list[bytes], *headers: tuple[bytes, bytes]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        head = [(b"content-type", content_type.encode()), *headers]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


@pytest.mark.parametrize("name", [n for n in CASES if n not in NOT_SERVED])
async def test_every_payload_is_metered_on_its_usual_path(new_home, wire, name):
    case = CASES[name]
    reading = read_response(case["body"]) if "body" in case else read_stream(case["events"])
    path = path_of(name, reading)
    content_type, chunks = on_the_wire(case, path)
    home = new_home(customer="cus_x")
    app = MeteringMiddleware(serving(content_type, chunks), home)
    passed = await wire.exchange(app, path, b'{"prompt": "Hello", "messages": []}')
    assert passed.body == b"".join(chunks)
    if not reading.usage:
        assert all(record.usage.total is None for record in home.books.records)
        return
    mine, *others = sorted(home.books.records, key=lambda record: record.response_id != reading.response_id)
    assert (mine.usage, mine.provenance, mine.held) == (reading.usage, "reported", None)
    assert mine.response_id == reading.response_id
    assert len(others) == len(reading.beside)
    assert home.books.rows == {}
    assert home.failures == {}


def test_the_table_of_paths_has_every_shape():
    known = {(s.provider, s.api) for s in vars(shapes).values() if isinstance(s, shapes.Shape)}
    assert known - {("langchain", "chat")} == set(PATHS)


async def test_the_path_names_the_model_where_nothing_else_does(new_home, wire):
    home = new_home(customer="cus_x")
    body = json.dumps(
        {"output": {"message": {"content": []}}, "usage": {"inputTokens": 3, "outputTokens": 4}}
    )
    app = MeteringMiddleware(serving("application/json", [body.encode()]), home)
    await wire.exchange(app, "/model/us.amazon.nova-micro-v1%3A0/converse", b'{"messages": []}')
    assert home.books.only.model == "us.amazon.nova-micro-v1:0"


@pytest.mark.parametrize(
    "chunks", [[b'{"outputs": [{"text": "Hi"}]}'], [b'{"outputs": [{"te', b'xt": "Hi"}]}']]
)
async def test_bedrocks_headers_are_read_where_the_vendors_body_says_nothing(new_home, wire, chunks):
    home = new_home(customer="cus_x")
    counts = ((b"X-Amzn-Bedrock-Input-Token-Count", b"7"), (b"x-amzn-bedrock-output-token-count", b"2"))
    app = MeteringMiddleware(serving("application/json", chunks, *counts), home)
    await wire.exchange(app, "/model/mistral.mistral-7b-instruct-v0:2/invoke", b'{"prompt": "Hello"}')
    record = home.books.only
    assert (record.usage, record.provider) == (Usage(input=7, output=2), "bedrock")
    assert (record.model, record.held) == ("mistral.mistral-7b-instruct-v0:2", None)


OTHERS = [
    ("application/json", [b'{"reply": "Hi", "done": false}']),
    ("application/json", [b'{"id": 7, "messages": ["Hi"], "status": "completed"}']),
    ("text/event-stream", [b"data: Hel\n\n", b"data: lo\n\n"]),
    ("text/event-stream", [b'data: {"delta": "Hel"}\n\n', b'data: {"delta": "lo"}\n\n']),
    ("application/x-ndjson", [b'{"row": 1}\n', b'{"row": 2}\n']),
]


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/v1/chat", "/generate", "/conversations/7"])
@pytest.mark.parametrize(("content_type", "chunks"), OTHERS)
async def test_an_apps_own_answers_on_such_a_path_leave_neither_a_record_nor_a_row(
    new_home, wire, path, content_type, chunks
):
    home = new_home(customer="cus_x")
    app = MeteringMiddleware(serving(content_type, chunks), home)
    passed = await wire.exchange(
        app, path, b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}'
    )
    assert passed.body == b"".join(chunks)
    assert (home.books.records, home.books.noted, home.failures) == ([], [], {})


async def test_a_path_that_was_asked_for_by_name_keeps_what_is_not_understood(new_home, wire):
    home = new_home(customer="cus_x")
    app = MeteringMiddleware(serving("application/json", [b'{"reply": "Hi"}']), home, paths=["*/api/chat"])
    await wire.exchange(app, "/api/chat", b'{"model": "m", "messages": []}')
    assert "shape" in (home.books.only.held or "")


async def test_a_providers_stream_on_such_a_path_leaves_a_row_while_it_lasts(new_home, wire):
    home = new_home(customer="cus_x", progress_every_tokens=1)
    lines = [b'{"model": "llama3", "message": {"content": "a"}, "done": false}\n'] * 5
    app = MeteringMiddleware(serving("application/x-ndjson", lines), home)
    await wire.exchange(app, "/api/chat", b'{"model": "llama3", "messages": []}')
    assert home.books.noted
    assert home.books.only.provenance == "partial"


async def test_a_model_named_deep_in_a_request_is_not_the_one_that_is_billed(new_home, wire):
    home = new_home(customer="cus_x")
    answer = wire.chat()
    del answer["model"]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    body = b'{"model": "gpt-4o", "messages": [], "metadata": {"model": "gpt-4o-mini"}}'
    await wire.exchange(MeteringMiddleware(app, home), body=body)
    assert home.books.only.model == "gpt-4o"
