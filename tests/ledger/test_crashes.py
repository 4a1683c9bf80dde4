"""A process is killed at every named point, and every database call fails once: nothing is lost, nothing is
billed twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llm_metering import _failpoints
from llm_metering.errors import LedgerError
from llm_metering.ledger import SqliteLedger
from llm_metering.protocols import Claim, Outcome
from tests.ledger.conftest import BUCKET, T0, conserved, entry, progress, totals

ROOT = Path(__file__).parents[2]
DONE = T0 + BUCKET


class Books:
    """Stripe, as a file: takes an identifier once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def events(self) -> dict[str, int]:
        text = self.path.read_text() if self.path.exists() else ""
        pairs = [line.split() for line in text.splitlines()]
        assert len({identifier for identifier, _ in pairs}) == len(pairs)
        return {identifier: int(value) for identifier, value in pairs}

    def send(self, claim: Claim) -> Outcome:
        if claim.event.identifier in self.events():
            return Outcome("duplicate", 400)
        with self.path.open("a") as file:
            file.write(f"{claim.event.identifier} {claim.event.payload['value']}\n")
        return Outcome("accepted", 200)


WORK = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.ledger.conftest import BUCKET, T0, entry, progress
from tests.ledger.test_crashes import Books
from llm_metering._failpoints import failpoint
from llm_metering.ledger import SqliteLedger

folder = Path(sys.argv[1])
ledger = SqliteLedger(folder / "ledger", adopt_after_s=0)
ledger.open(now=T0)
books = Books(folder / "stripe")
for n in range(6):
    now = T0 + n * BUCKET
    group = [entry(f"{n}-{i}", customer=f"cus_{i}", used_at=now) for i in range(4)]
    ledger.commit(group, [progress(f"stream-{n}", used_at=now)], now=now)
    print(f"acknowledged {n}", flush=True)
    ledger.freeze(now=now, bucket_s=BUCKET)
    for claim in ledger.claim(now=now, limit=8):
        failpoint("sender_mid_body")
        outcome = books.send(claim)
        failpoint("after_response")
        ledger.finish(claim, outcome, now=now)
print("survived")
"""

POINTS = (
    "before_commit",
    "after_commit",
    "in_freeze",
    "after_freeze",
    "after_claim",
    "sender_mid_body",
    "after_response",
    "before_finish",
    "after_finish",
)
OF_DECISIONS = ("decision_posted", "in_decision", "after_decision")
"""Tried in test_decisions."""

OF_PARTS = ("in_cut", "after_cut")
"""Tried in test_parts."""

OF_FORWARDING = ("offered",)
"""Tried in postgres/test_pods.py."""

OF_TAKING = (
    "after_backup",
    "in_migration",
    "after_migration",
    "in_suspicion",
    "after_suspicion",
    "after_salvage",
    "after_set_apart",
)
"""Tried in test_migrations.py, test_copies.py and test_damage.py."""


def recover(folder: Path) -> SqliteLedger:
    """What the next process does, until nothing is left to do."""
    now = T0 + 100 * BUCKET
    ledger = SqliteLedger(folder / "ledger", adopt_after_s=0)
    ledger.open(now=now)
    books = Books(folder / "stripe")
    ledger.freeze(now=now, bucket_s=BUCKET)
    while claims := ledger.claim(now=now, limit=8):
        ledger.finish_many([(claim, books.send(claim)) for claim in claims], now=now)
    return ledger


@pytest.mark.parametrize("time", [1, 4])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_all_that_was_acknowledged_is_billed_once(tmp_path, point, time):
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(tmp_path), str(ROOT)],
        env={**os.environ, _failpoints.VARIABLE: f"{point}:{time}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    acknowledged = done.stdout.count("acknowledged")
    assert "survived" not in done.stdout
    ledger = recover(tmp_path)
    try:
        found = totals(ledger)
        groups = found["recorded"] / 50  # four records and a stream that ended early, of 10 tokens each
        # The group that was under way may be there or not; all that were acknowledged are.
        assert acknowledged <= groups <= acknowledged + 1
        assert groups == int(groups)
        assert conserved(ledger)
        assert found["accepted"] == found["recorded"]
        assert sum(Books(tmp_path / "stripe").events().values()) == found["recorded"]
    finally:
        ledger.close()


def test_every_point_of_the_ledger_is_tried_here():
    source = "".join(p.read_text() for p in (ROOT / "llm_metering/ledger").glob("*.py"))
    named = {part.split('"')[1] for part in source.split("failpoint(")[1:]}
    assert named <= {*POINTS, *OF_DECISIONS, *OF_PARTS, *OF_FORWARDING, *OF_TAKING}
    assert len(named) >= 7


def test_a_point_that_is_not_armed_does_nothing():
    assert _failpoints.failpoint("before_commit") is None


def test_a_point_dies_the_time_it_is_told_to():
    died: list[bool] = []
    point = _failpoints.armed("here:2", lambda: died.append(True))
    point("here")
    point("elsewhere")
    assert not died
    point("here")
    point("here")
    assert died == [True]


class Brittle(sqlite3.Connection):
    """A connection whose k-th call fails, counted over all connections: before it does anything, or, as
    when a disk's answer is lost, after it has done its work."""

    calls = 0
    fail_at = 0
    too_late = False

    def _call(self, call: Any, *args: Any) -> Any:
        Brittle.calls += 1
        fails = Brittle.calls == Brittle.fail_at
        if fails and not Brittle.too_late:
            raise sqlite3.OperationalError("disk I/O error (injected)")
        result = call(*args)
        if fails:
            raise sqlite3.OperationalError("disk I/O error (injected, after the fact)")
        return result

    def execute(self, *args: Any) -> Any:
        return self._call(super().execute, *args)

    def executemany(self, *args: Any) -> Any:
        return self._call(super().executemany, *args)


