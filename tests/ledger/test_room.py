"""A disk without room, for real: a tmpfs of 4 MiB, a cap on file sizes, a remount that takes no writes.

What was acknowledged stays, what is under way is settled, new usage waits in memory, nothing is dropped, and
all goes on once there is room again.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_metering.errors import LedgerError, LedgerFull
from llm_metering.ledger import LedgerView, MemoryLedger, SqliteLedger, Writer
from llm_metering.ledger import pen as pen_module
from llm_metering.ledger.room import MIB, ballast_path, build_ballast
from llm_metering.protocols import Outcome
from tests.ledger.conftest import BUCKET, T0, conserved, deliver, entry, lines_of, record, totals

ROOT = Path(__file__).parents[2]
DONE = T0 + BUCKET
WAIT_S = 10.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"a file system cannot be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def opened(small_disk: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def open_one(*, now: float = T0, **options: Any) -> SqliteLedger:
            ledger = SqliteLedger(small_disk / "ledger", **{"adopt_after_s": 0.0, **options})
            ledger.open(now=now)
            stack.callback(ledger.close)
            return ledger

        yield open_one


def fill(disk: Path, *, leave: int = 0) -> Path:
    """Somebody else takes the rest of the disk."""
    file = disk / "somebody-elses"
    found = os.statvfs(disk)
    with file.open("ab") as out, contextlib.suppress(OSError):
        os.posix_fallocate(out.fileno(), 0, max(found.f_bavail * found.f_frsize - leave, 0))
    return file


def fill_with_usage(ledger: SqliteLedger, *, now: float = T0, size: int = 50) -> int:
    """Record until there is no room; return how many were taken."""
    taken = 0
    for group in range(10_000):
        entries = [entry(f"g{group}-{i}", customer=f"cus_{i % 5}", used_at=now) for i in range(size)]
        try:
            taken += ledger.commit(entries, [], now=now)
        except LedgerFull:
            return taken
    raise AssertionError("the disk never filled")


def refusal(ledger: SqliteLedger, now: float) -> str:
    """Why no usage is taken, "" if it is."""
    try:
        ledger.commit([], [], now=now)
    except LedgerFull as exc:
        return str(exc)
    return ""


def acknowledged(ledger: SqliteLedger, result: Any) -> bool:
    try:
        return ledger.finish_many([result], now=DONE) != [None]
    except LedgerFull:
        return False


def test_ballast_is_made_of_real_blocks(tmp_path):
    (tmp_path / "l").mkdir()
    assert build_ballast(tmp_path / "l", "x", MIB)
    assert ballast_path(tmp_path / "l", "x").stat().st_blocks * 512 >= MIB
    with ballast_path(tmp_path / "l", "x").open("wb") as sparse:
        sparse.truncate(MIB)
    assert build_ballast(tmp_path / "l", "x", MIB)
    assert ballast_path(tmp_path / "l", "x").stat().st_blocks * 512 >= MIB


def test_usage_that_fills_the_disk_is_refused_and_what_is_under_way_goes_on(opened, small_disk):
    ledger = opened()
    for n in range(5):
        ledger.commit([entry(f"first{n}", customer=f"cus_{n}")], [], now=T0)
    assert ledger.freeze(now=DONE, bucket_s=BUCKET) == 5
    assert ballast_path(ledger.folder, ledger.lane).exists()
    taken = 5 + fill_with_usage(ledger, now=DONE)
    assert taken > 1000
    assert not ballast_path(ledger.folder, ledger.lane).exists(), "the ballast was not given up"
    # No usage takes the blocks that the ballast gave back, however often it is tried again.
    for _ in range(20):
        with pytest.raises(LedgerFull, match="is full"):
            ledger.commit([entry("more")], [], now=DONE)
    # Claims, acknowledgements and checkpoints go on.
    while deliver(ledger, now=DONE, limit=2):
        pass
    assert totals(ledger)["accepted"] == 50
    # Freezing all at once needs more than the ballast: it fails whole, and delivery goes on after it.
    with contextlib.suppress(LedgerFull):
        ledger.freeze(now=DONE + BUCKET, bucket_s=BUCKET)
    ledger.set_meta("still", "written")
    # Nothing is lost, and all is delivered once there is room.
    assert ledger.status(now=DONE).usage_records == taken
    assert conserved(ledger)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert ledger.commit([entry("more", used_at=DONE)], [], now=DONE + 5) == 1
    ledger.freeze(now=DONE + BUCKET, bucket_s=BUCKET)
    while deliver(ledger, now=DONE + BUCKET):
        pass
    found = totals(ledger)
    assert found["recorded"] == found["accepted"] == (taken + 1) * 10


@pytest.mark.parametrize("ballast", [True, False])
def test_a_full_disk_takes_acknowledgements_thanks_to_the_ballast(opened, small_disk, ballast):
    """Without ballast the outcome of what was sent could not be written: the other half proves the point."""
    ledger = opened(ballast_bytes=MIB if ballast else 0)
    for n in range(8):
        ledger.commit([entry(f"r{n}", customer=f"cus_{n}")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    claims = ledger.claim(now=DONE, limit=8)
    assert len(claims) == 8
    fill(small_disk)
    results = [(claim, Outcome("accepted", 200)) for claim in claims]
    if not ballast:
        # A page of the log may be left over; then it is full for good.
        written = sum(acknowledged(ledger, result) for result in results)
        assert written < 2
        return
    for result in results:  # each its own transaction
        (moved,) = ledger.finish_many([result], now=DONE)
        assert moved is not None
        assert moved.after == "ACCEPTED"
    assert totals(ledger)["accepted"] == 80


def test_after_a_restart_on_a_full_disk_what_was_sent_is_settled(opened, small_disk):
    ledger = opened()
    ledger.commit([entry("a")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    (claim,) = ledger.claim(now=DONE, limit=1)
    ledger.close()
    fill(small_disk)
    heir = opened(now=DONE)  # tidying up writes, and finds room in the ballast of the lane
    assert heir.lane == claim.lane
    (again,) = heir.claim(now=DONE, limit=1)
    assert again.event == claim.event
    moved = heir.finish(again, Outcome("duplicate", 400), now=DONE)
    assert moved is not None
    assert moved.after == "ACCEPTED"


def test_usage_is_taken_again_once_there_is_room_and_the_ballast_is_back_first(opened, small_disk):
    ledger = opened()
    ledger.commit([entry("a")], [], now=T0)
    theirs = fill(small_disk)
    taken = fill_with_usage(ledger, size=1)
    with pytest.raises(LedgerFull):
        ledger.commit([entry("b")], [], now=T0 + 1)
    os.truncate(theirs, max(theirs.stat().st_size - MIB // 2, 0))
    with pytest.raises(LedgerFull):  # not yet: the ballast and as much again must fit
        ledger.commit([entry("b")], [], now=T0 + 5)
    theirs.unlink()
    assert ledger.commit([entry("b")], [], now=T0 + 10) == 1
    assert ballast_path(ledger.folder, ledger.lane).stat().st_blocks * 512 >= MIB
    assert ledger.status(now=T0).usage_records == taken + 2


def test_with_no_room_for_a_new_lane_the_start_says_so_and_goes_on_later(opened, small_disk):
    theirs = fill(small_disk)
    ledger = SqliteLedger(small_disk / "ledger")
    with pytest.raises(LedgerError, match=r"full|No space"):
        ledger.open(now=T0)
    theirs.unlink()
    ledger.open(now=T0)
    assert ledger.commit([entry("a")], [], now=T0) == 1
    ledger.close()
    assert not list(ledger.folder.glob("new-*"))


def test_free_space_is_left_to_others(opened, small_disk):
    ledger = opened(min_free_bytes=2 * MIB)
    assert ledger.commit([entry("a")], [], now=T0) == 1
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    theirs = fill(small_disk, leave=2 * MIB - 4096)
    with pytest.raises(LedgerFull, match="LLM_METERING_MIN_FREE_BYTES"):
        ledger.commit([entry("b")], [], now=T0)
    assert len(deliver(ledger, now=DONE)) == 1
    theirs.unlink()
    assert ledger.commit([entry("b")], [], now=T0) == 1


def test_the_folder_stays_below_its_cap_and_delivery_goes_on(tmp_path):
    ledger = SqliteLedger(tmp_path / "ledger", adopt_after_s=0, max_bytes=MIB)
    ledger.open(now=T0)
    try:
        taken, now = 0, T0
        while not (full := refusal(ledger, now := now + 2)):
            taken += ledger.commit([entry(f"{now}-{i}", used_at=T0) for i in range(20)], [], now=now)
        assert "LLM_METERING_MAX_LEDGER_BYTES" in full
        sizes = sum(f.stat().st_blocks * 512 for f in ledger.folder.iterdir() if f.suffix != ".ballast")
        assert MIB <= sizes < 2 * MIB
        ledger.freeze(now=now, bucket_s=BUCKET)
        deliver(ledger, now=now)
        assert totals(ledger)["accepted"] == taken * 10
    finally:
        ledger.close()
    larger = SqliteLedger(tmp_path / "ledger", adopt_after_s=0, max_bytes=2 * MIB)
    larger.open(now=now)
    assert larger.commit([entry("after")], [], now=now) == 1
    larger.close()


# ---- the writer: memory holds what the disk cannot


@pytest.fixture
def quick_retries(monkeypatch):
    monkeypatch.setattr(pen_module, "FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(pen_module, "LONGEST_RETRY_S", 0.02)


def wait_for(ready: Any) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not ready():
        assert time.monotonic() < ends_at, "it did not come true"
        time.sleep(0.005)


def test_a_writer_on_a_full_disk_keeps_what_it_is_given_and_writes_it_later(small_disk, heard, quick_retries):
    clock = iter(range(10**9))
    ledger = SqliteLedger(small_disk / "ledger", adopt_after_s=0)
    writer = Writer(ledger, lines_of=lines_of, telemetry=heard, now=lambda: T0 + next(clock))
    writer.start()
    try:
        assert writer.put(record("before")).wait(WAIT_S)
        assert writer.has_room()
        theirs = fill(small_disk)
        tickets = []
        while writer.has_room():
            tickets.append(writer.put(record(f"r{len(tickets)}")))
            assert len(tickets) < 100_000
            time.sleep(0.0005)
        assert not writer.healthy
        assert "full" in (writer.problem or "")
        assert "ledger.full" in heard.alarm_names
        assert any(not ticket.done for ticket in tickets), "kept, not dropped"
        theirs.unlink()
        assert all(ticket.wait(WAIT_S) for ticket in tickets)
        assert all(ticket.error is None for ticket in tickets)
        assert writer.has_room()
        assert writer.healthy
        assert heard.alarm_names[-1] == "ledger.writing_again"
        assert LedgerView(ledger.folder).status(now=T0).usage_records == len(tickets) + 1
    finally:
        writer.stop()


def test_a_disk_that_turns_read_only_is_no_crash_and_loses_nothing(
    small_disk, heard, quick_retries, monkeypatch
):
    monkeypatch.setattr(pen_module, "GRACE_S", 0.05)
    ledger = SqliteLedger(small_disk / "ledger", adopt_after_s=0)
    writer = Writer(ledger, lines_of=lines_of, telemetry=heard, now=lambda: T0)
    writer.start()
    try:
        assert writer.put(record("before")).wait(WAIT_S)
        writer.stop()  # files that are open for writing keep a disk from turning read-only
        remounted = subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], capture_output=True)
        if remounted.returncode:
            pytest.skip("the disk cannot be remounted here")
        writer.begin_anew()
        ticket = writer.put(record("while"))
        wait_for(lambda: not writer.has_room())
        assert not writer.healthy
        assert "ledger.cannot_write" in heard.alarm_names
        assert not ticket.done
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        assert ticket.wait(WAIT_S)
        assert ticket.error is None
        wait_for(writer.has_room)
    finally:
        writer.stop()
    assert LedgerView(ledger.folder).status(now=T0).usage_records == 2


LIMITED = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from tests.ledger.conftest import BUCKET, T0, conserved, deliver, entry, totals
from llm_metering.errors import LedgerError
from llm_metering.ledger import SqliteLedger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = SqliteLedger(sys.argv[1], adopt_after_s=0)
ledger.open(now=T0)
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
taken = 0
try:
    for group in range(10_000):
        taken += ledger.commit([entry(f"{group}-{i}") for i in range(20)], [], now=T0)
except LedgerError as exc:
    print(taken, flush=True)
for _ in range(3):
    try:
        ledger.commit([entry("more" + "x" * 5000)], [], now=T0)
    except LedgerError:
        pass
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
ledger.commit([entry("after")], [], now=T0)
ledger.freeze(now=T0 + BUCKET, bucket_s=BUCKET)
deliver(ledger, now=T0 + BUCKET)
assert conserved(ledger)
found = ledger.status(now=T0)
assert found.usage_records >= taken + 1, found
assert totals(ledger)["accepted"] == totals(ledger)["recorded"]
print("well")
"""


