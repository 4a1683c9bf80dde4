"""What a wrapped client and the decorator cost: a call and a streamed chunk, beside the bare client.

All variants take turns in one process, in an order that rotates; a row is the median over rounds of the
difference to the bare client of the same round. `thread` is the caller's thread, `all` is the whole
process, the thread that commits to the ledger included. The stub answers at once with a real SDK object, so
that what is added can be seen; the SDK's own work is a hundred times as much.

    python benchmarks/calls.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
from openai.types import chat

from _chats import ASK, client_in_memory, stream_events, whole_answer

CALLS = 1000
STREAMS = 10
CHUNKS = 500
SDK_CALLS = 60
TARGET_CALL_US = 15.0
TARGET_CHUNK_US = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        metering = _metering(folder)
        try:
            report(metering, rounds)
        finally:
            metering.stop()


def report(metering: Any, rounds: int) -> None:
    stub, by_hand, wrapped = StubClient(), StubClient(), metering.wrap(StubClient(), feature="chat")
    _wrap_by_hand(by_hand)
    other = _ANSWER.model_copy(update={"id": "chatcmpl-2"})
    decorated = metering.metered(feature="chat")(lambda **body: other)
    print(f"{'added':34s} {'thread':>10s} {'all':>10s}   target")
    _rows("a stub's call", CALLS, rounds, TARGET_CALL_US, {
        "bare": lambda: stub.create(**ASK),
        "by hand, a lock and a dict": lambda: by_hand.create(**ASK),
        "wrapped client": lambda: wrapped.create(**ASK),
        "decorated function": lambda: decorated(**ASK),
    }, repeat=CALLS)  # fmt: skip
    clients = {"bare": stub, "by hand, a generator": by_hand, "wrapped client": wrapped}

    def streams(chunks: int) -> dict[str, float]:
        variants = {
            name: lambda client=client: _drain(client.create(**ASK, stream=chunks))
            for name, client in clients.items()
        }
        return _rows(f"a stub's stream of {chunks} chunks", STREAMS, rounds, None, variants, repeat=STREAMS)

    short, long = streams(20), streams(CHUNKS)
    each = (long["wrapped client"] - short["wrapped client"]) / (CHUNKS - 20)
    print(f"  = {'wrapped client, a chunk':30s} {each:7.2f} µs              {_aim(each, TARGET_CHUNK_US)}")
    _sdk_rows(metering, rounds)


def _sdk_rows(metering: Any, rounds: int) -> None:
    bare, wrapped = _client(openai.OpenAI), metering.wrap(_client(openai.OpenAI))
    abare, awrapped = _client(openai.AsyncOpenAI), metering.wrap(_client(openai.AsyncOpenAI))
    usage = {"stream_options": {"include_usage": True}}
    loop = asyncio.new_event_loop()

    async def acall(client: Any) -> None:
        for _ in range(SDK_CALLS):
            await client.chat.completions.create(**ASK)

    async def astream(client: Any) -> None:
        async for _ in await client.chat.completions.create(**ASK, stream=True, **usage):
            pass

    _rows("the SDK's call", SDK_CALLS, rounds, TARGET_CALL_US, {
        "bare": lambda: bare.chat.completions.create(**ASK),
        "wrapped client": lambda: wrapped.chat.completions.create(**ASK),
    }, repeat=SDK_CALLS)  # fmt: skip
    _rows("the async SDK's call", SDK_CALLS, rounds, TARGET_CALL_US, {
        "bare": lambda: loop.run_until_complete(acall(abare)),
        "wrapped client": lambda: loop.run_until_complete(acall(awrapped)),
    }, repeat=1)  # fmt: skip
    _rows("the SDK's chunk", CHUNKS, rounds, TARGET_CHUNK_US, {
        "bare": lambda: _drain(bare.chat.completions.create(**ASK, stream=True, **usage)),
        "wrapped client": lambda: _drain(wrapped.chat.completions.create(**ASK, stream=True, **usage)),
    }, repeat=1)  # fmt: skip
    _rows("the async SDK's chunk", CHUNKS, rounds, TARGET_CHUNK_US, {
        "bare": lambda: loop.run_until_complete(astream(abare)),
        "wrapped client": lambda: loop.run_until_complete(astream(awrapped)),
    }, repeat=1)  # fmt: skip
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def _rows(
    what: str,
    per: int,
    rounds: int,
    target: float | None,
    variants: dict[str, Callable[[], Any]],
    *,
    repeat: int,
) -> dict[str, float]:
    names = list(variants)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seen[name].append(_timed(variants[name], repeat))
    bare = seen.pop("bare")[1:]
    us = [statistics.median(each[n] for each in bare) / per * 1e6 for n in (0, 1)]
    print(f"\n{what + ', bare':34s} {us[0]:7.2f} µs {us[1]:7.2f} µs")
    added = {}
    for name, times in seen.items():
        thread, everything = (
            statistics.median((a[n] - b[n]) / per * 1e6 for a, b in zip(times[1:], bare, strict=True))
            for n in (0, 1)
        )
        aim = _aim(thread, target) if target is not None and name == "wrapped client" else ""
        print(f"  + {name:30s} {thread:7.2f} µs {everything:7.2f} µs{aim}")
        added[name] = thread
    return added


def _aim(us: float, target: float) -> str:
    return f"   {us / target:.2f} x {target} µs"


def _timed(call: Callable[[], Any], repeat: int) -> tuple[float, float]:
    gc.collect()
    gc.disable()
    thread, process = time.thread_time(), time.process_time()
    for _ in range(repeat):
        call()
    thread = time.thread_time() - thread
    time.sleep(0.03)  # the writer's thread is counted too
    process = time.process_time() - process
    gc.enable()
    return thread, process


def _drain(stream: Any) -> None:
    for _ in stream:
        pass


# A client without a network or parsing: its answers are there already.


class StubStream:
    """As the SDK's, over chunks that are there already."""

    def __init__(self, chunks: list[Any]) -> None:
        self._iterator: Iterator[Any] = iter(chunks)

    def __stream__(self) -> Iterator[Any]:
        return self._iterator

    def __iter__(self) -> Iterator[Any]:
        yield from self._iterator


