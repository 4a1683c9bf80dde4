"""The ledger of a fleet, in PostgreSQL: what any service records, any worker freezes and delivers.

One clock counts for all of it, the server's; clocks of services and workers only say when something was used.
"""

from __future__ import annotations

import os
import random as dice
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar

from ..._failpoints import failpoint
from ...decisions import SENDING, Decision, Pause, Ruling, What, new_decision_id
from ...errors import AccountMismatch, LedgerError
from ...protocols import (
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
from .. import states, verdicts
from ..clocks import behind, said_by_stripe, steady
from ..histories import Aside
from ..identifiers import new_identifier
from ..offers import Answer, Offer
from ..rulings import Rulings
from . import archiving, clocks, desk, intake, marks, migrating, pacing, pods, sending, server, workers
from .books import PostgresBooks, doubted_since, meta, pause_of
from .connecting import SCHEMA, Db, Isolation, Link
from .freezing import Freezer

T = TypeVar("T")

ARCHIVE_EVERY_S = 3600.0
ARCHIVE_STEPS = 4
"""So many steps are taken in one round, each a transaction of a few thousand rows."""
RECHECK_S = 3600.0
"""How often the server's settings are looked at again."""
_NEVER_SENT = Outcome("not_sent", message="claimed, but the connection was lost before anybody was told")


class PostgresLedger:
    """A durable ledger that services and workers share. Nothing is opened before `open`.

    Example:
        ledger = PostgresLedger("postgresql://metering@db/billing")
        ledger.open(now=time.time())

    Args:
        url: As libpq takes it; its schema is made by `llm-metering ledger migrate`.
        schema: Where the tables are.
        new_id: Makes identifiers of meter events; at most 100 characters.
        random: A number from 0 to 1, for the jitter of retries.
        lease_s: How long a claim may stay unanswered before it counts as a crash.
        rounds_s: How far the rounds of delivery are apart, `flush_every_s`.
        hold_s: How long this worker may be silent before others take its customers; default: a minute, or
            three rounds.
        archive_after_s: From which age on rows are archived beside the work; 0 for never.
        clock: "server" goes by the server's clock, one for the whole fleet; "caller" by what each call is
            told, for tests on a virtual clock.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = SCHEMA,
        new_id: Callable[[], str] = new_identifier,
        random: Callable[[], float] = dice.random,
        lease_s: float = states.LEASE_S,
        rounds_s: float = 0.0,
        hold_s: float | None = None,
        archive_after_s: float = 0.0,
        clock: Literal["server", "caller"] = "server",
    ) -> None:
        self._link = Link(url, schema=schema)
        self._reader = Link(url, schema=schema, keep=False)
        self._books = PostgresBooks(url, schema=schema, link=self._reader)
        self._random = random
        self._lease_s = lease_s
        self._hold_s = max(workers.HOLD_S, 3 * rounds_s) if hold_s is None else hold_s
        self._archive_after_s = archive_after_s
        self._by_server = clock == "server"
        db = self._link.db
        self._rulings = Rulings(db, new_id)
        self._is_open = False
        self._new_id = new_id
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Be another worker: what was under way is somebody else's, if this is a forked child."""
        self._pid = os.getpid()
        self._worker = new_identifier()
        self._post = workers.Post(self._worker, self._hold_s)
        self._intake = intake.Intake(self._link.db, self._worker)
        self._freezer = Freezer(self._link.db, self._intake.keys, self._new_id)
        self._turn = sending.Turn()
        self._alarms: list[Alarm] = []
        self._recovered: list[Transition] = []
        self._lost: list[Claim] = []
        self._late = 0
        self._doubt_near = False
        self._noted_at: float | None = None
        self._checked_at = 0.0
        self._ahead_s = 0.0
        self._pace: Pace | None = None
        self._mover = archiving.Mover(0.0)
        self._mover.done = True
        self._archived_at = float("-inf")
        self._bucket_s: int | None = None
        self._pods: dict[str, workers.Post] = {}
        self._session, self._timeline, self._written = 0, "", 0
        self._spoke_at = 0.0
        self._met: marks.Marked | None = None
        self._awaits_time = False
        self._stripe_ahead_s: float | None = None
        """Of a clock of this machine that nobody sets, or of the caller's."""

    # ---- opening and closing

    def open(self, *, now: float) -> None:
        if self._is_open:
            return
        try:
            self._link.watches = self._link.can_watch()
            doubtful = self._link.run(self._check)
            self._is_open, self._reader.keep = True, True
            self._recovered += self._do(self._arrive, now)
        except BaseException:
            self.vanish()
            raise
        self._warn(doubtful)

    def close(self) -> None:
        """Let go of everything, so that others need not wait until our leases run out."""
        if not self._is_open:
            return
        try:
            self._do(lambda db, _: self._post.leave(db), None)
        except LedgerError:
            pass  # the server is gone; leases run out by themselves
        finally:
            self.vanish()

    def vanish(self) -> None:
        """Drop the line and say nothing, as one that is killed: others wait until our leases run out."""
        self._is_open, self._reader.keep = False, False
        self._post.forget()
        self._link.close()
        self._reader.close()

    def bind(self, account: str) -> None:
        def body(db: Db, _: float) -> str | None:
            db.run(
                "INSERT INTO meta (name, value) VALUES ('account', %(account)s) ON CONFLICT DO NOTHING",
                account=account,
            )
            return meta(db, "account")

        if (bound := self._do(body, None)) != account:
            raise AccountMismatch(bound_to=str(bound), key_of=account)

    def account(self) -> str | None:
        return self.meta("account")

    # ---- usage and events

    def commit(
        self, entries: Sequence[Entry], progress: Sequence[Progress], *, drops: Sequence[str] = (), now: float
    ) -> int:
        def body(db: Db, at: float) -> int:
            self._post.touch(db, at)
            new = self._intake.commit(entries, progress, drops, at)
            failpoint("before_commit")
            return new

        new = self._do(body, now)
        failpoint("after_commit")
        return new

    def take_in(self, offer: Offer, *, now: float) -> Answer:
        """Commit a group that a host's lane offers, in one transaction; or tell it to offer again what it
        holds, since the ledger went back in time."""

        def body(db: Db, at: float) -> tuple[Answer, marks.Marked | None]:
            post = self._pods.setdefault(offer.lane, workers.Post(offer.lane, self._hold_s))
            answer, marked = pods.take_in(db, self._intake, post, offer, at)
            failpoint("in_take_in")
            return answer, marked

        answer, marked = self._do(body, now)
        self._tell(marked)
        failpoint("after_take_in")
        return answer

    def freeze(self, *, now: float, bucket_s: int, everything: bool = False) -> int:
        self._bucket_s = bucket_s

        def body(db: Db, at: float) -> tuple[int, list[Transition]]:
            mine, changed = self._post.hold(db, at)
            if self._has_to_listen(db):
                if everything:
                    raise LedgerError("the server has just begun: hosts are heard before anything is frozen")
                return 0, changed
            made = self._freezer.freeze(
                mine,
                now=at,
                bucket_s=bucket_s,
                everything=everything,
                early_at=lambda: marks.note_early(db, at),
            )
            failpoint("in_freeze")
            return made, changed

        made, changed = self._do(body, now)
        self._recovered += changed
        failpoint("after_freeze")
        return made

    def claim(self, *, now: float, limit: int, ambiguous_only: bool = False) -> list[Claim]:
        return self._finish_and_claim((), now, limit, ambiguous_only)[1]

    def finish(self, claim: Claim, outcome: Outcome, *, now: float) -> Transition | None:
        return self.finish_many([(claim, outcome)], now=now)[0]

    def finish_many(self, results: Sequence[tuple[Claim, Outcome]], *, now: float) -> list[Transition | None]:
        failpoint("before_finish")
        told = self._do(lambda db, at: sending.finish(db, results, at, self._random), now)
        failpoint("after_finish")
        return told

    def finish_and_claim(
        self,
        results: Sequence[tuple[Claim, Outcome]],
        *,
        now: float,
        limit: int,
        ambiguous_only: bool = False,
    ) -> tuple[list[Transition | None], list[Claim]]:
        failpoint("before_finish")
        both = self._finish_and_claim(results, now, limit, ambiguous_only)
        failpoint("after_finish")
        return both

    def maintain(self, *, now: float) -> list[Transition]:
        self._tell_time(now)

        def body(db: Db, at: float) -> tuple[list[Transition], float]:
            mine, changed = self._post.hold(db, at, balance=True)
            self._recover(db, at)
            self._check_lateness(*sending.waiting_since(db, mine), at)
            self._check_doubt(doubted_since(db, mine), at)
            self._doubt_what_is_held(db, mine, at)
            return [*changed, *sending.pass_time(db, mine, at)], at

        changed, at = self._do(body, now)
        self._archive(at, now)
        self._recheck(at)
        changed, self._recovered = [*self._recovered, *changed], []
        return changed

    def hand_over(self, *, now: float, bucket_s: int, everything: bool = False) -> bool:
        """The store is shared: there is nothing to hand over. It says that this process is at work."""
        self._tell_time(now)

        def body(db: Db, at: float) -> None:
            self._post.touch(db, at)
            self._recover(db, at)

        self._do(body, now)
        return False

    def slow_down(self, per_s: float, *, wait_s: float, now: float) -> None:
        self._do(lambda db, at: pacing.slow_down(db, per_s, wait_s=wait_s, now=at), now)

    def pace(self) -> Pace | None:
        p = self._pace
        if p is None:
            return None
        return replace(p, cut_at=p.cut_at + self._ahead_s, not_before=p.not_before + self._ahead_s)

    def due_at(self) -> float | None:
        at = self._do(lambda db, _: sending.due_at(db, self._post.partitions), None)
        return None if at is None else at + self._ahead_s

    # ---- what Stripe shows of what it accepted

    def unsettled(self, *, before: float, since: float = 0.0, limit: int = 10_000) -> list[EventRow]:
        return self._do(
            lambda db, _: sending.unsettled(
                db, self._post.partitions, before=before - self._ahead_s, since=since, limit=limit
            ),
            None,
        )

    def settle(self, identifiers: Sequence[str], *, now: float) -> list[Transition]:
        return self._judge(lambda db, _: verdicts.move(db, identifiers, states.summed_up), now)

    def refute(self, identifier: str, *, why: str, now: float) -> Transition | None:
        moved = self._judge(
            lambda db, _: verdicts.move(db, [identifier], partial(states.refuted, why=why)), now
        )
        return moved[0] if moved else None

    def hear_time(self, ahead_s: float | None, *, now: float) -> bool:
        # Nobody can tell what the server's clock did while no worker ran: each asks for itself. From then on
        # the server's is held against it whenever the time is noted.
        known_s = self._stripe_ahead_s
        if ahead_s is not None:
            self._stripe_ahead_s = told_s = ahead_s + (now - steady() if self._by_server else 0.0)
            try:
                if known_s is None or behind(told_s, known_s) is not None:
                    self._do(self._note_time, now)
            except BaseException:
                self._stripe_ahead_s = known_s  # the ledger has not heard of it
                raise
        self._awaits_time = self._stripe_ahead_s is None
        return self._awaits_time

    def pause_meter(self, event_name: str, *, why: str | None) -> None:
        self._judge(lambda db, _: desk.pause_meter(db, event_name, why), None)

    def paused_meters(self) -> dict[str, str]:
        return self._do(lambda db, _: desk.paused_meters(db), None)

    # ---- a person's decisions

    def assign(
        self, customer: str, *, ids: Sequence[str] | None = None, who: str, why: str, now: float
    ) -> int:
        return self._judge(
            lambda db, at: desk.change(db, "assign", customer, ids, who=who, why=why, now=at), now
        )

    def hold(self, ids: Sequence[str], *, who: str, why: str, now: float) -> int:
        return self._judge(lambda db, at: desk.change(db, "hold", why, ids, who=who, why=why, now=at), now)

    def release(self, ids: Sequence[str], *, who: str, why: str, now: float) -> int:
        return self._judge(
            lambda db, at: desk.change(db, "release", None, ids, who=who, why=why, now=at), now
        )

    def replay(self, identifiers: Sequence[str], *, who: str, why: str, now: float) -> list[Ruling]:
        return self._decide("replay", identifiers, who, why, now)

    def write_off(self, identifiers: Sequence[str], *, who: str, why: str, now: float) -> list[Ruling]:
        return self._decide("write_off", identifiers, who, why, now)

    def resolve(self, identifier: str, arrived: bool, *, who: str, why: str, now: float) -> Ruling:
        return self._decide("arrived" if arrived else "not_arrived", [identifier], who, why, now)[0]

    def pause(self, *, who: str, why: str, now: float) -> None:
        self._decide("pause", [SENDING], who, why, now)

    def resume(self, *, who: str, why: str, now: float) -> bool:
        return self.paused_by() is not None and bool(self._decide("resume", [SENDING], who, why, now))

    def paused_by(self) -> Pause | None:
        return self._do(lambda db, _: pause_of(db), None)

    # ---- reading

    def balances(self) -> list[Balance]:
        return self._books.balances()

    def pulse(self) -> Pulse:
        return self._books.pulse()

    def status(self, *, now: float) -> LedgerStatus:
        return self._books.status(now=now)

    def usage_sums(self) -> list[UsageSum]:
        return self._books.usage_sums()

    def events(
        self,
        *,
        states: Sequence[State] = (),
        limit: int = 100,
        customer: str | None = None,
        since: float | None = None,
    ) -> list[EventRow]:
        return self._books.events(states=states, limit=limit, customer=customer, since=since)

    def history(self, identifier: str) -> EventHistory | None:
        return self._books.history(identifier)

    def set_aside(
        self,
        which: Aside,
        *,
        limit: int = 100,
        customer: str | None = None,
        since: float | None = None,
    ) -> list[RecordRow]:
        return self._books.set_aside(which, limit=limit, customer=customer, since=since)

    def event_sums(
        self, *, since: float, until: float, window_s: int = 3600, customer: str | None = None
    ) -> list[EventSum]:
        return self._books.event_sums(since=since, until=until, window_s=window_s, customer=customer)

    def events_within(
        self, customer: str, event_name: str, *, since: float, until: float, limit: int = 10_000
    ) -> list[EventRow]:
        return self._books.events_within(customer, event_name, since=since, until=until, limit=limit)

    def meta(self, name: str) -> str | None:
        return self._do(lambda db, _: meta(db, name), None)

    def set_meta(self, name: str, value: str | None) -> None:
        self._do(lambda db, _: desk.set_meta(db, name, value), None)

    def take_alarms(self) -> list[Alarm]:
        taken, self._alarms = self._alarms, []
        return taken

    def view(self) -> PostgresBooks:
        return self._books

    # ---- underneath

    def _do(
        self,
        body: Callable[[Db, float], T],
        now: float | None,
        *,
        isolation: Isolation = "READ COMMITTED",
        first: str = "",
    ) -> T:
        """Run `body` with the ledger's time in one transaction."""
        if not self._is_open:
            raise LedgerError(f"the ledger at {self._link.place} is not open")
        if self._pid != os.getpid():
            self._begin_anew()

        def run(db: Db) -> T:
            try:
                at = self._at(db, now)
                self._meet(db, at)
                return body(db, at)
            except BaseException:
                self._forget()  # before it may be run again
                raise

        try:
            done = self._link.run(run, isolation=isolation, first=first)
        except BaseException:
            self._forget()
            raise
        marked, self._met = self._met, None
        self._tell(marked)
        return done

    def _meet(self, db: Db, at: float) -> None:
        """Before anything is done: whether the server is where it was when we last spoke to it."""
        if not self._link.watches:
            return
        went_back = db.timeline == self._timeline and db.written < self._written
        at = at or self._spoke_at
        if went_back or (db.session, db.timeline) != (self._session, self._timeline):
            self._forget()  # numbers that another life of the server gave out
            self._met = marks.meet(db, at)
            if went_back and self._met is None:
                why = f"the server's log ended at byte {self._written} and ends at {db.written} now"
                self._met = marks.set_mark_after(db, at, why, self._spoke_at)
        self._session, self._timeline, self._written = db.session, db.timeline or "", db.written
        self._spoke_at = at

    def _has_to_listen(self, db: Db) -> bool:
        """Whether it is too early to freeze or send: hosts may know that the server went back."""
        return self._by_server and self._link.watches and pods.may_know_better(db, db.began_at)

    def _doubt_what_is_held(self, db: Db, mine: Sequence[int], at: float) -> None:
        """After a mark, once everybody has offered again: what may have been billed is for Stripe's sums."""
        for mark in marks.ripe(db, at) if self._bucket_s else ():
            self._freezer.doubt(
                mine, mark.reason, since=mark.since, at=mark.at, now=at, bucket_s=self._bucket_s or 1
            )

    def _tell(self, marked: marks.Marked | None) -> None:
        if marked is not None:
            mark = marked.mark
            self._alarm(
                "ledger.went_back",
                f"{mark.why}; it knows nothing of what was done after {marks.moment(mark.since)}. "
                f"Services offer again what they recorded; {marked.events} meter events may have been sent, "
                f"and {marked.records} records are held, since they may have been billed",
                since=mark.since,
                events=marked.events,
                records=marked.records,
            )

    def _forget(self) -> None:
        """What was written may have been rolled back."""
        self._intake.forget()
        self._post.forget()
        for post in self._pods.values():
            post.forget()
        self._session, self._met = 0, None

    def _judge(self, body: Callable[[Db, float], T], now: float | None) -> T:
        """As `_do`, for what reads first and writes then: who comes second sees what the first has done."""
        return self._do(body, now, isolation="REPEATABLE READ")

    def _at(self, db: Db, now: float | None) -> float:
        if not self._by_server:
            return 0.0 if now is None else now
        if now:
            self._ahead_s = now - db.began_at
        return db.began_at

    def _check(self, db: Db) -> list[str]:
        migrating.check(db, self._link)
        self._checked_at = db.began_at if self._by_server else self._checked_at
        return server.check(db, self._link)

    def _arrive(self, db: Db, at: float) -> list[Transition]:
        self._post.touch(db, at)
        self._note_time(db, at)
        self._recover(db, at)
        return workers.crash_orphans(db, at)

    def _finish_and_claim(
        self, results: Sequence[tuple[Claim, Outcome]], now: float, limit: int, ambiguous_only: bool
    ) -> tuple[list[Transition | None], list[Claim]]:
        self._tell_time(now)
        claims: list[Claim] = []

        def body(db: Db, at: float) -> tuple[list[Transition | None], list[Transition]]:
            claims.clear()
            sending.finish(db, [(claim, _NEVER_SENT) for claim in self._lost], at, self._random)
            told = sending.finish(db, results, at, self._random)
            mine, changed = self._post.hold(db, at)
            self._turn.without = frozenset(desk.paused_meters(db))
            self._pace = pacing.pace(db, len(mine))
            if self._has_to_listen(db):
                return told, changed
            claims.extend(
                sending.begin(
                    db,
                    self._turn,
                    mine,
                    now=at,
                    limit=limit,
                    ambiguous_only=ambiguous_only,
                    awaits_time=self._awaits_time,
                    lease_s=self._lease_s,
                )
            )
            return told, changed

        try:
            told, changed = self._do(body, now, first=sending.BY_INDEX)
        except BaseException:
            self._lost += claims  # perhaps they are on record, and nobody will send them
            raise
        self._lost.clear()
        self._recovered += changed
        failpoint("after_claim")
        return told, claims

    def _decide(self, what: What, subjects: Sequence[str], who: str, why: str, now: float) -> list[Ruling]:
        if not subjects:
            return []
        id_, names = new_decision_id(), tuple(dict.fromkeys(subjects))
        return self._judge(
            lambda db, at: desk.carry_out(db, self._rulings, Decision(what, names, who, why, at, id_)), now
        )

    def _tell_time(self, now: float) -> None:
        """Note the time now and then; where the clock went back, move along what was measured on it."""
        known = self._noted_at
        at = now - self._ahead_s if self._by_server else now
        if known is None or abs(known - at) > states.CLOCK_GRAIN_S:
            self._do(self._note_time, now)

    def _recover(self, db: Db, at: float) -> None:
        # A virtual clock leaps, and nobody was asleep.
        intake.recover(db, at, awake_since=clocks.awake_since(db) if self._by_server else 0.0)

    def _note_time(self, db: Db, at: float) -> None:
        if back := clocks.tell_time(db, Db.clock if self._by_server else lambda _: at):
            self._post.forget()
            self._alarm(
                "ledger.clock_went_back",
                f"the clock went back by {back:.0f} s; doubts keep their age, and no event gets a time in "
                "the future",
                by_s=back,
            )
        if self._stripe_ahead_s is not None:
            ahead_s = self._stripe_ahead_s + (steady() - db.clock() if self._by_server else 0.0)
            if fell_s := clocks.keep_to(db, ahead_s):
                self._alarm("ledger.clock_went_back", said_by_stripe(fell_s), by_s=fell_s)
        self._noted_at = at

    def _check_lateness(self, since: float | None, use: float | None, at: float) -> None:
        late = states.lateness(waiting_since=since, oldest_use=use, now=at)
        for _, name in states.LATE[self._late : late]:
            self._alarm(name, "usage waits to be accepted by Stripe", waiting_since=since, oldest_use=use)
        self._late = late

    def _check_doubt(self, since: float | None, at: float) -> None:
        near = states.doubt_is_near(since, at)
        if near and not self._doubt_near and since is not None:
            self._alarm(*states.NEAR_DOUBT, until=since + states.HORIZON_S)
        self._doubt_near = near

    def _archive(self, at: float, now: float) -> None:
        """A step now and then, and a look at everything once an hour."""
        if not self._archive_after_s:
            return
        if self._mover.done and not 0 <= at - self._archived_at < ARCHIVE_EVERY_S:
            self._mover, self._archived_at = archiving.Mover(at - self._archive_after_s), at
        try:
            for _ in range(ARCHIVE_STEPS):
                if self._mover.done or (step := self._do(lambda db, _: self._mover.step(db), now)) is None:
                    return
                self._mover.advance(step)
        except LedgerError as exc:  # delivery must not stand still for it
            self._mover.done = True
            self._alarm("ledger.not_archived", f"old rows stay where they are, for an hour at least: {exc}")

    def _recheck(self, at: float) -> None:
        if not 0 <= at - self._checked_at < RECHECK_S:
            self._warn(self._do(lambda db, _: server.recheck(db), None))
            self._checked_at = at

    def _warn(self, sentences: Sequence[str]) -> None:
        for said in sentences:
            self._alarm("ledger.server_settings", f"the server at {self._link.place}: {said}")

    def _alarm(self, name: str, message: str, **data: object) -> None:
        self._alarms.append(Alarm(name, message, data))
