"""One process records, another delivers: `kill -9` of either, over and over, loses and doubles nothing."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from llm_metering import billing
from llm_metering.ledger import LedgerView

pytestmark = pytest.mark.once

SEED = int(os.environ.get("LLM_METERING_SEED") or time.time_ns() % 1_000_000)
ROUNDS = 8
ENOUGH = 500

RECORDS = """
import itertools, os, sys, time
from llm_metering import Metering, Usage, UsageRecord

def say(id_):
    # One write a line: print writes the end of a line by itself where PYTHONUNBUFFERED is set, and lines of
    # two services, or of one that is killed in between and its successor, run into one another.
    os.write(1, f"{id_}\\n".encode())

metering = Metering()
metering.start()
sink = metering._writer
customer = sys.argv[1]
for n in itertools.count():
    now = time.time()
    id_ = f"{os.getpid()}-{n}"
    record = UsageRecord(id=id_, usage=Usage(input=1), used_at=now, customer=customer, model="m")
    if n % 5 == 0:  # a stream that outlives a hand-over or two
        sink.progress(record)
        open_streams = globals().setdefault("open_streams", [])
        open_streams.append((now + 0.7, record))
        while open_streams and open_streams[0][0] < now:
            _, ended = open_streams.pop(0)
            sink.put(ended, closes=ended.id).wait()
            say(ended.id)
        continue
    ticket = sink.put(record)
    ticket.wait()
    assert ticket.error is None, ticket.error
    say(id_)
    time.sleep(0.004)
"""


class Play:
    """A service and a worker on one ledger, started and killed at will."""

    def __init__(self, folder: Path, url: str, key: str, customer: str) -> None:
        self.folder = folder
        self.customer = customer
        self.url, self.key = url, key
        self.said = folder.parent / "acknowledged"
        self.running: list[subprocess.Popen[bytes]] = []

    def env(self, **more: str) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("LLM_METERING_")}
        own.pop("STRIPE_API_KEY", None)
        return {
            **own,
            "LLM_METERING_LEDGER": str(self.folder),
            "LLM_METERING_BUCKET_S": "1",
            "LLM_METERING_FLUSH_EVERY_S": "0.2",
            **more,
        }

    def service(self) -> subprocess.Popen[bytes]:
        with self.said.open("ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-c", RECORDS, self.customer],
                env=self.env(LLM_METERING_DELIVER="external"),
                stdout=said,
            )
        self.running.append(process)
        return process

    def worker(self, *more: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "llm_metering", "deliver", "--ledger", str(self.folder), *more],
            env=self.env(STRIPE_API_KEY=self.key, STRIPE_API_BASE=self.url),
            stdout=subprocess.DEVNULL,
        )
        self.running.append(process)
        return process

    def acknowledged(self) -> set[str]:
        # The last line may have been cut by a kill, and is then no promise.
        whole = self.said.read_text().rpartition("\n")[0]
        return set(whole.split())

    def accepted(self) -> Decimal:
        return sum((b.accepted for b in LedgerView(self.folder).balances()), Decimal(0))


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@pytest.fixture
def play(sandbox, tmp_path) -> Iterator[Play]:
    client = sandbox.client()
    billing.apply(billing.PayAsYouGo(), client)
    customer = billing.create_customer(client, "Ada")
    (tmp_path / "ledger").mkdir(mode=0o700)
    made = Play(tmp_path / "ledger", sandbox.url, sandbox.api_key, customer)
    yield made
    for process in made.running:
        if process.poll() is None:
            kill(process)


def recorded(folder: Path) -> Counter[str]:
    """How often each id is on record, in all lanes."""
    found: Counter[str] = Counter()
    for path in folder.glob("lane-*.db"):
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        found.update(id_ for (id_,) in db.execute("SELECT id FROM usage"))
        db.close()
    return found


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_whichever_is_killed_all_that_was_acknowledged_is_billed_once(play, sandbox, capsys) -> None:
    luck = random.Random(SEED)
    service, worker = play.service(), play.worker()
    rounds, ends_at = 0, time.monotonic() + 150
    while rounds < ROUNDS or len(play.acknowledged()) <= ENOUGH:
        assert time.monotonic() < ends_at, f"seed {SEED}: too little is recorded to prove anything"
        rounds += 1
        time.sleep(luck.uniform(0.3, 2.0))
        if luck.random() < 0.5:
            kill(service)
            service = play.service()
        else:
            kill(worker)
            worker = play.worker()
    deadline = time.monotonic() + 20
    while play.accepted() == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert play.accepted() > 0, "nothing is delivered while the service runs"
    kill(service)
    kill(worker)
    assert play.worker("--once").wait(120) == 0, f"seed {SEED}"
    ids = recorded(play.folder)
    assert max(ids.values()) == 1, f"seed {SEED}: {[i for i, n in ids.items() if n > 1][:5]}"
    promised = play.acknowledged()
    assert promised <= ids.keys(), f"seed {SEED}: lost {sorted(promised - ids.keys())[:5]}"
    assert sum(row.value for row in sandbox.books()) == len(ids), f"seed {SEED}"
    status = LedgerView(play.folder).status(now=time.time())
    assert status.conserved
    assert set(status.events) == {"ACCEPTED"}
    with capsys.disabled():
        print(f"\n  seed {SEED}: {len(promised)} acknowledged, {len(ids)} billed once, {status.lanes} lanes")
    assert len(promised) > ENOUGH


def test_a_worker_ends_on_sigterm_and_the_service_goes_on(play, sandbox) -> None:
    service, worker = play.service(), play.worker()
    deadline = time.monotonic() + 60
    while not (play.folder.exists() and play.accepted() > 0):
        assert time.monotonic() < deadline, "nothing was delivered"
        assert service.poll() is None
        time.sleep(0.1)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    before = len(play.acknowledged())
    while len(play.acknowledged()) == before:
        assert time.monotonic() < deadline, "the service stands still"
        assert service.poll() is None
        time.sleep(0.05)
    # What the service still holds is its own; what it has let go is delivered.
    assert sum(row.value for row in sandbox.books()) == play.accepted()
