"""One worker is told to slow down, and all who send for the account do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llm_metering import billing
from llm_metering.flusher import Flusher
from llm_metering.ledger import Writer
from llm_metering.ledger.postgres import PostgresLedger
from llm_metering.sandbox import running_sandbox
from llm_metering.senders.stripe_v1 import StripeSender
from llm_metering.settings import Settings
from tests.ledger.conftest import T0, Heard, entry, line, lines_of


def test_what_one_was_told_all_read_with_their_next_claim(hire: Any) -> None:
    told, other = hire(), hire()
    for ledger in (told, other, told, other):
        ledger.maintain(now=T0)
        ledger.claim(now=T0, limit=1)
    assert (told.pace().per_s, told.pace().share) == (math.inf, 0.5)
    told.slow_down(40, wait_s=2, now=T0)
    other.claim(now=T0 + 1, limit=1)
    pace = other.pace()
    assert (pace.per_s, pace.cut_at, pace.not_before, pace.share) == (40, T0, T0 + 2, 0.5)


def test_refusals_of_several_within_a_second_count_once(hire: Any) -> None:
    first, second = hire(), hire()
    first.slow_down(40, wait_s=0, now=T0)
    second.slow_down(20, wait_s=9, now=T0 + 0.5)
    first.claim(now=T0 + 1, limit=1)
    assert (first.pace().per_s, first.pace().not_before) == (40, T0 + 9.5)
    second.slow_down(10, wait_s=0, now=T0 + 2)
    first.claim(now=T0 + 2, limit=1)
    assert (first.pace().per_s, first.pace().cut_at, first.pace().not_before) == (10, T0 + 2, T0 + 9.5)


def test_a_cut_keeps_its_age_when_the_clock_goes_back(hire: Any) -> None:
    ledger = hire()
    ledger.slow_down(40, wait_s=3, now=T0)
    ledger.maintain(now=T0 - 1000)
    ledger.claim(now=T0 - 1000, limit=1)
    assert (ledger.pace().cut_at, ledger.pace().not_before) == (T0 - 1000, T0 - 997)


class Fleet:
    """Real workers, each with a thread, a line to the server and connections to Stripe of its own."""

    def __init__(self, place: Any, sandbox: Any, size: int) -> None:
        client = sandbox.client()
        billing.apply(billing.PayAsYouGo(), client)
        self.customers = [client.v1.customers.create({"name": f"c{i}"}).id for i in range(20)]
        self.heard = [Heard() for _ in range(size)]
        self.writers, self.flushers, self.senders = [], [], []
        for heard in self.heard:
            ledger = PostgresLedger(place.url, schema=place.schema)
            writer = Writer(ledger, lines_of=lines_of, telemetry=heard)
            writer.start()
            sender = StripeSender(sandbox.api_key, api_base=sandbox.url)
            self.senders.append(sender)
            self.writers.append(writer)
            self.flushers.append(Flusher(writer, sender, Settings(flush_every_s=0.2, bucket_s=1), heard))

    def use(self, events: int) -> int:
        now = time.time()
        group = [
            entry(f"{c}-{e}", line(1, event_name="hypernian_tokens"), customer=c, used_at=now - 2 * e - 60)
            for c in self.customers
            for e in range(events)
        ]
        return self.writers[0].run(lambda ledger: ledger.commit(group, [], now=now))

    def share_out(self) -> None:
        """Until each holds a share."""
        for _ in range(3):
            for writer in self.writers:
                writer.run(lambda ledger: ledger.maintain(now=time.time()))

    def start(self) -> None:
        for flusher in self.flushers:
            flusher.start()

    def stop(self) -> None:
        for flusher in self.flushers:
            flusher.stop()
        for writer in self.writers:
            writer.stop()
        for sender in self.senders:
            sender.close()

    def count(self, name: str) -> int:
        return sum(heard.counts.get(f"delivery.{name}", 0) for heard in self.heard)

    def rates(self) -> list[float]:
        return [flusher._delivery.rate.per_s(time.monotonic()) for flusher in self.flushers]


@pytest.fixture
def fleet(place: Any) -> Iterator[Any]:
    with running_sandbox() as sandbox:
        made = Fleet(place, sandbox, 3)
        try:
            yield made, sandbox
        finally:
            made.stop()


def until(what: Callable[[], object], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_refusal_slows_all_workers_and_their_rates_add_up_to_half_of_what_was(fleet: Any) -> None:
    workers, sandbox = fleet
    recorded = workers.use(20)
    workers.share_out()
    sandbox.fault("429", path="/v1/billing/meter_events", count=1, after=100)
    workers.start()
    until(lambda: workers.count("throttled"))
    until(lambda: math.inf not in workers.rates())
    assert workers.count("throttled") == 1, "two of them were never refused"
    shares = sorted(rate / sum(workers.rates()) for rate in workers.rates())
    assert shares == pytest.approx([21 / 64, 21 / 64, 22 / 64], abs=0.03)
    slow = sum(workers.rates())
    until(lambda: sum(workers.rates()) > 1.15 * slow)  # it recovers, for all of them
    until(lambda: workers.count("accepted") == recorded)


def test_after_the_fall_all_workers_together_stay_below_the_limit_of_the_account(fleet: Any) -> None:
    workers, sandbox = fleet
    workers.use(20)
    workers.share_out()
    sandbox.set_switches(rate_limits=True)  # 25 requests a second in test mode
    workers.start()
    seen, ends_at = 0, time.monotonic() + 60
    while not seen and time.monotonic() < ends_at:
        until(lambda: workers.count("throttled") and sum(workers.rates()) < 20)
        time.sleep(1.5)  # what was under way has ended
        seen = accepted_below(25, workers, ends_at)
    assert seen > 0


def accepted_below(per_s: float, workers: Fleet, ends_at: float) -> int:
    """How many events were accepted, and none refused, until the rates, which grow by a tenth a second
    however slow this machine is, came up to the limit again."""
    refused, before, seen = workers.count("throttled"), workers.count("accepted"), 0
    while seen < 15 and time.monotonic() < ends_at:
        now_refused, accepted = workers.count("throttled"), workers.count("accepted") - before
        if sum(workers.rates()) >= per_s:
            break
        assert now_refused == refused, "nothing is refused any more"
        seen = accepted
        time.sleep(0.01)
    return seen
