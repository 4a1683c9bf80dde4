"""The object itself: its life, its arguments, and what it does with bad ones."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from llm_metering import (
    AccountMismatch,
    Alarm,
    ConfigurationError,
    LedgerError,
    MemoryLedger,
    MemorySender,
    Metering,
    Settings,
    SqliteLedger,
    TokenMeter,
    Usage,
    read_response,
)
from llm_metering.protocols import LedgerStatus, UsageSum

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3},
}


def metering_of(**options: object) -> Metering:
    options = {"ledger": MemoryLedger(), "sender": MemorySender(), "settings": Settings(), **options}
    return Metering(**options)  # type: ignore[arg-type]


def sums_of(metering: Metering) -> dict[tuple[str | None, str], Decimal]:
    found: list[UsageSum] = metering.run_on_ledger(lambda ledger: ledger.usage_sums())
    return {(row.customer, dict(row.dimensions)["token_type"]): row.value for row in found}


def status_of(metering: Metering) -> LedgerStatus:
    return metering.status()


def test_what_is_recorded_is_sent_to_the_customer_that_was_named() -> None:
    sender = MemorySender()
    with metering_of(sender=sender) as metering:
        metering.record(ANSWER, customer="cus_1")
        assert metering.flush(5) == 0
    sent = {(e.customer, e.payload["token_type"], e.payload["model"]): e.value for e in sender.accepted}
    assert sent == {
        ("cus_1", "input", "gpt-5-mini"): Decimal(2),
        ("cus_1", "output", "gpt-5-mini"): Decimal(1),
    }


def test_one_customer_for_all_is_billed_where_nobody_else_is_named() -> None:
    with metering_of(customer="cus_all") as metering:
        metering.record(Usage(input=5))
        with metering.bound(customer="cus_other"):
            metering.record(Usage(input=7))
        metering.flush(5)
        assert sums_of(metering) == {("cus_all", "input"): 5, ("cus_other", "input"): 7}


def test_usage_without_a_customer_is_kept_and_not_sent() -> None:
    sender = MemorySender()
    with metering_of(sender=sender) as metering:
        metering.record(Usage(input=5))
        metering.flush(5)
        assert status_of(metering).unresolved_records == 1
        assert sums_of(metering) == {(None, "input"): 5}
    assert sender.accepted == []


def test_bound_blocks_nest_and_end() -> None:
    ledger = MemoryLedger()
    with metering_of(ledger=ledger, meters=[TokenMeter(dimensions=("feature", "region"))]) as metering:
        with metering.bound(customer="cus_1", feature="batch", region="eu"):
            with metering.bound(feature="inner"):
                metering.bind(region="us")
                metering.record(Usage(input=1))
            metering.record(Usage(input=10))
        metering.record(Usage(input=100))
        metering.flush(5)
        found = metering.run_on_ledger(lambda ledger: ledger.usage_sums())
    assert {(row.customer, row.dimensions, int(row.value)) for row in found} == {
        ("cus_1", (("feature", "inner"), ("region", "us")), 1),
        ("cus_1", (("feature", "batch"), ("region", "eu")), 10),
        (None, (("feature", "unknown"), ("region", "unknown")), 100),
    }


def test_bind_outside_of_a_request_says_what_to_use_instead() -> None:
    with pytest.raises(ConfigurationError, match=r"with metering\.bound"):
        metering_of().bind(feature="chat")


@pytest.mark.parametrize("customer", ["cus 1", "cus\n1", "x" * 300, 7, "größe"])
def test_a_customer_that_cannot_be_billed_is_refused_at_once(customer: object) -> None:
    with pytest.raises(ConfigurationError, match="cannot be billed"):
        metering_of(customer=customer)
    with pytest.raises(ConfigurationError, match="cannot be billed"), metering_of().bound(customer=customer):  # type: ignore[arg-type]
        raise AssertionError


def test_an_id_makes_recording_idempotent() -> None:
    with metering_of() as metering:
        for _ in range(3):
            metering.record(Usage(input=5), customer="cus_1", id="job-1")
        metering.flush(5)
        assert sums_of(metering) == {("cus_1", "input"): 5}


def test_a_reading_can_be_recorded_as_it_is() -> None:
    with metering_of() as metering:
        metering.record(read_response(ANSWER), customer="cus_1")
        metering.flush(5)
        assert sums_of(metering) == {("cus_1", "input"): 2, ("cus_1", "output"): 1}


@pytest.mark.parametrize(
    "answer", [None, 17, "", b"\xff\xfe", "not json", [], {}, {"usage": {"prompt_tokens": -5}}, object()]
)
def test_an_answer_that_cannot_be_read_is_set_aside_and_never_raises(answer: object) -> None:
    sender = MemorySender()
    with metering_of(sender=sender) as metering:
        metering.record(answer, customer="cus_1")
        metering.flush(5)
        assert status_of(metering).held_records == 1
    assert sender.accepted == []


def test_recording_starts_metering_by_itself() -> None:
    sender = MemorySender()
    metering = metering_of(sender=sender)
    metering.record(Usage(input=5), customer="cus_1")
    assert metering.flush(5) == 0
    assert [int(e.value) for e in sender.accepted] == [5]
    metering.stop()


def test_recording_works_after_stop_and_is_delivered_by_the_next_life(tmp_path: Path) -> None:
    first = metering_of(ledger=tmp_path / "ledger")
    first.start()
    first.stop()
    first.record(Usage(input=5), customer="cus_1")
    first.flush(5)
    first.stop()
    sender = MemorySender()
    with metering_of(ledger=tmp_path / "ledger", sender=sender) as second:
        second.record(Usage(input=6), customer="cus_1")
        second.flush(5)
        assert sums_of(second) == {("cus_1", "input"): 11}


def test_a_stop_that_overtakes_a_start_in_the_background_is_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_start = threading.Event()
    late: list[threading.Thread] = []

    class Late(threading.Thread):
        def run(self) -> None:
            late.append(self)
            may_start.wait(5)
            super().run()

    monkeypatch.setattr("llm_metering.metering.Thread", Late)
    first = metering_of(ledger=tmp_path / "ledger")
    first.record(Usage(input=5), customer="cus_1")
    first.stop()
    may_start.set()
    late[0].join(5)
    assert not first.is_started
    with metering_of(ledger=tmp_path / "ledger") as second:
        assert sums_of(second) == {("cus_1", "input"): 5}


def test_start_and_stop_may_be_called_twice() -> None:
    metering = metering_of()
    metering.start()
    metering.start()
    metering.stop()
    metering.stop()
    with metering:
        assert metering.is_started
    assert not metering.is_started


@pytest.mark.anyio
async def test_it_is_an_async_context_manager_too() -> None:
    sender = MemorySender()
    async with metering_of(sender=sender) as metering:
        metering.record(Usage(input=5), customer="cus_1")
        metering.flush(5)
    assert len(sender.accepted) == 1


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_a_folder_that_cannot_be_written_is_refused_at_start_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match=str(tmp_path / "file")):
        metering_of(ledger=tmp_path / "file").start()


def test_a_ledger_of_another_account_is_refused_at_start(tmp_path: Path) -> None:
    with metering_of(ledger=tmp_path, sender=MemorySender(account="acct_1 (test)")) as metering:
        metering.record(Usage(input=5), customer="cus_1")
        metering.flush(5)
    sender = MemorySender(account="acct_2 (test)")
    sender.key_hint = "test:other"
    other = metering_of(ledger=tmp_path, sender=sender)
    with pytest.raises(AccountMismatch, match=r"acct_1 \(test\).*acct_2 \(test\)"):
        other.start()
    assert not other.is_started


def test_a_live_key_on_a_test_ledger_is_refused_without_asking_stripe(tmp_path: Path) -> None:
    with metering_of(ledger=tmp_path) as metering:
        metering.record(Usage(input=5), customer="cus_1")
        metering.flush(5)
    live = MemorySender()
    live.key_hint = "live:other"
    with pytest.raises(AccountMismatch, match=r"another mode \(live\)"):
        metering_of(ledger=tmp_path, sender=live).start()
    assert live.checks == 0


def test_a_record_after_stop_is_on_disk_at_once_and_starts_nothing(tmp_path: Path) -> None:
    metering = metering_of(ledger=tmp_path)
    metering.start()
    metering.stop()
    before = threading.active_count()
    metering.record(Usage(input=5), customer="cus_1")
    assert not metering.is_started
    assert threading.active_count() == before
    sums = SqliteLedger.read_only(tmp_path).usage_sums()
    assert [(row.customer, int(row.value)) for row in sums] == [("cus_1", 5)]


def test_a_forked_child_starts_a_life_of_its_own(tmp_path: Path) -> None:
    code = f"""
