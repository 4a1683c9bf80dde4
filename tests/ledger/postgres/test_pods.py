"""A host's lanes on their way to PostgreSQL: whatever is killed, cut, paused or lost on the way, all of it
is in the ledger once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_metering import MemorySender, Metering, Settings, Usage
from llm_metering.errors import ConfigurationError, LedgerError
from llm_metering.ledger import SqliteLedger
from llm_metering.ledger.offers import OfferAgain, Taken
from llm_metering.ledger.outbox import GROUP, waiting_in
from llm_metering.ledger.postgres import PostgresBooks, PostgresLedger, migrate
from llm_metering.ledger.postgres.connecting import SCHEMA
from llm_metering.ledger.postgres.workers import STREAMS_S
from tests.ledger.conftest import T0, conserved, entry, totals
from tests.ledger.postgres.cluster import Cluster, Place
from tests.ledger.postgres.fleet import WINDOW_S, Fleet
from tests.ledger.postgres.proxy import Proxy

ROOT = Path(__file__).parents[3]


@pytest.fixture
def fleet(cluster: Cluster, place: Place, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(cluster, place, tmp_path)
    yield made
    made.close()


def numbers(count: int) -> list[str]:
    return [f"r{n:05d}" for n in range(count)]


# ---- forwarding


def test_what_is_recorded_is_forwarded_as_it_is_in_groups(fleet):
    host = fleet.host()
    host.use(*numbers(GROUP + 3), value=2)
    odd = entry("odd", customer=None, dimensions={"feature": "x"}, model="m\ud800", held="unreadable")
    host.lanes.commit([odd], [], now=T0)
    fleet.used["odd"] = 0
    offers = []
    for offer in host.offers():
        offers.append(len(offer.records))
        host.outbox.answered(offer, host.ledger.take_in(offer, now=T0), now=T0)
    host.outbox.save(now=T0)
    assert offers == [GROUP, 4]
    assert fleet.in_ledger() == sorted(fleet.used)
    assert totals(fleet.worker)["recorded"] == 2 * (GROUP + 3) + 10
    (row,) = fleet.worker.set_aside("held")
    assert (row.record.model, dict(row.record.dimensions)) == (r"m\ud800", {"feature": "x"})
    assert waiting_in(host.folder).kept == GROUP + 4


def test_a_group_is_known_by_its_ids_however_often_it_is_offered(fleet):
    host = fleet.host()
    host.use("a")
    host.forward()
    host.use("b", "c")
    offer = host.outbox.next(now=T0)
    assert host.ledger.take_in(offer, now=T0) == Taken(2, "", 2)
    assert host.ledger.take_in(offer, now=T0) == Taken(3, "", 0)
    host.forward()
    assert fleet.in_ledger() == ["a", "b", "c"]


def test_a_stream_under_way_is_known_to_the_ledger_and_ends_once(fleet):
    host = fleet.host()
    host.stream("s", value=3)
    host.forward()
    assert fleet.worker.status(now=T0).streams_under_way == 1
    host.end_stream("s", value=8)
    host.forward()
    assert fleet.worker.status(now=T0).streams_under_way == 0
    assert totals(fleet.worker)["recorded"] == 8


def test_a_stream_that_was_counted_elsewhere_is_forgotten_there_too(fleet):
    host = fleet.host()
    host.stream("s", value=3)
    host.forward()
    host.lanes.commit([], [], drops=["s"], now=fleet.now)
    host.forward()
    assert fleet.worker.status(now=T0).streams_under_way == 0
    assert totals(fleet.worker)["recorded"] == 0


def test_a_host_that_is_lost_with_its_disk_is_billed_for_its_streams_as_far_as_they_were_forwarded(fleet):
    host = fleet.host()
    host.stream("s", value=3)
    host.forward()
    host.ledger.vanish()
    fleet.now += STREAMS_S + 1
    fleet.worker.maintain(now=fleet.now)
    assert fleet.in_ledger() == ["s"]
    assert totals(fleet.worker)["recorded"] == 3


def test_what_was_taken_stays_for_the_window_and_is_dropped_then(fleet):
    host = fleet.host()
    host.use(*numbers(5))
    host.forward()
    fleet.now += WINDOW_S - 1
    host.use("later")
    host.forward()
    assert waiting_in(host.folder).kept == 6
    fleet.now += 2
    for _ in range(3):
        host.forward()
    assert waiting_in(host.folder).kept == 1
    fleet.now += WINDOW_S
    for _ in range(3):
        host.forward()
    host.use("latest")
    host.forward()
    assert fleet.in_ledger() == ["later", "latest", *numbers(5)]
    host.lanes.close()
    host.lanes.open(now=fleet.now)
    assert [a.name for a in host.lanes.take_alarms()] == [], "what was dropped is not missed"


def test_a_lane_of_a_dead_process_is_adopted_and_forwarded(fleet):
    dead, other = fleet.host(), fleet.host()
    dead.use("a")
    dead.stream("s", value=5)
    dead.die()
    other.forward()
    other.forward()
    assert fleet.in_ledger() == ["a", "s"]


def test_two_that_adopt_at_once_forward_once(fleet):
    dead = fleet.host()
    others = [fleet.host() for _ in range(4)]
    dead.use(*numbers(50))
    dead.die()
    threads = [threading.Thread(target=lambda h=h: (h.forward(), h.forward())) for h in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fleet.in_ledger() == numbers(50)
    held = [name for host in others for name in (lane.name for lane in host.lanes.held(now=fleet.now))]
    assert len(held) == len(set(held))


def test_a_lane_whose_course_is_lost_offers_everything_again_and_nothing_is_marked(fleet):
    host = fleet.host()
    host.use("a")
    host.forward()
    host.lanes.held(now=T0)[0].set_meta("outbox", None)
    host.outbox._held.clear()
    host.use("b")
    host.forward()
    assert host.again == 2, "nobody knows what of it was offered"
    assert fleet.in_ledger() == ["a", "b"]
    assert fleet.worker.meta("marks") is None


def test_a_lane_is_told_to_offer_again_as_long_as_it_does_not_know_of_a_mark(fleet):
    host = fleet.host()
    host.use("a")
    host.forward()
    from llm_metering.ledger.postgres import restore_mark

    restore_mark(fleet.place.url, schema=fleet.place.schema, who="ada", why="a test")
    host.use("b")
    offer = host.outbox.next(now=T0)
    for _ in range(2):
        assert isinstance(host.ledger.take_in(offer, now=T0), OfferAgain)
    assert fleet.in_ledger() == ["a"]
    host.forward()
    assert fleet.in_ledger() == ["a", "b"]


@pytest.mark.parametrize("away", [True, False])
def test_streams_that_ended_while_the_database_was_away_are_billed_for_what_they_came_to(fleet, away):
    """Nobody could be heard for an hour: that says nothing of those who were silent."""
    host = fleet.host()
    host.stream("s", value=3)
    host.forward()
    hour_ago = f"{time.time() - 3600!r}"
    fleet.place.rows(f"UPDATE worker SET seen_at = {hour_ago}")
    noted = hour_ago if away else f"{time.time()!r}"
    fleet.place.rows(f"UPDATE meta SET value = '{noted}' WHERE name = 'clock'")
    worker = fleet.new_ledger(clock="server")
    worker.maintain(now=time.time())
    assert fleet.in_ledger() == ([] if away else ["s"])
    if away:
        host.end_stream("s", value=8)
        host.forward()
        assert totals(worker)["recorded"] == 8


# ---- a folder is for one thing


def test_a_folder_of_lanes_is_no_ledger_and_a_ledger_no_folder_of_lanes(tmp_path):
    lanes = SqliteLedger(tmp_path / "lanes", forwards=True)
    lanes.open(now=T0)
    lanes.close()
    with pytest.raises(LedgerError, match="on its way to a ledger in PostgreSQL"):
        SqliteLedger(tmp_path / "lanes").open(now=T0)
    ledger = SqliteLedger(tmp_path / "ledger")
    ledger.open(now=T0)
    ledger.close()
    with pytest.raises(LedgerError, match="llm-metering deliver --once --ledger"):
        SqliteLedger(tmp_path / "ledger", forwards=True).open(now=T0)


# ---- the line is cut


def test_a_group_whose_commit_was_not_answered_is_offered_again_and_counts_once(fleet):
    proxy = Proxy(fleet.cluster.socket)
    host = fleet.host()
    host.ledger = PostgresLedger(proxy.url(), schema=fleet.place.schema, clock="caller")
    host.ledger.open(now=T0)
    host.use("a")
    host.forward()
    host.use(*numbers(10))
    host.stream("s")
    proxy.lose_answer_to(b"COMMIT\0")
    with pytest.raises(LedgerError):
        host.forward()
    assert proxy.lost == 1
    assert len(fleet.in_ledger()) == 11, "it had reached the server"
    host.forward()
    assert len(fleet.in_ledger()) == 11
    assert fleet.worker.status(now=T0).streams_under_way == 1
    assert host.again == 0
    host.ledger.close()
    proxy.close()


# ---- kill -9, at each step

RECORDS = """
import os, sys, time
from llm_metering import Metering, Usage
with Metering("cus_1") as metering:
    print("started", flush=True)
    for n in range(int(sys.argv[1])):
        metering.record(Usage(input=1), model="m", id=f"r{n:05d}")
        if n % 10 == 9:
            metering._writer.flush(20)
            os.write(1, f"{n}\\n".encode())
            time.sleep(0.02)
    if len(sys.argv) > 2:
        time.sleep(60)
