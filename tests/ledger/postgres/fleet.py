"""Hosts, workers and a Stripe around one PostgreSQL that may go back in time, all on one virtual clock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from llm_metering.ledger import SqliteLedger
from llm_metering.ledger.offers import Offer
from llm_metering.ledger.outbox import Outbox
from llm_metering.ledger.postgres import PostgresLedger
from llm_metering.protocols import Alarm, EventRow, Outcome
from llm_metering.sandbox import Sandbox
from llm_metering.senders.reading import StripeReader
from llm_metering.senders.stripe_v1 import StripeSender
from llm_metering.senders.summaries import Summaries
from llm_metering.settling import Settler
from llm_metering.telemetry import LogTelemetry
from tests.ledger.conftest import T0, entry, line, progress
from tests.ledger.postgres.cluster import Cluster, Place

T = TypeVar("T")
WINDOW_S = 900.0
BUCKET_S = 60


class Host:
    """A service: its lanes, and its way to the ledger."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.folder = folder
        self.lanes = SqliteLedger(folder, forwards=True, adopt_after_s=0)
        self.lanes.open(now=fleet.now)
        self.outbox = Outbox(self.lanes, window_s=WINDOW_S)
        self.ledger = fleet.new_ledger()
        self.again = 0

    def use(self, *ids: str, value: int = 1, at: float | None = None, customer: str | None = None) -> None:
        used_at = self.fleet.now if at is None else at
        who = customer or self.fleet.customer
        made = [entry(i, line(value), used_at=used_at, customer=who) for i in ids]
        self.lanes.commit(made, [], now=self.fleet.now)
        self.fleet.used.update(dict.fromkeys(ids, value))

    def stream(self, id_: str, value: int = 1) -> None:
        made = progress(id_, line(value), used_at=self.fleet.now, customer=self.fleet.customer)
        self.lanes.commit([], [made], now=self.fleet.now)

    def end_stream(self, id_: str, value: int = 1) -> None:
        made = entry(id_, line(value), used_at=self.fleet.now, customer=self.fleet.customer, closes=id_)
        self.lanes.commit([made], [], now=self.fleet.now)
        self.fleet.used[id_] = value

    def offers(self) -> Iterator[Offer]:
        while (offer := self.outbox.next(now=self.fleet.now)) is not None:
            yield offer

    def forward(self) -> None:
        for offer in self.offers():
            answer = self.ledger.take_in(offer, now=self.fleet.now)
            self.again += self.outbox.answered(offer, answer, now=self.fleet.now)
        self.outbox.tidy(now=self.fleet.now)
        self.outbox.save(now=self.fleet.now)

    def die(self) -> None:
        """Without a word; its lanes are there for whoever comes."""
        self.lanes.close()
        self.ledger.vanish()
        self.fleet.hosts.remove(self)


class Fleet:
    def __init__(self, cluster: Cluster, place: Place, tmp_path: Path) -> None:
        self.now = T0
        self.cluster = cluster
        self.place = place
        self.tmp_path = tmp_path
        self.customer = "cus_1"
        self.used: dict[str, int] = {}
        """All that was recorded, by id."""
        self.alarms: list[Alarm] = []
        self.telemetry = LogTelemetry(on_alarm=self.alarms.append, monotonic=lambda: self.now)
        self.ledgers: list[PostgresLedger] = []
        self.hosts: list[Host] = []
        self.worker = self.new_ledger()

    def join(self, sandbox: Sandbox) -> None:
        """Send to a Stripe."""
        client = sandbox.client()
        client.v1.billing.meters.create(
            {"display_name": "T", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}
        )
        self.customer = str(client.v1.customers.create({"name": "c"}).id)
        self.sandbox = sandbox
        self.sender = StripeSender(sandbox.api_key, api_base=sandbox.url, now=lambda: self.now)
        reader = StripeReader(sandbox.api_key, api_base=sandbox.url, per_s=10_000, sleep=lambda _: None)
        self.settler = Settler(
            self,
            lambda: Summaries(reader),
            self.telemetry,
            every_s=900,
            now=lambda: self.now,
            monotonic=lambda: self.now,
        )

    def new_ledger(self, **more: Any) -> PostgresLedger:
        given = {"schema": self.place.schema, "clock": "caller", "random": lambda: 0.0, **more}
        ledger = PostgresLedger(self.place.url, **given)
        ledger.open(now=self.now)
        self.ledgers.append(ledger)
        return ledger

    def host(self, name: str = "host") -> Host:
        made = Host(self, self.tmp_path / name)
        self.hosts.append(made)
        return made

    def run(self, function: Callable[[Any], T]) -> T:
        return function(self.worker)

    def work(self, send: Callable[[Any], Outcome] | None = None, *, freeze: bool = True) -> None:
        """A round of the worker: time passes, closed buckets are frozen, what is due is sent."""
        worker = self.worker
        worker.maintain(now=self.now)
        if freeze:
            worker.freeze(now=self.now, bucket_s=BUCKET_S)
        while claims := worker.claim(now=self.now, limit=50):
            sent = [self.sender.send([c.event])[0] if send is None else send(c) for c in claims]
            worker.finish_many(list(zip(claims, sent, strict=True)), now=self.now)
        self.alarms += worker.take_alarms()

    def rounds(self, *after_s: float) -> None:
        """Of the worker and of the oracle, each so many seconds after the one before."""
        for seconds in after_s:
            self.now += seconds
            for host in self.hosts:
                host.forward()
            self.work()
            self.settler.step()

    def in_ledger(self) -> list[str]:
        return [i for (i,) in self.place.rows("SELECT id FROM usage ORDER BY id")]

    def books(self) -> Decimal:
        self.sandbox.settle()
        return sum((row.value for row in self.sandbox.books()), Decimal(0))

    def states(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for row in self.events():
            found[row.state] = found.get(row.state, 0) + int(row.event.value)
        return found

    def events(self) -> list[EventRow]:
        return self.worker.events(limit=10_000)

    def names(self) -> list[str]:
        return [alarm.name for alarm in self.alarms]

    def close(self) -> None:
        for host in self.hosts:
            host.lanes.close()
        for ledger in self.ledgers:
            with contextlib.suppress(Exception):
                ledger.vanish()
