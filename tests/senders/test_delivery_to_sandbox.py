"""The whole way from a committed record to Stripe's books, over real sockets, with faults on the way.

Time runs twenty times as fast here, for the ledger, the flusher and the sandbox alike.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
from llm_metering.flusher import Flusher
from llm_metering.ledger.sqlite import SqliteLedger
from llm_metering.ledger.writer import Writer
from llm_metering.meters import checked_meters, lines_of
from llm_metering.protocols import Alarm
from llm_metering.sandbox import Sandbox
from llm_metering.senders.stripe_v1 import StripeSender
from llm_metering.settings import Settings
from llm_metering.telemetry import LogTelemetry
from llm_metering.usage import Usage, UsageRecord
from tests.senders.conftest import SPEED, Clock, FastThreads

METERS = checked_meters(None)
EVENTS = "/v1/billing/meter_events"
Books = dict[tuple[str | None, str, tuple[tuple[str, str], ...]], Decimal]


class Service:
    """What a process has: a ledger in a folder, a writer, a flusher, a sender."""

    def __init__(self, folder: Path, sandbox: Sandbox, clock: Clock, timeout_s: float = 0.4) -> None:
        self.alarms: list[Alarm] = []
        self.clock = clock
        self.sandbox = sandbox
        self.telemetry = LogTelemetry(on_alarm=self.alarms.append)
        self.writer = Writer(
            SqliteLedger(folder),
            lines_of=partial(lines_of, meters=METERS),
            telemetry=self.telemetry,
            now=clock,
        )
        self.writer.start()
        self.sender = StripeSender("sk_test_sandbox", api_base=sandbox.url, timeout_s=timeout_s, now=clock)
        self.flusher = Flusher(
            self.writer,
            self.sender,
            Settings(flush_every_s=10),
            self.telemetry,
            now=clock,
            monotonic=clock,
            sending=FastThreads,
        )
        client = sandbox.client()
        self.customers = [client.v1.customers.create({"name": f"c{i}"}).id for i in range(12)]

    def use(self, n: int = 60) -> None:
        for i in range(n):
            record = UsageRecord(
                id=os.urandom(8).hex(),
                usage=Usage(input=100 + i, output=7),
                used_at=self.clock() - 120,
                customer=self.customers[i % len(self.customers)],
                model=f"m{i % 2}",
            )
            self.writer.put(record)

    def deliver(self, within_s: float = 15) -> None:
        """Until nothing is left; `within_s` in real seconds."""
        self.writer.flush()
        deadline = time.monotonic() + within_s
        while left := self.flusher.flush(SPEED):
            assert time.monotonic() < deadline, f"{left} left, {self.telemetry.snapshot()}"

    def states(self) -> dict[str, int]:
        return dict(self.writer.run(lambda ledger: ledger.status(now=self.clock()).events))

    def recorded(self) -> Books:
        balances = self.writer.run(lambda ledger: ledger.balances())
        assert all(b.conserved for b in balances)
        return {(b.customer, b.event_name, b.dimensions): b.recorded for b in balances}

    def names(self) -> set[str]:
        return {a.name for a in self.alarms}

    def close(self) -> None:
        self.flusher.stop(0)
        self.writer.stop()
        self.sender.close()


def books(sandbox: Sandbox) -> Books:
    """Stripe's side: what stands there, each event once."""
    found: Books = {}
    identifiers: Counter[str] = Counter()
    for row in sandbox.books(identifiers=True):
        dimensions = tuple(sorted(row.dimensions.items()))
        found[row.customer, row.event_name, dimensions] = row.value
        identifiers.update(row.identifiers)
        assert row.refused == row.duplicates == 0
    assert max(identifiers.values(), default=1) == 1
    return found


@pytest.fixture
def service(tmp_path: Path, sandbox: Sandbox, clock: Clock) -> Iterator[Service]:
    service = Service(tmp_path / "ledger", sandbox, clock)
    yield service
    service.close()


