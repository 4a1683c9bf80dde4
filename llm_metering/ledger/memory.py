"""A ledger that forgets when the process ends: for tests, with the same contract as the durable ones."""

from __future__ import annotations

import json
import random as dice
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from threading import RLock
from typing import Literal

from ..decisions import (
    MAX_SUBJECTS,
    SENDING,
    AttemptRow,
    Decision,
    Pause,
    Ruling,
    What,
    new_decision_id,
)
from ..errors import AccountMismatch, LedgerError
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
from ..usage import UsageRecord
from . import clocks, memory_desk, states
from .books import Tally, UsageRow
from .freezing import LATEST, bucket_of, drafts, meter_event
from .lines import checked, decimal, key_of
from .memory_desk import Store, Stored, StoredEvent
from .states import Standing
from .windows import Windows

_LANE = "memory"


class MemoryLedger:
    """A ledger in memory. `close` and `open` again stand for a crash and a restart.

    Any thread may read it.

    Args:
        new_id: Makes the identifiers of meter events; default m1, m2, m3, …
        random: A number from 0 to 1, for the jitter of retries.
        lease_s: How long a claim may stay unanswered before it counts as a crash.
        boot: The clock that nobody sets, where there is one.
    """

    def __init__(
        self,
        *,
        new_id: Callable[[], str] | None = None,
        random: Callable[[], float] = dice.random,
        lease_s: float = states.LEASE_S,
        boot: clocks.ReadBoot = clocks.this_boot,
    ) -> None:
        self._boot = boot
        self._is_watched = False
        self._awaits_time = False
        self._new_id = new_id or (lambda: f"m{len(self._store.events) + 1}")
        self._random = random
        self._lease_s = lease_s
        self._store = Store()
        self._alarms: list[Alarm] = []
        self._recovered: list[Transition] = []
        self._late = 0
        self._doubt_near = False
        self._after = ("", "")
        self._is_open = False
        self._lock = RLock()

    def open(self, *, now: float) -> None:
        with self._lock:
            if self._is_open:
                return
            self._is_open = True
            self._is_watched = False
            self._tell_time(now)
            for id_, left in self._store.progress.items():
                self._store.usage.setdefault(id_, left)
            self._store.progress.clear()
            self._recovered += [self._crash(e, now) for e in self._in_state("SENDING")]

    def close(self) -> None:
        with self._lock:
            self._is_open = False

    def bind(self, account: str) -> None:
        with self._ready() as store:
            if store.account not in (None, account):
                raise AccountMismatch(bound_to=str(store.account), key_of=account)
            store.account = account

    def account(self) -> str | None:
        with self._ready() as store:
            return store.account

    def commit(
        self, entries: Sequence[Entry], progress: Sequence[Progress], *, drops: Sequence[str] = (), now: float
    ) -> int:
        # All that can fail comes first, so that nothing has happened if it does.
        streams = [_usage_of(p.entry) for p in progress]
        records = [(_usage_of(entry), entry.closes) for entry in entries]
        with self._ready() as store:
            for usage in streams:
                if usage.record.id not in store.usage:
                    store.progress[usage.record.id] = usage
            before = len(store.usage)
            for usage, closes in records:
                store.usage.setdefault(usage.record.id, usage)
                if closes is not None:
                    store.progress.pop(closes, None)
            for id_ in drops:
                store.progress.pop(id_, None)
            return len(store.usage) - before

    def freeze(self, *, now: float, bucket_s: int, everything: bool = False) -> int:
        with self._ready() as store:
            buckets: dict[tuple[int, int], list[Stored]] = {}
            for usage in store.usage.values():
                if usage.billable:
                    buckets.setdefault(bucket_of(usage.record.used_at, bucket_s), []).append(usage)
            closed = [b for b in sorted(buckets) if everything or now >= b[1]]
            return sum(self._freeze_bucket(buckets[b], now) for b in closed)

    def claim(self, *, now: float, limit: int, ambiguous_only: bool = False) -> list[Claim]:
        with self._ready() as store:
            self._tell_time(now)
            busy = {e.pair for e in self._in_state("SENDING")}
            queue: list[StoredEvent] = []
            if not self._awaits_time:
                queue += self._in_state("AMBIGUOUS")
                queue.sort(key=lambda e: e.standing.first_ambiguous_at or 0.0)
            if not ambiguous_only:
                # Pair after pair from where the last claim ended, so that nobody's long queue is in the way.
                without = self.paused_meters()
                queue += sorted(
                    (e for e in self._in_state("PENDING") if e.event.event_name not in without),
                    key=lambda e: (e.pair <= self._after, e.pair, e.standing.next_attempt_at or 0.0),
                )
            claims: list[Claim] = []
            for each in queue:
                if len(claims) < limit and each.pair not in busy and states.may_send(each.standing, now=now):
                    busy.add(each.pair)
                    if each.standing.state == "PENDING":
                        self._after = each.pair
                    claims.append(self._start(store.events[each.event.identifier], now))
            return claims

    def finish(self, claim: Claim, outcome: Outcome, *, now: float) -> Transition | None:
        with self._ready() as store:
            each = store.events.get(claim.event.identifier)
            if each is None or each.fence != claim.fence or each.standing.state != "SENDING":
                return None
            each.end_attempt(outcome, now)
            return _move(each, states.ended(each.standing, outcome, now=now, random=self._random))

    def finish_many(self, results: Sequence[tuple[Claim, Outcome]], *, now: float) -> list[Transition | None]:
        with self._ready():
            return [self.finish(claim, outcome, now=now) for claim, outcome in results]

    def finish_and_claim(
        self,
        results: Sequence[tuple[Claim, Outcome]],
        *,
        now: float,
        limit: int,
        ambiguous_only: bool = False,
    ) -> tuple[list[Transition | None], list[Claim]]:
        with self._ready():
            transitions = self.finish_many(results, now=now)
            return transitions, self.claim(now=now, limit=limit, ambiguous_only=ambiguous_only)

    def maintain(self, *, now: float) -> list[Transition]:
        with self._ready() as store:
            self._tell_time(now)
            changed, self._recovered = self._recovered, []
            for each in self._in_state("SENDING"):
                if each.lease_until is not None and each.lease_until <= now:
                    changed.append(self._crash(each, now))
            for each in store.events.values():
                if step := states.aged(each.standing, now=now):
                    changed.append(_move(each, step))
            self._check_lateness(now)
            return changed

    def hand_over(self, *, now: float, bucket_s: int, everything: bool = False) -> bool:
        return False

    def slow_down(self, per_s: float, *, wait_s: float, now: float) -> None:
        """One process delivers from a lane: its own rate is all there is."""

    def pace(self) -> Pace | None:
        return None

    def due_at(self) -> float | None:
        with self._ready() as store:
            due = [e.standing.next_attempt_at for e in store.events.values()]
            return min((at for at in due if at is not None), default=None)

    def unsettled(self, *, before: float, since: float = 0.0, limit: int = 10_000) -> list[EventRow]:
        with self._ready() as store:
            found = [memory_desk.event_row(e, store) for e in store.events.values()]
        wanted = [r for r in found if r.state in ("ACCEPTED", "IN_DOUBT") and r.event.timestamp >= since]
        old = [r for r in wanted if r.attempted_at is None or r.attempted_at < before]
        return sorted(old, key=lambda r: r.event.timestamp)[:limit]

    def settle(self, identifiers: Sequence[str], *, now: float) -> list[Transition]:
        return self._step(identifiers, states.summed_up)

    def refute(self, identifier: str, *, why: str, now: float) -> Transition | None:
        moved = self._step([identifier], partial(states.refuted, why=why))
        return moved[0] if moved else None

    def hear_time(self, ahead_s: float | None, *, now: float) -> bool:
        with self._ready() as store:
            if ahead_s is not None:
                self._tell_time(now)
                self._keep_to(ahead_s)
                store.is_untold = False
            self._awaits_time = store.is_untold
            return self._awaits_time

    def pause_meter(self, event_name: str, *, why: str | None) -> None:
        paused = {**self.paused_meters(), event_name: why}
        kept = {name: reason for name, reason in paused.items() if reason is not None}
        self.set_meta("paused_meters", json.dumps(kept) if kept else None)

    def paused_meters(self) -> dict[str, str]:
        return dict(json.loads(self.meta("paused_meters") or "{}"))

    def assign(
        self, customer: str, *, ids: Sequence[str] | None = None, who: str, why: str, now: float
    ) -> int:
        return self._change("assign", ids, who, why, now, customer)

    def hold(self, ids: Sequence[str], *, who: str, why: str, now: float) -> int:
        return self._change("hold", ids, who, why, now)

    def release(self, ids: Sequence[str], *, who: str, why: str, now: float) -> int:
        return self._change("release", ids, who, why, now)

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
        return self._store.pause

    def balances(self) -> list[Balance]:
        with self._lock:
            return self._tally().balances()

    def usage_sums(self) -> list[UsageSum]:
        with self._lock:
            return self._tally().usage_sums()

    def pulse(self) -> Pulse:
        with self._lock:
            oldest = [u.record.used_at for u in self._store.usage.values() if u.billable]
            oldest += [e.event.timestamp for e in self._waiting()]
            return Pulse(min(oldest, default=None), self._paused())

    def status(self, *, now: float) -> LedgerStatus:
        with self._lock:
            usage = list(self._store.usage.values())
            unfrozen = [u for u in usage if u.freeze is None]
            counts: dict[State, int] = {}
            for each in self._store.events.values():
                counts[each.standing.state] = counts.get(each.standing.state, 0) + 1
            oldest = [u.record.used_at for u in unfrozen if u.billable]
            oldest += [e.event.timestamp for e in self._waiting()]
            return LedgerStatus(
                usage_records=len(usage),
                unfrozen_records=len(unfrozen),
                unresolved_records=sum(u.record.customer is None for u in unfrozen),
                held_records=sum(u.record.held is not None for u in unfrozen),
                streams_under_way=len(self._store.progress),
                events=counts,
                oldest_pending_at=min(oldest, default=None),
                conserved=all(balance.conserved for balance in self._tally().balances()),
                account=self._store.account,
                lanes=1,
                paused=self._paused(),
                paused_by=self._store.pause,
                written_off=sum(
                    row.written_off for row in self.events(states=["DEAD"], limit=len(self._store.events))
                ),
                doubted_since=self._doubted_since(),
                last_trouble=self._last_trouble(),
            )

    def events(
        self,
        *,
        states: Sequence[State] = (),
        limit: int = 100,
        customer: str | None = None,
        since: float | None = None,
    ) -> list[EventRow]:
        with self._lock:
            found = [
                memory_desk.event_row(each, self._store)
                for each in reversed(self._store.events.values())
                if (not states or each.standing.state in states)
                and customer in (None, each.event.customer)
                and (since is None or each.event.timestamp >= since)
            ]
            return found[:limit]

    def history(self, identifier: str) -> EventHistory | None:
        with self._lock:
            return memory_desk.history(self._store, identifier)

    def set_aside(
        self,
        which: Literal["unresolved", "held"],
        *,
        limit: int = 100,
        customer: str | None = None,
        since: float | None = None,
    ) -> list[RecordRow]:
        with self._lock:
            found = [
                RecordRow(u.record, tuple((key.event_name, decimal(v)) for key, v in u.lines))
                for u in self._store.usage.values()
                if u.freeze is None
                and (u.record.customer is None if which == "unresolved" else u.record.held is not None)
                and customer in (None, u.record.customer)
                and (since is None or u.record.used_at >= since)
            ]
            return sorted(found, key=lambda row: row.record.used_at)[:limit]

    def event_sums(
        self, *, since: float, until: float, window_s: int = 3600, customer: str | None = None
    ) -> list[EventSum]:
        windows = Windows(since, until, window_s, customer)
        with self._lock:
            for e in self._store.events.values():
                windows.event(
                    e.event.customer, e.event.event_name, e.event.timestamp, e.standing.state, e.event.value
                )
        return windows.sums()

    def events_within(
        self, customer: str, event_name: str, *, since: float, until: float, limit: int = 10_000
    ) -> list[EventRow]:
        with self._lock:
            found = [
                memory_desk.event_row(e, self._store)
                for e in reversed(self._store.events.values())
                if e.pair == (customer, event_name) and since <= e.event.timestamp < until
            ]
        return sorted(found, key=lambda row: row.event.timestamp, reverse=True)[:limit]

    def meta(self, name: str) -> str | None:
        with self._ready() as store:
            return store.meta.get(name)

    def set_meta(self, name: str, value: str | None) -> None:
        with self._ready() as store:
            if value is None:
                store.meta.pop(name, None)
            else:
                store.meta[name] = value

    def take_alarms(self) -> list[Alarm]:
        with self._lock:
            taken, self._alarms = self._alarms, []
            return taken

    def view(self) -> MemoryLedger:
        return self

    @property
    def records(self) -> list[UsageRecord]:
        """What was recorded, in order, for a test to look at."""
        with self._lock:
            return [usage.record for usage in self._store.usage.values()]

    @contextmanager
    def _ready(self) -> Iterator[Store]:
        with self._lock:
            if not self._is_open:
                raise LedgerError("the memory ledger is not open")
            yield self._store

    def _paused(self) -> str | None:
        pause = self._store.pause
        return self._store.meta.get("paused") if pause is None else f"by {pause.who}: {pause.why}"

    def _in_state(self, state: State) -> list[StoredEvent]:
        return [e for e in self._store.events.values() if e.standing.state == state]

    def _doubts(self) -> list[StoredEvent]:
        return [*self._in_state("AMBIGUOUS"), *self._in_state("SENDING")]

    def _waiting(self) -> list[StoredEvent]:
        return [e for e in self._store.events.values() if e.standing.state in (*states.WAITING, "SENDING")]

    def _freeze_bucket(self, bucket: list[Stored], now: float) -> int:
        self._store.freezes += 1
        bucket.sort(key=lambda u: u.record.used_at)
        rows = [(u.record.customer or "", u.record.used_at, u.lines) for u in bucket]
        made = drafts(rows)
        for draft in made:
            event = meter_event(draft, self._new_id(), now=now)
            standing = Standing("PENDING", event.timestamp, next_attempt_at=now)
            self._store.events[event.identifier] = StoredEvent(event, draft.key, now, standing)
        for usage in bucket:
            usage.freeze = self._store.freezes
        return len(made)

    def _start(self, each: StoredEvent, now: float) -> Claim:
        doubted = each.standing.first_ambiguous_at
        each.standing = states.started(each.standing, now=now)
        each.fence += 1
        each.lease_until = now + self._lease_s
        each.attempts.append(AttemptRow(each.standing.attempts, now, None, None, None, None, None, None))
        return Claim(each.event, each.standing.attempts, each.fence, _LANE, doubted)

    def _crash(self, each: StoredEvent, now: float) -> Transition:
        step = states.crashed(each.standing, now=now)
        each.end_attempt(Outcome("ambiguous", message=step.standing.reason), now)
        return _move(each, step)

    def _step(
        self, identifiers: Sequence[str], step_of: Callable[[Standing], states.Step | None]
    ) -> list[Transition]:
        with self._ready() as store:
            found = [store.events[i] for i in identifiers if i in store.events]
            return [_move(each, step) for each in found if (step := step_of(each.standing)) is not None]

    def _tell_time(self, now: float) -> None:
        latest = None if self._is_watched else 0.0
        known, noted = clocks.Moment(now, self._boot()), self._store.clock
        lag, moment = clocks.look(noted, known, latest=latest)
        if not self._is_watched and noted is not None and clocks.passed_s(noted, known) is None:
            self._store.is_untold = self._store.is_untold or bool(self._doubts())
        self._is_watched = True
        self._store.clock = moment or noted
        if lag:
            self._store.stripe_ahead_s += lag.s
            for each in self._waiting():
                each.standing = states.clock_set_back(each.standing, by_s=lag.s, doubt_s=lag.of_doubts_s)
                each.lease_until = None if each.lease_until is None else each.lease_until - lag.s
            self._pull_back(now)
            self._alarms.append(Alarm("ledger.clock_went_back", str(lag), {"by_s": lag.s}))

    def _keep_to(self, ahead_s: float) -> None:
        fell_s = clocks.behind(ahead_s, self._store.stripe_ahead_s)
        if fell_s is None:
            return
        self._store.stripe_ahead_s = ahead_s
        doubts = [e for e in self._doubts() if fell_s > 0 and e.standing.first_ambiguous_at is not None]
        for each in doubts:
            each.standing = states.clock_set_back(each.standing, by_s=0.0, doubt_s=fell_s)
        if doubts:
            said = clocks.said_by_stripe(fell_s)
            self._alarms.append(Alarm("ledger.clock_went_back", said, {"by_s": fell_s}))

    def _pull_back(self, now: float) -> None:
        """No use lies ahead of the clock, but what Stripe answered, or may have seen, keeps its bytes."""
        for used in (*self._store.usage.values(), *self._store.progress.values()):
            if used.freeze is None and used.record.used_at > now:
                used.record = replace(used.record, used_at=now)
        second = int(now // 1)
        for each in self._in_state("PENDING"):
            unseen = all(a.outcome == "not_sent" and a.status is None for a in each.attempts)
            if unseen and each.standing.first_ambiguous_at is None and each.event.timestamp > second:
                each.event = replace(each.event, timestamp=second)
                each.standing = replace(each.standing, timestamp=second)

    def _check_lateness(self, now: float) -> None:
        waiting = self._waiting()
        late = states.lateness(
            waiting_since=min((e.frozen_at for e in waiting), default=None),
            oldest_use=min((e.event.timestamp for e in waiting), default=None),
            now=now,
        )
        for _, name in states.LATE[self._late : late]:
            self._alarms.append(Alarm(name, "usage waits to be accepted by Stripe"))
        self._late = late
        doubted = self._doubted_since()
        near = states.doubt_is_near(doubted, now)
        if near and not self._doubt_near and doubted is not None:
            self._alarms.append(Alarm(*states.NEAR_DOUBT, {"until": doubted + states.HORIZON_S}))
        self._doubt_near = near

    def _doubted_since(self) -> float | None:
        standings = [e.standing for e in self._store.events.values()]
        doubted = [s.first_ambiguous_at for s in standings if s.state in ("AMBIGUOUS", "SENDING")]
        return min((at for at in doubted if at is not None), default=None)

    def _last_trouble(self) -> str | None:
        standings = [e.standing for e in self._store.events.values()]
        tried = [
            (s.attempt_started_at, s.reason)
            for s in standings
            if s.state in ("PENDING", "AMBIGUOUS") and s.reason and s.attempt_started_at is not None
        ]
        return max(tried)[1] if tried else None

    def _change(
        self,
        what: What,
        ids: Sequence[str] | None,
        who: str,
        why: str,
        now: float,
        customer: str | None = None,
    ) -> int:
        with self._ready() as store:
            found = list(store.usage if ids is None else ids)
            changed = 0
            for start in range(0, len(found), MAX_SUBJECTS):
                some = found[start : start + MAX_SUBJECTS]
                changed += sum(r.refused is None for r in self._decide(what, some, who, why, now, customer))
            return changed

    def _decide(
        self, what: What, subjects: Sequence[str], who: str, why: str, now: float, customer: str | None = None
    ) -> list[Ruling]:
        with self._ready() as store:
            if not subjects:
                return []
            id_ = new_decision_id()
            decision = Decision(what, tuple(dict.fromkeys(subjects)), who, why, now, id_, customer)
            return memory_desk.carry_out(store, decision, self._new_id, now=now)

    def _tally(self) -> Tally:
        tally = Tally()
        for u in self._store.usage.values():
            tally.usage(UsageRow(u.record.customer, u.record.model, u.record.used_at, u.freeze, u.lines))
        for e in self._store.events.values():
            tally.event(
                e.event.customer, e.event.event_name, e.key.dimensions, e.standing.state, e.event.value
            )
        return tally


def _usage_of(entry: Entry) -> Stored:
    if not -LATEST <= entry.record.used_at <= LATEST:
        raise ValueError(f"used_at must be Unix seconds, not {entry.record.used_at!r}")
    return Stored(entry.record, tuple((key_of(line), checked(line.value)) for line in entry.lines))


def _move(each: StoredEvent, step: states.Step) -> Transition:
    before, after = each.standing.state, step.standing
    each.standing, each.lease_until = after, None
    return Transition(
        each.event.identifier, before, after.state, after.reason, step.alarm, after.next_attempt_at
    )
