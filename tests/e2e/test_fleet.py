"""Services and workers on one PostgreSQL, and `kill -9` of any of them, the server too: all that was
acknowledged is billed once."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_metering import billing
from llm_metering.ledger.postgres import PostgresBooks, migrate
from tests.e2e.test_external_delivery import Play, kill
from tests.ledger.postgres.cluster import Cluster, needed

SEED = int(os.environ.get("LLM_METERING_SEED") or time.time_ns() % 1_000_000)
SCHEMA = "llm_metering"


class Fleet(Play):
    """As one host, with a database for a folder."""

    def __init__(self, cluster: Cluster, tmp_path: Path, sandbox: Any, customer: str) -> None:
        super().__init__(tmp_path / "ledger", sandbox.url, sandbox.api_key, customer)
        self.cluster = cluster
        self.folder: Any = cluster.new_database()
        migrate(self.folder)
        self.books = PostgresBooks(self.folder)

    def wait_for(self, accepted: int, within: float = 30) -> None:
        deadline = time.monotonic() + within
        while sum(b.accepted for b in self.books.balances()) < accepted:
            assert time.monotonic() < deadline, f"seed {SEED}: {self.books.status(now=time.time())}"
            time.sleep(0.1)

    def let_leases_run_out(self) -> None:
        """As if a minute had passed since those who held them were killed."""
        database = self.folder.partition("?")[0].rpartition("/")[2]
        for query in (
            "partition SET lease_until = 0",
            "worker SET delivers_until = 0",
            "meter_event SET lease_until = 0 WHERE state = 'SENDING'",
        ):
            self.cluster.execute(f"UPDATE {SCHEMA}.{query}", database=database)

    def ids(self) -> list[str]:
        database = self.folder.partition("?")[0].rpartition("/")[2]
        return [i for (i,) in self.cluster.execute(f"SELECT id FROM {SCHEMA}.usage", database=database)]


@pytest.fixture
def fleet(sandbox: Any, tmp_path: Path) -> Iterator[Fleet]:
    client = sandbox.client()
    billing.apply(billing.PayAsYouGo(), client)
    customer = billing.create_customer(client, "Ada")
    cluster = Cluster(needed())
    made = None
    try:
        cluster.start()
        made = Fleet(cluster, tmp_path, sandbox, customer)
        yield made
    finally:
        for process in made.running if made else ():
            if process.poll() is None:
                kill(process)
        cluster.remove()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_whoever_is_killed_all_that_was_acknowledged_is_billed_once(fleet: Fleet, sandbox: Any) -> None:
    luck = random.Random(SEED)
    pods = [fleet.service() for _ in range(2)]
    workers = [fleet.worker() for _ in range(2)]
    fleet.wait_for(20)
    for turn in range(6):
        time.sleep(luck.uniform(0.3, 1.2))
        if turn in (2, 4):
            fleet.cluster.kill()
            fleet.cluster.start()
            continue
        some: list[subprocess.Popen[bytes]] = luck.choice((pods, workers))
        kill(some.pop(0))
        some.append(fleet.service() if some is pods else fleet.worker())
    so_far = int(sum(b.accepted for b in fleet.books.balances()))
    fleet.let_leases_run_out()
    fleet.wait_for(so_far + 20)  # it goes on after all of that
    for process in pods + workers:
        kill(process)
    fleet.let_leases_run_out()
    last = fleet.worker("--once")
    assert last.wait(120) == 0, f"seed {SEED}: {fleet.books.status(now=time.time())}"
    there = fleet.ids()
    assert len(there) == len(set(there))
    assert fleet.acknowledged() <= set(there), f"seed {SEED}"
    status = fleet.books.status(now=time.time())
    assert set(status.events) == {"ACCEPTED"}
    assert status.conserved
    assert sum(row.value for row in sandbox.books()) == len(there), f"seed {SEED}"
