"""A recorder over a sink in memory, and a provider on a real socket that answers what a test tells it to."""

from __future__ import annotations

import importlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from llm_metering import counting
from llm_metering.capture.counter import Counter
from llm_metering.capture.recorder import Recorder
from llm_metering.capture.waiting import LateTicket
from llm_metering.settings import Settings
from llm_metering.usage import UsageRecord

OPENAI_HTTP: Any = importlib.import_module("httpx" if int(openai.__version__.split(".")[0]) < 3 else "httpx2")
"""What OpenAI's SDK is built on."""


class MemorySink:
    """What the writer's queue would hold, in order."""

    def __init__(self) -> None:
        self.records: list[UsageRecord] = []
        self.rows: dict[str, UsageRecord] = {}
        """Progress rows that nothing has closed."""
        self.row_history: list[UsageRecord] = []
        self._lock = threading.Lock()

    def put(self, record: UsageRecord, *, closes: str | None = None) -> LateTicket:
        with self._lock:
            if closes is not None:
                assert closes in self.rows or closes == record.id
                self.rows.pop(closes, None)
            if record.id not in [known.id for known in self.records]:
                self.records.append(record)
        return LateTicket.done_already()

    def progress(self, record: UsageRecord) -> None:
        with self._lock:
            self.rows[record.id] = record
            self.row_history.append(record)

    def drop(self, record_id: str) -> None:
        with self._lock:
            self.rows.pop(record_id, None)

    def tokens(self) -> list[tuple[int | None, int | None]]:
        return [(record.usage.input_total, record.usage.output_total) for record in self.records]


class Notes:
    """Telemetry that remembers."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.alarms: list[tuple[str, str]] = []
        self.failures: list[tuple[str, BaseException]] = []

    def count(self, name: str, n: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + n

    def alarm(self, name: str, message: str, /, **data: Any) -> None:
        self.alarms.append((name, message))

    def failure(self, name: str, exc: BaseException) -> None:
        self.failures.append((name, exc))


@dataclass
class Bench:
    """A recorder and what came out of it."""

    recorder: Recorder
    sink: MemorySink
    notes: Notes

    @property
    def records(self) -> list[UsageRecord]:
        return self.sink.records

    def drain(self) -> None:
        """Wait for what was left to the counter's thread."""
        done = threading.Event()
        self.recorder.counter.later(done.set)
        assert done.wait(10)

    def only(self) -> UsageRecord:
        assert len(self.sink.records) == 1, self.sink.records
        assert not self.sink.rows, "a progress row was left open"
        return self.sink.records[0]


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    counting.load("o200k_base")
    benches = []

    def make(**options: Any) -> Bench:
        names = ("resolver", "customer", "now")
        given = {name: options.pop(name) for name in names if name in options}
        settings, sink, notes = Settings(**options), MemorySink(), Notes()
        counter = Counter(settings=settings, telemetry=notes)
        recorder = Recorder(settings=settings, sink=sink, telemetry=notes, counter=counter, **given)
        benches.append(Bench(recorder, sink, notes))
        return benches[-1]

    yield make
    for bench in benches:
        assert bench.notes.failures == []


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


# A provider on a socket.


