"""Delivery: CPU an event and events a second, beside the official SDK and bare http.client, in the same run.

    python benchmarks/delivery.py [--rounds 5] [--folder DIR]

All talk to one raw server on the loopback that accepts everything at once. "ours" is the whole way: freeze,
claim, send and finish, with a durable SQLite ledger; v2 is the event stream, with 100 events a request. Every
round runs each column once; the ratios are medians over the rounds. The last table is what delivering does to
other work in the same process: the 99th percentile of a small piece of work that another thread does all the
time.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import stripe
from llm_metering.flusher import Flusher
from llm_metering.ledger import SqliteLedger, Writer
from llm_metering.meters import checked_meters, lines_of
from llm_metering.protocols import Sender
from llm_metering.senders.stripe_stream import StripeStream
from llm_metering.senders.stripe_v1 import StripeSender, form_of
from llm_metering.settings import Settings
from llm_metering.telemetry import LogTelemetry
from llm_metering.usage import MeterEvent, Usage, UsageRecord

KEY = "sk_test_x"
TARGETS = {"v1": (0.17, 6.0), "v2": (0.025, 25.0)}
_ids = itertools.count()


def event() -> MeterEvent:
    payload = {
        "stripe_customer_id": "cus_1",
        "value": "25",
        "model": "gpt-5-mini",
        "token_type": "input",
    }
    return MeterEvent(f"{next(_ids):032x}", "hypernian_tokens", "cus_1", Decimal(25), 1_750_000_000, payload)


# ---- the columns: each delivers `n` events


def with_sdk(base: str, n: int) -> Callable[[], None]:
    stripe.enable_telemetry = False
    client = stripe.StripeClient(
        KEY, base_addresses={"api": base}, http_client=stripe.RequestsClient(), max_network_retries=0
    )
    create = client.v1.billing.meter_events.create

    def run() -> None:
        for _ in range(n):
            e = event()
            create(
                {
                    "event_name": e.event_name,
                    "payload": dict(e.payload),
                    "identifier": e.identifier,
                    "timestamp": e.timestamp,
                }
            )

    return run


def with_http_client(base: str, n: int) -> Callable[[], None]:
    to = urlsplit(base)
    link = http.client.HTTPConnection(to.hostname or "", to.port)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/x-www-form-urlencoded"}

    def run() -> None:
        for _ in range(n):
            link.request("POST", "/v1/billing/meter_events", form_of(event()), headers)
            json.loads(link.getresponse().read())

    return run


def with_sender(base: str, n: int) -> Callable[[], None]:
    sender = StripeSender(KEY, api_base=base)

    def run() -> None:
        for _ in range(n):
            (outcome,) = sender.send([event()])
            assert outcome.kind == "accepted", outcome

    return run


def with_sdk_stream(base: str, n: int) -> Callable[[], None]:
    client = stripe.StripeClient(
        KEY,
        base_addresses={"api": base, "meter_events": base},
        http_client=stripe.RequestsClient(),
        max_network_retries=0,
    )
    token = client.v2.billing.meter_event_session.create().authentication_token
    create = client.v2.billing.meter_event_stream.create

    def run() -> None:
        for _ in range(n // 100):
            events = [
                {
                    "event_name": e.event_name,
                    "payload": dict(e.payload),
                    "identifier": e.identifier,
                    "timestamp": "2025-06-15T15:06:40.000Z",
                }
                for e in (event() for _ in range(100))
            ]
            create({"events": events}, {"api_key": token})  # type: ignore[typeddict-item]

    return run


def with_stream(base: str, n: int) -> Callable[[], None]:
    stream = StripeStream(KEY, api_base=base, meter_events_base=base)

    def run() -> None:
        for _ in range(n // 100):
            outcomes = stream.send([event() for _ in range(100)])
            assert {outcome.kind for outcome in outcomes} == {"accepted"}, outcomes

    return run


class Ours:
    """A ledger filled beforehand, and the flusher that empties it."""

    def __init__(self, sender: Sender, folder: Path, n: int) -> None:
        self.telemetry = LogTelemetry()
        self.n = n
        self.writer = Writer(
            SqliteLedger(folder),
            lines_of=partial(lines_of, meters=checked_meters(None)),
            telemetry=self.telemetry,
        )
        self.writer.start()
        self.flusher = Flusher(self.writer, sender, Settings(bucket_s=60), self.telemetry)
        for _ in range(n):
            i = next(_ids)
            self.writer.put(
                UsageRecord(
                    id=f"chatcmpl-{i:x}",
                    usage=Usage(input=900),
                    used_at=time.time() - 120,
                    customer=f"cus_{i % 1000:014d}",
                    model=f"gpt-{i % n // 1000}",
                )
            )
        self.writer.flush()

    def run(self) -> None:
        left = self.flusher.flush(120)
        counts = self.telemetry.snapshot()
        assert not left, counts
        assert counts["delivery.accepted"] == self.n, counts

    def close(self) -> None:
        self.flusher.stop()
        self.writer.stop()


# ---- measuring


def cost(run: Callable[[], None], n: int) -> tuple[float, float]:
    """Seconds of CPU and of time for one event."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return (time.process_time() - cpu) / n, (time.perf_counter() - wall) / n


