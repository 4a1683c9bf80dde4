"""What becomes of a meter event: a pure function of where it stands, what happened and the clock.

Nothing here reads a clock, a die or a database; ledgers carry out what these functions say.

    PENDING ──claim──▶ SENDING ── accepted, or "already exists" after an earlier attempt ──▶ ACCEPTED
                          ├── surely not, retryable ──▶ PENDING (AMBIGUOUS if an older attempt is in doubt)
                          ├── surely not, configuration ──▶ the same, and the sender pauses
                          ├── surely not, data ──▶ DEAD (IN_DOUBT if an older attempt is in doubt)
                          ├── "already exists" on the first attempt ──▶ IN_DOUBT
                          └── anything else, a crash too ──▶ AMBIGUOUS
    AMBIGUOUS ──claim──▶ SENDING, the same bytes ── 22 h after the first ambiguous attempt ──▶ IN_DOUBT
    PENDING ── 34 days after its usage ──▶ DEAD
    ACCEPTED ── Stripe's summaries agree ──▶ SETTLED
             ── Stripe reports it as unusable, and its summaries lack it ──▶ DEAD
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .._values import dataclass
from ..protocols import Outcome, OutcomeKind, State

MINUTE_S = 60.0
HOUR_S = 3600.0
DAY_S = 86_400.0

HORIZON_S = 22 * HOUR_S
"""How long after the first ambiguous attempt an event may be sent again. Stripe refuses a repeated
identifier for at least 24 hours; two hours are kept in hand for clocks and slow requests."""
NEAR_S = 2 * HOUR_S
"""So long before the horizon a person is told, who may be able to lift a pause, or bring the network back."""
NEAR_DOUBT = (
    "delivery.doubt_near",
    "meter events that Stripe may have will soon not be sent again any more, and then be in doubt",
)
EXPIRY_S = 34 * DAY_S
"""Stripe refuses timestamps older than 35 days."""
LEASE_S = 5 * MINUTE_S
"""How long a claim may stay unanswered before it counts as a crash."""
BACKOFF_BASE_S = 1.0
BACKOFF_CAP_S = 300.0
MAX_WAIT_S = HOUR_S
"""The longest wait that a server can ask for; a due time further off than this is a clock's mistake."""

CLOCK_GRAIN_S = 5.0
"""How exactly the clock is noted; a smaller step back is borne by the two hours kept in hand."""

RESTING: tuple[State, ...] = ("ACCEPTED", "SETTLED", "IN_DOUBT", "DEAD", "CLOSED")
"""States that no attempt leaves."""
WAITING: tuple[State, ...] = ("AMBIGUOUS", "PENDING")
"""States from which an event may be sent, those to be tried first in front."""

LATE: tuple[tuple[float, str], ...] = (
    (30 * MINUTE_S, "delivery.late_30min"),
    (HOUR_S, "delivery.late_1h"),
    (22 * HOUR_S, "delivery.late_22h"),
    (25 * DAY_S, "delivery.late_25d"),
)
"""Alarms by the age of the oldest event that waits. One hour is the grace in which Stripe still adds usage
to the invoice of a period that has ended."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one meter event stands."""

    state: State
    timestamp: float
    """The event's own time: the last use inside."""
    attempts: int = 0
    """Attempts on record, the one under way included."""
    attempt_started_at: float | None = None
    """When the latest attempt began."""
    first_ambiguous_at: float | None = None
    """When the first attempt began whose end is unknown."""
    next_attempt_at: float | None = None
    """When it is due; only while PENDING or AMBIGUOUS."""
    backoff_s: float = 0.0
    """The last wait, from which the next one is drawn."""
    reason: str | None = None
    """Of the last change, in one line."""


@dataclass(frozen=True, slots=True)
class Step:
    """Where an event goes, and the stable name of the alarm that goes with it."""

    standing: Standing
    alarm: str | None = None


