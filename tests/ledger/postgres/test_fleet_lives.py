"""Lives of a fleet: use, forwarding, delivery and accidents in any order, and a ledger that goes back.

Pods die, with or without their disk, between any two steps; answers get lost; workers come, go, stand still
and are killed in the middle; the database goes back to a copy, promoted or restored. Whatever the order: no
record reaches Stripe twice, books and ledger differ by what is known to be in doubt, and nothing is lost but
what a lost disk had not forwarded, or what was forwarded longer ago than the re-offer window.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import llm_metering.ledger.outbox as outbox_module
import llm_metering.ledger.postgres.ledger as ledger_module
import pytest
from llm_metering.errors import LedgerUnreachable
from llm_metering.ledger.offers import Taken
from llm_metering.ledger.outbox import HEARTBEAT_S
from llm_metering.ledger.postgres import PostgresLedger, marks
from llm_metering.ledger.postgres.connecting import Link
from llm_metering.protocols import Claim, Outcome
from llm_metering.senders.summaries import Meter
from llm_metering.settling import Settler
from llm_metering.telemetry import LogTelemetry
from tests.ledger.conftest import T0, conserved, rows, totals
from tests.ledger.postgres.cluster import Cluster, Place
from tests.ledger.postgres.fleet import BUCKET_S, WINDOW_S, Host
from tests.ledger.postgres.rewinding import Copy, Rewinding, template

HOUR = 3600.0
DAY = 24 * HOUR
LIVES = int(os.environ.get("LLM_METERING_LIVES") or 8)
FIRST = int(os.environ.get("LLM_METERING_SEED") or 0)
ACTS_OF_A_LIFE = 40
WAITS = (1.0, 11.0, 61.0, 61.0, 61.0, 301.0, 901.0, HOUR, 23 * HOUR)
FAR_BEHIND_S = 10.0
"""A standby that is further behind may take over without the note of a first flush."""
NOT_SENT_ANY_MORE_S = HOUR
"""Who stood still for longer with a claim in hand sends it no more."""


class Died(BaseException):
    """`kill -9`, as far as one process can play it."""


class Stripe:
    """Takes an identifier once in 24 hours, and knows which records it was sent."""

    event_name = "tokens"

    def __init__(self, now: Any) -> None:
        self.now = now
        self.books: dict[str, Any] = {}
        self.billed: Counter[str] = Counter()
        self._received_at: dict[str, float] = {}
        self.reader = self

    def receive(self, claim: Claim, records: tuple[str, ...]) -> Outcome:
        event = claim.event
        if self.now() - self._received_at.get(event.identifier, -DAY) < DAY:
            return Outcome("duplicate", 400)
        self.books[event.identifier], self._received_at[event.identifier] = event, self.now()
        self.billed.update(records)
        return Outcome("accepted", 200)

    def total_of(self, customer: str, start: float, end: float) -> Decimal:
        mine = [e for e in self.books.values() if e.customer == customer and start <= e.timestamp < end]
        return sum((Decimal(e.value) for e in mine), Decimal(0))

    # What the settler reads: summaries, and no error reports.

    def meters(self, *, afresh: bool = False) -> dict[str, Meter]:
        return {self.event_name: self.meter(self.event_name)}

    def meter(self, event_name: str) -> Meter:
        return Meter("mtr_1", event_name, True, "sum")

    def total(self, event_name: str, customer: str, *, start: int, end: int) -> Decimal:
        return self.total_of(customer, start, end)

    def hours(self, event_name: str, customer: str, *, start: int, end: int) -> dict[int, Decimal]:
        sums = {at: self.total_of(customer, at, at + HOUR) for at in range(start, end, int(HOUR))}
        return {at: value for at, value in sums.items() if value}

    def get(self, *_: object) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


class Pod(Host):
    told = 0
    """When the ledger last acknowledged a group of it, counted in acknowledgements of all."""

    def forward(self) -> None:
        for offer in self.offers():
            answer = self.ledger.take_in(offer, now=self.fleet.now)
            if isinstance(answer, Taken):
                self.told = self.fleet.acknowledge([row[0] for row in offer.records])  # type: ignore[attr-defined]
            self.again += self.outbox.answered(offer, answer, now=self.fleet.now)
        self.outbox.tidy(now=self.fleet.now)
        self.outbox.save(now=self.fleet.now)


@dataclass(eq=False)
class Worker:
    ledger: PostgresLedger
    under_way: list[tuple[Claim, tuple[str, ...], float]] = field(default_factory=list)
    """Claims, the records that each of them bills, and when it was claimed."""


CUTS = (None, None, "offered", "in_take_in", "after_take_in", "unheard")
DEATHS = (None,) * 5 + ("in_freeze", "after_freeze", "after_claim", "before_finish", "after_finish")
ANSWERS = ("heard", "heard", "lost", "not_sent")


class Life:
    """One life; the same each time for one seed."""

    dies_at: str | None = None

    def __init__(self, seed: int, cluster: Cluster, template: str) -> None:
        self.dice = random.Random(seed)
        self.story: list[str] = []
        self.now = T0
        self.customer = "cus_1"
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = tempfile.TemporaryDirectory(dir=memory)
        self.numbers = itertools.count()
        self.server = Rewinding(cluster, template)
        self.place = Place(self.server.url, "llm_metering")
        self.stripe = Stripe(lambda: self.now)
        self.copy: Copy | None = None
        self.copied_at = 0
        self.told = 0
        self.used: dict[str, int] = {}
        self.cut_streams: dict[str, int] = {}
        """What each had come to when it was noted, should it be cut off."""
        self.streams_under_way: dict[str, Pod] = {}
        self.acknowledged: dict[str, float] = {}
        """When the ledger told that it has a record, on the history that it is on now."""
        self.on_lost_disks: set[str] = set()
        self.lost: set[str] = set()
        """What nobody can bring back, and why that is so was checked."""
        self.late: list[tuple[Claim, tuple[str, ...]]] = []
        self.ledgers: list[PostgresLedger] = []
        self.hosts: list[Any] = []
        self.workers: list[Worker] = []
        self.tally: Counter[str] = Counter()
        for _ in range(2):
            self.new_pod()
        self.hire()

    def play(self) -> Counter[str]:
        acts = [act for act, weight in ACTS.items() for _ in range(weight)]
        for _ in range(ACTS_OF_A_LIFE):
            self.dice.choice(acts)(self)
            assert conserved(self.hosts[0].ledger)
        self.recover()
        self.audit()
        self.tally.update(row.state for row in self.hosts[0].ledger.events(limit=10_000))
        return self.tally

    def say(self, what: str) -> None:
        self.story.append(f"{self.now - T0:9.1f}  {what}")

    def end(self) -> None:
        for pod in self.hosts:
            pod.lanes.close()
        for ledger in self.ledgers:
            ledger.vanish()
        self.server.remove()
        self.folder.cleanup()

    # ---- the cast

    def new_ledger(self) -> PostgresLedger:
        ledger = PostgresLedger(self.server.url, clock="caller", random=lambda: 0.0)
        ledger.open(now=self.now)
        self.ledgers.append(ledger)
        return ledger

    def new_pod(self, folder: Path | None = None) -> Pod:
        pod = Pod(self, folder or Path(self.folder.name) / f"pod{next(self.numbers)}")  # type: ignore[arg-type]
        self.hosts.append(pod)
        return pod

    def pod(self) -> Pod:
        pod: Pod = self.dice.choice(self.hosts)
        return pod

    def worker(self) -> Worker:
        if not self.workers:
            self.hire()
        return self.dice.choice(self.workers)

    def maybe(self, chance: float = 0.5) -> bool:
        return self.dice.random() < chance

    def acknowledge(self, ids: list[str]) -> int:
        self.acknowledged.update(dict.fromkeys(ids, self.now))
        self.told += 1
        return self.told

    def in_ledger(self) -> set[str]:
        return {i for (i,) in self.place.rows("SELECT id FROM usage")}

    def on_disks(self) -> set[str]:
        return {i for pod in self.hosts for (i,) in rows(pod.folder, "SELECT id FROM usage")}

    # ---- use

    def use(self) -> None:
        pod, customer = self.pod(), self.dice.choice(("cus_1", "cus_2"))
        id_, value = f"r{next(self.numbers)}", self.dice.randrange(1, 50)
        late = self.dice.choice((0, 0, 0, 70))
        pod.use(id_, value=value, at=self.now - late, customer=customer)
        self.say(f"{pod.folder.name} records {id_} of {customer}, {late} s late")

    def stream(self) -> None:
        value = self.dice.randrange(1, 50)
        if self.streams_under_way and self.maybe():
            id_ = self.dice.choice(sorted(self.streams_under_way))
            self.streams_under_way.pop(id_).end_stream(id_, value + 50)
            self.say(f"{id_} ends")
            return
        id_, pod = f"s{next(self.numbers)}", self.pod()
        pod.stream(id_, value)
        self.cut_streams[id_], self.streams_under_way[id_] = value, pod
        self.say(f"{id_} begins on {pod.folder.name}")

    # ---- forwarding

    def forward(self) -> None:
        pod, cut = self.pod(), self.dice.choice(CUTS)
        self.say(f"{pod.folder.name} forwards, {cut or 'and all goes well'}")
        try:
            with self.cut(cut):
                pod.forward()
        except Died:
            self.restart(pod)
        except LedgerUnreachable:
            pass  # it was committed, and the pod was never told

    def pod_dies(self) -> None:
        pod = self.pod()
        if self.maybe():
            self.restart(pod)
        else:
            self.lose_disk(pod)

    def restart(self, pod: Pod) -> None:
        """Killed, and another process finds its lanes."""
        self.say(f"{pod.folder.name} is killed, and back")
        self.forget_streams(pod)
        pod.die()
        self.new_pod(pod.folder)

    def lose_disk(self, pod: Pod) -> None:
        self.say(f"{pod.folder.name} is lost with its disk")
        self.forget_streams(pod)
        held = {i for (i,) in rows(pod.folder, "SELECT id FROM usage")}
        pod.die()
        shutil.rmtree(pod.folder)
        gone = held - self.in_ledger()
        assert not gone & self.acknowledged.keys(), "the ledger has what it acknowledged"
        self.lost |= gone
        self.on_lost_disks |= held
        self.new_pod()

    def forget_streams(self, pod: Pod) -> None:
        self.streams_under_way = {i: p for i, p in self.streams_under_way.items() if p is not pod}

    # ---- delivery

    def staff(self) -> None:
        if self.maybe() or not self.workers:
            self.hire()
            return
        worker = self.worker()
        if not worker.under_way and self.maybe():
            worker.ledger.close()
        self.kill(worker)

    def hire(self) -> None:
        if len(self.workers) < 3:
            self.workers.append(Worker(self.new_ledger()))
            self.say("a worker comes")

    def round(self) -> None:
        """A worker lets time pass, freezes, sends what is due, and is told or not."""
        self.take_round(self.maybe(0.4), self.dice.choice(DEATHS), self.dice.choice(ANSWERS))

    def take_round(self, early: bool = False, dies: str | None = None, answer: str = "heard") -> None:
        worker = self.worker()
        self.say(f"a round{', flushing' if early else ''}: {dies or answer}")
        try:
            with self.cut(dies):
                worker.ledger.maintain(now=self.now)
                worker.ledger.freeze(now=self.now, bucket_s=BUCKET_S, everything=early)
                self.send(worker, self.begun(worker), answer)
        except Died:
            self.kill(worker)

    def all_goes_well(self) -> None:
        self.all_use_and_forward()
        self.pass_(self.dice.choice((2.0, 61.0)))
        self.take_round(self.maybe())

    def all_use_and_forward(self) -> None:
        for pod in self.hosts:
            pod.use(f"r{next(self.numbers)}", value=self.dice.randrange(1, 50))
            pod.forward()
        self.say("all record and forward")

    def requests(self) -> None:
        """Some are on their way, and nobody knows yet what becomes of them; or they end."""
        worker = self.worker()
        if not worker.under_way:
            worker.under_way = self.begun(worker)
            self.say(f"{len(worker.under_way)} requests begin")
            return
        self.say("requests end")
        self.send(worker, worker.under_way, self.dice.choice(ANSWERS))

    def kill(self, worker: Worker) -> None:
        """What it was sending may arrive all the same, now or a little later."""
        worker.ledger.vanish()
        self.workers.remove(worker)
        self.say("a worker is gone")
        if self.maybe():
            self.late += [(claim, ids) for claim, ids, _ in worker.under_way]

    def begun(self, worker: Worker) -> list[tuple[Claim, tuple[str, ...], float]]:
        claims = worker.ledger.claim(now=self.now, limit=50)
        names = ", ".join(f"'{claim.event.identifier}'" for claim in claims)
        found: dict[str, tuple[str, ...]] = {}
        if claims:
            query = (
                "SELECT e.identifier, array_agg(u.id) FROM meter_event e JOIN usage u "
                f'USING ("freeze", customer) WHERE e.identifier IN ({names}) GROUP BY e.identifier'
            )
            found = {identifier: tuple(ids) for identifier, ids in self.place.rows(query)}
        return [(claim, found[claim.event.identifier], self.now) for claim in claims]

    def send(self, worker: Worker, some: Any, answer: str) -> None:
        worker.under_way = list(some)
        ended: list[tuple[Claim, Outcome]] = []
        for claim, ids, at in some:
            if answer == "not_sent" or self.now - at >= NOT_SENT_ANY_MORE_S:
                ended.append((claim, Outcome("not_sent")))
                continue
            got = self.reach_stripe(claim, ids) if answer == "heard" or self.maybe() else None
            worker.under_way.remove((claim, ids, at))
            ended.append((claim, got if got and answer == "heard" else Outcome("ambiguous")))
        worker.under_way = []
        worker.ledger.finish_many(ended, now=self.now)

    def reach_stripe(self, claim: Claim, ids: tuple[str, ...]) -> Outcome:
        outcome = self.stripe.receive(claim, ids)
        if twice := [id_ for id_ in ids if self.stripe.billed[id_] > 1]:
            self.is_paid_once(claim, twice)
        return outcome

    def is_paid_once(self, claim: Claim, twice: list[str]) -> None:
        """Stripe's sums tell no two events of one size apart: one that never arrived may pass for another
        that is forgotten. Then its records stand for those that are billed twice, and the customer pays the
        same."""
        start = claim.event.timestamp // BUCKET_S * BUCKET_S
        query = (
            "SELECT u.id, coalesce(bool_or(e.state IN ('ACCEPTED', 'SETTLED')), false) FROM usage u "
            'LEFT JOIN meter_event e USING ("freeze", customer) '
            f"WHERE u.customer = '{claim.event.customer}' "
            f"AND u.used_at >= {start} AND u.used_at < {start + BUCKET_S} GROUP BY u.id"
        )
        found, worth = dict(self.place.rows(query)), {**self.cut_streams, **self.used}
        billed = self.stripe.billed
        too_much = sum(worth[id_] * (billed[id_] - 1) for id_ in found if billed[id_] > 1)
        mistaken = sum(worth[id_] for id_, counts in found.items() if counts and not billed[id_])
        assert set(twice) <= found.keys()
        assert too_much <= mistaken, f"billed twice: {twice}"

    # ---- time

    def wait(self) -> None:
        self.pass_(self.dice.choice(WAITS))

    def pass_(self, by: float) -> None:
        for claim, ids in self.late:
            self.reach_stripe(claim, ids)
        self.late = []
        self.now += by
        self.say(f"{by:.0f} s have passed")

    # ---- the ledger goes back

    def history(self) -> None:
        """A copy is taken, or the ledger goes back to it."""
        if self.copy is None:
            self.take_copy()
        else:
            self.go_back(self.copy)

    def standby_is_a_little_behind(self) -> None:
        self.take_copy()
        self.all_goes_well()
        if self.copy is not None:
            self.go_back(self.copy)

    def take_copy(self) -> None:
        if self.maybe():
            self.all_use_and_forward()
        self.say("a copy is taken")
        self.copy, self.copied_at = self.server.copy(self.now), self.told

    def go_back(self, copy: Copy) -> None:
        self.copy = None
        self.tally["went back"] += 1
        how = self.dice.choice(("promoted", "promoted", "marked", "noticed"))
        pods = [pod for pod in self.hosts if pod.told > self.copied_at]
        workers = [worker for worker in self.workers if worker.ledger._written > copy.written]
        self.wait_for_buckets_that_a_first_flush_froze(copy)
        self.server.go_back(copy, promoted=how == "promoted" or not (pods or workers))
        self.say(f"the ledger goes back by {self.now - copy.at:.0f} s: {how}")
        self.look_what_is_gone()
        if how == "marked":
            Link(self.server.url, keep=False).run(lambda db: marks.set_mark(db, self.now, "restored"))
        elif how == "noticed" and (pods or workers):
            # On the same timeline somebody from before has to come first, or a person says so.
            witness = self.dice.choice([*pods, *workers])
            self.pass_(HEARTBEAT_S)
            if isinstance(witness, Pod):
                witness.forward()
            else:
                witness.ledger.maintain(now=self.now)
        if self.maybe():
            self.take_round()  # before any pod is heard

    def wait_for_buckets_that_a_first_flush_froze(self, copy: Copy) -> None:
        """See "Where it can still bill twice"."""
        lacks = copy.early is None or self.now - copy.early >= DAY
        if lacks and self.server.early() is not None and self.now - copy.at >= FAR_BEHIND_S:
            self.pass_(BUCKET_S + marks.SKEW_S)

    def look_what_is_gone(self) -> None:
        there, kept = self.in_ledger(), self.on_disks()
        for id_ in self.used.keys() - there - kept - self.lost:
            over = self.now - self.acknowledged.get(id_, self.now) >= WINDOW_S
            assert over or id_ in self.on_lost_disks, f"{id_} was not kept for the window"
            self.lost.add(id_)
        self.acknowledged = {i: at for i, at in self.acknowledged.items() if i in there}

    @contextmanager
    def cut(self, where: str | None) -> Iterator[None]:
        Life.dies_at = where
        try:
            yield
        finally:
            Life.dies_at = None

    # ---- the end

    def recover(self) -> None:
        """All is well for half a day, and what Stripe's sums can tell is told."""
        self.say("all is well")
        for worker in list(self.workers):
            self.kill(worker)
        last = Worker(self.new_ledger())
        telemetry = LogTelemetry(monotonic=lambda: self.now)
        settler = Settler(
            Directly(last.ledger), lambda: self.stripe, telemetry, every_s=900, now=lambda: self.now,  # type: ignore[arg-type, return-value]
            monotonic=lambda: self.now,
        )  # fmt: skip
        for seconds in (5, 301, 901, 61, 700, 900, 7 * HOUR, 900, 900, 900):
            self.pass_(seconds)
            for pod in self.hosts:
                pod.forward()
            last.ledger.maintain(now=self.now)
            last.ledger.freeze(now=self.now, bucket_s=BUCKET_S)
            while some := self.begun(last):
                self.send(last, some, "heard")
                self.now += 1
            settler.step()
        failed = {name: n for name, n in telemetry.snapshot().items() if name.startswith("failure")}
        assert not failed, failed

    def audit(self) -> None:
        ledger = self.hosts[0].ledger
        there, used = self.in_ledger(), self.used.keys()
        assert used - there <= self.lost, f"lost: {used - there - self.lost}"
        assert there <= used | self.cut_streams.keys()
        assert conserved(ledger)
        sums, events = totals(ledger), ledger.events(limit=10_000)
        assert sums["pending"] == sums["dead"] == 0, sums
        assert {row.state for row in events} <= {"ACCEPTED", "SETTLED", "IN_DOUBT", "CLOSED"}
        books = sum((Decimal(e.value) for e in self.stripe.books.values()), Decimal(0))
        open_ = sum((row.event.value for row in events if row.state == "IN_DOUBT"), Decimal(0))
        gone = sum({**self.cut_streams, **self.used}[i] for i in self.lost - there)
        assert sums["recorded"] - books <= open_, (
            f"{sums['recorded']} recorded, {books} in Stripe's books, {open_} open"
        )
        assert books <= sums["recorded"] + gone
        if not self.lost:
            self.each_record_is_billed_once_or_in_doubt()

    def each_record_is_billed_once_or_in_doubt(self) -> None:
        """Or stands for another of its size, customer and minute, as in `is_paid_once`."""
        query = (
            f"SELECT u.customer, trunc(u.used_at / {BUCKET_S}), array_agg(DISTINCT u.id), array_agg(e.state) "
            'FROM usage u JOIN meter_event e USING ("freeze", customer) GROUP BY 1, 2'
        )
        worth, billed = {**self.cut_streams, **self.used}, self.stripe.billed
        for customer, _, ids, states in self.place.rows(query):
            if "IN_DOUBT" in states:
                continue
            paid, used = sum(worth[i] * billed[i] for i in ids), sum(worth[i] for i in ids)
            assert paid == used, f"{customer} used {used} and pays {paid}: {ids}, {states}"


