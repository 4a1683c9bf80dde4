"""What the middleware costs: a request and a streamed chunk, beside its neighbours in the same run.

Every variant is the same Starlette app in a process of its own. They take turns within each round, in an
order that rotates, and a figure is the median over rounds of the difference to the bare app of the same
round, in CPU time of the whole process (the machine may be shared): ratios within one run carry, absolute
times mean little.

    python benchmarks/middleware.py [--rounds 15]

Variants: `empty` is the least that any middleware can do which sees an answer. `capture` is ours with a
sink that keeps nothing: what reading and recording cost on the event loop. `metered` records in a ledger on
disk, in a temporary folder, by a thread of its own (`durability="memory"`). `commit` waits for the disk
before the last message of each answer, one request at a time, which is the dearest way to run it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

REQUEST = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"' + b"h" * 300 + b'"}]}'
CHUNKS = 500
PATHS = {
    "json 1 kB": ("/1k/v1/chat/completions", 300),
    "json 50 kB": ("/50k/v1/chat/completions", 300),
    "other route": ("/plain", 300),
    "stream": ("/sse/v1/chat/completions", 10),
}
VARIANTS = ("bare", "empty", "capture", "metered", "commit", "prometheus", "otel")


# The app under each variant.


def completion(size: int) -> bytes:
    return json.dumps(
        {
            "id": "chatcmpl-abc123", "object": "chat.completion", "created": 1750000000,
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "x" * max(0, size - 420)},
                 "logprobs": None, "finish_reason": "stop"}
            ],
            "usage": {
                "prompt_tokens": 123, "completion_tokens": 45, "total_tokens": 168,
                "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 7, "audio_tokens": 0},
            },
            "service_tier": "default", "system_fingerprint": "fp_1",
        }
    ).encode()  # fmt: skip


def stream_chunks() -> list[bytes]:
    head = {
        "id": "chatcmpl-abc123", "object": "chat.completion.chunk", "created": 1750000000,
        "model": "gpt-4o-mini-2024-07-18", "service_tier": "default", "system_fingerprint": "fp_1",
    }  # fmt: skip
    events: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": {"content": f" tok{i % 97}"}, "logprobs": None,
                              "finish_reason": None}], "usage": None}
        for i in range(CHUNKS - 2)
    ]  # fmt: skip
    usage = json.loads(completion(1000))["usage"]
    events.append({**head, "choices": [], "usage": usage})
    return [b"data: " + json.dumps(e, separators=(",", ":")).encode() + b"\n\n" for e in events] + [
        b"data: [DONE]\n\n"
    ]


def nothing(_: Any = None) -> None:
    pass


def build(variant: str, folder: str) -> tuple[Any, Callable[[], Any]]:
    """The app, and what ends a batch: all that was recorded is written before its time is taken."""
    from starlette.applications import Starlette
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    small, large, events = completion(1024), completion(50 * 1024), stream_chunks()

    async def one(request: Any) -> Any:
        return Response(small, media_type="application/json")

    async def fifty(request: Any) -> Any:
        return Response(large, media_type="application/json")

    async def stream(request: Any) -> Any:
        async def chunks() -> Any:
            for event in events:
                yield event

        return StreamingResponse(chunks(), media_type="text/event-stream")

    answers = {"json 1 kB": one, "json 50 kB": fifty, "other route": one, "stream": stream}
    app = Starlette(routes=[Route(PATHS[k][0], f, methods=["POST"]) for k, f in answers.items()])
    end: Callable[[], Any] = nothing
    if variant == "empty":
        app.add_middleware(Empty)
    elif variant in ("metered", "commit"):
        from llm_metering import Metering, MeteringMiddleware
        from llm_metering.settings import Settings

        settings = Settings(ledger=folder, durability="commit" if variant == "commit" else "memory")
        metering = Metering("cus_1", settings=settings)
        app.add_middleware(MeteringMiddleware, metering=metering)
        end = partial(metering.run_on_ledger, nothing)
    elif variant == "capture":
        add_capture(app)
    elif variant == "prometheus":
        from prometheus_fastapi_instrumentator import Instrumentator

        Instrumentator().instrument(app)
    elif variant == "otel":
        add_opentelemetry(app)
    return app, end


class Empty:
    """The least that any middleware can do which sees an answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def passing(message: Any) -> None:
            await send(message)

        await self.app(scope, receive, passing)


def add_capture(app: Any) -> None:
    from llm_metering import Metering, MeteringMiddleware, Settings
    from llm_metering.capture.waiting import LateTicket

    done = LateTicket.done_already()

    class Nothing:
        def put(self, record: Any, *, closes: str | None = None) -> Any:
            return done

        def progress(self, record: Any) -> None:
            pass

        def drop(self, record_id: str) -> None:
            pass

    metering = Metering("cus_1", settings=Settings(ledger="memory:"))
    metering.recorder.sink = Nothing()
    app.add_middleware(MeteringMiddleware, metering=metering)


def add_opentelemetry(app: Any) -> None:
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> Any:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider)


# A worker: one variant, driven by lines on its standard input.


