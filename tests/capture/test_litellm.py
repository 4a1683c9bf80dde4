"""`wrap(litellm)`: the functions of a module, plain, async and streamed."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from llm_metering.capture.clients import wrap

from .conftest import Bench, ProviderStub, Said

litellm = pytest.importorskip("litellm")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"
)

NAMES = (
    "completion", "acompletion", "text_completion", "atext_completion", "embedding", "aembedding",
    "responses", "aresponses",
)  # fmt: skip
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def wrapped(bench: Bench, provider: ProviderStub) -> Iterator[dict[str, Any]]:
    before = {name: getattr(litellm, name) for name in NAMES}
    assert wrap(litellm, bench.recorder) is litellm
    yield {"api_key": "k", "api_base": provider.origin, "num_retries": 0}
    for name, function in before.items():
        setattr(litellm, name, function)


def test_functions_keep_their_signatures_and_kinds(bench: Bench) -> None:
    before = {name: getattr(litellm, name) for name in NAMES}
    try:
        wrap(wrap(litellm, bench.recorder), bench.recorder)
        for name, function in before.items():
            assert inspect.signature(getattr(litellm, name)) == inspect.signature(function)
            assert inspect.iscoroutinefunction(getattr(litellm, name)) == inspect.iscoroutinefunction(
                function
            )
    finally:
        for name, function in before.items():
            setattr(litellm, name, function)


def test_answers_count_once_sync_and_async(
    wrapped: dict[str, Any], bench: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    provider.json(said.chat(id="chatcmpl-1"))
    provider.json(said.chat(id="chatcmpl-2"))
    litellm.completion("openai/gpt-4o-mini", MESSAGES, **wrapped)
    asyncio.run(litellm.acompletion("openai/gpt-4o-mini", MESSAGES, **wrapped))
    bench.drain()
    assert bench.sink.tokens() == [(20, 5), (20, 5)]
    assert [record.response_id for record in bench.records] == ["chatcmpl-1", "chatcmpl-2"]


def test_embeddings_count(
    wrapped: dict[str, Any], bench: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    provider.json(said.embeddings())
    litellm.embedding(model="openai/text-embedding-3-small", input=["Hi"], **wrapped)
    assert bench.sink.tokens() == [(7, 0)]


@pytest.mark.parametrize("asked", [False, True], ids=["", "with usage"])
def test_streams_count_what_the_provider_reports_though_litellm_hides_it(
    asked: bool, wrapped: dict[str, Any], bench: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    provider.events(said.message_events())
    options = {"stream_options": {"include_usage": True}} if asked else {}
    stream = litellm.completion("anthropic/claude-opus-4-8", MESSAGES, stream=True, **options, **wrapped)
    assert isinstance(stream, litellm.CustomStreamWrapper)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == "Hello there."
    bench.drain()
    assert bench.sink.tokens() == [(162, 6)]
    assert bench.only().provenance == "reported"


def test_an_async_stream_that_is_left_is_billed_for_what_came(
    wrapped: dict[str, Any], bench: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    provider.events(said.chat_events(usage=False))

    async def main() -> None:
        stream = await litellm.acompletion("openai/gpt-4o-mini", MESSAGES, stream=True, **wrapped)
        async for chunk in stream:
            if chunk.choices[0].delta.content == " there":
                break

    asyncio.run(main())
    gc.collect()
    bench.drain()
    record = bench.only()
    assert record.provenance == "partial"
    assert record.usage.output is not None
    assert 0 < record.usage.output <= 5


def test_errors_are_litellm_s_own(wrapped: dict[str, Any], bench: Bench, provider: ProviderStub) -> None:
    provider.json({"error": {"message": "no", "type": "x", "code": "y"}}, status=400)
    with pytest.raises(litellm.BadRequestError):
        litellm.completion("openai/gpt-4o-mini", MESSAGES, **wrapped)
    assert bench.records == []