def a_round(
    columns: dict[str, tuple[Callable[[], None], int]], base: str, n: int, folder: str
) -> dict[str, tuple[float, float]]:
    found = {name: cost(run, count) for name, (run, count) in columns.items()}
    for name, sender in (
        ("v1, ours, ledger included", StripeSender(KEY, api_base=base)),
        ("v2, ours, ledger included", StripeStream(KEY, api_base=base, meter_events_base=base)),
    ):
        with tempfile.TemporaryDirectory(dir=folder) as lane:
            ours = Ours(sender, Path(lane), n)
            found[name] = cost(ours.run, n)
            ours.close()
    return found


def p99_of_other_work(background: Callable[[threading.Event], None] | None, seconds: float = 2.0) -> float:
    """How long a piece of work of about 100 µs takes at the 99th percentile, beside `background`.

    It waits for its cue, as a server for a request; that it gets the interpreter late counts, too.
    """
    over = threading.Event()
    thread = threading.Thread(target=background, args=(over,)) if background else None
    if thread:
        thread.start()
        time.sleep(0.05)
    took = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        time.sleep(0.0005)
        json.loads(json.dumps({"n": list(range(300)), "text": "x" * 1000}))
        took.append(time.perf_counter() - begin - 0.0005)
    over.set()
    if thread:
        thread.join()
    return statistics.quantiles(took, n=100)[98]


def repeated(run: Callable[[], None]) -> Callable[[threading.Event], None]:
    def background(over: threading.Event) -> None:
        while not over.is_set():
            run()

    return background


def delivering(base: str, folder: str) -> Callable[[threading.Event], None]:
    """The flusher at work until it is over; frozen beforehand, as a minute's usage is a small part of it."""
    lane = tempfile.TemporaryDirectory(dir=folder)
    ours = Ours(StripeSender(KEY, api_base=base), Path(lane.name), 30_000)
    ours.writer.run(lambda ledger: ledger.freeze(now=time.time(), bucket_s=60, everything=True))

    def background(over: threading.Event) -> None:
        flush = threading.Thread(target=ours.flusher.flush, args=(60,))
        flush.start()
        over.wait()
        assert flush.is_alive(), "all was delivered before the time was out"
        ours.close()
        flush.join()
        lane.cleanup()

    return background


# ---- the server


class Server(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.data) < end + 4 + length:
                return
            path = head.split(b" ", 2)[1]
            body, self.data = self.data[end + 4 : end + 4 + length], self.data[end + 4 + length :]
            self.answer(path, body)

    def answer(self, path: bytes, body: bytes) -> None:
        if path.startswith(b"/v2/"):
            self.say({"authentication_token": "token", "object": "x"} if path.endswith(b"session") else {})
            return
        name = body.partition(b"identifier=")[2][:32].decode()
        said: dict[str, object] = {
            "id": "acct_1",
            "object": "billing.meter_event",
            "created": 1_750_000_000,
            "livemode": False,
        }
        if name:
            said |= {"identifier": name, "event_name": "hypernian_tokens", "timestamp": 1_750_000_000}
            said["payload"] = {"stripe_customer_id": "cus_1", "value": "25"}
        self.say(said)

    def say(self, said: dict[str, object]) -> None:
        out = json.dumps(said).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nrequest-id: req_1\r\n"
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(out) + out)  # type: ignore[attr-defined]


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def running_server() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


# ---- the report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the ledgers are made; a disk like yours")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve())
        return
    folder = args.folder or tempfile.gettempdir()
    with running_server() as base:
        columns = {
            "stripe SDK, sync": (with_sdk(base, 300), 300),
            "http.client": (with_http_client(base, 1000), 1000),
            "v1, StripeSender alone": (with_sender(base, 1000), 1000),
            "v2, stripe SDK": (with_sdk_stream(base, 5000), 5000),
            "v2, StripeStream alone": (with_stream(base, 10_000), 10_000),
        }
        a_round(columns, base, 1000, folder)
        rounds = [a_round(columns, base, 4000, folder) for _ in range(args.rounds)]
        show(rounds)
        show_interference(base, folder)


def show(rounds: list[dict[str, tuple[float, float]]]) -> None:
    reference = next(iter(rounds[0]))
    print(f"{'':28}{'CPU an event':>14}{'events/s':>11}{'CPU':>9}{'speed':>9}   beside the {reference}")
    for name in rounds[0]:
        cpu = statistics.median(r[name][0] for r in rounds)
        speed = 1 / statistics.median(r[name][1] for r in rounds)
        cpu_ratio = statistics.median(r[name][0] / r[reference][0] for r in rounds)
        speed_ratio = statistics.median(r[reference][1] / r[name][1] for r in rounds)
        print(f"{name:28}{cpu * 1e6:11.1f} µs{speed:11.0f}{cpu_ratio:8.3f}×{speed_ratio:8.2f}×")
    for name, (cpu_ratio, speed_ratio) in TARGETS.items():
        print(f"{name + ', target, ledger included':53}≤{cpu_ratio:6.3f}×≥{speed_ratio:7.2f}×")
    print()


def show_interference(base: str, folder: str) -> None:
    print("p99 of other work in the same process")
    backgrounds = {
        "nothing": None,
        "http.client, one thread": repeated(with_http_client(base, 20)),
        "stripe SDK, one thread": repeated(with_sdk(base, 20)),
        "ours, ledger included": delivering(base, folder),
    }
    for name, background in backgrounds.items():
        gc.collect()
        print(f"{name:28}{p99_of_other_work(background) * 1e6:11.0f} µs")
    print("target: ours adds no more than the http.client thread")


if __name__ == "__main__":
    os.environ["NO_PROXY"] = "127.0.0.1"
    main()
