"""The time that Stripe's answers tell."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import datetime, timezone
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import pytest
from llm_metering.sandbox import running_sandbox
from llm_metering.senders import server_clock
from llm_metering.senders.server_clock import ServerClock, date_of
from llm_metering.senders.stripe_stream import StripeStream
from llm_metering.senders.stripe_v1 import StripeSender

Raw = SimpleNamespace
SAID = "Tue, 15 Nov 2033 08:12:31 GMT"
AT = datetime(2033, 11, 15, 8, 12, 31, tzinfo=timezone.utc).timestamp()
OF_STRIPE = b"\r\nRequest-Id: req_1"


def head(date: str = SAID, more: bytes = OF_STRIPE) -> bytes:
    return b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: " + date.encode() + more


def test_every_answer_of_stripes_tells_the_time(server: Any, sender: StripeSender, raw: Raw) -> None:
    assert sender.server_time() is None
    server.script = [raw.says(raw.answer(b"{}", 500, f"Date: {SAID}", "Request-Id: req_1"))]
    sender.send([raw.meter_event()])
    told = sender.server_time()
    assert told is not None
    assert told.now == pytest.approx(AT, abs=5)


def test_so_does_the_answer_to_a_check(server: Any, sender: StripeSender, raw: Raw) -> None:
    server.script = [raw.says(raw.answer(b'{"id": "acct_1"}', 200, f"Date: {SAID}", "Request-Id: req_1"))]
    assert sender.check().kind == "accepted"
    assert sender.server_time() is not None


@pytest.mark.parametrize("kind", [StripeSender, StripeStream])
def test_a_sandbox_tells_the_time_of_its_own_clock(kind: Any, raw: Raw) -> None:
    at = [AT]
    with running_sandbox(now=lambda: at[0]) as sandbox:
        more = {"meter_events_base": sandbox.url} if kind is StripeStream else {}
        with closing(kind("sk_test_sandbox", api_base=sandbox.url, **more)) as sender:
            for days in range(2):
                at[0] = AT + days * 86_400
                getattr(sender, "_v1", sender).clock.listen_at = 0.0  # as a second later
                sender.send([raw.meter_event()])
                told = sender.server_time()
                assert told is not None
                assert told.now == pytest.approx(at[0], abs=5)


def test_a_date_is_read_however_its_header_is_written() -> None:
    assert date_of(head()) == AT
    assert date_of(head().replace(b"Date: ", b"date:").replace(b"Request-Id", b"request-id")) == AT
    assert date_of(OF_STRIPE + b"\r\nDATE:   " + SAID.upper().encode() + b"  ") == AT
    assert date_of(head(formatdate(AT, usegmt=True))) == AT


def test_of_two_dates_the_one_nearest_to_the_answer_counts() -> None:
    assert date_of(head("Tue, 15 Nov 2033 07:00:00 GMT", OF_STRIPE + f"\r\nDate: {SAID}".encode())) == AT


@pytest.mark.parametrize(
    "date",
    [
        "",
        "now",
        "2033-11-15T08:12:31Z",
        "Tuesday, 15-Nov-33 08:12:31 GMT",
        "Tue, 15 Nov 2033 08:12:31 CET",
        "Tue, 15 Nov 2033 08:12:61 GMT",
        "Tue, 31 Feb 2033 08:12:31 GMT",
        "Tue, 15 Foo 2033 08:12:31 GMT",
        "Tue, 15 Nov 0000 08:12:31 GMT",
        "Tue, 15 Nov 2033 08:12:31 GMT; q",
    ],
)
def test_what_is_no_date_tells_nothing(date: str) -> None:
    assert date_of(head(date)) is None


def test_neither_does_an_answer_without_one_or_one_that_is_not_stripes() -> None:
    assert date_of(b"HTTP/1.1 200 OK" + OF_STRIPE) is None
    assert date_of(head(more=b"")) is None
    assert date_of(head(more=b"\r\nX-Request-Id: req_1")) is None
    assert date_of(head(more=b"\r\nRequest-Id: 7f3a")) is None


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Our own two clocks."""
    ours = SimpleNamespace(wall=5000.0, up=100.0)
    clocks = SimpleNamespace(time=lambda: ours.wall, monotonic=lambda: ours.up)
    monkeypatch.setattr(server_clock, "time", clocks)
    return ours


def test_one_answer_a_second_is_listened_to(ours: SimpleNamespace) -> None:
    clock = ServerClock()
    assert clock.listen_at < ours.up
    clock.hear(head(), sent_at=ours.wall, monotonic=ours.up)
    assert clock.listen_at == ours.up + 1.0


def test_it_goes_on_between_two_answers(ours: SimpleNamespace) -> None:
    clock = ServerClock()
    clock.hear(head(), sent_at=ours.wall, monotonic=ours.up)
    first = clock.time()
    ours.up, ours.wall = ours.up + 60, ours.wall + 60
    second = clock.time()
    assert first is not None
    assert second is not None
    assert (first.now, second.now) == (AT, AT + 60)
    assert first.heard_at == second.heard_at


@pytest.mark.parametrize("took_s", [31.0, 86_400.0, -1.0])
def test_an_answer_that_was_long_under_way_tells_nothing(ours: SimpleNamespace, took_s: float) -> None:
    """As one that lay in the socket of a machine that slept."""
    clock = ServerClock()
    clock.hear(head(), sent_at=ours.wall - took_s, monotonic=ours.up)
    assert clock.time() is None


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_once_our_clock_was_set_what_was_heard_before_tells_nothing(
    ours: SimpleNamespace, step_s: float
) -> None:
    clock = ServerClock()
    clock.hear(head(), sent_at=ours.wall, monotonic=ours.up)
    ours.wall += step_s
    assert clock.time() is None


def test_real_clocks_agree_with_a_server_of_this_machine(server: Any, sender: StripeSender, raw: Raw) -> None:
    now = formatdate(time.time(), usegmt=True)
    server.script = [raw.says(raw.answer(b"{}", 200, f"Date: {now}", "Request-Id: req_1"))]
    sender.send([raw.meter_event()])
    told = sender.server_time()
    assert told is not None
    assert told.now == pytest.approx(time.time(), abs=10)
