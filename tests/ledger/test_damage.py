"""Damaged files: bits flipped, pages zeroed, ends cut off, in the database and in its log.

Each time the process starts and records, what can be read goes on, nothing is billed twice, and what is lost
is named.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llm_metering import _failpoints
from llm_metering.ledger import SqliteLedger
from llm_metering.ledger import folder as files
from llm_metering.protocols import Outcome
from tests.ledger.conftest import BUCKET, T0, conserved, entry, line, progress, totals

ROOT = Path(__file__).parents[2]
DONE = T0 + BUCKET
LATER = DONE + 3 * 86_400.0
PAGE = 4096
SEED = int(os.environ.get("LLM_METERING_SEED", "7"))
TIMES = int(os.environ.get("LLM_METERING_DAMAGES", "12"))

LIFE = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from tests.ledger.test_damage import live
from llm_metering.ledger import SqliteLedger
ledger = SqliteLedger(sys.argv[1], adopt_after_s=0)
live(ledger, close=sys.argv[3] == "close")
os.kill(os.getpid(), signal.SIGKILL)
"""


def live(ledger: SqliteLedger, *, close: bool) -> None:
    """Every record is of a customer of its own, so that a second bill shows. Ends with some of everything:
    accepted, refused, in doubt, being sent, waiting, not frozen; what was sent is in a file beside it."""
    ledger.open(now=T0)
    sent = (ledger.folder.parent / "stripe").open("a")
    for n in range(60):
        group = [entry(f"{n}-{i}", customer=f"cus_{n:02d}_{i}", used_at=T0) for i in range(8)]
        ledger.commit(group, [], now=T0)
        if n % 15 == 14:
            ledger.freeze(now=DONE, bucket_s=BUCKET)
        if n % 3:
            continue
        for k, claim in enumerate(ledger.claim(now=DONE, limit=6)):
            if k < 4:
                sent.write(f"{claim.event.identifier} {claim.event.customer}\n")
                sent.flush()
            kind: Any = ("accepted", "accepted", "ambiguous", "accepted", "not_sent", "refused_data")[k]
            if n < 54 or k < 3:
                ledger.finish(claim, Outcome(kind, message=kind), now=DONE)
    ledger.commit([], [progress("stream", customer="cus_stream", used_at=T0)], now=DONE)
    if close:
        ledger.close()


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What a process left that was killed, with a log, and one that closed its file first."""
    made = {}
    for end in ("close", "kill"):
        place = tmp_path_factory.mktemp(end)
        command = [sys.executable, "-c", LIFE, str(place / "ledger"), str(ROOT), end]
        died = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert died.returncode == -signal.SIGKILL, died.stderr
        made[end] = place
    return made


@pytest.fixture
def left(lives: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A copy to be damaged, which passes for the original."""
    monkeypatch.setattr("llm_metering.ledger.homes.Home.is_copy_of", lambda *_: False)

    def make(end: str) -> Path:
        place = tmp_path / f"{end}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(lives[end], place)
        return place

    return make


def lane_of(place: Path) -> Path:
    (lane,) = (place / "ledger").glob("lane-*.db")
    return lane


def damage(place: Path, how: str, luck: random.Random) -> str:
    """Do it; return what was done."""
    lane = lane_of(place)
    log = Path(f"{lane}-wal")
    file = log if how.startswith("log") and log.exists() else lane
    data = bytearray(file.read_bytes())
    at = luck.randrange(len(data))
    if how.endswith("flip"):
        data[at] ^= 1 << luck.randrange(8)
    elif how.endswith("cut"):
        del data[at:]
    else:
        start = at // PAGE * PAGE
        data[start : start + PAGE] = bytes(min(PAGE, len(data) - start))
    file.write_bytes(data)
    return f"{how} at {at} of {file.name}"


def sent_by(place: Path) -> list[str]:
    """The customers who were billed before, once for each identifier that Stripe took."""
    lines = (place / "stripe").read_text().split()
    pairs = dict(zip(lines[::2], lines[1::2], strict=True))
    return list(pairs.values())


def deliver_all(ledger: SqliteLedger, place: Path, *, now: float) -> list[str]:
    """Send whatever goes out by itself, to a Stripe that has forgotten every identifier; who was billed.

    The wait before what was ambiguous is sent again would be less than 22 hours; here it is days, so that
    only what was never sent may go.
    """
    billed = []
    ledger.maintain(now=now)
    ledger.freeze(now=now, bucket_s=BUCKET)
    while claims := ledger.claim(now=now, limit=100):
        for claim in claims:
            billed.append(claim.event.customer)
            ledger.finish(claim, Outcome("accepted", 200), now=now)
    return billed


