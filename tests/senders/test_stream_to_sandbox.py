"""The whole way from a committed record to Stripe's books through the event stream, with faults on the way.

Time runs twenty times as fast here, for the ledger, the flusher and the sandbox alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from llm_metering.flusher import Flusher
from llm_metering.ledger.sqlite import SqliteLedger
from llm_metering.ledger.writer import Writer
from llm_metering.meters import checked_meters, lines_of
from llm_metering.protocols import Alarm, Sender
from llm_metering.sandbox import Sandbox
from llm_metering.senders.stripe_stream import StripeStream
from llm_metering.senders.stripe_v1 import StripeSender
from llm_metering.settings import Settings
from llm_metering.telemetry import LogTelemetry
from llm_metering.usage import Usage, UsageRecord
from tests.senders.conftest import SPEED, Clock, FastThreads

STREAM = "/v2/billing/meter_event_stream"
SESSION = "/v2/billing/meter_event_session"
ACCOUNT = "/v1/account"


class Service:
    """What a process has: a ledger in a folder, a writer, a flusher, a stream."""

    def __init__(self, folder: Path, sandbox: Sandbox, clock: Clock) -> None:
        self.alarms: list[Alarm] = []
        self.clock = clock
        self.url = sandbox.url
        self.telemetry = LogTelemetry(on_alarm=self.alarms.append)
        self.writer = Writer(
            SqliteLedger(folder),
            lines_of=partial(lines_of, meters=checked_meters(None)),
            telemetry=self.telemetry,
            now=clock,
        )
        self.writer.start()
        client = sandbox.client()
        self.customers = [client.v1.customers.create({"name": f"c{i}"}).id for i in range(104)]
        self.send_through(
            StripeStream(
                "sk_test_sandbox",
                api_base=sandbox.url,
                meter_events_base=sandbox.url,
                timeout_s=0.4,
                now=clock,
                monotonic=clock,
            )
        )

    def send_through(self, sender: Sender, **settings: Any) -> None:
        self.sender = sender
        self.flusher = Flusher(
            self.writer,
            sender,
            Settings(flush_every_s=10, **settings),
            self.telemetry,
            now=self.clock,
            monotonic=self.clock,
            sending=FastThreads,
        )

    def use(self, n: int = 300) -> None:
        for i in range(n):
            record = UsageRecord(
                id=os.urandom(8).hex(),
                usage=Usage(input=100 + i),
                used_at=self.clock() - 120,
                customer=self.customers[i % len(self.customers)],
                model=f"m{i % 2}",
            )
            self.writer.put(record)

    def deliver(self, within_s: float = 20) -> None:
        """Until nothing is left; `within_s` in real seconds."""
        self.writer.flush()
        deadline = time.monotonic() + within_s
        while left := self.flusher.flush(SPEED):
            assert time.monotonic() < deadline, f"{left} left, {self.telemetry.snapshot()}"

    def states(self) -> dict[str, int]:
        return dict(self.writer.run(lambda ledger: ledger.status(now=self.clock()).events))

    def recorded(self) -> dict[str | None, Decimal]:
        balances = self.writer.run(lambda ledger: ledger.balances())
        assert all(b.conserved for b in balances)
        found: dict[str | None, Decimal] = {}
        for b in balances:
            found[b.customer] = found.get(b.customer, Decimal(0)) + b.recorded
        return found

    def names(self) -> set[str]:
        return {a.name for a in self.alarms}

    def close(self) -> None:
        self.flusher.stop(0)
        self.writer.stop()
        self.sender.close()


def books(sandbox: Sandbox) -> dict[str | None, Decimal]:
    """Stripe's side, each event once."""
    sandbox.settle()
    found: dict[str | None, Decimal] = {}
    for row in sandbox.books():
        if row.value:
            found[row.customer] = found.get(row.customer, Decimal(0)) + row.value
    return found


@pytest.fixture
def service(tmp_path: Path, sandbox: Sandbox, clock: Clock) -> Iterator[Service]:
    service = Service(tmp_path / "ledger", sandbox, clock)
    yield service
    service.close()


def test_the_books_are_equal_and_requests_are_few(service: Service, sandbox: Sandbox) -> None:
    service.use()
    service.deliver()
    assert books(sandbox) == service.recorded() != {}
    assert service.names() == set()
    assert set(service.states()) == {"ACCEPTED"}
    assert sum(row.duplicates for row in sandbox.books()) == 0


