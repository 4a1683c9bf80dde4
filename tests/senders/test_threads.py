"""Sending threads: as few as keep up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import pytest
from llm_metering.protocols import Claim, Outcome
from llm_metering.senders.memory import MemorySender
from llm_metering.senders.threads import Begun, Ended, SendingThreads
from llm_metering.telemetry import LogTelemetry
from llm_metering.usage import MeterEvent


def claim(i: int) -> Claim:
    return Claim(MeterEvent(f"id{i}", "m", f"cus_{i}", Decimal(1), 1, {"value": "1"}), 1, 1)


class Timed(MemorySender):
    """Answers after `seconds`, and counts how many were at it at a time."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.now = self.most = 0
        self.lock = threading.Lock()

    def send(self, events: Sequence[MeterEvent]) -> list[Outcome]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
        return super().send(events)


@pytest.fixture
def make() -> Iterator[Callable[..., SendingThreads]]:
    made: list[SendingThreads] = []

    def make(sender: MemorySender, limit: int = 8) -> SendingThreads:
        made.append(SendingThreads(sender, limit, LogTelemetry()))
        return made[-1]

    yield make
    for sending in made:
        sending.release()


def gather(sending: SendingThreads, n: int, within: float = 30) -> list[Ended]:
    deadline, found = time.monotonic() + within, list[Ended]()
    while len(found) < n:
        assert time.monotonic() < deadline
        sending.wait(1)
        found += sending.collect()
    return found


def alive() -> int:
    return sum(t.name.startswith("llm-metering-send") for t in threading.enumerate())


def test_one_thread_is_enough_for_a_server_that_answers_at_once(
    make: Callable[..., SendingThreads], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SendingThreads, "SPAWN_AFTER_S", 60.0)  # at once, by the measure of a busy machine
    monkeypatch.setattr(SendingThreads, "LINGER_S", 60.0)
    sender = Timed()
    sending = make(sender)
    for round_ in range(5):
        for i in range(8):
            sending.submit([claim(8 * round_ + i)])
        assert len(gather(sending, 8)) == 8
    assert sender.most == 1
    assert sending._threads == 1


def test_slow_answers_bring_more_threads_up_to_the_limit(make: Callable[..., SendingThreads]) -> None:
    sender = Timed(0.1)
    sending = make(sender, 4)
    for i in range(12):
        sending.submit([claim(i)])
    gather(sending, 12)
    assert sender.most == 4


def test_results_that_come_at_once_are_gathered(
    make: Callable[..., SendingThreads], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SendingThreads, "LINGER_S", 5.0)
    sending = make(MemorySender())
    for i in range(8):
        sending.submit([claim(i)])
    sending.wait(5)
    assert len(sending.collect()) == 8


def test_a_slow_one_does_not_keep_the_results_of_the_others(make: Callable[..., SendingThreads]) -> None:
    go_on = threading.Event()
    sender = MemorySender()
    answers, begun = sender.send, threading.Event()

    def send(events: Sequence[MeterEvent]) -> list[Outcome]:
        if events[0].identifier == "id0":
            begun.set()
            go_on.wait(10)
        return answers(events)

    sender.send = send  # type: ignore[method-assign]
    sending = make(sender, 2)
    sending.submit([claim(0)])
    assert begun.wait(5)
    sending.submit([claim(1)])
    (ended,) = gather(sending, 1)
    assert ended.claims[0].event.identifier == "id1"
    go_on.set()
    gather(sending, 1)


def test_a_job_without_claims_is_a_check(make: Callable[..., SendingThreads]) -> None:
    sending = make(MemorySender(account="acct_1 (test)"))
    sending.submit([])
    (ended,) = gather(sending, 1)
    assert ended.claims == ()
    assert ended.outcomes[0].message == "acct_1 (test)"


def test_wake_ends_the_wait(make: Callable[..., SendingThreads]) -> None:
    sending = make(MemorySender())
    threading.Timer(0.05, sending.wake).start()
    began = time.monotonic()
    sending.wait(30)
    assert time.monotonic() - began < 10
    sending.wake()
    sending.wait(30)  # a call that came before is not lost
    assert time.monotonic() - began < 10
    began = time.monotonic()
    sending.wait(0.1)
    assert time.monotonic() - began > 0.09


def test_what_has_not_begun_can_be_taken_back(make: Callable[..., SendingThreads]) -> None:
    sender = Timed(0.5)
    sending = make(sender)
    for i in range(5):
        sending.submit([claim(i)])
    time.sleep(0.05)
    back = [job[0].event.identifier for job in sending.recall()]
    gather(sending, 5 - len(back))
    assert {e.identifier for e in sender.attempts} | set(back) == {f"id{i}" for i in range(5)}
    assert back
    assert not {e.identifier for e in sender.attempts} & set(back)


def test_idle_threads_go_and_come_back_when_needed(
    make: Callable[..., SendingThreads], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SendingThreads, "IDLE_S", 0.02)
    before = alive()
    sending = make(MemorySender())
    for i in range(20):
        sending.submit([claim(i)])
        gather(sending, 1)
        deadline = time.monotonic() + 5
        while i % 4 == 0 and alive() > before and time.monotonic() < deadline:
            time.sleep(0.005)
    assert len(sending._ended) == 0