async def batch(app: Any, end: Callable[[], Any], path: str, count: int) -> tuple[float, float]:
    async def send(message: Any) -> None:
        pass

    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        first = True

        async def receive() -> Any:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": REQUEST, "more_body": False}
            return await asyncio.get_running_loop().create_future()

        await app(scope(path), receive, send)
    end()
    return time.perf_counter() - wall, time.process_time() - cpu


def scope(path: str) -> dict[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
        "method": "POST", "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"localhost:8000"), (b"content-type", b"application/json"), (b"user-agent", b"x/1"),
            (b"content-length", str(len(REQUEST)).encode()), (b"accept", b"*/*"),
            (b"authorization", b"Bearer abc"),
        ],
        "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8000), "extensions": {}, "state": {},
    }  # fmt: skip


async def worker(variant: str) -> None:
    out, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        app, end = build(variant, folder)
        loop = asyncio.get_running_loop()
        up, down = asyncio.Event(), asyncio.Event()
        messages: asyncio.Queue[Any] = asyncio.Queue()

        async def told(message: Any) -> None:
            (up if "startup" in message["type"] else down).set()

        await messages.put({"type": "lifespan.startup"})
        life = loop.create_task(app({"type": "lifespan", "asgi": {}, "state": {}}, messages.get, told))
        await asyncio.wait_for(up.wait(), 20)
        for path, _ in PATHS.values():
            await batch(app, end, path, 3)
        print("ready", file=out, flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            path, count = line.split()
            gc.collect()
            gc.disable()
            times = await batch(app, end, path, int(count))
            gc.enable()
            print(*times, file=out, flush=True)
        await messages.put({"type": "lifespan.shutdown"})
        await asyncio.wait_for(down.wait(), 20)
        await life


# The driver.


def run(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds a request, by path and variant, round by round."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("STRIPE_", "LLM_METERING_"))}
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--worker", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ,
        )
        for name in VARIANTS
    }  # fmt: skip
    try:
        for name, process in workers.items():
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise SystemExit(f"the variant {name!r} did not start")
        return {label: measure(workers, path, count, rounds) for label, (path, count) in PATHS.items()}
    finally:
        for process in workers.values():
            assert process.stdin is not None
            process.stdin.close()
        for process in workers.values():
            process.wait(30)


def measure(workers: dict[str, Any], path: str, count: int, rounds: int) -> dict[str, list[float]]:
    names = list(workers)
    times: dict[str, list[float]] = {name: [] for name in names}
    for r in range(rounds + 1):
        turn = r % len(names)
        for name in names[turn:] + names[:turn]:
            workers[name].stdin.write(f"{path} {count}\n")
            workers[name].stdin.flush()
            _, cpu = workers[name].stdout.readline().split()
            if r:  # the first round warms up
                times[name].append(float(cpu) / count)
    return times


CHECKS = (
    ("an answer of 1 kB, captured  / prometheus", "json 1 kB", "capture", "prometheus", 1.2),
    ("an answer of 1 kB, metered   / prometheus", "json 1 kB", "metered", "prometheus", 1.2),
    ("an answer of 50 kB, captured / prometheus", "json 50 kB", "capture", "prometheus", 1.2),
    ("an answer of 50 kB, metered  / prometheus", "json 50 kB", "metered", "prometheus", 1.2),
    ("an answer of 1 kB, metered   / OpenTelemetry", "json 1 kB", "metered", "otel", 0.2),
    ("another route                / empty wrapper", "other route", "metered", "empty", 3.0),
    ("another route, commit        / empty wrapper", "other route", "commit", "empty", 3.0),
    ("a chunk, captured            / empty wrapper", "stream", "capture", "empty", 10.0),
    ("a chunk, metered             / empty wrapper", "stream", "metered", "empty", 10.0),
    ("a chunk, metered             / OpenTelemetry", "stream", "metered", "otel", 0.04),
)
"""What is compared, with the most that the ratio should be."""


def report(results: dict[str, dict[str, list[float]]]) -> str:
    """A table of what each variant adds to the bare app, and the ratios with their targets."""
    added: dict[tuple[str, str], float] = {}
    lines = ["added CPU, µs" + "".join(f"{name:>12s}" for name in VARIANTS[1:])]
    for label, times in results.items():
        per = CHUNKS if label == "stream" else 1
        for name in VARIANTS[1:]:
            pairs = zip(times[name], times["bare"], strict=True)
            added[label, name] = statistics.median((a - b) * 1e6 / per for a, b in pairs)
        row = "".join(f"{added[label, name]:12.2f}" for name in VARIANTS[1:])
        bare = statistics.median(times["bare"]) * 1e6 / per
        lines.append(f"{label if per == 1 else 'a chunk':13s}{row}   (bare {bare:.2f})")
    lines.append("")
    for text, label, ours, theirs, target in CHECKS:
        a, b = added[label, ours], added[label, theirs]
        ratio = a / b if b > 0 else float("nan")
        verdict = "reached" if ratio <= target else "missed"
        lines.append(f"{text}: {a:7.2f} / {b:7.2f} = {ratio:6.2f}   target <= {target}: {verdict}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        asyncio.run(worker(options.worker))
    else:
        print(report(run(options.rounds)))


if __name__ == "__main__":
    main()
