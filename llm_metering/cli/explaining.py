"""What `status` says of all that waits: what it is, why, until when, and what a person can do."""

from __future__ import annotations

from collections.abc import Iterator

from .._values import dataclass
from ..ledger import states
from ..protocols import LedgerStatus
from .screen import moment

_LATE_S = 30 * 60.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """One thing that waits."""

    about: str
    """A stable name: pause, streams, unfrozen, ambiguous, pending, in_doubt, dead, unresolved, held or
    decisions."""
    count: int
    what: str
    why: str
    until: float | None
    """When this ends by itself or changes, Unix seconds; None where nobody can tell."""
    then: str
    """What happens then, or what it waits for."""
    todo: str
    """What a person can do; "" for nothing."""

    def __str__(self) -> str:
        sentences = (f"{self.what}: {self.why}", self.then, self.todo)
        return " ".join(f"{text[0].upper()}{text[1:]}." for text in sentences if text)


def explanations(standing: LedgerStatus, now: float) -> list[Explanation]:
    """All that waits, what a person has to decide last."""
    return [
        *_pause(standing),
        *_underway(standing, now),
        *_ambiguous(standing),
        *_pending(standing, now),
        *for_a_person(standing),
    ]


def _pause(standing: LedgerStatus) -> Iterator[Explanation]:
    if standing.paused is None:
        return
    by_person = standing.paused_by is not None
    doubted = standing.doubted_since
    until = None if doubted is None else doubted + states.HORIZON_S
    then = "usage is recorded and kept"
    if until is not None:
        then += f"; by {moment(until)} what Stripe may have has to be sent again, or it falls in doubt"
    yield Explanation(
        "pause",
        1,
        "sending is paused",
        standing.paused,
        until,
        then,
        "`llm-metering resume` lifts it" if by_person else "it goes on by itself once the key is right",
    )


def _underway(standing: LedgerStatus, now: float) -> Iterator[Explanation]:
    if standing.streams_under_way:
        what = _many(standing.streams_under_way, "stream goes on", "streams go on")
        why = "they are billed when they end, or as far as they came if their process dies"
        yield Explanation("streams", standing.streams_under_way, what, why, None, "", "")
    fresh = standing.unfrozen_records - standing.unresolved_records - standing.held_records
    if fresh > 0:
        what = _many(fresh, "record is", "records are") + " in no meter event yet"
        why = "a meter event is made when its minute is over"
        oldest, waiting = standing.oldest_pending_at, standing.events
        is_late = oldest is not None and now - oldest > _LATE_S and not standing.paused
        if is_late and not (waiting.get("PENDING") or waiting.get("AMBIGUOUS")):
            why = f"nobody has made one since {moment(oldest)}"
            todo = "start the service, or send it with `llm-metering deliver --once`"
            yield Explanation("unfrozen", fresh, what, why, None, "nothing is lost", todo)
            return
        yield Explanation("unfrozen", fresh, what, why, None, "", "")


def _ambiguous(standing: LedgerStatus) -> Iterator[Explanation]:
    count = standing.events.get("AMBIGUOUS", 0)
    if not count or standing.doubted_since is None:
        return
    until = standing.doubted_since + states.HORIZON_S
    tried = f"; the latest try: {standing.last_trouble}" if standing.last_trouble else ""
    yield Explanation(
        "ambiguous",
        count,
        _many(count, "meter event", "meter events") + " may have reached Stripe",
        f"no clear answer came{tried}",
        until,
        f"the same bytes are sent again until {moment(until)}, which cannot bill twice; what is not clear by "
        "then is in doubt",
        "nothing has to be done",
    )


def _pending(standing: LedgerStatus, now: float) -> Iterator[Explanation]:
    count = standing.events.get("PENDING", 0)
    if not count:
        return
    oldest = standing.oldest_pending_at
    until = None if oldest is None else oldest + states.EXPIRY_S
    is_late = oldest is not None and now - oldest > _LATE_S and not standing.paused
    why = "sending is paused" if standing.paused else standing.last_trouble or "their turn comes"
    if is_late and not standing.last_trouble:
        why = f"none has gone out since {moment(oldest)}; Stripe does not answer, or nobody delivers"
    if standing.events.get("AMBIGUOUS", 0) and not standing.paused:
        why = "while it is not known what Stripe got, nothing new is sent, so that no more gets doubtful"
    yield Explanation(
        "pending",
        count,
        _many(count, "meter event waits", "meter events wait") + " to be sent",
        why,
        until,
        "they go out by themselves once Stripe answers"
        + (f", with the times of their use; Stripe takes the oldest until {moment(until)}" if until else ""),
        "see whether Stripe is up, and whether a service or `llm-metering deliver` runs" if is_late else "",
    )


def for_a_person(standing: LedgerStatus) -> Iterator[Explanation]:
    """What goes nowhere until somebody decides."""
    doubt = standing.events.get("IN_DOUBT", 0)
    if doubt:
        yield Explanation(
            "in_doubt",
            doubt,
            _many(doubt, "meter event is", "meter events are") + " in doubt",
            "Stripe may have it, and it is too late to send it again without a risk of billing it twice",
            None,
            "Stripe's own sums decide, some hours after it is well again, where they leave one explanation",
            "`llm-metering doubt list` shows them, `llm-metering reconcile` what Stripe has; what is left is "
            "yours: `llm-metering doubt resolve`",
        )
    dead = standing.events.get("DEAD", 0) - standing.written_off
    if dead > 0:
        yield Explanation(
            "dead",
            dead,
            _many(dead, "meter event is", "meter events are") + " dead",
            "Stripe refused it for good, or it grew too old",
            None,
            "",
            "`llm-metering dead list` says why; then `dead replay`, or `dead write-off`",
        )
    if standing.unresolved_records:
        count = standing.unresolved_records
        what, todo = (
            _many(count, "record has", "records have") + " no customer",
            "`llm-metering unresolved list`",
        )
        yield Explanation(
            "unresolved", count, what, "nobody was named when it was used", None, "", f"{todo}, `assign`"
        )
    if standing.held_records:
        count = standing.held_records
        what = _many(count, "record is", "records are") + " held"
        why = "a setting or a doubt keeps it out of billing"
        yield Explanation("held", count, what, why, None, "", "`llm-metering held list`, `held release`")
    if standing.decisions_waiting:
        count = standing.decisions_waiting
        what = _many(count, "decision is", "decisions are") + " not carried out yet"
        why = "the process that holds the events has not come to it"
        yield Explanation("decisions", count, what, why, None, "", "")


def _many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"
