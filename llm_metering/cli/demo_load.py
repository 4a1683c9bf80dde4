"""The demo's callers: questions from two customers, some of them in flight when the service dies."""

from __future__ import annotations

import http.client
import json
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import MeteringError

MODELS = ("gpt-4o-mini", "gpt-4.1", "gpt-5-mini")
CALLERS = 12
RETRY_S = 0.05
TIMEOUT_S = 30.0

_PROSE = "how far is it to the sea and why does a road go by so many old houses in the rain"
_WORDS = tuple(_PROSE.split())


@dataclass(frozen=True, slots=True)
class Call:
    """One question to the service."""

    number: int
    key: str
    """The caller's API key."""
    path: Literal["/chat", "/chat/stream", "/digest"]
    body: dict[str, str]


@dataclass(frozen=True, slots=True)
class Fate:
    """What a caller got: a whole answer, or a connection that broke."""

    call: Call
    whole: bool
    response_id: str | None = None
    """As far as the caller could see it."""


class CallFailed(MeteringError):
    """The service answered with an error."""


def calls(*, seed: int, count: int, keys: Sequence[str]) -> list[Call]:
    """The same calls for the same seed: plain answers, streams and digests, some with a long context."""
    luck = random.Random(seed)  # noqa: S311
    return [_call(number, keys[number % len(keys)], luck) for number in range(count)]


def _call(number: int, key: str, luck: random.Random) -> Call:
    path: Any = luck.choices(("/chat", "/chat/stream", "/digest"), (45, 45, 10))[0]
    body = {"text": _words(luck, luck.randint(4, 40))}
    if path != "/digest":
        body["model"] = luck.choice(MODELS)
        if luck.random() < 0.1:  # long enough for a provider to read it from its cache
            body["context"] = _words(luck, 1200)
    return Call(number, key, path, body)


def _words(luck: random.Random, count: int) -> str:
    return " ".join(luck.choice(_WORDS) for _ in range(count))


class Load:
    """Sends calls from several threads, and can tell at any moment what is in flight."""

    def __init__(self, port: int, todo: Sequence[Call], *, callers: int = CALLERS) -> None:
        self.total = len(todo)
        self.fates: list[Fate] = []
        self._port = port
        self._todo: queue.SimpleQueue[Call] = queue.SimpleQueue()
        for call in todo:
            self._todo.put(call)
        self._in_flight: dict[int, _Seen] = {}
        self._failure: BaseException | None = None
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(callers)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()

    @property
    def is_done(self) -> bool:
        return len(self.fates) == self.total

    @property
    def streaming(self) -> int:
        """Streams whose first words have reached their caller, and that go on."""
        return sum(seen.is_stream and seen.has_text for seen in list(self._in_flight.values()))

    @property
    def waiting(self) -> int:
        """Plain answers that have been asked for and have not come."""
        return sum(not seen.is_stream for seen in list(self._in_flight.values()))

    def wait_until(self, ready: Callable[[], bool], *, timeout_s: float) -> bool:
        """Wait for something to come true while calls go on; False if it did not.

        Raises:
            CallFailed: A call got an error for an answer.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self._failure is not None:
                raise self._failure
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self.fates.append(self._fate(self._todo.get_nowait()))
        except queue.Empty:
            return
        except Exception as exc:
            self._failure = exc

    def _fate(self, call: Call) -> Fate:
        connection = self._connect()
        seen = self._in_flight[call.number] = _Seen(is_stream=call.path == "/chat/stream")
        headers = {"Authorization": f"Bearer {call.key}", "Content-Type": "application/json"}
        try:
            connection.request("POST", call.path, json.dumps(call.body), headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise CallFailed(f"{call.path} answered {answer.status}: {answer.read(500)!r}")
            while piece := answer.read1(65536) if seen.is_stream else answer.read():
                seen.take(piece)
        except (OSError, http.client.HTTPException):
            return Fate(call, whole=False, response_id=seen.response_id)
        finally:
            del self._in_flight[call.number]
            connection.close()
        return Fate(call, whole=seen.is_whole, response_id=seen.response_id)

    def _connect(self) -> http.client.HTTPConnection:
        """A connection of its own for each call: what broke is then known to be this call's."""
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
            try:
                connection.connect()
            except OSError:
                # Nobody listens while the service is down, so nothing was asked.
                if self._over.wait(RETRY_S):
                    raise
            else:
                return connection


class _Seen:
    """What has come of one answer."""

    def __init__(self, *, is_stream: bool) -> None:
        self.is_stream = is_stream
        self.response_id: str | None = None
        self.has_text = False
        self.is_whole = False
        self._rest = b""

    def take(self, piece: bytes) -> None:
        if not self.is_stream:
            self.response_id = json.loads(piece)["id"]
            self.is_whole = True
            return
        *events, self._rest = (self._rest + piece).split(b"\n\n")
        for event in events:
            data = event.removeprefix(b"data: ")
            if data == b"[DONE]":
                self.is_whole = True
                continue
            content = json.loads(data)
            self.response_id = content["id"]
            self.has_text = self.has_text or bool(content["text"])