HOWS = ("flip", "cut", "zero", "log flip", "log cut", "log zero")


@pytest.mark.parametrize("how", HOWS)
def test_whatever_is_damaged_the_process_starts_and_nothing_is_billed_twice(left, how):
    told = 0
    for n in range(TIMES):
        luck = random.Random(f"{SEED} {how} {n}")
        place = left("kill" if how.startswith("log") else luck.choice(["close", "kill"]))
        what = f"seed {SEED}, {n}: {damage(place, how, luck)}"
        before = sent_by(place)
        ledger = SqliteLedger(place / "ledger", adopt_after_s=0)
        ledger.open(now=LATER)
        try:
            alarms = ledger.take_alarms()
            there = ledger.status(now=LATER).usage_records
            told += bool(alarms)
            billed = before + deliver_all(ledger, place, now=LATER)
            twice = {customer for customer in billed if billed.count(customer) > 1}
            assert not twice, f"{what}: {twice}"
            # A letter that changed in what was billed long ago is seen by the books alone: they say so.
            assert conserved(ledger) or (how == "flip" and not alarms), what
            if there < 480:  # the stream's progress is the 481st, and is not counted beside the file
                assert {alarm.name for alarm in alarms} & {"ledger.damaged", "ledger.records_lost"}, what
            assert ledger.commit([entry("after", used_at=LATER)], [], now=LATER) == 1, what
        finally:
            ledger.close()
        again = SqliteLedger(place / "ledger", adopt_after_s=0)
        again.open(now=LATER)
        assert again.take_alarms() == [], what
        assert again.status(now=LATER).usage_records >= there + 1, what
        again.close()
        shutil.rmtree(place)
    assert told, "the damage hit nothing"


