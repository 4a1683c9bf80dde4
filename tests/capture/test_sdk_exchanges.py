"""Every recorded exchange through the provider's own SDK, wrapped: over a real socket, whole and streamed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import importlib
import importlib.util
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from llm_metering.capture.clients import wrap
from llm_metering.capture.transport import MeteringTransport
from llm_metering.providers import read_response, read_stream

from .conftest import Bench, ProviderStub, Reply

Row = dict[str, Any]


def exchanges(provider: str) -> list[Row]:
    root = Path(__file__).resolve().parents[2]
    shared = Path(os.environ.get("LLM_METERING_SHARED", root.parent / "shared")) / "exchanges"
    folder = Path(os.environ.get("LLM_METERING_EXCHANGES", shared))
    path = folder / f"{provider}.jsonl"
    if not path.is_file():
        pytest.skip(f"the recorded exchanges are not at {folder}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def reply_to(row: Row) -> Reply:
    """The exchange's answer as it came over the wire."""
    if not row["stream"]:
        return Reply(json.dumps(row["response"]).encode())
    events = row["response"]
    if row["provider"] == "bedrock":
        return Reply(content_type="application/vnd.amazon.eventstream", chunks=list(map(frame_of, events)))
    if row["provider"] == "ollama":
        return Reply(
            content_type="application/x-ndjson", chunks=[json.dumps(e).encode() + b"\n" for e in events]
        )
    if "event_type" in events[0]:  # Cohere's first version
        return Reply(
            content_type="application/stream+json", chunks=[json.dumps(e).encode() + b"\n" for e in events]
        )
    chunks = [
        (f"event: {e['type']}\n" if "type" in e else "").encode()
        + b"data: "
        + json.dumps(e).encode()
        + b"\n\n"
        for e in events
    ]
    done = [b"data: [DONE]\n\n"] if row["provider"] in ("mistral", "groq", "writer", "together") else []
    return Reply(content_type="text/event-stream", chunks=chunks + done)


def frame_of(event: Row) -> bytes:
    """One frame of Amazon's event streams."""
    event = dict(event)
    name = event.pop("_event")
    body: Any = event
    if name == "chunk":
        body = {"bytes": base64.b64encode(json.dumps(event).encode()).decode()}
    headers = b"".join(
        bytes([len(k)]) + k.encode() + b"\x07" + len(v).to_bytes(2, "big") + v.encode()
        for k, v in ((":event-type", name), (":content-type", "application/json"), (":message-type", "event"))
    )
    payload = json.dumps(body).encode()
    prelude = (16 + len(headers) + len(payload)).to_bytes(4, "big") + len(headers).to_bytes(4, "big")
    frame = prelude + binascii.crc32(prelude).to_bytes(4, "big") + headers + payload
    return frame + binascii.crc32(frame).to_bytes(4, "big")


def drain(stream: Any) -> None:
    for _ in stream:
        pass


async def adrain(stream: Any) -> None:
    async for _ in stream:
        pass


# One way to make a call, for each SDK.


def google(origin: str, bench: Bench) -> Callable[[Row], None]:
    from google import genai

    client = wrap(genai.Client(api_key="k", http_options={"base_url": origin}), bench.recorder)

    def call(row: Row) -> None:
        model = row["path"].rpartition("/")[2].partition(":")[0]
        if row["stream"]:
            drain(client.models.generate_content_stream(model=model, contents="Hi"))
        else:
            client.models.generate_content(model=model, contents="Hi")

    return call


def google_async(origin: str, bench: Bench) -> Callable[[Row], None]:
    from google import genai

    async def call(row: Row) -> None:
        client = wrap(genai.Client(api_key="k", http_options={"base_url": origin}), bench.recorder)
        model = row["path"].rpartition("/")[2].partition(":")[0]
        async with client.aio as aio:
            if row["stream"]:
                await adrain(await aio.models.generate_content_stream(model=model, contents="Hi"))
            else:
                await aio.models.generate_content(model=model, contents="Hi")

    return lambda row: asyncio.run(call(row))


def mistral(origin: str, bench: Bench) -> Callable[[Row], None]:
    from mistralai.client import Mistral

    client = wrap(Mistral(api_key="k", server_url=origin), bench.recorder)

    def call(row: Row) -> None:
        if row["api"] == "embeddings":
            client.embeddings.create(model=row["model"], inputs=["Hi"])
        elif row["stream"]:
            drain(client.chat.stream(model=row["model"], messages=[{"role": "user", "content": "Hi"}]))
        else:
            client.chat.complete(model=row["model"], messages=[{"role": "user", "content": "Hi"}])

    return call


