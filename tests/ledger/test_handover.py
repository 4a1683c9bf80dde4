"""Lanes pass from who records to who delivers; whoever dies, nothing is lost and nothing counted twice."""

from __future__ import annotations

import pytest
from llm_metering.errors import LedgerError
from llm_metering.ledger import SqliteLedger
from llm_metering.ledger.handover import LONG_KEPT_S, MAX_KEPT
from tests.ledger.conftest import BUCKET, T0, conserved, deliver, entry, line, progress, rows, totals
from tests.ledger.test_crashes import Brittle, brittle

LATER = T0 + BUCKET


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ledger"


@pytest.fixture
def opened(folder):
    made = []

    def open_(**options):
        ledger = SqliteLedger(folder, adopt_after_s=options.pop("adopt_after_s", 0), **options)
        made.append(ledger)
        ledger.open(now=T0)
        return ledger

    yield open_
    for ledger in made:
        ledger.close()


@pytest.fixture
def service(opened):
    return opened()


@pytest.fixture
def worker(opened, service):
    return opened()


def hand_over(ledger, now=LATER, **more):
    return ledger.hand_over(now=now, bucket_s=BUCKET, **more)


def take(worker, now=LATER):
    """A round of the worker's: adopt, freeze, deliver everything."""
    worker.maintain(now=now)
    worker.freeze(now=now, bucket_s=BUCKET)
    claims = []
    while some := deliver(worker, now=now):
        claims += some
    worker.maintain(now=now)
    return claims


def ids(folder):
    return sorted(id_ for (id_,) in rows(folder, "SELECT id FROM usage"))


def test_what_was_recorded_is_delivered_by_another_process(service, worker, folder):
    service.commit([entry("a"), entry("b", customer="cus_2")], [], now=T0)
    assert take(worker) == []
    assert hand_over(service) is True
    assert len(take(worker)) == 2
    service.commit([entry("c", used_at=LATER)], [], now=LATER)
    assert totals(service) == {"recorded": 30, "pending": 10, "accepted": 20, "in_doubt": 0, "dead": 0}
    assert conserved(service)


def test_an_open_bucket_is_kept_unless_all_is_asked_for(service, worker):
    service.commit([entry("a")], [], now=T0)
    lane = service.lane
    assert hand_over(service, now=T0 + 1) is False
    assert service.lane == lane
    assert hand_over(service, now=T0 + 1, everything=True) is True
    assert service.lane != lane


def test_without_anything_to_deliver_the_lane_stays(service, folder):
    lane = service.lane
    service.commit([entry("held", held="unreadable"), entry("nobody", customer=None)], [], now=T0)
    assert hand_over(service, everything=True) is False
    assert service.lane == lane


def test_lanes_go_to_and_fro_and_do_not_pile_up(service, worker, folder):
    for n in range(20):
        now = T0 + n * BUCKET
        service.commit([entry(f"r{n}", used_at=now)], [], now=now)
        assert hand_over(service, now=now + BUCKET)
        take(worker, now=now + BUCKET)
    assert totals(service)["accepted"] == 200
    assert len(list(folder.glob("lane-*.db"))) <= 4


def test_a_lane_that_waits_for_the_worker_is_not_taken_back(service, opened, folder):
    seen = set()
    for n in range(4):
        now = T0 + n * BUCKET
        service.commit([entry(f"r{n}", used_at=now)], [], now=now)
        seen.add(service.lane)
        hand_over(service, now=now + BUCKET)
    assert len(seen) == 4
    assert len(take(opened(), now=T0 + 9 * BUCKET)) == 4


def test_an_id_is_recorded_once_across_a_hand_over(service, worker, folder):
    service.commit([entry("job-1")], [], now=T0)
    hand_over(service)
    assert service.commit([entry("job-1"), entry("job-2")], [], now=LATER) == 1
    take(worker)
    assert service.commit([entry("job-1")], [], now=LATER) == 0
    assert ids(folder) == ["job-1", "job-2"]


def test_a_stream_that_outlives_a_hand_over_counts_once(service, worker, folder):
    service.commit([entry("a")], [progress("s", line(3))], now=T0)
    hand_over(service)
    assert take(worker) == [], "its lane is kept until it has ended"
    service.commit([], [progress("s", line(4))], now=LATER)
    service.commit([entry("s", line(9), closes="s"), entry("b", used_at=LATER)], [], now=LATER)
    assert service.status(now=LATER).streams_under_way == 0
    assert hand_over(service) is True
    take(worker)
    assert totals(service) == {"recorded": 29, "pending": 10, "accepted": 19, "in_doubt": 0, "dead": 0}
    assert ids(folder) == ["a", "b", "s"]


def test_a_stream_that_is_dropped_after_a_hand_over_leaves_nothing(service, worker, folder):
    service.commit([entry("a")], [progress("s", line(3))], now=T0)
    hand_over(service)
    service.commit([], [], drops=["s"], now=LATER)
    hand_over(service)
    take(worker)
    assert totals(service)["recorded"] == totals(service)["accepted"] == 10


