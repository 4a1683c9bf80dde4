"""What is true of the SQLite ledger beyond the contract: its folder, its lanes, its files."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from llm_metering.errors import AccountMismatch, LedgerError
from llm_metering.ledger import LedgerView, SqliteLedger
from llm_metering.protocols import Outcome
from tests.ledger.conftest import BUCKET, T0, conserved, deliver, entry, progress, rows, totals

DONE = T0 + BUCKET


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ledger"


@pytest.fixture
def opened(folder):
    """Opens ledgers on the folder, and closes them in the end."""
    with contextlib.ExitStack() as stack:

        def open_one(*, now=T0, at=folder, **options):
            ledger = SqliteLedger(at, **{"adopt_after_s": 0.0, **options})
            ledger.open(now=now)
            stack.callback(ledger.close)
            return ledger

        yield open_one


def lanes(folder):
    return sorted(folder.glob("lane-*.db"))


# ---- the folder


def test_nothing_is_touched_before_open(folder):
    SqliteLedger(folder)
    assert not folder.exists()


def test_the_folder_is_for_its_owner_alone(folder, opened):
    opened()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (lane,) = lanes(folder)
    assert stat.S_IMODE(lane.stat().st_mode) == 0o600


def test_a_file_that_fails_is_told_as_the_ledgers_error_when_asked_what_is_due(opened, folder):
    ledger = opened()
    with contextlib.closing(sqlite3.connect(folder / f"lane-{ledger.lane}.db")) as db, db:
        db.execute("ALTER TABLE meter_event RENAME TO gone")
    with pytest.raises(LedgerError, match="no such table"):
        ledger.due_at()


def test_a_symbolic_link_is_refused(tmp_path, opened):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(LedgerError, match="symbolic link"):
        opened(at=tmp_path / "link")
    assert list((tmp_path / "real").iterdir()) == []


def test_a_folder_that_everyone_can_write_is_refused(folder, opened):
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(LedgerError, match="chmod 700"):
        opened()


def test_a_file_in_its_place_is_refused(folder, opened):
    folder.write_text("")
    with pytest.raises(LedgerError, match="not a folder"):
        opened()


def test_a_folder_that_cannot_be_made_is_refused_with_what_to_do(tmp_path, opened):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="LLM_METERING_LEDGER"):
        opened(at=tmp_path / "file" / "ledger")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a folder away")
def test_a_folder_of_someone_else_is_refused(folder, opened):
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(LedgerError, match="belongs to user 12345"):
        opened()


def test_a_folder_that_cannot_be_written_is_refused(folder):
    """As another user where we are root, for whom every folder can be written."""
    folder.mkdir()
    folder.chmod(0o555)
    script = """
import os, sys
from llm_metering.ledger import SqliteLedger
from llm_metering.errors import LedgerError
folder = sys.argv[1]
if os.geteuid() == 0:
    os.chown(folder, 12345, 12345)
    os.chmod(os.path.dirname(folder), 0o711)
    os.setuid(12345)
try:
    SqliteLedger(folder).open(now=1.0)
except LedgerError as exc:
    print(exc)
