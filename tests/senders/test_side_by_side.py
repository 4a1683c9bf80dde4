"""Several requests under way on one thread: each has its own outcome, and none waits for another."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from llm_metering.protocols import Claim, Outcome
from llm_metering.senders.stripe_v1 import StripeSender
from llm_metering.senders.threads import Begun, Ended, SendingThreads
from llm_metering.telemetry import LogTelemetry
from llm_metering.usage import MeterEvent


def claim(i: int) -> Claim:
    payload = {"stripe_customer_id": f"cus_{i}", "value": "1"}
    return Claim(MeterEvent(f"id{i}", "tokens", f"cus_{i}", Decimal(1), 1_750_000_000, payload), 1, 1)


Make = Callable[[StripeSender], SendingThreads]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(SendingThreads, "SPAWN_AFTER_S", 5.0)  # one thread, by the measure of a busy machine
    monkeypatch.setattr(SendingThreads, "SLOW_S", 5.0)
    made: list[SendingThreads] = []

    def make(sender: StripeSender) -> SendingThreads:
        made.append(SendingThreads(sender, 8, LogTelemetry()))
        return made[-1]

    yield make
    for sending in made:
        sending.release()


def gather(sending: SendingThreads, n: int, within: float = 10) -> list[Ended]:
    deadline, found = time.monotonic() + within, list[Ended]()
    while len(found) < n:
        assert time.monotonic() < deadline
        sending.wait(1)
        found += sending.collect()
    return found


def submit(sending: SendingThreads, *numbers: int) -> None:
    """All of them, before the first is begun."""
    begin, all_here = sending._begin, threading.Event()
    assert begin is not None

    def waits(event: MeterEvent) -> Begun:
        all_here.wait(10)
        return begin(event)

    sending._begin = waits
    for i in numbers:
        sending.submit([claim(i)])
    sending._begin = begin
    all_here.set()


def kinds(found: Sequence[Ended]) -> dict[str, str]:
    return {each.claims[0].event.identifier: each.outcomes[0].kind for each in found}


def identifier(request: Any) -> str:
    return str(request.form["identifier"])


def by_identifier(raw: SimpleNamespace, acts: dict[str, Any]) -> Any:
    return lambda sock, request: acts.get(identifier(request), raw.accepts)(sock, request)


def test_one_thread_has_eight_under_way_at_a_time(make: Make, server: Any, sender: Any, raw: Any) -> None:
    """None is answered before all have come: with one after another this would not end."""
    all_here = threading.Barrier(8)

    def waits_for_all(sock: Any, request: Any) -> bool:
        all_here.wait(10)
        return bool(raw.accepts(sock, request))

    server.otherwise = waits_for_all
    sending = make(sender)
    submit(sending, *range(8))
    assert set(kinds(gather(sending, 8)).values()) == {"accepted"}
    assert sending._threads == 1
    assert server.connections == 8
    submit(sending, *range(8, 16))
    gather(sending, 8)
    assert server.connections == 8, "connections are used again"


def test_each_has_the_outcome_of_its_own_answer(make: Make, server: Any, sender: Any, raw: Any) -> None:
    duplicate = "An event already exists with identifier id1."
    server.otherwise = by_identifier(
        raw,
        {
            "id1": raw.refuses(400, duplicate),
            "id2": raw.refuses(429),
            "id3": raw.closes,
            "id4": raw.refuses(500),
            "id5": raw.says(raw.answer(b'{"identifier": "id0"}')),
        },
    )
    sending = make(sender)
    submit(sending, *range(7))
    assert kinds(gather(sending, 7)) == {
        "id0": "accepted",
        "id1": "duplicate",
        "id2": "throttled",
        "id3": "ambiguous",
        "id4": "ambiguous",
        "id5": "ambiguous",
        "id6": "accepted",
    }


def test_an_answer_that_does_not_come_keeps_no_other(make: Make, server: Any, raw: Any) -> None:
    server.otherwise = by_identifier(raw, {"id0": server.hangs})
    sender = StripeSender("sk_test_key", api_base=server.url, timeout_s=4)
    sending = make(sender)
    began = time.monotonic()
    submit(sending, *range(8))
    assert set(kinds(gather(sending, 7))) == {f"id{i}" for i in range(1, 8)}
    assert time.monotonic() - began < 3.5
    assert kinds(gather(sending, 1)) == {"id0": "ambiguous"}
    sender.close()


def test_over_tls_it_is_the_same(make: Make, server: Any, raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(raw.TLS / "ca.pem"))
    with raw.RawServer(tls="localhost") as secure:
        sender = StripeSender("sk_test_key", api_base=secure.url, timeout_s=5)
        sending = make(sender)
        for round_ in range(3):
            submit(sending, *range(8 * round_, 8 * round_ + 8))
            assert set(kinds(gather(sending, 8)).values()) == {"accepted"}
        assert secure.connections == 8
        sender.close()


def test_a_server_that_cannot_be_reached_is_surely_not_sent(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    sender = StripeSender("sk_test_key", api_base=f"http://127.0.0.1:{port}", timeout_s=2)
    sending = make(sender)
    submit(sending, *range(4))
    assert set(kinds(gather(sending, 4)).values()) == {"not_sent"}
    sender.close()


def test_what_takes_long_to_begin_is_the_last_before_answers_are_read(
    make: Make, server: Any, sender: StripeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SendingThreads, "SLOW_S", 0.0)
    most = now = 0
    begin = StripeSender.begin

    def counted(self: StripeSender, event: MeterEvent) -> Any:
        nonlocal most, now
        now += 1
        most = max(most, now)
        begun = begin(self, event)
        return type(begun)(begun.fileno, begun.left_s, lambda: end(begun))

    def end(begun: Any) -> Outcome:
        nonlocal now
        now -= 1
        return begun.end()  # type: ignore[no-any-return]

    monkeypatch.setattr(StripeSender, "begin", counted)
    sending = make(sender)
    submit(sending, *range(5))
    gather(sending, 5)
    assert most == 1


def test_a_sender_that_begins_and_then_raises_leaves_that_one_in_doubt(
    make: Make, server: Any, sender: StripeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = StripeSender.begin

    def broken(self: StripeSender, event: MeterEvent) -> Any:
        if event.identifier == "id1":
            raise RuntimeError("a bug")
        begun = begin(self, event)
        if event.identifier != "id2":
            return begun
        return type(begun)(begun.fileno, 1.0, lambda: begun.end() and 1 / 0)

    monkeypatch.setattr(StripeSender, "begin", broken)
    sending = make(sender)
    submit(sending, *range(4))
    assert kinds(gather(sending, 4)) == {
        "id0": "accepted",
        "id1": "ambiguous",
        "id2": "ambiguous",
        "id3": "accepted",
    }


def test_a_sender_that_sends_in_a_way_of_its_own_is_taken_at_that(make: Make, server: Any) -> None:
    class Own(StripeSender):
        def send(self, events: Sequence[MeterEvent]) -> list[Outcome]:
            return [Outcome("throttled") for _ in events]

    sender = Own("sk_test_key", api_base=server.url)
    sending = make(sender)
    sending.submit([claim(1)])
    assert kinds(gather(sending, 1)) == {"id1": "throttled"}
    assert server.requests == []