def mistral_async(origin: str, bench: Bench) -> Callable[[Row], None]:
    from mistralai.client import Mistral

    async def call(row: Row) -> None:
        async with wrap(Mistral(api_key="k", server_url=origin), bench.recorder) as client:
            messages = [{"role": "user", "content": "Hi"}]
            if row["api"] == "embeddings":
                await client.embeddings.create_async(model=row["model"], inputs=["Hi"])
            elif row["stream"]:
                await adrain(await client.chat.stream_async(model=row["model"], messages=messages))
            else:
                await client.chat.complete_async(model=row["model"], messages=messages)

    return lambda row: asyncio.run(call(row))


def cohere(origin: str, bench: Bench) -> Callable[[Row], None]:
    import cohere

    first = wrap(cohere.Client(api_key="k", base_url=origin), bench.recorder)
    second = wrap(cohere.ClientV2(api_key="k", base_url=origin), bench.recorder)

    def call(row: Row) -> None:
        model = row["model"] or "command"
        if row["api"] == "rerank":
            first.rerank(model=model, query="q", documents=["a"])
        elif row["api"] == "embed":
            first.embed(model=model, texts=["a"], input_type="search_document")
        elif row["api"] == "generate":
            first.generate(prompt="Hi")
        elif row["path"].startswith("/v2"):
            messages = [{"role": "user", "content": "Hi"}]
            if row["stream"]:
                drain(second.chat_stream(model=model, messages=messages))
            else:
                second.chat(model=model, messages=messages)
        elif row["stream"]:
            drain(first.chat_stream(model=model, message="Hi"))
        else:
            first.chat(model=model, message="Hi")

    return call


def groq(origin: str, bench: Bench) -> Callable[[Row], None]:
    from groq import Groq

    client = wrap(Groq(api_key="k", base_url=origin), bench.recorder)

    def call(row: Row) -> None:
        messages: Any = [{"role": "user", "content": "Hi"}]
        if row["stream"]:
            drain(client.chat.completions.create(model=row["model"], messages=messages, stream=True))
        else:
            client.chat.completions.create(model=row["model"], messages=messages)

    return call


def openai(origin: str, bench: Bench) -> Callable[[Row], None]:
    from openai import OpenAI

    client = wrap(OpenAI(api_key="k", base_url=f"{origin}/v1", max_retries=0), bench.recorder)

    def call(row: Row) -> None:
        messages: Any = [{"role": "user", "content": "Hi"}]
        model, streamed = row["model"] or "gpt-4o", row["stream"]
        if row["api"] == "embeddings":
            client.embeddings.create(model=model, input="Hi", encoding_format="float")
        elif row["api"] == "completions":
            client.completions.create(model=model, prompt="Hi")
        elif row["api"] == "responses":
            drain(client.responses.create(model=model, input="Hi", stream=streamed) if streamed else ())
            _ = streamed or client.responses.create(model=model, input="Hi")
        elif row["api"] == "assistants" and streamed:
            drain(client.beta.threads.runs.create("thread_1", assistant_id="asst_1", stream=True))
        elif row["api"] == "assistants":
            # Asking again and again, as `create_and_poll` does, is one run still.
            for _ in range(3):
                client.beta.threads.runs.retrieve(row["response"]["id"], thread_id="thread_1")
        elif streamed:
            options: Any = {"include_usage": True}
            drain(
                client.chat.completions.create(
                    model=model, messages=messages, stream=True, stream_options=options
                )
            )
        else:
            client.chat.completions.create(model=model, messages=messages)

    return call


def azure(origin: str, bench: Bench) -> Callable[[Row], None]:
    from openai import AzureOpenAI

    client = wrap(
        AzureOpenAI(api_key="k", azure_endpoint=origin, api_version="2024-02-01", max_retries=0),
        bench.recorder,
    )

    def call(row: Row) -> None:
        messages: Any = [{"role": "user", "content": "Hi"}]
        if row["api"] == "embeddings":
            client.embeddings.create(model=row["model"], input="Hi", encoding_format="float")
        else:
            client.chat.completions.create(model=row["model"], messages=messages)

    return call


def anthropic(origin: str, bench: Bench) -> Callable[[Row], None]:
    from anthropic import Anthropic

    client = wrap(Anthropic(api_key="k", base_url=origin, max_retries=0), bench.recorder)

    def call(row: Row) -> None:
        messages: Any = [{"role": "user", "content": "Hi"}]
        if row["stream"]:
            drain(client.messages.create(model="claude", max_tokens=9, messages=messages, stream=True))
        else:
            client.messages.create(model="claude", max_tokens=9, messages=messages)

    return call


