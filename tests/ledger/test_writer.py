"""The thread that writes: groups, order, failing disks, poison, stopping, forking."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from llm_metering.errors import LedgerError
from llm_metering.ledger import MemoryLedger, SqliteLedger, Writer, all_committed
from llm_metering.ledger import pen as pen_module
from llm_metering.ledger import tickets as tickets_module
from llm_metering.ledger.forking import Gate
from llm_metering.usage import Usage
from tests.ledger.conftest import BUCKET, T0, lines_of, record, rows, totals

ROOT = Path(__file__).parents[2]
WAIT_S = 10.0


class Watched(MemoryLedger):
    """A memory ledger that notes each commit, can be held up, and can fail as a disk does."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[list[str]] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.at_gate = threading.Event()
        self.failing: Exception | None = None
        self.opens = 0
        self.closes = 0

    def open(self, *, now: float) -> None:
        if self.failing:
            raise self.failing
        self.opens += 1
        super().open(now=now)

    def close(self) -> None:
        self.closes += 1
        super().close()

    def commit(self, entries: Any, progress: Any, *, drops: Any = (), now: float) -> int:
        self.threads.add(threading.current_thread().name)
        self.at_gate.set()
        assert self.gate.wait(WAIT_S)
        if self.failing:
            raise self.failing
        new = super().commit(entries, progress, drops=drops, now=now)
        self.groups.append([e.record.id for e in entries])
        return new


@pytest.fixture
def ledger():
    return Watched()


@pytest.fixture
def make(heard):
    made = []

    def writer(ledger, **options):
        made.append(Writer(ledger, lines_of=lines_of, telemetry=heard, **options))
        return made[-1]

    yield writer
    for each in made:
        each.stop()


