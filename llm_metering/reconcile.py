"""The ledger beside Stripe's own sums: by customer, meter and hour, what differs and what could explain it.

Nothing is corrected here. What can be told for sure is settled by the background task (`settling`); what
cannot is a person's to decide.

    books ──sums by hour──▶ compare ◀──sums by hour── Stripe's summaries
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from . import oracle
from .errors import StripeUnavailable
from .oracle import COUNTED, UNDER_WAY
from .protocols import Books, EventRow, EventSum
from .senders.summaries import HOUR_S, Summaries

LAG_S = 900.0
"""Stripe shows what it has accepted after a while (54 s were measured); for so long a shortage is no news."""

Pair = tuple[str, str]
"""A customer and an event name."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One customer, meter and hour in which Stripe's sum is not the ledger's."""

    customer: str
    event_name: str
    start: int
    """Of the hour, Unix seconds."""
    ledger: Decimal
    """What Stripe has accepted, as the ledger has it."""
    stripe: Decimal
    verdict: Literal["differs", "early"]
    """early: what is on its way, or was accepted lately, may account for it."""
    note: str
    """What it means, in one sentence."""
    events: tuple[EventRow, ...] = ()
    """Meter events that explain it exactly, if any do."""

    @property
    def by(self) -> Decimal:
        """How much more Stripe has than the ledger."""
        return oracle.minus(self.stripe, self.ledger)