def ollama(origin: str, bench: Bench) -> Callable[[Row], None]:
    from ollama import Client

    client = wrap(Client(origin), bench.recorder)

    def call(row: Row) -> None:
        if row["api"] == "chat":
            said = client.chat(row["model"], [{"role": "user", "content": "Hi"}], stream=row["stream"])
        else:
            said = client.generate(row["model"], "Hi", stream=row["stream"])
        if row["stream"]:
            drain(said)

    return call


def bedrock(origin: str, bench: Bench) -> Callable[[Row], None]:
    import boto3

    client = wrap(
        boto3.client(
            "bedrock-runtime",
            region_name="us-east-1",
            endpoint_url=origin,
            aws_access_key_id="a",
            aws_secret_access_key="b",
        ),
        bench.recorder,
    )

    def call(row: Row) -> None:
        messages = [{"role": "user", "content": [{"text": "Hi"}]}]
        if row["api"] == "converse":
            if row["stream"]:
                drain(client.converse_stream(modelId="amazon.nova", messages=messages)["stream"])
            else:
                client.converse(modelId="amazon.nova", messages=messages)
        elif row["stream"]:
            answer = client.invoke_model_with_response_stream(modelId="amazon.nova", body=b"{}")
            drain(answer["body"])
        else:
            assert json.loads(client.invoke_model(modelId="amazon.nova", body=b"{}")["body"].read())

    return call


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the SDKs' own

CASES = [
    ("gemini", google), ("vertex", google), ("gemini", google_async), ("vertex", google_async),
    ("mistral", mistral), ("mistral", mistral_async), ("cohere", cohere), ("groq", groq),
    ("ollama", ollama), ("bedrock", bedrock),
    ("openai", openai), ("deepseek", openai), ("together", openai), ("azure-openai", azure),
    ("anthropic", anthropic),
]  # fmt: skip


@pytest.mark.parametrize(("name", "sdk"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_every_recorded_exchange_counts_exactly_through_its_wrapped_sdk(
    name: str, sdk: Any, bench: Bench, provider: ProviderStub
) -> None:
    rows = exchanges(name)
    if sdk is openai and importlib.util.find_spec("openai.types.responses") is None:
        rows = [row for row in rows if row["api"] != "responses"]  # the oldest SDK has none
    try:
        call = sdk(provider.origin, bench)
    except ModuleNotFoundError as exc:
        pytest.skip(f"{exc.name} is not installed")
    wrong = []
    for row in rows:
        provider.replies.clear()
        provider.add(reply_to(row))
        bench.sink.records.clear()
        with suppress(AttributeError):  # google-genai does not read the numbers of Vertex's recorded gRPC
            call(row)
        bench.drain()
        expected = (read_stream if row["stream"] else read_response)(row["response"]).usage
        found = [(record.usage, record.provenance) for record in bench.records]
        if found != ([(expected, "reported")] if expected else []):
            wrong.append((row["source"], expected, bench.records))
        assert not bench.sink.rows
    assert wrong == []


PROVIDERS = (
    "anthropic", "azure-openai", "bedrock", "cohere", "deepseek", "gemini", "groq", "mistral", "ollama",
    "openai", "together", "vertex", "voyage", "writer",
)  # fmt: skip


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_every_recorded_exchange_counts_exactly_through_the_transport(
    name: str, library: str, bench: Bench, provider: ProviderStub
) -> None:
    rows = exchanges(name)
    http = importlib.import_module(library)
    wrong = []
    with http.Client(transport=MeteringTransport(bench)) as client:  # type: ignore[arg-type]
        for number, row in enumerate(rows):
            provider.replies.clear()
            provider.add(reply_to(row))
            bench.sink.records.clear()
            body = row["request"] or {}
            method = "GET" if row["api"] == "assistants" and not row["stream"] else "POST"
            if number % 2:
                client.request(method, provider.origin + row["path"], json=body)
            else:
                with client.stream(method, provider.origin + row["path"], json=body) as response:
                    for _ in response.iter_raw(61) if number % 4 else response.iter_lines():
                        pass
            bench.drain()
            expected = (read_stream if row["stream"] else read_response)(row["response"]).usage
            found = [(record.usage, record.provenance) for record in bench.records]
            if found != ([(expected, "reported")] if expected else []):
                wrong.append((row["source"], row["path"], expected, bench.records))
            assert not bench.sink.rows
    assert wrong == []
