"""What Stripe's summaries say of meter events: which of them were counted, if that can be told. Pure.

Stripe shows sums, never events. An event is known to have been counted, or not, only where the sums leave
exactly one explanation; everything else is left to a person.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from decimal import Context, Decimal, localcontext

from ._values import dataclass
from .protocols import EventRow, EventSum, State

COUNTED: tuple[State, ...] = ("ACCEPTED", "SETTLED")
"""States of events that Stripe should show."""
UNDER_WAY: tuple[State, ...] = ("SENDING", "AMBIGUOUS")
"""States of events that Stripe may show."""

_SURE_DIGITS = 15
"""Decimals of so many digits survive a double, and Stripe's answers may have passed through one."""
_MAX_SUMS = 4096
_MAX_STEPS = 200_000
"""Thousands of events of one size have few sums, and very many ways to each."""
_Way = tuple[int, "_Way"] | None
_EXACT = Context(prec=200)


def same(stripe: Decimal, ours: Decimal) -> bool:
    """Whether Stripe's number is ours, as far as a double can tell."""
    if stripe == ours:
        return True
    return len(ours.normalize(_EXACT).as_tuple().digits) > _SURE_DIGITS and float(stripe) == float(ours)


def total(values: Sequence[Decimal]) -> Decimal:
    """The exact sum."""
    with localcontext(_EXACT):
        return sum(values, Decimal(0))


def minus(a: Decimal, b: Decimal) -> Decimal:
    """The exact difference."""
    return _EXACT.subtract(a, b)


def explanations(
    base: Decimal, values: Sequence[Decimal], stripe: Decimal, *, at_most: int = 2
) -> list[tuple[int, ...]] | None:
    """Which of `values` (by place) must be added to `base` to come to Stripe's number.

    Returns:
        Every set of them that does, but no more than `at_most`; None where there are too many sums to tell.
    """
    if values and all(value > 0 for value in values):
        # However many they are, no other choice comes to none of them, or to all.
        whole, least = _EXACT.add(base, total(values)), min(values)
        if same(stripe, base) and not same(stripe, _EXACT.add(base, least)):
            return [()]
        if same(stripe, whole) and not same(stripe, minus(whole, least)):
            return [tuple(range(len(values)))]
    # All sums that can be reached, each with a few of the ways that lead there: the last place, and those
    # before it.
    ways: dict[Decimal, list[_Way]] = {base: [None]}
    steps = 0
    for place, value in enumerate(values):
        steps += len(ways)
        if steps > _MAX_STEPS:
            return None
        reached = {key: list(found) for key, found in ways.items()}
        for key, found in ways.items():
            into = reached.setdefault(_EXACT.add(key, value), [])
            into += [(place, way) for way in found][: at_most - len(into)]
        if len(reached) > _MAX_SUMS:
            return None
        ways = reached
    fits = [way for key, found in ways.items() if same(stripe, key) for way in found]
    return [_places(way) for way in fits[:at_most]]


def _places(way: _Way) -> tuple[int, ...]:
    found = []
    while way is not None:
        found.append(way[0])
        way = way[1]
    return tuple(reversed(found))


# What the sums of one minute, and of the day around it, say of the events inside.


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute of a customer and meter in which it is doubtful what Stripe has counted."""

    start: int
    events: Sequence[EventRow]
    """All of the ledger's, whatever their state."""
    stripe: Decimal
    """Stripe's sum, read twice with some minutes between and the same both times."""
    doubtful: frozenset[str]
    """Identifiers of the events in question."""

    @property
    def known(self) -> Decimal:
        """What is accepted and not in question."""
        sure = (e for e in self.events if e.state in COUNTED and e.event.identifier not in self.doubtful)
        return total([e.event.value for e in sure])


def is_quiet(events: Iterable[EventRow], *, before: float) -> bool:
    """Whether nothing is on its way, and Stripe has had its time to count what it accepted.

    Args:
        before: Attempts must have begun before this.
    """
    return all(
        e.state not in UNDER_WAY and not (e.state in COUNTED and (e.attempted_at or 0.0) > before)
        for e in events
    )


