"""Real recorded answers, served as JSON and as events by an app under the middleware."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from llm_metering.capture.middleware import MeteringMiddleware
from llm_metering.capture.routes import DEFAULT_PATHS, path_matcher
from llm_metering.providers import read_response, read_stream

pytestmark = pytest.mark.anyio

SHARED = Path(os.environ.get("LLM_METERING_SHARED", Path(__file__).parents[4] / "shared"))
PROVIDERS = (
    "openai",
    "azure-openai",
    "anthropic",
    "gemini",
    "vertex",
    "groq",
    "mistral",
    "deepseek",
    "together",
    "writer",
    "voyage",
    "cohere",
    "ollama",
    "bedrock",
)


def exchanges(provider: str) -> list[dict[str, Any]]:
    file = SHARED / "exchanges" / f"{provider}.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is missing; set LLM_METERING_SHARED to where exchanges/ is")
    matches = path_matcher(DEFAULT_PATHS)
    return [
        e for line in file.read_text().splitlines() if matches((e := json.loads(line))["path"].split("?")[0])
    ]


def on_the_wire(event: dict[str, Any]) -> bytes:
    name = b"event: " + event["type"].encode() + b"\n" if isinstance(event.get("type"), str) else b""
    return name + b"data: " + json.dumps(event).encode() + b"\n\n"


def as_line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_the_middleware_reads_recorded_answers_as_the_readers_do(new_home, wire, provider):
    found = Counter[str]()
    for exchange in exchanges(provider):
        answer = exchange["response"]
        streamed = isinstance(answer, list)
        expected = read_stream(answer) if streamed else read_response(answer)
        if not expected.usage:
            continue
        lines = provider == "ollama"
        form = as_line if lines else on_the_wire
        chunks = [form(e) for e in answer] if streamed else [json.dumps(answer).encode()]

        async def app(
            scope: Any,
            receive: Any,
            send: Any,
            chunks: Any = chunks,
            streamed: Any = streamed,
            lines: Any = lines,
        ) -> None:
            kind = b"text/event-stream; charset=utf-8" if streamed else b"application/json"
            kind = b"application/x-ndjson" if streamed and lines else kind
            head = [(b"content-type", kind)]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        home = new_home(customer="cus_x")
        path = exchange["path"].split("?")[0]
        passed = await wire.exchange(
            MeteringMiddleware(app, home), path, json.dumps(exchange["request"]).encode()
        )
        assert passed.body == b"".join(chunks)
        record = home.books.only
        assert record.usage == expected.usage, exchange["id"]
        assert (record.response_id, record.held) == (expected.response_id, None), exchange["id"]
        assert home.books.rows == {}
        found["stream" if streamed else "whole"] += 1
    assert found, f"no exchange of {provider} has a path that is read by default"
