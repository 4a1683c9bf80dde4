"""Services and workers on one PostgreSQL, and `kill -9` of any of them, the server too, or a standby that was
behind in its place: all that was acknowledged is billed once, or stands in the ledger with a reason."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_metering import Metering, Settings, billing
from llm_metering.ledger.outbox import waiting_in
from llm_metering.ledger.postgres import PostgresBooks, migrate
from tests.e2e.test_external_delivery import Play, kill
from tests.ledger.postgres.cluster import Cluster, needed

pytestmark = pytest.mark.once

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
        self.lanes = tmp_path / "lanes"

    def env(self, **more: str) -> dict[str, str]:
        given = {"LLM_METERING_LANE_FOLDER": str(self.lanes), "LLM_METERING_FORWARD_EVERY_S": "0.1"}
        return super().env(**{**given, **more})

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

    def forward_the_rest(self) -> None:
        """Another process comes to this host, and forwards what killed ones left."""
        settings = Settings(lane_folder=str(self.lanes), deliver="external", forward_every_s=0.1)
        with Metering(ledger=self.folder, settings=settings):
            deadline = time.monotonic() + 60
            while (waiting := waiting_in(self.lanes)).records or waiting.streams:
                assert time.monotonic() < deadline, f"seed {SEED}: {waiting}"
                time.sleep(0.1)

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
    fleet.forward_the_rest()
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


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_standby_that_is_behind_takes_over_and_nothing_is_lost_or_billed_twice(
    fleet: Fleet, sandbox: Any
) -> None:
    pods = [fleet.service() for _ in range(2)]
    workers = [fleet.worker() for _ in range(2)]
    fleet.wait_for(20)
    standby = fleet.cluster.base_backup()
    billed = sum(row.value for row in sandbox.books())
    deadline = time.monotonic() + 60
    while sum(row.value for row in sandbox.books()) < billed + 50:  # sent, and about to be forgotten
        assert time.monotonic() < deadline
        time.sleep(0.1)
    fleet.cluster.fail_over(standby)
    then = len(fleet.acknowledged())
    deadline = time.monotonic() + 60
    while len(so_far := fleet.acknowledged()) < then + 100:
        assert time.monotonic() < deadline, "services go on"
        time.sleep(0.1)
    while not so_far <= set(fleet.ids()):
        assert time.monotonic() < deadline, "what was lost is offered again"
        time.sleep(0.1)
    for process in pods + workers:
        kill(process)
    fleet.forward_the_rest()
    fleet.let_leases_run_out()
    assert fleet.worker("--once").wait(120) == 0
    there = fleet.ids()
    assert fleet.acknowledged() <= set(there)
    status, billed = fleet.books.status(now=time.time()), sum(row.value for row in sandbox.books())
    assert status.conserved
    assert status.held_records > 0, "what was sent and forgotten is not sent again"
    assert set(status.events) <= {"ACCEPTED", "IN_DOUBT"}
    doubted = sum(b.in_doubt for b in fleet.books.balances())
    assert billed <= len(there)
    assert len(there) - billed <= status.held_records + doubted


def test_deliver_once_waits_for_what_a_killed_worker_holds_and_says_what_is_left(
    fleet: Fleet, sandbox: Any
) -> None:
    service, worker = fleet.service(), fleet.worker()
    fleet.wait_for(1)
    kill(worker)
    some = fleet.books.status(now=time.time()).usage_records
    deadline = time.monotonic() + 60
    while fleet.books.status(now=time.time()).usage_records < some + 20:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kill(service)
    fleet.forward_the_rest()
    assert fleet.books.unfrozen(time.time()) >= 20

    def once(timeout_s: int) -> subprocess.Popen[str]:
        words = [
            sys.executable,
            "-m",
            "llm_metering",
            "deliver",
            "--once",
            "--timeout",
            str(timeout_s),
            "--json",
        ]
        env = fleet.env(STRIPE_API_KEY=fleet.key, STRIPE_API_BASE=fleet.url)
        return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)

    hasty = once(2)
    said = json.loads(hasty.communicate(timeout=60)[0])
    assert hasty.returncode == 1
    assert said["left"] >= said["held_by_others"] > 0, "not 0 left, as if all were billed"
    patient = once(90)
    deadline = time.monotonic() + 30
    while not any(w.delivers for w in fleet.books.workers() if w.pid == patient.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    fleet.let_leases_run_out()
    said = json.loads(patient.communicate(timeout=120)[0])
    assert (patient.returncode, said["left"], said["held_by_others"]) == (0, 0, 0)
    assert sum(row.value for row in sandbox.books()) == len(fleet.ids())
