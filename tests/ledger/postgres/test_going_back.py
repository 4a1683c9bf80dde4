"""A ledger that goes back in time: a standby that was behind is promoted, or a backup is restored, after more
was recorded, frozen and sent. Nothing is billed twice, nothing is lost, and what cannot be known is in doubt
until Stripe's sums tell."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from llm_metering.__main__ import main
from llm_metering.errors import LedgerError
from llm_metering.ledger.postgres import marks, migrate, pods
from llm_metering.ledger.postgres.connecting import SCHEMA
from llm_metering.ledger.postgres.workers import STREAMS_S
from llm_metering.protocols import Outcome
from llm_metering.sandbox import Sandbox, running_sandbox
from tests.ledger.conftest import T0, conserved, totals
from tests.ledger.postgres.cluster import Cluster, Place
from tests.ledger.postgres.fleet import Fleet

SEED = int(os.environ.get("LLM_METERING_SEED") or time.time_ns() % 1_000_000)
HOUR = 3600.0


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Sandbox, list[Fleet]]]:
    current: list[Fleet] = []
    with running_sandbox(now=lambda: current[-1].now if current else T0) as sandbox:
        yield sandbox, current


@pytest.fixture
def fleet(mortal: Cluster, stage: Any, tmp_path: Path) -> Iterator[Fleet]:
    sandbox, current = stage
    url = mortal.new_database()
    migrate(url)
    made = Fleet(mortal, Place(url, SCHEMA), tmp_path)
    current.append(made)
    sandbox.reset()
    sandbox.set_switches(aggregation_delay_s=0)
    made.join(sandbox)
    yield made
    made.sender.close()
    made.close()


def settled(fleet: Fleet) -> None:
    """Hours later: everybody has offered again, and Stripe's sums were read often enough."""
    fleet.rounds(5, 61, 60, 700, 900, 7 * HOUR, 900, 900, 900)


def right(fleet: Fleet) -> None:
    """All that was used is in the ledger and in Stripe's books, once."""
    assert fleet.in_ledger() == sorted(fleet.used)
    assert conserved(fleet.worker)
    assert fleet.books() == sum(fleet.used.values())
    assert set(fleet.states()) <= {"ACCEPTED", "SETTLED", "CLOSED"}


# ---- a standby that was behind is promoted


def test_usage_that_was_sent_and_forgotten_is_in_doubt_and_settled_by_stripes_sums(fleet):
    host = fleet.host()
    host.use("known", value=2)
    host.forward()
    fleet.now += 60
    fleet.work()
    standby = fleet.cluster.base_backup()
    host.use("lost", value=4)
    host.forward()
    fleet.now += 60
    fleet.work()
    assert fleet.books() == 6, "both were sent"
    fleet.cluster.fail_over(standby)
    assert fleet.in_ledger() == ["known"]
    host.use("after", value=8)
    host.forward()
    fleet.work()
    assert "ledger.went_back" in [*fleet.names(), *(a.name for a in host.ledger.take_alarms())]
    assert host.again == 2
    assert fleet.in_ledger() == ["after", "known", "lost"]
    (held,) = fleet.worker.set_aside("held")
    assert (held.record.id, held.record.held.startswith(marks.KEPT)) == ("lost", True)
    assert fleet.worker.status(now=fleet.now).held_records == 1
    fleet.rounds(61)
    (doubted,) = fleet.worker.events(states=("IN_DOUBT",))
    assert doubted.event.value == 4
    assert fleet.worker.set_aside("held") == []
    settled(fleet)
    right(fleet)


def test_usage_that_was_forgotten_before_it_was_sent_is_billed_in_the_end(fleet):
    host = fleet.host()
    host.use("known", value=2)
    host.forward()
    standby = fleet.cluster.base_backup()
    host.use("lost", value=4)
    host.forward()
    fleet.now += 60
    fleet.cluster.fail_over(standby)
    host.forward()
    fleet.rounds(61)
    assert fleet.books() == 0, "it could have been sent, and nobody can tell yet"
    fleet.rounds(700, 900)
    assert fleet.books() == 0, "Stripe's sums may lag"
    settled(fleet)
    right(fleet)


