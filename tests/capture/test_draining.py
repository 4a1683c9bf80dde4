"""A stream that nobody reads to its end is read in the background, within bounds, to learn the true count."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx2
import pytest
from llm_metering.capture.clients import wrap
from llm_metering.capture.transport import MeteringTransport
from openai import AsyncOpenAI, OpenAI

from .conftest import Bench, ProviderStub, Said, wire

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
TRUE_COUNT = (20, 5)


@pytest.fixture
def drained(make_bench: Callable[..., Bench]) -> Iterator[Bench]:
    bench = make_bench(on_disconnect="drain", disconnect_drain_s=5)
    yield bench
    bench.recorder.stop_draining(5)


def settled(bench: Bench) -> None:
    deadline = time.monotonic() + 5
    while not bench.records and time.monotonic() < deadline:
        time.sleep(0.005)
    bench.drain()


def held_stream(provider: ProviderStub, said: type[Said], **options: Any) -> threading.Event:
    """A stream whose last events come only once the gate is open."""
    gate = threading.Event()
    provider.events(said.chat_events(), first=3, gate=gate, **options)
    return gate


def test_a_stream_that_is_closed_early_is_billed_what_the_provider_says(
    drained: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    gate = held_stream(provider, said)
    with wrap(OpenAI(api_key="k", base_url=provider.origin), drained.recorder) as client:
        stream = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True)
        next(stream)
        next(stream)
        stream.close()
        assert drained.records == [], "it is not over yet"
        gate.set()
        settled(drained)
    record = drained.only()
    assert drained.sink.tokens() == [TRUE_COUNT]
    assert record.provenance == "reported"
    assert drained.notes.counts["drain.completed"] == 1


def test_leaving_its_block_in_the_middle_is_enough(
    drained: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    held_stream(provider, said).set()
    with wrap(OpenAI(api_key="k", base_url=provider.origin), drained.recorder) as client:
        with client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True) as stream:
            for _ in stream:
                break
        settled(drained)
    assert drained.sink.tokens() == [TRUE_COUNT]
    assert drained.only().provenance == "reported"


def test_a_stream_that_is_dropped_is_billed_as_far_as_it_came(
    drained: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    held_stream(provider, said).set()
    with wrap(OpenAI(api_key="k", base_url=provider.origin), drained.recorder) as client:
        for _ in client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True):
            break
        gc.collect()
        settled(drained)
    assert drained.only().provenance == "partial"


def test_a_task_that_is_cancelled_while_it_waits_leaves_the_rest_to_the_drain(
    drained: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    gate = held_stream(provider, said)
    seen: list[str] = []

    async def read(client: AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True)
        async with stream:
            async for chunk in stream:
                seen.append(chunk.choices[0].delta.content or "")

    async def main() -> None:
        async with wrap(AsyncOpenAI(api_key="k", base_url=provider.origin), drained.recorder) as client:
            task = asyncio.create_task(read(client))
            while len(seen) < 3:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert drained.records == []
            gate.set()
            while not drained.records:
                await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(main(), 10))
    assert "".join(seen) == "Hello there"
    assert drained.sink.tokens() == [TRUE_COUNT]
    assert drained.only().provenance == "reported"


async def read_whole(bench: Bench, provider: ProviderStub) -> str:
    async with wrap(AsyncOpenAI(api_key="k", base_url=provider.origin), bench.recorder) as client:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_a_stream_that_is_read_to_its_end_is_not_touched(
    drained: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    provider.events(said.chat_events())

    assert asyncio.run(read_whole(drained, provider)) == "Hello there, friend."
    assert drained.sink.tokens() == [TRUE_COUNT]
    assert "drain.started" not in drained.notes.counts


def test_an_sdk_that_reads_on_after_the_last_event_meets_nobody_who_reads_beside_it(
    drained: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    provider.events(said.chat_events(), gate=threading.Event())  # all of them, and no end of the body

    assert asyncio.run(read_whole(drained, provider)) == "Hello there, friend."
    assert drained.sink.tokens() == [TRUE_COUNT]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_takes_too_long_is_billed_as_far_as_it_came(
    make_bench: Callable[..., Bench], provider: ProviderStub, said: type[Said], kind: str
) -> None:
    bench = make_bench(on_disconnect="drain", disconnect_drain_s=0.1)
    gate = held_stream(provider, said)

    async def main() -> None:
        async with wrap(AsyncOpenAI(api_key="k", base_url=provider.origin), bench.recorder) as client:
            stream = await client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
            await anext(stream.__aiter__())
            await stream.close()
            while not bench.records:
                await asyncio.sleep(0.005)

    if kind == "async":
        asyncio.run(asyncio.wait_for(main(), 10))
    else:
        with wrap(OpenAI(api_key="k", base_url=provider.origin), bench.recorder) as client:
            stream = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
            next(stream)
            stream.close()
            settled(bench)
    assert bench.only().provenance == "partial"
    assert bench.notes.counts["drain.partial"] == 1
    assert bench.only().usage.output == 2, "the words that came until then: Hello there"
    gate.set()
    bench.recorder.stop_draining(5)
    settle_threads()


def test_what_is_too_long_is_read_no_further(
    make_bench: Callable[..., Bench], provider: ProviderStub, said: type[Said]
) -> None:
    bench = make_bench(on_disconnect="drain", disconnect_drain_bytes=2000)
    gate = threading.Event()
    provider.events(said.chat_events(["word "] * 200), first=3, gate=gate)
    with wrap(OpenAI(api_key="k", base_url=provider.origin), bench.recorder) as client:
        stream = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
        next(stream)
        stream.close()
        gate.set()
        settled(bench)
    assert bench.only().provenance == "partial"
    settle_threads()


def test_stopping_bills_what_came_of_streams_that_are_not_over(
    drained: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    held_stream(provider, said)
    with wrap(OpenAI(api_key="k", base_url=provider.origin), drained.recorder) as client:
        stream = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
        next(stream)
        stream.close()
        drained.recorder.stop_draining(0.05)
        settled(drained)
    assert drained.only().provenance == "partial"
    settle_threads()


def test_a_provider_that_hangs_up_meanwhile_leaves_what_came(
    drained: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    gate = threading.Event()
    chunks = [wire(event) for event in said.chat_events()]
    provider.raw(
        b"", chunks=chunks[:3], gate=gate, content_type="text/event-stream", hang_up=True,
        headers={"content-length": "100000"},
    )  # fmt: skip
    with wrap(OpenAI(api_key="k", base_url=provider.origin), drained.recorder) as client:
        stream = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
        next(stream)
        stream.close()
        gate.set()
        settled(drained)
    assert drained.only().provenance == "partial"


@pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda module: module.__name__)
def test_the_transport_drains_too(
    library: Any, drained: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    held_stream(provider, said).set()
    with library.Client(transport=MeteringTransport(drained)) as client:  # type: ignore[arg-type]
        with client.stream("POST", f"{provider.origin}/v1/chat/completions", json={}) as response:
            for _ in response.iter_lines():
                break
        settled(drained)
    assert drained.sink.tokens() == [TRUE_COUNT]


def test_by_default_nothing_is_drained(bench: Bench, provider: ProviderStub, said: type[Said]) -> None:
    held_stream(provider, said)
    with wrap(OpenAI(api_key="k", base_url=provider.origin), bench.recorder) as client:
        stream = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
        next(stream)
        stream.close()
    settled(bench)
    assert bench.only().provenance == "partial"
    assert bench.recorder.drains is None


def settle_threads() -> None:
    deadline = time.monotonic() + 5
    while any(t.name == "llm-metering-drain" for t in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread still drains"
        time.sleep(0.005)
