"""A home for capture without a ledger: the real recorder, counter and telemetry over a list."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from llm_metering import counting
from llm_metering.capture.counter import Counter
from llm_metering.capture.recorder import Recorder
from llm_metering.settings import Settings
from llm_metering.telemetry import LogTelemetry
from llm_metering.usage import UsageRecord


class Receipt:
    """A ticket that is done when the books say so."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._callbacks: list[Callable[[], object]] = []
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        return self._event.wait(timeout_s)

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        if self.done:
            callback()
        else:
            self._callbacks.append(callback)

    def commit(self) -> None:
        self._event.set()
        for callback in self._callbacks:
            callback()


class Books:
    """A sink that keeps everything in order. `slow` leaves records uncommitted until `commit_all`."""

    def __init__(self) -> None:
        self.records: list[UsageRecord] = []
        self.rows: dict[str, UsageRecord] = {}
        self.noted: list[UsageRecord] = []
        """Every progress row ever written, in order."""
        self.receipts: list[Receipt] = []
        self.slow = False

    def put(self, record: UsageRecord, *, closes: str | None = None) -> Receipt:
        receipt = Receipt()
        if record.id not in {r.id for r in self.records}:
            self.records.append(record)
        if closes is not None:
            self.rows.pop(closes, None)
        self.receipts.append(receipt)
        if not self.slow:
            receipt.commit()
        return receipt

    def progress(self, record: UsageRecord) -> None:
        self.rows[record.id] = record
        self.noted.append(record)

    def drop(self, id: str) -> None:
        self.rows.pop(id, None)

    def commit_all(self) -> None:
        for receipt in self.receipts:
            if not receipt.done:
                receipt.commit()

    @property
    def only(self) -> UsageRecord:
        assert len(self.records) == 1, self.records
        return self.records[0]

    def totals(self) -> dict[str | None, int]:
        """Tokens by customer."""
        sums: dict[str | None, int] = {}
        for record in self.records:
            sums[record.customer] = sums.get(record.customer, 0) + (record.usage.total or 0)
        return sums


class SmallHome:
    """What the middleware needs of `Metering`, without a ledger."""

    def __init__(self, resolver: Any = None, *, customer: str | None = None, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.telemetry = LogTelemetry()
        self.books = Books()
        self.counter = Counter(settings=self.settings, telemetry=self.telemetry)
        self.recorder = Recorder(
            settings=self.settings,
            sink=self.books,
            telemetry=self.telemetry,
            counter=self.counter,
            resolver=resolver,
            customer=customer,
        )
        self.is_started = False
        self.life: list[str] = []
        self.start_error: Exception | None = None

    def has_room(self) -> bool:
        return True

    def start(self) -> None:
        if self.is_started:
            return
        self.life.append("start")
        if self.start_error is not None:
            raise self.start_error
        self.is_started = True

    def start_soon(self) -> None:
        self.life.append("start_soon")
        self.is_started = True

    def stop(self) -> None:
        if self.is_started:
            self.life.append("stop")
            self.is_started = False

    @property
    def failures(self) -> dict[str, int]:
        """Errors of our own that were swallowed."""
        return {k: v for k, v in self.telemetry.snapshot().items() if k.startswith("failure")}


def chat_answer(
    text: str = "Hello there", *, id: str = "chatcmpl-1", prompt: int = 12, completion: int = 3, **more: Any
) -> dict[str, Any]:
    """A chat completion as OpenAI sends it."""
    return {
        "id": id,
        "object": "chat.completion",
        "created": 1750000000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
        **more,
    }


def chat_events(
    texts: list[str], *, id: str = "chatcmpl-s1", usage: dict[str, int] | None = None
) -> list[bytes]:
    """A streamed chat completion, one server-sent event an item."""
    head = {"id": id, "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini-2024-07-18"}
    chunks: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
        for text in texts
    ]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if usage is not None:
        chunks.append({**head, "choices": [], "usage": usage})
    return [b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks] + [b"data: [DONE]\n\n"]


class Passed:
    """What a client was sent, message by message."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages)


async def exchange(
    app: Any,
    path: str = "/v1/chat/completions",
    body: bytes = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hi"}]}',
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    on_send: Callable[[dict[str, Any]], Any] | None = None,
    chunks: list[bytes] | None = None,
    **scope: Any,
) -> Passed:
    """Send one request to an ASGI app, without a client library between."""
    passed = Passed()
    waiting = list(chunks if chunks is not None else [body])

    async def receive() -> dict[str, Any]:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if on_send is not None:
            answer = on_send(message)
            if answer is not None:
                await answer
        passed.messages.append(message)

    head = {"content-type": "application/json", **(headers or {})}
    asgi = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
        "method": method, "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "", "headers": [(k.encode(), v.encode()) for k, v in head.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "extensions": {}, **scope,
    }  # fmt: skip
    passed.messages.clear()
    await app(asgi, receive, send)
    return passed


@pytest.fixture(scope="session", autouse=True)
def _tables() -> None:
    counting.load("o200k_base")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home() -> Iterator[SmallHome]:
    home = SmallHome(customer="cus_a")
    yield home
    assert home.failures == {}


@pytest.fixture
def new_home() -> type[SmallHome]:
    return SmallHome


@pytest.fixture
def wire() -> Any:
    """Provider answers, and a client that speaks ASGI."""
    return SimpleNamespace(chat=chat_answer, events=chat_events, exchange=exchange, Passed=Passed)