def test_what_was_offered_and_never_acknowledged_is_doubted_too(fleet):
    """The service was killed before it heard that its group was taken. It was frozen, sent and forgotten."""
    standby = fleet.cluster.base_backup()
    host = fleet.host()
    host.use("a", value=3)
    offer = host.outbox.next(now=fleet.now)
    host.ledger.take_in(offer, now=fleet.now)
    host.die()
    fleet.now += 60
    fleet.work()
    assert fleet.books() == 3
    fleet.cluster.fail_over(standby)
    fleet.host().forward()
    fleet.work()
    assert [row.record.id for row in fleet.worker.set_aside("held")] == ["a"]
    settled(fleet)
    right(fleet)


def test_an_event_that_waited_is_sent_again_under_its_identifier(fleet):
    """The copy has it PENDING; the lost primary has sent it."""
    host = fleet.host()
    host.use("a", value=2)
    host.forward()
    fleet.now += 60
    fleet.worker.maintain(now=fleet.now)
    fleet.worker.freeze(now=fleet.now, bucket_s=60)
    standby = fleet.cluster.base_backup()
    fleet.work()
    assert fleet.books() == 2
    fleet.cluster.fail_over(standby)
    fleet.now += 1
    fleet.work(freeze=False)
    (row,) = fleet.events()
    assert (row.state, row.attempts) == ("ACCEPTED", 2)
    assert "duplicate" in (row.reason or "")
    assert fleet.books() == 2


def test_an_event_whose_identifier_stripe_may_have_forgotten_is_not_sent_again(fleet):
    host = fleet.host()
    host.use("a", value=2)
    host.forward()
    fleet.now += 60
    fleet.worker.maintain(now=fleet.now)
    fleet.worker.freeze(now=fleet.now, bucket_s=60)
    standby = fleet.cluster.base_backup()
    fleet.work()
    fleet.now += 23 * HOUR
    fleet.cluster.fail_over(standby)
    fleet.work()
    (row,) = fleet.events()
    assert row.state == "IN_DOUBT"
    settled(fleet)
    right(fleet)


def test_a_bucket_that_was_open_was_not_sent_and_goes_on_undoubted(fleet):
    host = fleet.host()
    host.use("before", value=2)
    host.forward()
    fleet.now += 60
    fleet.work()
    host.use("there", value=4)
    host.forward()
    standby = fleet.cluster.base_backup()
    fleet.now += 10
    host.use("lost", value=8)
    host.forward()
    fleet.cluster.fail_over(standby)
    fleet.now += 5
    host.use("after", value=16)
    host.forward()
    assert fleet.worker.set_aside("held") == []
    fleet.now += 60
    fleet.work()
    assert fleet.books() == 30
    settled(fleet)
    right(fleet)


def test_a_bucket_that_a_flush_froze_early_is_doubted_though_it_is_open(fleet):
    host = fleet.host()
    host.use("a", value=1)
    host.forward()
    fleet.worker.maintain(now=fleet.now)
    fleet.worker.freeze(now=fleet.now, bucket_s=60, everything=True)
    fleet.work()
    standby = fleet.cluster.base_backup()
    host.use("b", value=2)
    host.forward()
    fleet.worker.freeze(now=fleet.now, bucket_s=60, everything=True)
    fleet.work()
    assert fleet.books() == 3
    fleet.cluster.fail_over(standby)
    fleet.now += 6
    host.forward()
    assert [row.record.id for row in fleet.worker.set_aside("held")] == ["b"]
    settled(fleet)
    right(fleet)


@pytest.fixture
def followed(fleet: Fleet) -> Iterator[Fleet]:
    """The server has a standby, or at least its slot."""
    fleet.cluster.execute("SELECT pg_create_physical_replication_slot('standby')")
    yield fleet
    slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"  # a copy has none
    fleet.cluster.execute(slots)


def flush(fleet: Fleet) -> int:
    """All is frozen and what is due is sent; how many events wait."""
    fleet.worker.freeze(now=fleet.now, bucket_s=60, everything=True)
    fleet.work()
    return sum(row.state == "PENDING" for row in fleet.events())


