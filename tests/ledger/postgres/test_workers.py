"""Any number of workers: each customer is one worker's at a time, and what a worker that was given up on
writes later changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from llm_metering.errors import LedgerError
from llm_metering.ledger.postgres import sending
from llm_metering.ledger.postgres.workers import HOLD_S, STREAMS_S
from llm_metering.protocols import Claim, Outcome
from tests.ledger.conftest import BUCKET, T0, conserved, deliver, entry, line, progress, totals

DONE = T0 + BUCKET
ROOT = Path(__file__).parents[3]
BY = {"who": "ada", "why": "the customer is back"}


def held(place: Any) -> Counter[str]:
    """How many partitions each worker holds."""
    found = place.rows("SELECT worker, count(*) FROM partition WHERE worker IS NOT NULL GROUP BY worker")
    return Counter(dict(found))


def rounds(*ledgers: Any, now: float, times: int = 3) -> None:
    for _ in range(times):
        for ledger in ledgers:
            ledger.maintain(now=now)


def used(ledger: Any, customers: int, *, now: float = T0, per_customer: int = 1) -> None:
    ledger.commit(
        [
            entry(f"{now}-{i}-{n}", line(1, kind=f"k{n}"), customer=f"cus_{i:04d}", used_at=now)
            for i in range(customers)
            for n in range(per_customer)
        ],
        [],
        now=now,
    )


# ---- shares


def test_partitions_are_shared_out_and_shared_anew_when_workers_come_and_go(hire, place):
    first = hire()
    rounds(first, now=T0)
    assert list(held(place).values()) == [64]
    second = hire()
    rounds(first, second, now=T0)
    assert sorted(held(place).values()) == [32, 32]
    third = hire()
    rounds(first, second, third, now=T0)
    assert max(held(place).values()) <= 22
    assert sum(held(place).values()) == 64
    second.close()
    rounds(first, third, now=T0)
    assert sorted(held(place).values()) == [32, 32]


def test_a_process_that_only_records_takes_no_share(hire, place):
    pod, worker = hire(), hire()
    used(pod, 3)
    pod.hand_over(now=T0, bucket_s=BUCKET)
    rounds(worker, now=T0)
    assert list(held(place).values()) == [64]
    assert worker.freeze(now=DONE, bucket_s=BUCKET) == 3
    assert len(deliver(worker, now=DONE)) == 3


def test_workers_freeze_and_send_what_is_their_own_and_together_all_of_it(hire):
    first, second = hire(), hire()
    rounds(first, second, now=DONE)
    used(first, 200, per_customer=2)
    made = [ledger.freeze(now=DONE, bucket_s=BUCKET) for ledger in (first, second)]
    assert sum(made) == 400
    assert min(made) > 100
    taken = [{c.event.customer for c in deliver(ledger, now=DONE, limit=500)} for ledger in (first, second)]
    assert taken[0] & taken[1] == set()
    assert len(taken[0] | taken[1]) == 200
    for ledger in (first, second):
        deliver(ledger, now=DONE, limit=500)
    assert totals(first)["accepted"] == 400
    assert conserved(first)


def test_a_share_with_calls_under_way_is_not_given_away(hire, place):
    first = hire()
    used(first, 300)
    first.freeze(now=DONE, bucket_s=BUCKET)
    claims = first.claim(now=DONE, limit=500)
    second = hire(now=DONE)
    rounds(second, first, second, now=DONE)
    assert list(held(place).values()) == [64], "all have calls under way"
    assert second.claim(now=DONE, limit=500) == []
    assert all(first.finish_many([(c, Outcome("accepted")) for c in claims], now=DONE))
    rounds(first, second, now=DONE)
    assert sorted(held(place).values()) == [32, 32]


# ---- fences


def test_what_a_worker_that_was_given_up_on_writes_changes_nothing(hire, stripe):
    zombie, worker = hire(), hire()
    used(zombie, 20)
    zombie.freeze(now=DONE, bucket_s=BUCKET)
    claims = zombie.claim(now=DONE, limit=50)
    assert len(claims) == 20
    later = DONE + HOLD_S + 1
    told = worker.maintain(now=later)
    assert {t.after for t in told} == {"AMBIGUOUS"}
    outcomes = [(claim, stripe.send(claim)) for claim in claims]
    assert zombie.finish_many(outcomes, now=later) == [None] * 20
    assert worker.status(now=later).events == {"AMBIGUOUS": 20}
    again = worker.claim(now=later, limit=50)
    assert [(c.event, c.attempt) for c in again] == [(c.event, 2) for c in claims]
    assert min(c.fence for c in again) > max(c.fence for c in claims)
    assert zombie.finish_many([(c, Outcome("refused_data", 400)) for c in claims], now=later) == [None] * 20
    assert zombie.claim(now=later, limit=50) == [], "its customers are another's now"
    worker.finish_many([(c, stripe.send(c)) for c in again], now=later)
    assert totals(worker)["accepted"] == stripe.total == 20
    assert conserved(worker)


def test_a_silent_worker_keeps_its_share_as_long_as_nobody_takes_it(hire):
    ledger = hire()
    used(ledger, 5)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    claims = ledger.claim(now=DONE, limit=9)
    told = ledger.finish_many([(c, Outcome("accepted")) for c in claims], now=DONE + 200)
    assert [t.after for t in told] == ["ACCEPTED"] * 5


@pytest.mark.parametrize(("rounds_s", "taken"), [(10, True), (300, False)])
def test_a_worker_whose_rounds_are_far_apart_is_not_taken_for_dead_in_between(hire, rounds_s, taken):
    rare, other = hire(rounds_s=rounds_s), hire()
    used(rare, 5)
    rare.freeze(now=DONE, bucket_s=BUCKET)
    assert len(rare.claim(now=DONE, limit=9)) == 5
    assert bool(other.maintain(now=DONE + 61)) is taken


ZOMBIE = """
import sys, time
sys.path.insert(0, sys.argv[3])
from llm_metering.ledger.postgres import PostgresLedger
from llm_metering.protocols import Outcome
ledger = PostgresLedger(sys.argv[1], schema=sys.argv[2], hold_s=1)
ledger.open(now=time.time())
(claim,) = ledger.claim(now=time.time(), limit=1)
print(claim.event.identifier, flush=True)
input()
print(ledger.finish(claim, Outcome("refused_data", 400), now=time.time()))
print(ledger.claim(now=time.time(), limit=1))
ledger.close()
"""


def taken_over(worker: Any, *, within_s: float) -> Claim:
    """What another was sending, once its lease has run out."""
    deadline = time.monotonic() + within_s
    taken: list[Claim] = []
    while not taken:
        assert time.monotonic() < deadline
        worker.maintain(now=time.time())
        taken = worker.claim(now=time.time(), limit=1)
        time.sleep(0.05)
    return taken[0]


def test_a_worker_stopped_past_its_lease_and_continued_changes_nothing(hire, place, stripe):
    """With real processes, signals and clocks."""
    pod = hire(clock="server")
    used(pod, 1, now=time.time() - 2 * BUCKET)
    pod.freeze(now=time.time(), bucket_s=BUCKET)
    pod.close()
    zombie = subprocess.Popen(
        [sys.executable, "-c", ZOMBIE, place.url, place.schema, str(ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert zombie.stdin is not None
    assert zombie.stdout is not None
    try:
        identifier = zombie.stdout.readline().strip()
        os.kill(zombie.pid, signal.SIGSTOP)
        worker = hire(clock="server", now=time.time())
        claim = taken_over(worker, within_s=20)
        assert (claim.event.identifier, claim.attempt) == (identifier, 2)
        os.kill(zombie.pid, signal.SIGCONT)
        said, _ = zombie.communicate("\n", timeout=30)
        assert said.split("\n")[:2] == ["None", "[]"]
        assert worker.finish(claim, stripe.send(claim), now=time.time()).after == "ACCEPTED"
    finally:
        zombie.kill()
        zombie.wait()
        zombie.stdin.close()
        zombie.stdout.close()


STANDS_STILL = """
import signal, sys, threading, time
sys.path.insert(0, sys.argv[3])
from llm_metering import MemorySender
from llm_metering.flusher import Flusher
from llm_metering.ledger import Writer
from llm_metering.ledger.postgres import PostgresLedger
from llm_metering.senders.threads import SendingThreads
from llm_metering.settings import Settings
from llm_metering.telemetry import LogTelemetry