"""
    with contextlib.ExitStack() as stack:
        for parent in folder.parents:  # pytest's folders are closed to the user that we become
            if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
                mode = parent.stat().st_mode
                stack.callback(parent.chmod, stat.S_IMODE(mode))
                parent.chmod(stat.S_IMODE(mode) | 0o011)
        said = run_python(script, str(folder))
    folder.chmod(0o700)
    assert re.search("cannot be written", said), said


def test_a_symbolic_link_in_the_folder_is_no_lane(folder, opened, tmp_path):
    other = opened(at=tmp_path / "other")
    other.commit([entry("a")], [], now=T0)
    other.close()
    folder.mkdir(mode=0o700)
    (folder / "lane-evil.db").symlink_to(lanes(tmp_path / "other")[0])
    (folder / "lane-evil.lock").symlink_to(tmp_path / "target")
    ledger = opened()
    assert ledger.lane != "evil"
    assert ledger.status(now=T0).usage_records == 0
    assert not (tmp_path / "target").exists()


def test_any_name_will_do_for_a_folder(tmp_path, opened):
    at = tmp_path / "led ger?mode=ro#50%é"
    ledger = opened(at=at)
    ledger.commit([entry("a")], [], now=T0)
    assert LedgerView(at).status(now=T0).usage_records == 1
    assert len(lanes(at)) == 1


# ---- lanes


def test_two_ledgers_on_a_folder_write_to_lanes_of_their_own(folder, opened):
    first, second = opened(), opened()
    first.commit([entry("a")], [], now=T0)
    second.commit([entry("b")], [], now=T0)
    assert first.lane != second.lane
    assert len(lanes(folder)) == 2
    assert totals(first)["recorded"] == totals(second)["recorded"] == 20
    assert first.status(now=T0).lanes == 2
    assert first.freeze(now=DONE, bucket_s=BUCKET) == 1  # its own only


def test_a_restarted_process_continues_in_the_lane_it_left(folder, opened):
    ledger = opened()
    lane = ledger.lane
    for _ in range(3):
        ledger.close()
        ledger = opened()
        assert ledger.lane == lane
    assert len(lanes(folder)) == 1


def test_lanes_of_dead_processes_are_adopted_and_delivered(folder, opened):
    first, second = opened(), opened()
    first.commit([entry("a"), entry("b", customer="cus_2")], [progress("s")], now=T0)
    second.commit([entry("c", customer="cus_3")], [], now=T0)
    for ledger in (first, second):
        ledger.freeze(now=DONE, bucket_s=BUCKET)
    first.claim(now=DONE, limit=1)
    first.close()
    second.close()
    heir = opened(now=DONE)
    assert heir.maintain(now=DONE)[0].after == "AMBIGUOUS"
    heir.freeze(now=DONE, bucket_s=BUCKET)
    for _ in range(3):
        deliver(heir, now=DONE)
    found = totals(heir)
    assert (found["recorded"], found["accepted"]) == (40, 40)


def test_one_attempt_at_a_time_holds_across_adopted_lanes(opened):
    first, second = opened(), opened()
    for n, ledger in enumerate((first, second)):
        ledger.commit([entry(f"r{n}")], [], now=T0)
        ledger.freeze(now=DONE, bucket_s=BUCKET)
        ledger.close()
    heir = opened()
    assert len(heir.claim(now=DONE, limit=8)) == 1
    assert heir.claim(now=DONE, limit=8) == []


def test_a_free_lane_is_adopted_after_a_wait_that_lets_workers_start(opened):
    left = opened()
    starting = opened(adopt_after_s=5.0)
    left.commit([entry("a")], [], now=T0)
    left.close()
    starting.maintain(now=T0)
    starting.maintain(now=T0 + 4)
    assert starting.freeze(now=DONE, bucket_s=BUCKET) == 0
    starting.maintain(now=T0 + 5)
    assert starting.freeze(now=DONE, bucket_s=BUCKET) == 1


def test_workers_that_restart_together_find_a_lane_each(folder, opened):
    workers = [opened() for _ in range(4)]
    for n, worker in enumerate(workers):
        worker.commit([entry(f"r{n}")], [], now=T0)
    for worker in workers:
        worker.close()
    for _ in range(4):
        opened(adopt_after_s=5.0)
    assert len(lanes(folder)) == 4


def test_an_adopted_lane_is_let_go_once_it_is_empty(folder, opened):
    left, heir = opened(), opened()
    name = left.lane
    left.commit([entry("a")], [], now=T0)
    left.close()
    heir.maintain(now=T0)
    heir.freeze(now=DONE, bucket_s=BUCKET)
    deliver(heir, now=DONE)
    heir.maintain(now=DONE)
    heir.maintain(now=DONE)
    assert opened().lane == name
    assert totals(heir)["accepted"] == 10


def test_an_attempt_of_a_lane_that_was_let_go_changes_nothing(opened):
    ledger = opened()
    ledger.commit([entry("a")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    (claim,) = ledger.claim(now=DONE, limit=1)
    ledger.close()
    other = opened(now=DONE)
    assert other.finish(claim, Outcome("refused_data"), now=DONE) is None
    assert totals(other)["dead"] == 0


def test_reopening_a_ledger_of_ours_does_not_bill_streams_that_go_on(opened):
    ledger = opened()
    ledger.commit([], [progress("s")], now=T0)
    ledger.close()
    ledger.open(now=T0)
    assert ledger.status(now=T0).streams_under_way == 1
    ledger.commit([entry("final", closes="s")], [], now=T0)
    assert totals(ledger)["recorded"] == 10


def test_a_lane_of_a_newer_version_is_left_alone_with_an_alarm(folder, opened):
    ledger = opened()
    ledger.commit([entry("a")], [], now=T0)
    name = ledger.lane
    ledger.close()
    with contextlib.closing(sqlite3.connect(lanes(folder)[0])) as db:
        db.execute("PRAGMA user_version = 99")
    before = lanes(folder)[0].read_bytes()
    ledger = opened()
    assert ledger.lane != name
    (alarm,) = ledger.take_alarms()
    assert alarm.name == "ledger.newer_schema"
    ledger.maintain(now=T0)
    assert ledger.take_alarms() == []
    assert (folder / f"lane-{name}.db").read_bytes() == before


@pytest.mark.parametrize("damage", ["empty", "garbage", "other database", "header", "cut", "zeroed page"])
def test_a_damaged_lane_is_set_apart_with_an_alarm_and_the_start_goes_on(folder, opened, damage):
    ledger = opened()
    ledger.commit([entry(f"r{i}") for i in range(2000)], [], now=T0)
    ledger.close()
    (path,) = lanes(folder)
    data = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(os.urandom(5000))
    elif damage == "other database":
        path.unlink()
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE t (x)")
    elif damage == "header":
        path.write_bytes(b"\0" * 100 + data[100:])
    elif damage == "zeroed page":
        page = (len(data) // 4096 // 2) * 4096
        path.write_bytes(data[:page] + b"\0" * 4096 + data[page + 4096 :])
    else:
        path.write_bytes(data[: len(data) // 2])
    damaged = path.read_bytes()
    size = len(damaged)
    ledger = opened()
    (alarm,) = ledger.take_alarms()
    assert alarm.name == "ledger.damaged"
    assert alarm.data["bytes"] == size
    kept = Path(alarm.data["path"])
    assert kept.read_bytes() == damaged or damage in ("empty", "other database")
    assert alarm.data["records"] + alarm.data["lost_records"] == 2000
    assert ledger.status(now=T0).usage_records == alarm.data["records"]
    assert ledger.commit([entry("after")], [], now=T0) == 1


@pytest.mark.parametrize("damage", ["cut", "bit flip", "old copy"])
def test_records_that_a_damaged_log_lost_are_counted_in_an_alarm(folder, tmp_path, damage):
    script = """