def may_send(standing: Standing, *, now: float) -> bool:
    """Whether an attempt may begin: due, and not past an age that moves it elsewhere."""
    due = standing.next_attempt_at
    if standing.state not in WAITING or due is None:
        return False
    # A due time out of all reach was written under a clock that ran ahead.
    return (due <= now or due > now + MAX_WAIT_S) and aged(standing, now=now) is None


def started(standing: Standing, *, now: float) -> Standing:
    """An attempt begins."""
    s = standing  # every event comes this way, and `replace` costs twice as much
    return Standing(
        "SENDING", s.timestamp, s.attempts + 1, now, s.first_ambiguous_at, None, s.backoff_s, s.reason
    )


def ended(standing: Standing, outcome: Outcome, *, now: float, random: Callable[[], float]) -> Step:
    """An attempt ends. Only a SENDING event has one to end."""
    if standing.state != "SENDING":
        raise ValueError(f"an attempt can end only while SENDING, not {standing.state}")
    if outcome.kind == "accepted":
        return Step(_resting(standing, "ACCEPTED", None))
    reason = _reason(outcome)
    if outcome.kind == "duplicate":
        return _duplicate(standing, reason)
    if outcome.kind == "refused_data":
        return _refused(standing, reason)
    return _again(standing, outcome, reason, now=now, random=random)


def crashed(standing: Standing, *, now: float) -> Step:
    """Whoever was sending is gone: perhaps it arrived, as of the attempt's start."""
    outcome = Outcome("ambiguous", message="the sending process ended before the outcome was known")
    step = ended(standing, outcome, now=now, random=lambda: 0.0)
    if step.standing.state == "AMBIGUOUS":
        return replace(step, standing=replace(step.standing, next_attempt_at=now))
    return step


def aged(standing: Standing, *, now: float) -> Step | None:
    """What time alone does to an event; None if nothing."""
    if standing.state == "AMBIGUOUS" and _past_horizon(standing, now):
        return _doubt(standing, f"22 hours passed since the first ambiguous attempt ({standing.reason})")
    if standing.state == "PENDING" and now - standing.timestamp >= EXPIRY_S:
        last = f"; last: {standing.reason}" if standing.reason else ""
        reason = f"expired: Stripe takes no usage older than 35 days{last}"
        return Step(_resting(standing, "DEAD", reason), "delivery.expired")
    return None


def summed_up(standing: Standing) -> Step | None:
    """Stripe's summaries show what was accepted; None if this event was not."""
    return Step(_resting(standing, "SETTLED", standing.reason)) if standing.state == "ACCEPTED" else None


def refuted(standing: Standing, *, why: str) -> Step | None:
    """Stripe took it and refused it later; None if it does not count as accepted, or is settled."""
    if standing.state != "ACCEPTED":
        return None
    return Step(_resting(standing, "DEAD", f"accepted, then refused: {why}"), "delivery.dead")


def clock_set_back(standing: Standing, *, by_s: float, doubt_s: float | None = None) -> Standing:
    """The wall clock went back: what was measured on it moves along, so that no doubt grows younger.

    Args:
        doubt_s: By how much a doubt moves, where that is not the same. The attempt itself does not: how long
            ago it was also says whether Stripe has had the time to count it.
    """
    moved = replace(
        standing,
        attempt_started_at=_minus(standing.attempt_started_at, by_s),
        first_ambiguous_at=_minus(standing.first_ambiguous_at, by_s),
        next_attempt_at=_minus(standing.next_attempt_at, by_s),
    )
    if doubt_s is None or doubt_s == by_s or standing.state not in ("AMBIGUOUS", "SENDING"):
        return moved
    began = standing.first_ambiguous_at
    began = standing.attempt_started_at if began is None else began
    return replace(moved, first_ambiguous_at=_minus(began, doubt_s))


