"""The schema and the server: what is missing, too old, too new or unsafe is said before anything is done."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from llm_metering.errors import ConfigurationError, LedgerError
from llm_metering.ledger.postgres import PostgresBooks, PostgresLedger, migrate, migrating, server
from tests.ledger.conftest import T0, entry

NAMES = list(migrating.scripts().values())


def test_steps_are_numbered_without_a_gap():
    assert list(migrating.scripts()) == list(range(1, len(NAMES) + 1))


def test_a_database_without_a_ledger_is_refused_with_the_command_that_makes_it(cluster):
    url = cluster.new_database()
    for look in (lambda: PostgresLedger(url).open(now=T0), PostgresBooks(url).balances):
        with pytest.raises(LedgerError, match=r"has no ledger yet.*llm-metering ledger migrate"):
            look()
    assert migrate(url) == NAMES
    ledger = PostgresLedger(url)
    ledger.open(now=T0)
    assert ledger.commit([entry("a")], [], now=T0) == 1
    ledger.close()


def test_migrating_again_changes_nothing(cluster, place):
    ledger = PostgresLedger(place.url, schema=place.schema)
    ledger.open(now=T0)
    ledger.commit([entry("a")], [], now=T0)
    assert migrate(place.url, schema=place.schema) == []
    assert ledger.status(now=T0).usage_records == 1
    ledger.close()


def test_several_migrations_at_once_take_each_step_once(cluster):
    place = cluster.new_place(migrated=False)
    taken: list[list[str]] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        barrier.wait()
        taken.append(migrate(place.url, schema=place.schema))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for names in taken for name in names) == NAMES
    assert place.rows("SELECT count(*) FROM partition") == [(64,)]


def test_a_step_that_fails_leaves_the_schema_as_it_was(cluster, monkeypatch, tmp_path):
    place = cluster.new_place()
    last = len(NAMES)
    (tmp_path / "bad.sql").write_text("CREATE TABLE half (a int); SELECT nonsense;")
    known = migrating.scripts()
    monkeypatch.setattr(migrating, "scripts", lambda: {**known, last + 1: "bad.sql"})
    monkeypatch.setattr(migrating, "_FOLDER", tmp_path)
    with pytest.raises(LedgerError, match="nonsense"):
        migrate(place.url, schema=place.schema)
    assert place.rows("SELECT max(number) FROM migration") == [(last,)]
    assert place.rows("SELECT to_regclass('half')") == [(None,)]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "has no ledger yet.*llm-metering ledger migrate"),
        (99, "schema 99, which a newer version of llm_metering made"),
    ],
)
def test_another_schema_is_refused_with_what_to_do(place, number, said):
    place.rows("DELETE FROM migration WHERE number > 1")
    place.rows(f"UPDATE migration SET number = {number}")
    for look in (
        lambda: PostgresLedger(place.url, schema=place.schema).open(now=T0),
        PostgresBooks(place.url, schema=place.schema).balances,
    ):
        with pytest.raises(LedgerError, match=said):
            look()


# ---- the server's settings

WELL = {
    "server_version_num": "150000",
    "server_encoding": "UTF8",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "transaction_read_only": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}


def test_a_server_that_is_well_needs_no_words():
    assert server.judge(WELL) == ([], [])


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("fsync", "off", True),
        ("synchronous_commit", "off", True),
        ("transaction_read_only", "on", True),
        ("server_version_num", "130012", True),
        ("server_encoding", "SQL_ASCII", True),
        ("full_page_writes", "off", False),
        ("statement_timeout", "500", False),
        ("idle_in_transaction_session_timeout", "1000", False),
    ],
)
def test_each_wrong_setting_has_a_sentence_that_says_what_to_do(name, value, refused):
    found = server.judge({**WELL, name: value})
    assert [len(some) for some in found] == ([1, 0] if refused else [0, 1])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("fsync", "fsync is off"), ("synchronous_commit", "synchronous_commit is off")],
)
def test_a_server_that_loses_what_it_acknowledged_is_refused(mortal, name, sentence):
    place = mortal.new_place()
    mortal.stop()
    mortal.start(**{name: "off"})
    ledger = PostgresLedger(place.url, schema=place.schema)
    with pytest.raises(ConfigurationError, match=sentence):
        ledger.open(now=T0)
    with pytest.raises(LedgerError, match="not open"):
        ledger.commit([entry("a")], [], now=T0)


def test_what_turns_doubtful_while_services_run_is_an_alarm_within_the_hour(mortal):
    place = mortal.new_place()
    mortal.stop()
    mortal.start(full_page_writes="off")
    ledger = PostgresLedger(place.url, schema=place.schema, clock="caller")
    ledger.open(now=T0)
    assert "full_page_writes" in only(ledger.take_alarms()).message
    ledger.maintain(now=T0)
    ledger.take_alarms()
    mortal.execute("ALTER SYSTEM SET synchronous_commit = off")
    mortal.execute("SELECT pg_reload_conf()")
    ledger.maintain(now=T0 + 1800)
    assert ledger.take_alarms() == []
    ledger.maintain(now=T0 + 3601)
    assert any("synchronous_commit" in alarm.message for alarm in ledger.take_alarms())
    ledger.close()
    mortal.execute("ALTER SYSTEM RESET synchronous_commit")


def only(found: Any) -> Any:
    (one,) = found
    return one