@dataclass(frozen=True)
class Directly:
    """Runs what is asked of the ledger without a thread."""

    ledger: PostgresLedger

    def run(self, function: Any) -> Any:
        return function(self.ledger)


def _failpoint(name: str) -> None:
    where = Life.dies_at
    if where == "unheard" and name == "after_take_in":
        raise LedgerUnreachable("the answer was lost")
    if where == name:
        raise Died


ACTS: dict[Callable[[Life], None], int] = {
    Life.use: 4, Life.stream: 2, Life.forward: 4, Life.pod_dies: 1, Life.staff: 1, Life.round: 4,
    Life.all_goes_well: 3, Life.requests: 2, Life.wait: 3, Life.history: 2,
    Life.standby_is_a_little_behind: 2,
}  # fmt: skip
"""What happens, and how often."""


@pytest.fixture
def play(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Counter[str]]]:
    """Plays the life of a seed."""
    monkeypatch.setattr(ledger_module, "failpoint", _failpoint)
    monkeypatch.setattr(outbox_module, "failpoint", _failpoint)

    def play(seed: int) -> Counter[str]:
        life = Life(seed, cluster, empty)
        try:
            return life.play()
        except BaseException:
            print(f"seed {seed}\n" + "\n".join(life.story))
            raise
        finally:
            life.end()

    with template(cluster) as empty:
        yield play


@pytest.mark.slow
@pytest.mark.timeout(max(300, 30 * LIVES))
def test_whatever_happens_to_a_fleet_and_its_ledger_the_promises_hold(play) -> None:
    tally = Counter[str]()
    for seed in range(FIRST, FIRST + LIVES):
        tally += play(seed)
    if LIVES < 8:
        return  # too few to tell whether enough has happened
    assert tally["went back"] > LIVES
    assert tally["ACCEPTED"] + tally["SETTLED"] > 5 * LIVES
    assert tally["IN_DOUBT"] + tally["CLOSED"] > LIVES // 2
