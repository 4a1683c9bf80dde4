"""One process that records, streams and delivers for minutes, and whether its memory stays flat:
`python tools/soak.py --steady --minutes 10`.

Four threads ask a metered app for answers and streams, read decorated streams to their end or to the middle,
and record by hand, for hundreds of customers; the sandbox, in a process of its own, takes what is delivered
and fails now and then. After a warm-up what is resident is watched, and what Python holds is told by
file. Exit 1 if either grew by more than a process that runs for weeks can bear.
"""

# ruff: noqa: S310, S311  (a test in all but name)
from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import llm_metering
from llm_metering import Metering, MeteringMiddleware, Settings, Usage
from llm_metering.cli.stage import free_port
from llm_metering.customers import from_state

PACKAGE = str(Path(llm_metering.__file__).parent)
KEY = "sk_test_steady"
CUSTOMERS = 300
WARM_UP, WATCHED, TRACED = 0.3, 0.4, 0.3
"""Shares of the time: caches fill; what is resident is watched; Python's own objects are traced."""
FLAT_MIB = 12.0
"""How much may be resident more at the end than after the warm-up."""
HELD_KIB = 512.0
"""How much more this package's own lines may hold then."""
METER = {
    "display_name": "tokens",
    "event_name": "hypernian_tokens",
    "default_aggregation[formula]": "sum",
    "customer_mapping[type]": "by_id",
    "customer_mapping[event_payload_key]": "stripe_customer_id",
}
_JSON = (b"content-type", b"application/json")
_SSE = (b"content-type", b"text/event-stream")
FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "500_after", "count": 5},
    {"kind": "429", "count": 5},
    {"kind": "409", "count": 5},
)


