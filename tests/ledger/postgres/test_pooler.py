"""A real PgBouncer in transaction mode, with two sessions for all: the contract holds, a pool that has none
left is waited for, and `kill -9` of the pooler under load loses nothing and bills nothing twice."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from llm_metering.errors import LedgerError
from llm_metering.ledger.postgres import PostgresBooks, PostgresDesk, PostgresLedger, migrate
from tests.ledger.conftest import BUCKET, T0, Bench, conserved, entry, line, totals
from tests.ledger.postgres.bouncer import Bouncer
from tests.ledger.postgres.cluster import Place
from tests.ledger.postgres.test_faults import finish, go_on, under_load
from tests.ledger.test_contract import (  # noqa: F401  (the contract, on the ledger below)
    test_a_claim_is_on_record_before_anything_is_sent,
    test_a_clock_set_back_two_days_does_not_extend_the_22_hours,
    test_a_crash_while_sending_is_told_by_maintain,
    test_a_finished_stream_counts_once,
    test_a_frozen_event_survives_a_crash_unchanged,
    test_a_ledger_is_bound_to_one_account_for_good,
    test_an_old_fence_changes_nothing,
    test_attempts_end_and_others_begin_in_one_go,
    test_hundreds_of_attempts_begin_and_end_each_with_its_own_outcome,
    test_progress_of_a_dead_process_becomes_usage,
    test_recording_an_id_twice_records_it_once,
    test_the_same_bytes_are_sent_again,
    test_the_view_shows_the_same_books,
    test_twenty_two_hours_after_the_first_doubt_nothing_is_resent,
    test_unresolved_usage_can_be_assigned_and_is_then_billed,
    test_what_is_recorded_survives_a_crash,
)


@pytest.fixture
def bouncer(cluster: Any) -> Iterator[Bouncer]:
    bouncer = Bouncer(cluster)
    try:
        bouncer.start()
        yield bouncer
    finally:
        bouncer.remove()


@pytest.fixture
def bench(bouncer: Bouncer, place: Any, tmp_path: Path) -> Iterator[Bench]:
    numbers = itertools.count(1)
    made: list[PostgresLedger] = []

    def reopened() -> PostgresLedger:
        for ledger in made:
            ledger.close()
        made.append(
            PostgresLedger(
                bouncer.url(),
                schema=place.schema,
                new_id=lambda: f"id{next(numbers):05d}",
                random=lambda: 0.5,
                clock="caller",
            )
        )
        return made[-1]

    bench = Bench("postgres", reopened, reopened(), tmp_path, place.rows)
    bench.ledger.open(now=T0)
    yield bench
    made[-1].close()


def test_a_ledger_is_made_and_decided_upon_through_it(cluster: Any, bouncer: Bouncer) -> None:
    url = bouncer.url(cluster.new_database().partition("?")[0].rpartition("/")[2])
    assert migrate(url)
    assert migrate(url) == []
    ledger = PostgresLedger(url, clock="caller")
    ledger.open(now=T0)
    ledger.commit([entry("a", line(1), customer=None)], [], now=T0)
    decided = PostgresDesk(PostgresBooks(url)).decide(
        "assign", {"": ["a"]}, who="ada", why="hers", customer="cus_1"
    )
    assert [r.refused for r in decided.rulings] == [None]
    assert ledger.freeze(now=T0 + BUCKET, bucket_s=BUCKET) == 1
    ledger.close()


def test_many_services_share_two_sessions_and_each_finds_its_own(
    bouncer: Bouncer, place: Any, stripe: Any
) -> None:
    """Sessions change hands with every transaction, among more clients than there are sessions."""
    ledgers = [PostgresLedger(bouncer.url(), schema=place.schema) for _ in range(6)]
    with under_load(ledgers[:3], ledgers[3:], stripe) as acknowledged:
        go_on(acknowledged)
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'llm_metering'"
        assert place.rows(sessions)[0][0] <= 2
    audit(place, ledgers, stripe, acknowledged)


def test_kill_9_of_the_pooler_under_load_loses_nothing_and_bills_nothing_twice(
    bouncer: Bouncer, place: Any, stripe: Any
) -> None:
    ledgers = [PostgresLedger(bouncer.url(), schema=place.schema) for _ in range(4)]
    with under_load(ledgers[:2], ledgers[2:], stripe) as acknowledged:
        for _ in range(3):
            go_on(acknowledged)
            bouncer.kill()
            bouncer.start()
        go_on(acknowledged)
    audit(place, ledgers, stripe, acknowledged)


def audit(place: Place, ledgers: list[PostgresLedger], stripe: Any, acknowledged: dict[str, int]) -> None:
    there = [id_ for (id_,) in place.rows("SELECT id FROM usage")]
    assert len(there) == len(set(there))
    assert set(acknowledged) <= set(there), "what was acknowledged is there"
    finish(ledgers[-2:], stripe, total=len(there))
    assert stripe.total == len(there)
    assert stripe.overlaps == 0
    assert totals(ledgers[0])["accepted"] == len(there)
    assert conserved(ledgers[0])
    for ledger in ledgers:
        ledger.close()


def test_a_pool_that_has_no_session_left_is_an_error_and_then_goes_on(cluster: Any, place: Any) -> None:
    """All sessions are taken by somebody else's long transactions."""
    bouncer = Bouncer(cluster, pool=1, wait_s=1)
    try:
        bouncer.start()
        ledger = PostgresLedger(bouncer.url(), schema=place.schema)
        ledger.open(now=time.time())
        with psycopg.connect(bouncer.url(), prepare_threshold=None) as hog:
            hog.execute("SELECT 1")  # a transaction that stays open
            with pytest.raises(LedgerError, match="query_wait_timeout"):
                ledger.commit([entry("a", line(1), used_at=time.time())], [], now=time.time())
        assert ledger.commit([entry("a", line(1), used_at=time.time())], [], now=time.time()) == 1
        ledger.close()
    finally:
        bouncer.remove()