Fault = Callable[[Sandbox], Any]
FAULTS: dict[str, Fault] = {
    "500 before": lambda s: s.fault("500_before", path=STREAM, count=2),
    "500 after": lambda s: s.fault("500_after", path=STREAM, count=2),
    "accept then hang": lambda s: s.fault("accept_then_hang", path=STREAM, count=2),
    "accept then reset": lambda s: s.fault("accept_then_reset", path=STREAM, count=2),
    "429": lambda s: s.fault("429", path=STREAM, count=3),
    "429 with Retry-After": lambda s: s.fault("429", path=STREAM, headers={"Retry-After": "7"}),
    "409": lambda s: s.fault("409", path=STREAM, count=3),
    "401": lambda s: s.fault("401", path=STREAM, count=1),
    "403": lambda s: s.fault("403", path=STREAM, count=2),
    "truncated": lambda s: s.fault("truncated", path=STREAM, count=2),
    "html 200": lambda s: s.fault("html", path=STREAM, count=2),
    "html 502": lambda s: s.fault("html", path=STREAM, count=2, status=502),
    "too slow": lambda s: s.fault("slow", path=STREAM, count=2, seconds=0.6),
    "refuse": lambda s: s.refuse(0.5),
    "no session: 500": lambda s: s.fault("500_before", path=SESSION, count=3),
    "no session: hang": lambda s: s.fault("accept_then_hang", path=SESSION, count=1),
    "no session: 429": lambda s: s.fault("429", path=SESSION, count=3),
    "no session: 401": lambda s: s.fault("401", path=SESSION, count=1),
}
PAUSING = ("403", "no session: 401")


@pytest.mark.parametrize("fault", FAULTS)
def test_the_books_are_equal_after(service: Service, sandbox: Sandbox, fault: str) -> None:
    """An event that was sent twice under one identifier counts once, as Stripe finds out by itself."""
    FAULTS[fault](sandbox)
    service.use()
    service.deliver()
    assert books(sandbox) == service.recorded() != {}
    assert set(service.states()) == {"ACCEPTED"}
    assert not sandbox.app.faults.waiting(), "not every fault was met"
    assert service.names() <= ({"delivery.paused", "delivery.resumed"} if fault in PAUSING else set())


@pytest.mark.parametrize("kind", ["accept_then_reset", "500_after"])
def test_a_request_without_an_answer_leaves_its_hundred_in_doubt_and_all_are_sent_again(
    service: Service, sandbox: Sandbox, kind: Any
) -> None:
    service.send_through(service.sender, max_in_flight=1)  # else the four others may be the first to arrive
    sandbox.fault(kind, path=STREAM)
    service.use(104)
    service.deliver()
    assert books(sandbox) == service.recorded()
    twice = [r for r in service.writer.run(lambda ledger: ledger.events(limit=1000)) if r.attempts > 1]
    assert len(twice) == 100
    assert {r.state for r in twice} == {"ACCEPTED"}, "taken again, and counted once"
    assert sum(row.duplicates for row in sandbox.books()) == 100


def test_what_is_in_doubt_from_the_stream_is_settled_by_v1_and_the_other_way_round(
    service: Service, sandbox: Sandbox, clock: Clock
) -> None:
    v1 = StripeSender("sk_test_sandbox", api_base=sandbox.url, timeout_s=0.4, now=clock)
    stream = service.sender
    for first, second, path in ((stream, v1, STREAM), (v1, stream, "/v1/billing/meter_events")):
        sandbox.fault("accept_then_reset", path=path)
        service.send_through(first)
        service.use(100)
        service.writer.flush()
        service.flusher.start()
        while "AMBIGUOUS" not in service.states():
            time.sleep(0.01)
        service.flusher.stop()
        service.send_through(second)
        service.deliver()
        assert books(sandbox) == service.recorded()
        assert set(service.states()) == {"ACCEPTED"}
        service.flusher.stop()
    v1.close()


def test_sessions_are_renewed_while_traffic_goes_on(service: Service, sandbox: Sandbox, clock: Clock) -> None:
    sessions = []
    for _ in range(4):
        clock.base += 11 * 60  # for the sandbox too
        service.use(20)
        service.deliver()
        sessions.append(service.sender._session)  # type: ignore[attr-defined]
    assert len({id(session) for session in sessions}) == 4
    assert books(sandbox) == service.recorded()
    assert service.names() == set()


def test_an_expired_session_costs_nothing(service: Service, sandbox: Sandbox, clock: Clock) -> None:
    """A machine that was suspended: its monotonic clock stood still, Stripe's did not."""
    service.use(104)
    service.deliver()
    session = service.sender._session  # type: ignore[attr-defined]
    clock.base += 3600
    session.renew_at = session.good_until = float("inf")
    service.use(104)
    service.deliver()
    assert service.sender._session is not session  # type: ignore[attr-defined]
    assert books(sandbox) == service.recorded()
    assert service.names() == set()


def test_a_bad_event_inside_a_hundred_is_reported_later_and_costs_no_other(
    service: Service, sandbox: Sandbox
) -> None:
    """The stream takes what it cannot count: ACCEPTED, and unsettled until the summaries are asked."""
    service.customers[3] = "cus_gone"
    service.use(104)
    service.deliver()
    expected = service.recorded()
    lost = expected.pop("cus_gone")
    assert books(sandbox) == expected
    assert lost > 0
    assert set(service.states()) == {"ACCEPTED"}
    assert sum(row.refused for row in sandbox.books()) == 1
