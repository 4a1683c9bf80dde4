"""One lane: a SQLite file of which this process is the only writer, and what can be done to it.

`SqliteLedger` holds its own lane and those of dead processes; each is one of these. Every method is one
transaction.
"""

# ruff: noqa: S608  (nothing but names of our own columns is put into SQL; values are bound)
from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TypeVar

from .._failpoints import failpoint
from ..decisions import Decision, Ruling
from ..protocols import Claim, Entry, EventRow, Outcome, Progress, Transition
from . import clocks, rows, states, verdicts
from .attempts import Attempts, Pair, Stale
from .freezing import Draft, Payloads, bucket_of, checked, drafts, in_turns, timestamp_of
from .identifiers import identifiers
from .lines import LineKey, plain
from .rulings import Rulings
from .suspicion import Kept, suspect

T = TypeVar("T")

_INSERT_PROGRESS = f"""
    INSERT INTO progress ({rows.RECORD})
    SELECT ?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13 WHERE NOT EXISTS (SELECT 1 FROM usage WHERE id = ?1)
    ON CONFLICT (id) DO UPDATE SET customer = excluded.customer, model = excluded.model,
        provider = excluded.provider, provenance = excluded.provenance, response_id = excluded.response_id,
        surface = excluded.surface, used_at = excluded.used_at, counts = excluded.counts,
        dimensions = excluded.dimensions, lines = excluded.lines, held = excluded.held,
        recorded_at = excluded.recorded_at
"""
_INSERT_EVENT = (
    "INSERT INTO meter_event (identifier, freeze, line_key, customer, event_name, value, timestamp, payload, "
    "frozen_at, next_attempt_at, state)"
)
_BILLABLE = "freeze IS NULL AND held IS NULL AND customer IS NOT NULL"
_UNDELIVERED = (
    "SELECT EXISTS (SELECT 1 FROM meter_event WHERE next_attempt_at IS NOT NULL) "
    "OR EXISTS (SELECT 1 FROM meter_event WHERE state = 'SENDING')"
)
_WORK = f"{_UNDELIVERED} OR EXISTS (SELECT 1 FROM usage WHERE {_BILLABLE}) OR EXISTS (SELECT 1 FROM progress)"
_CLOCK, _BOOT_CLOCK, _EARLIER = "clock", "boot_clock", "clock_before_boot"
_STRIPES, _UNTOLD = "stripe_ahead", "time_untold"
_DOUBTS = "SELECT EXISTS (SELECT 1 FROM meter_event WHERE state IN ('AMBIGUOUS', 'SENDING'))"
_NEWEST = "SELECT recorded_at FROM usage ORDER BY seq DESC LIMIT 1"
_GAPS = "gaps"
_PAUSED = "paused_meters"


