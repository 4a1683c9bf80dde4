"""What delivery does to a served request: its 99th percentile while 10 000 events are delivered beside it.

    python benchmarks/interference.py [--rounds 5] [--events 10000] [--folder DIR]

A bare Starlette app is served by uvicorn; a client in another process asks for 1 kB of JSON about every
millisecond. In the same process as the app, a thread delivers the events to a raw server on the loopback: a
plain loop over http.client, the official SDK (a tenth of the events), or the flusher with its durable ledger.
Every round runs each once, the first in turn; what each adds is the median of its rounds. All deliver as fast
as they can, so that the faster is over sooner.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn
from llm_metering.senders.stripe_stream import StripeStream
from llm_metering.senders.stripe_v1 import StripeSender
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from delivery import KEY, Ours, running_server, with_http_client, with_sdk

Deliver = Callable[[], None]
CONTENT = {"choices": [{"message": {"content": "x" * 900}}], "usage": {"prompt_tokens": 12}}
GAP_S = 0.001


# ---- the app and its client


async def answer(request: Request) -> JSONResponse:
    return JSONResponse(CONTENT)


class Served:
    """The app, on a loop in a thread of its own as in any server; the load comes from another process."""

    def __init__(self) -> None:
        # Named as TCP, or asyncio would leave Nagle's algorithm on.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        app = Starlette(routes=[Route("/", answer)])
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
        self.thread = threading.Thread(target=asyncio.run, args=(self.server.serve([listener]),))
        self.thread.start()

    def latencies(self, deliver: Deliver | None) -> list[float]:
        """Seconds that each request took while `deliver` ran, or for 1.5 seconds beside nothing."""
        command = [sys.executable, __file__, "--client", str(self.port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdout.readline()  # it is warm
            gc.collect()
            client.stdin.write("go\n")
            client.stdin.flush()
            thread = threading.Thread(target=deliver or (lambda: time.sleep(1.5)))
            thread.start()
            thread.join()
            found, _ = client.communicate("stop\n")
        return [float(took) for took in json.loads(found)]

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()


def ask_until_told(port: int) -> None:
    link = socket.create_connection(("127.0.0.1", port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask() -> float:
        began = time.perf_counter()
        link.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        data = b""
        while len(data) < 1000:
            data += link.recv(65536)
        return time.perf_counter() - began

    for _ in range(200):
        ask()
    print("warm", flush=True)
    over = threading.Event()
    sys.stdin.readline()
    threading.Thread(target=lambda: (sys.stdin.readline(), over.set()), daemon=True).start()
    took = []
    while not over.wait(GAP_S):
        took.append(ask())
    print(json.dumps(took))


# ---- what delivers


def ours(sender: Callable[[], StripeSender | StripeStream], folder: str, n: int) -> tuple[Deliver, Deliver]:
    """Delivers a ledger that was filled and frozen beforehand; and what to do afterwards."""
    lane = tempfile.TemporaryDirectory(dir=folder)
    filled = Ours(sender(), Path(lane.name), n)
    filled.writer.run(lambda ledger: ledger.freeze(now=time.time(), bucket_s=60, everything=True))

    def close() -> None:
        filled.close()
        lane.cleanup()

    return filled.run, close


def kinds(base: str, folder: str, n: int) -> dict[str, Callable[[], tuple[Deliver | None, Deliver]]]:
    def nothing() -> None: ...

    return {
        "nothing": lambda: (None, nothing),
        "http.client, one thread": lambda: (with_http_client(base, n), nothing),
        "stripe SDK, one thread": lambda: (with_sdk(base, n // 10), nothing),
        "ours, v1, ledger included": lambda: ours(lambda: StripeSender(KEY, api_base=base), folder, n),
        "ours, v2, ledger included": lambda: ours(
            lambda: StripeStream(KEY, api_base=base, meter_events_base=base), folder, n
        ),
    }


# ---- the report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--folder", help="where the ledgers are made; a disk like yours")
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        ask_until_told(args.client)
        return
    rounds: dict[str, list[tuple[float, float, float]]] = {}
    served = Served()
    try:
        with running_server() as base:
            todo = kinds(base, args.folder or tempfile.gettempdir(), args.events)
            for n in range(args.rounds):
                names = list(todo)
                for name in names[n % len(names) :] + names[: n % len(names)]:
                    rounds.setdefault(name, []).append(measured(served, *todo[name]()))
    finally:
        served.close()
    show({name: rounds[name] for name in todo})


def measured(served: Served, deliver: Deliver | None, close: Deliver) -> tuple[float, float, float]:
    """Median and 99th percentile of a request, and how long the delivery took."""
    began = time.perf_counter()
    found = served.latencies(deliver)
    took = time.perf_counter() - began
    close()
    return statistics.median(found), statistics.quantiles(found, n=100)[98], took


def show(rounds: dict[str, list[tuple[float, float, float]]]) -> None:
    print(f"{'a served request, beside':28}{'p50':>10}{'p99':>10}{'p99 added':>12}{'over in':>10}")
    alone = [p99 for _, p99, _ in rounds["nothing"]]
    added = {}
    for name, found in rounds.items():
        p50, p99, took = (statistics.median(r[i] for r in found) for i in range(3))
        added[name] = statistics.median(r[1] - a for r, a in zip(found, alone, strict=True))
        print(f"{name:28}{p50 * 1e6:7.0f} µs{p99 * 1e6:7.0f} µs{added[name] * 1e6:9.0f} µs{took:8.1f} s")
    ratio = added["ours, v1, ledger included"] / added["http.client, one thread"]
    print(f"ours, v1, adds {ratio:.2f} × what the http.client thread adds; target ≤ 1")


if __name__ == "__main__":
    os.environ["NO_PROXY"] = "127.0.0.1"
    main()
