"""Lives of the service at random: use, outages of every kind, crashes at any step, clocks that jump.

One seed is one life, the same each time. `live(seed)` plays it and raises `BrokenRule` if a promise is
broken. What is real: `states`, the ledger (in memory, SQLite on disk, or a
PostgreSQL of our own), `Delivery` and `Flusher`. What is simulated: the clocks, the dice, the network and
Stripe.

While nothing can be delivered, turns are minutes or hours apart rather than seconds, as on a machine that is
starved: what matters is the order of things, and thousands of probes that all fail tell nothing new.
"""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Literal

import llm_metering.ledger.folder
import llm_metering.ledger.lane
import llm_metering.ledger.postgres.ledger
from llm_metering.ledger.clocks import Boot
from llm_metering.protocols import Claim
from tests.ledger.conftest import rows as lane_rows
from tests.ledger.postgres.cluster import Cluster, Place, needed
from tests.simulation.processes import Died, Process
from tests.simulation.stripe import DOUBTFUL, REFUSE, TROUBLES, WELL, SimulatedStripe
from tests.simulation.world import ALL, AT_REST, DAY, HOUR, MINUTE, START, Job, rule

Kind = Literal["memory", "sqlite", "postgres"]
CUSTOMERS = tuple(f"cus_{i}" for i in range(12))
LATE_S = 80.0
"""A request that its sender did not survive arrives within this time, if at all."""


@dataclass
class Tally:
    """What happened in a life, to show that something did."""

    seed: int
    kind: Kind
    turns: int = 0
    checks: int = 0
    records: int = 0
    events: int = 0
    crashes: int = 0
    jumps: int = 0
    reboots: int = 0
    doubts: int = 0
    requests: int = 0
    states: Counter[str] = field(default_factory=Counter)


def live(seed: int, kind: Kind = "memory", *, say: Callable[[str], None] | None = None) -> Tally:
    """Play one life to its end; raise `BrokenRule` if a promise is broken."""
    with _home(kind) as folder:
        life = Life(seed, kind, folder, say)
        try:
            with life.mortal():
                life.play()
        finally:
            life.close()  # also after a broken rule, whose traceback would keep its files open
        return life.tally