def test_the_books_are_equal(service: Service, sandbox: Sandbox) -> None:
    service.use()
    service.deliver()
    assert books(sandbox) == service.recorded() != {}
    assert service.names() == set()


Fault = Callable[[Sandbox], None]
FAULTS: dict[str, Fault] = {
    "500 before": lambda s: s.fault("500_before", path=EVENTS, count=3),
    "500 after": lambda s: s.fault("500_after", path=EVENTS, count=3),
    "accept then hang": lambda s: s.fault("accept_then_hang", path=EVENTS, count=3),
    "accept then reset": lambda s: s.fault("accept_then_reset", path=EVENTS, count=3),
    "429": lambda s: s.fault("429", path=EVENTS, count=5),
    "429 with Retry-After": lambda s: s.fault("429", path=EVENTS, headers={"Retry-After": "7"}),
    "429 lock": lambda s: s.fault("429_lock", path=EVENTS, count=5),
    "409": lambda s: s.fault("409", path=EVENTS, count=5),
    "401": lambda s: s.fault("401", path=EVENTS, count=4),
    "403": lambda s: s.fault("403", path=EVENTS, count=4),
    "truncated": lambda s: s.fault("truncated", path=EVENTS, count=5),
    "html 200": lambda s: s.fault("html", path=EVENTS, count=5),
    "html 404": lambda s: s.fault("html", path=EVENTS, count=4, status=404),
    "html 502": lambda s: s.fault("html", path=EVENTS, count=4, status=502),
    "slow": lambda s: s.fault("slow", path=EVENTS, count=5, seconds=0.1),
    "too slow": lambda s: s.fault("slow", path=EVENTS, count=2, seconds=0.6),
    "refuse": lambda s: s.refuse(0.5),
    "clashes": lambda s: s.set_switches(meter_event_latency_s=0.02),
    "everything fails now and then": lambda s: (
        [
            s.fault(kind, path=EVENTS, rate=0.08, count=4)
            for kind in ("500_before", "500_after", "accept_then_reset", "409", "429", "truncated", "401")
        ]
        and None
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_books_are_equal_after(service: Service, sandbox: Sandbox, fault: str) -> None:
    FAULTS[fault](sandbox)
    service.use()
    service.deliver()
    assert books(sandbox) == service.recorded() != {}
    assert set(service.states()) == {"ACCEPTED"}
    assert not sandbox.app.faults.waiting() or "now and then" in fault, "not every fault was met"
    paused = fault in ("401", "403", "html 404", "everything fails now and then")
    assert service.names() <= ({"delivery.paused", "delivery.resumed"} if paused else set())


def test_a_fault_in_the_middle_with_traffic_going_on(service: Service, sandbox: Sandbox) -> None:
    service.flusher.start()
    for kind in ("500_after", "accept_then_reset", "accept_then_hang", "truncated"):
        sandbox.fault(kind, path=EVENTS, count=2, after=5)  # type: ignore[arg-type]
        service.use()
        time.sleep(0.2)
    service.deliver()
    assert books(sandbox) == service.recorded()


def test_a_bad_key_stops_before_anything_is_sent_and_goes_on_when_it_is_right(
    service: Service, sandbox: Sandbox
) -> None:
    sandbox.fault("401", path="/v1/account", count=3)
    service.use()
    service.writer.flush()
    service.flusher.flush(5)
    assert service.names() == {"delivery.paused"}
    assert books(sandbox) == {}
    assert set(service.states()) == {"PENDING"}
    service.deliver()
    assert books(sandbox) == service.recorded()
    assert service.names() == {"delivery.paused", "delivery.resumed"}


def test_an_unknown_customer_dies_alone_where_stripe_says_so(service: Service, sandbox: Sandbox) -> None:
    sandbox.set_switches(strict_v1=True)
    service.customers[3] = "cus_gone"
    service.use()
    service.deliver()
    dead = sum(v for (customer, *_), v in service.recorded().items() if customer == "cus_gone")
    assert dead > 0
    assert sandbox.books().total(customer="cus_gone") == 0
    assert sum(books(sandbox).values()) == sum(service.recorded().values()) - dead
    assert set(service.states()) == {"ACCEPTED", "DEAD"}
    assert service.names() == {"delivery.dead"}


def test_usage_waits_for_a_meter_that_is_switched_off(service: Service, sandbox: Sandbox) -> None:
    client = sandbox.client()
    (meter,) = client.v1.billing.meters.list().data
    client.v1.billing.meters.deactivate(meter.id)
    service.use()
    service.writer.flush()
    service.flusher.flush(4)
    assert set(service.states()) <= {"PENDING", "SENDING"}
    assert service.names() == {"delivery.no_meter"}
    client.v1.billing.meters.reactivate(meter.id)
    service.deliver(within_s=30)
    assert books(sandbox) == service.recorded()


def test_a_key_of_another_account_sends_nothing(tmp_path: Path, sandbox: Sandbox, clock: Clock) -> None:
    service = Service(tmp_path / "ledger", sandbox, clock)
    service.writer.run(lambda ledger: ledger.bind("acct_other (live)"))
    service.use()
    service.writer.flush()
    service.flusher.flush(5)
    assert books(sandbox) == {}
    assert service.names() == {"delivery.paused"}
    assert "acct_other (live)" in service.alarms[0].message
    service.close()


CHILD = """
import sys, time
from functools import partial
from pathlib import Path
from llm_metering.flusher import Flusher
from llm_metering.ledger.sqlite import SqliteLedger
from llm_metering.ledger.writer import Writer
from llm_metering.meters import checked_meters, lines_of
from llm_metering.senders.stripe_v1 import StripeSender
from llm_metering.settings import Settings
from llm_metering.telemetry import LogTelemetry
from llm_metering.usage import Usage, UsageRecord

folder, url, n = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
telemetry = LogTelemetry()
writer = Writer(SqliteLedger(folder, adopt_after_s=0), telemetry=telemetry,
                lines_of=partial(lines_of, meters=checked_meters(None)))
writer.start()
for i in range(n):
    writer.put(UsageRecord(id=f"r{i}", usage=Usage(input=10 + i), used_at=time.time() - 120,
                           customer=sys.argv[4 + i % (len(sys.argv) - 4)], model="m"))
writer.flush()
flusher = Flusher(writer, StripeSender("sk_test_sandbox", api_base=url), Settings(), telemetry)
left = flusher.flush(20)
flusher.stop()
writer.stop()
sys.exit(1 if left else 0)
"""


@pytest.mark.parametrize(
    "point",
    ["after_claim", "sender_mid_body", "after_response", "after_response:5", "before_finish", "after_finish"],
)
def test_a_process_killed_at_any_point_of_a_send_bills_once(
    tmp_path: Path, sandbox: Sandbox, clock: Clock, point: str
) -> None:
    client = sandbox.client()
    customers = [client.v1.customers.create({"name": f"c{i}"}).id for i in range(12)]
    arguments = [sys.executable, "-c", CHILD, str(tmp_path / "ledger"), sandbox.url, "30", *customers]
    env = {**os.environ, "LLM_METERING_FAILPOINT": point}
    died = subprocess.run(arguments, env=env, timeout=60, check=False, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    again = subprocess.run(arguments, timeout=60, check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    per_customer = {c: Decimal(0) for c in customers}
    for i in range(30):
        per_customer[customers[i % 12]] += 10 + i
    assert {customer: value for (customer, *_), value in books(sandbox).items()} == per_customer


def test_a_thousand_events_with_threads_of_other_work(service: Service, sandbox: Sandbox) -> None:
    """Recording goes on from other threads while events are sent."""
    writing = [threading.Thread(target=service.use, args=(200,)) for _ in range(4)]
    service.flusher.start()
    for thread in writing:
        thread.start()
    for thread in writing:
        thread.join()
    service.deliver()
    assert books(sandbox) == service.recorded()
    assert sum(books(sandbox).values()) == 4 * sum(100 + i + 7 for i in range(200))