@dataclass(frozen=True, slots=True)
class Skipped:
    """What could not be compared, and why."""

    customer: str
    event_name: str
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """The ledger beside Stripe's summaries."""

    since: int
    until: int
    hours: int
    """Hours of customers and meters that were compared."""
    ledger: Decimal
    stripe: Decimal
    differences: tuple[Difference, ...]
    skipped: tuple[Skipped, ...]

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs; what is too early to tell, or cannot be compared, is no difference."""
        return all(d.verdict == "early" for d in self.differences)


def reconcile(
    books: Books,
    summaries: Summaries,
    *,
    since: float,
    until: float,
    customer: str | None = None,
    now: float | None = None,
    lag_s: float = LAG_S,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Compare the ledger with what Stripe has counted. Corrects nothing.

        report = reconcile(SqliteLedger.read_only(".llm_metering"), summaries, since=..., until=...)

    Args:
        books: The ledger, or a reader of it.
        summaries: Stripe's side.
        since: From the hour that holds this moment, Unix seconds.
        until: To the end of the hour that holds the last moment before this.
        customer: Only this one.
        now: The time; default `until`.
        lag_s: How long Stripe may take to show what it has accepted.
        progress: Called with how many pairs of customer and meter are done, and of how many.

    Raises:
        StripeUnavailable: Stripe cannot be asked.
        LedgerError: The ledger cannot be read.
    """
    start, end = int(since // HOUR_S) * HOUR_S, -int(-until // HOUR_S) * HOUR_S
    if start >= end:
        raise ValueError(f"since must lie before until, not {since} and {until}")
    by_pair = _by_pair(books.event_sums(since=start, until=end, window_s=HOUR_S, customer=customer))
    fresh_at = (until if now is None else now) - lag_s
    differences: list[Difference] = []
    skipped: list[Skipped] = []
    ours: list[Decimal] = []
    theirs: list[Decimal] = []
    hours = 0
    for done, (pair, sums) in enumerate(sorted(by_pair.items())):
        if progress is not None:
            progress(done, len(by_pair))
        found, missing = _stripes_hours(summaries, pair, start, end)
        if found is None:
            skipped.append(Skipped(*pair, missing or ""))
            continue
        hours += len({*found, *sums})
        ours += [s.accepted for s in sums.values()]
        theirs += found.values()
        for at in _differing(sums, found):
            ledger = sums[at].accepted if at in sums else Decimal(0)
            events = books.events_within(*pair, since=at, until=at + HOUR_S)
            differences.append(
                explained(*pair, at, ledger, found.get(at, Decimal(0)), events, fresh_at, missing=missing)
            )
    if progress is not None:
        progress(len(by_pair), len(by_pair))
    return Report(
        start, end, hours, oracle.total(ours), oracle.total(theirs), tuple(differences), tuple(skipped)
    )


def explained(
    customer: str,
    event_name: str,
    start: int,
    ledger: Decimal,
    stripe: Decimal,
    events: Sequence[EventRow],
    fresh_at: float,
    *,
    missing: str | None = None,
) -> Difference:
    """What a difference in one hour may come from. Pure.

    Args:
        events: The hour's meter events.
        fresh_at: What was accepted after this moment Stripe may not show yet.
        missing: What Stripe does not have at all, in one sentence.
    """
    fresh = [e for e in events if e.state in COUNTED and (e.attempted_at or 0.0) > fresh_at]
    under_way = [e for e in events if e.state in UNDER_WAY]
    low = oracle.minus(ledger, oracle.total(_values(fresh)))
    high = oracle.total([ledger, *_values(under_way)])

    def difference(
        verdict: Literal["differs", "early"], note: str, events: Iterable[EventRow] = ()
    ) -> Difference:
        return Difference(customer, event_name, start, ledger, stripe, verdict, note, tuple(events))

    if missing is not None:
        return difference("differs", missing)
    if low <= stripe <= high and (fresh or under_way):
        return difference("early", "some events are on their way, or were accepted just now: ask again later")
    more = stripe > ledger
    suspects = [e for e in events if e.state in (_UNCOUNTED if more else COUNTED)]
    values = [v if more else -v for v in _values(suspects)]
    ways = oracle.explanations(ledger, values, stripe)
    if ways is None or not ways:
        return difference("differs", _UNEXPLAINED[more])
    chosen = [suspects[place] for place in ways[0]]
    note = _EXPLAINED[more] if len(ways) == 1 else "several sets of events would explain it; this is one"
    return difference("differs", note, chosen)


_UNCOUNTED = ("IN_DOUBT", "DEAD", "CLOSED", *UNDER_WAY)
_EXPLAINED = {
    True: "Stripe has counted these events, which the ledger does not hold for accepted",
    False: "Stripe has not counted these events, which it had accepted",
}
_UNEXPLAINED = {
    True: "no events of this ledger come to that much: someone else sends usage to this meter",
    False: "no events of this ledger come to that much: usage was cancelled, corrected or not counted",
}


def _by_pair(sums: Iterable[EventSum]) -> dict[Pair, dict[int, EventSum]]:
    found: dict[Pair, dict[int, EventSum]] = {}
    for each in sums:
        found.setdefault((each.customer, each.event_name), {})[each.start] = each
    return found


def _stripes_hours(
    summaries: Summaries, pair: Pair, start: int, end: int
) -> tuple[Mapping[int, Decimal] | None, str | None]:
    """Stripe's sums by hour, None if they cannot be compared; and what is missing, in one sentence."""
    customer, event_name = pair
    try:
        if not summaries.meter(event_name).adds_up:
            return None, "this meter keeps last values, which cannot be compared hour by hour"
        return summaries.hours(event_name, customer, start=start, end=end), None
    except StripeUnavailable as exc:
        if exc.is_unknown_customer:
            return {}, "Stripe has no such customer, and bills none of this"
        if exc.code == "no_meter":
            return {}, "Stripe has no meter of this name, and bills none of this"
        raise


def _differing(sums: Mapping[int, EventSum], found: Mapping[int, Decimal]) -> list[int]:
    zero = Decimal(0)
    return [
        at
        for at in sorted({*sums, *found})
        if not oracle.same(found.get(at, zero), sums[at].accepted if at in sums else zero)
    ]


def _values(events: Iterable[EventRow]) -> list[Decimal]:
    return [row.event.value for row in events]