class Life:
    """Some processes, one Stripe, one clock."""

    def __init__(
        self, seed: int, kind: Kind, folder: Path | Place | None, say: Callable[[str], None] | None
    ) -> None:
        self.dice = dice = random.Random(seed)
        self.tally = Tally(seed, kind)
        self.now = START
        self.skew = 0.0
        self.has_boot_clock = kind != "postgres" and dice.random() < 0.8
        self.behind: float | None = None
        self.run = 0
        """How often the machine was started anew."""
        self.seen_run = 0
        """The latest in which a process ran."""
        self.is_unseen = False
        """Whether the clock was set and nobody may have looked since."""
        self.folder = folder
        self._say = say
        self.stripe = SimulatedStripe(lambda: self.now, random.Random(dice.random()))
        self.max_in_flight = dice.choice((1, 2, 3, 8))
        self.bucket_s = dice.choice((1, 60, 3600))
        self.crash_rate = dice.choice((0.0, 0.0, 0.02, 0.1))
        self.slow_rate = dice.choice((0.0, 0.0, 0.05))
        self.usage: dict[str, set[Decimal]] = {}
        """By id of record, what it may hold: a stream that was cut holds what was noted last."""
        self.owner: dict[str, str] = {}
        self.acknowledged: set[str] = set()
        self.excused: set[str] = set()
        """Customers whose events may die: they were deleted at some time."""
        self.late: list[tuple[float, Claim]] = []
        self.ids = 0
        self.lives = 0
        self.dying: int | None = None
        """How many writes are left to the process that takes the turn."""
        self.is_dirty = True
        count = 1 if kind == "memory" else dice.choice((1, 2, 3))
        self.processes = [Process(self, n) for n in range(count)]

    @property
    def wall(self) -> float:
        return self.now + self.skew

    def boot(self) -> Boot | None:
        """The clock that nobody sets; each run of the machine has its own."""
        return Boot(f"run {self.run}", self.now - START) if self.has_boot_clock else None

    def say(self, text: str) -> None:
        if self._say is not None:
            self._say(f"{(self.now - START) / HOUR:9.3f} h  {text}")

    # The plot.

    def play(self) -> None:
        for _ in range(self.dice.randrange(2, 5)):
            self.spell(WELL, _log_uniform(self.dice, 60, 3 * HOUR))
            self.outage()
        self.recover()
        self.audit()
        for process in self.processes:
            failures = {k: n for k, n in process.telemetry.snapshot().items() if k.startswith("failure")}
            rule(not failures, f"delivery failed: {failures}")

    def close(self) -> None:
        for process in self.processes:
            process.ledger.close()

    def outage(self) -> None:
        trouble = self.dice.choice(TROUBLES)
        hours = self.dice.uniform(35 * 24, 40 * 24) if self.dice.random() < 0.01 else None
        length = hours * HOUR if hours else _log_uniform(self.dice, 2 * HOUR, 120 * HOUR)
        self.stripe.gets_pass = self.dice.random() < 0.5
        before, lives, accidents = self.doubtful(), self.lives, self.tally.jumps + self.tally.crashes
        reboots = self.tally.reboots
        # Under way, also by a process that died in the middle of it and is not back yet.
        begun = {row.event.identifier for row in self.events("SENDING")}
        self.spell(trouble, length)
        if trouble == REFUSE and not self.slow_rate and accidents == self.tally.jumps + self.tally.crashes:
            rule(self.doubtful() - before <= begun, "a refused connection began a doubt")
        if trouble in DOUBTFUL:
            began = self.doubtful() - before
            # One more for each time that all doubts were given up and a GET let one event try.
            tries = math.ceil(length / (22 * HOUR)) + 1 + self.tally.reboots - reboots
            tries = tries if self.stripe.gets_pass else 0
            bound = (self.max_in_flight + tries) * (len(self.processes) + self.lives - lives)
            rule(len(began) <= bound, f"{len(began)} doubts began in one outage, {bound} at most may")

    def spell(self, trouble: str, length: float) -> None:
        """A time in which Stripe behaves in one way."""
        gets = "pass" if self.stripe.gets_pass else "fail"
        self.say(f"Stripe: {trouble} for {length / HOUR:.1f} h; otherwise GETs {gets}")
        self.stripe.trouble = trouble
        grain = length / self.dice.uniform(15, 50)
        end = self.now + length
        for _ in range(self.dice.randrange(0, 16)):
            self.use()
        accidents = sorted((self.dice.uniform(self.now, end), self.dice.choice(_ACCIDENTS)) for _ in range(3))
        for at, accident in accidents:
            self.pass_(at - self.now, grain)
            accident(self)
            for _ in range(self.dice.randrange(0, 4)):
                self.use()
        self.pass_(end - self.now, grain)

    def recover(self) -> None:
        """Everything is well again; nothing is left waiting that could go on by itself."""
        self.say("all is well again")
        self.stripe.trouble = WELL
        self.stripe.deleted.clear()
        self.stripe.has_meter = self.stripe.takes_key = True
        self.crash_rate = self.slow_rate = 0.0
        self.set_clock(0.0)
        end = self.now + 3 * DAY
        self.pass_(2 * HOUR + self.bucket_s, 600.0)  # usage that a clock which ran ahead put into the future
        soon = self.now + 2 * HOUR
        while not self.is_settled():
            rule(self.now < end, f"still not settled: {self.status()}")
            self.pass_(*((60, 0.0) if self.now < soon else (600, 600.0)))  # what hangs need not hang for long

    # What happens on the way.

    def use(self) -> None:
        process = self.dice.choice(self.processes)
        if process.is_down:
            return
        self.ids += 1
        customer, id_ = self.dice.choice(CUSTOMERS), f"r{self.ids}"
        value = self.dice.randrange(1, 1000)
        self.owner[id_] = customer
        kind = self.dice.random()
        if kind < 0.8:
            self.usage[id_] = {Decimal(value)}
            self.guarded(process, lambda: process.commit(id_, customer, value))
        else:
            self.usage[id_] = {Decimal(value), Decimal(value + 1)}
            self.guarded(process, lambda: process.stream(id_, customer, value, ends=kind < 0.9))

    def crash(self) -> None:
        self.kill(self.dice.choice(self.processes))

    def jump(self) -> None:
        self.set_clock(self.dice.choice((0.0, 0.0, HOUR, -HOUR, -2 * DAY, 61.0, -61.0)))

    def set_clock(self, skew: float) -> None:
        """The wall clock jumps, whoever runs, and whoever looks later. Where there is no other clock, or
        nobody has seen it in this run, delivery must be looking: it does so every few seconds, so just before
        and just after."""
        if skew != self.skew:
            self.tally.jumps += 1
            self.say(f"the clock jumps by {skew - self.skew:+.0f} s")
        is_watched = not self.has_boot_clock or self.run != self.seen_run
        self.is_unseen = not is_watched
        if is_watched:
            self.look()
        self.skew = skew
        if is_watched:
            self.look()

    def stand_still(self) -> None:
        """Nobody runs for hours, and meanwhile the clock is set back by about as much. Where there is no
        other clock, as in a server's, and where the machine starts anew, Stripe alone can show it."""
        if self.stripe.trouble != WELL:
            for _ in range(3):
                self.use()
            self.pass_(MINUTE, 1.0)
            length = self.dice.uniform(20 * HOUR, 30 * HOUR)
            self.kill_all(length)
            skew = self.skew - length * self.dice.uniform(0.5, 1.1)
            if self.has_boot_clock and self.dice.random() < 0.5:
                self.set_clock(skew)
                return
            self.tally.jumps += 1
            self.tally.reboots += 1
            self.run += 1
            self.say(f"the machine starts anew, its clock changed unseen by {skew - self.skew:+.0f} s")
            self.skew = skew

    def kill_all(self, down: float = 0.0) -> None:
        for process in self.processes:
            if not process.is_down:
                self.kill(process)
            process.back_at = max(process.back_at, self.now + down)

    def reboot(self) -> None:
        """The machine starts anew: its clock is right, a little late, ahead, or so far back that it shows."""
        if self.is_unseen:
            self.look()  # by less than nobody ran, and then the machine anew: nothing would show that
            self.is_unseen = False
        self.tally.reboots += 1
        self.run += 1
        self.kill_all()
        if self.tally.kind == "postgres":
            return  # its clock is its server's
        if self.dice.random() < 0.4:
            self.behind = self.dice.choice((10.0, HOUR, 3 * DAY))
            self.kill_all(self.dice.uniform(20 * HOUR, 30 * HOUR) if self.stripe.trouble != WELL else 0.0)
            self.say(f"the machine starts anew, {self.behind:.0f} s before the latest time that was noted")
            return
        skew = self.dice.choice((self.skew, self.skew - 61.0, max(self.skew, HOUR)))
        self.say(f"the machine starts anew, with its clock changed by {skew - self.skew:+.0f} s")
        self.skew = skew

    def wake_up(self) -> None:
        """A process begins. The first after a reboot may find a clock that went back, and shows it."""
        self.seen_run = self.run
        if self.behind is not None:
            self.skew = min(self.noted() - self.behind - self.now, self.skew)
            self.behind = None
            self.tally.jumps += 1  # it happens now, in whatever outage this is

    def noted(self) -> float:
        """The latest time that is noted anywhere."""
        if self.folder is None:
            clock = self.processes[0].ledger._store.clock
            return float(clock.wall) if clock else self.wall
        noted = rows_of(self.folder, "SELECT value FROM meta WHERE name = 'clock'")
        return max((float(at) for (at,) in noted), default=self.wall)

    def look(self) -> None:
        for process in self.processes:
            if process.is_down:
                self.guarded(process, process.begin)
            process.flusher.wake()
            self.step(process)

    def delete_a_customer(self) -> None:
        """Anybody, or one of whom Stripe may or may not have something."""
        doubtful = sorted({row.event.customer for row in self.doubts()})
        customer = self.dice.choice(doubtful if doubtful and self.dice.random() < 0.5 else CUSTOMERS)
        self.excused.add(customer)
        self.stripe.deleted.add(customer)

    def restore_customers(self) -> None:
        self.stripe.deleted.clear()

    def switch_meter(self) -> None:
        self.stripe.has_meter = not self.stripe.has_meter

    def switch_key(self) -> None:
        self.stripe.takes_key = not self.stripe.takes_key

    # Time and turns.

    def pass_(self, seconds: float, grain: float) -> None:
        """Let time pass, with a turn of each process whenever one is due, or now and then."""
        end = self.now + max(seconds, 0.0)
        while self.now < end:
            due = min(self.step(process) for process in self.processes)
            # While things move, turn follows turn; while nothing does, or nothing can, time leaps.
            leaps = self.dice.random() < 0.8 and (self.stripe.trouble != WELL or due - self.now > 5)
            pace = self.dice.uniform(0.0, 2 * grain) if leaps else 0.001
            turn_at = min(end, max(due, self.now + pace))
            while (at := self.next_arrival()) <= turn_at:
                self.now = max(self.now, at)
                self.arrive()
            self.now = turn_at

    def step(self, process: Process) -> float:
        """One turn; when the next is due."""
        if process.is_down:
            if self.now < process.back_at:
                return process.back_at
            self.guarded(process, process.begin)
            return self.now
        self.tally.turns += 1
        if self.dice.random() < self.crash_rate:
            self.dying = self.dice.randrange(1, 8)
        wait_s: list[float] = []
        self.guarded(process, lambda: wait_s.append(process.flusher.step()))
        if self.dying is not None:
            self.kill(process)  # it did not come as far as that
        self.check()
        if not wait_s:
            return process.back_at
        rule("delivery.failing" not in process.names(), f"a turn failed: {process.telemetry.snapshot()}")
        rule(wait_s[0] >= 0, "a turn asked to come back in the past")
        ends: list[float] = [job.ends_at for job in process.sending.jobs]
        return min([self.now + wait_s[0], *ends])

    def guarded(self, process: Process, act: Callable[[], object]) -> None:
        try:
            act()
        except Died:
            self.kill(process)

    def kill(self, process: Process) -> None:
        """The process is gone; what it had sent may arrive all the same, now or a little later."""
        self.dying = None
        self.tally.crashes += 1
        for claim in process.end():
            if self.dice.random() < 0.6:
                self.late.append((self.now + self.dice.uniform(0, LATE_S), claim))
        down = self.dice.choice((0.0, 1.0, 400.0, 2 * HOUR, 26 * HOUR))
        process.back_at = self.now + (down if self.stripe.trouble != WELL else min(down, 400.0))
        self.say(f"process {process.number} dies, and is back in {process.back_at - self.now:.0f} s")

    def next_arrival(self) -> float:
        """When Stripe receives the next request that is on its way."""
        under_way = [job.ends_at for job in self.under_way()]
        return min([*under_way, *(at for at, _ in self.late)], default=math.inf)

    def under_way(self) -> list[Job]:
        return [job for p in self.processes for job in p.sending.jobs if job.outcomes is None]

    def arrive(self) -> None:
        for process in self.processes:
            for job in process.sending.jobs:
                if job.outcomes is None and job.ends_at <= self.now:
                    job.outcomes = process.sending.ask(job)
        for at, claim in list(self.late):
            if at <= self.now:
                self.late.remove((at, claim))
                self.stripe.send([claim.event])

    def die_if_told(self) -> None:
        if self.dying is not None:
            self.dying -= 1
            if self.dying <= 0:
                raise Died

    # What always holds.

    def check(self) -> None:
        if not self.is_dirty:
            return
        if self.folder is not None and self.tally.turns % 10:
            return  # reading all files of a folder takes its time
        self.is_dirty = False
        self.tally.checks += 1
        process = next((p for p in self.processes if not p.is_down), None)
        if process is None:
            return
        rule(all(b.conserved for b in process.ledger.balances()), "the books are not conserved")
        self.check_events(process.ledger.events(limit=ALL))

    def check_events(self, rows: Sequence[Any]) -> None:
        pairs: Counter[tuple[str, str, str]] = Counter()
        for row in rows:
            event, state = row.event, row.state
            arrived = event.identifier in self.stripe.books
            if state in ("ACCEPTED", "SETTLED"):
                rule(arrived, f"{event.identifier} counts as accepted and never arrived")
            elif state in ("PENDING", "DEAD"):
                rule(not arrived, f"{event.identifier} is {state}, and Stripe has it")
            elif state == "SENDING":
                pairs[row.lane, event.customer, event.event_name] += 1
            elif state == "AMBIGUOUS":
                rule(row.first_ambiguous_at is not None, "a doubt without a beginning")
            if state == "DEAD":
                out_of_bounds = "out of bounds" in row.reason or "expired" in row.reason
                rule(event.customer in self.excused or out_of_bounds, f"it died of {row.reason}")
            if state == "IN_DOUBT":
                rule("first attempt on record" not in row.reason, "an attempt was not on record")
        rule(all(n == 1 for n in pairs.values()), "two calls at a time for one customer and meter")

    def doubtful(self) -> set[str]:
        """Events that Stripe may or may not have."""
        return {row.event.identifier for row in self.doubts()}

    def doubts(self) -> list[Any]:
        rows = self.events("AMBIGUOUS", "IN_DOUBT", "SENDING")
        return [row for row in rows if row.first_ambiguous_at is not None]

    def events(self, *states: str) -> Any:
        """A look at the books begins no process, unless they are a server's."""
        process = self.alive() if self.tally.kind == "postgres" else self.processes[0]
        return process.ledger.events(states=states, limit=ALL)

    def alive(self) -> Process:
        for process in self.processes:
            if not process.is_down:
                return process
        self.guarded(self.processes[0], self.processes[0].begin)
        return self.processes[0]

    def status(self) -> Any:
        return self.alive().ledger.status(now=self.wall)

    def is_settled(self) -> bool:
        status = self.status()
        return set(status.events) <= AT_REST and not (
            status.unfrozen_records or status.streams_under_way or self.late
        )

    # The end.

    def audit(self) -> None:
        """Recorded = Stripe's books + in doubt + dead, customer by customer, and nothing was forgotten."""
        ledger = self.alive().ledger
        recorded = self.recorded()
        rule(self.acknowledged <= recorded.keys() <= self.usage.keys(), "a record was lost or made up")
        for id_, value in recorded.items():
            rule(value in self.usage[id_], f"record {id_} holds {value}, not {self.usage[id_]}")
        rows = ledger.events(limit=ALL)
        self.check_events(rows)
        sums: Counter[str] = Counter()
        for id_, value in recorded.items():
            sums[self.owner[id_]] += value  # type: ignore[assignment]
        for event in self.stripe.books.values():
            sums[event.customer] -= event.value  # type: ignore[assignment]
        for row in rows:
            if row.state in ("DEAD", "IN_DOUBT") and row.event.identifier not in self.stripe.books:
                sums[row.event.customer] -= row.event.value
            self.tally.states[row.state] += 1
        rule(not any(sums.values()), f"recorded is not Stripe + in doubt + dead: {+sums} {-sums}")
        rule(
            {row.event.identifier for row in rows} >= self.stripe.books.keys(),
            "Stripe has what is on no record",
        )
        rule(all(b.conserved and b.pending == 0 for b in ledger.balances()), "something is left pending")
        self.tally.records, self.tally.events = len(recorded), len(rows)
        self.tally.doubts, self.tally.requests = self.tally.states["IN_DOUBT"], self.stripe.requests

    def recorded(self) -> dict[str, Decimal]:
        if self.folder is None:
            return {r.id: Decimal(r.usage.total or 0) for r in self.processes[0].ledger.records}
        found: dict[str, Decimal] = {}
        for id_, counts in rows_of(self.folder, "SELECT id, counts FROM usage"):
            rule(id_ not in found, f"record {id_} is there twice")
            found[id_] = Decimal(sum(json.loads(counts).values()))
        return found

    @contextmanager
    def mortal(self) -> Iterator[None]:
        """Let processes die inside of the ledger's transactions, too."""
        lane_module: Any = llm_metering.ledger.lane
        postgres_module: Any = llm_metering.ledger.postgres.ledger
        folder_module: Any = llm_metering.ledger.folder
        before, silent = lane_module.failpoint, logging.root.manager.disable
        ours = threading.get_ident()

        def failpoint(name: str) -> None:
            if threading.get_ident() == ours:  # a thread that somebody left behind is not in this play
                self.die_if_told()

        lane_module.failpoint = failpoint
        postgres_module.failpoint = failpoint
        names = folder_module.lane_names
        # Files that were written within one tick of the machine's clock would come in any order.
        folder_module.lane_names = lambda folder: sorted(names(folder))
        logging.disable(logging.CRITICAL)  # thousands of alarms, each of them looked at here
        try:
            yield
        finally:
            lane_module.failpoint = postgres_module.failpoint = before
            folder_module.lane_names = names
            logging.disable(silent)