class Stopped(PostgresLedger):
    def claim(self, **more):
        claims = super().claim(**more)
        if claims:
            print("claimed", flush=True)
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread, at once
            print("goes on", flush=True)
        return claims

SendingThreads.TOO_LATE_S = float(sys.argv[4])
telemetry = LogTelemetry()
ledger = Stopped(sys.argv[1], schema=sys.argv[2], hold_s=1)
writer = Writer(ledger, lines_of=lambda _: (), telemetry=telemetry)
writer.start()
sender = MemorySender()
flusher = Flusher(writer, sender, Settings(flush_every_s=0.2), telemetry)
flusher.start()
deadline = time.monotonic() + 30
while "delivery.fenced" not in telemetry.snapshot() and time.monotonic() < deadline:
    time.sleep(0.01)
print(f"sent {len(sender.accepted)}", flush=True)
flusher.stop()
writer.stop()
"""


@pytest.mark.parametrize(("too_late_s", "sent"), [(0.5, "sent 0"), (3600, "sent 1")])
def test_a_worker_that_stood_still_after_its_claim_sends_nothing_that_may_be_forgotten(
    hire, place, stripe, too_late_s, sent
):
    """Stopped for real between the claim and the call, with a day that lasts half a second."""
    pod = hire(clock="server")
    used(pod, 1, now=time.time() - 2 * BUCKET)
    pod.freeze(now=time.time(), bucket_s=BUCKET)
    pod.close()
    stopped = subprocess.Popen(
        [sys.executable, "-c", STANDS_STILL, place.url, place.schema, str(ROOT), str(too_late_s)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert stopped.stdout is not None
    try:
        assert stopped.stdout.readline() == "claimed\n"
        worker = hire(clock="server", now=time.time())
        claim = taken_over(worker, within_s=30)
        assert worker.finish(claim, stripe.send(claim), now=time.time()).after == "ACCEPTED"
        os.kill(stopped.pid, signal.SIGCONT)
        said, _ = stopped.communicate(timeout=60)
        assert said.splitlines() == ["goes on", sent]
        assert totals(worker)["accepted"] == 1
    finally:
        stopped.kill()
        stopped.wait()
        stopped.stdout.close()


READ = """
    SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables
    WHERE relname = 'meter_event' AND schemaname = current_schema()