def judge(minute: Minute) -> dict[str, bool] | str:
    """Which of the doubtful events were counted, or why that cannot be told, in one sentence."""
    asked = [e for e in minute.events if e.event.identifier in minute.doubtful]
    ways = explanations(minute.known, [e.event.value for e in asked], minute.stripe)
    if ways is None:
        return f"{len(asked)} events of one minute are in question, which is too many to tell them apart"
    if not ways:
        return (
            f"Stripe has {minute.stripe} in that minute; {minute.known} of ours are known to be there, and "
            "no choice of the doubtful events makes up the rest"
        )
    if len(ways) > 1:
        return f"several choices of the doubtful events come to Stripe's {minute.stripe}"
    return {e.event.identifier: place in ways[0] for place, e in enumerate(asked)}


def not_counted(events: Sequence[EventRow], reported: Collection[str], stripe: Decimal) -> set[str]:
    """Which of the events that Stripe reports as refused its sum of their minute lacks for sure.

    Args:
        events: All of the ledger's events of that minute.
        reported: Identifiers.
        stripe: Stripe's sum, settled.
    """
    values = {e.event.identifier: e.event.value for e in events}
    if any(value < 0 for value in values.values()):
        return set()  # a correction could hide anything
    # Nothing that is larger than the whole is a part of it.
    gone = {i for i in reported if i in values and stripe < values[i]}
    settled = total([e.event.value for e in events if e.state == "SETTLED"])
    unsure = [e for e in events if e.state in ("ACCEPTED", "IN_DOUBT", *UNDER_WAY)]
    ways = explanations(settled, [e.event.value for e in unsure], stripe)
    if ways is not None and len(ways) == 1:
        there = {unsure[place].event.identifier for place in ways[0]}
        gone |= {i for i in reported if i in values and i not in there}
    return gone


def disagreeing_hour(
    ours: Mapping[int, EventSum],
    stripe: Mapping[int, Decimal],
    minutes: Sequence[Minute],
    *,
    unsure: Collection[int] = (),
) -> int | None:
    """An hour of the day that shows another writer, or usage that went missing; None if all is ours.

    The doubtful minutes apart, each hour must hold what the ledger holds, no more and no less.

    Args:
        ours: The ledger's sums by hour.
        stripe: Stripe's.
        minutes: The doubtful ones.
        unsure: Hours in which something is on its way or in doubt elsewhere, which prove nothing.
    """
    doubted = {hour_of(m.start) for m in minutes}
    for hour in sorted({*ours, *stripe} - (set(unsure) - doubted)):
        inside = [m for m in minutes if hour_of(m.start) == hour]
        held = ours[hour].accepted if hour in ours else Decimal(0)
        mine = minus(held, total([_accepted(m) for m in inside]))
        theirs = minus(stripe.get(hour, Decimal(0)), total([m.stripe for m in inside]))
        if not same(theirs, mine):
            return hour
    return None


def hour_of(at: int) -> int:
    return at - at % 3600


def minute_of(at: int) -> int:
    return at - at % 60


class Readings:
    """What Stripe said of each window, to tell whether it has settled: the same number twice, and some time
    between."""

    def __init__(self, apart_s: float, *, most: int = 20_000) -> None:
        self._apart_s = apart_s
        self._most = most
        self._first: dict[Hashable, tuple[Decimal, float]] = {}

    def note(self, window: Hashable, value: Decimal, *, at: float) -> bool:
        """Note a reading; whether the window has settled.

        Args:
            at: On the monotonic clock.
        """
        known = self._first.get(window)
        if known is not None and known[0] == value:
            return at - known[1] >= self._apart_s
        while len(self._first) >= self._most:
            del self._first[next(iter(self._first))]
        self._first[window] = (value, at)
        return False

    def forget(self, window: Hashable) -> None:
        """It was decided."""
        self._first.pop(window, None)


def _accepted(minute: Minute) -> Decimal:
    return total([e.event.value for e in minute.events if e.state in COUNTED])
