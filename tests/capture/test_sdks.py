"""SDKs that are metered below their methods: they stay what they are, and every answer counts once."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llm_metering.capture import context
from llm_metering.capture.clients import is_supported, meter_of, wrap
from llm_metering.capture.context import Scope
from llm_metering.errors import ConfigurationError

from .conftest import Bench, ProviderStub, Reply, Said, wire
from .test_sdk_exchanges import frame_of

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
cohere = pytest.importorskip("cohere", reason="cohere is not installed")
genai = pytest.importorskip("google.genai", reason="google-genai is not installed")
Mistral = pytest.importorskip("mistralai.client", reason="mistralai is not installed").Mistral
SDKError = pytest.importorskip("mistralai.client.errors", reason="mistralai is not installed").SDKError
Ollama = pytest.importorskip("ollama", reason="ollama is not installed").Client

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the SDKs' own

MESSAGES: Any = [{"role": "user", "content": "Hi"}]


def gemini(text: str = "Hello there", *, usage: bool = True, **more: Any) -> dict[str, Any]:
    counts = {"promptTokenCount": 9, "candidatesTokenCount": 4, "totalTokenCount": 13}
    return {
        "candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, "index": 0, **more}],
        **({"usageMetadata": counts} if usage else {}),
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r1",
    }


def boto(origin: str) -> Any:
    return boto3.client(
        "bedrock-runtime",
        region_name="us-east-1",
        endpoint_url=origin,
        aws_access_key_id="a",
        aws_secret_access_key="b",
        config=boto3.session.Config(retries={"max_attempts": 0}),
    )


MAKERS: dict[str, Callable[[str], Any]] = {
    "google": lambda origin: genai.Client(api_key="k", http_options={"base_url": origin}),
    "mistral": lambda origin: Mistral(api_key="k", server_url=origin),
    "cohere": lambda origin: cohere.ClientV2(api_key="k", base_url=origin),
    "cohere-async": lambda origin: cohere.AsyncClientV2(api_key="k", base_url=origin),
    "ollama": lambda origin: Ollama(origin),
    "bedrock": boto,
}


@pytest.fixture(params=MAKERS)
def client(request: pytest.FixtureRequest, provider: ProviderStub) -> Any:
    return MAKERS[request.param](provider.origin)


def public(value: Any, depth: int = 0) -> dict[str, Any]:
    """Names, types and signatures of what a client shows."""
    found: dict[str, Any] = {}
    for name in dir(value):
        if name.startswith("_"):
            continue
        try:
            each = getattr(value, name)
        except Exception as exc:
            found[name] = type(exc)
            continue
        found[name] = (type(each), _signature(each), public(each, depth + 1) if depth < 1 else None)
    return found


def _signature(value: Any) -> str:
    try:
        return str(inspect.signature(value)) if callable(value) else ""
    except (TypeError, ValueError):
        return ""


def test_a_client_keeps_its_type_names_and_signatures(client: Any, bench: Bench) -> None:
    public(client)  # some parts are made when they are first looked at
    kind, names, before = type(client), dir(client), public(client)
    assert is_supported(client)
    assert meter_of(client) is None
    assert wrap(client, bench.recorder) is client
    assert type(client) is kind
    assert dir(client) == names
    assert public(client) == before


def test_wrapping_again_changes_nothing_and_says_where_it_cannot(client: Any, bench: Bench) -> None:
    wrap(client, bench.recorder, feature="a")
    meter = meter_of(client)
    assert meter is not None
    assert wrap(client, bench.recorder, feature="a") is client
    assert wrap(client, bench.recorder) is client
    assert meter_of(client) is meter
    with pytest.raises(ConfigurationError, match="metered already"):
        wrap(client, bench.recorder, feature="b")


def test_a_class_is_no_client(bench: Bench) -> None:
    for cls in (Mistral, genai.Client, cohere.Client, Ollama):
        with pytest.raises(ConfigurationError, match="make a client of it first"):
            wrap(cls, bench.recorder)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="wrap\\(\\) cannot meter"):
        wrap(boto3.client("s3", region_name="us-east-1"), bench.recorder)


def test_twice_wrapped_counts_once_with_its_dimensions(
    bench: Bench, provider: ProviderStub, said: Any
) -> None:
    provider.json(said.chat())
    client = Mistral(api_key="k", server_url=provider.origin)
    wrap(wrap(client, bench.recorder, feature="a"), bench.recorder, feature="a")
    client.chat.complete(model="mistral-small", messages=MESSAGES)
    assert bench.only().dimensions == {"feature": "a"}
    assert bench.only().provider == "mistral"
    assert bench.only().surface == "client"


# Errors.


def test_errors_are_the_sdk_s_own_and_nothing_is_recorded(bench: Bench, provider: ProviderStub) -> None:
    provider.json({"message": "no", "error": {"code": 429, "message": "no", "status": "x"}}, status=429)
    mistral = wrap(MAKERS["mistral"](provider.origin), bench.recorder)
    with pytest.raises(SDKError):
        mistral.chat.complete(model="m", messages=MESSAGES)
    google = wrap(MAKERS["google"](provider.origin), bench.recorder)
    with pytest.raises(genai.errors.ClientError):
        google.models.generate_content(model="gemini", contents="Hi")
    with pytest.raises(genai.errors.ClientError):
        list(google.models.generate_content_stream(model="gemini", contents="Hi"))
    bedrock = wrap(boto(provider.origin), bench.recorder)
    with pytest.raises(bedrock.exceptions.ClientError):
        bedrock.converse(modelId="amazon.nova", messages=[{"role": "user", "content": [{"text": "Hi"}]}])
    assert bench.records == []
    assert bench.sink.rows == {}


def mistral_events(said: type[Said]) -> list[bytes]:
    return [wire(event) for event in said.chat_events(usage=False)]


def test_a_stream_that_is_left_is_billed_for_what_came(
    bench: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    provider.events(said.chat_events())
    client = wrap(MAKERS["mistral"](provider.origin), bench.recorder)
    with client.chat.stream(model="mistral-small", messages=MESSAGES) as stream:
        for number, _ in enumerate(stream):
            if number == 2:
                break
    bench.drain()
    record = bench.only()
    assert record.provenance == "partial"
    assert record.usage.output is not None
    assert 0 < record.usage.output < 5


@pytest.mark.parametrize("left", ["broken off", "closed", "dropped"])
def test_a_gemini_stream_that_ends_early_is_billed_for_what_came(
    left: str, bench: Bench, provider: ProviderStub
) -> None:
    chunks = [
        b"data: " + json.dumps(gemini(text, usage=False)).encode() + b"\r\n\r\n" for text in ("Hello", " you")
    ]
    provider.raw(b"", chunks=chunks, content_type="text/event-stream", hang_up=left == "broken off")
    client = wrap(MAKERS["google"](provider.origin), bench.recorder)
    stream = client.models.generate_content_stream(model="gemini-2.5-flash", contents="Say hello")
    if left == "broken off":
        with pytest.raises(Exception, match=r"peer closed|incomplete"):
            list(stream)
    else:
        next(stream)
        stream.close() if left == "closed" else None
        del stream
        gc.collect()
    bench.drain()
    record = bench.only()
    assert record.provenance == "partial"
    assert (record.usage.input or 0) > 0
    assert record.usage.output == (2 if left == "broken off" else 1)
    assert record.model == "gemini-2.5-flash"


def test_a_cancelled_async_stream_is_billed_for_what_came(bench: Bench, provider: ProviderStub) -> None:
    import threading

    chunks = [b"data: " + json.dumps(gemini("Hello", usage=False)).encode() + b"\r\n\r\n"]
    gate = threading.Event()
    provider.raw(b"", chunks=chunks, content_type="text/event-stream", gate=gate)
    seen: list[Any] = []

    async def read() -> None:
        async with wrap(MAKERS["google"](provider.origin), bench.recorder).aio as client:
            stream = await client.models.generate_content_stream(model="gemini-2.5-flash", contents="Hi")
            async for event in stream:
                seen.append(event)

    async def main() -> None:
        task = asyncio.create_task(read())
        while not seen:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    gate.set()
    bench.drain()
    assert bench.only().provenance == "partial"


# What an SDK does on the way.


def test_each_step_of_automatic_function_calling_counts(bench: Bench, provider: ProviderStub) -> None:
    call = gemini()
    call["candidates"][0]["content"]["parts"] = [
        {"functionCall": {"name": "weather", "args": {"city": "Rome"}}}
    ]
    provider.json({**call, "responseId": "r0"})
    provider.json(gemini("It is sunny."))

    def weather(city: str) -> str:
        """The weather of a city."""
        return "sunny"

    client = wrap(MAKERS["google"](provider.origin), bench.recorder)
    config: Any = {"tools": [weather]}
    answer = client.models.generate_content(model="gemini-2.5-flash", contents="Weather?", config=config)
    assert answer.text == "It is sunny."
    assert [record.response_id for record in bench.records] == ["r0", "r1"]


def test_chats_count_each_turn(bench: Bench, provider: ProviderStub) -> None:
    provider.json({**gemini(), "responseId": "r0"})
    provider.json(gemini())
    client = wrap(MAKERS["google"](provider.origin), bench.recorder)
    chat = client.chats.create(model="gemini-2.5-flash")
    chat.send_message("Hi")
    chat.send_message("And?")
    assert bench.sink.tokens() == [(9, 4), (9, 4)]


def test_interactions_count_though_they_go_another_way(bench: Bench, provider: ProviderStub) -> None:
    usage = {"total_input_tokens": 7, "total_output_tokens": 2, "total_tokens": 9}
    said = {"id": "int_1", "object": "interaction", "model": "gemini-3-flash", "status": "completed"}
    provider.json(
        {**said, "created": "2026-01-01T00:00:00Z", "updated": "2026-01-01T00:00:00Z", "usage": usage}
    )
    client = wrap(MAKERS["google"](provider.origin), bench.recorder)
    client.interactions.create(model="gemini-3-flash", input="Hi")
    assert bench.sink.tokens() == [(7, 2)]


def test_embeddings_that_report_nothing_are_counted(bench: Bench, provider: ProviderStub) -> None:
    provider.json({"embeddings": [{"values": [0.1]}, {"values": [0.2]}]})
    client = wrap(MAKERS["google"](provider.origin), bench.recorder)
    client.models.embed_content(model="gemini-embedding-001", contents=["Hello there", "you"])
    bench.drain()
    record = bench.only()
    assert record.usage.input == 3
    assert record.provenance == "estimated"
    assert record.model == "gemini-embedding-001"


def test_batches_that_are_embedded_on_threads_are_billed_to_whoever_asked(
    bench: Bench, provider: ProviderStub
) -> None:
    answer = {"id": "e", "embeddings": [[0.1]], "texts": ["a"], "response_type": "embeddings_floats"}
    provider.json({**answer, "meta": {"billed_units": {"input_tokens": 3}}})
    client = wrap(cohere.Client(api_key="k", base_url=provider.origin), bench.recorder)
    scope = Scope(customer="cus_1", owner=bench.recorder)
    with context.entered(scope):
        client.embed(model="embed", texts=["a"] * 200, input_type="search_document")
    assert len(bench.records) == 3
    assert {record.customer for record in bench.records} == {"cus_1"}


# Bedrock.


def test_an_invoked_model_counts_by_its_headers_where_its_body_says_nothing(
    bench: Bench, provider: ProviderStub
) -> None:
    headers = {"x-amzn-bedrock-input-token-count": "9", "x-amzn-bedrock-output-token-count": "2"}
    body = {"outputs": [{"text": "Hello", "stop_reason": "stop"}]}
    provider.add(Reply(json.dumps(body).encode(), headers=headers))
    client = wrap(boto(provider.origin), bench.recorder)
    answer = client.invoke_model(modelId="mistral.mistral-7b-instruct-v0:2", body='{"prompt": "Hi"}')
    assert json.loads(answer["body"].read()) == body
    record = bench.only()
    assert bench.sink.tokens() == [(9, 2)]
    assert (record.model, record.provider) == ("mistral.mistral-7b-instruct-v0:2", "bedrock")


@pytest.mark.parametrize("way", ["chunks", "lines", "small", "readinto", "iterated", "exactly"])
def test_a_body_counts_however_it_is_read(way: str, bench: Bench, provider: ProviderStub) -> None:
    body = json.dumps({"inputTextTokenCount": 5, "results": [{"tokenCount": 7, "outputText": "Hi"}]}).encode()
    provider.add(Reply(body))
    stream = wrap(boto(provider.origin), bench.recorder).invoke_model(modelId="amazon.titan", body=b"{}")[
        "body"
    ]
    read: dict[str, Callable[[], Iterator[bytes]]] = {
        "chunks": lambda: stream.iter_chunks(7),
        "lines": stream.iter_lines,
        "small": lambda: iter(lambda: stream.read(3), b""),
        "iterated": lambda: iter(stream),
        "exactly": lambda: iter([stream.read(len(body))]),
        "readinto": lambda: iter(_into(stream), b""),
    }
    assert b"".join(read[way]()) == body
    assert bench.sink.tokens() == [(5, 7)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its connection stays open
@pytest.mark.parametrize("read", [0, 10])
def test_a_body_that_is_dropped_counts_by_its_headers(
    read: int, bench: Bench, provider: ProviderStub
) -> None:
    headers = {"x-amzn-bedrock-input-token-count": "9", "x-amzn-bedrock-output-token-count": "2"}
    provider.add(Reply(b'{"outputs": [{"text": "Hello"}]}', headers=headers))
    answer = wrap(boto(provider.origin), bench.recorder).invoke_model(modelId="mistral.x", body="{}")
    answer["body"].read(read)
    del answer
    gc.collect()
    bench.drain()
    assert bench.sink.tokens() == [(9, 2)]


def _into(stream: Any) -> Callable[[], bytes]:
    def step() -> bytes:
        buffer = bytearray(11)
        return bytes(buffer[: stream.readinto(buffer)])

    return step


def converse_frames() -> list[bytes]:
    return [
        frame_of({"_event": "messageStart", "role": "assistant"}),
        frame_of({"_event": "contentBlockDelta", "contentBlockIndex": 0, "delta": {"text": "Hello"}}),
        frame_of({"_event": "contentBlockDelta", "contentBlockIndex": 0, "delta": {"text": " you"}}),
        frame_of({"_event": "messageStop", "stopReason": "end_turn"}),
        frame_of(
            {
                "_event": "metadata",
                "usage": {"inputTokens": 9, "outputTokens": 2},
                "metrics": {"latencyMs": 1},
            }
        ),
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # botocore leaves its socket
@pytest.mark.parametrize("way", ["closed", "dropped", "broken off"])
def test_a_bedrock_stream_that_ends_early_is_billed_for_what_came(
    way: str, bench: Bench, provider: ProviderStub
) -> None:
    frames = converse_frames()[: 3 if way == "broken off" else None]
    provider.raw(
        b"", chunks=frames, content_type="application/vnd.amazon.eventstream", hang_up=way == "broken off"
    )
    client = wrap(boto(provider.origin), bench.recorder)
    messages = [{"role": "user", "content": [{"text": "Hi"}]}]
    stream = client.converse_stream(modelId="amazon.nova", messages=messages)["stream"]
    assert type(stream).__name__ == "EventStream"
    if way == "broken off":
        with pytest.raises(Exception, match=r"(?i)connection broken|incomplete|read|prematurely"):
            list(stream)
    else:
        events = iter(stream)
        next(events)
        next(events)
        stream.close() if way == "closed" else None
        del stream, events
        gc.collect()
    bench.drain()
    record = bench.only()
    assert record.provenance == "partial"
    assert record.usage.output == (2 if way == "broken off" else 1)
    assert record.model == "amazon.nova"
