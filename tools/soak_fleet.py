"""Minutes of trouble for a fleet, and then the audit: `python tools/soak.py --fleet --minutes 10`.

Six services record into lanes on two hosts, three workers deliver, one PostgreSQL is between them and a
sandbox behind. Services and workers are killed with `kill -9` at random; PostgreSQL is killed twice, and once
a standby that was behind takes its place, after more was recorded and sent. In the end everything is well
again; the oracle reads the sandbox's sums on a clock that runs hours ahead, and what it settles is delivered.
Exit 1 unless everything that was acknowledged is in the ledger once, Stripe's books hold no more than that,
and what they lack is in doubt.
"""

# ruff: noqa: S101, S311  (a test in all but name)
from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llm_metering import Metering, Settings, billing
from llm_metering.ledger.outbox import waiting_in
from llm_metering.ledger.postgres import PostgresBooks, PostgresLedger, marks
from llm_metering.ledger.states import HORIZON_S
from llm_metering.sandbox import Sandbox, running_sandbox
from llm_metering.senders.reading import StripeReader
from llm_metering.senders.summaries import Summaries
from llm_metering.settling import LAG_S, SETTLE_S, Settler

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

PODS, WORKERS, HOSTS = 6, 3, 2
_DONE = ("ACCEPTED", "SETTLED", "CLOSED")