def test_a_first_flush_that_the_standby_does_not_know_of_has_sent_nothing(followed):
    fleet, host = followed, followed.host()
    host.use("before")
    host.forward()
    fleet.now += 60
    fleet.work()
    host.use("a", value=3)
    host.forward()
    standby = fleet.cluster.base_backup()
    assert flush(fleet) == 1
    fleet.now += marks.EARLY_S - 1
    assert flush(fleet) == 1
    fleet.cluster.fail_over(standby)
    fleet.now += 6
    host.forward()
    assert fleet.worker.set_aside("held") == [], "it was not sent, and need not be in doubt"
    settled(fleet)
    right(fleet)


def test_a_flush_is_sent_once_standbys_know_that_there_are_any_and_the_next_ones_at_once(followed):
    fleet, host = followed, followed.host()
    host.use("a", value=3)
    host.forward()
    assert flush(fleet) == 1
    fleet.now += marks.EARLY_S
    standby = fleet.cluster.base_backup()
    host.use("b", value=4)
    host.forward()
    assert flush(fleet) == 0
    assert fleet.books() == 7
    fleet.cluster.fail_over(standby)
    fleet.now += 6
    host.forward()
    assert [row.record.id for row in fleet.worker.set_aside("held")] == ["b"]
    settled(fleet)
    right(fleet)


def test_the_note_of_a_flush_is_renewed_before_it_is_too_old_to_count(followed):
    fleet, host = followed, followed.host()
    for after_s, waits in ((0, 1), (marks.EARLY_S, 0), (11 * HOUR, 0), (2 * HOUR, 1), (marks.EARLY_S, 0)):
        fleet.now += after_s
        host.use(f"r{fleet.now}")
        host.forward()
        assert flush(fleet) == waits, f"{after_s} s later"


def test_a_flush_waits_for_nobody_where_no_standby_could_take_over(fleet):
    host = fleet.host()
    host.use("a", value=3)
    host.forward()
    assert flush(fleet) == 0
    assert fleet.books() == 3


def test_a_stream_that_was_cut_off_sent_and_forgotten_is_held_whatever_it_comes_to(fleet):
    """Its host could not be heard for so long that the ledger ended it."""
    host = fleet.host()
    host.stream("s", value=3)
    host.forward()
    standby = fleet.cluster.base_backup()
    fleet.now += STREAMS_S + 1
    fleet.work()
    fleet.work()
    assert fleet.books() == 3
    fleet.cluster.fail_over(standby)
    host.forward()
    host.end_stream("s", value=8)
    host.forward()
    assert [row.record.id for row in fleet.worker.set_aside("held")] == ["s"]
    fleet.rounds(61, 61)
    assert fleet.books() == 3
    assert fleet.states() == {"IN_DOUBT": 8}


@pytest.mark.parametrize(
    "since", ["goes on", "ended", "ended while it was told", "ended, told by another process"]
)
def test_a_stream_that_was_begun_sent_and_forgotten_is_held_whatever_it_comes_to(fleet, since):
    """Of so old a backup the ledger never heard of it; its host knows that it told."""
    host = fleet.host()
    host.use("a", value=1)
    host.forward()
    old = fleet.cluster.base_backup()
    host.stream("s", value=3)
    host.forward()
    fleet.now += STREAMS_S + 1
    fleet.work()
    fleet.work()
    assert fleet.books() == 4
    fleet.cluster.fail_over(old)
    if since == "goes on":
        host.forward()
    if since == "ended while it was told":
        offer = host.outbox.next(now=fleet.now)
        host.outbox.answered(offer, host.ledger.take_in(offer, now=fleet.now), now=fleet.now)
    host.end_stream("s", value=8)
    if since in ("ended while it was told", "ended, told by another process"):
        host.die()
        host = fleet.host()
    host.forward()
    assert "s" in [row.record.id for row in fleet.worker.set_aside("held")]
    fleet.rounds(61, 61)
    assert fleet.books() == 4
    assert fleet.states()["IN_DOUBT"] == 9


