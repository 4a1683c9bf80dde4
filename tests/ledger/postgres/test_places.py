"""`ledger="postgresql://…"`, from a service and from the command line."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from llm_metering import MemorySender, Metering, Settings
from llm_metering.__main__ import main
from llm_metering.errors import ConfigurationError, LedgerError, MissingExtra
from llm_metering.ledger.postgres import PostgresBooks, PostgresLedger, migrate
from llm_metering.ledger.postgres.connecting import Link
from llm_metering.protocols import Outcome
from llm_metering.usage import Usage
from tests.ledger.conftest import BUCKET, T0, deliver, entry


@pytest.fixture
def url(cluster: Any) -> str:
    made = str(cluster.new_database())
    migrate(made)
    return made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(argv))
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def lanes(tmp_path: Path) -> str:
    return str(tmp_path / "lanes")


def test_a_service_bills_through_it(url, lanes):
    sender = MemorySender()
    settings = Settings(bucket_s=1, lane_folder=lanes)
    with Metering("cus_1", ledger=url, sender=sender, settings=settings) as metering:
        for _ in range(3):
            metering.record(Usage(input=10), model="gpt-5-mini")
        assert metering.flush(20) == 0
        assert metering.status().conserved
        assert metering.health().ready
    assert sum(int(e.payload["value"]) for e in sender.accepted) == 30
    assert PostgresBooks(url).status(now=T0).events == {"ACCEPTED": len(sender.accepted)}


def test_two_services_share_one_ledger(url, lanes):
    sender = MemorySender()
    pod = Metering("cus_1", ledger=url, settings=Settings(bucket_s=1, deliver="external", lane_folder=lanes))
    settings = Settings(bucket_s=1, lane_folder=lanes)
    with pod, Metering(ledger=url, sender=sender, settings=settings) as worker:
        pod.record(Usage(input=10), model="gpt-5-mini")
        pod.flush(10)
        assert worker.flush(20) == 0
    assert sum(int(e.payload["value"]) for e in sender.accepted) == 10


def test_a_service_goes_on_while_its_database_is_gone_and_bills_it_all_afterwards(mortal, lanes):
    sender, alarms = MemorySender(), []
    url = mortal.new_database()
    migrate(url)
    settings = Settings(bucket_s=1, lane_folder=lanes)
    with Metering("cus_1", ledger=url, sender=sender, settings=settings, on_alarm=alarms.append) as metering:
        metering.record(Usage(input=1), model="gpt-5-mini")
        assert metering.flush(20) == 0
        mortal.kill()
        began = time.monotonic()
        for _ in range(50):
            metering.record(Usage(input=1), model="gpt-5-mini")
        assert metering._writer.flush(5), "it is on this host's disk"
        health = metering.health()
        assert health.ready
        assert health.unforwarded_records == 50
        mortal.start()
        deadline = time.monotonic() + 60
        while sum(int(e.payload["value"]) for e in sender.accepted) < 51:
            assert time.monotonic() < deadline, (metering.health(), began)
            with contextlib.suppress(LedgerError):
                metering.flush(5)
        assert metering.status().conserved
        assert metering.health().unforwarded_records == 0
    assert sum(int(e.payload["value"]) for e in sender.accepted) == 51


def test_another_database_is_refused_without_showing_its_password():
    with pytest.raises(ConfigurationError, match="mysql://") as told:
        Metering(ledger="mysql://me:secret@db/billing", settings=Settings())
    assert "secret" not in str(told.value)


def test_the_password_shows_nowhere():
    url = "postgresql://me:secret@127.0.0.1:1/billing"
    assert "secret" not in Link(url).place
    with pytest.raises(LedgerError, match=r"postgresql://127\.0\.0\.1:1/billing") as told:
        PostgresLedger(url).open(now=T0)
    assert "secret" not in str(told.value)
    with pytest.raises(ConfigurationError) as told:
        PostgresLedger("postgresql://me:secret@db/billing?nonsense=1")
    assert "secret" not in str(told.value)


def test_without_psycopg_the_extra_is_named():
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from llm_metering import Metering, Settings\n"
        "from llm_metering.errors import MissingExtra\n"
        "try: Metering(ledger='postgresql://db/billing', settings=Settings())\n"
        "except MissingExtra as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'llm_metering[postgres]'" in done.stdout
    assert issubclass(MissingExtra, ConfigurationError)


# ---- the command line


def test_the_tables_are_made_by_a_command_that_may_be_run_again(cluster, run):
    url = cluster.new_database()
    code, out, _ = run("ledger", "migrate", "--ledger", url)
    assert (code, "0001_ledger.sql" in out) == (0, True)
    code, out, _ = run("ledger", "migrate", "--ledger", url, "--json")
    assert (code, json.loads(out)["taken"]) == (0, [])


def test_a_folder_is_not_migrated_by_hand(run, tmp_path):
    code, _, err = run("ledger", "migrate", "--ledger", str(tmp_path))
    assert code == 2
    assert "postgresql://" in err


def test_a_database_without_a_ledger_is_one_line_on_stderr(cluster, run):
    code, _, err = run("status", "--ledger", cluster.new_database())
    assert code == 1
    assert "llm-metering ledger migrate" in err
    assert len(err.strip().splitlines()) == 1


def test_status_lists_and_decisions_work_from_anywhere(url, run):
    ledger = PostgresLedger(url, clock="caller")
    ledger.open(now=T0)
    ledger.commit([entry("a", customer="cus_a"), entry("u", customer=None)], [], now=T0)
    ledger.freeze(now=T0 + BUCKET, bucket_s=BUCKET)
    (dead,) = deliver(ledger, now=T0 + BUCKET, outcome=Outcome("refused_data", 400))
    at = ("--ledger", url)
    assert json.loads(run("status", *at, "--json")[1])["totals"]["dead"] == "10"
    assert dead.event.identifier in run("dead", "list", *at, "--json")[1]
    assert run("dead", "write-off", dead.event.identifier, *at, "--reason", "test", "--yes")[0] == 0
    assert ledger.status(now=T0).written_off == 1
    assert run("unresolved", "assign", "u", "--customer", "cus_9", *at, "--reason", "found", "--yes")[0] == 0
    assert ledger.status(now=T0).unresolved_records == 0
    assert run("pause", *at, "--reason", "prices", "--yes")[0] == 0
    assert ledger.paused_by().why == "prices"
    assert run("resume", *at, "--yes")[0] == 0
    assert ledger.paused_by() is None
    assert "write_off" in run("events", "show", dead.event.identifier, *at, "--json")[1]
    ledger.close()