"""


@pytest.mark.parametrize("analyzed", [False, True])
def test_what_is_settled_is_not_read_again_to_finish_and_claim(hire, place, analyzed):
    """However many events there were: what a turn reads does not grow with them."""
    ledger = hire()
    ledger.commit([entry(f"old{n}", line(1), customer=f"cus_{n}") for n in range(1500)], [], now=T0)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    while deliver(ledger, now=DONE, limit=500):
        pass
    ledger.commit(
        [entry(f"new{n}", line(1), customer=f"cus_{n}", used_at=DONE) for n in range(3)], [], now=DONE
    )
    ledger.freeze(now=DONE + BUCKET, bucket_s=BUCKET)
    if analyzed:
        place.rows("ANALYZE meter_event")
    (first,) = ledger.claim(now=DONE + BUCKET, limit=1)

    def turn(db: Any, at: float) -> Any:
        before = db.one(READ)[0]  # what the session's transactions so far have not told the server yet
        told = sending.finish(db, [(first, Outcome("accepted", 200))], at, lambda: 0.5)
        more = {"limit": 2, "ambiguous_only": False, "awaits_time": False, "lease_s": 60.0}
        claims = sending.begin(db, sending.Turn(), range(64), now=at, **more)
        return told, claims, db.one(READ)[0] - before

    told, claims, read = ledger._do(turn, DONE + BUCKET, first=sending.BY_INDEX)
    assert (told[0].after, len(claims)) == ("ACCEPTED", 2)
    assert read < 100


# ---- streams


def test_streams_of_a_process_that_is_silent_become_usage_and_those_of_others_go_on(hire):
    silent, alive = hire(), hire()
    silent.commit([], [progress("left", line(3))], now=T0)
    alive.commit([], [progress("goes on", line(5))], now=T0)
    alive.maintain(now=T0 + STREAMS_S - 1)
    assert alive.status(now=T0).streams_under_way == 2
    alive.maintain(now=T0 + STREAMS_S + 1)
    assert alive.status(now=T0).streams_under_way == 1
    assert totals(alive)["recorded"] == 3
    silent.commit([entry("left", line(9), closes="left")], [], now=T0 + STREAMS_S + 2)
    alive.commit([entry("goes on", line(9), closes="goes on")], [], now=T0 + STREAMS_S + 2)
    assert totals(alive)["recorded"] == 3 + 9, "what was taken up counts once"


def test_a_forked_child_is_a_worker_of_its_own(hire, place):
    ledger = hire()
    used(ledger, 1)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            ledger.commit([entry("of the child", line(1), customer="cus_c")], [], now=DONE)
            os.write(write, repr(ledger.claim(now=DONE, limit=5)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        assert said.read() == "[]", "the parent's customers are not the child's"
    os.waitpid(child, 0)
    assert len(deliver(ledger, now=DONE)) == 1, "and its connection still works"
    assert totals(ledger)["recorded"] == 2
    assert place.rows("SELECT count(*) FROM worker") == [(2,)]


# ---- all at once


def work(ledger: Any, stripe: Any, over: threading.Event, bucket_s: int = 1) -> None:
    """A worker's rounds, on the server's clock, without a sender's threads."""
    while not over.is_set():
        now = time.time()
        try:
            ledger.maintain(now=now)
            ledger.freeze(now=now, bucket_s=bucket_s, everything=True)
            claims = ledger.claim(now=now, limit=20)
            outcomes = [(claim, stripe.send(claim)) for claim in claims]
            while outcomes:
                try:
                    ledger.finish_many(outcomes, now=now)
                    outcomes = []
                except LedgerError:
                    time.sleep(0.02)
        except LedgerError:
            time.sleep(0.02)


