"""Settling what is open: the ledger's accepted and doubtful events beside Stripe's summaries, now and then.

    unsettled events ──by customer, meter and day──▶ Settler ◀──sums, error reports── Stripe
    ledger ◀── SETTLED where the sums agree; IN_DOUBT resolved where they leave one explanation; ──┘
               DEAD where an error report and the sums say that an accepted event was refused

A thread of its own, gentle with Stripe and with the ledger; delivery never waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Protocol, TypeVar

from . import _forks, oracle
from ._values import dataclass
from .errors import StripeUnavailable
from .oracle import Minute, Readings, hour_of, minute_of
from .protocols import Books, EventRow, EventSum, Ledger, Telemetry
from .reports import Reports
from .senders.error_events import ErrorEvents
from .senders.summaries import HOUR_S, MINUTE_S, Summaries

T = TypeVar("T")

SETTLE_S = 600.0
"""How long Stripe's number must stay the same before it is believed, and how old an attempt must be."""
LAG_S = 6 * 3600.0
"""How long after its last attempt an event must be missing from Stripe's sums to count as not arrived."""
DAY_S = 86_400
WHO = "oracle"
"""Whose decisions these are, on record."""


class Writing(Protocol):
    """The ledger's own thread; `ledger.writer.Writer`."""

    def run(self, fn: Callable[[Ledger], T]) -> T: ...


@dataclass(frozen=True, slots=True)
class Day:
    """What is open of one customer and meter on one UTC day."""

    customer: str
    event_name: str
    start: int
    rows: tuple[EventRow, ...]


class _Stopped(Exception):
    """Told to stop in the middle of a round."""