_ACCIDENTS: tuple[Callable[[Life], None], ...] = (
    Life.use, Life.use, Life.crash, Life.jump, Life.jump, Life.stand_still, Life.reboot,
    Life.delete_a_customer, Life.restore_customers, Life.switch_meter, Life.switch_key,
)  # fmt: skip


def _log_uniform(dice: random.Random, low: float, high: float) -> float:
    return math.exp(dice.uniform(math.log(low), math.log(high)))


def rows_of(home: Path | Place, query: str) -> list[Any]:
    """What the ledgers there hold."""
    if isinstance(home, Place):
        return home.rows(query)
    return lane_rows(home, query)


@lru_cache(maxsize=1)
def _cluster() -> Cluster:
    """One server for all lives of this process."""
    cluster = Cluster(needed())
    # Processes of a pool end without `atexit`.
    Finalize(None, end_cluster, exitpriority=1)
    cluster.start()
    return cluster


def end_cluster() -> None:
    """Stop the server, if one was started."""
    if _cluster.cache_info().currsize:
        _cluster().remove()
        _cluster.cache_clear()


@contextmanager
def _home(kind: Kind) -> Iterator[Path | Place | None]:
    if kind == "memory":
        yield None
        return
    if kind == "postgres":
        place = _cluster().new_place()
        try:
            yield place
        finally:
            place.rows(f"DROP SCHEMA {place.schema} CASCADE")
        return
    quick = "/dev/shm" if Path("/dev/shm").is_dir() else None
    parent = Path(tempfile.mkdtemp(dir=quick))
    try:
        yield parent / "ledger"
    finally:
        shutil.rmtree(parent)