import os, shutil, signal, sys
sys.path.insert(0, sys.argv[3])
from tests.ledger.conftest import entry, T0
from llm_metering.ledger import SqliteLedger
ledger = SqliteLedger(sys.argv[1]); ledger.open(now=T0)
for n in range(10):
    ledger.commit([entry(f"{n}-{i}") for i in range(5)], [], now=T0)
    if n == 5:
        shutil.copytree(sys.argv[1], sys.argv[2])
os.kill(os.getpid(), signal.SIGKILL)
"""
    run_python(script, str(folder), str(tmp_path / "copy"), str(ROOT), ok=-9)
    (path,) = lanes(folder)
    log = Path(f"{path}-wal")
    data = bytearray(log.read_bytes())
    if damage == "cut":
        log.write_bytes(data[: len(data) // 2])
    elif damage == "bit flip":
        data[len(data) // 2] ^= 1
        log.write_bytes(data)
    else:
        shutil.copy(tmp_path / "copy" / path.name, path)
        shutil.copy(tmp_path / "copy" / log.name, log)
    ledger = SqliteLedger(folder)
    ledger.open(now=T0)
    try:
        (alarm,) = ledger.take_alarms()
        there = ledger.status(now=T0).usage_records
        assert (alarm.name, alarm.data["records"]) == ("ledger.records_lost", 50 - there)
        assert there < 50
        if damage == "old copy":
            assert there == 30
        ledger.commit([entry("after")], [], now=T0)
        ledger.close()
        ledger.open(now=T0)
        assert ledger.take_alarms() == []
    finally:
        ledger.close()


def test_records_missing_in_the_middle_are_told_once(folder, opened):
    ledger = opened()
    ledger.commit([entry(f"r{i}") for i in range(10)], [], now=T0)
    ledger.close()
    with contextlib.closing(sqlite3.connect(lanes(folder)[0])) as db, db:
        db.execute("DELETE FROM usage WHERE seq IN (3, 4)")
    ledger = opened()
    (alarm,) = ledger.take_alarms()
    assert (alarm.name, alarm.data["records"]) == ("ledger.records_lost", 2)
    ledger.close()
    assert opened().take_alarms() == []


def test_a_kill_loses_nothing_and_raises_no_alarm(folder):
    script = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from tests.ledger.conftest import entry, T0
from llm_metering.ledger import SqliteLedger
ledger = SqliteLedger(sys.argv[1]); ledger.open(now=T0)
for n in range(10):
    ledger.commit([entry(f"{n}-{i}") for i in range(5)], [], now=T0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run_python(script, str(folder), str(ROOT), ok=-9)
    ledger = SqliteLedger(folder)
    ledger.open(now=T0)
    assert ledger.take_alarms() == []
    assert ledger.status(now=T0).usage_records == 50
    ledger.close()


def test_a_lane_that_is_removed_while_in_use_is_replaced_with_an_alarm(folder, opened):
    ledger = opened()
    ledger.commit([entry("a")], [], now=T0)
    for file in folder.iterdir():
        file.unlink()
    ledger.maintain(now=T0)
    assert [a.name for a in ledger.take_alarms()] == ["ledger.lane_removed"]
    ledger.commit([entry("b")], [], now=T0)
    assert totals(ledger)["recorded"] == 10


def test_where_a_removed_lane_cannot_be_replaced_what_was_adopted_is_kept_and_delivered_later(
    folder, opened, monkeypatch
):
    dead, ledger = opened(), opened()
    dead.commit([entry("a")], [], now=T0)
    dead.close()
    ledger.maintain(now=T0)
    (folder / f"lane-{ledger.lane}.db").unlink()

    def no_room(_):
        raise LedgerError("the disk is full")

    with monkeypatch.context() as full:
        full.setattr("llm_metering.ledger.folder.prepare", no_room)
        with pytest.raises(LedgerError, match="is full"):
            ledger.maintain(now=T0)
    ledger.close()
    ledger.open(now=T0 + BUCKET)
    ledger.freeze(now=T0 + BUCKET, bucket_s=BUCKET)
    assert len(deliver(ledger, now=T0 + BUCKET)) == 1


def test_an_account_is_bound_once_for_all_processes(folder, opened):
    first, second = opened(), opened()
    first.bind("acct_1 (test)")
    with pytest.raises(AccountMismatch):
        second.bind("acct_2 (test)")
    second.bind("acct_1 (test)")
    assert LedgerView(folder).status(now=T0).account == "acct_1 (test)"
    assert not list(folder.glob("account.*"))


def test_the_sequence_of_usage_has_no_gaps(folder, opened):
    ledger = opened()
    for _ in range(3):
        ledger.commit([entry("a"), entry("b")], [], now=T0)
        ledger.commit([entry("c"), entry("a"), entry("d")], [], now=T0)
    with pytest.raises(ValueError):
        ledger.commit([entry("e"), entry("f", used_at=float("nan"))], [], now=T0)
    ledger.commit([entry("g")], [], now=T0)
    ledger.commit([entry("a")], [], now=T0)
    assert (folder / f"lane-{ledger.lane}.lock").read_text()[256:276] == f"{5:020d}"
    assert rows(folder, "SELECT seq, id FROM usage ORDER BY seq") == [
        (1, "a"),
        (2, "b"),
        (3, "c"),
        (4, "d"),
        (5, "g"),
    ]


def test_decisions_are_rows_with_who_when_and_why(folder, opened):
    ledger = opened()
    ledger.commit([entry("a", customer=None)], [], now=T0)
    ledger.assign("cus_9", ids=["a"], who="ada", why="ticket 7", now=T0 + 1)
    assert rows(folder, "SELECT at, who, why, what, subject, before, after FROM action") == [
        (T0 + 1, "ada", "ticket 7", "assign", "a", None, "cus_9")
    ]


def test_every_attempt_is_on_record_from_before_it_begins(folder, opened):
    ledger = opened()
    ledger.commit([entry("a")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    (claim,) = ledger.claim(now=DONE, limit=1)
    query = "SELECT state, attempts, fence, attempt_started_at, lease_until FROM meter_event"
    assert rows(folder, query) == [("SENDING", 1, 1, DONE, DONE + 300)]

    def attempts() -> list[tuple[object, ...]]:
        found = SqliteLedger.read_only(folder).history(claim.event.identifier).attempts
        return [(a.number, a.started_at, a.ended_at, a.outcome, a.status, a.request_id) for a in found]

    first = (1, DONE, DONE + 1, "throttled", 429, "req_1")
    assert attempts() == [(1, DONE, None, None, None, None)]
    ledger.finish(claim, Outcome("throttled", 429, request_id="req_1"), now=DONE + 1)
    assert attempts() == [first]
    (again,) = ledger.claim(now=DONE + 60, limit=1)
    assert attempts() == [first, (2, DONE + 60, None, None, None, None)]
    ledger.finish(again, Outcome("accepted", 200), now=DONE + 61)
    assert attempts() == [first, (2, DONE + 60, DONE + 61, "accepted", 200, None)]
    query = "SELECT number, fence, started_at, ended_at, outcome, status, request_id FROM attempt"
    assert rows(folder, query) == [
        (1, 1, DONE, DONE + 1, "throttled", 429, "req_1"),
        (2, 2, DONE + 60, DONE + 61, "accepted", 200, None),
    ]


def test_an_attempt_that_an_earlier_version_wrote_down_as_it_began_ends_there(folder, opened):
    ledger = opened()
    ledger.commit([entry("a")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    (claim,) = ledger.claim(now=DONE, limit=1)
    ledger._lanes.all()[0].db.execute(
        "INSERT INTO attempt (identifier, number, fence, started_at) VALUES (?, 1, 1, ?)",
        (claim.event.identifier, DONE),
    )
    (attempt,) = ledger.history(claim.event.identifier).attempts
    assert (attempt.number, attempt.ended_at) == (1, None)
    ledger.finish(claim, Outcome("accepted", 200), now=DONE + 1)
    (attempt,) = ledger.history(claim.event.identifier).attempts
    assert (attempt.number, attempt.started_at, attempt.ended_at) == (1, DONE, DONE + 1)


def frozen_pairs(ledger: SqliteLedger, count: int) -> None:
    ledger.commit([entry(f"r{i}", customer=f"cus_{i:03d}") for i in range(count)], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)


def change(ledger: SqliteLedger, statement: str, *values: object) -> None:
    """Behind the back of what the ledger remembers."""
    assert ledger._lanes.all()[0].db.execute(statement, values).rowcount == 1


def test_what_was_read_ahead_is_held_against_the_file_before_it_is_sent(opened):
    ledger = opened()
    frozen_pairs(ledger, 6)
    first = ledger.claim(now=DONE, limit=2)  # and the others are known now
    change(
        ledger,
        "UPDATE meter_event SET state = 'DEAD', next_attempt_at = NULL WHERE customer = ?",
        "cus_003",
    )
    change(ledger, "UPDATE meter_event SET attempts = 4, fence = 9 WHERE customer = ?", "cus_004")
    done = [(claim, Outcome("accepted")) for claim in first]
    told, claims = ledger.finish_and_claim(done, now=DONE + 1, limit=8)
    assert [t.after for t in told] == ["ACCEPTED", "ACCEPTED"]
    found = [(claim.event.customer, claim.attempt, claim.fence) for claim in claims]
    assert found == [("cus_002", 1, 1), ("cus_004", 5, 10), ("cus_005", 1, 1)]


def test_an_answer_is_held_against_the_file_and_not_against_what_is_remembered(opened):
    ledger = opened()
    frozen_pairs(ledger, 3)
    claims = ledger.claim(now=DONE, limit=3)
    change(ledger, "UPDATE meter_event SET fence = 7 WHERE customer = ?", "cus_001")
    told = ledger.finish_many([(claim, Outcome("accepted")) for claim in claims], now=DONE + 1)
    assert [t and t.after for t in told] == ["ACCEPTED", None, "ACCEPTED"]
    assert [row.state for row in ledger.events()] == ["ACCEPTED", "SENDING", "ACCEPTED"]


def test_the_database_is_as_durable_as_promised(opened):
    ledger = opened()
    db = ledger._lanes.all()[0].db
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


# ---- reading beside the writer


def test_a_view_reads_while_another_process_writes_and_cannot_write(folder, opened):
    ledger = opened()
    ledger.commit([entry("a")], [], now=T0)
    script = """
