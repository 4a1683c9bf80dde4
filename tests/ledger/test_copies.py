"""A ledger that was copied while it worked, or restored from a backup: what both hold is billed once.

Both go on, each with a Stripe that forgets identifiers after 24 hours between them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_metering import _failpoints, settling
from llm_metering.errors import LedgerError
from llm_metering.ledger import SqliteLedger, homes, judging, spool
from llm_metering.ledger.desk import Desk
from llm_metering.ledger.homes import Home
from llm_metering.protocols import Outcome
from tests.ledger.conftest import BUCKET, T0, conserved, entry, progress, rows, totals

ROOT = Path(__file__).parents[2]
DONE = T0 + BUCKET
DAY = 86_400.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def opened(folder: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def open_one(at: Path = folder, *, now: float = T0, **options: Any) -> SqliteLedger:
            ledger = SqliteLedger(at, **{"adopt_after_s": 0.0, **options})
            ledger.open(now=now)
            stack.callback(ledger.close)
            return ledger

        yield open_one


class Stripe:
    """Takes an identifier once a day, and adds up for good."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}
        self.billed: dict[str, int] = {}

    def serve(self, ledger: SqliteLedger, *, now: float) -> None:
        """Deliver all that this ledger would send by itself."""
        ledger.maintain(now=now)
        ledger.freeze(now=now, bucket_s=BUCKET)
        while claims := ledger.claim(now=now, limit=50):
            for claim in claims:
                ledger.finish(claim, self.take(claim.event, now), now=now)

    def take(self, event: Any, now: float) -> Outcome:
        if now - self.seen.get(event.identifier, float("-inf")) < DAY:
            return Outcome("duplicate", 400)
        self.seen[event.identifier] = now
        self.billed[event.customer] = self.billed.get(event.customer, 0) + int(event.value)
        return Outcome("accepted", 200)