@pytest.mark.parametrize("outcomes", [[], [Outcome("accepted")] * 3])
def test_a_sender_that_loses_count_leaves_all_in_doubt(
    make: Callable[..., SendingThreads], outcomes: list[Outcome]
) -> None:
    sender = MemorySender(max_batch=2)
    sender.send = lambda events: outcomes  # type: ignore[method-assign]
    sending = make(sender)
    sending.submit([claim(1), claim(2)])
    (ended,) = gather(sending, 1)
    assert [o.kind for o in ended.outcomes] == ["ambiguous"] * 2


def test_a_check_that_raises_is_no_answer(make: Callable[..., SendingThreads]) -> None:
    sender = MemorySender()

    def broken() -> Outcome:
        raise RuntimeError("a bug")

    sender.check = broken  # type: ignore[method-assign]
    sending = make(sender)
    sending.submit([])
    (ended,) = gather(sending, 1)
    assert ended.outcomes[0].kind == "ambiguous"


def test_where_no_thread_can_be_had_it_is_counted_and_tried_again(
    make: Callable[..., SendingThreads], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    refused: list[int] = []

    def refuse(thread: threading.Thread) -> None:
        if len(refused) < 3 and thread.name.startswith("llm-metering-send"):
            refused.append(1)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    sending = make(MemorySender())
    sending.submit([claim(1)])
    assert len(gather(sending, 1)) == 1
    assert len(refused) == 3


class Stopping(MemorySender):
    """The machine is suspended for `asleep_s` while the first of its requests is under way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, asleep_s: float) -> None:
        super().__init__()
        self.entered, self.go_on = threading.Event(), threading.Event()
        self._patch, self._asleep_s = monkeypatch, asleep_s

    def send(self, events: Sequence[MeterEvent]) -> list[Outcome]:
        if not self.entered.is_set():
            self.entered.set()
            assert self.go_on.wait(5)
            later = time.time() + self._asleep_s
            self._patch.setattr("llm_metering.senders.threads.time.time", lambda: later)
        return super().send(events)


@pytest.mark.parametrize(("asleep_s", "kinds"), [(60, ["accepted"]), (3 * 3600, ["not_sent"])])
def test_what_waited_through_a_suspended_machine_is_not_sent_any_more(
    make: Callable[..., SendingThreads], monkeypatch: pytest.MonkeyPatch, asleep_s: float, kinds: list[str]
) -> None:
    """A resend that was in time when it was claimed may be too late for Stripe's memory by then."""
    sender = Stopping(monkeypatch, asleep_s)
    sending = make(sender, limit=1)
    sending.submit([claim(1)])
    assert sender.entered.wait(5)
    sending.submit([claim(2)])
    sender.go_on.set()
    first, second = gather(sending, 2)
    assert [o.kind for o in first.outcomes] == ["accepted"]
    assert [o.kind for o in second.outcomes] == kinds


def test_what_a_process_claimed_before_it_was_stopped_is_not_sent_a_day_later(
    make: Callable[..., SendingThreads], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still between its claim and handing the event in; another may have sent it meanwhile."""
    sender = MemorySender()
    sending = make(sender)
    sending.collect()  # a turn begins, and claims
    later = time.time() + 86_400
    monkeypatch.setattr("llm_metering.senders.threads.time.time", lambda: later)
    sending.submit([claim(1)])
    (ended,) = gather(sending, 1)
    assert [o.kind for o in ended.outcomes] == ["not_sent"]
    assert not sender.accepted
    sending.submit([claim(2)])
    (ended,) = gather(sending, 1)
    assert [o.kind for o in ended.outcomes] == ["accepted"], "of the next turn"


class Beginning(MemorySender):
    """Begins requests that are answered at once, and notes on which thread."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []
        self.gate = threading.Event()

    def send(self, events: Sequence[MeterEvent]) -> list[Outcome]:
        return [self.begin(event).end() for event in events]

    def begin(self, event: MeterEvent) -> Begun:
        self.threads.append(threading.get_ident())
        assert self.gate.wait(30)
        return Begun(-1, 0.0, lambda: Outcome("accepted", 200))


def with_three_threads(make: Callable[..., SendingThreads], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Idle ones, as a slow moment leaves them."""
    monkeypatch.setattr(SendingThreads, "SPAWN_AFTER_S", 0.001)
    sender = Beginning()
    sending = make(sender, 3)
    for i in range(3):
        sending.submit([claim(i)])
    until(lambda: sending.wait(0.01) or len(sender.threads) == 3)
    sender.gate.set()
    gather(sending, 3)
    until(lambda: sending._idle == 3)
    assert len(set(sender.threads)) == 3
    sender.gate.clear()
    sender.threads.clear()
    return sender, sending


def until(holds: Callable[[], object], within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_of_several_idle_threads_one_has_what_is_handed_in_together(
    make: Callable[..., SendingThreads], monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, sending = with_three_threads(make, monkeypatch)
    monkeypatch.setattr(SendingThreads, "SPAWN_AFTER_S", 60.0)
    monkeypatch.setattr(SendingThreads, "SLOW_S", 60.0)
    for i in range(8):
        sending.submit([claim(10 + i)])
    until(lambda: sender.threads)
    sender.gate.set()
    assert len(gather(sending, 8)) == 8
    assert len(sender.threads) == 8
    assert len(set(sender.threads)) == 1


def test_what_waits_behind_a_slow_beginning_is_taken_by_an_idle_thread(
    make: Callable[..., SendingThreads], monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, sending = with_three_threads(make, monkeypatch)
    for i in range(3):
        sending.submit([claim(10 + i)])
    until(lambda: sending.wait(0.01) or len(set(sender.threads)) == 3)  # while none of them has ended
    sender.gate.set()
    assert len(gather(sending, 3)) == 3