import sys
from llm_metering.ledger import SqliteLedger
view = SqliteLedger.read_only(sys.argv[1])
print(view.status(now=1.0).usage_records, view.balances()[0].recorded, view.meta("paused"))
"""
    ledger.set_meta("paused", "why")
    assert run_python(script, str(folder)) == "1 10 why"
    ledger.commit([entry("b")], [], now=T0)
    assert run_python(script, str(folder)) == "2 20 why"


def test_a_view_of_no_ledger_says_so_and_makes_none(folder):
    with pytest.raises(LedgerError, match="no ledger"):
        LedgerView(folder).balances()
    assert not folder.exists()


def test_a_view_of_a_ledger_that_nobody_has_open_works(folder, opened):
    ledger = opened()
    ledger.commit([entry("a")], [], now=T0)
    ledger.close()
    assert LedgerView(folder).status(now=T0).usage_records == 1
    assert opened().status(now=T0).usage_records == 1


def test_a_view_of_a_dead_process_sees_what_it_committed_last(folder):
    script = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from tests.ledger.conftest import entry, T0
from llm_metering.ledger import SqliteLedger
ledger = SqliteLedger(sys.argv[1]); ledger.open(now=T0)
ledger.commit([entry("a")], [], now=T0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run_python(script, str(folder), str(ROOT), ok=-9)
    assert LedgerView(folder).status(now=T0).usage_records == 1


def test_books_are_conserved_at_every_moment_while_another_thread_works(folder, opened):
    ledger = opened()
    stop = threading.Event()
    seen = []

    def watch():
        view = ledger.view()
        while not stop.is_set():
            seen.append(conserved(view))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for n in range(15):
        ledger.commit([entry(f"r{n}-{i}", customer=f"cus_{i}") for i in range(20)], [], now=T0)
        ledger.freeze(now=DONE, bucket_s=BUCKET)
        deliver(ledger, now=DONE)
    stop.set()
    watcher.join()
    assert seen
    assert all(seen)
    assert totals(ledger)["recorded"] == 15 * 20 * 10


# ---- processes


ROOT = Path(__file__).parents[2]


def run_python(script: str, *args: str, ok: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *args], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == ok, done.stderr
    return done.stdout.strip()


def test_a_lane_of_a_live_process_is_not_taken(folder, opened):
    script = """
