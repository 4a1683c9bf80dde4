"""How much is ever in doubt: what is under way is on disk before its first byte leaves, and never more of it
than may be in flight, whenever the process is killed.

Row 4 of docs/faults.md.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from llm_metering.ledger import SqliteLedger
from llm_metering.protocols import Entry, Outcome
from llm_metering.usage import Line, Usage, UsageRecord
from tests.senders.conftest import RawServer, Request, accepts, answer

EVENTS = "POST /v1/billing/meter_events"
SERVICE = """
import sys
from llm_metering import Metering, Settings
from llm_metering.senders.stripe_v1 import StripeSender

url, folder, in_flight = sys.argv[1:]
settings = Settings(ledger=folder, encodings=(), bucket_s=1, max_in_flight=int(in_flight))
Metering("cus_1", settings=settings, sender=StripeSender("sk_test_key", api_base=url)).start()
sys.stdin.read()
"""


class Stripe:
    """Answers so many events and then none, and notes which it has."""

    def __init__(self, answers: int) -> None:
        self.left = answers
        self.seen: list[str] = []
        self.answered: set[str] = set()
        self.lock = threading.Lock()
        self.is_over = threading.Event()

    def __call__(self, sock: socket.socket, request: Request) -> bool:
        if not request.line.startswith(EVENTS):
            account = {"id": "acct_1", "object": "account"}
            sock.sendall(answer(json.dumps(account).encode()))
            return True
        identifier = request.form["identifier"]
        with self.lock:
            self.seen.append(identifier)
            self.left -= 1
            if self.left >= 0:
                self.answered.add(identifier)
        if self.left < 0:
            self.is_over.wait(20)
            return False
        return accepts(sock, request)


def frozen(folder: Path, count: int) -> None:
    """Usage of so many customers, each with an event that waits."""
    now = time.time() - 60
    with closing(SqliteLedger(folder)) as ledger:
        ledger.open(now=now)
        records = [UsageRecord(f"r{i}", Usage(input=10), now, f"cus_{i}", model="m") for i in range(count)]
        ledger.commit([Entry(r, (Line("hypernian_tokens", 10),)) for r in records], [], now=now)
        ledger.freeze(now=now, bucket_s=1, everything=True)


def states(folder: Path) -> dict[str, str]:
    """Every event's state, as it is on disk."""
    (lane,) = folder.glob("lane-*.db")
    with closing(sqlite3.connect(f"file:{lane}?mode=ro", uri=True)) as db:
        return dict(db.execute("SELECT identifier, state FROM meter_event"))


def service(url: str, folder: Path, in_flight: int, *before: str) -> subprocess.Popen[bytes]:
    command = [*before, sys.executable, "-c", SERVICE, url, str(folder), str(in_flight)]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


@pytest.mark.parametrize("in_flight", [8, 3])
@pytest.mark.parametrize("answers", [0, 300])
def test_a_kill_in_mid_delivery_leaves_no_more_in_doubt_than_was_in_flight(tmp_path, answers, in_flight):
    folder = tmp_path / "ledger"
    frozen(folder, 600)
    stripe, most = Stripe(answers), 0
    with RawServer(otherwise=stripe) as server:
        running = service(server.url, folder, in_flight)
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                found = list(states(folder).values())
                most = max(most, found.count("SENDING"))
                if found.count("ACCEPTED") == answers and len(stripe.seen) == answers + in_flight:
                    break
            time.sleep(0.1)  # were there more to come, it would come now
            most = max(most, list(states(folder).values()).count("SENDING"))
            running.kill()
        finally:
            stripe.is_over.set()
            running.kill()
            running.communicate()
    left = states(folder)
    under_way = {identifier for identifier, state in left.items() if state == "SENDING"}
    assert most == len(under_way) == in_flight
    assert len(stripe.seen) == len(set(stripe.seen)) == answers + in_flight
    # What left this machine is on record, and nothing is in doubt that did not.
    assert under_way == set(stripe.seen) - stripe.answered
    assert {i for i, state in left.items() if state == "ACCEPTED"} == stripe.answered
    assert_the_next_process_bills_each_once(folder, set(stripe.seen))


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.05])
def test_a_kill_while_answers_stream_in_leaves_no_more_in_doubt_than_was_in_flight(tmp_path, after_s):
    folder = tmp_path / "ledger"
    frozen(folder, 3000)
    stripe = Stripe(3000)
    with RawServer(otherwise=stripe) as server:
        running = service(server.url, folder, 8)
        try:
            deadline = time.monotonic() + 30
            while len(stripe.seen) < 400 and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(after_s)
            running.kill()
        finally:
            running.kill()
            running.communicate()
    left = states(folder)
    under_way = {identifier for identifier, state in left.items() if state == "SENDING"}
    accepted = {identifier for identifier, state in left.items() if state == "ACCEPTED"}
    assert len(accepted) > 300
    assert len(under_way) <= 8
    assert accepted <= set(stripe.seen) <= accepted | under_way
    assert_the_next_process_bills_each_once(folder, set(stripe.seen))