def test_a_cap_on_file_sizes_is_an_error_and_no_end_and_rows_stay_intact(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "ledger"), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    taken, well = done.stdout.split()
    assert int(taken) > 100
    assert well == "well"


def test_a_spike_leaves_memory_bounded_and_is_told(heard):
    """Ten times what the disk can take: what is refused is refused aloud, and what was taken stays."""
    gate = threading.Event()

    class Slow(MemoryLedger):
        def commit(self, *args: Any, **more: Any) -> int:
            assert gate.wait(WAIT_S)
            return super().commit(*args, **more)

    ledger = Slow()
    writer = Writer(ledger, lines_of=lines_of, telemetry=heard, max_group=50, max_queued=400)
    writer.start()
    try:
        room = []
        for n in range(4000):
            room.append(writer.has_room())
            writer.put(record(f"r{n}"))
        assert writer.queued <= 450
        assert room[:300] == [True] * 300
        assert not any(room[400:]), "a service should turn requests away before records are refused"
        assert heard.counts["ledger.refused"] >= 3500
        assert heard.alarm_names.count("ledger.refusing") == 1
        gate.set()
        assert writer.flush(WAIT_S)
        wait_for(writer.has_room)
        assert writer.healthy
        assert len(ledger.records) + heard.counts["ledger.refused"] == 4000
    finally:
        gate.set()
        writer.stop()