class Settler:
    """Looks at what is open every `every_s`, in a daemon thread.

    - ACCEPTED becomes SETTLED where Stripe's sum of the hour is the ledger's.
    - IN_DOUBT becomes ACCEPTED, or is closed and sent as a new event, where Stripe's sum of its minute
      leaves one explanation and nobody else's usage shows in the rest of the day.
    - ACCEPTED becomes DEAD where Stripe reports the event as refused and its sum of the minute lacks it.
      A meter that is gone is paused until it is back.
    - All else stays as it is: `reconcile.difference` and `oracle.undecided` tell a person, once each.

    A number of Stripe's is believed once it was the same twice, `settle_s` apart. That an event did not
    arrive is believed `lag_s` after its last attempt: sums that lag look as if it had not.

    Args:
        writer: Runs functions on the ledger's thread.
        summaries: Makes the reader of Stripe's summaries; called once a process.
        telemetry: Counts, and raises alarms.
        every_s: How often; 0 never.
    """

    def __init__(
        self,
        writer: Writing,
        summaries: Callable[[], Summaries],
        telemetry: Telemetry,
        *,
        every_s: float,
        settle_s: float = SETTLE_S,
        lag_s: float = LAG_S,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._writer = writer
        self._make_summaries = summaries
        self._telemetry = telemetry
        self._every_s = every_s
        self._settle_s = settle_s
        self._lag_s = lag_s
        self._now = now
        self._monotonic = monotonic
        self.after_fork()
        _forks.watch(self)

    def after_fork(self) -> None:
        """Forget the parent's thread, connection and readings."""
        self._summaries: Summaries | None = None
        self._readings = Readings(self._settle_s)
        self._told: dict[object, None] = {}
        self._reports = Reports(self._on_ledger, self._telemetry, self._now)
        self._since = 0
        self._waits = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop_soon = threading.Event()
        self._paused = False
        self._thread: threading.Thread | None = None
        self._stopping = False

    # Life.

    def start(self) -> None:
        """Start the thread, if there is anything for it to do. Harmless when it runs."""
        if self._every_s > 0:
            self._start()

    def hear(self, event_id: str) -> None:
        """An event of Stripe's is worth a look: an error report, brought by a webhook."""
        self._reports.hear(event_id)
        self._wake.set()
        self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            self._stopping = False
            self._stop_soon.clear()
            self._thread = threading.Thread(target=self._loop, name="llm-metering-settler", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as exc:  # no thread to be had now, or the interpreter is ending
                self._thread = None
                self._telemetry.failure("oracle.thread", exc)

    def stop(self, timeout_s: float = 1.0) -> None:
        """Begin nothing more; wait at most so long for a question to Stripe that is under way."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stopping = True
        self._stop_soon.set()
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _loop(self) -> None:
        # Whatever a process does first is not in the way of its first requests.
        self._wake.wait(min(self._every_s or _FIRST_S, _FIRST_S))
        while not self._stopping:
            self._wake.clear()
            self.step()
            self._wake.wait(self._pause_s())
            if self._wake.is_set() and not self._stopping:
                self._stop_soon.wait(_GAP_S)  # reports come in swarms

    def _pause_s(self) -> float | None:
        """Until the next round; None until a report comes."""
        every_s = self._every_s or None
        if not (self._reports.are_open or self._paused):
            return every_s
        soon_s = self._settle_s + 5.0
        return soon_s if every_s is None else min(every_s, soon_s)

    # One round.

    def step(self) -> None:
        """Take one round, without a thread if you like. Does not raise."""
        try:
            self._round()
        except _Stopped:
            return
        except StripeUnavailable as exc:
            self._telemetry.failure("oracle.stripe", exc)
            if exc.status in (401, 403):
                message = f"Stripe's summaries cannot be read with this key, so nothing is settled: {exc}"
                self._tell("refused", "reconcile.refused", message)
        except Exception as exc:
            self._telemetry.failure("oracle.round", exc)
        finally:
            if self._summaries is not None:
                self._summaries.reader.close()  # it would be too old for the next round

    def _round(self) -> None:
        self._reports.take(ErrorEvents(self._reader().reader), self._reader())
        self._look_after_paused()
        before, since = self._now() - self._settle_s, max(self._since, self._now() - _OLDEST_S)
        rows = self._on_ledger(lambda ledger: ledger.unsettled(before=before, since=since, limit=_MAX_ROWS))
        books = self._on_ledger(lambda ledger: ledger.view())
        days = _by_day(rows)
        waiting: list[int] = []
        if days:
            first, last = min(d.start for d in days), max(d.start for d in days)
            # After the rows: whatever they hold for accepted is in these sums.
            sums = _by_pair(books.event_sums(since=first, until=last + DAY_S, window_s=HOUR_S))
            for day in days[:_MAX_DAYS]:
                if self._stopping:
                    return
                ours = sums.get((day.customer, day.event_name), {})
                within = {at: s for at, s in ours.items() if day.start <= at < day.start + DAY_S}
                if not self._look_at(day, within, books, before):
                    waiting.append(day.start)
        self._move_on(rows, days, waiting)
        self._reports.close(books)

    def _move_on(self, rows: Sequence[EventRow], days: Sequence[Day], waiting: Sequence[int]) -> None:
        """Where the next round begins: with what waits for its second reading, but not for ever."""
        everything = len(rows) < _MAX_ROWS and len(days) <= _MAX_DAYS
        if everything:
            self._since, self._waits = 0, 0
        elif waiting and self._waits < 3:
            self._since, self._waits = min(waiting), self._waits + 1
        else:
            self._since, self._waits = days[min(len(days), _MAX_DAYS) - 1].start + DAY_S, 0

    def _look_at(self, day: Day, ours: Mapping[int, EventSum], books: Books, before: float) -> bool:
        """Settle what can be settled; False if another look is needed to tell."""
        stripe = self._hours(day)
        if stripe is None:
            return True
        reported = {row.event.identifier: cause for row in day.rows if (cause := self._cause(row))}
        if reported:
            # The sums of this day change with what is decided now: the rest waits for the next round.
            self._refute(day, reported, books, before)
            return False
        at = self._monotonic()
        settled = {
            hour: self._readings.note(
                (day.customer, day.event_name, hour, HOUR_S), stripe.get(hour, _ZERO), at=at
            )
            for hour in sorted({*ours, *stripe})
        }
        is_done = True
        doubted: list[int] = []
        for hour, rows in _by_hour(day.rows).items():
            values = ours[hour].values if hour in ours else {}
            if "IN_DOUBT" in values:
                doubted.append(hour)
            elif not settled.get(hour) or any(state in values for state in oracle.UNDER_WAY):
                is_done = False
            elif oracle.same(stripe.get(hour, _ZERO), ours[hour].accepted):
                self._settle(rows)
            else:
                is_done = self._differs(day, hour, ours[hour], stripe, books, before) and is_done
        return self._resolve(day, doubted, ours, stripe, books, before) and is_done

    def _hours(self, day: Day) -> Mapping[int, Decimal] | None:
        """Stripe's sums of the day by hour; None if they tell nothing."""
        reader = self._reader()
        end = min(day.start + DAY_S, hour_of(int(self._now())) + HOUR_S)
        if end <= day.start:
            return None
        try:
            if not reader.meter(day.event_name).adds_up:
                return None
            return reader.hours(day.event_name, day.customer, start=day.start, end=end)
        except StripeUnavailable as exc:
            if exc.is_unknown_customer or exc.code == "no_meter":
                return {}  # nothing is counted there
            raise

    def _settle(self, rows: Iterable[EventRow]) -> None:
        identifiers = [row.event.identifier for row in rows if row.state == "ACCEPTED"]
        for start in range(0, len(identifiers), _AT_ONCE):
            some, now = identifiers[start : start + _AT_ONCE], self._now()
            moved = self._on_ledger(lambda ledger, ids=some, at=now: ledger.settle(ids, now=at))  # type: ignore[misc]
            self._telemetry.count("oracle.settled", len(moved))

    def _differs(
        self,
        day: Day,
        hour: int,
        ours: EventSum,
        stripe: Mapping[int, Decimal],
        books: Books,
        before: float,
    ) -> bool:
        """The sums of an hour differ: tell a person, unless it is too early."""
        events = _events_of(day, hour, books)
        if not oracle.is_quiet(events, before=before):
            return False
        theirs = stripe.get(hour, _ZERO)
        self._tell(
            (day.customer, day.event_name, hour, theirs),
            "reconcile.difference",
            f"Stripe has {theirs} of {day.event_name} for {day.customer} in the hour of {hour}, and the "
            f"ledger {ours.accepted}; `llm-metering reconcile` says what could explain it",
            customer=day.customer,
            event_name=day.event_name,
            hour=hour,
            ledger=ours.accepted,
            stripe=theirs,
        )
        return True

    # Error reports.

    def _cause(self, row: EventRow) -> str | None:
        """Why Stripe says that it refused an accepted event."""
        found = self._reports.cause_of(row) if row.state == "ACCEPTED" else None
        if found is None:
            return None
        cause, is_named = found
        # What is not named, but only missing, may yet come.
        is_old = (row.attempted_at or 0.0) < self._now() - self._lag_s
        return cause if is_named or is_old else None

    def _refute(self, day: Day, reported: Mapping[str, str], books: Books, before: float) -> None:
        """Decide on events that Stripe reports as refused, minute by minute."""
        rows = [row for row in day.rows if row.event.identifier in reported]
        for start in sorted({minute_of(row.event.timestamp) for row in rows}):
            events = books.events_within(day.customer, day.event_name, since=start, until=start + MINUTE_S)
            asked = {e.event.identifier for e in events} & reported.keys()
            stripe = self._minute(day, start)
            window = (day.customer, day.event_name, start, MINUTE_S)
            if not self._readings.note(window, stripe, at=self._monotonic()):
                continue
            if not oracle.is_quiet(events, before=before):
                continue
            gone = oracle.not_counted(events, asked, stripe)
            for identifier in sorted(asked):
                if identifier in gone:
                    self._bury(identifier, reported[identifier])
                else:
                    self._contradict(identifier, reported[identifier])

    def _bury(self, identifier: str, why: str) -> None:
        now = self._now()
        moved = self._on_ledger(lambda ledger: ledger.refute(identifier, why=why, now=now))
        self._reports.leave(identifier)
        if moved is not None and moved.alarm is not None:
            message = f"meter event {identifier}: {moved.before} → {moved.after}, {moved.reason}"
            self._telemetry.alarm(moved.alarm, message, identifier=identifier, state=moved.after)

    def _contradict(self, identifier: str, why: str) -> None:
        self._reports.leave(identifier)
        self._tell(
            ("contradiction", identifier),
            "oracle.undecided",
            f"Stripe reports meter event {identifier} as refused ({why}), and its sums do not show that it "
            "is missing; it stays ACCEPTED for a person to look at",
            identifier=identifier,
        )

    def _look_after_paused(self) -> None:
        """Let go on what waits for a meter that is back."""
        paused = self._on_ledger(lambda ledger: ledger.paused_meters())
        if paused:
            meters = self._reader().meters(afresh=True)
            for name in [n for n in paused if n in meters and meters[n].active]:
                self._on_ledger(lambda ledger, n=name: ledger.pause_meter(n, why=None))  # type: ignore[misc]
                self._telemetry.alarm(
                    "stripe.meter_back",
                    f"Stripe has the meter {name!r} again; its events go on",
                    event_name=name,
                )
                del paused[name]
        self._paused = bool(paused)

    # Doubt.

    def _resolve(
        self,
        day: Day,
        hours: Sequence[int],
        ours: Mapping[int, EventSum],
        stripe: Mapping[int, Decimal],
        books: Books,
        before: float,
    ) -> bool:
        """Decide on the doubtful events of a day; False if another look is needed."""
        if not hours:
            return True
        minutes: list[Minute] = []
        for hour in hours[:_MAX_HOURS]:
            events = _events_of(day, hour, books)
            if not oracle.is_quiet(events, before=before):
                return False
            minutes += self._minutes(day, events)
        at = self._monotonic()
        settled = [self._readings.note(_key(day, m), m.stripe, at=at) for m in minutes]
        if not all(settled):
            return False
        unsure = {at for at, s in ours.items() if any(state in s.values for state in _UNSURE)}
        odd = oracle.disagreeing_hour(ours, stripe, minutes, unsure=unsure)
        if odd is not None:
            events = _events_of(day, odd, books)
            if not oracle.is_quiet(events, before=before):
                return False
            why = f"the rest of Stripe's sum in the hour of {odd} is not the ledger's"
            self._undecided(day, minutes, f"{why}: another writer, or usage that went missing")
            return True
        decided = [self._decide(day, minute) for minute in minutes]
        return all(decided)

    def _minutes(self, day: Day, events: Sequence[EventRow]) -> list[Minute]:
        """The minutes of an hour that hold doubtful events, with Stripe's sum of each."""
        found = []
        for start in sorted({minute_of(e.event.timestamp) for e in events if e.state == "IN_DOUBT"}):
            inside = [e for e in events if minute_of(e.event.timestamp) == start]
            doubtful = frozenset(e.event.identifier for e in inside if e.state == "IN_DOUBT")
            stripe = self._minute(day, start)
            found.append(Minute(start, inside, stripe, doubtful))
        return found

    def _minute(self, day: Day, start: int) -> Decimal:
        try:
            return self._reader().total(day.event_name, day.customer, start=start, end=start + MINUTE_S)
        except StripeUnavailable as exc:
            if exc.is_unknown_customer or exc.code == "no_meter":
                return _ZERO
            raise

    def _decide(self, day: Day, minute: Minute) -> bool:
        verdict = oracle.judge(minute)
        if isinstance(verdict, str):
            self._undecided(day, [minute], verdict)
            return True
        missing = [e for e in minute.events if not verdict.get(e.event.identifier, True)]
        if any((e.attempted_at or 0.0) > self._now() - self._lag_s for e in missing):
            return False  # Stripe's sums may lag; what they show is there, what they lack may yet come
        why = f"of Stripe's {minute.stripe} in the minute of {minute.start}, {minute.known} was known"
        mine = {row.event.identifier for row in day.rows}
        for identifier, arrived in verdict.items():
            if identifier in mine:
                self._carry_out(identifier, arrived, why)
        self._readings.forget(_key(day, minute))
        return True

    def _carry_out(self, identifier: str, arrived: bool, why: str) -> None:
        now = self._now()
        ruling = self._on_ledger(
            lambda ledger: ledger.resolve(identifier, arrived, who=WHO, why=why, now=now)
        )
        if ruling.refused is None:
            self._telemetry.count("oracle.arrived" if arrived else "oracle.not_arrived")

    def _undecided(self, day: Day, minutes: Iterable[Minute], why: str) -> None:
        for identifier in sorted(i for minute in minutes for i in minute.doubtful):
            message = f"meter event {identifier} stays in doubt, for a person to decide: {why}"
            self._tell((identifier, why), "oracle.undecided", message, identifier=identifier)

    # Small things.

    def _on_ledger(self, function: Callable[[Ledger], T]) -> T:
        if self._stopping:
            raise _Stopped  # the ledger may be closed by now, and must not be opened for this
        return self._writer.run(function)

    def _reader(self) -> Summaries:
        if self._summaries is None:
            self._summaries = self._make_summaries()
        return self._summaries

    def _tell(self, key: object, name: str, message: str, **data: object) -> None:
        """An alarm, once for each cause."""
        if key in self._told:
            return
        while len(self._told) >= _MAX_TOLD:
            del self._told[next(iter(self._told))]
        self._told[key] = None
        self._telemetry.alarm(name, message, **data)


_ZERO = Decimal(0)
_FIRST_S = 60.0
_GAP_S = 5.0
_OLDEST_S = 60 * 86_400.0
"""What is older is a person's: Stripe takes no usage of 35 days ago, and its invoices are final."""
_MAX_ROWS = 20_000
_MAX_AT_ONCE = 10_000
_MAX_DAYS = 500
_MAX_HOURS = 24
_MAX_TOLD = 10_000
_AT_ONCE = 200
"""Events in one visit to the ledger's thread, so that nobody waits long for it."""
_UNSURE = ("IN_DOUBT", *oracle.UNDER_WAY)


def _events_of(day: Day, hour: int, books: Books) -> Sequence[EventRow]:
    """All meter events of an hour; where they are too many to be read at once, minute by minute."""

    def within(start: int, length: int) -> Sequence[EventRow]:
        return books.events_within(
            day.customer, day.event_name, since=start, until=start + length, limit=_MAX_AT_ONCE
        )

    found = within(hour, HOUR_S)
    if len(found) < _MAX_AT_ONCE:
        return found
    return [row for start in range(hour, hour + HOUR_S, MINUTE_S) for row in within(start, MINUTE_S)]


def _key(day: Day, minute: Minute) -> tuple[object, ...]:
    return (day.customer, day.event_name, minute.start, MINUTE_S)


def _by_day(rows: Iterable[EventRow]) -> list[Day]:
    """By customer, meter and day; the oldest day first."""
    found: dict[tuple[int, str, str], list[EventRow]] = {}
    for row in rows:
        day = row.event.timestamp - row.event.timestamp % DAY_S
        found.setdefault((day, row.event.customer, row.event.event_name), []).append(row)
    return [Day(customer, name, day, tuple(some)) for (day, customer, name), some in sorted(found.items())]


def _by_hour(rows: Iterable[EventRow]) -> dict[int, list[EventRow]]:
    found: dict[int, list[EventRow]] = {}
    for row in rows:
        found.setdefault(hour_of(row.event.timestamp), []).append(row)
    return found


def _by_pair(sums: Iterable[EventSum]) -> dict[tuple[str, str], dict[int, EventSum]]:
    found: dict[tuple[str, str], dict[int, EventSum]] = {}
    for each in sums:
        found.setdefault((each.customer, each.event_name), {})[each.start] = each
    return found