def test_a_stream_of_a_host_that_was_heard_shortly_before_goes_on_undoubted(fleet):
    host, lost = fleet.host(), fleet.host("lost")
    host.stream("s", value=3)
    lost.stream("t", value=4)
    host.forward()
    lost.forward()
    standby = fleet.cluster.base_backup()
    fleet.now += STREAMS_S - 60
    fleet.cluster.fail_over(standby)
    host.forward()
    host.end_stream("s", value=8)
    host.forward()
    lost.die()  # and nobody comes for its disk
    fleet.used["t"] = 4
    assert fleet.worker.set_aside("held") == []
    fleet.rounds(61, STREAMS_S, 61)
    assert fleet.books() == 12
    settled(fleet)
    right(fleet)


def test_a_bucket_of_which_a_part_was_sent_is_left_to_a_person_and_not_guessed(fleet):
    """What came late was an event of its own, and that one was not sent."""
    standby = fleet.cluster.base_backup()
    host = fleet.host()
    host.use("a", value=3)
    host.forward()
    fleet.now += 60
    fleet.work()
    host.use("late", value=4, at=T0 + 1)
    host.forward()
    assert fleet.books() == 3
    fleet.cluster.fail_over(standby)
    settled(fleet)
    assert fleet.in_ledger() == ["a", "late"]
    assert fleet.books() == 3
    assert fleet.states() == {"IN_DOUBT": 7}
    assert "oracle.undecided" in fleet.names()
    assert conserved(fleet.worker)
    assert fleet.worker.status(now=fleet.now).events == {"IN_DOUBT": 1}


def test_a_worker_that_remembers_nothing_notices_a_standby_that_took_over(fleet):
    host = fleet.host()
    host.use("a", value=2)
    host.forward()
    standby = fleet.cluster.base_backup()
    fleet.now += 60
    fleet.work()
    assert fleet.books() == 2
    fleet.cluster.fail_over(standby)
    fleet.worker.vanish()
    fleet.now += 61
    fleet.worker = fleet.new_ledger()
    fleet.work()
    assert fleet.books() == 2, "whoever comes first, it is not sent again"
    assert [row.record.id for row in fleet.worker.set_aside("held")] == ["a"]
    settled(fleet)
    right(fleet)


def test_the_mark_is_set_once_however_many_come_at_the_same_time(fleet):
    hosts = [fleet.host(f"host{n}") for n in range(3)]
    for n, host in enumerate(hosts):
        host.use(f"r{n}")
        host.forward()
    standby = fleet.cluster.base_backup()
    fleet.now += 60
    fleet.work()
    fleet.cluster.fail_over(standby)
    for host in hosts:
        host.use(f"after-{host.folder.name}")
        host.forward()
    fleet.work()
    assert len(json.loads(fleet.worker.meta("marks"))) == 1
    assert [host.again for host in hosts] == [1, 1, 1]
    settled(fleet)
    right(fleet)


def test_fences_of_before_change_nothing_after(fleet):
    host = fleet.host()
    host.use("a")
    host.forward()
    fleet.now += 60
    fleet.worker.maintain(now=fleet.now)
    fleet.worker.freeze(now=fleet.now, bucket_s=60)
    standby = fleet.cluster.base_backup()
    (zombie,) = fleet.worker.claim(now=fleet.now, limit=1)
    fleet.cluster.fail_over(standby)
    fleet.now += 1
    other = fleet.new_ledger(hold_s=0.5)
    fleet.now += 100
    other.maintain(now=fleet.now)
    (claim,) = other.claim(now=fleet.now, limit=1)
    assert claim.event == zombie.event
    assert claim.fence > zombie.fence + 10**9
    assert fleet.worker.finish(zombie, Outcome("not_sent"), now=fleet.now) is None
    assert other.finish(claim, Outcome("accepted", 200), now=fleet.now) is not None


