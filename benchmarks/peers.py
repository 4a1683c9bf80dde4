"""What a wrapped client costs beside others that could be wrapped round it, in the same run.

Each peer is a process of its own (OpenTelemetry changes the SDK for everyone in it), and they take turns
within each round, in an order that rotates. A figure is the median over rounds of the difference to the bare
client of the same round, in CPU time: `thread` is the caller's, `all` the whole process with what runs in the
background, to its end. Ours has committed to a ledger on disk by then; the others have sent to a server on
this machine, and OpenTelemetry to nowhere.

The client is OpenAI's own. Once it answers at once, from its `request` method, so that what is added can be
seen; once through the whole SDK, over a transport in memory, whose own work is many times as much. A chunk is
a stream's whole cost, divided by its chunks.

    pip install tokenfin token-usage-analytics opentelemetry-sdk httpx
    pip install opentelemetry-instrumentation-openai-v2 opentelemetry-util-genai==0.4b0
    python benchmarks/peers.py [--rounds 25]

A peer that is not installed is left out.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from threading import Thread
from typing import Any, NamedTuple

from _chats import ASK, client_in_memory, stream_events, whole_answer

CHUNKS = 200
KINDS = {"a stub's call": 200, "a stub's chunk": 20, "the SDK's call": 40, "the SDK's chunk": 4}
"""How many calls or streams make a batch."""
TARGET = 0.4
"""Of the cheapest peer's cost."""
STREAM: Any = {**ASK, "stream": True, "stream_options": {"include_usage": True}}

Wrap = Callable[[Any], Any]
Flush = Callable[[], Any]


class Peer(NamedTuple):
    module: str
    """What shows that it is installed."""
    set_up: Callable[[str, str], tuple[Wrap, Flush]]
    """Given a folder and a server to send to: what wraps a client, and what ends a batch."""
    install: str = ""
    counts_streams: bool = True


# The peers.


def _bare(folder: str, server: str) -> tuple[Wrap, Flush]:
    return (lambda client: client), (lambda: None)


def _ours(folder: str, server: str) -> tuple[Wrap, Flush]:
    from llm_metering import Metering
    from llm_metering.settings import Settings

    metering = Metering("cus_1", settings=Settings(deliver="external", encodings=()), ledger=folder)
    metering.start()
    return metering.wrap, lambda: metering.run_on_ledger(lambda ledger: None)


def _tokenfin(folder: str, server: str) -> tuple[Wrap, Flush]:
    from tokenfin import TokenFinClient, wrap_openai

    sending = TokenFinClient(api_key="k", base_url=server)
    return (lambda client: wrap_openai(client, sending)), sending.flush


def _token_usage_analytics(folder: str, server: str) -> tuple[Wrap, Flush]:
    from ai_metering import AIUsage

    usage = AIUsage(api_key="usage_live_x", base_url=server)
    return usage.wrap, usage.flush


def _opentelemetry(folder: str, server: str) -> tuple[Wrap, Flush]:
    from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> Any:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    return (lambda client: client), provider.force_flush


PEERS = {
    "bare": Peer("openai", _bare),
    "ours": Peer("llm_metering", _ours),
    "tokenfin": Peer("tokenfin", _tokenfin, "tokenfin"),
    "tua": Peer("ai_metering", _token_usage_analytics, "token-usage-analytics", counts_streams=False),
    "otel": Peer(
        "opentelemetry.instrumentation.openai_v2",
        _opentelemetry,
        "opentelemetry-instrumentation-openai-v2 opentelemetry-util-genai==0.4b0 opentelemetry-sdk httpx",
    ),
}


# A worker: one peer, driven by lines on its standard input.


def work(name: str, server: str) -> None:
    out, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        wrap, flush = PEERS[name].set_up(folder, server)
        calls = _calls(wrap(_stub_client()), wrap(_sdk_client()))
        for call in calls.values():
            call()
            call()
        flush()
        print("ready", file=out, flush=True)
        for line in sys.stdin:
            kind, _, count = line.rpartition(" ")
            print(*_timed(calls[kind], int(count), flush), file=out, flush=True)
    os._exit(0)  # what sends in the background has nothing more to say


def _calls(stub: Any, sdk: Any) -> dict[str, Callable[[], Any]]:
    def stream(client: Any) -> None:
        for _ in client.chat.completions.create(**STREAM):
            pass

    return {
        "a stub's call": lambda: stub.chat.completions.create(**ASK),
        "a stub's chunk": lambda: stream(stub),
        "the SDK's call": lambda: sdk.chat.completions.create(**ASK),
        "the SDK's chunk": lambda: stream(sdk),
    }