def assert_the_next_process_bills_each_once(folder: Path, known: set[str]) -> None:
    now = time.time() + 60
    with closing(SqliteLedger(folder, adopt_after_s=0)) as ledger:
        ledger.open(now=now)
        while claims := ledger.claim(now=now, limit=200):
            results = []
            for claim in claims:
                is_known = claim.event.identifier in known
                # Only what was under way is sent again, and Stripe is asked under the same identifier.
                assert claim.attempt == 2 or not is_known
                known.add(claim.event.identifier)
                results.append((claim, Outcome("duplicate" if is_known else "accepted")))
            ledger.finish_many(results, now=now)
        rows = ledger.events(limit=10_000)
        assert {row.state for row in rows} == {"ACCEPTED"}
        assert {row.event.identifier for row in rows} == known
        assert sum(row.event.value for row in rows) == 10 * len(rows)


def test_the_disk_has_an_attempt_before_its_first_byte_leaves(tmp_path):
    """By the system's calls: no event is sent while a page of the log is written and not synced."""
    strace = shutil.which("strace")
    traced = strace and subprocess.run([strace, "-f", "true"], capture_output=True, check=False)
    if not strace or not traced or traced.returncode:
        pytest.skip("no strace that may look at processes")
    folder, log = tmp_path / "ledger", tmp_path / "calls"
    frozen(folder, 12)
    stripe = Stripe(12)
    calls = "trace=pwrite64,write,fdatasync,fsync,sendto,sendmsg"
    with RawServer(otherwise=stripe) as server:
        running = service(server.url, folder, 1, strace, "-f", "-y", "-s", "40", "-o", str(log), "-e", calls)
        try:
            deadline = time.monotonic() + 40
            while list(states(folder).values()).count("ACCEPTED") < 12 and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            running.communicate(timeout=20)
    synced, sent = replay(log.read_text().splitlines())
    assert len(stripe.seen) == sent == 12
    assert synced >= 12


def replay(lines: list[str]) -> tuple[int, int]:
    """How often a log was synced, and how many events were sent; each when all before was on disk."""
    unsynced, syncing, synced, sent = False, "", 0, 0
    for line in lines:
        process, _, call = line.partition(" ")
        call = call.strip()
        if re.match(r"p?write(64)?\(\d+<[^>]*-wal>", call):
            unsynced = True
        elif re.match(r"f(data)?sync\(\d+<[^>]*-wal>", call):
            if "unfinished" in call:
                syncing = process
            else:
                unsynced, synced = False, synced + 1
        elif "sync resumed" in call and process == syncing:
            unsynced, syncing, synced = False, "", synced + 1
        elif call.startswith(("sendto", "sendmsg")) and EVENTS in call:
            sent += 1
            assert not unsynced, f"event {sent} left before its attempt was on disk"
    return synced, sent