def test_numbers_of_line_keys_that_the_lost_server_gave_out_are_not_used_again(fleet):
    """A worker remembers which number stands for which dimensions; on the copy another may have it."""
    standby = fleet.cluster.base_backup()
    host, other = fleet.host(), fleet.host("other")
    from tests.ledger.conftest import entry, line

    def use(host: Any, id_: str, kind: str) -> None:
        made = entry(id_, line(1, kind=kind), used_at=fleet.now, customer=fleet.customer)
        host.lanes.commit([made], [], now=fleet.now)

    use(host, "a", "first")
    host.forward()
    fleet.cluster.fail_over(standby)
    use(other, "b", "second")
    other.forward()
    use(host, "c", "first")
    host.forward()
    kinds = {(dict(s.dimensions)["kind"], s.value) for s in fleet.worker.usage_sums()}
    assert kinds == {("first", 2), ("second", 1)}


def test_a_bucket_that_had_ended_by_a_clock_that_was_ahead_is_doubted_though_it_is_open(fleet):
    host = fleet.host()
    host.use("before")
    host.forward()
    fleet.now += 60
    fleet.work()
    fleet.now += 35
    host.use("a", value=2)
    host.forward()
    fleet.now += 30  # by the clock of the server that is lost
    fleet.worker.maintain(now=fleet.now)
    standby = fleet.cluster.base_backup()
    fleet.work()
    assert fleet.books() == 3
    fleet.cluster.fail_over(standby)
    fleet.now -= 28
    host.forward()
    fleet.work()
    assert [row.record.id for row in fleet.worker.set_aside("held")] == ["a"]
    settled(fleet)
    right(fleet)


# ---- a backup is restored on the same timeline, and nobody says so


def test_a_restored_backup_is_noticed_by_a_lane_that_was_told_of_more(fleet):
    host = fleet.host()
    host.use("known", value=2)
    host.forward()
    backup = fleet.cluster.base_backup()
    host.use("lost", value=4)
    host.forward()
    fleet.now += 60
    fleet.work()
    assert fleet.books() == 6
    fleet.cluster.restore(backup)
    assert fleet.in_ledger() == ["known"]
    host.die()
    host = fleet.host()  # another process, which remembers what the lane does
    host.use("after", value=8)
    host.forward()
    names = [*fleet.names(), *(a.name for a in host.ledger.take_alarms())]
    assert "ledger.went_back" in names
    assert host.again >= 2
    fleet.work()
    assert fleet.books() == 6, "what may have been sent is held"
    settled(fleet)
    right(fleet)


def test_a_restored_backup_is_noticed_by_a_worker_whose_server_was_further(fleet):
    host = fleet.host()
    host.use("a", value=2)
    host.forward()
    backup = fleet.cluster.base_backup()
    fleet.now += 60
    fleet.work()
    assert fleet.books() == 2
    fleet.cluster.restore(backup)
    fleet.now += 1
    fleet.work()
    assert "ledger.went_back" in fleet.names()
    assert fleet.books() == 2
    settled(fleet)
    right(fleet)


def test_a_server_that_only_restarts_is_where_it_was(fleet):
    host = fleet.host()
    for n in range(3):
        host.use(f"r{n}")
        host.forward()
        fleet.cluster.kill()
        fleet.cluster.start()
        fleet.now += 60
        fleet.work()
    assert fleet.worker.meta("marks") is None
    assert host.again == 0
    assert fleet.books() == 3


def test_a_worker_that_was_not_there_before_hears_the_lanes_of_a_restored_backup_first(fleet, monkeypatch):
    """It could not know better; they say something every few seconds."""
    host = fleet.host()
    host.use("a", value=2)
    host.forward()
    backup = fleet.cluster.base_backup()
    fleet.now += 60
    host.forward()
    fleet.work()
    assert fleet.books() == 2
    fleet.worker.close()
    fleet.cluster.restore(backup)
    fleet.worker = fleet.new_ledger(clock="server", hold_s=0.0)
    fleet.worker.maintain(now=time.time())
    assert fleet.worker.freeze(now=time.time(), bucket_s=60) == 0
    with pytest.raises(LedgerError, match="has just begun"):
        fleet.worker.freeze(now=time.time(), bucket_s=60, everything=True)
    host.use("b", value=4)
    host.forward()
    monkeypatch.setattr(pods, "LISTEN_S", 0.0)
    assert fleet.worker.freeze(now=time.time(), bucket_s=60) == 1
    assert {row.record.id for row in fleet.worker.set_aside("held")} == {"a"}