def test_a_service_that_dies_with_streams_in_several_lanes_leaves_each_once(service, opened, folder):
    for n in range(3):
        now = T0 + n * BUCKET
        made = entry(f"r{n}", used_at=now)
        service.commit([made], [progress(f"s{n}", line(5), used_at=now)], now=now)
        hand_over(service, now=now + BUCKET)
    service.close()
    worker = opened()
    take(worker, now=T0 + 9 * BUCKET)
    assert ids(folder) == ["r0", "r1", "r2", "s0", "s1", "s2"]
    assert totals(worker)["accepted"] == 45
    assert conserved(worker)


def test_no_more_than_a_few_lanes_are_kept_for_streams(service, folder):
    for n in range(MAX_KEPT + 4):
        now = T0 + n * BUCKET
        service.commit([entry(f"r{n}", used_at=now)], [progress(f"s{n}", used_at=now)], now=now)
        hand_over(service, now=now + BUCKET)
    assert len(list(folder.glob("lane-*.db"))) == MAX_KEPT + 1
    closing = [entry(f"s{n}", closes=f"s{n}") for n in range(MAX_KEPT + 4)]
    service.commit(closing, [], now=T0 + 20 * BUCKET)
    assert hand_over(service, now=T0 + 20 * BUCKET)
    assert service.status(now=T0).streams_under_way == 0
    assert len(ids(folder)) == 2 * (MAX_KEPT + 4)


def test_a_stream_that_does_not_end_is_an_alarm_once_and_so_is_a_hand_over_that_stops(service):
    def alarms():
        return [alarm.name for alarm in service.take_alarms()]

    service.commit([entry("a")], [progress("s")], now=T0)
    hand_over(service)
    hand_over(service, now=LATER + LONG_KEPT_S - 1)
    assert alarms() == []
    hand_over(service, now=LATER + LONG_KEPT_S)
    hand_over(service, now=LATER + LONG_KEPT_S + 60)
    assert alarms() == ["ledger.handover_waits"]
    start = LATER + LONG_KEPT_S
    for n in range(MAX_KEPT + 3):
        now = start + n * BUCKET
        service.commit([entry(f"r{n}", used_at=now)], [progress(f"s{n}", used_at=now)], now=now)
        hand_over(service, now=now + BUCKET)
    assert alarms() == ["ledger.handover_stopped"]
    service.commit([entry("s", closes="s")], [], now=start)
    assert hand_over(service, now=start + 20 * BUCKET)
    assert alarms() == []


def test_a_worker_that_dies_while_sending_leaves_the_doubt_to_the_next(service, worker, opened):
    service.commit([entry("a")], [], now=T0)
    hand_over(service)
    worker.maintain(now=LATER)
    worker.freeze(now=LATER, bucket_s=BUCKET)
    (claim,) = worker.claim(now=LATER, limit=1)
    worker.close()
    second = opened()
    second.maintain(now=LATER)
    (again,) = second.claim(now=LATER + 1, limit=1)
    assert again.event == claim.event
    assert (again.attempt, again.first_ambiguous_at is None) == (2, False)


def test_a_decision_is_carried_out_by_a_service_that_only_hands_over(service, folder):
    from llm_metering.decisions import Decision
    from llm_metering.ledger import spool

    service.commit([entry("u", customer=None)], [], now=T0)
    spool.post(folder, service.lane, Decision("assign", ("u",), "ada", "x", T0, "0" * 32, "cus_1"))
    assert hand_over(service) is True
    assert service.status(now=T0).unresolved_records == 0


def test_a_forked_childs_ledger_knows_nothing_of_its_parents_streams(service):
    service.commit([entry("a")], [progress("s")], now=T0)
    hand_over(service)
    service._handover.forget()
    assert not service._handover.has_begun


@pytest.mark.slow
def test_whichever_database_call_fails_nothing_is_lost_or_doubled(quick_folder):
    for late in (False, True):
        Brittle.too_late = late
        for k in range(1, 1000):
            folder = quick_folder / f"{late}{k}"
            Brittle.calls, Brittle.fail_at = 0, k
            _an_hour_of_handing_over(folder / "ledger")
            Brittle.fail_at = 0
            worker = SqliteLedger(folder / "ledger", adopt_after_s=0)
            worker.open(now=T0 + 9 * BUCKET)
            take(worker, now=T0 + 9 * BUCKET)
            assert ids(folder / "ledger") == ["a", "b", "c", "s", "t"], (late, k)
            assert totals(worker)["accepted"] == 50, (late, k)
            worker.close()
            if Brittle.calls < k:
                break
        else:
            raise AssertionError("never came to a clean pass")
        assert k > 40


def _an_hour_of_handing_over(folder):
    ledger = SqliteLedger(folder, adopt_after_s=0, connect=brittle)

    def insist(step):
        for _ in range(3):
            try:
                return step()
            except LedgerError:
                pass
        raise AssertionError("it failed more than once")

    insist(lambda: ledger.open(now=T0))
    try:
        insist(lambda: ledger.commit([entry("a")], [progress("s"), progress("t")], now=T0))
        insist(lambda: hand_over(ledger))
        insist(lambda: ledger.commit([entry("b"), entry("s", closes="s")], [progress("t")], now=LATER))
        insist(lambda: hand_over(ledger))
        insist(lambda: ledger.commit([entry("a"), entry("c"), entry("t", closes="t")], [], now=LATER))
        insist(lambda: hand_over(ledger))
    finally:
        ledger.close()


@pytest.fixture(autouse=True)
def sound():
    yield
    Brittle.fail_at, Brittle.too_late = 0, False
