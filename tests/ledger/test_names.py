"""Names that come from outside never become names of files, and a folder that is not safe is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from llm_metering.errors import LedgerError
from llm_metering.ledger import SqliteLedger
from llm_metering.ledger.room import ballast_path
from llm_metering.protocols import Outcome
from tests.ledger.conftest import BUCKET, T0, conserved, entry, line, totals

DONE = T0 + BUCKET
NASTY = {
    "climbing": "../../../etc/passwd",
    "absolute": "/tmp/evil",
    "NUL": "cus\0evil",
    "long": "x" * 1000,
    "newline": "cus\nlane-evil.db",
    "emoji": "🦆" * 20,
    "surrogate": "cus_\ud800",
    "glob": "lane-*.db",
    "quote": "'; DROP TABLE usage; --",
    "dots": "..",
}


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_a_name_from_outside_never_reaches_the_file_system(tmp_path, name):
    ledger = SqliteLedger(tmp_path / "inside" / "ledger", adopt_after_s=0)
    ledger.open(now=T0)
    before = everything_below(tmp_path)
    printable = name.encode(errors="replace").decode()  # what comes over the wire
    try:
        made = entry(
            name,
            line(3, feature=name),
            customer=name,
            model=name,
            provider=name,
            response_id=name,
            dimensions={name: name},
        )
        assert ledger.commit([made], [], now=T0) == 1
        ledger.freeze(now=DONE, bucket_s=BUCKET)
        (claim,) = ledger.claim(now=DONE, limit=1)
        ledger.finish(claim, Outcome("refused_data", 400, message=printable), now=DONE)
        ledger.set_meta(name, name) if name.isprintable() else None
        ledger.hold([printable], who=printable, why="because", now=DONE)
        ledger.maintain(now=DONE)
        assert totals(ledger)["dead"] == 3
        assert conserved(ledger)
        ledger.close()
        ledger.open(now=DONE)
        assert totals(ledger)["dead"] == 3
    finally:
        ledger.close()
    new = {
        path
        for path in everything_below(tmp_path) - before
        if not path.endswith(("-wal", "-shm", ".ballast"))
    }
    assert new == set()


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_a_lane_never_gets_a_name_that_is_a_path(tmp_path, name):
    """Names of lanes are made by `new_id`, which a user may give."""
    ledger = SqliteLedger(tmp_path / "inside" / "ledger", new_id=lambda: name)
    with pytest.raises(LedgerError, match="name of a lane"):
        ledger.open(now=T0)
    ledger.close()
    assert everything_below(tmp_path) <= {"inside", "inside/ledger"}


@pytest.mark.parametrize("kind", ["ballast", "lock", "backups", "damaged"])
def test_nothing_is_written_through_a_link_that_somebody_left(tmp_path, kind):
    """The folder is ours alone; yet whoever could write to it once must not lead us elsewhere."""
    target = tmp_path / "target"
    target.mkdir()
    victim = target / "victim"
    victim.write_text("precious")
    ledger = SqliteLedger(tmp_path / "ledger", adopt_after_s=0)
    ledger.open(now=T0)
    lane = ledger.lane
    ledger.close()
    place = {
        "ballast": ballast_path(tmp_path / "ledger", lane),
        "lock": tmp_path / "ledger" / f"lane-{lane}.lock",
        "backups": tmp_path / "ledger" / "backups",
        "damaged": tmp_path / "ledger" / "damaged",
    }[kind]
    place.unlink(missing_ok=True)
    place.symlink_to(target if kind in ("backups", "damaged") else victim)
    if kind == "damaged":
        (tmp_path / "ledger" / f"lane-{lane}.db").write_bytes(os.urandom(5000))
    try:
        ledger.open(now=T0)
        ledger.commit([entry("a")], [], now=T0)
    except LedgerError:
        pass
    finally:
        ledger.close()
    assert victim.read_text() == "precious"
    assert everything_below(target) == {"victim"}


def test_a_folder_that_goes_missing_while_in_use_is_made_anew_with_an_alarm(tmp_path):
    ledger = SqliteLedger(tmp_path / "ledger", adopt_after_s=0)
    ledger.open(now=T0)
    shutil.rmtree(tmp_path / "ledger")
    ledger.maintain(now=T0)
    assert "ledger.lane_removed" in [alarm.name for alarm in ledger.take_alarms()]
    assert ledger.commit([entry("a")], [], now=T0) == 1
    assert (tmp_path / "ledger").stat().st_mode & 0o777 == 0o700
    ledger.close()
