"""`MeteringTransport`: whatever an httpx client sends is counted once, and passes as it is."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import httpx2
import pytest
from llm_metering.capture import claims
from llm_metering.capture.clients import wrap
from llm_metering.capture.transport import MeteringTransport
from openai import OpenAI

from .conftest import OPENAI_HTTP, Bench, ProviderStub, Reply, Said

MESSAGES: Any = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("kind", ["chat", "stream", "embeddings", "raw"])
def test_what_a_wrapped_client_sends_through_the_transport_counts_once(
    kind: str, bench: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    with OPENAI_HTTP.Client(transport=MeteringTransport(bench)) as http:  # type: ignore[arg-type]
        client = wrap(OpenAI(api_key="k", base_url=provider.origin, http_client=http), bench.recorder)
        for _ in range(2):  # the same id twice, as of a stub or a cache, is two answers
            if kind == "embeddings":
                provider.json(said.embeddings())
                client.embeddings.create(model="m", input="Hi", encoding_format="float")
            elif kind == "stream":
                provider.events(said.chat_events())
                for _ in client.chat.completions.create(model="m", messages=MESSAGES, stream=True):
                    pass
            else:
                provider.json(said.chat())
                create = client.chat.completions
                (create.with_raw_response if kind == "raw" else create).create(model="m", messages=MESSAGES)
    bench.drain()
    assert len(bench.records) == 2
    assert {record.surface for record in bench.records} == {"client"}


def test_a_client_that_is_not_wrapped_counts_through_the_transport(
    bench: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    provider.json(said.chat())
    with OPENAI_HTTP.Client(transport=MeteringTransport(bench, feature="x")) as http:  # type: ignore[arg-type]
        OpenAI(api_key="k", base_url=provider.origin, http_client=http).chat.completions.create(
            model="m", messages=MESSAGES
        )
    assert bench.only().surface == "transport"
    assert bench.only().dimensions == {"feature": "x"}


@contextmanager
def asking(bench: Bench, provider: ProviderStub) -> Iterator[Any]:
    with (
        httpx2.Client(transport=MeteringTransport(bench)) as http,  # type: ignore[arg-type]
        http.stream("POST", f"{provider.origin}/v1/chat/completions", json={"model": "m"}) as response,
    ):
        yield response


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("raw", [False, True], ids=["decoded", "raw"])
def test_compressed_answers_pass_unchanged_and_are_counted(
    encoding: str, raw: bool, bench: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    body = json.dumps(said.chat()).encode()
    packed = _pack(encoding, body)
    provider.add(Reply(packed, headers={"content-encoding": encoding}))
    with asking(bench, provider) as response:
        got = b"".join(response.iter_raw(5) if raw else response.iter_bytes(5))
    if encoding == "zstd" and got == packed and not raw:
        pytest.skip("this httpx2 gives zstd on as it came")
    assert got == (packed if raw else body)
    assert bench.sink.tokens() == [(20, 5)]


def _pack(encoding: str, body: bytes) -> bytes:
    if encoding in ("gzip", "deflate"):
        return gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    if encoding == "br":
        return bytes(pytest.importorskip("brotli").compress(body))
    return bytes(pytest.importorskip("zstandard").compress(body))


def test_chunks_pass_as_they_come(bench: Bench, provider: ProviderStub, said: type[Said]) -> None:
    gate = threading.Event()
    provider.events(said.chat_events(), first=3, gate=gate)
    with asking(bench, provider) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        gate.set()
        assert list(lines)[-2] == "data: [DONE]"
    assert bench.sink.tokens() == [(20, 5)]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/files", "/", "/v1/chat/completions/x"])
def test_other_requests_are_not_looked_at(path: str, bench: Bench, provider: ProviderStub, said: Any) -> None:
    provider.json(said.chat())
    with httpx2.Client(transport=MeteringTransport(bench)) as http:  # type: ignore[arg-type]
        assert "iter_bytes" not in vars(http.post(provider.origin + path, json={}))
    assert bench.records == []


@pytest.mark.parametrize("size", [100, 7_000, 300_000])
def test_an_answer_of_many_times_what_is_kept_is_read_at_its_end(make_bench: Any, size: int) -> None:
    bench = make_bench(max_body_bytes=100_000)
    numbers = [0.1234567] * 50_000
    answer = {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": numbers}],
        "model": "text-embedding-3-large",
        "usage": {"prompt_tokens": 77, "total_tokens": 77},
    }
    body = json.dumps(answer).encode()
    assert len(body) > 400_000

    def give(request: httpx2.Request) -> httpx2.Response:
        chunks = (body[at : at + size] for at in range(0, len(body), size))
        return httpx2.Response(200, headers={"content-type": "application/json"}, content=chunks)

    with httpx2.Client(transport=MeteringTransport(bench, httpx2.MockTransport(give))) as http:
        assert http.post("http://provider/v1/embeddings", json={"input": "Hi"}).content == body
    assert (bench.only().usage.input_total, bench.only().held) == (77, None)


class _Once:
    def __await__(self) -> Iterator[None]:
        yield


def test_a_call_that_is_given_up_may_be_closed_in_another_context(bench: Bench) -> None:
    MeteringTransport(bench)  # type: ignore[arg-type]

    async def call() -> None:
        with claims.claimed(bench.recorder):
            await _Once()

    under_way = call()
    copy_context().run(under_way.send, None)
    under_way.close()
    assert not claims.is_claimed(bench.recorder)
