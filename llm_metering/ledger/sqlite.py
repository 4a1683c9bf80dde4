"""The ledger of one host: a folder of SQLite files, one for each process that writes.

A process continues in a lane that a dead one left, so that files do not pile up, and makes a new one only
where none is free. Other lanes that stay free are adopted in place after a short wait, which lets workers
that start together find a lane each; they are let go again once nothing in them goes on by itself.
"""

from __future__ import annotations

import os
import random as dice
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from ..decisions import SENDING, Decision, Pause, Ruling, What, new_decision_id
from ..errors import LedgerError, LedgerFull
from ..protocols import (
    Alarm,
    Balance,
    Claim,
    Entry,
    EventHistory,
    EventRow,
    EventSum,
    LedgerStatus,
    Outcome,
    Pace,
    Progress,
    Pulse,
    RecordRow,
    State,
    Transition,
    UsageSum,
)
from . import clocks, spool, states
from . import folder as files
from .attempts import Pair
from .clocks import ReadBoot, this_boot
from .forking import GATE
from .handover import Handover
from .histories import Aside
from .identifiers import new_identifier
from .lane import Lane
from .lanes import Lanes
from .room import BALLAST_BYTES, Room
from .rulings import merge
from .view import DOUBTED, LedgerView

P = ParamSpec("P")
T = TypeVar("T")

ADOPT_AFTER_S = 5.0
_BAD_VALUE = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)