def test_a_lane_with_a_damaged_index_is_salvaged_whole_and_goes_on(left):
    place = left("close")
    lane = lane_of(place)
    with contextlib.closing(sqlite3.connect(lane)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'meter_event_due'").fetchone()
    data = bytearray(lane.read_bytes())
    data[(root - 1) * PAGE : root * PAGE] = bytes(PAGE)
    lane.write_bytes(data)
    before = sent_by(place)
    ledger = SqliteLedger(place / "ledger", adopt_after_s=0)
    ledger.open(now=DONE)
    (alarm,) = ledger.take_alarms()
    assert alarm.name == "ledger.damaged"
    assert (alarm.data["lost_records"], alarm.data["lost_events"]) == (0, 0)
    assert alarm.data["records"] == 480
    assert ledger.status(now=DONE).held_records == 0
    billed = before + deliver_all(ledger, place, now=LATER)
    assert len(billed) > 400, "what was never sent is billed"
    assert len(set(billed)) == len(billed)
    assert conserved(ledger)
    ledger.close()


def test_what_is_lost_is_named_and_what_can_be_read_is_kept(left):
    place = left("close")
    lane = lane_of(place)
    with contextlib.closing(sqlite3.connect(lane)) as db:
        pages = (
            [
                page
                for (page,) in db.execute(
                    "SELECT pageno FROM dbstat WHERE name = 'usage' AND pagetype = 'leaf' ORDER BY pageno"
                )
            ]
            if has_dbstat(db)
            else []
        )
    if not pages:
        pytest.skip("this SQLite cannot tell which page is whose")
    data = bytearray(lane.read_bytes())
    page = pages[len(pages) // 2]
    data[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)
    lane.write_bytes(data)
    ledger = SqliteLedger(place / "ledger", adopt_after_s=0)
    ledger.open(now=DONE)
    (alarm,) = ledger.take_alarms()
    lost = alarm.data["lost_records"]
    assert 0 < lost < 60
    assert alarm.data["records"] == 480 - lost
    assert f"{lost} records" in alarm.message
    assert Path(alarm.data["path"]).read_bytes() == data, "the damaged file is kept as it was found"
    assert conserved(ledger)
    # Usage that was frozen is known by its meter event, and is written down again without details.
    assert rows_of(ledger, "SELECT id FROM usage WHERE id LIKE 'salvaged-%'")
    ledger.close()


def has_dbstat(db: sqlite3.Connection) -> bool:
    with contextlib.suppress(sqlite3.Error):
        db.execute("SELECT 1 FROM dbstat LIMIT 1")
        return True
    return False


def rows_of(ledger: SqliteLedger, query: str) -> list[Any]:
    return list(ledger._lanes.all()[0].db.execute(query))


def test_a_meter_event_that_is_lost_is_in_doubt_with_its_value(left):
    place = left("close")
    lane = lane_of(place)
    with contextlib.closing(sqlite3.connect(lane)) as db, db:
        (customer,) = db.execute("SELECT customer FROM meter_event WHERE state = 'ACCEPTED'").fetchone()
        db.execute("DELETE FROM meter_event WHERE customer = ?", (customer,))
    spoil_an_index(lane)
    ledger = SqliteLedger(place / "ledger", adopt_after_s=0)
    ledger.open(now=DONE)
    (event,) = [e for e in ledger.events(states=["IN_DOUBT"], limit=1000) if e.event.customer == customer]
    assert event.event.value == 10
    assert "cannot be read" in str(event.reason)
    assert customer not in deliver_all(ledger, place, now=LATER)
    assert conserved(ledger)
    ledger.close()


def test_usage_whose_index_says_it_was_frozen_is_held(left):
    """A bit that flips in the mark of a freeze must not bill the record again."""
    place = left("close")
    lane = lane_of(place)
    with contextlib.closing(sqlite3.connect(lane)) as db:
        (schema_of,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'usage_billable'").fetchone()
        db.execute("PRAGMA writable_schema = ON")
        db.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'freeze IS NULL', 'freeze IS -1') "
            "WHERE name = 'usage_billable'"
        )
        db.commit()
    with contextlib.closing(sqlite3.connect(lane)) as db:
        (id_, customer) = db.execute(
            "SELECT id, customer FROM usage WHERE customer = (SELECT customer FROM meter_event "
            "WHERE state = 'ACCEPTED' LIMIT 1)"
        ).fetchone()
        db.execute("UPDATE usage SET freeze = NULL WHERE id = ?", (id_,))
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'usage_billable'", (schema_of,))
        db.commit()
    ledger = SqliteLedger(place / "ledger", adopt_after_s=0)
    ledger.open(now=DONE)
    assert "ledger.damaged" in [alarm.name for alarm in ledger.take_alarms()]
    assert customer not in deliver_all(ledger, place, now=LATER)
    ledger.close()


def spoil_an_index(lane: Path) -> None:
    with contextlib.closing(sqlite3.connect(lane)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'meter_event_due'").fetchone()
    data = bytearray(lane.read_bytes())
    data[(root - 1) * PAGE : root * PAGE] = bytes(PAGE)
    lane.write_bytes(data)


@pytest.mark.parametrize("aggregation", ["sum", "count", "last"])
def test_books_balance_after_a_salvage_whatever_the_meter_adds_up(tmp_path, monkeypatch, aggregation):
    monkeypatch.setattr("llm_metering.ledger.homes.Home.is_copy_of", lambda *_: False)
    ledger = SqliteLedger(tmp_path / "ledger", adopt_after_s=0)
    ledger.open(now=T0)
    value = 1 if aggregation == "count" else 7
    for n in range(6):
        made = [
            entry(
                f"{n}-{c}",
                line(value + n * (aggregation == "last"), aggregation=aggregation),
                customer=f"cus_{c}",
                used_at=T0 + n,
            )
            for c in range(3)
        ]
        ledger.commit(made, [], now=T0 + n)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    while claims := ledger.claim(now=DONE, limit=2):
        ledger.finish_many([(c, Outcome("accepted", 200)) for c in claims], now=DONE)
    ledger.close()
    lane = next((tmp_path / "ledger").glob("lane-*.db"))
    with contextlib.closing(sqlite3.connect(lane)) as db, db:
        db.execute("DELETE FROM meter_event WHERE customer = 'cus_0'")
        db.execute("DELETE FROM usage WHERE customer = 'cus_1' AND used_at > ?", (T0 + 3,))
    spoil_an_index(lane)
    ledger.open(now=DONE)
    assert conserved(ledger)
    found = totals(ledger)
    assert found["in_doubt"] > 0
    assert found["accepted"] > 0
    assert deliver_all(ledger, tmp_path, now=LATER) == []
    ledger.close()


@pytest.mark.parametrize("point", ["after_salvage", "after_set_apart"])
def test_a_death_while_salvaging_ends_in_one_sound_lane(left, point):
    place = left("close")
    spoil_an_index(lane_of(place))
    script = """
import sys
from llm_metering.ledger import SqliteLedger, homes
homes.Home.is_copy_of = lambda *_: False
SqliteLedger(sys.argv[1], adopt_after_s=0).open(now=float(sys.argv[2]))
"""
    died = subprocess.run(
        [sys.executable, "-c", script, str(place / "ledger"), str(DONE)],
        env={**os.environ, _failpoints.VARIABLE: point},
        cwd=ROOT,
    )
    assert died.returncode == -signal.SIGKILL
    ledger = SqliteLedger(place / "ledger", adopt_after_s=0)
    ledger.open(now=DONE)
    assert ledger.status(now=DONE).usage_records == 481
    assert ledger.status(now=DONE).lanes == 1
    billed = sent_by(place) + deliver_all(ledger, place, now=LATER)
    assert len(set(billed)) == len(billed) > 400
    ledger.close()
    assert not list((place / "ledger").glob("salvag*"))


def test_a_damaged_copy_is_a_copy_all_the_same(lives, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(lives["close"], place)
    spoil_an_index(lane_of(place))
    ledger = SqliteLedger(place / "ledger", adopt_after_s=0)
    ledger.open(now=DONE)
    assert "ledger.damaged" in [alarm.name for alarm in ledger.take_alarms()]
    assert deliver_all(ledger, place, now=LATER) == []
    assert conserved(ledger)
    ledger.close()


def test_nothing_is_salvaged_of_a_file_without_its_first_page_and_the_amount_is_named(left):
    place = left("close")
    lane = lane_of(place)
    data = bytearray(lane.read_bytes())
    data[:PAGE] = bytes(PAGE)
    lane.write_bytes(data)
    ledger = SqliteLedger(place / "ledger", adopt_after_s=0)
    ledger.open(now=DONE)
    (alarm,) = ledger.take_alarms()
    assert (alarm.data["records"], alarm.data["lost_records"]) == (0, 480)
    assert ledger.commit([entry("after")], [], now=DONE) == 1
    ledger.close()


@pytest.mark.parametrize("how", ["little is free", "it runs full meanwhile"])
def test_a_damaged_lane_waits_for_the_room_to_be_salvaged_and_loses_nothing(left, monkeypatch, how):
    place = left("close")
    lane = lane_of(place)
    spoil_an_index(lane)
    ledger = SqliteLedger(place / "ledger", adopt_after_s=0)
    with monkeypatch.context() as full:
        if how == "little is free":
            full.setattr("llm_metering.ledger.folder.free_bytes", lambda _: lane.stat().st_size)
        else:
            full.setattr(shutil, "copyfile", no_space)
        ledger.open(now=DONE)
        assert lane.exists(), "it was set apart, and nothing of it is billed"
        assert [alarm.name for alarm in ledger.take_alarms()] == ["ledger.lane_put_off"]
        assert ledger.commit([entry("meanwhile", customer="cus_new", used_at=T0)], [], now=DONE) == 1
    billed = sent_by(place) + deliver_all(ledger, place, now=LATER)
    assert "ledger.damaged" in [alarm.name for alarm in ledger.take_alarms()]
    assert ledger.status(now=LATER).usage_records == 482
    assert len(set(billed)) == len(billed) > 400
    assert conserved(ledger)
    ledger.close()


def test_a_damaged_lane_that_cannot_be_set_apart_is_salvaged_once_it_can(left):
    place = left("close")
    spoil_an_index(lane_of(place))
    in_the_way = place / "ledger" / "damaged"
    in_the_way.write_text("a file where a folder should be")
    ledger = SqliteLedger(place / "ledger", adopt_after_s=0)
    ledger.open(now=DONE)
    assert [alarm.name for alarm in ledger.take_alarms()] == ["ledger.lane_put_off"]
    in_the_way.unlink()
    billed = sent_by(place) + deliver_all(ledger, place, now=LATER)
    assert "ledger.damaged" in [alarm.name for alarm in ledger.take_alarms()]
    assert len(set(billed)) == len(billed) > 400
    assert conserved(ledger)
    ledger.close()


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_is_set_apart_takes_nothings_place(tmp_path):
    kept = []
    for content in ("first", "second", "third"):
        files.lane_path(tmp_path, "a").write_text(content)
        kept.append(files.set_apart(tmp_path, "a", now=T0))
    assert [path.read_text() for path in kept] == ["first", "second", "third"]