def lateness(*, waiting_since: float | None, oldest_use: float | None, now: float) -> int:
    """How many of the `LATE` alarms hold. Whole days count from the use itself, shorter times from when
    the event was made, since a bucket alone may take an hour."""
    waited = now - waiting_since if waiting_since is not None else 0.0
    age = now - oldest_use if oldest_use is not None else 0.0
    return sum((age if limit > DAY_S else waited) >= limit for limit, _ in LATE)


def doubt_is_near(doubted_since: float | None, now: float) -> bool:
    """Whether an ambiguous event will soon not be sent again any more."""
    return doubted_since is not None and now - doubted_since >= HORIZON_S - NEAR_S


def backoff(previous_s: float, random: Callable[[], float]) -> float:
    """Decorrelated jitter: between the base and three times the last wait, capped."""
    longest = max(BACKOFF_BASE_S, min(BACKOFF_CAP_S, previous_s * 3))
    return BACKOFF_BASE_S + random() * (longest - BACKOFF_BASE_S)


_ALARMS: dict[OutcomeKind, str] = {"refused_config": "delivery.paused"}


def _again(
    standing: Standing, outcome: Outcome, reason: str, *, now: float, random: Callable[[], float]
) -> Step:
    """It will be sent again, unless it is in doubt and the time for that is over."""
    if outcome.kind == "ambiguous":
        standing = _doubted(standing, now)
    wait = backoff(standing.backoff_s or BACKOFF_BASE_S, random)
    after = wait if outcome.retry_after_s is None else max(wait, min(outcome.retry_after_s, MAX_WAIT_S))
    # A refusal of this attempt says nothing of an older one that may have arrived.
    waiting: State = "PENDING" if standing.first_ambiguous_at is None else "AMBIGUOUS"
    standing = replace(standing, state=waiting, next_attempt_at=now + after, backoff_s=wait, reason=reason)
    return aged(standing, now=now) or Step(standing, _ALARMS.get(outcome.kind))


def _doubted(standing: Standing, now: float) -> Standing:
    """The attempt under way may have arrived at any time since it began."""
    began = standing.attempt_started_at if standing.attempt_started_at is not None else now
    known = standing.first_ambiguous_at
    return replace(standing, first_ambiguous_at=began if known is None else min(known, began))


def _duplicate(standing: Standing, reason: str) -> Step:
    if standing.attempts > 1:
        return Step(_resting(standing, "ACCEPTED", reason))
    # Nobody on record sent it before: a cloned disk, a restored backup, an identifier made twice.
    standing = replace(standing, first_ambiguous_at=standing.attempt_started_at)
    reason = f"the first attempt on record ({reason})"
    return Step(_resting(standing, "IN_DOUBT", reason), "delivery.duplicate_on_first_attempt")


def _refused(standing: Standing, reason: str) -> Step:
    if standing.first_ambiguous_at is not None:
        # It will never pass again, yet an older attempt may have: replaying it could bill twice.
        return _doubt(standing, f"refused after an ambiguous attempt ({reason})")
    return Step(_resting(standing, "DEAD", reason), "delivery.dead")


def _doubt(standing: Standing, reason: str) -> Step:
    return Step(_resting(standing, "IN_DOUBT", reason), "delivery.in_doubt")


def _resting(s: Standing, state: State, reason: str | None) -> Standing:
    return Standing(
        state, s.timestamp, s.attempts, s.attempt_started_at, s.first_ambiguous_at, None, s.backoff_s, reason
    )


def _past_horizon(standing: Standing, now: float) -> bool:
    return standing.first_ambiguous_at is not None and now - standing.first_ambiguous_at >= HORIZON_S


def _minus(at: float | None, by_s: float) -> float | None:
    return None if at is None else at - by_s


def _reason(outcome: Outcome) -> str:
    said = " ".join((outcome.message or outcome.code or "").split())[:500]
    head = outcome.kind if outcome.status is None else f"{outcome.kind} {outcome.status}"
    return f"{head}: {said}" if said else head