@dataclass
class Reply:
    """One answer of the provider."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"
    chunks: list[bytes] | None = None
    """Sent one by one, as a chunked body."""
    hang_up: bool = False
    """Break the connection off instead of ending the body."""
    gate: threading.Event | None = None
    """Waited for after the chunks, before the rest."""
    rest: list[bytes] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Asked:
    """One request that the provider got."""

    method: str
    path: str
    body: dict[str, Any]
    headers: dict[str, str]


class ProviderStub:
    """Answers with the replies it was given, in order; the last one again and again."""

    def __init__(self) -> None:
        self.replies: deque[Reply] = deque()
        self.asked: list[Asked] = []
        self.gates: list[threading.Event] = []
        handler = type("Handler", (_Handler,), {"stub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        for gate in self.gates:
            gate.set()
        self._server.shutdown()
        self._server.server_close()

    def add(self, reply: Reply) -> Reply:
        self.replies.append(reply)
        if reply.gate is not None:
            self.gates.append(reply.gate)
        return reply

    def raw(self, body: bytes, **options: Any) -> Reply:
        return self.add(Reply(body, **options))

    def json(self, body: Any, status: int = 200, **headers: str) -> Reply:
        return self.add(Reply(json.dumps(body).encode(), status, headers=headers))

    def events(self, events: list[dict[str, Any]], **options: Any) -> Reply:
        """A stream; `gate` splits it after `options["first"]` events."""
        first = options.pop("first", len(events))
        chunks = [wire(event) for event in events]
        if options.pop("done", "type" not in events[0]):
            chunks.append(b"data: [DONE]\n\n")
        return self.add(
            Reply(
                content_type="text/event-stream",
                chunks=chunks[:first] if first < len(events) else chunks,
                rest=chunks[first:] if first < len(events) else [],
                **options,
            )
        )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: ProviderStub

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            body = {"raw": raw}
        self.stub.asked.append(Asked(self.command, self.path, body, dict(self.headers.items())))
        replies = self.stub.replies
        self._send(replies.popleft() if len(replies) > 1 else replies[0])

    do_GET = do_POST  # noqa: N815

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("content-type", reply.content_type)
        # A client may live longer than the event loop it was used on: leave it no open connection.
        self.send_header("connection", "close")
        for name, value in reply.headers.items():
            self.send_header(name.replace("_", "-"), value)
        if reply.chunks is None:
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)
            return
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self._chunks(reply.chunks)
        if reply.gate is not None:
            reply.gate.wait(10)
        self._chunks(reply.rest)
        if not reply.hang_up:
            self.wfile.write(b"0\r\n\r\n")

    def _chunks(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def wire(event: dict[str, Any]) -> bytes:
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n".encode()


@pytest.fixture
def provider() -> Iterator[ProviderStub]:
    stub = ProviderStub()
    yield stub
    stub.close()


# What providers say.


class Said:
    """Bodies and events as the providers write them."""

    @staticmethod
    def chat_usage(prompt: int = 20, completion: int = 5) -> dict[str, Any]:
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 0},
        }

    @classmethod
    def chat(cls, text: str = "Hello there.", *, id: str = "chatcmpl-1", **more: Any) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "id": id,
            "object": "chat.completion",
            "created": 1_750_000_000,
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": cls.chat_usage(),
            **more,
        }

    @classmethod
    def chat_events(
        cls, words: list[str] | None = None, *, usage: bool = True, id: str = "chatcmpl-s"
    ) -> list[dict[str, Any]]:
        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            return {
                "id": id,
                "object": "chat.completion.chunk",
                "created": 1_750_000_000,
                "model": "gpt-4o-mini-2024-07-18",
                "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
                **({"usage": None} if usage else {}),
            }

        words = ["Hello", " there", ",", " friend", "."] if words is None else words
        events = [chunk({"role": "assistant", "content": ""})]
        events += [chunk({"content": word}) for word in words]
        events.append(chunk({}, "stop"))
        if usage:
            events.append({**chunk({}), "choices": [], "usage": cls.chat_usage()})
        return events

    @staticmethod
    def responses(
        text: str = "Hello there.", *, id: str = "resp_1", status: str = "completed", **more: Any
    ) -> dict[str, Any]:
        content = [{"type": "output_text", "text": text, "annotations": []}]
        return {
            "id": id,
            "object": "response",
            "created_at": 1_750_000_000,
            "status": status,
            "model": "gpt-4o-mini-2024-07-18",
            "output": [
                {
                    "id": "m1",
                    "type": "message",
                    "role": "assistant",
                    "status": "completed",
                    "content": content,
                }
            ],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "background": False,
            "usage": {
                "input_tokens": 30,
                "input_tokens_details": {"cached_tokens": 10},
                "output_tokens": 9,
                "output_tokens_details": {"reasoning_tokens": 4},
                "total_tokens": 39,
            },
            **more,
        }

    @classmethod
    def responses_events(cls, words: list[str] | None = None, **more: Any) -> list[dict[str, Any]]:
        words = ["Hello", " there", "."] if words is None else words
        begun = {**cls.responses(status="in_progress", **more), "usage": None, "output": []}
        item = {"id": "m1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        part = {"type": "output_text", "text": "", "annotations": []}
        at = {"item_id": "m1", "output_index": 0, "content_index": 0}
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            {"type": "response.content_part.added", **at, "part": part},
        ]
        events += [{"type": "response.output_text.delta", **at, "delta": w, "logprobs": []} for w in words]
        text = "".join(words)
        events += [
            {"type": "response.output_text.done", **at, "text": text, "logprobs": []},
            {"type": "response.completed", "response": cls.responses(text, **more)},
        ]
        return [{**event, "sequence_number": n} for n, event in enumerate(events)]

    @staticmethod
    def embeddings(count: int = 1) -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"object": "embedding", "index": n, "embedding": [0.1, 0.2]} for n in range(count)],
            "model": "text-embedding-3-small",
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        }

    @staticmethod
    def message(text: str = "Hello there.", *, id: str = "msg_1") -> dict[str, Any]:
        return {
            "id": id,
            "type": "message",
            "role": "assistant",
            "model": "claude-opus-4-8",
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": 12,
                "cache_creation_input_tokens": 100,
                "cache_read_input_tokens": 50,
                "output_tokens": 6,
            },
        }

    @classmethod
    def message_events(cls, words: list[str] | None = None, *, id: str = "msg_s") -> list[dict[str, Any]]:
        words = ["Hello", " there", "."] if words is None else words
        begun = {**cls.message(id=id), "content": [], "stop_reason": None}
        begun["usage"] = {**begun["usage"], "output_tokens": 1}
        return [
            {"type": "message_start", "message": begun},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "ping"},
            *(
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
                for word in words
            ),
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": 6},
            },
            {"type": "message_stop"},
        ]


@pytest.fixture
def said() -> type[Said]:
    return Said