def busy(ledger: SqliteLedger) -> None:
    """One of each: accepted, being sent, ambiguous, pending, not frozen, a stream under way."""
    for n in range(4):
        ledger.commit([entry(f"r{n}", customer=f"cus_{n}")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    first, second, _third = ledger.claim(now=DONE, limit=3)
    ledger.finish(first, Outcome("accepted", 200), now=DONE)
    ledger.finish(second, Outcome("ambiguous"), now=DONE)
    ledger.commit(
        [entry("u", customer="cus_u", used_at=DONE)],
        [progress("s", customer="cus_s", used_at=DONE)],
        now=DONE,
    )


@pytest.mark.parametrize("waits", [600.0, 3 * DAY])
@pytest.mark.parametrize("first", ["original", "copy"])
def test_a_copied_folder_bills_nothing_that_the_original_bills(opened, folder, tmp_path, first, waits):
    """Within the day in which Stripe knows an identifier, and after it."""
    original, stripe = opened(), Stripe()
    busy(original)
    stripe.billed["cus_0"] = 10  # the one that was accepted
    shutil.copytree(folder, tmp_path / "copy")
    copy = opened(tmp_path / "copy", now=DONE)
    order = [original, copy] if first == "original" else [copy, original]
    for n, ledger in enumerate(order):
        stripe.serve(ledger, now=DONE + BUCKET + n * waits)
    for ledger in order:  # and once more, in case something was only waiting
        stripe.serve(ledger, now=DONE + 2 * BUCKET + 2 * waits)
    assert all(tokens == 10 for tokens in stripe.billed.values()), stripe.billed
    original.commit([], [], drops=["s"], now=DONE)
    # What the copy gets from now on is its own, and billed.
    copy.commit([entry("new", customer="cus_new", used_at=DONE + 3 * waits)], [], now=DONE + 3 * waits)
    stripe.serve(copy, now=DONE + 4 * waits)
    assert stripe.billed["cus_new"] == 10
    assert conserved(copy)
    assert conserved(original)


def test_nobody_decides_of_a_copy_before_a_process_has_taken_it(opened, folder, tmp_path):
    original = opened()
    busy(original)
    lane, at = original.lane, tmp_path / "copy"
    shutil.copytree(folder, at)
    held = "u"
    desk = Desk(at, wait_s=0, now=lambda: DONE)
    with pytest.raises(LedgerError, match="copied file"):
        desk.decide("assign", {lane: [held]}, who="ada", why="x", customer="cus_9")
    assert rows(at, "SELECT count(*) FROM action") == [(0,)]
    assert not list((at / "decisions").glob("*")), "nothing waits to be carried out later"
    desk.pause(who="ada", why="x")
    assert rows(at, "SELECT count(*) FROM action") == [(0,)], "the copy is as it was"
    assert spool.pause_of(at) is not None
    desk.resume(who="ada", why="x")
    copy = opened(at, now=DONE + 1)
    copy.close()
    (ruling,) = desk.decide("release", {copy_lane(at): [held]}, who="ada", why="the original is gone").done
    assert ruling.subject == held


def copy_lane(folder: Path) -> str:
    (path,) = folder.glob("lane-*.db")
    return path.stem.removeprefix("lane-")


def test_a_copy_says_so_and_stands_under_a_name_of_its_own(opened, folder, tmp_path):
    original = opened()
    busy(original)
    shutil.copytree(folder, tmp_path / "copy")
    copy = opened(tmp_path / "copy", now=DONE + 1)
    (alarm,) = copy.take_alarms()
    assert alarm.name == "ledger.copied"
    assert (alarm.data["records"], alarm.data["events"]) == (2, 3)
    assert copy.lane != original.lane
    states = copy.status(now=DONE).events
    assert states == {"ACCEPTED": 1, "IN_DOUBT": 3}
    found = totals(copy)
    assert (found["recorded"], found["accepted"], found["in_doubt"], found["pending"]) == (60, 10, 30, 20)
    reasons = rows(tmp_path / "copy", "SELECT DISTINCT held FROM usage WHERE held IS NOT NULL")
    assert all(reason.startswith("copied lane") for (reason,) in reasons)
    (action,) = rows(tmp_path / "copy", "SELECT who, what, after FROM action")
    assert action == ("llm_metering", "suspect", "2 records held, 3 events in doubt")
    # It says it once; the original says nothing.
    copy.close()
    again = opened(tmp_path / "copy", now=DONE + 2)
    assert again.take_alarms() == []
    assert again.lane == copy.lane or again.lane
    original.close()
    assert opened(now=DONE).take_alarms() == []


def test_a_person_may_let_a_copy_bill_what_it_holds(opened, folder, tmp_path):
    """A backup put in place of a disk that is gone: there is no original any more."""
    original = opened()
    busy(original)
    shutil.copytree(folder, tmp_path / "backup")
    original.close()
    shutil.rmtree(folder)
    restored = opened(tmp_path / "backup", now=DONE)
    assert restored.release(["u", "s"], who="ada", why="the disk is gone", now=DONE) == 2
    stripe = Stripe()
    stripe.serve(restored, now=DONE + BUCKET)
    assert stripe.billed == {"cus_u": 10, "cus_s": 10}


def test_stripes_sums_alone_do_not_say_that_a_copys_event_will_not_arrive(opened, folder, tmp_path):
    """The original may be cut off just now, and send it in an hour."""
    original = opened()
    busy(original)
    shutil.copytree(folder, tmp_path / "copy")
    copy = opened(tmp_path / "copy", now=DONE)
    doubtful = [row.event.identifier for row in copy.events(states=["IN_DOUBT"])]
    ruling = copy.resolve(doubtful[0], False, who=judging.ORACLE, why="not in the sums", now=DONE)
    assert "the original may yet send it" in str(ruling.refused)
    assert (
        copy.resolve(doubtful[0], True, who=judging.ORACLE, why="in the sums", now=DONE).after == "ACCEPTED"
    )
    by_hand = copy.resolve(doubtful[1], False, who="ada", why="the original is gone", now=DONE)
    assert by_hand.after == "CLOSED"
    assert judging.ORACLE == settling.WHO


def test_a_backup_restored_in_place_sends_nothing_twice(opened, folder, tmp_path):
    ledger, stripe = opened(), Stripe()
    ledger.commit([entry("a", customer="cus_a")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    ledger.commit([entry("b", customer="cus_b", used_at=DONE)], [], now=DONE)
    ledger.close()
    shutil.copytree(folder, tmp_path / "backup")
    ledger = opened(now=DONE)
    stripe.serve(ledger, now=DONE + BUCKET)
    assert stripe.billed == {"cus_a": 10, "cus_b": 10}
    ledger.close()
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    restored = opened(now=DONE + 5 * DAY)
    stripe.serve(restored, now=DONE + 5 * DAY)
    assert stripe.billed == {"cus_a": 10, "cus_b": 10}
    assert restored.status(now=DONE).events == {"IN_DOUBT": 1}
    assert restored.status(now=DONE).held_records == 1


def test_an_older_file_put_under_the_locks_of_today_is_known(opened, folder, tmp_path):
    """As a snapshot of the disk would: to all appearances the same file, but it has forgotten its sends."""
    ledger, stripe = opened(), Stripe()
    ledger.commit([entry("a", customer="cus_a")], [], now=T0)
    ledger.close()
    (lane,) = folder.glob("lane-*.db")
    old = lane.read_bytes()
    ledger = opened(now=T0)
    stripe.serve(ledger, now=DONE)
    assert stripe.billed == {"cus_a": 10}
    ledger.close()
    with lane.open("r+b") as file:  # the same inode
        file.write(old)
        file.truncate(len(old))
    restored = opened(now=DONE)
    assert [alarm.name for alarm in restored.take_alarms()] == ["ledger.sends_lost"]
    stripe.serve(restored, now=DONE + 3 * DAY)
    assert stripe.billed == {"cus_a": 10}
    assert restored.status(now=DONE).held_records == 1


def test_a_file_that_another_machine_used_is_a_copy(opened, folder, monkeypatch):
    monkeypatch.setattr(homes, "this_machine", lambda: "machine-a")
    ledger = opened()
    busy(ledger)
    ledger.close()
    monkeypatch.setattr(homes, "this_machine", lambda: "machine-b")
    clone = opened(now=DONE)
    assert [alarm.name for alarm in clone.take_alarms()] == ["ledger.copied"]
    assert clone.status(now=DONE).events == {"ACCEPTED": 1, "IN_DOUBT": 3}


def test_a_container_that_takes_over_the_disk_of_another_goes_on(opened, folder, monkeypatch):
    monkeypatch.setattr(homes, "this_machine", lambda: None)
    ledger = opened()
    busy(ledger)
    ledger.close()
    heir = opened(now=DONE)
    assert heir.take_alarms() == []
    assert "IN_DOUBT" not in heir.status(now=DONE).events


def test_a_folder_that_is_moved_or_renamed_goes_on(opened, folder, tmp_path):
    ledger = opened()
    busy(ledger)
    ledger.close()
    folder.rename(tmp_path / "elsewhere")
    heir = opened(tmp_path / "elsewhere", now=DONE)
    assert heir.take_alarms() == []
    assert heir.lane == ledger.lane or heir.lane


def test_a_lane_copied_within_its_folder_is_set_apart(opened, folder):
    ledger = opened()
    ledger.commit([entry("a")], [], now=T0)
    ledger.close()
    (lane,) = folder.glob("lane-*.db")
    shutil.copy(lane, folder / "lane-backup.db")
    ledger = opened(now=DONE)
    ledger.maintain(now=DONE)
    assert "ledger.copied" in [alarm.name for alarm in ledger.take_alarms()]
    assert [path.name for path in folder.glob("lane-*.db")] == [lane.name]
    assert list((folder / "copies").glob("lane-backup-*.db"))
    assert totals(ledger)["recorded"] == 10
    stripe = Stripe()
    stripe.serve(ledger, now=DONE)
    assert stripe.billed == {"cus_1": 10}


@pytest.mark.parametrize("point", ["in_suspicion", "after_suspicion"])
def test_a_death_while_a_copy_is_told_apart_changes_nothing_of_it(opened, folder, tmp_path, point):
    original = opened()
    busy(original)
    shutil.copytree(folder, tmp_path / "copy")
    script = """
import sys
from llm_metering.ledger import SqliteLedger
SqliteLedger(sys.argv[1], adopt_after_s=0).open(now=float(sys.argv[2]))
"""
    died = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "copy"), str(DONE)],
        env={**os.environ, _failpoints.VARIABLE: point},
        cwd=ROOT,
    )
    assert died.returncode == -signal.SIGKILL
    copy = opened(tmp_path / "copy", now=DONE)
    stripe = Stripe()
    stripe.serve(copy, now=DONE + 5 * DAY)
    assert stripe.billed == {}
    assert conserved(copy)
    assert totals(copy)["recorded"] == 60


def test_facts_that_tell_a_copy_from_the_original():
    here = Home(7, "100.5", "m")
    assert not here.is_copy_of(here)
    assert not Home(8, "100.5", "m").is_copy_of(here), "a disk that numbers its files anew"
    assert Home(7, "100.6", "m").is_copy_of(here), "a number that was given out again"
    assert Home(7, "100.5", "n").is_copy_of(here)
    assert not Home(7, "100.5", None).is_copy_of(here)
    assert Home(8, None, None).is_copy_of(Home(7, None, None))
    assert not Home(7, None, None).is_copy_of(Home(7, "100.5", None))


def test_the_moment_a_file_was_made_is_known_where_the_disk_tells(tmp_path):
    (tmp_path / "a").write_text("x")
    made = homes.home_of(tmp_path / "a", None)
    if made.born is None:
        pytest.skip("this disk does not tell")
    os.utime(tmp_path / "a", (1, 1))
    assert homes.home_of(tmp_path / "a", None) == made
    shutil.copy2(tmp_path / "a", tmp_path / "b")
    assert homes.home_of(tmp_path / "b", None).born != made.born
