"""An older file is brought up to this version, whole, whatever happens on the way; a newer one is left alone.

`data/lane-version-1.sqlite` was written by version 1. Version 2 exists in these tests only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_metering import _failpoints
from llm_metering.errors import LedgerError
from llm_metering.ledger import SqliteLedger, migrating, schema
from llm_metering.ledger.taking import TRY_AGAIN_S
from llm_metering.protocols import Outcome
from tests.ledger.conftest import BUCKET, T0, conserved, entry, totals

ROOT = Path(__file__).parents[2]
REAL = Path(__file__).parent / "data/lane-version-1.sqlite"
DONE = T0 + 10 * BUCKET
TO_2 = {
    1: "ALTER TABLE usage ADD COLUMN region TEXT;\n"
    "CREATE TABLE tariff (id INTEGER PRIMARY KEY, name TEXT NOT NULL);\n"
    "INSERT INTO tariff (name) SELECT DISTINCT event_name FROM line_key"
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger that version 1 left behind."""
    folder = tmp_path / "ledger"
    folder.mkdir(mode=0o700)
    shutil.copyfile(REAL, folder / "lane-old.db")
    return folder


@pytest.fixture
def version_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "VERSION", 2)
    monkeypatch.setattr(schema, "STEPS", TO_2)


@pytest.fixture
def opened(folder: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def open_one(*, now: float = DONE) -> SqliteLedger:
            ledger = SqliteLedger(folder, adopt_after_s=0.0)
            ledger.open(now=now)
            stack.callback(ledger.close)
            return ledger

        yield open_one


def version(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def content(path: Path) -> dict[str, list[Any]]:
    """All rows that version 1 knows, but for what opening changes."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        columns = "seq, id, customer, used_at, counts, lines, held, freeze"
        return {
            "usage": db.execute(f"SELECT {columns} FROM usage ORDER BY seq").fetchall(),
            "events": db.execute(
                "SELECT seq, identifier, customer, value, timestamp, payload, attempts FROM meter_event"
            ).fetchall(),
            "line_key": db.execute("SELECT * FROM line_key").fetchall(),
            "action": db.execute("SELECT * FROM action").fetchall(),
        }


def everything_billed(ledger: SqliteLedger) -> None:
    ledger.maintain(now=DONE)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    while claims := ledger.claim(now=DONE, limit=50):
        for claim in claims:
            ledger.finish(claim, Outcome("accepted", 200), now=DONE)


def test_todays_code_understands_a_real_file_of_version_1(opened, folder):
    ledger = opened()
    assert ledger.lane == "old"
    found = ledger.status(now=DONE)
    # Forty records, one of several meters, two set aside, five that are new, and a stream that was cut.
    assert found.usage_records == 49
    assert found.held_records == 1
    assert found.conserved
    everything_billed(ledger)
    sums = totals(ledger)
    assert sums["recorded"] == sums["accepted"] + sums["dead"] + sums["pending"]
    assert conserved(ledger)


def test_an_upgrade_loses_no_row_and_keeps_a_backup(opened, folder, version_2):
    before = content(folder / "lane-old.db")
    ledger = opened()
    assert ledger.take_alarms() == []
    assert version(folder / "lane-old.db") == 2
    after = content(folder / "lane-old.db")
    assert after["usage"][: len(before["usage"])] == before["usage"]
    assert {**after, "usage": []} == {**before, "usage": []}
    with contextlib.closing(sqlite3.connect(folder / "lane-old.db")) as db:
        assert db.execute("SELECT name FROM tariff ORDER BY id").fetchall()
        assert db.execute("SELECT count(*) FROM usage WHERE region IS NULL").fetchone()[0] > 0
    (backup,) = (folder / "backups").iterdir()
    assert backup.name == "lane-old-schema1.db"
    assert backup.stat().st_mode & 0o777 == 0o600
    assert content(backup) == before
    assert version(backup) == 1
    everything_billed(ledger)
    assert conserved(ledger)


def test_a_new_lane_is_made_as_an_upgraded_one_is(opened, folder, tmp_path, version_2):
    upgraded = opened()
    fresh = SqliteLedger(tmp_path / "fresh")
    fresh.open(now=DONE)
    fresh.close()
    query = "SELECT type, name, tbl_name FROM sqlite_master ORDER BY name"
    tables = []
    for path in (folder / f"lane-{upgraded.lane}.db", *(tmp_path / "fresh").glob("lane-*.db")):
        with contextlib.closing(sqlite3.connect(path)) as db:
            tables.append(db.execute(query).fetchall())
    assert tables[0] == tables[1]


def test_a_rolled_back_version_leaves_the_newer_lane_alone_and_goes_on(opened, folder, monkeypatch):
    with monkeypatch.context() as new_version:
        new_version.setattr(schema, "VERSION", 2)
        new_version.setattr(schema, "STEPS", TO_2)
        ledger = opened()
        ledger.commit([entry("under 2", used_at=DONE)], [], now=DONE)
        ledger.close()
    upgraded = (folder / "lane-old.db").read_bytes()
    ledger = opened()
    assert ledger.lane != "old"
    assert "ledger.newer_schema" in [alarm.name for alarm in ledger.take_alarms()]
    ledger.commit([entry("under 1", used_at=DONE)], [], now=DONE)
    ledger.maintain(now=DONE)
    assert (folder / "lane-old.db").read_bytes() == upgraded
    ledger.close()
    # And forward again: nothing of either is lost.
    monkeypatch.setattr(schema, "VERSION", 2)
    monkeypatch.setattr(schema, "STEPS", TO_2)
    ledger = opened()
    ledger.maintain(now=DONE)
    assert ledger.status(now=DONE).usage_records == 51
    everything_billed(ledger)
    assert conserved(ledger)
    assert {p.name.split("-")[-1] for p in (folder / "backups").iterdir()} == {"schema1.db"}


UPGRADE = """
import sys
sys.path.insert(0, sys.argv[2])
from llm_metering.ledger import SqliteLedger, schema
from tests.ledger.test_migrations import DONE, TO_2
schema.VERSION, schema.STEPS = 2, TO_2
SqliteLedger(sys.argv[1], adopt_after_s=0.0).open(now=DONE)
"""


@pytest.mark.parametrize("point", ["after_backup", "in_migration", "after_migration"])
def test_a_death_at_any_step_leaves_one_version_or_the_other(opened, folder, version_2, point):
    before = content(folder / "lane-old.db")
    died = subprocess.run(
        [sys.executable, "-c", UPGRADE, str(folder), str(ROOT)],
        env={**os.environ, _failpoints.VARIABLE: point},
        cwd=ROOT,
    )
    assert died.returncode == -signal.SIGKILL
    assert version(folder / "lane-old.db") == (2 if point == "after_migration" else 1)
    assert content(folder / "lane-old.db") == before
    ledger = opened()
    assert ledger.take_alarms() == []
    assert version(folder / "lane-old.db") == 2
    assert ledger.status(now=DONE).usage_records == 49
    assert content(folder / "backups/lane-old-schema1.db") == before
    everything_billed(ledger)
    assert conserved(ledger)


def test_a_step_that_fails_leaves_the_file_as_it_was_and_the_process_goes_on(opened, folder, monkeypatch):
    monkeypatch.setattr(schema, "VERSION", 2)
    monkeypatch.setattr(schema, "STEPS", {1: f"{TO_2[1]};\nINSERT INTO nowhere VALUES (1)"})
    before = content(folder / "lane-old.db")
    with contextlib.suppress(Exception):
        opened()  # new lanes cannot be made by a version that is broken either
    assert version(folder / "lane-old.db") == 1
    assert content(folder / "lane-old.db") == before


@pytest.mark.parametrize(
    "trouble",
    [OSError(5, "Input/output error"), sqlite3.OperationalError("disk I/O error"), LedgerError("a link")],
    ids=["backup", "step", "folder"],
)
def test_trouble_that_passes_is_no_failed_migration_and_the_lane_is_taken_later(
    opened, folder, version_2, monkeypatch, trouble
):
    with monkeypatch.context() as troubled:

        def back_up(*_: Any) -> None:
            raise trouble

        troubled.setattr(migrating, "back_up", back_up)
        ledger = opened()
        assert ledger.lane != "old", "usage has a place meanwhile"
        ledger.maintain(now=DONE + 1)
        (alarm,) = ledger.take_alarms()
        assert (alarm.name, alarm.data["lane"]) == ("ledger.lane_put_off", "old")
        ledger.maintain(now=DONE + TRY_AGAIN_S + 2)
        assert ledger.take_alarms() == [], "one alarm is enough"
    ledger.maintain(now=DONE + TRY_AGAIN_S + 3)
    assert version(folder / "lane-old.db") == 1, "not at every turn"
    ledger.maintain(now=DONE + 2 * TRY_AGAIN_S + 3)
    assert version(folder / "lane-old.db") == 2
    assert ledger.status(now=DONE).usage_records == 49
    everything_billed(ledger)
    assert conserved(ledger)


def test_a_migration_that_failed_is_not_tried_at_every_turn(opened, folder, version_2, monkeypatch):
    def step(*_: Any) -> None:
        raise sqlite3.OperationalError("no such column: region")

    with monkeypatch.context() as broken:
        broken.setattr(migrating, "bring_up", step)
        ledger = opened()
        assert [alarm.name for alarm in ledger.take_alarms()] == ["ledger.migration_failed"]
    ledger.maintain(now=DONE + 10 * TRY_AGAIN_S)
    assert ledger.take_alarms() == []
    assert version(folder / "lane-old.db") == 1


def test_versions_in_between_are_taken_one_after_the_other(opened, folder, monkeypatch):
    monkeypatch.setattr(schema, "VERSION", 3)
    monkeypatch.setattr(schema, "STEPS", {**TO_2, 2: "ALTER TABLE tariff ADD COLUMN note TEXT"})
    ledger = opened()
    assert ledger.lane == "old"
    assert version(folder / "lane-old.db") == 3
    assert ledger.status(now=DONE).usage_records == 49
