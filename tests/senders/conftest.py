"""A server of raw sockets that answers, or misbehaves, as a script says; and a sandbox in a faster time."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

import pytest
from llm_metering.sandbox import Sandbox, running_sandbox
from llm_metering.senders.stripe_v1 import StripeSender
from llm_metering.senders.threads import SendingThreads
from llm_metering.usage import MeterEvent

TLS = Path(__file__).parent / "tls"


@dataclass
class Request:
    line: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body.decode(), strict_parsing=True))


Act = Callable[[socket.socket, Request], bool]
"""Answers a request; returns whether the connection goes on."""


def answer(body: bytes = b"{}", status: int = 200, *headers: str, length: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def says(*parts: bytes, then_close: bool = False) -> Act:
    """Sends these bytes, whatever was asked."""

    def act(sock: socket.socket, request: Request) -> bool:
        for part in parts:
            sock.sendall(part)
        return not then_close

    return act


def accepts(sock: socket.socket, request: Request) -> bool:
    """Answers as Stripe does."""
    event = {"object": "billing.meter_event", "identifier": request.form.get("identifier"), "livemode": False}
    sock.sendall(answer(json.dumps(event).encode(), 200, "Request-Id: req_1"))
    return True


def refuses(status: int, message: str = "No.", *headers: str, **fields: str) -> Act:
    body = {"error": {"type": "invalid_request_error", "message": message, **fields}}
    return says(answer(json.dumps(body).encode(), status, *headers))


def closes(sock: socket.socket, request: Request) -> bool:
    return False


def resets(sock: socket.socket, request: Request) -> bool:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


@dataclass
class RawServer:
    """`script` holds what to do with each request to come; after that, requests are accepted."""

    tls: str | None = None
    script: list[Act] = field(default_factory=list)
    otherwise: Act = accepts
    requests: list[Request] = field(default_factory=list)
    partial: list[bytes] = field(default_factory=list)
    """What came of requests that broke off."""
    connections: int = 0
    silent: bool = False
    """Take connections and say nothing, not even a TLS handshake."""

    def __enter__(self) -> RawServer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.over = threading.Event()
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        for thread in self._threads:
            thread.join(5)

    def drop(self) -> None:
        """Close every connection from this side."""
        with self._lock:
            socks = list(self._open)
        for sock in socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def hangs(self, sock: socket.socket, request: Request) -> bool:
        """Says nothing until the test is over."""
        self.over.wait(20)
        return False

    def _start(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._start(self._serve, sock, self.connections)

    def _serve(self, sock: socket.socket, number: int) -> None:
        with self._lock:
            self._open.add(sock)
        try:
            if self.silent:
                self.over.wait(20)
                return
            if self.tls:
                sock = self._secured(sock)
            self._requests(sock, number)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def _secured(self, sock: socket.socket) -> socket.socket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS / f"{self.tls}.pem")
        with self._lock:
            self._open.discard(sock)
        secured = context.wrap_socket(sock, server_side=True)
        with self._lock:
            self._open.add(secured)
        return secured

    def _requests(self, sock: socket.socket, number: int) -> None:
        data = b""
        while True:
            head, end, rest = data.partition(b"\r\n\r\n")
            wanted = _length(head) if end else None
            if wanted is None or len(rest) < wanted:
                try:
                    more = sock.recv(65536)
                except OSError:
                    more = b""
                if not more:
                    if data:
                        self.partial.append(data)
                    return
                data += more
                continue
            data = rest[wanted:]
            request = _request(head, rest[:wanted], number)
            with self._lock:
                self.requests.append(request)
                act = self.script.pop(0) if self.script else self.otherwise
            if not act(sock, request):
                return


def _length(head: bytes) -> int:
    return int(_request(head, b"", 0).headers.get("content-length", 0))


def _request(head: bytes, body: bytes, number: int) -> Request:
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
    return Request(first, headers, body, number)


def meter_event(identifier: str = "id1", customer: str = "cus_1", value: str = "3000") -> MeterEvent:
    payload = {"stripe_customer_id": customer, "value": value, "model": "gpt-5-mini", "token_type": "input"}
    return MeterEvent(identifier, "hypernian_tokens", customer, Decimal(value), 1_750_000_000, payload)


@pytest.fixture
def raw() -> SimpleNamespace:
    """The helpers of this file; test modules cannot import it."""
    return SimpleNamespace(**globals())


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer() as server:
        yield server


@pytest.fixture
def sender(server: RawServer) -> Iterator[StripeSender]:
    sender = StripeSender("sk_test_key", api_base=server.url, timeout_s=5)
    yield sender
    sender.close()


SPEED = 20.0


class Clock:
    """The time, `SPEED` times as fast."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.base = time.time()

    def __call__(self) -> float:
        return self.base + (time.monotonic() - self.began) * SPEED


class FastThreads(SendingThreads):
    def wait(self, timeout_s: float) -> None:
        super().wait(timeout_s / SPEED)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with running_sandbox(now=clock) as sandbox:
        sandbox.client().v1.billing.meters.create(
            {
                "display_name": "Tokens",
                "event_name": "hypernian_tokens",
                "default_aggregation": {"formula": "sum"},
                "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
                "value_settings": {"event_payload_key": "value"},
            }
        )
        yield sandbox