class SyncAPIClient:
    """What the SDKs' clients have in common."""

    base_url = "http://stub/v1"

    def request(self, cast_to: Any, options: Any, *, stream: int = 0, stream_cls: Any = None) -> Any:
        return StubStream(_CHUNKS[-stream:]) if stream else _ANSWER

    def copy(self) -> SyncAPIClient:
        return type(self)()

    with_options = copy


SyncAPIClient.__module__ = "stub._base_client"


class StubClient(SyncAPIClient):
    def create(self, *, stream: int = 0, **body: Any) -> Any:
        return self.request(dict, Options(body), stream=stream)


class Options:
    method = "post"
    url = "/chat/completions"
    extra_json = None
    post_parser = None

    def __init__(self, body: dict[str, Any]) -> None:
        self.json_data = body


def _wrap_by_hand(client: StubClient) -> None:
    """The least that a wrapper can do, and nothing durable: add two numbers under a lock."""
    import threading

    inner, lock, sums = client.request, threading.Lock(), [0, 0]

    def add(usage: Any) -> None:
        with lock:
            sums[0] += usage.prompt_tokens
            sums[1] += usage.completion_tokens

    def watch(stream: Any) -> Iterator[Any]:
        for chunk in stream:
            if chunk.usage is not None:
                add(chunk.usage)
            yield chunk

    def request(*args: Any, **kwargs: Any) -> Any:
        answer = inner(*args, **kwargs)
        if kwargs.get("stream"):
            return watch(answer)
        add(answer.usage)
        return answer

    client.request = request  # type: ignore[method-assign]


_ANSWER = chat.ChatCompletion.model_validate(whole_answer())
# A real chunk was just made and is in the processor's cache; so is one that comes round often.
_FEW = [chat.ChatCompletionChunk.model_validate(event) for event in stream_events(CHUNKS)[1:21]]
_CHUNKS = [(_FEW * CHUNKS)[n] for n in range(CHUNKS - 2)] + [
    chat.ChatCompletionChunk.model_validate(event) for event in stream_events(CHUNKS)[-2:]
]


def _client(kind: Any) -> Any:
    return client_in_memory(kind, CHUNKS)


def _metering(folder: str) -> Any:
    from llm_metering import Metering
    from llm_metering.settings import Settings

    metering = Metering("cus_1", settings=Settings(deliver="external", encodings=()), ledger=folder)
    metering.start()
    return metering


if __name__ == "__main__":
    main()