class Lane:
    """One open file. The caller sees to it that nobody else writes to it."""

    def __init__(
        self,
        name: str,
        db: sqlite3.Connection,
        *,
        new_id: Callable[[], str],
        random: Callable[[], float],
        boot: clocks.ReadBoot = lambda: None,
        mark: Callable[[int], None] = lambda _: None,
        mark_sends: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self.name = name
        self.db = db
        self._new_id = new_id
        self.attempts = Attempts(db, random)
        self.attempts.without = frozenset(self.paused_meters())
        self.rulings = Rulings(db, new_id)
        self._mark = mark
        self._mark_sends = mark_sends
        self.freezes, self.tries = self._count_sends()
        self._keys = rows.LineKeys(db)
        self._records = rows.RecordRows(self._keys)
        self._boot = boot
        self._noted: clocks.Moment | None = None
        self._is_untold = self.meta(_UNTOLD) is not None

    # ---- usage

    def commit(
        self, entries: Sequence[Entry], progress: Sequence[Progress], drops: Sequence[str], *, now: float
    ) -> int:
        with self.transaction(of_attempts=True):
            # First what streams left behind, so that a record in the same group may close it.
            if progress:
                self._put_progress([self._records.row(p.entry, now) for p in progress])
            records = [self._records.row(entry, now) for entry in entries]
            before = self.db.total_changes
            last = self._put_usage(records)
            new = self.db.total_changes - before
            closed = [entry.closes for entry in entries if entry.closes is not None]
            if closed or drops:
                self.db.executemany("DELETE FROM progress WHERE id = ?", [(i,) for i in (*closed, *drops)])
            failpoint("before_commit")
        failpoint("after_commit")
        if new:
            self._mark(last)
        return new

    def recover(self, *, now: float) -> list[Transition]:
        """What a dead process left under way: streams become usage, attempts become AMBIGUOUS."""
        with self.transaction():
            self._end_streams("true")
            changed = self.attempts.crash_all(now)
        self._mark(self.last_seq())
        return changed

    def cut(self, ids: Sequence[str]) -> list[tuple[str, dict[str, int], rows.Lines]]:
        """Streams that do not end: what is noted of them is usage now. Their ids, counts and lines."""
        marks = ",".join("?" * len(ids))
        with self.transaction():
            self._end_streams(f"id IN ({marks})", ids)
            failpoint("in_cut")
        failpoint("after_cut")
        self._mark(self.last_seq())
        written = self.db.execute(f"SELECT id, counts, lines FROM usage WHERE id IN ({marks})", ids)
        return [(i, json.loads(c), rows.lines_of(json.loads(lines), self._keys)) for i, c, lines in written]

    def _end_streams(self, which: str, ids: Sequence[str] = ()) -> None:
        """What is noted of streams under way becomes usage."""
        self.db.execute(
            f"INSERT INTO usage ({rows.RECORD}) SELECT {rows.RECORD} FROM progress WHERE {which} "
            "ORDER BY recorded_at ON CONFLICT (id) DO NOTHING",
            ids,
        )
        self.db.execute(f"DELETE FROM progress WHERE {which}", ids)

    def last_seq(self) -> int:
        """How many records there are, if none was lost."""
        (seq,) = self.db.execute("SELECT max(seq) FROM usage").fetchone()
        return seq or 0

    def find_lost(self, marked: int) -> int:
        """How many records of those that were committed are missing and were not found missing before."""
        (there,) = self.db.execute("SELECT count(*) FROM usage").fetchone()
        last = self.last_seq()
        cut, gaps = max(marked - last, 0), last - int(there)
        known = int(self.meta(_GAPS) or 0)
        if gaps > known:
            self.set_meta(_GAPS, str(gaps))
        return cut + max(gaps - known, 0)

    def suspect(self, why: str, *, now: float, **facts: str) -> Kept:
        """Let nothing of this lane go out by itself, and note the facts that go with that."""
        with self.transaction():
            kept = suspect(self.db, self.name, why, now=now)
            for name, value in facts.items():
                self.put_meta(name, value)
            failpoint("in_suspicion")
        self.mark_all()
        return kept

    def mark_all(self) -> None:
        """What is there is what counts from now on."""
        self._mark(self.last_seq())
        self.freezes, self.tries = self._count_sends()
        self._mark_sends(self.freezes, self.tries)

    def _count_sends(self) -> tuple[int, int]:
        freezes, tries = self.db.execute(
            "SELECT (SELECT max(id) FROM freeze), (SELECT sum(attempts) FROM meter_event)"
        ).fetchone()
        return freezes or 0, tries or 0

    def _note_sends(self, *, tries: int = 0) -> None:
        """Before what was frozen or claimed can go out, it is noted beside the file."""
        if not tries:
            (self.freezes,) = self.db.execute("SELECT coalesce(max(id), 0) FROM freeze").fetchone()
        self.tries += tries
        self._mark_sends(self.freezes, self.tries)

    # ---- freezing

    def freeze(self, *, now: float, bucket_s: int, everything: bool) -> int:
        with self.transaction():
            made = 0
            after: float | None = None
            while (bucket := self._next_bucket(after, bucket_s)) is not None:
                start, end = bucket
                if now >= end or everything:
                    made += self._freeze_bucket(start, end, now)
                elif start > now:
                    break
                after = end
            failpoint("in_freeze")
        failpoint("after_freeze")
        if made:
            self._note_sends()
        return made

    def _next_bucket(self, after: float | None, bucket_s: int) -> tuple[int, int] | None:
        (first,) = self.db.execute(
            f"SELECT min(used_at) FROM usage WHERE {_BILLABLE} AND used_at >= ?",
            (float("-inf") if after is None else after,),
        ).fetchone()
        return None if first is None else bucket_of(first, bucket_s)

    def _freeze_bucket(self, start: int, end: int, now: float) -> int:
        window = (start, end)
        # One row a customer, not one a record: each row that is stepped to gives up the interpreter's lock.
        taken = self.db.execute(
            "SELECT customer, group_concat('[' || CAST(used_at * 1000000 AS INTEGER) || ',' || seq || ',' "
            f"|| lines || ']') FROM usage WHERE {_BILLABLE} AND used_at >= ? AND used_at < ? "
            "GROUP BY customer",
            window,
        )
        made = drafts(chain.from_iterable(self._unpack(customer, text) for customer, text in taken))
        freeze = self.db.execute(
            "INSERT INTO freeze (bucket, bucket_s, records, frozen_at) VALUES (?, ?, 0, ?)",
            (start, end - start, now),
        ).lastrowid
        self._insert_events(made, freeze, now)
        count = self.db.execute(
            f"UPDATE usage SET freeze = ? WHERE {_BILLABLE} AND used_at >= ? AND used_at < ?",
            (freeze, *window),
        ).rowcount
        self.db.execute("UPDATE freeze SET records = ? WHERE id = ?", (count, freeze))
        return len(made)

    def _unpack(self, customer: str, text: str) -> Iterator[tuple[str, float, rows.Lines]]:
        for used_us, _, pairs in sorted(json.loads(f"[{text}]")):
            yield customer, used_us / 1e6, rows.lines_of(pairs, self._keys)

    def _insert_events(self, made: Sequence[Draft], freeze: int | None, now: float) -> None:
        """In short pieces, and not all at once: between two of them others get the interpreter's lock."""
        payloads = Payloads()
        ordered = in_turns(made)
        for place in range(0, len(ordered), rows.STEP):
            values = []
            some = ordered[place : place + rows.STEP]
            for draft, identifier in zip(some, identifiers(self._new_id, len(some)), strict=True):
                value = plain(draft.value)
                values.append(
                    (
                        checked(identifier), freeze, self._keys.number(draft.key), draft.customer,
                        draft.key.event_name, value, timestamp_of(draft, now=now),
                        payloads.json(draft, value), now, now, "PENDING",
                    )
                )  # fmt: skip
            rows.insert(self.db, _INSERT_EVENT, "", values)

    # ---- sending

    def claim(
        self, *, now: float, limit: int, ambiguous_only: bool, busy: set[Pair], lease_s: float
    ) -> list[Claim]:
        """Take due events and add their pairs to `busy`."""

        def start() -> list[Claim]:
            heads = self.attempts.heads(now, limit, ambiguous_only, taken := set(busy))
            if not heads:
                return []
            with self.transaction(of_attempts=True):
                claims = self.attempts.start(heads, self.name, now, lease_s)
            busy.update(taken)
            return claims

        if claims := _surely(start):
            self._note_sends(tries=len(claims))
            failpoint("after_claim")
        return claims

    def finish_many(self, results: Sequence[tuple[Claim, Outcome]], *, now: float) -> list[Transition | None]:
        failpoint("before_finish")

        def finish() -> list[Transition | None]:
            with self.transaction(of_attempts=True):
                return self.attempts.finish(results, now)

        transitions = _surely(finish)
        failpoint("after_finish")
        return transitions

    def finish_and_claim(
        self,
        results: Sequence[tuple[Claim, Outcome]],
        *,
        now: float,
        limit: int,
        ambiguous_only: bool,
        lease_s: float,
    ) -> tuple[list[Transition | None], list[Claim]]:
        """Attempts end and others begin, for the price of one transaction."""
        failpoint("before_finish")

        def both() -> tuple[list[Transition | None], list[Claim]]:
            attempts = self.attempts
            with self.transaction(of_attempts=True):
                transitions = attempts.finish(results, now)
                heads = attempts.heads(now, limit, ambiguous_only, attempts.sending())
                return transitions, attempts.start(heads, self.name, now, lease_s)

        transitions, claims = _surely(both)
        failpoint("after_finish")
        if claims:
            self._note_sends(tries=len(claims))
            failpoint("after_claim")
        return transitions, claims

    def pass_time(self, *, now: float) -> list[Transition]:
        """Expire leases and move states by age."""
        with self.transaction():
            return self.attempts.pass_time(now)

    def tell_time(self, now: float, *, latest: Callable[[], float] | None = None) -> clocks.Lag:
        """Note the time; return by how much the clock was set back, also while nobody looked.

        What was measured on a clock that was set back is moved along, so that no doubt grows younger.

        Args:
            latest: The latest time that is known in the whole folder.
        """
        known = clocks.Moment(now, self._boot())
        noted = self._noted or clocks.noted(self.meta(_CLOCK), self.meta(_BOOT_CLOCK))
        is_new_run = self._noted is None and noted is not None and clocks.passed_s(noted, known) is None
        lag, moment = clocks.look(noted, known, latest=self._latest(latest) if is_new_run else None)
        if moment is not None or is_new_run:
            with self.transaction():
                if is_new_run:
                    self._begin_run(known)
                if lag:
                    self.attempts.set_clock_back(lag.s, doubt_s=lag.of_doubts_s)
                    self._pull_back(now)
                    self.put_meta(_STRIPES, repr(self._stripe_ahead_s() + lag.s))
                if moment is not None:
                    self.put_meta(_CLOCK, repr(moment.wall))
                    self.put_meta(_BOOT_CLOCK, clocks.to_text(moment))
        if is_new_run:
            self._is_untold = self.meta(_UNTOLD) is not None
        self._noted = moment or noted
        return lag

    def hear_time(self, ahead_s: float | None) -> float:
        """As `Ledger.hear_time`; by how much doubts were made older. `attempts.awaits_time` says whether any
        wait."""
        older_s = 0.0
        if ahead_s is not None:
            fell_s = clocks.behind(ahead_s, self._stripe_ahead_s())
            if fell_s is not None or self._is_untold:
                with self.transaction():
                    if fell_s is not None:
                        older_s = fell_s if fell_s > 0 and self.attempts.make_older(fell_s) else 0.0
                        self.put_meta(_STRIPES, repr(ahead_s))
                    self.put_meta(_UNTOLD, None)
            self._is_untold = False
        self.attempts.awaits_time = self._is_untold
        return older_s

    def _begin_run(self, known: clocks.Moment) -> None:
        """Nobody can tell whether the wall clock went on from where it was. What is noted from here on is on
        the clock in doubt: lanes that are taken later go by what was known before, and doubts wait until
        Stripe tells the time, also in the process after this one."""
        self.put_meta(_EARLIER, clocks.to_text(known, wall=latest_known(self.db, known.boot)))
        if self._has_doubts():
            self.put_meta(_UNTOLD, "yes")

    def _stripe_ahead_s(self) -> float:
        return float(self.meta(_STRIPES) or 0)

    def _has_doubts(self) -> bool:
        (found,) = self.db.execute(_DOUBTS).fetchone()
        return bool(found)

    def _latest(self, anywhere: Callable[[], float] | None) -> float:
        """The latest time that is known; elsewhere it is only looked for where a doubt depends on it."""
        known = latest_known(self.db, self._boot())
        return max(known, anywhere()) if anywhere is not None and self._has_doubts() else known

    def _pull_back(self, now: float) -> None:
        """No use lies ahead of the clock: what a clock that ran ahead put there would wait for days, or be
        refused. What Stripe answered, or may have seen, keeps its bytes."""
        self.db.execute("UPDATE usage SET used_at = ?1 WHERE freeze IS NULL AND used_at > ?1", (now,))
        self.db.execute("UPDATE progress SET used_at = ?1 WHERE used_at > ?1", (now,))
        self.db.execute(
            "UPDATE meter_event SET timestamp = ?1 "
            "WHERE state = 'PENDING' AND first_ambiguous_at IS NULL AND timestamp > ?1 AND NOT EXISTS ("
            "SELECT 1 FROM attempt a WHERE a.identifier = meter_event.identifier "
            "AND (a.outcome IS NOT 'not_sent' OR a.status IS NOT NULL))",
            (int(now // 1),),
        )

    def has_work(self) -> bool:
        """Whether anything is left that goes on by itself."""
        return has_work(self.db)

    def can_be_delivered(self, *, now: float, bucket_s: int, everything: bool) -> bool:
        """Whether there is anything that could be frozen or sent now."""
        bucket = self._next_bucket(None, bucket_s)
        if bucket is not None and (everything or now >= bucket[1]):
            return True
        (events,) = self.db.execute(_UNDELIVERED).fetchone()
        return bool(events)

    def streams(self) -> list[str]:
        """Streams that are under way."""
        return [id_ for (id_,) in self.db.execute("SELECT id FROM progress")]

    # ---- what Stripe shows of what it accepted

    def unsettled(self, *, before: float, since: float, limit: int) -> list[EventRow]:
        return verdicts.unsettled(self.db, self.name, before=before, since=since, limit=limit)

    def settle(self, identifiers: Sequence[str]) -> list[Transition]:
        with self.transaction():
            return verdicts.move(self.db, identifiers, states.summed_up)

    def refute(self, identifier: str, why: str) -> Transition | None:
        with self.transaction():
            moved = verdicts.move(self.db, [identifier], partial(states.refuted, why=why))
        return moved[0] if moved else None

    def pause_meter(self, event_name: str, why: str | None) -> None:
        paused = self.paused_meters()
        if paused.get(event_name) != why:
            if why is None:
                del paused[event_name]
            else:
                paused[event_name] = why
            self.set_meta(_PAUSED, json.dumps(paused) if paused else None)
        # Also where the file says so already: a write that failed may have been done all the same.
        self.attempts.without = frozenset(paused)

    def paused_meters(self) -> dict[str, str]:
        return dict(json.loads(self.meta(_PAUSED) or "{}"))

    # ---- a person's decisions

    def assign(self, customer: str, ids: Sequence[str] | None, *, who: str, why: str, now: float) -> int:
        with self.transaction():
            return self._change("customer", customer, "customer IS NULL", ids, (now, who, why, "assign"))

    def hold(self, ids: Sequence[str], *, who: str, why: str, now: float) -> int:
        with self.transaction():
            return self._change("held", why, "held IS NULL", ids, (now, who, why, "hold"))

    def release(self, ids: Sequence[str], *, who: str, why: str, now: float) -> int:
        with self.transaction():
            return self._change("held", None, "held IS NOT NULL", ids, (now, who, why, "release"))

    def carry_out(self, decision: Decision, *, now: float) -> list[Ruling]:
        with self.transaction():
            rulings = self.rulings.carry_out(decision, now=now)
            failpoint("in_decision")
        failpoint("after_decision")
        return rulings

    # ---- small facts

    def meta(self, name: str) -> str | None:
        row = self.db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, name: str, value: str | None) -> None:
        with self.transaction():
            self.put_meta(name, value)

    def put_meta(self, name: str, value: str | None) -> None:
        if value is None:
            self.db.execute("DELETE FROM meta WHERE name = ?", (name,))
            return
        self.db.execute(
            "INSERT INTO meta (name, value) VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )

    # ---- underneath

    def line_keys(self, numbers: Iterable[int]) -> dict[int, LineKey]:
        """What the numbers in `usage.lines` stand for."""
        return {number: self._keys.key(number) for number in numbers}

    def drop_records(self, up_to: int) -> int:
        """Take records out of the lane that are safe elsewhere, inside a transaction; return how many.

        The last one stays: from it the next gets its number.
        """
        dropped = self.db.execute(
            "DELETE FROM usage WHERE seq <= ? AND seq < (SELECT max(seq) FROM usage)", (up_to,)
        ).rowcount
        self.put_meta(_GAPS, str(int(self.meta(_GAPS) or 0) + dropped))
        return dropped

    @contextmanager
    def transaction(self, *, of_attempts: bool = False) -> Iterator[None]:
        """`of_attempts`: what it does to meter events is done by `attempts`, which remember it."""
        try:
            self.db.execute("BEGIN IMMEDIATE")
            yield
            self.db.execute("COMMIT")
        except BaseException:
            self._keys.forget()
            self.attempts.forget()
            self._roll_back()
            raise
        if not of_attempts:
            self.attempts.forget()

    def _roll_back(self) -> None:
        try:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
        except sqlite3.Error:
            # The file is beyond help; SQLite rolls back when it is next opened.
            self.db.interrupt()

    def _put_usage(self, values: list[rows.Row]) -> int:
        head, tail = f"INSERT INTO usage ({rows.RECORD})", "ON CONFLICT (id) DO NOTHING"
        try:
            return rows.insert(self.db, head, tail, values)
        except UnicodeEncodeError:
            # Those before the bad one are in already, and are known by their ids.
            return rows.insert(self.db, head, tail, [rows.printable(row) for row in values])

    def _put_progress(self, values: list[rows.Row]) -> None:
        try:
            self.db.executemany(_INSERT_PROGRESS, values)
        except UnicodeEncodeError:
            self.db.executemany(_INSERT_PROGRESS, [rows.printable(row) for row in values])

    def _change(
        self,
        column: str,
        value: str | None,
        where: str,
        ids: Sequence[str] | None,
        action: tuple[float, str, str, str],
    ) -> int:
        """Change one column of records that are not frozen yet, and note who did it and why."""
        condition = f"freeze IS NULL AND {where}"
        if ids is None:
            ids = [i for (i,) in self.db.execute(f"SELECT id FROM usage WHERE {condition}")]
        changed = 0
        for id_ in ids:
            row = self.db.execute(
                f"SELECT {column} FROM usage WHERE id = ? AND {condition}",
                (id_,),
            ).fetchone()
            if row is None:
                continue
            self.db.execute(f"UPDATE usage SET {column} = ? WHERE id = ?", (value, id_))
            self.db.execute(
                "INSERT INTO action (at, who, why, what, subject, before, after) VALUES (?,?,?,?,?,?,?)",
                (*action, id_, row[0], value),
            )
            changed += 1
        return changed


def _surely(act: Callable[[], T]) -> T:
    """Do it; and once more by the file alone where that differs from what was kept in memory."""
    try:
        return act()
    except Stale:
        return act()


def has_work(db: sqlite3.Connection) -> bool:
    """Whether anything is left in this file that goes on by itself."""
    (work,) = db.execute(_WORK).fetchone()
    return bool(work)


def latest_known(db: sqlite3.Connection, boot: clocks.Boot | None) -> float:
    """The latest time that the wall clock can be held to by what this file knows, 0 if it knows nothing."""
    notes = dict(
        db.execute("SELECT name, value FROM meta WHERE name IN (?, ?)", (_CLOCK, _EARLIER)).fetchall()
    )
    found: list[float] = [float(notes.get(_CLOCK, 0)), *(at for (at,) in db.execute(_NEWEST))]
    if earlier := clocks.from_text(notes.get(_EARLIER)):
        found.append(clocks.brought_up(earlier, boot))
    return max(found)