"""


@pytest.fixture
def url(cluster: Cluster) -> str:
    made = str(cluster.new_database())
    migrate(made)
    return made


def pod(url: str, lanes: Path, *words: str, **env: str) -> subprocess.Popen[bytes]:
    own = {n: v for n, v in os.environ.items() if not n.startswith(("LLM_METERING_", "STRIPE_"))}
    given = {
        "LLM_METERING_LEDGER": url,
        "LLM_METERING_LANE_FOLDER": str(lanes),
        "LLM_METERING_FORWARD_EVERY_S": "0.05",
        "LLM_METERING_DELIVER": "external",
        "LLM_METERING_ENCODINGS": "",
        **env,
    }
    return subprocess.Popen(
        [sys.executable, "-c", RECORDS, *words], env={**own, **given}, stdout=subprocess.PIPE, cwd=ROOT
    )


def ids(url: str) -> list[str]:
    return [i for (i,) in Place(url, SCHEMA).rows("SELECT id FROM usage ORDER BY id")]


@pytest.mark.parametrize("point", ["offered:2", "in_take_in:3", "after_take_in:2", "forwarded:2"])
def test_killed_at_any_step_between_lane_and_ledger_everything_is_there_once(url, tmp_path, point):
    process = pod(url, tmp_path / "lanes", "100", LLM_METERING_FAILPOINT=point)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    acknowledged = [int(n) for n in out.decode().split()[1:]]
    assert acknowledged
    before = ids(url)
    assert len(before) < 100
    again = pod(url, tmp_path / "lanes", "0")
    again.communicate(timeout=60)
    assert again.returncode == 0
    there = ids(url)
    assert len(there) == len(set(there))
    assert there[: acknowledged[-1] + 1] == numbers(acknowledged[-1] + 1)
    assert waiting_in(tmp_path / "lanes").records == 0


def test_a_pod_that_is_told_to_stop_forwards_what_it_holds(url, tmp_path):
    """As a server ends a lifespan at SIGTERM. Its disk is gone afterwards."""
    stops = RECORDS.replace(
        "with Metering", "import signal\nsignal.signal(15, lambda *_: sys.exit(0))\nwith Metering"
    )
    own = {n: v for n, v in os.environ.items() if not n.startswith(("LLM_METERING_", "STRIPE_"))}
    process = subprocess.Popen(
        [sys.executable, "-c", stops, "500", "stay"],
        env={
            **own,
            "LLM_METERING_LEDGER": url,
            "LLM_METERING_LANE_FOLDER": str(tmp_path / "lanes"),
            "LLM_METERING_FORWARD_EVERY_S": "30",
            "LLM_METERING_DELIVER": "external",
            "LLM_METERING_ENCODINGS": "",
        },
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(11)]
    assert len(ids(url)) < 100, "it waits for its time"
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    recorded = int([*said, *rest.splitlines()][-1]) + 1
    assert len(ids(url)) >= recorded


def test_a_pod_that_is_killed_with_its_disk_loses_no_more_than_an_interval(url, tmp_path):
    every_s = 0.3
    process = pod(url, tmp_path / "lanes", "100000", LLM_METERING_FORWARD_EVERY_S=str(every_s))
    assert process.stdout is not None
    said: list[tuple[float, int]] = []
    deadline = time.monotonic() + 30
    process.stdout.readline()
    while time.monotonic() < deadline and len(said) < 80:
        said.append((time.monotonic(), int(process.stdout.readline())))
    process.kill()
    killed_at = time.monotonic()
    process.communicate()
    there = len(ids(url))
    lost = [at for at, n in said if n >= there]
    assert there > 0
    # The interval, and what a forwarding and a loaded machine take.
    assert not lost or killed_at - lost[0] < every_s + 5


# ---- the database stands still


def test_while_postgresql_stands_still_nothing_waits_for_it_and_the_lane_drains_afterwards(
    mortal: Cluster, tmp_path: Path
):
    url = mortal.new_database()
    migrate(url)
    settings = Settings(
        bucket_s=1, lane_folder=str(tmp_path / "lanes"), deliver="external", forward_every_s=0.05
    )
    with Metering("cus_1", ledger=url, settings=settings) as metering:

        def record(count: int) -> list[float]:
            """How long each waits for its disk."""
            took = []
            for _ in range(count):
                began = time.monotonic()
                ticket = metering._way.sink.put(record_of())
                assert ticket.wait(20)
                took.append(time.monotonic() - began)
            return sorted(took)

        well = record(100)
        pids = [mortal.pid, *_children(mortal.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            paused = record(200)
            waiting_for(lambda: metering.health().unforwarded_records >= 100)
            health = metering.health()
            assert health.ready
            assert metering.has_room()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        waiting_for(lambda: len(ids(url)) == 300)
        waiting_for(lambda: metering.health().unforwarded_records == 0)
    assert paused[len(paused) // 2] < max(10 * well[len(well) // 2], 0.25)
    assert PostgresBooks(url).status(now=time.time()).usage_records == 300


_numbers = iter(range(10**9))


def record_of() -> Any:
    from llm_metering.usage import UsageRecord

    return UsageRecord(id=f"p{next(_numbers)}", usage=Usage(input=1), used_at=time.time(), customer="cus_1")


def _children(pid: int) -> list[int]:
    from tests.ledger.postgres.cluster import _children

    return _children(pid)


def waiting_for(what: Any, within: float = 60) -> None:
    deadline = time.monotonic() + within
    while not what():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def test_a_service_starts_while_its_database_is_gone_and_forwards_once_it_is_there(mortal, tmp_path):
    url = mortal.new_database()
    migrate(url)
    mortal.stop()
    alarms: list[Any] = []
    settings = Settings(lane_folder=str(tmp_path / "lanes"), forward_every_s=0.05)
    sender = MemorySender()
    with Metering("cus_1", ledger=url, settings=settings, sender=sender, on_alarm=alarms.append) as metering:
        metering.record(Usage(input=7), model="m")
        assert metering._writer.flush(10)
        assert metering.health().ready
        assert "on this host" in next(a.message for a in alarms if a.name == "ledger.cannot_write")
        mortal.start()
        waiting_for(lambda: len(ids(url)) == 1)


def test_a_database_without_a_ledger_is_told_at_the_start(cluster, tmp_path):
    settings = Settings(lane_folder=str(tmp_path / "lanes"))
    metering = Metering("cus_1", ledger=cluster.new_database(), settings=settings)
    with pytest.raises((LedgerError, ConfigurationError), match="llm-metering ledger migrate"):
        metering.start()


# ---- durability="ledger"


def test_with_durability_ledger_what_was_waited_for_is_in_postgresql(url, tmp_path):
    settings = Settings(lane_folder=str(tmp_path / "lanes"), durability="ledger", forward_every_s=30)
    with Metering("cus_1", ledger=url, settings=settings) as metering:
        for n in range(5):
            made = record_of()
            ticket = metering._way.sink.put(made)
            assert ticket.wait(30)
            assert ticket.error is None
            assert made.id in ids(url), n


def test_with_durability_ledger_an_id_that_is_known_already_is_done_too(url, tmp_path):
    settings = Settings(lane_folder=str(tmp_path / "lanes"), durability="ledger", forward_every_s=30)
    with Metering("cus_1", ledger=url, settings=settings) as metering:
        made = record_of()
        for _ in range(2):
            assert metering._way.sink.put(made).wait(30)
    assert ids(url) == [made.id]


# ---- alarms


def test_a_forwarder_that_does_not_get_through_says_so_once_and_when_it_has(fleet):
    from llm_metering.forwarder import LATE_S, Forwarder
    from llm_metering.ledger.writer import Writer
    from tests.ledger.conftest import Heard, lines_of

    heard, clock, broken = Heard(), [0.0], [True]
    host = fleet.host()
    host.use("a")
    host.lanes.close()
    writer = Writer(host.lanes, lines_of=lines_of, telemetry=heard, now=lambda: fleet.now)

    def take_in(offer: Any) -> Any:
        if broken[0]:
            raise LedgerError("gone")
        return host.ledger.take_in(offer, now=fleet.now)

    forwarder = Forwarder(
        writer,
        host.outbox,
        take_in,
        heard,
        every_s=0.01,
        now=lambda: fleet.now,
        monotonic=lambda: clock[0],
        random=lambda: 0.0,
    )
    for _ in range(3):
        assert not forwarder._try(None, None)
        clock[0] += LATE_S / 2
    assert heard.alarm_names == ["forwarder.waiting"]
    assert not forwarder._try(None, None)
    assert forwarder.problem == "gone"
    broken[0] = False
    assert forwarder._try(None, None)
    assert heard.alarm_names == ["forwarder.waiting", "forwarder.caught_up"]
    assert forwarder.problem is None
    assert fleet.in_ledger() == ["a"]
    assert conserved(fleet.worker)
    writer.stop()
