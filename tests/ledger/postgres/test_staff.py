"""Who works, as a person sees it, and a partition that is moved by hand, in mid-send too."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

import pytest
from llm_metering.__main__ import main
from llm_metering.ledger.postgres import PostgresBooks, PostgresDesk, PostgresLedger, migrate
from tests.ledger.conftest import BUCKET, T0, conserved, entry, line, totals

DONE = T0 + BUCKET


def desk(place: Any) -> PostgresDesk:
    return PostgresDesk(PostgresBooks(place.url, schema=place.schema))


def used(ledger: Any, customers: int) -> None:
    ledger.commit([entry(f"r{n}", line(1), customer=f"cus_{n}") for n in range(customers)], [], now=T0)


def test_every_process_is_shown_with_what_it_holds(hire: Any, place: Any) -> None:
    now = time.time()
    worker, pod = hire(clock="server", now=now), hire(clock="server", now=now)
    worker.maintain(now=now)
    pod.commit([entry("a", line(1), used_at=now)], [], now=now)
    rows = {row.id: row for row in PostgresBooks(place.url, schema=place.schema).workers()}
    assert len(rows) == 2
    mine, its = rows[worker._worker], rows[pod._worker]
    assert (mine.pid, mine.delivers, len(mine.partitions)) == (os.getpid(), True, 64)
    assert (its.delivers, its.partitions) == (False, ())
    assert abs(its.seen_at - now) < 60
    worker.close()
    assert [r.id for r in PostgresBooks(place.url, schema=place.schema).workers()] == [pod._worker]


def test_lag_is_shown_where_it_is(hire: Any, place: Any) -> None:
    ledger = hire()
    used(ledger, 40)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    ledger.claim(now=DONE, limit=3)
    ledger.commit([entry("late", line(1), customer="cus_late", used_at=DONE)], [], now=DONE)
    rows = PostgresBooks(place.url, schema=place.schema).partitions()
    assert [r.number for r in rows] == list(range(64))
    assert (sum(r.pending for r in rows), sum(r.sending for r in rows)) == (37, 3)
    assert sum(r.unfrozen_records for r in rows) == 1
    assert {r.oldest_pending_at for r in rows} == {None, T0, DONE}
    assert {r.worker for r in rows} == {ledger._worker}


def test_a_partition_in_mid_send_stays_until_the_call_has_ended(hire: Any, place: Any, stripe: Any) -> None:
    holder, other = hire(clock="server", now=time.time()), hire(clock="server", now=time.time())
    now = time.time()
    holder.commit([entry("a", line(1), used_at=now - 2 * BUCKET)], [], now=now)
    holder.freeze(now=now, bucket_s=BUCKET)
    (claim,) = holder.claim(now=now, limit=1)
    other.maintain(now=now)
    rows = PostgresBooks(place.url, schema=place.schema).partitions()
    (busy,) = (r.number for r in rows if r.sending)
    assert desk(place).give_partition(busy, other._worker) == "1 of its meter events are being sent"
    assert holder.finish(claim, stripe.send(claim), now=now) is not None
    assert desk(place).give_partition(busy, other._worker) is None
    row = PostgresBooks(place.url, schema=place.schema).partitions()[busy]
    assert (row.worker, row.fence > rows[busy].fence) == (other._worker, True)


def test_a_holder_whose_partition_was_moved_sends_none_of_it(hire: Any, place: Any, stripe: Any) -> None:
    now = time.time()
    holder, other = hire(clock="server", now=now), hire(clock="server", now=now)
    holder.maintain(now=now)
    other.maintain(now=now)
    holder.commit([entry("a", line(1), used_at=now - 2 * BUCKET)], [], now=now)
    (number,) = place.rows("SELECT partition FROM usage")[0]
    assert desk(place).give_partition(number, other._worker) is None
    assert holder.freeze(now=now, bucket_s=BUCKET) == 0
    assert other.freeze(now=now, bucket_s=BUCKET) == 1
    assert holder.claim(now=now, limit=5) == []
    (claim,) = other.claim(now=now, limit=5)
    other.finish(claim, stripe.send(claim), now=now)
    assert totals(other)["accepted"] == 1


@pytest.mark.parametrize(
    ("number", "to", "said"), [(64, None, "no partition 64"), (1, "nobody", "no worker nobody delivers")]
)
def test_what_cannot_be_moved_is_refused(
    hire: Any, place: Any, number: int, to: str | None, said: str
) -> None:
    hire().maintain(now=T0)
    assert said in str(desk(place).give_partition(number, to))


def test_partitions_moved_at_random_lose_and_double_nothing(hire: Any, place: Any, stripe: Any) -> None:
    """Three workers send, and a person moves partitions between them all the while."""
    from tests.ledger.postgres.test_workers import work

    over = threading.Event()
    workers = [hire(clock="server", now=time.time()) for _ in range(3)]
    threads = [threading.Thread(target=work, args=(ledger, stripe, over)) for ledger in workers]
    for thread in threads:
        thread.start()
    person, pod, moved = desk(place), hire(clock="server", now=time.time()), 0
    for n in range(150):
        pod.commit([entry(f"r{n}", line(1), customer=f"cus_{n % 9}", used_at=time.time())], [], now=0.0)
        moved += person.give_partition(n % 64, workers[n % 3]._worker) is None
    deadline = time.monotonic() + 60
    while stripe.total < 150 and time.monotonic() < deadline:
        time.sleep(0.02)
    over.set()
    for thread in threads:
        thread.join()
    assert (stripe.total, stripe.overlaps) == (150, 0)
    assert moved > 20
    assert totals(pod)["accepted"] == 150
    assert conserved(pod)


@pytest.fixture
def url(cluster: Any) -> str:
    url = str(cluster.new_database())
    migrate(url)
    return url


def run(capsys: Any, *argv: str) -> Any:
    capsys.readouterr()
    code = main([*argv, "--json"])
    return code, json.loads(capsys.readouterr().out or "null")


def test_the_commands_show_and_move(url: str, capsys: Any) -> None:
    ledger = PostgresLedger(url)
    ledger.open(now=time.time())
    ledger.maintain(now=time.time())
    code, shown = run(capsys, "status", "--ledger", url, "--partitions")
    assert code == 0
    assert [(w["pid"], len(w["partitions"])) for w in shown["workers"]] == [(os.getpid(), 64)]
    assert len(shown["partitions"]) == 64
    code, shown = run(capsys, "ledger", "partition", "7", "--release", "--ledger", url)
    assert (code, [p["worker"] for p in shown["partitions"]]) == (0, [None])
    code, shown = run(capsys, "ledger", "partition", "7", "--to", ledger._worker, "--ledger", url)
    assert (code, [p["worker"] for p in shown["partitions"]]) == (0, [ledger._worker])
    assert run(capsys, "ledger", "partition", "7", "--to", "x", "--wait", "0", "--ledger", url)[0] == 1
    assert run(capsys, "ledger", "partition", "70", "--ledger", url)[0] == 2
    assert run(capsys, "ledger", "partition", "--release", "--ledger", url)[0] == 2
    assert main(["status", "--ledger", url]) == 0
    assert "last seen" in capsys.readouterr().out
    ledger.close()


def test_a_ledger_in_a_folder_has_no_partitions(tmp_path: Any, capsys: Any) -> None:
    (tmp_path / "ledger").mkdir(mode=0o700)
    assert main(["ledger", "partition", "--ledger", str(tmp_path / "ledger")]) == 2
    assert "only a ledger in PostgreSQL" in capsys.readouterr().err