def _timed(call: Callable[[], Any], count: int, flush: Flush) -> tuple[float, float]:
    gc.collect()
    gc.disable()
    thread, process = time.thread_time(), time.process_time()
    for _ in range(count):
        call()
    thread = time.thread_time() - thread
    flush()
    time.sleep(0.02)  # what is still done in the background is counted too
    process = time.process_time() - process
    gc.enable()
    return thread, process


def _stub_client() -> Any:
    """OpenAI's client, which answers from where it would ask."""
    import httpx2
    import openai
    from openai.types import chat

    answer = chat.ChatCompletion.model_validate(whole_answer())
    chunks = [chat.ChatCompletionChunk.model_validate(event) for event in stream_events(CHUNKS)]

    class Chunks(openai.Stream[Any]):
        def __stream__(self) -> Iterator[Any]:
            yield from chunks

    class Client(openai.OpenAI):
        def request(self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
            return Chunks(cast_to=cast_to, response=httpx2.Response(200), client=self) if stream else answer

    return Client(api_key="k", base_url="http://provider.local/v1")


def _sdk_client() -> Any:
    import openai

    return client_in_memory(openai.OpenAI, CHUNKS)


# The driver.


class Server(BaseHTTPRequestHandler):
    """Takes whatever the peers send."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = b'{"allowed":true,"successes":[],"errors":[],"inserted":1,"duplicates":0,"routes":[]}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815  (what http.server calls)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def run(names: list[str], rounds: int) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Seconds of a batch on the caller's thread and in all, by kind and peer, round by round."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("STRIPE_", "LLM_METERING_"))}
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--worker", name, url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ,
        )
        for name in names
    }  # fmt: skip
    try:
        for name in names:
            if _said_by(workers[name]) != "ready":
                print(f"{name} does not work with what is installed beside it, and is left out")
                workers.pop(name).wait(30)
        return {
            (kind, name): times
            for kind, count in KINDS.items()
            for name, times in measure(workers, kind, count, rounds).items()
        }
    finally:
        for worker in workers.values():
            worker.stdin.close()  # type: ignore[union-attr]
            worker.wait(30)
        server.shutdown()


def measure(workers: dict[str, Any], kind: str, count: int, rounds: int) -> dict[str, list[Any]]:
    names = list(workers)
    times: dict[str, list[Any]] = {name: [] for name in names}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            workers[name].stdin.write(f"{kind} {count}\n")
            workers[name].stdin.flush()
            seen = tuple(map(float, _said_by(workers[name]).split()))
            if number:  # the first round warms up
                times[name].append(seen)
    return times


def _said_by(worker: Any) -> str:
    said: str = worker.stdout.readline().strip()
    return said


def report(results: dict[tuple[str, str], list[tuple[float, float]]]) -> None:
    names = [name for kind, name in results if kind == next(iter(KINDS)) and name != "bare"]
    print(f"{'added CPU, µs':26s}" + "".join(f"{name:>14s}" for name in names))
    for kind, count in KINDS.items():
        is_stream = kind.endswith("chunk")
        per = count * (CHUNKS if is_stream else 1) / 1e6
        bare = results[kind, "bare"]
        for at, what in enumerate(("thread", "all")):
            added = {
                name: statistics.median(
                    (a[at] - b[at]) / per for a, b in zip(results[kind, name], bare, strict=True)
                )
                for name in names
                if PEERS[name].counts_streams or not is_stream
            }
            own = statistics.median(each[at] for each in bare) / per
            row = "".join(f"{added[name]:14.2f}" if name in added else f"{'–':>14s}" for name in names)
            print(f"{f'{kind}, {what}':26s}{row}   (bare {own:.2f})")
            _compare(added, names)


def _compare(added: dict[str, float], names: list[str]) -> None:
    ours = added.pop("ours")
    if not added:
        return
    ratios = {name: f"{ours / us:.2f} x" for name, us in added.items()}
    print(f"{'  ours is':26s}" + "".join(f"{ratios.get(name, ''):>14s}" for name in names))
    least = min(added.values())
    verdict = "reached" if ours <= TARGET * least else "missed"
    print(f"  beside the cheapest: {ours / least:.2f} x, target <= {TARGET} x: {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    for name, peer in PEERS.items():
        if not is_there(peer.module):
            print(f"{name} is not installed, and left out: pip install {peer.install}")
    report(run([name for name, peer in PEERS.items() if is_there(peer.module)], options.rounds))


if __name__ == "__main__":
    main()