def test_events_of_a_restored_backup_are_not_sent_before_the_lanes_were_heard(fleet, monkeypatch):
    """It has them PENDING, and Stripe may not know their identifiers any more."""
    fleet.now = time.time() - 120
    host = fleet.host()
    host.use("a", value=2)
    host.forward()
    fleet.now += 60
    fleet.worker.maintain(now=fleet.now)
    fleet.worker.freeze(now=fleet.now, bucket_s=60)
    fleet.worker.close()
    fleet.cluster.restore(fleet.cluster.base_backup())
    fleet.worker = fleet.new_ledger(clock="server", hold_s=0.0)
    fleet.worker.maintain(now=time.time())
    assert fleet.worker.claim(now=time.time(), limit=10) == []
    monkeypatch.setattr(pods, "LISTEN_S", 0.0)
    assert len(fleet.worker.claim(now=time.time(), limit=10)) == 1


# ---- the command


def test_restore_mark_puts_in_doubt_what_may_have_been_sent_and_lets_hosts_offer_again(fleet, capsys):
    host = fleet.host()
    host.use("frozen", value=1)
    host.forward()
    fleet.now += 60
    fleet.worker.maintain(now=fleet.now)
    fleet.worker.freeze(now=fleet.now, bucket_s=60)
    host.use("there", value=2)
    host.forward()
    backup = fleet.cluster.base_backup()
    host.use("lost", value=4)
    host.forward()
    fleet.now += 60
    fleet.work()
    assert fleet.books() == 7
    fleet.cluster.restore(backup)
    capsys.readouterr()
    at = ("--ledger", fleet.place.url)
    code = main(["ledger", "restore-mark", *at, "--reason", "the disk broke", "--yes", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (said["events"], said["records"]) == (1, 1)
    assert fleet.states() == {"IN_DOUBT": 1}
    (held,) = fleet.worker.set_aside("held")
    assert "the disk broke" in held.record.held
    host.forward()
    assert host.again == 3
    assert fleet.in_ledger() == ["frozen", "lost", "there"]
    fleet.now = max(fleet.now, time.time())
    fleet.work()
    assert fleet.books() == 7


# ---- whatever happens


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(6))
def test_whatever_was_lost_nothing_is_billed_twice_and_the_rest_is_explained(fleet, number):
    seed = SEED + number
    luck = random.Random(seed)
    hosts = [fleet.host(f"host{n}") for n in range(2)]
    names = iter(range(10_000))

    def some_life(rounds: int) -> None:
        for _ in range(rounds):
            act = luck.random()
            host = luck.choice(hosts)
            if act < 0.45:
                late = luck.choice((0, 0, 0, 30))
                host.use(f"r{next(names)}", value=luck.randrange(1, 1000), at=fleet.now - late)
            elif act < 0.75:
                host.forward()
            elif act < 0.9:
                fleet.work()
            fleet.now += luck.choice((1, 5, 20))

    some_life(luck.randrange(5, 30))
    copy = fleet.cluster.base_backup()
    some_life(luck.randrange(5, 40))
    if luck.random() < 0.5:
        fleet.cluster.fail_over(copy)
    else:
        fleet.cluster.restore(copy)
        # Without a new timeline somebody has to notice who was there before.
        for host in hosts:
            host.forward()
    some_life(luck.randrange(0, 20))
    for host in hosts:
        host.forward()
    settled(fleet)
    books, used = fleet.books(), Decimal(sum(fleet.used.values()))
    assert fleet.in_ledger() == sorted(fleet.used), f"seed {seed}: lost"
    assert conserved(fleet.worker), f"seed {seed}"
    assert books <= used, f"seed {seed}: billed twice"
    sums = totals(fleet.worker)
    assert sums["pending"] == sums["dead"] == 0, f"seed {seed}: {fleet.states()}"
    assert used - books <= sums["in_doubt"], f"seed {seed}: {used - books} of {fleet.states()}"
    if not sums["in_doubt"]:
        assert books == used, f"seed {seed}"
