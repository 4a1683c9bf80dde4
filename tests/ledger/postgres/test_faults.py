"""A server that is killed, a line that is cut after COMMIT was sent, a server that stands still: what was
acknowledged is there, and everything is there once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from llm_metering.errors import LedgerError
from llm_metering.ledger.postgres import PostgresLedger
from llm_metering.protocols import Outcome
from tests.ledger.conftest import BUCKET, T0, conserved, entry, line, progress, totals
from tests.ledger.postgres.proxy import Proxy
from tests.ledger.postgres.test_workers import work

DONE = T0 + BUCKET


def only(found):
    (one,) = found
    return one


@pytest.fixture
def proxy(cluster: Any) -> Iterator[Proxy]:
    proxy = Proxy(cluster.socket)
    yield proxy
    proxy.close()


@pytest.fixture
def ledger(proxy: Proxy, place: Any) -> Iterator[PostgresLedger]:
    ledger = PostgresLedger(proxy.url(), schema=place.schema, clock="caller", random=lambda: 0.5)
    ledger.open(now=T0)
    yield ledger
    ledger.close()


# ---- the answer to COMMIT is lost: it is done, and we do not know


def lost(proxy: Proxy, call: Any) -> None:
    """The call fails, although what it asked for was done."""
    before = proxy.lost
    proxy.lose_answer_to(b"COMMIT\0")
    with pytest.raises(LedgerError, match="failed"):
        call()
    assert proxy.lost == before + 1


def test_records_whose_commit_was_not_answered_are_offered_again_and_count_once(ledger, proxy):
    group = [entry(f"r{i}", line(1)) for i in range(10)]
    lost(proxy, lambda: ledger.commit(group, [progress("s", line(5))], now=T0))
    assert totals(ledger)["recorded"] == 10, "it had reached the server"
    assert ledger.commit(group, [progress("s", line(5))], now=T0) == 0
    assert ledger.commit([entry("s", line(9), closes="s")], [], now=T0) == 1
    assert totals(ledger)["recorded"] == 19


def test_a_freeze_whose_commit_was_not_answered_makes_no_second_event(ledger, proxy):
    ledger.commit([entry("a"), entry("b", customer="cus_2")], [], now=T0)
    lost(proxy, lambda: ledger.freeze(now=DONE, bucket_s=BUCKET))
    assert ledger.freeze(now=DONE, bucket_s=BUCKET) == 0
    assert len(ledger.events()) == 2
    assert conserved(ledger)


def test_a_claim_whose_commit_was_not_answered_was_surely_not_sent(ledger, proxy):
    ledger.commit([entry("a")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    ledger.maintain(now=DONE)
    lost(proxy, lambda: ledger.claim(now=DONE, limit=5))
    assert only(ledger.events()).state == "SENDING"
    assert ledger.claim(now=DONE, limit=5) == [], "it waits a moment, as after any attempt that failed"
    row = only(ledger.events())
    assert (row.state, row.first_ambiguous_at) == ("PENDING", None), "nobody was ever told to send it"
    claim = only(ledger.claim(now=DONE + 10, limit=5))
    assert claim.attempt == 2
    ledger.finish(claim, Outcome("accepted", 200), now=DONE + 10)
    assert totals(ledger)["accepted"] == 10


def test_an_outcome_whose_commit_was_not_answered_stands_and_is_told_again_in_vain(ledger, proxy):
    ledger.commit([entry("a")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    claim = only(ledger.claim(now=DONE, limit=5))
    lost(proxy, lambda: ledger.finish(claim, Outcome("accepted", 200), now=DONE))
    assert ledger.finish(claim, Outcome("accepted", 200), now=DONE) is None
    assert only(ledger.events()).state == "ACCEPTED"
    assert only(ledger.history(claim.event.identifier).attempts).outcome == "accepted"


def test_a_replay_whose_commit_was_not_answered_makes_one_child(ledger, proxy):
    ledger.commit([entry("a")], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    claim = only(ledger.claim(now=DONE, limit=5))
    ledger.finish(claim, Outcome("refused_data", 400), now=DONE)
    by = {"who": "ada", "why": "x", "now": DONE}
    lost(proxy, lambda: ledger.replay([claim.event.identifier], **by))
    assert "already" in only(ledger.replay([claim.event.identifier], **by)).refused
    assert len(ledger.events()) == 2
    assert totals(ledger)["pending"] == 10


@pytest.mark.parametrize("statement", [b"INSERT INTO usage", b"BEGIN"])
def test_a_line_that_is_cut_before_commit_leaves_nothing(ledger, proxy, statement):
    ledger.commit([entry("before")], [], now=T0)
    proxy.lose_answer_to(statement)
    try:
        ledger.commit([entry("a")], [], now=T0)
    except LedgerError:
        assert totals(ledger)["recorded"] == 10
        ledger.commit([entry("a")], [], now=T0)
    assert totals(ledger)["recorded"] == 20


def test_a_session_that_the_server_ended_while_idle_is_replaced_unnoticed(ledger, cluster):
    ledger.commit([entry("a")], [], now=T0)
    cluster.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'llm_metering' AND pid <> pg_backend_pid()"
    )
    assert ledger.commit([entry("b")], [], now=T0) == 1


# ---- the server is killed


def record(ledger: Any, name: str, over: threading.Event, acknowledged: dict[str, int]) -> None:
    """A pod: records in groups, and offers a group again until it is told that it is there."""
    number = 0
    while not over.is_set():
        ids = [f"{name}-{number}-{i}" for i in range(5)]
        number += 1
        made = [
            entry(i, line(1), customer=f"cus_{(number + n) % 5}", used_at=time.time())
            for n, i in enumerate(ids)
        ]
        while True:
            try:
                ledger.commit(made, [], now=time.time())
            except LedgerError:
                time.sleep(0.02)
            else:
                acknowledged.update(dict.fromkeys(ids, 1))
                break
            if over.is_set():
                return


@contextmanager
def under_load(pods: list[Any], workers: list[Any], stripe: Any) -> Iterator[dict[str, int]]:
    """Pods record and workers deliver, each on a thread of its own; what the pods were told is there."""
    over, acknowledged = threading.Event(), dict[str, int]()
    for ledger in (*pods, *workers):
        ledger.open(now=time.time())
    threads = [
        threading.Thread(target=record, args=(ledger, f"pod{n}", over, acknowledged))
        for n, ledger in enumerate(pods)
    ]
    threads += [threading.Thread(target=work, args=(ledger, stripe, over)) for ledger in workers]
    for thread in threads:
        thread.start()
    try:
        yield acknowledged
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_kill_9_of_the_server_under_load_loses_nothing_and_bills_nothing_twice(mortal, stripe):
    place = mortal.new_place()
    ledgers = [PostgresLedger(place.url, schema=place.schema) for _ in range(5)]
    with under_load(ledgers[:3], ledgers[3:], stripe) as acknowledged:
        for _ in range(3):
            go_on(acknowledged)
            mortal.kill()
            mortal.start()
        go_on(acknowledged)
    there = [id_ for (id_,) in place.rows("SELECT id FROM usage")]
    assert len(there) == len(set(there))
    assert set(acknowledged) <= set(there), "what was acknowledged is there"
    finish(ledgers[3:], stripe, total=len(there))
    assert stripe.total == len(there)
    assert totals(ledgers[0])["accepted"] == len(there)
    assert conserved(ledgers[0])
    for ledger in ledgers:
        ledger.close()


def go_on(acknowledged: dict[str, int]) -> None:
    """Let it run for a while, which holds some commits at least, however busy the machine."""
    before, deadline = len(acknowledged), time.monotonic() + 60
    time.sleep(0.5)
    while len(acknowledged) < before + 20:
        assert time.monotonic() < deadline, "it did not go on"
        time.sleep(0.02)


def finish(workers: list[Any], stripe: Any, *, total: int) -> None:
    """Deliver what is left; what waits for its retry, or for a lease, waits no longer."""
    at, deadline = time.time(), time.monotonic() + 30
    while stripe.total < total or totals(workers[0])["accepted"] < total:
        assert time.monotonic() < deadline, totals(workers[0])
        at += 400
        for ledger in workers:
            ledger._by_server = False
            ledger.maintain(now=at)
            ledger.freeze(now=at, bucket_s=1, everything=True)
            claims = ledger.claim(now=at, limit=100)
            ledger.finish_many([(claim, stripe.send(claim)) for claim in claims], now=at)


def test_a_server_that_stands_still_holds_calls_up_and_loses_nothing(mortal):
    place = mortal.new_place()
    ledger = PostgresLedger(place.url, schema=place.schema)
    ledger.open(now=time.time())
    backend = only(ledger._link._idle.execute("SELECT pg_backend_pid()").fetchall())[0]
    told: list[int] = []
    os.kill(backend, signal.SIGSTOP)
    try:
        thread = threading.Thread(
            target=lambda: told.append(ledger.commit([entry("a")], [], now=time.time()))
        )
        thread.start()
        thread.join(0.3)
        assert told == []
    finally:
        os.kill(backend, signal.SIGCONT)
    thread.join(10)
    assert told == [1]
    ledger.close()


def test_a_server_that_takes_no_more_connections_is_an_error_that_passes(mortal, stripe):
    """All of its connections are taken by others."""
    mortal.stop()
    mortal.start(max_connections="4", superuser_reserved_connections="0")
    place = mortal.new_place()
    ledger = PostgresLedger(place.url, schema=place.schema)
    taken = [psycopg.connect(mortal.url()) for _ in range(4)]
    with pytest.raises(LedgerError, match="too many clients"):
        ledger.open(now=time.time())
    for connection in taken:
        connection.close()
    deadline = time.monotonic() + 10
    while True:
        try:
            ledger.open(now=time.time())
            break
        except LedgerError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert ledger.commit([entry("a")], [], now=time.time()) == 1
    ledger.close()