def test_whoever_works_beside_whom_all_is_billed_once(hire, stripe):
    """Four pods that offer the same records again, and three workers, in parallel."""
    over = threading.Event()
    workers = [hire(clock="server", now=time.time()) for _ in range(3)]
    pods = [hire(clock="server", now=time.time()) for _ in range(4)]
    threads = [threading.Thread(target=work, args=(ledger, stripe, over)) for ledger in workers]

    def record(pod: Any, number: int) -> None:
        for n in range(25):
            ids = [f"{(number + k) % 4}-{n}" for k in range(2)]  # each is offered by two pods
            made = [entry(i, line(1), customer=f"cus_{n % 7}", used_at=time.time()) for i in ids]
            pod.commit(made, [], now=time.time())

    recorders = [threading.Thread(target=record, args=(pod, n)) for n, pod in enumerate(pods)]
    for thread in threads + recorders:
        thread.start()
    for thread in recorders:
        thread.join()
    deadline = time.monotonic() + 30
    while stripe.total < 100 and time.monotonic() < deadline:
        time.sleep(0.02)
    over.set()
    for thread in threads:
        thread.join()
    assert stripe.total == 100
    assert stripe.overlaps == 0, "one call at a time for each customer and meter"
    assert totals(pods[0]) == {"recorded": 100, "pending": 0, "accepted": 100, "in_doubt": 0, "dead": 0}


@pytest.mark.parametrize("skew_s", [-2 * 86_400, 2 * 86_400])
def test_a_worker_whose_clock_is_days_off_takes_nothing_from_others_and_waits_as_they_do(
    hire, stripe, skew_s
):
    """The server's clock counts for leases, retries and doubt."""
    now = time.time()
    right, wrong = hire(clock="server", now=now), hire(clock="server", now=now + skew_s)
    for ledger, at in ((right, now), (wrong, now + skew_s)) * 2:
        ledger.maintain(now=at)
    right.commit(
        [entry(f"r{n}", line(1), customer=f"cus_{n}", used_at=now - 120) for n in range(60)], [], now=now
    )
    made = [right.freeze(now=now, bucket_s=60), wrong.freeze(now=now + skew_s, bucket_s=60)]
    assert sum(made) == 60
    assert min(made) > 10
    mine = right.claim(now=now, limit=100)
    assert wrong.maintain(now=now + skew_s) == [], "no lease of the other's has run out"
    its = wrong.claim(now=now + skew_s, limit=100)
    assert {c.event.identifier for c in mine} & {c.event.identifier for c in its} == set()
    told = wrong.finish_many([(c, Outcome("not_sent")) for c in its], now=now + skew_s)
    assert wrong.claim(now=now + skew_s, limit=100) == [], "they wait for their retry"
    assert abs(min(t.next_attempt_at for t in told) - time.time()) < 60
    assert wrong.due_at() - (now + skew_s) < 60, "on its own clock"
    right.finish_many([(c, stripe.send(c)) for c in mine], now=now)
    assert right.status(now=now).events == {"ACCEPTED": len(mine), "PENDING": len(its)}


def test_a_new_worker_sends_nothing_again_before_stripe_has_told_the_time(hire):
    """What the server's clock did while no worker ran, nobody else can tell."""
    gone = hire()
    used(gone, 1)
    gone.freeze(now=DONE, bucket_s=BUCKET)
    deliver(gone, now=DONE, outcome=Outcome("ambiguous"))
    gone.close()
    at = DONE + 600  # as it seems
    worker = hire(now=at)
    assert worker.hear_time(None, now=at)
    worker.maintain(now=at)
    used(worker, 2, now=at)
    worker.freeze(now=at, bucket_s=BUCKET, everything=True)
    claims = worker.claim(now=at, limit=5)
    assert [claim.attempt for claim in claims] == [1, 1], "what Stripe cannot have is sent meanwhile"
    assert not worker.hear_time(23 * 3600.0, now=at)
    worker.maintain(now=at)
    assert worker.status(now=at).events["IN_DOUBT"] == 1
    (alarm,) = [a for a in worker.take_alarms() if a.name == "ledger.clock_went_back"]
    assert alarm.data["by_s"] == 23 * 3600.0