class App:
    """A chat service as others write it: a whole answer, or a stream that the client may break off."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        self.calls += 1
        if scope["query_string"] == b"stream":
            await self._stream(send)
            return
        answer = {**_chunk(self.calls, None), "object": "chat.completion", "usage": _usage(self.calls)}
        await send({"type": "http.response.start", "status": 200, "headers": [_JSON]})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def _stream(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [_SSE]})
        for _ in range(20):
            await send(
                {"type": "http.response.body", "body": _line(_chunk(self.calls, "word ")), "more_body": True}
            )
        last = {**_chunk(self.calls, None), "choices": [], "usage": _usage(self.calls)}
        await send({"type": "http.response.body", "body": _line(last) + b"data: [DONE]\n\n"})


class Steady:
    """The process and its load."""

    def __init__(self, metering: Metering, customers: list[str], folder: Path, seed: int) -> None:
        self.folder = folder
        self.metering = metering
        self.customers = customers
        self.app = MeteringMiddleware(App(), metering=metering)
        self.luck = random.Random(seed)
        self.over = threading.Event()
        self.calls = 0
        self.failed: list[BaseException] = []

        @metering.metered(model="gpt-4o")
        def story(prompt: str) -> Iterator[str]:
            for _ in range(30):
                yield "once upon a time "

        self.story = story
        works: tuple[Callable[[], None], ...] = (self.by_hand, self.stories, self.requests, self.requests)
        self.threads = [threading.Thread(target=self.work, args=(each,), daemon=True) for each in works]

    def work(self, some: Callable[[], None]) -> None:
        while not self.over.is_set():
            try:
                some()
            except BaseException as exc:
                self.failed.append(exc)
                return
            self.calls += 1
            time.sleep(0.002)

    def customer(self) -> str:
        return self.luck.choice(self.customers)

    def by_hand(self) -> None:
        with self.metering.bound(customer=self.customer(), feature=f"f{self.luck.randrange(50)}"):
            self.metering.record(Usage(input=self.luck.randrange(1000), output=5), model="gpt-4o")

    def stories(self) -> None:
        with self.metering.bound(customer=self.customer()):
            told = self.story("tell me a story")
            for n, _ in enumerate(told):
                if n > 10 and self.luck.random() < 0.05:
                    break  # and never closed: it is left to the garbage collector

    def requests(self) -> None:
        asyncio.run(self.some_requests())

    async def some_requests(self) -> None:
        await asyncio.gather(*(self.request(n) for n in range(10)))

    async def request(self, number: int) -> None:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "path": f"/v{number}/chat/completions", "raw_path": b"", "root_path": "", "scheme": "http",
            "query_string": b"stream" if self.luck.random() < 0.5 else b"", "headers": [],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
            "state": {"stripe_customer_id": self.customer()},
        }  # fmt: skip
        left = self.luck.randrange(3, 12) if self.luck.random() < 0.1 else 1000

        async def receive() -> Any:
            if left <= 0:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": b'{"messages": []}', "more_body": False}

        async def send(message: Any) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise OSError("the client hung up")

        with suppress(OSError):
            await self.app(scope, receive, send)


def run(minutes: float, seed: int) -> int:
    with tempfile.TemporaryDirectory() as folder, _sandbox(Path(folder)) as url:
        customers = _prepare(url)
        settings = Settings(
            stripe_api_key=KEY,
            stripe_api_base=url,
            bucket_s=1,
            flush_every_s=1,
            reconcile_every_s=15,
            progress_every_s=0.05,
        )
        with Metering(ledger=Path(folder) / "ledger", settings=settings, customer=from_state()) as metering:
            problems = watch(Steady(metering, customers, Path(folder), seed), minutes * 60, url)
    for problem in problems:
        print(f"WRONG: {problem}")
    print("wrong" if problems else "memory flat")
    return 1 if problems else 0


def watch(steady: Steady, seconds: float, url: str) -> list[str]:
    """Load for so long, and what is wrong in the end."""
    for thread in steady.threads:
        thread.start()
    _load(steady, seconds * WARM_UP, url)
    calls, threads, first = steady.calls, threading.active_count(), _resident_mib()
    _load(steady, seconds * WATCHED, url)
    last = _resident_mib()
    # What traces costs memory of its own, which is no business of the figures above.
    tracemalloc.start()
    _load(steady, seconds * TRACED / 2, url)
    noted = _snapshot(steady)  # in a file, since it is large itself
    _load(steady, seconds * TRACED / 2, url)
    before, after = tracemalloc.Snapshot.load(noted), tracemalloc.Snapshot.load(_snapshot(steady))
    steady.over.set()
    for thread in steady.threads:
        thread.join(30)
    held = 0.0
    print(f"{steady.calls} rounds of load, {steady.calls - calls} of them watched; threads {threads} → "
          f"{threading.active_count()}")  # fmt: skip
    print(f"resident: {first:.1f} → {last:.1f} MiB")
    for stat in after.compare_to(before, "filename")[:12]:
        print(
            f"{stat.size_diff / 1024:+10.1f} KiB  {stat.count_diff:+8d} blocks  {stat.traceback[0].filename}"
        )
    for stat in after.compare_to(before, "lineno"):
        if stat.traceback[0].filename.startswith(PACKAGE):
            held += stat.size_diff / 1024
            if stat.size_diff > 32 * 1024:
                print(f"{stat.size_diff / 1024:+10.1f} KiB  {stat.traceback[0]}")
    print(f"held by lines of this package: {held:+.1f} KiB")
    status = steady.metering.status()
    print(f"{status.usage_records} records, {dict(status.events)}, conserved {status.conserved}")
    problems = [f"the load failed: {exc!r}" for exc in steady.failed]
    if last - first > FLAT_MIB:
        problems.append(f"the process grew by {last - first:.1f} MiB")
    if held > HELD_KIB:
        problems.append(f"lines of this package hold {held:.0f} KiB more")
    if steady.calls == calls or not status.events.get("ACCEPTED", 0) + status.events.get("SETTLED", 0):
        problems.append("nothing happened")
    if not status.conserved:
        problems.append("the books are not conserved")
    return problems


def _load(steady: Steady, seconds: float, url: str) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 5.0))
        _fault(url, steady.luck.choice(FAULTS))


def _snapshot(steady: Steady) -> str:
    gc.collect()
    path = str(steady.folder / f"snapshot-{steady.calls}")
    tracemalloc.take_snapshot().filter_traces(_NOT_THESE).dump(path)
    gc.collect()
    return path


_NOT_THESE = [tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, __file__)]


def _resident_mib() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def _sandbox(folder: Path) -> Iterator[str]:
    """Stripe, in a process of its own, with a meter and the customers."""
    port = free_port()
    command = [sys.executable, "-m", "llm_metering", "sandbox", "--port", str(port)]
    command += ["--db", str(folder / "stripe.db")]
    with (folder / "sandbox.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def _prepare(url: str) -> list[str]:
    """The meter, and customers."""
    end = time.monotonic() + 60
    while True:
        try:
            _post(f"{url}/v1/billing/meters", METER)
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
    return [_post(f"{url}/v1/customers", {"name": f"customer {n}"})["id"] for n in range(CUSTOMERS)]


def _post(url: str, form: dict[str, str]) -> Any:
    body = urllib.parse.urlencode(form).encode()
    request = urllib.request.Request(url, body, {"Authorization": f"Bearer {KEY}"}, method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or b"null")


def _fault(url: str, fault: dict[str, Any]) -> None:
    body = json.dumps({**fault, "match": {"path": "/v1/billing/meter_events"}}).encode()
    request = urllib.request.Request(f"{url}/_sandbox/faults", body, method="POST")
    with suppress(OSError), urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()


def _chunk(number: int, word: str | None) -> dict[str, Any]:
    delta = {"message": {"content": "words"}} if word is None else {"delta": {"content": word}}
    return {
        "id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, **delta}],
    }  # fmt: skip


def _usage(number: int) -> dict[str, int]:
    return {"prompt_tokens": number % 500, "completion_tokens": 20, "total_tokens": number % 500 + 20}


def _line(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
