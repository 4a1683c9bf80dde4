"""Telemetry: counters, alarms, swallowed errors."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest
from llm_metering._redact import mask, one_line
from llm_metering.protocols import Alarm
from llm_metering.telemetry import LogTelemetry


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_counters_add_up_across_threads() -> None:
    telemetry = LogTelemetry()

    def work() -> None:
        for _ in range(2000):
            telemetry.count("usage.recorded")
            telemetry.count("usage.tokens", 3)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert telemetry.snapshot() == {"usage.recorded": 16_000, "usage.tokens": 48_000}


def test_a_snapshot_is_a_copy() -> None:
    telemetry = LogTelemetry()
    telemetry.count("a")
    telemetry.snapshot()["a"] = 99
    assert telemetry.snapshot() == {"a": 1}


def test_counter_names_without_end_share_one_counter() -> None:
    telemetry = LogTelemetry()
    for i in range(5000):
        telemetry.count(f"name.{i}")
    assert len(telemetry.snapshot()) <= 1001
    assert sum(telemetry.snapshot().values()) == 5000


def test_an_alarm_is_a_log_record_with_a_stable_name_and_a_callback(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Alarm] = []
    telemetry = LogTelemetry(on_alarm=heard.append)
    telemetry.alarm("delivery.paused", "nothing is sent", key="test:1f3a", attempts=3)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("llm_metering", logging.ERROR)
    assert record.getMessage() == "delivery.paused: nothing is sent"
    assert (record.event, record.data) == ("delivery.paused", {"key": "test:1f3a", "attempts": 3})  # type: ignore[attr-defined]
    assert heard == [Alarm("delivery.paused", "nothing is sent", {"key": "test:1f3a", "attempts": 3})]
    assert telemetry.snapshot() == {"alarm.delivery.paused": 1}


def test_an_alarm_that_keeps_coming_is_let_through_five_times_a_minute(clock: Clock) -> None:
    heard: list[Alarm] = []
    telemetry = LogTelemetry(on_alarm=heard.append, monotonic=clock)
    for _ in range(100):
        telemetry.alarm("delivery.dead", "refused")
    telemetry.alarm("delivery.paused", "another name has a limit of its own")
    assert [a.name for a in heard] == ["delivery.dead"] * 5 + ["delivery.paused"]
    clock.now += 60
    telemetry.alarm("delivery.dead", "refused", identifier="i")
    assert heard[-1].data == {"identifier": "i", "suppressed": 95}
    assert telemetry.snapshot()["alarm.delivery.dead"] == 101


def test_secrets_and_line_breaks_do_not_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Alarm] = []
    telemetry = LogTelemetry(on_alarm=heard.append)
    key = "sk_live_51HxyzSECRETSECRETSECRET"
    telemetry.alarm("x", f"key {key}\r\nforged: line", header=f"Bearer {key}", error=ValueError(key))
    telemetry.failure("y", ValueError(f"{key}\nforged"))
    text = caplog.text + repr([r.__dict__ for r in caplog.records]) + repr(heard)
    assert "SECRET" not in text
    assert all("\n" not in r.getMessage() and "\r" not in r.getMessage() for r in caplog.records)
    assert "sk_live_***" in caplog.text


def test_a_failure_is_counted_always_and_logged_once_a_minute_for_each_kind(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = LogTelemetry(monotonic=clock)
    for _ in range(50):
        telemetry.failure("capture.read", ValueError("boom"))
        telemetry.failure("capture.read", KeyError("k"))
    assert [r.getMessage().split(" [")[0] for r in caplog.records] == [
        "capture.read: ValueError: boom",
        "capture.read: KeyError: 'k'",
    ]
    assert telemetry.snapshot() == {"failure.capture.read": 100}
    clock.now += 61
    telemetry.failure("capture.read", ValueError("boom"))
    assert "(49 more since)" in caplog.records[-1].getMessage()


def test_a_failure_says_where_it_happened(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise RuntimeError("x")

    try:
        broken()
    except RuntimeError as exc:
        LogTelemetry().failure("capture.read", exc)
    assert "test_telemetry.py" in caplog.text
    assert "broken" in caplog.text


def test_a_callback_that_raises_is_counted_and_nothing_else() -> None:
    def broken(alarm: Alarm) -> None:
        raise RuntimeError("pager is down")

    telemetry = LogTelemetry(on_alarm=broken)
    telemetry.alarm("delivery.paused", "x")
    assert telemetry.snapshot() == {"alarm.delivery.paused": 1, "failure.telemetry.on_alarm": 1}


def test_a_broken_log_handler_does_not_raise() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("disk full")

    handler = Broken()
    logger = logging.getLogger("llm_metering.broken")
    logger.addHandler(handler)
    heard: list[Alarm] = []
    try:
        telemetry = LogTelemetry(on_alarm=heard.append, logger="llm_metering.broken")
        telemetry.alarm("a", "x")
        telemetry.failure("b", ValueError("x"))
    finally:
        logger.removeHandler(handler)
    assert telemetry.snapshot()["telemetry.failed"] == 2
    assert [a.name for a in heard] == ["a"], "a person hears of it all the same"


def test_a_message_that_cannot_be_made_into_text_does_not_raise() -> None:
    class Bad(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    telemetry = LogTelemetry()
    telemetry.failure("x", Bad())
    telemetry.alarm("y", "z", error=Bad())
    assert telemetry.snapshot()["telemetry.failed"] == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_forked_while_a_thread_counts_can_count() -> None:
    telemetry = LogTelemetry()
    counting, done = threading.Event(), threading.Event()

    def count() -> None:
        with telemetry._lock:  # as in the middle of `count`
            counting.set()
            done.wait(20)

    thread = threading.Thread(target=count)
    thread.start()
    assert counting.wait(5)
    pid = os.fork()
    if not pid:
        signal.alarm(5)  # a lock that nobody will open would wait for ever
        telemetry.count("x")
        os._exit(0 if telemetry.snapshot() == {"x": 1} else 1)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# Redaction.


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (
            "Invalid API Key provided: sk_test_4eC39HqLyjWDarjtT1zdp7dc",
            "Invalid API Key provided: sk_test_***",
        ),
        ("rk_live_abcDEF123, sk_test_***", "rk_live_***, sk_test_***"),
        ("whsec_abc/def+123=", "whsec_***"),
        ("Authorization: Bearer eyJhbGciOi.abc-def_", "Authorization: Bearer ***"),
        ("sk-proj-abcdefgh12345678 and sk-ant-api03-abcdefgh", "sk-proj-*** and sk-ant-***"),
        ("http://user:p4ss@proxy:8080/", "http://***@proxy:8080/"),
        ("Request req_123 for cus_123 failed", "Request req_123 for cus_123 failed"),
        ("a task-list and disk-usage", "a task-list and disk-usage"),
    ],
)
def test_secrets_are_masked_and_ordinary_words_are_not(text: str, masked: str) -> None:
    assert mask(text) == masked


def test_a_line_is_one_line_of_bounded_length() -> None:
    assert one_line("a\r\nb\tc\x1b[31m\u2028d") == "a\\r\\nb\\tc\\x1b[31m\\u2028d"
    assert one_line("x" * 1000, 50) == "x" * 49 + "…"
    assert len(one_line("\n" * 10**6)) == 300


def test_a_cut_does_not_save_a_secret_from_the_mask() -> None:
    key = "sk_live_" + "SECRET" * 10
    for i in range(250, 310):
        assert "SECRET" not in one_line("x" * i + " " + key)