def _translated(
    method: Callable[Concatenate[SqliteLedger, P], T],
) -> Callable[Concatenate[SqliteLedger, P], T]:
    """Where the store fails, say so in our own words; what cannot be stored stays the caller's error."""

    @wraps(method)
    def call(self: SqliteLedger, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with GATE:
                return method(self, *args, **kwargs)
        except _BAD_VALUE as exc:
            raise ValueError(f"cannot be stored: {exc}") from exc
        except sqlite3.Error as exc:
            if self._lanes.is_full(exc):
                raise LedgerFull(f"the disk of {self.folder} is full") from exc
            raise LedgerError(f"the ledger in {self.folder} failed: {exc}") from exc

    return call


class SqliteLedger:
    """A durable ledger in a folder. Nothing is opened before `open`.

    Example:
        ledger = SqliteLedger(".llm_metering")
        ledger.open(now=time.time())

    Args:
        folder: Made with mode 0700 if there is none.
        new_id: Makes identifiers of meter events and names of lanes; at most 100 characters.
        random: A number from 0 to 1, for the jitter of retries.
        lease_s: How long a claim may stay unanswered before it counts as a crash.
        adopt_after_s: How long a lane must stay free before it is adopted; 0 adopts all at `open`.
        connect: Instead of `sqlite3.connect`.
        boot: The clock that nobody sets, where there is one; it shows by how much the wall clock was set back
            while no process ran.
        max_bytes: The most that the folder may take up, ballast apart; 0 for no cap.
        min_free_bytes: No usage is taken while less than this is free on the disk.
        max_stream_s: How long a stream keeps its lane from `hand_over`; 0 until it ends.
        ballast_bytes: Blocks kept beside the lane, so that a full disk can drain.
        forwards: Nothing is billed from here: an `Outbox` forwards it to a ledger elsewhere.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        new_id: Callable[[], str] = new_identifier,
        random: Callable[[], float] = dice.random,
        lease_s: float = states.LEASE_S,
        adopt_after_s: float = ADOPT_AFTER_S,
        connect: files.Connect = sqlite3.connect,
        boot: ReadBoot = this_boot,
        max_bytes: int = 0,
        min_free_bytes: int = 0,
        max_stream_s: float = 0.0,
        ballast_bytes: int = BALLAST_BYTES,
        forwards: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._forwards = forwards
        self._lease_s = lease_s
        self._lanes = Lanes(
            self.folder,
            new_id=new_id,
            random=random,
            adopt_after_s=adopt_after_s,
            connect=connect,
            boot=boot,
            room=Room(
                self.folder, max_bytes=max_bytes, min_free_bytes=min_free_bytes, ballast_bytes=ballast_bytes
            ),
        )
        self._handover = Handover(self._lanes, max_stream_s=max_stream_s)
        self._now = 0.0
        self._late = 0
        self._doubt_near = False
        self._turn = 0

    @staticmethod
    def read_only(folder: str | os.PathLike[str]) -> LedgerView:
        """The books of a folder, for tools; works while services write to it."""
        return LedgerView(folder)

    def view(self) -> LedgerView:
        return LedgerView(self.folder, lane=self.lane, is_full=self._lanes.room.lacks_room())

    @property
    def lane(self) -> str:
        """The name of the lane that this process writes to, "" while closed."""
        return self._lanes.own

    # ---- opening and closing

    @_translated
    def open(self, *, now: float) -> None:
        self._now = now
        if not self._lanes:
            files.prepare(self.folder)
            files.devote(self.folder, forwards=self._forwards)
            self._lanes.open(now=now)

    def close(self) -> None:
        with GATE:
            self._lanes.close()

    @_translated
    def bind(self, account: str) -> None:
        self._own()
        files.bind(self.folder, account)

    @_translated
    def account(self) -> str | None:
        self._own()
        return files.bound_account(self.folder)

    # ---- usage and events

    @_translated
    def commit(
        self, entries: Sequence[Entry], progress: Sequence[Progress], *, drops: Sequence[str] = (), now: float
    ) -> int:
        own = self._own(now)
        self._lanes.room.check(now=now)
        try:
            where = self._handover if self._handover.has_begun else own
            new = where.commit(entries, progress, drops, now=now)
        except sqlite3.Error as exc:
            self._lanes.make_room(exc)
            raise
        self._lanes.keep_short()
        return new

    @_translated
    def freeze(self, *, now: float, bucket_s: int, everything: bool = False) -> int:
        lanes = self._all(now)
        return sum(lane.freeze(now=now, bucket_s=bucket_s, everything=everything) for lane in lanes)

    @_translated
    def claim(self, *, now: float, limit: int, ambiguous_only: bool = False) -> list[Claim]:
        lanes = self._all(now)
        self._check_clock(lanes, now)
        if not self._lanes.room.may_claim():
            return []
        busy: set[Pair] = set().union(*(lane.attempts.sending() for lane in lanes))
        claims: list[Claim] = []
        self._turn = (self._turn + 1) % len(lanes)
        try:
            for lane in lanes[self._turn :] + lanes[: self._turn]:
                claims += lane.claim(
                    now=now,
                    limit=limit - len(claims),
                    ambiguous_only=ambiguous_only,
                    busy=busy,
                    lease_s=self._lease_s,
                )
        except sqlite3.Error:
            if not claims:  # else what other lanes have committed is to be sent all the same
                raise
        return claims

    def finish(self, claim: Claim, outcome: Outcome, *, now: float) -> Transition | None:
        return self.finish_many([(claim, outcome)], now=now)[0]

    @_translated
    def finish_many(self, results: Sequence[tuple[Claim, Outcome]], *, now: float) -> list[Transition | None]:
        self._own(now)
        found: list[Transition | None] = [None] * len(results)
        for name in {claim.lane for claim, _ in results}:
            if lane := self._lanes.get(name):
                places = [i for i, (claim, _) in enumerate(results) if claim.lane == name]
                changed = self._drained(partial(lane.finish_many, [results[i] for i in places], now=now))
                for place, transition in zip(places, changed, strict=True):
                    found[place] = transition
        self._lanes.keep_short()
        return found

    @_translated
    def finish_and_claim(
        self,
        results: Sequence[tuple[Claim, Outcome]],
        *,
        now: float,
        limit: int,
        ambiguous_only: bool = False,
    ) -> tuple[list[Transition | None], list[Claim]]:
        lanes = self._all(now)
        self._check_clock(lanes, now)
        alone = len(lanes) == 1 and all(claim.lane == lanes[0].name for claim, _ in results)
        if alone and self._lanes.room.may_claim():
            both = lanes[0].finish_and_claim(
                results, now=now, limit=limit, ambiguous_only=ambiguous_only, lease_s=self._lease_s
            )
            self._lanes.keep_short()
            return both
        transitions = self.finish_many(results, now=now)
        try:
            return transitions, self.claim(now=now, limit=limit, ambiguous_only=ambiguous_only)
        except LedgerError:
            return transitions, []  # what ended is told all the same; the next claim says what fails

    @_translated
    def maintain(self, *, now: float) -> list[Transition]:
        self._check_clock(self._all(now), now)
        self._lanes.replace_removed(now=now)
        self._lanes.adopt(now=now)
        self._lanes.carry_out_decisions(now=now)
        changed, self._lanes.recovered = self._lanes.recovered, []
        for lane in self._lanes.all():
            changed += lane.pass_time(now=now)
        self._check_lateness(now)
        self._lanes.release()
        return changed

    @_translated
    def hand_over(self, *, now: float, bucket_s: int, everything: bool = False) -> bool:
        self._own(now)
        self._lanes.replace_removed(now=now)
        self._lanes.carry_out_decisions(now=now)
        return self._handover.hand_over(now=now, bucket_s=bucket_s, everything=everything)

    def slow_down(self, per_s: float, *, wait_s: float, now: float) -> None:
        """One process delivers from a lane: its own rate is all there is."""

    def pace(self) -> Pace | None:
        return None

    @_translated
    def due_at(self) -> float | None:
        due = [at for lane in self._all() if (at := lane.attempts.due_at()) is not None]
        return min(due, default=None)

    # ---- what Stripe shows of what it accepted

    @_translated
    def unsettled(self, *, before: float, since: float = 0.0, limit: int = 10_000) -> list[EventRow]:
        lanes = self._all()
        found = [row for lane in lanes for row in lane.unsettled(before=before, since=since, limit=limit)]
        return sorted(found, key=lambda row: row.event.timestamp)[:limit]

    @_translated
    def settle(self, identifiers: Sequence[str], *, now: float) -> list[Transition]:
        return [moved for lane in self._all(now) for moved in lane.settle(identifiers)]

    @_translated
    def refute(self, identifier: str, *, why: str, now: float) -> Transition | None:
        found = (lane.refute(identifier, why) for lane in self._all(now))
        return next((moved for moved in found if moved is not None), None)

    @_translated
    def hear_time(self, ahead_s: float | None, *, now: float) -> bool:
        lanes = self._all(now)
        if ahead_s is not None:
            self._check_clock(lanes, now)  # what is known of itself is not told a second time
        if fell_s := max(lane.hear_time(ahead_s) for lane in lanes):
            self._lanes.alarm("ledger.clock_went_back", clocks.said_by_stripe(fell_s), by_s=fell_s)
        return any(lane.attempts.awaits_time for lane in lanes)

    @_translated
    def pause_meter(self, event_name: str, *, why: str | None) -> None:
        for lane in self._all():
            lane.pause_meter(event_name, why)

    @_translated
    def paused_meters(self) -> dict[str, str]:
        return {name: why for lane in self._all() for name, why in lane.paused_meters().items()}

    # ---- a person's decisions

    @_translated
    def assign(
        self, customer: str, *, ids: Sequence[str] | None = None, who: str, why: str, now: float
    ) -> int:
        return sum(lane.assign(customer, ids, who=who, why=why, now=now) for lane in self._all(now))

    @_translated
    def hold(self, ids: Sequence[str], *, who: str, why: str, now: float) -> int:
        return sum(lane.hold(ids, who=who, why=why, now=now) for lane in self._all(now))

    @_translated
    def release(self, ids: Sequence[str], *, who: str, why: str, now: float) -> int:
        return sum(lane.release(ids, who=who, why=why, now=now) for lane in self._all(now))

    @_translated
    def replay(self, identifiers: Sequence[str], *, who: str, why: str, now: float) -> list[Ruling]:
        return self._decide("replay", identifiers, who, why, now)

    @_translated
    def write_off(self, identifiers: Sequence[str], *, who: str, why: str, now: float) -> list[Ruling]:
        return self._decide("write_off", identifiers, who, why, now)

    @_translated
    def resolve(self, identifier: str, arrived: bool, *, who: str, why: str, now: float) -> Ruling:
        return self._decide("arrived" if arrived else "not_arrived", [identifier], who, why, now)[0]

    @_translated
    def pause(self, *, who: str, why: str, now: float) -> None:
        self._decide("pause", [SENDING], who, why, now)
        spool.set_pause(self.folder, Pause(who, why, now))

    @_translated
    def resume(self, *, who: str, why: str, now: float) -> bool:
        if self.paused_by() is None:
            return False
        self._decide("resume", [SENDING], who, why, now)
        spool.set_pause(self.folder, None)
        return True

    def paused_by(self) -> Pause | None:
        return spool.pause_of(self.folder)

    # ---- reading: the whole folder, lanes of other processes too

    def balances(self) -> list[Balance]:
        return self.view().balances()

    def pulse(self) -> Pulse:
        return self.view().pulse()

    def status(self, *, now: float) -> LedgerStatus:
        return self.view().status(now=now)

    def usage_sums(self) -> list[UsageSum]:
        return self.view().usage_sums()

    def events(
        self,
        *,
        states: Sequence[State] = (),
        limit: int = 100,
        customer: str | None = None,
        since: float | None = None,
    ) -> list[EventRow]:
        return self.view().events(states=states, limit=limit, customer=customer, since=since)

    def history(self, identifier: str) -> EventHistory | None:
        return self.view().history(identifier)

    def set_aside(
        self,
        which: Aside,
        *,
        limit: int = 100,
        customer: str | None = None,
        since: float | None = None,
    ) -> list[RecordRow]:
        return self.view().set_aside(which, limit=limit, customer=customer, since=since)

    def event_sums(
        self, *, since: float, until: float, window_s: int = 3600, customer: str | None = None
    ) -> list[EventSum]:
        return self.view().event_sums(since=since, until=until, window_s=window_s, customer=customer)

    def events_within(
        self, customer: str, event_name: str, *, since: float, until: float, limit: int = 10_000
    ) -> list[EventRow]:
        return self.view().events_within(customer, event_name, since=since, until=until, limit=limit)

    @_translated
    def meta(self, name: str) -> str | None:
        return self._own().meta(name)

    @_translated
    def set_meta(self, name: str, value: str | None) -> None:
        self._own().set_meta(name, value)

    def take_alarms(self) -> list[Alarm]:
        taken, self._lanes.alarms = self._lanes.alarms, []
        return taken

    # ---- for an outbox

    @_translated
    def held(self, *, now: float) -> list[Lane]:
        """The lanes that are ours, our own first."""
        return self._all(now)

    @_translated
    def visit(self, work: Callable[[], T]) -> T:
        """Work on lanes that are ours; what fails is told in our own words."""
        return work()

    @_translated
    def look_for_lanes(self, *, now: float, has_work: Callable[[Lane], bool]) -> None:
        """Adopt what dead processes left, and let go of lanes in which nothing is left to do."""
        self._own(now)
        self._lanes.replace_removed(now=now)
        self._lanes.adopt(now=now)
        self._lanes.release(has_work)

    # ---- underneath

    def _own(self, now: float | None = None) -> Lane:
        """Our own lane; a new one if this is a child forked from the process that opened the ledger."""
        if now is not None:
            self._now = now
        if self._lanes.forked:
            self._handover.forget()
            self._lanes.open(now=self._now)
        lane = self._lanes.get(self._lanes.own)
        if lane is None:
            raise LedgerError(f"the ledger in {self.folder} is not open")
        return lane

    def _decide(self, what: What, subjects: Sequence[str], who: str, why: str, now: float) -> list[Ruling]:
        """In our lanes and those of nobody; what lies in others is for the desk, which asks their holders."""
        lanes = self._all(now)
        if not subjects:
            return []
        pausing = what in ("pause", "resume")
        before = None if not pausing else "paused" if self.paused_by() else "sending"
        decision = Decision(
            what, tuple(dict.fromkeys(subjects)), who, why, now, new_decision_id(), before=before
        )
        found: list[Ruling] = []
        for lane in lanes[:1] if pausing else lanes:
            if mine := lane.rulings.knows(decision):
                found += lane.carry_out(replace(decision, subjects=tuple(mine)), now=now)
        if not pausing:
            found += self._decide_elsewhere(decision, {ruling.subject for ruling in found}, now)
        return merge(decision, found)

    def _decide_elsewhere(self, decision: Decision, done: set[str], now: float) -> list[Ruling]:
        """In lanes that nobody holds, because nothing in them goes on by itself."""
        places: dict[str, list[str]] = {}
        for subject in decision.subjects:
            if subject not in done and (history := self.history(subject)) is not None:
                places.setdefault(history.row.lane, []).append(subject)
        found: list[Ruling] = []
        for name, subjects in places.items():
            if lane := self._lanes.take(name, now=now):
                found += lane.carry_out(replace(decision, subjects=tuple(subjects)), now=now)
        return found

    def _drained(self, write: Callable[[], T]) -> T:
        """Write what must not be lost: on a full disk once more, with the ballast given up."""
        try:
            return write()
        except sqlite3.Error as exc:
            if not self._lanes.make_room(exc):
                raise
        return write()

    def _all(self, now: float | None = None) -> list[Lane]:
        self._own(now)
        return self._lanes.all()

    def _check_clock(self, lanes: Sequence[Lane], now: float) -> None:
        if lag := max((lane.tell_time(now) for lane in lanes), key=lambda lag: lag.s):
            self._lanes.alarm("ledger.clock_went_back", str(lag), by_s=lag.s)

    def _check_lateness(self, now: float) -> None:
        waiting = [lane.attempts.waiting_since() for lane in self._lanes.all()]
        since = min((s for s, _ in waiting if s is not None), default=None)
        use = min((u for _, u in waiting if u is not None), default=None)
        late = states.lateness(waiting_since=since, oldest_use=use, now=now)
        for _, name in states.LATE[self._late : late]:
            self._lanes.alarm(
                name, "usage waits to be accepted by Stripe", waiting_since=since, oldest_use=use
            )
        self._late = late
        doubted = [at for lane in self._lanes.all() for (at,) in lane.db.execute(DOUBTED) if at is not None]
        near = states.doubt_is_near(min(doubted, default=None), now)
        if near and not self._doubt_near:
            self._lanes.alarm(*states.NEAR_DOUBT, until=min(doubted) + states.HORIZON_S)
        self._doubt_near = near
