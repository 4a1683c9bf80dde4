"""What a person's decision does to a meter event: a pure function of where it stands and the clock.

DEAD      ── replay ──▶ CLOSED, and a new PENDING event, linked      ── write_off ──▶ DEAD, written off
IN_DOUBT  ── arrived ──▶ ACCEPTED
          ── not arrived ──▶ CLOSED, and a new PENDING event, linked (DEAD where it is too old to be sent)
"""

from __future__ import annotations

from dataclasses import replace

from .._values import dataclass
from ..decisions import Decision
from ..protocols import State
from .states import DAY_S, EXPIRY_S, Standing
from .suspicion import COPIED

WRITTEN_OFF = "DEAD, written off"
ORACLE = "oracle"
"""Who decides by Stripe's summaries alone."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Where an event goes."""

    standing: Standing
    after: str
    """What is put on record as its new state."""
    replaced: bool = False
    """Whether a new event with the same value takes its place."""


def judge(
    decision: Decision, standing: Standing, *, written_off: bool, replaced_by: str | None, now: float
) -> Judged | str:
    """What becomes of the event, or in one sentence why nothing does."""
    if replaced_by is not None:
        return f"it was replaced by {replaced_by} already"
    wanted: State = "DEAD" if decision.what in ("replay", "write_off") else "IN_DOUBT"
    if standing.state != wanted:
        return f"it is {standing.state}, and only what is {wanted} can be {_DONE[decision.what]}"
    if decision.what == "write_off":
        return "it was written off already" if written_off else Judged(standing, WRITTEN_OFF)
    if (
        decision.what == "not_arrived"
        and decision.who == ORACLE
        and (standing.reason or "").startswith(COPIED)
    ):
        return "it is a copy, and the original may yet send it; only a person can say that nobody will"
    said = f"{decision.who}: {decision.why}"
    if decision.what == "arrived":
        return _moved(standing, "ACCEPTED", f"arrived, by the word of {said}")
    days = int((now - standing.timestamp) // DAY_S)
    if now - standing.timestamp < EXPIRY_S:
        done = "replayed" if decision.what == "replay" else "did not arrive"
        return _moved(standing, "CLOSED", f"{done}, by the word of {said}", replaced=True)
    if decision.what == "replay":
        return f"its usage is {days} days old, and Stripe takes none older than 35; it can be written off"
    # It can neither be sent again nor be said to have been billed.
    reason = f"expired: did not arrive, by the word of {said}, and Stripe takes no usage of {days} days ago"
    return _moved(standing, "DEAD", reason)


_DONE = {
    "replay": "replayed",
    "write_off": "written off",
    "arrived": "resolved",
    "not_arrived": "resolved",
}


def _moved(standing: Standing, state: State, reason: str, *, replaced: bool = False) -> Judged:
    return Judged(replace(standing, state=state, next_attempt_at=None, reason=reason), state, replaced)