import os
from llm_metering import *
metering = Metering(ledger={str(tmp_path / "ledger")!r}, sender=MemorySender(), settings=Settings())
metering.start()
metering.record(Usage(input=1), customer="cus_parent")
child = os.fork()
if child == 0:
    metering.record(Usage(input=10), customer="cus_child")
    left = metering.flush(60)
    sent = [e.customer for e in metering.sender.accepted if e.customer == "cus_child"]
    os._exit(0 if left == 0 and sent == ["cus_child"] else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
metering.flush(10)
metering.stop()
"""
    # Shorter than the flush in the child: waiting for a thread that only its parent has would show.
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], check=True, timeout=30)
    sums = SqliteLedger.read_only(tmp_path / "ledger").usage_sums()
    assert {(row.customer, int(row.value)) for row in sums} == {("cus_parent", 1), ("cus_child", 10)}


def test_a_ledger_that_is_not_supported_says_what_is() -> None:
    with pytest.raises(ConfigurationError, match="give a folder, 'postgresql://…' or 'memory:'"):
        metering_of(ledger="mysql://localhost/usage")


def test_alarms_reach_the_callback() -> None:
    heard: list[Alarm] = []
    metering = metering_of(on_alarm=heard.append)
    metering.telemetry.alarm("test.alarm", "look here", answer=42)
    assert [(a.name, a.message, a.data["answer"]) for a in heard] == [("test.alarm", "look here", 42)]


def test_making_one_touches_neither_disk_nor_threads(tmp_path: Path) -> None:
    code = (
        "import os, threading, llm_metering; m = llm_metering.Metering();"
        "print(os.listdir('.'), threading.active_count())"
    )
    env = {**os.environ, "STRIPE_API_KEY": "sk_test_1"}
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["[]", "1"]


def test_a_script_that_ends_without_stop_keeps_what_it_recorded(tmp_path: Path) -> None:
    code = "import llm_metering as l; l.Metering().record(l.Usage(input=5), customer='cus_1')"
    env = {k: v for k, v in os.environ.items() if k != "STRIPE_API_KEY"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, timeout=60)
    with metering_of(ledger=tmp_path / ".llm_metering") as metering:
        assert sums_of(metering) == {("cus_1", "input"): 5}


@pytest.mark.parametrize(
    "used_at",
    [1_900_000_000_000, float("nan"), float("inf"), -1e300, 1e300, -5.0, "yesterday"],
    ids=["milliseconds", "nan", "infinite", "long ago", "far ahead", "before 1970", "text"],
)
def test_usage_with_a_time_that_is_none_is_kept_and_held(used_at: Any) -> None:
    """It would wait for thousands of years, or be lost; nobody else's usage waits with it."""
    sender = MemorySender()
    with Metering(ledger=MemoryLedger(), sender=sender, settings=Settings()) as metering:
        metering.record(Usage(input=5), customer="cus_1", model="m", used_at=used_at)
        metering.record(Usage(input=7), customer="cus_1", model="m")
        metering.flush()
        (row,) = metering.run_on_ledger(lambda ledger: ledger.set_aside("held"))
    assert row.record.usage.input == 5
    assert "is no time in Unix seconds" in (row.record.held or "")
    assert [int(event.value) for event in sender.accepted] == [7]


def test_usage_of_a_while_ago_is_billed_with_its_time() -> None:
    sender, then = MemorySender(), time.time() - 86_400
    with Metering(ledger=MemoryLedger(), sender=sender, settings=Settings()) as metering:
        metering.record(Usage(input=5), customer="cus_1", model="m", used_at=then)
        metering.flush()
    assert [event.timestamp for event in sender.accepted] == [int(then)]