def brittle(*args: Any, **kwargs: Any) -> sqlite3.Connection:
    return sqlite3.connect(*args, **kwargs, factory=Brittle)


def insist(step: Any) -> Any:
    """What a caller does: the same again, until it works."""
    for _ in range(3):
        try:
            return step()
        except LedgerError:
            pass
    raise AssertionError("it failed more than once")


def a_day_of_work(folder: Path) -> None:
    """Every write there is, each repeated where it fails."""
    ledger = SqliteLedger(folder / "ledger", adopt_after_s=0, connect=brittle)
    books = Books(folder / "stripe")
    insist(lambda: ledger.open(now=T0))
    try:
        insist(lambda: ledger.bind("acct_1 (test)"))
        group = [entry("a"), entry("b", customer="cus_2"), entry("c", customer=None)]
        insist(lambda: ledger.commit(group, [progress("s1"), progress("s2")], now=T0))
        insist(lambda: ledger.commit([entry("s1", closes="s1")], [progress("s2")], now=T0))
        insist(lambda: ledger.assign("cus_3", who="ada", why="found", now=T0))
        insist(lambda: ledger.hold(["a"], who="ada", why="wait", now=T0))
        insist(lambda: ledger.release(["a"], who="ada", why="go", now=T0))
        insist(lambda: ledger.freeze(now=DONE, bucket_s=BUCKET))
        for claim in insist(lambda: ledger.claim(now=DONE, limit=2)):
            outcome = books.send(claim)
            insist(lambda claim=claim, outcome=outcome: ledger.finish(claim, outcome, now=DONE))
        insist(lambda: ledger.set_meta("paused", None))
        insist(lambda: ledger.maintain(now=DONE + 1))
    finally:
        ledger.close()


@pytest.mark.parametrize("too_late", [False, True])
def test_whichever_database_call_fails_nothing_is_lost_or_billed_twice(quick_folder, too_late):
    Brittle.too_late = too_late
    try:
        for k in range(1, 1000):
            folder = quick_folder / str(k)
            folder.mkdir()
            Brittle.calls, Brittle.fail_at = 0, k
            a_day_of_work(folder)
            Brittle.fail_at = 0
            ledger = recover(folder)
            found = totals(ledger)
            assert found["recorded"] == 50, f"call {k}"
            assert found["accepted"] == 50, f"call {k}"
            assert conserved(ledger), f"call {k}"
            assert sum(Books(folder / "stripe").events().values()) == 50, f"call {k}"
            ledger.close()
            if Brittle.calls < k:
                break
        else:
            raise AssertionError("never came to a clean pass")
        assert k > 60
    finally:
        Brittle.fail_at = 0