import sys
from llm_metering.ledger import SqliteLedger
ledger = SqliteLedger(sys.argv[1], adopt_after_s=0); ledger.open(now=1.0)
print(ledger.lane, flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with other:
        assert other.stdout is not None
        lane = other.stdout.readline().strip()
        ledger = opened()
        assert ledger.lane != lane
        ledger.maintain(now=T0)
        assert ledger.status(now=T0).lanes == 2
        other.kill()
        other.wait()
        assert opened().lane == lane


def test_a_forked_child_takes_a_lane_of_its_own_and_leaves_the_parents(folder):
    script = """
import os, sys
sys.path.insert(0, sys.argv[2])
from tests.ledger.conftest import entry, T0
from llm_metering.ledger import SqliteLedger
ledger = SqliteLedger(sys.argv[1]); ledger.open(now=T0)
ledger.commit([entry("a")], [], now=T0)
parents = ledger.lane
child = os.fork()
if child == 0:
    ledger.commit([entry("b")], [], now=T0)
    assert ledger.lane != parents
    sys.exit(0)                   # an ordinary end, which finalises what the child inherited
assert os.waitpid(child, 0)[1] == 0
assert ledger.lane == parents
assert ledger.commit([entry("c")], [], now=T0) == 1
"""
    run_python(script, str(folder), str(ROOT))
    found = rows(folder, "SELECT seq, id FROM usage ORDER BY seq")
    assert sorted(found) == [(1, "a"), (1, "b"), (2, "c")]


def test_a_forked_child_does_not_keep_the_lane_of_a_dead_parent(folder, opened):
    script = """
import os, sys
from llm_metering.ledger import SqliteLedger
ledger = SqliteLedger(sys.argv[1]); ledger.open(now=1.0)
if os.fork() == 0:
    os.close(1)
    sys.stdin.read()              # outlives its parent
    os._exit(0)
print(ledger.lane, flush=True)
os._exit(0)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with parent:
        assert parent.stdout is not None
        lane = parent.stdout.read().strip()
        assert parent.wait() == 0
        assert opened().lane == lane


def test_a_lane_that_cannot_be_read_keeps_nobody_from_recording_and_billing(tmp_path):
    """A bad sector in one file, say: it is an alarm, and tried again."""
    folder = tmp_path / "ledger"
    first = SqliteLedger(folder, adopt_after_s=0)
    first.open(now=T0)
    first.commit([entry("in the bad one")], [], now=T0)
    bad, is_bad = first.lane, [True]
    first.close()

    def connect(path: str, *args: Any, **more: Any) -> sqlite3.Connection:
        if bad in path and is_bad[0]:
            raise sqlite3.OperationalError("disk I/O error")
        return sqlite3.connect(path, *args, **more)

    ledger = SqliteLedger(folder, adopt_after_s=0, connect=connect)
    ledger.open(now=T0)
    assert ledger.lane != bad
    ledger.commit([entry("beside it")], [], now=T0)
    for round_ in range(4):
        now = T0 + BUCKET + round_ * 70
        ledger.maintain(now=now)
        ledger.freeze(now=now, bucket_s=BUCKET)
    assert len(deliver(ledger, now=now)) == 1
    (alarm,) = ledger.take_alarms()
    assert (alarm.name, alarm.data["lane"]) == ("ledger.lane_put_off", bad)
    is_bad[0] = False
    ledger.maintain(now=now + 70)
    ledger.freeze(now=now + 70, bucket_s=BUCKET)
    assert len(deliver(ledger, now=now + 70)) == 1
    assert totals(ledger)["accepted"] == 20
    ledger.close()


def test_a_lock_that_is_a_link_is_not_followed_and_in_nobodys_way(tmp_path):
    folder = tmp_path / "ledger"
    first = SqliteLedger(folder, adopt_after_s=0)
    first.open(now=T0)
    lock = folder / f"lane-{first.lane}.lock"
    first.close()
    lock.unlink()
    lock.symlink_to(tmp_path / "elsewhere")
    ledger = SqliteLedger(folder, adopt_after_s=5)
    ledger.open(now=T0)
    for seconds in (0, 10, 20):
        ledger.maintain(now=T0 + seconds)
    assert not (tmp_path / "elsewhere").exists()
    assert [a.name for a in ledger.take_alarms()] == ["ledger.lane_put_off"]
    ledger.close()