class FleetSoak:
    def __init__(self, folder: Path, sandbox: Sandbox, cluster: Any, seed: int) -> None:
        from tests.e2e.test_fleet import Fleet

        client = sandbox.client()
        billing.apply(billing.PayAsYouGo(), client)
        customers = [billing.create_customer(client, name) for name in ("Ada", "Ben", "Cleo")]
        self.folder, self.sandbox, self.cluster = folder, sandbox, cluster
        self.luck = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.fleet = Fleet(cluster, folder, sandbox, customers[0])
        self.customers = customers
        self.url = str(self.fleet.folder)
        self.books = PostgresBooks(self.url)
        self.pods: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []

    def pod(self) -> subprocess.Popen[bytes]:
        self.fleet.customer = self.luck.choice(self.customers)
        self.fleet.lanes = self.folder / f"host{self.luck.randrange(HOSTS)}"
        return self.fleet.service()

    def make_trouble(self, minutes: float) -> None:
        began = time.monotonic()
        self.pods = [self.pod() for _ in range(PODS)]
        self.workers = [self.fleet.worker() for _ in range(WORKERS)]
        events = [(0.25, self.restart), (0.5, self.back_up), (0.55, self.fail_over), (0.8, self.restart)]
        while (passed := (time.monotonic() - began) / (minutes * 60)) < 1:
            if events and passed >= events[0][0]:
                events.pop(0)[1]()
            self.kill_one()
            time.sleep(self.luck.uniform(1, 4))

    def kill_one(self) -> None:
        some, make = self.luck.choice(((self.pods, self.pod), (self.workers, self.fleet.worker)))
        victim = some.pop(self.luck.randrange(len(some)))
        self.done["kill -9 of a service" if some is self.pods else "kill -9 of a worker"] += 1
        victim.kill()
        victim.wait()
        some.append(make())

    def restart(self) -> None:
        self.done["kill -9 of PostgreSQL"] += 1
        self.cluster.kill()
        time.sleep(self.luck.uniform(0, 3))
        self.cluster.start()

    def back_up(self) -> None:
        self.standby = self.cluster.base_backup()
        self.at_backup = self.billed()

    def fail_over(self) -> None:
        self.done["a standby that was behind took over"] += 1
        until = time.monotonic() + 60
        while self.billed() <= self.at_backup and time.monotonic() < until:
            self.fleet.let_leases_run_out()  # of those that were killed: what follows is to be sent now
            time.sleep(0.5)
        self.forgotten = self.billed() - self.at_backup
        self.cluster.fail_over(self.standby)

    def billed(self) -> Decimal:
        self.sandbox.settle()
        return sum((row.value for row in self.sandbox.books()), Decimal(0))

    def settle(self) -> None:
        """All is well again: what killed services left is forwarded, then doubts are settled."""
        for process in self.pods + self.workers:
            process.kill()
            process.wait()
        for n in range(HOSTS):
            self.fleet.lanes = self.folder / f"host{n}"
            self.fleet.forward_the_rest()
        self.fleet.let_leases_run_out()
        age = time.time() - self._marked_at()
        time.sleep(max(marks.GATHER_S + 2 - age, 0))
        self.deliver()
        self.ask_stripe()
        self.deliver()

    def deliver(self) -> None:
        self.fleet.let_leases_run_out()
        self.fleet.worker("--once", "--timeout", "60").wait(120)

    def ask_stripe(self) -> None:
        """The oracle, on a clock that runs ahead: a first reading, a second one, and what they settle."""
        ahead = [0.0]
        ledger = PostgresLedger(self.url)
        reader = StripeReader(self.sandbox.api_key, api_base=self.sandbox.url, per_s=10_000)
        settings = Settings(encodings=())
        with Metering(ledger=ledger, settings=settings) as metering:
            settler = Settler(
                metering._writer,  # noqa: SLF001
                lambda: Summaries(reader),
                metering.telemetry,
                every_s=900,
                now=lambda: time.time() + ahead[0],
                monotonic=lambda: time.monotonic() + ahead[0],
            )
            for after in (SETTLE_S, SETTLE_S, LAG_S, SETTLE_S, SETTLE_S, SETTLE_S):
                ahead[0] += after + 1
                assert ahead[0] < HORIZON_S
                settler.step()

    def _marked_at(self) -> float:
        import json

        text = self.books.meta("marks")
        return float(json.loads(text)[-1]["at"]) if text else 0.0

    def report(self) -> list[str]:
        there = self.fleet.ids()
        promised = self.fleet.acknowledged()
        status, billed = self.books.status(now=time.time()), self.billed()
        doubted = sum((b.in_doubt for b in self.books.balances()), Decimal(0))
        waiting = [waiting_in(self.folder / f"host{n}") for n in range(HOSTS)]
        rows: list[tuple[str, Any]] = [
            ("acknowledged", len(promised)),
            ("in the ledger", len(there)),
            ("in Stripe's books", billed),
            ("sent, and forgotten by the standby", self.forgotten),
            ("in doubt, for a person", doubted),
            ("held", status.held_records),
            ("waiting on hosts", sum(w.records for w in waiting)),
            ("meter events", dict(status.events)),
            ("conserved", status.conserved),
            *sorted(self.done.items()),
        ]
        for name, value in rows:
            print(f"{name:36} {value}")
        problems = []
        if lost := promised - set(there):
            problems.append(f"{len(lost)} that were acknowledged are lost, such as {sorted(lost)[:3]}")
        if len(there) != len(set(there)):
            problems.append("records are there twice")
        if billed > len(there):
            problems.append(f"{billed - len(there)} are billed twice")
        if len(there) - billed > doubted:
            problems.append(f"{len(there) - billed} are not billed, and only {doubted} are in doubt")
        if unfinished := {s: n for s, n in status.events.items() if s not in (*_DONE, "IN_DOUBT")}:
            problems.append(f"not everything was delivered: {unfinished}")
        if not status.conserved:
            problems.append("the books are not conserved")
        if self.forgotten <= 0:
            problems.append("nothing was forgotten: the fail-over proved nothing")
        return problems


def main(minutes: float, seed: int) -> int:
    from tests.ledger.postgres.cluster import Cluster, needed

    with running_sandbox() as sandbox, TemporaryDirectory() as folder:
        sandbox.set_switches(aggregation_delay_s=0)
        cluster = Cluster(needed())
        soak = None
        try:
            cluster.start()
            soak = FleetSoak(Path(folder), sandbox, cluster, seed)
            soak.make_trouble(minutes)
            soak.settle()
            problems = soak.report()
        finally:
            for process in soak.fleet.running if soak is not None else ():
                if process.poll() is None:
                    process.kill()
            cluster.remove()
    for problem in problems:
        print(f"WRONG: {problem}")
    print("wrong" if problems else "nothing lost, nothing twice, and what cannot be known is in doubt")
    return 1 if problems else 0