@pytest.fixture
def writer(make, ledger):
    writer = make(ledger)
    writer.start()
    return writer


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(pen_module, "FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(pen_module, "LONGEST_RETRY_S", 0.01)


def ids(ledger):
    return [r.id for r in ledger.records]


# ---- the ordinary way


def runs_without_a_word(script: str, folder: Path, *options: str) -> None:
    """Run it in a process of its own, which must end well; it finds the folder and our root in `sys.argv`."""
    done = subprocess.run(
        [sys.executable, *options, "-c", script, str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_record_is_committed_and_its_ticket_done(writer, ledger):
    ticket = writer.put(record("a"))
    assert ticket.wait(WAIT_S)
    assert ticket.done
    assert ticket.error is None
    assert ids(ledger) == ["a"]
    assert ledger.threads == {"llm-metering-writer"}


def test_what_is_queued_meanwhile_is_one_group(writer, ledger):
    ledger.gate.clear()
    writer.put(record("first"))
    assert ledger.at_gate.wait(WAIT_S)
    tickets = [writer.put(record(f"r{i}")) for i in range(100)]
    assert not any(t.done for t in tickets)
    ledger.gate.set()
    assert all(t.wait(WAIT_S) for t in tickets)
    assert ledger.groups == [["first"], [f"r{i}" for i in range(100)]]


LONG_S = 3600.0


def test_what_nobody_waits_for_is_kept_for_company(make, ledger):
    writer = make(ledger, company_s=LONG_S)
    writer.start()
    tickets = [writer.put(record(f"r{i}")) for i in range(20)]
    assert not ledger.at_gate.wait(0.05)
    assert tickets[7].wait(WAIT_S)
    assert ledger.groups == [[f"r{i}" for i in range(20)]]


def test_company_is_waited_for_only_a_moment(writer, ledger):
    writer.put(record("a"))
    assert ledger.at_gate.wait(WAIT_S)


@pytest.mark.parametrize("again", range(20))
def test_whoever_waits_hurries_the_writer(make, ledger, again):
    """However late: the writer may be asleep, taking, or listening when the wait begins."""
    writer = make(ledger, company_s=LONG_S)
    writer.start()
    ticket = writer.put(record("a"))
    if again % 2:
        time.sleep(again / 1000)
    done = threading.Event()
    ticket.add_done_callback(done.set)
    assert done.wait(WAIT_S)
    assert ids(ledger) == ["a"]


def test_threads_that_all_wait_are_never_kept_for_company(make, ledger):
    writer = make(ledger, company_s=LONG_S)
    writer.start()
    late = []

    def caller(name):
        for i in range(200):
            if not writer.put(record(f"{name}-{i}")).wait(WAIT_S):
                late.append((name, i))
                return

    threads = [threading.Thread(target=caller, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not late
    assert len(ledger.records) == 800


@pytest.mark.parametrize("act", [Writer.flush, Writer.stop, lambda w: w.run(lambda _: True)])
def test_what_is_asked_of_the_writer_waits_for_no_company(make, ledger, act):
    writer = make(ledger, company_s=LONG_S)
    writer.start()
    writer.put(record("a"))
    time.sleep(0.02)  # the writer listens by now
    assert act(writer)
    assert ids(ledger) == ["a"]


def test_a_full_group_waits_for_no_company(make, ledger):
    writer = make(ledger, max_group=10, company_s=LONG_S)
    writer.start()
    ledger.gate.clear()
    writer.put(record("first")).add_done_callback(lambda: None)
    assert ledger.at_gate.wait(WAIT_S)
    for i in range(10):
        writer.put(record(f"r{i}"))
    ledger.at_gate.clear()  # the second group comes to it after this
    ledger.gate.set()
    assert ledger.at_gate.wait(WAIT_S)


def test_a_group_has_its_limit(make, ledger):
    writer = make(ledger, max_group=10)
    writer.start()
    ledger.gate.clear()
    writer.put(record("first"))
    assert ledger.at_gate.wait(WAIT_S)
    for i in range(25):
        writer.put(record(f"r{i}"))
    ledger.gate.set()
    assert writer.flush(WAIT_S)
    assert [len(g) for g in ledger.groups] == [1, 10, 10, 5]


def test_records_keep_their_order(writer, ledger):
    for i in range(2000):
        writer.put(record(f"r{i}"))
    assert writer.flush(WAIT_S)
    assert ids(ledger) == [f"r{i}" for i in range(2000)]


def test_records_of_many_threads_all_arrive(writer, ledger, heard):
    def work(n):
        for i in range(200):
            writer.put(record(f"{n}-{i}"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.flush(WAIT_S)
    assert len(set(ids(ledger))) == 1600
    assert heard.counts["ledger.committed"] == 1600


def test_callbacks_come_once_whenever_they_are_added(writer):
    calls = []
    ticket = writer.put(record("a"))
    ticket.add_done_callback(lambda: calls.append(1))
    assert ticket.wait(WAIT_S)
    writer.flush(WAIT_S)
    ticket.add_done_callback(lambda: calls.append(2))
    assert calls == [1, 2]


def test_a_callback_that_raises_harms_nobody(writer, ledger, heard):
    ledger.gate.clear()
    first = writer.put(record("a"))
    first.add_done_callback(lambda: 1 / 0)
    ledger.gate.set()
    assert writer.put(record("b")).wait(WAIT_S)
    assert [name for name, _ in heard.failures] == ["ledger.callback"]


def test_an_event_loop_can_wait_for_tickets(writer, ledger):
    async def main():
        ledger.gate.clear()
        tickets = [writer.put(record(f"r{i}")) for i in range(3)]
        assert not await all_committed(tickets, 0.01)
        asyncio.get_running_loop().call_later(0.01, ledger.gate.set)
        assert await all_committed(tickets, WAIT_S)
        assert await all_committed(tickets, 0)
        assert await all_committed([], 0)

    asyncio.run(main())


def test_those_whose_time_is_out_together_share_a_timer_and_leave_nothing_behind(writer, ledger):
    async def main():
        loop, timers = asyncio.get_running_loop(), []
        call_at = loop.call_at

        def counted(at, *args, **more):
            timers.append(at)
            return call_at(at, *args, **more)

        loop.call_at = counted
        ledger.gate.clear()
        late = [writer.put(record(f"late{i}")) for i in range(20)]
        began = loop.time()
        found = await asyncio.gather(*(all_committed([ticket], 1.2) for ticket in late))
        took = loop.time() - began
        assert found == [False] * 20
        assert took >= 1.1
        assert len(timers) < 10  # more than one where they began on both sides of a tick
        ledger.gate.set()
        assert await all_committed(late, WAIT_S)
        assert not any(tickets_module._places[loop].values())

    asyncio.run(main())


def test_a_task_that_is_cancelled_while_it_waits_ends_and_the_record_stays(writer, ledger):
    async def main():
        ledger.gate.clear()
        ticket = writer.put(record("a"))
        task = asyncio.ensure_future(all_committed([ticket], WAIT_S))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ledger.gate.set()
        assert await all_committed([ticket], WAIT_S)

    asyncio.run(main())
    assert ids(ledger) == ["a"]


def test_a_loop_that_closed_meanwhile_is_no_matter(writer, ledger, heard):
    ledger.gate.clear()
    ticket = writer.put(record("a"))

    async def main():
        return not await all_committed([ticket], 0.001)

    assert asyncio.run(main())
    ledger.gate.set()
    assert ticket.wait(WAIT_S)
    assert writer.flush(WAIT_S)
    assert heard.failures == []


# ---- run


def test_run_sees_what_was_queued_before(writer):
    for i in range(10):
        writer.put(record(f"r{i}"))
    assert writer.run(lambda ledger: len(ledger.records)) == 10


def test_run_works_on_the_writers_thread_and_passes_errors_on(writer):
    assert writer.run(lambda _: threading.current_thread().name) == "llm-metering-writer"
    with pytest.raises(KeyError):
        writer.run(lambda _: {}["x"])
    assert writer.run(lambda ledger: writer.run(lambda inner: inner is ledger)) is True


def test_run_gives_up_after_its_time_and_then_never_begins(writer, ledger):
    ledger.gate.clear()
    writer.put(record("a"))
    assert ledger.at_gate.wait(WAIT_S)
    ran = []
    with pytest.raises(TimeoutError):
        writer.run(lambda _: ran.append(1), timeout_s=0.01)
    ledger.gate.set()
    assert writer.flush(WAIT_S)
    assert ran == []


def test_alarms_of_the_ledger_are_passed_on(make, ledger, heard):
    writer = make(ledger, now=lambda: T0)
    writer.run(lambda ledger: (ledger.maintain(now=T0), ledger.maintain(now=T0 - 3600)))
    assert heard.alarm_names == ["ledger.clock_went_back"]


# ---- streams


def test_only_the_latest_progress_of_a_stream_is_written(writer, ledger):
    ledger.gate.clear()
    writer.put(record("first"))
    assert ledger.at_gate.wait(WAIT_S)
    for i in range(50):
        writer.progress(record("s", usage=Usage(input=i)))
    ledger.gate.set()
    assert writer.flush(WAIT_S)
    assert ledger.status(now=T0).streams_under_way == 1
    ledger.close()
    ledger.open(now=T0)
    assert totals(ledger)["recorded"] == 10 + 49


@pytest.mark.parametrize("final", ["s", "other"])
def test_a_stream_that_ended_leaves_no_progress_behind(writer, ledger, final):
    writer.progress(record("s"))
    assert writer.flush(WAIT_S)
    assert ledger.status(now=T0).streams_under_way == 1
    writer.progress(record("s"))
    writer.put(record(final), closes="s")
    writer.progress(record("s"))
    assert writer.flush(WAIT_S)
    writer.progress(record("s"))
    assert writer.flush(WAIT_S)
    assert ledger.status(now=T0).streams_under_way == 0
    assert ids(ledger) == [final]


def test_a_stream_that_is_dropped_leaves_nothing(writer, ledger):
    writer.progress(record("a"))
    assert writer.flush(WAIT_S)
    writer.progress(record("b"))
    writer.drop("a")
    writer.drop("b")
    writer.drop("never seen")
    writer.progress(record("a"))
    assert writer.flush(WAIT_S)
    assert ledger.status(now=T0).streams_under_way == 0
    assert ids(ledger) == []
    assert writer.stop(WAIT_S)
    assert ledger.closes == 1


# ---- what cannot be written


def test_a_poisoned_record_fails_alone(writer, ledger, heard):
    ledger.gate.clear()
    writer.put(record("first"))
    assert ledger.at_gate.wait(WAIT_S)
    good = [writer.put(record(f"r{i}")) for i in range(3)]
    bad = writer.put(record("bad", used_at=float("nan")))
    good += [writer.put(record(f"q{i}")) for i in range(3)]
    ledger.gate.set()
    assert bad.wait(WAIT_S)
    assert isinstance(bad.error, ValueError)
    assert all(t.wait(WAIT_S) and t.error is None for t in good)
    assert ids(ledger) == ["first", "r0", "r1", "r2", "q0", "q1", "q2"]
    assert heard.counts["ledger.rejected"] == 1
    assert [name for name, _ in heard.failures] == ["ledger.record"]
    assert writer.healthy


def test_a_poisoned_stream_fails_alone(writer, ledger, heard):
    ledger.gate.clear()
    writer.put(record("first"))
    assert ledger.at_gate.wait(WAIT_S)
    writer.progress(record("bad", used_at=float("inf")))
    writer.progress(record("s"))
    good = writer.put(record("a"))
    ledger.gate.set()
    assert good.wait(WAIT_S)
    assert writer.flush(WAIT_S)
    assert ledger.status(now=T0).streams_under_way == 1
    assert [name for name, _ in heard.failures] == ["ledger.progress"]


def test_lines_that_cannot_be_computed_fail_their_record_alone(ledger, heard):
    def lines(r):
        if r.id == "bad":
            raise KeyError("no such meter")
        return lines_of(r)

    writer = Writer(ledger, lines_of=lines, telemetry=heard)
    writer.progress(record("bad"))
    bad, good = writer.put(record("bad")), writer.put(record("good"))
    assert good.wait(WAIT_S)
    assert isinstance(bad.error, KeyError)
    assert ids(ledger) == ["good"]
    writer.stop()


def test_a_failing_disk_keeps_records_and_they_arrive_when_it_works_again(writer, ledger, heard):
    ledger.failing = LedgerError("disk full")
    tickets = [writer.put(record(f"r{i}")) for i in range(20)]
    writer.progress(record("s"))
    assert not writer.flush(WAIT_S)
    while heard.counts.get("ledger.write_failed", 0) < 4:
        time.sleep(0.001)
    assert not writer.healthy
    assert writer.problem == "disk full"
    assert writer.queued == 20
    assert not any(t.done for t in tickets)
    assert heard.alarm_names == ["ledger.cannot_write"]
    ledger.failing = None
    assert all(t.wait(WAIT_S) and t.error is None for t in tickets)
    assert writer.flush(WAIT_S)
    assert ids(ledger) == [f"r{i}" for i in range(20)]
    assert ledger.status(now=T0).streams_under_way == 1
    assert writer.healthy
    assert heard.alarm_names == ["ledger.cannot_write", "ledger.writing_again"]


def test_a_ledger_that_keeps_failing_is_opened_anew(writer, ledger, heard):
    ledger.failing = LedgerError("malformed")
    ticket = writer.put(record("a"))
    while heard.counts.get("ledger.write_failed", 0) < pen_module.REOPEN_AFTER + 1:
        time.sleep(0.001)
    ledger.failing = None
    assert ticket.wait(WAIT_S)
    assert ledger.opens == 2


def test_a_lane_that_breaks_in_use_is_set_apart_and_recording_goes_on(tmp_path, make, heard):
    broken: list[bool] = []

    class Breaking(sqlite3.Connection):
        def execute(self, *args: Any) -> Any:
            if broken:
                raise sqlite3.DatabaseError("database disk image is malformed")
            return super().execute(*args)

    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        broken.clear()
        return sqlite3.connect(*args, **kwargs, factory=Breaking)

    ledger = SqliteLedger(tmp_path / "ledger", connect=connect)
    writer = make(ledger)
    writer.start()
    for n in range(300):
        writer.put(record(f"before-{n}"))
    assert writer.flush(WAIT_S)
    lane = ledger.lane
    writer.run(lambda held: held._lanes.get(lane).db.execute("PRAGMA wal_checkpoint(TRUNCATE)"))
    path = tmp_path / "ledger" / f"lane-{lane}.db"
    with path.open("r+b") as file:
        file.seek(4096 * 8)
        file.write(b"\0" * 4096)
    broken.append(True)
    ticket = writer.put(record("after"))
    assert ticket.wait(WAIT_S)
    assert ticket.error is None
    assert heard.alarm_names == ["ledger.cannot_write", "ledger.damaged", "ledger.writing_again"]
    kept = [id_ for (id_,) in rows(tmp_path / "ledger", "SELECT id FROM usage")]
    assert "after" in kept
    assert 200 < len(kept) <= 301, "what can be read was salvaged"
    assert list((tmp_path / "ledger" / "damaged").glob(f"lane-{lane}-*.db"))


def test_what_exceeds_the_room_in_memory_is_refused_with_an_alarm(make, ledger, heard):
    writer = make(ledger, max_queued=10)
    writer.start()
    ledger.failing = LedgerError("disk full")
    tickets = [writer.put(record(f"r{i}")) for i in range(30)]
    writer.flush(WAIT_S)
    refused = [t for t in tickets if t.done]
    assert all(isinstance(t.error, LedgerError) for t in refused)
    assert heard.counts["ledger.refused"] == len(refused) >= 20 - 10
    assert heard.alarm_names.count("ledger.refusing") == 1
    assert not writer.healthy
    ledger.failing = None
    kept = [t for t in tickets if not t.done or t.error is None]
    assert all(t.wait(WAIT_S) for t in kept)
    assert len(ledger.records) == len(kept)
    assert writer.flush(WAIT_S)
    assert writer.healthy


# ---- starting and stopping


def test_what_is_put_before_the_start_is_written(make, ledger):
    writer = make(ledger)
    assert writer.put(record("a")).wait(WAIT_S)
    writer.start()
    assert ids(ledger) == ["a"]
    assert ledger.opens == 1


def test_start_says_why_the_ledger_does_not_open(make, ledger):
    writer = make(ledger)
    ledger.failing = LedgerError("cannot be written")
    with pytest.raises(LedgerError, match="cannot be written"):
        writer.start()
    ledger.failing = None
    writer.start()
    assert writer.put(record("a")).wait(WAIT_S)


def test_what_is_put_before_a_start_that_fails_is_written_later(make, ledger):
    writer = make(ledger)
    ledger.failing = LedgerError("cannot be written")
    ticket = writer.put(record("a"))
    with pytest.raises(LedgerError):
        writer.run(lambda _: None)
    ledger.failing = None
    assert ticket.wait(WAIT_S)


def test_stop_writes_what_is_queued_and_closes_the_ledger(writer, ledger):
    ledger.gate.clear()
    tickets = [writer.put(record(f"r{i}")) for i in range(1000)]
    ledger.gate.set()
    assert writer.stop(WAIT_S)
    assert all(t.done for t in tickets)
    assert ledger.closes == 1
    assert writer.stop()


def test_a_record_put_after_stop_is_on_disk_when_put_returns(writer, ledger):
    writer.stop(WAIT_S)
    ticket = writer.put(record("late"))
    assert ticket.done
    assert ticket.error is None
    assert ids(ledger) == ["late"]
    assert ledger.threads == {"MainThread"}
    assert writer.run(lambda held: len(held.records)) == 1
    assert writer.flush(0)


def test_a_writer_can_be_started_again(writer, ledger):
    writer.stop(WAIT_S)
    writer.start()
    assert writer.put(record("a")).wait(WAIT_S)
    assert ledger.threads == {"llm-metering-writer"}


def test_while_streams_are_under_way_the_ledger_stays_open_through_stop(tmp_path, make):
    ledger = SqliteLedger(tmp_path / "ledger", adopt_after_s=0)
    writer = make(ledger)
    writer.start()
    writer.progress(record("s", usage=Usage(input=3)))
    writer.stop(WAIT_S)
    other = SqliteLedger(tmp_path / "ledger", adopt_after_s=0)
    other.open(now=T0)  # must not take the lane and bill half a stream
    assert other.status(now=T0).streams_under_way == 1
    other.close()
    assert writer.put(record("final", usage=Usage(input=8)), closes="s").done
    assert ledger.lane == ""  # closed now that nothing needs it
    assert totals(ledger)["recorded"] == 8


def test_records_that_race_with_stop_are_written_too(make):
    for _ in range(20):
        ledger = Watched()
        writer = make(ledger)
        writer.start()
        tickets = []

        def work(writer=writer, tickets=tickets):
            for i in range(100):
                tickets.append(writer.put(record(f"r{i}")))

        thread = threading.Thread(target=work)
        thread.start()
        writer.stop(WAIT_S)
        thread.join()
        assert all(t.wait(WAIT_S) for t in tickets)
        assert len(ledger.records) == 100


def test_what_is_put_while_the_program_ends_is_written(tmp_path):
    script = """
import atexit, sys, threading
sys.path.insert(0, sys.argv[2])
from tests.ledger.conftest import Heard, lines_of, record
from llm_metering.ledger import SqliteLedger, Writer
heard = Heard()
writer = Writer(SqliteLedger(sys.argv[1]), lines_of=lines_of, telemetry=heard)
class Late:
    def __del__(self):
        ticket = writer.put(record("late"))
        assert ticket.done and ticket.error is None, (ticket.error, heard)
late = Late()
atexit.register(lambda: writer.put(record("at exit")))
writer.put(record("last"))
"""
    runs_without_a_word(script, tmp_path / "l")
    assert rows(tmp_path / "l", "SELECT id FROM usage ORDER BY seq") == [
        ("last",),
        ("at exit",),
        ("late",),
    ]


def test_a_forked_child_writes_with_a_thread_and_a_lane_of_its_own(tmp_path):
    """While the parent's writer is busy, its locks held and its queue full."""
    script = """
import os, sys, threading
sys.path.insert(0, sys.argv[2])
from tests.ledger.conftest import Heard, lines_of, record
from llm_metering.ledger import SqliteLedger, Writer
heard = Heard()
writer = Writer(SqliteLedger(sys.argv[1]), lines_of=lines_of, telemetry=heard)
writer.start()
for n in range(5000):
    writer.put(record(f"parent-{n}"))
children = []
for c in range(3):
    child = os.fork()
    if child == 0:
        tickets = [writer.put(record(f"child-{c}-{n}")) for n in range(100)]
        assert all(t.wait(20) and t.error is None for t in tickets), heard
        assert writer.stop(20), heard
        os._exit(0)
    children.append(child)
assert [os.waitpid(c, 0)[1] for c in children] == [0, 0, 0]
assert writer.flush(20)
assert writer.stop(20)
"""
    runs_without_a_word(script, tmp_path / "l", "-W", "ignore")
    found = [id_ for (id_,) in rows(tmp_path / "l", "SELECT id FROM usage")]
    assert len(found) == len(set(found)) == 5000 + 3 * 100


def test_a_fork_waits_until_no_thread_is_inside_of_sqlite(tmp_path):
    """A child would inherit SQLite's own locks as they are, and wait for ever."""
    script = """
import os, sqlite3, sys, threading, time
sys.path.insert(0, sys.argv[2])
from tests.ledger.conftest import T0, entry
from llm_metering.ledger import SqliteLedger
inside, slow = threading.Event(), []
class Slow(sqlite3.Connection):
    def execute(self, *args):
        if slow:
            inside.set()
            time.sleep(0.2)
            inside.clear()
        return super().execute(*args)
connect = lambda *args, **more: sqlite3.connect(*args, **more, factory=Slow)
ledger = SqliteLedger(sys.argv[1], connect=connect)
ledger.open(now=T0)
slow.append(True)
thread = threading.Thread(target=lambda: ledger.commit([entry("a")], [], now=T0))
thread.start()
assert inside.wait(20)
if os.fork() == 0:
    os._exit(inside.is_set())
code = os.waitstatus_to_exitcode(os.wait()[1])
thread.join()
slow.clear()
ledger.close()
sys.exit(code)
"""
    runs_without_a_word(script, tmp_path / "l", "-W", "ignore")


def test_a_fork_does_not_wait_for_ever_nor_for_its_own_thread():
    gate, leave = Gate(patience_s=0.05), threading.Event()

    def hang():
        with gate:
            leave.wait(WAIT_S)

    thread = threading.Thread(target=hang)
    with gate, gate:
        thread.start()
        gate.before_fork()
        with gate:  # what its own thread has begun, it may end
            gate.after_fork()
    leave.set()
    thread.join()
    patient = Gate(patience_s=WAIT_S)
    with patient:
        patient.before_fork()  # at once
        patient.after_fork()


def test_a_whole_life_on_disk(tmp_path, make):
    ledger = SqliteLedger(tmp_path / "ledger", adopt_after_s=0)
    writer = make(ledger)
    writer.start()
    for i in range(3000):
        writer.put(record(f"r{i}", customer=f"cus_{i % 7}", used_at=T0 + i % 60))
    assert writer.run(lambda held: held.freeze(now=T0 + BUCKET, bucket_s=BUCKET)) == 7
    assert totals(ledger.view())["pending"] == 30_000
    assert ledger.view().status(now=T0).conserved
