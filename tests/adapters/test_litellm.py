"""LiteLLM's callbacks, with LiteLLM itself against the provider stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("litellm", reason="litellm is not installed")

import litellm
from litellm.types.llms.openai import ResponsesAPIResponse
from litellm.types.utils import LiteLLMBatch
from llm_metering.adapters.litellm import LiteLLMCallback

ASK: Any = {"messages": [{"role": "user", "content": "Hello there"}]}

# The warnings are LiteLLM's own, of pydantic and of loops.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def callback(metering) -> Iterator[LiteLLMCallback]:
    callback = LiteLLMCallback(metering, feature="proxy")
    before = litellm.callbacks
    litellm.callbacks = [callback]
    yield callback
    litellm.callbacks = before
    for name in ("success_callback", "_async_success_callback", "failure_callback", "_async_failure_callback",
                 "input_callback", "_async_input_callback"):  # fmt: skip
        kept = [each for each in getattr(litellm, name, []) if each is not callback]
        setattr(litellm, name, kept)


@pytest.fixture
def chat(provider, callback) -> dict[str, Any]:
    return {**ASK, "model": "openai/gpt-5-mini", "api_base": provider.base_url, "api_key": "k"}


def test_a_plain_answer_is_recorded_as_the_provider_counted_it(chat, provider, used):
    answer = litellm.completion(**chat)
    record = used.only()
    assert record.usage.total == answer.usage.total_tokens == sum(provider.tokens(answer.id).values())
    assert record.usage.reasoning == answer.usage.completion_tokens_details.reasoning_tokens
    assert (record.response_id, record.surface, record.provider) == (answer.id, "litellm", "openai")
    assert record.dimensions == {"feature": "proxy"}


def test_streams_and_async_calls_count_once_each(chat, used):
    def usage_of(answer: Any) -> int:
        return int(answer.usage.total_tokens)

    chunks = list(litellm.completion(**chat, stream=True, stream_options={"include_usage": True}))
    totals = [usage_of(chunks[-1])]

    async def calls() -> None:
        totals.append(usage_of(await litellm.acompletion(**chat)))
        stream = await litellm.acompletion(**chat, stream=True, stream_options={"include_usage": True})
        totals.append(usage_of([chunk async for chunk in stream][-1]))
        await asyncio.sleep(0.3)  # LiteLLM's worker lives on this loop

    asyncio.run(calls())
    assert sorted(r.usage.total for r in used.still(3)) == sorted(totals)


def test_anthropics_cached_tokens_are_taken_apart(provider, callback, used):
    long = "word " * 3000
    system = [{"type": "text", "text": long, "cache_control": {"type": "ephemeral"}}]
    answer = litellm.completion(
        model="anthropic/claude-sonnet-4-5",
        messages=[{"role": "system", "content": system}, *ASK["messages"]],
        api_base=provider.url,
        api_key="k",
    )
    record = used.only()
    said = provider.answers()[-1]["tokens"]
    assert said["cached_input"] > 0 < said["cached_write"]
    assert {name: count for name, count in record.usage.leaves() if count} == said
    assert answer.usage.completion_tokens == said["output"]


def test_embeddings_are_recorded(provider, callback, used):
    litellm.embedding(
        model="openai/text-embedding-3-small", input=["one two"], api_base=provider.base_url, api_key="k"
    )
    record = used.only()
    assert (record.usage.input, record.usage.total) == (2, 2)


def test_what_litellms_own_cache_answers_is_not_billed(chat, used):
    from litellm.caching.caching import Cache

    litellm.cache = Cache(type="local")
    try:
        for _ in range(2):
            litellm.completion(**chat, caching=True)
            used.still(1)
    finally:
        litellm.cache = None


def test_a_call_that_fails_records_nothing_and_leaves_nothing(callback, used):
    with pytest.raises(Exception, match="onnection"):
        litellm.completion(
            **ASK, model="openai/gpt-5-mini", api_base="http://127.0.0.1:9/v1", api_key="k", num_retries=0
        )
    used.records(0)
    assert not [call for call in callback._calls.values() if call is not None]


def test_each_call_is_billed_to_the_customer_it_was_made_for(chat, metering, used):
    async def call(customer: str) -> None:
        with metering.bound(customer=customer):
            await litellm.acompletion(**chat)

    async def calls() -> None:
        await asyncio.gather(*(call(f"cus_{n}") for n in range(6)))
        await asyncio.sleep(0.3)

    asyncio.run(calls())
    assert sorted(str(r.customer) for r in used.records(6)) == [f"cus_{n}" for n in range(6)]


def test_what_was_made_earlier_and_is_asked_for_again_is_not_billed_again(metering, callback, used):
    def told(kind: str, id: str, answer: Any) -> None:
        callback.log_success_event({"call_type": kind, "litellm_call_id": id, "model": "gpt-5"}, answer)

    usage = {"input_tokens": 11, "output_tokens": 4, "total_tokens": 15}
    response = ResponsesAPIResponse(
        id="resp_1",
        created_at=1,
        output=[],
        object="response",
        status="completed",
        model="gpt-5",
        usage=usage,
    )
    told("aresponses", "a", response)
    told("aget_responses", "b", response)
    batch = LiteLLMBatch(
        id="batch_1", completion_window="24h", created_at=1, endpoint="/v1/chat/completions",
        input_file_id="file-1", object="batch", status="completed",
    )  # fmt: skip
    batch.usage = litellm.Usage(prompt_tokens=100, completion_tokens=50)
    told("aretrieve_batch", "c", batch)
    told("aretrieve_batch", "d", batch)
    assert (used.only().usage.total, used.only().response_id) == (15, "resp_1")
    assert metering.telemetry.snapshot()["litellm.not_billed"] == 3


def test_a_response_in_the_background_is_billed_once_when_it_is_asked_for(callback, used):
    def told(kind: str, id: str, **more: Any) -> None:
        answer = ResponsesAPIResponse(
            id="resp_2", created_at=1, output=[], model="gpt-5", object="response", background=True, **more
        )
        callback.log_success_event({"call_type": kind, "litellm_call_id": id, "model": "gpt-5"}, answer)

    usage = {"input_tokens": 11, "output_tokens": 4, "total_tokens": 15}
    told("aresponses", "a", status="queued")
    told("aget_responses", "b", status="in_progress")
    told("aget_responses", "c", status="completed", usage=usage)
    told("aget_responses", "d", status="completed", usage=usage)
    record = used.still(1)[0]
    assert (record.id, record.usage.total) == ("background-resp_2", 15)
