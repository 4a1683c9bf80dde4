"""How long the event loop stands still while an answer of 1 MB is counted that reports no usage.

An app under the middleware gives such an answer, whole and as a stream, while a task on the same loop notes
how long it is kept from running. `work` is what the loop's own thread did meanwhile, in CPU time, which other
programs on the machine do not change; `wall` is the clock's, which they do. The references are the same app
without the middleware, and with one `json.loads` of the whole answer on the loop.

    python benchmarks/stall.py [--rounds 15] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from llm_metering import Metering, MeteringMiddleware, counting

SIZE = 1_000_000
TARGET_MS = 2.0
WORDS = 'He said: "A word, and another one" (twice); it cost 12.50 or so.\n\n'
ASKED = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "Write a megabyte"}]}'


def answers() -> dict[str, tuple[bytes, list[bytes]]]:
    """Content type and chunks, by name."""
    text = (WORDS * (SIZE // len(WORDS) + 1))[:SIZE]
    message = {"role": "assistant", "content": text}
    named = {"id": "chatcmpl-1", "model": "gpt-4o-2024-08-06"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = json.dumps({**named, "object": "chat.completion", "choices": [choice]}).encode()
    events = []
    for at in range(0, SIZE, 500):
        delta = {"index": 0, "delta": {"content": text[at : at + 500]}, "finish_reason": None}
        event = {**named, "object": "chat.completion.chunk", "choices": [delta]}
        events.append(b"data: " + json.dumps(event).encode() + b"\n\n")
    kind = b"application/json"
    return {"whole": (kind, [whole]), "stream": (b"text/event-stream", [*events, b"data: [DONE]\n\n"])}


def at_once() -> Any:
    return lambda: True


def serving(kind: bytes, chunks: list[bytes]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})

    return app


async def longest_stalls_ms(app: Any, settle: Any) -> tuple[float, float]:
    """The longest that a task which always wants to run did not, until the answer was counted: work, wall."""
    work = wall = 0.0
    is_over = False

    async def watch() -> None:
        nonlocal work, wall
        last = time.thread_time(), time.perf_counter()
        while not is_over:
            await asyncio.sleep(0)
            now = time.thread_time(), time.perf_counter()
            work, wall = max(work, now[0] - last[0]), max(wall, now[1] - last[1])
            last = now

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": ASKED}

    async def send(message: dict[str, Any]) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "state": {}}
    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.005)
    await app(scope, receive, send)
    is_counted = settle()
    while not is_counted():
        await asyncio.sleep(0)
    is_over = True
    await watching
    return work * 1e3, wall * 1e3


def measure(rounds: int) -> list[dict[str, Any]]:
    counting.load("o200k_base")
    found = []
    with tempfile.TemporaryDirectory() as folder, Metering(customer="cus_a", ledger=folder) as metering:
        recorder = metering.recorder
        for name, (kind, chunks) in answers().items():
            app = serving(kind, chunks)
            metered = MeteringMiddleware(app, metering=metering)
            body = b"".join(chunks)

            async def parsing(
                scope: Any, receive: Any, send: Any, app: Any = app, body: bytes = body
            ) -> None:
                await app(scope, receive, send)
                if body.startswith(b"{"):
                    json.loads(body)

            def counted() -> Any:
                done: list[bool] = []
                recorder.counter.later(lambda: done.append(True))
                return lambda: bool(done)

            ours, bare, parsed = [], [], []
            for _ in range(rounds):
                gc.collect()
                bare.append(asyncio.run(longest_stalls_ms(app, at_once)))
                parsed.append(asyncio.run(longest_stalls_ms(parsing, at_once)))
                ours.append(asyncio.run(longest_stalls_ms(metered, counted)))
            row: dict[str, Any] = {"what": name}
            for variant, each in (("ours", ours), ("bare", bare), ("json_loads", parsed)):
                row[f"{variant}_work_ms"], row[f"{variant}_wall_ms"] = map(quiet, zip(*each, strict=True))
            found.append(row)
    return found


def quiet(found: Sequence[float]) -> float:
    """The median of the lowest fifth: on a machine that others use, the rest shows them."""
    return statistics.median(sorted(found)[: max(1, len(found) // 5)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.rounds)
    if options.json:
        print(json.dumps(found))
        return 0
    print(f"longest stall of the loop, 1 MB without usage (target {TARGET_MS} ms)")
    for row in found:
        for clock in ("work", "wall"):
            ours, bare, parsed = (row[f"{each}_{clock}_ms"] for each in ("ours", "bare", "json_loads"))
            print(f"{row['what']:7}{clock:5}{ours:7.2f} ms; bare {bare:.2f} ms; json.loads {parsed:.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