@pytest.mark.parametrize("skew_s", [-2 * 86_400, 2 * 86_400])
def test_stripes_time_is_held_against_the_servers_clock_and_not_a_workers(hire, skew_s):
    now = time.time()
    right = hire(clock="server", now=now)
    used(right, 1, now=now - 120)
    assert right.freeze(now=now, bucket_s=BUCKET) == 1
    assert deliver(right, now=now, outcome=Outcome("ambiguous"))
    wrong = hire(clock="server", now=now + skew_s)
    assert not right.hear_time(0.0, now=now)
    assert not wrong.hear_time(-skew_s, now=now + skew_s)
    for ledger in (right, wrong):
        assert [a for a in ledger.take_alarms() if a.name == "ledger.clock_went_back"] == []
    wrong.hear_time(3600.0 - skew_s, now=now + skew_s)
    (alarm,) = [a for a in wrong.take_alarms() if a.name == "ledger.clock_went_back"]
    assert alarm.data["by_s"] == pytest.approx(3600, abs=60)
    (row,) = right.events()
    assert row.first_ambiguous_at == pytest.approx(time.time() - 3600, abs=120)


@pytest.mark.parametrize("step_s", [-36_000, 36_000])
def test_a_worker_whose_own_clock_is_set_makes_no_doubt_older(hire, step_s):
    """As in a pod that begins before its host's time is synchronised."""
    now = time.time()
    worker = hire(clock="server", now=now - step_s)
    used(worker, 1, now=now - 120)
    assert worker.freeze(now=now - step_s, bucket_s=BUCKET) == 1
    assert deliver(worker, now=now - step_s, outcome=Outcome("ambiguous"))
    worker.hear_time(float(step_s), now=now - step_s)
    for _ in range(2):
        worker.maintain(now=now)
    worker.hear_time(0.0, now=now)
    assert [a for a in worker.take_alarms() if a.name == "ledger.clock_went_back"] == []
    (row,) = worker.events()
    assert row.first_ambiguous_at == pytest.approx(time.time(), abs=120)


def test_a_replay_by_several_at_once_makes_one_child(hire):
    ledgers = [hire() for _ in range(4)]
    used(ledgers[0], 1)
    ledgers[0].freeze(now=DONE, bucket_s=BUCKET)
    (dead,) = deliver(ledgers[0], now=DONE, outcome=Outcome("refused_data", 400))
    told: list[Any] = []
    barrier = threading.Barrier(4)

    def replay(ledger: Any) -> None:
        barrier.wait()
        told.extend(ledger.replay([dead.event.identifier], **BY, now=DONE))

    threads = [threading.Thread(target=replay, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(ruling.refused is None for ruling in told) == 1
    assert len(ledgers[0].events()) == 2
    assert totals(ledgers[0])["pending"] == 1


@pytest.mark.parametrize("how", ["hold", "assign"])
def test_what_is_frozen_while_a_person_decides_is_frozen_or_decided_never_both(hire, how):
    worker, person = hire(), hire()
    for n in range(10):
        customer = None if how == "assign" else "cus_1"
        worker.commit([entry(f"r{n}", line(1), customer=customer)], [], now=T0)
        threads = [
            threading.Thread(target=lambda: worker.freeze(now=DONE, bucket_s=BUCKET)),
            threading.Thread(
                target=lambda n=n: (
                    person.hold([f"r{n}"], **BY, now=T0)
                    if how == "hold"
                    else person.assign("cus_2", ids=[f"r{n}"], **BY, now=T0)
                )
            ),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert conserved(worker)
    assert totals(worker)["recorded"] == 10


def test_nothing_is_left_in_the_session(hire, place):
    """As a pooler needs it that gives each transaction another session."""
    ledger = hire()
    used(ledger, 20)
    ledger.freeze(now=DONE, bucket_s=BUCKET)
    for _ in range(10):
        deliver(ledger, now=DONE, limit=2)
    connection = ledger._link._idle
    assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
    assert connection.execute("SHOW search_path").fetchone() == ('"$user", public',)
    assert connection.execute("SHOW enable_seqscan").fetchone() == ("on",)
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    assert connection.execute(held).fetchone() == (0,)
    assert connection.execute("SELECT count(*) FROM pg_cursors WHERE name <> ''").fetchone() == (0,)
