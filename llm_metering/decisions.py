"""What a person decides about a ledger, and what is on record of it.

A *decision* says what, of which meter events or records, by whom and why. A *ruling* is what it did to one of
them. Each decision has an id and is carried out once, however often it is handed in.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, fields
from typing import Any, Literal, cast, get_args

from ._values import dataclass

What = Literal[
    "replay",  # DEAD: closed, and a new event with the same value takes its place
    "write_off",  # DEAD: stays, and nobody is reminded of it any more
    "arrived",  # IN_DOUBT: Stripe has it
    "not_arrived",  # IN_DOUBT: Stripe does not have it; a new event takes its place
    "assign",  # usage without a customer gets one
    "hold",  # usage that is not frozen yet is kept out of billing
    "release",  # held usage may be billed
    "pause",  # nothing is sent until a person says so
    "resume",
]

OF_EVENTS: tuple[What, ...] = ("replay", "write_off", "arrived", "not_arrived")
OF_RECORDS: tuple[What, ...] = ("assign", "hold", "release")
SENDING = "sending"
"""The subject of `pause` and `resume`."""

MAX_SUBJECTS = 1000
_MAX_WHO, _MAX_WHY, _MAX_NAME = 200, 2000, 1000
_LATEST = 1e11
"""Some thousand years from now, in seconds; in milliseconds it was in 1973."""
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person decided. What cannot be one raises ValueError."""

    what: What
    subjects: tuple[str, ...]
    """Identifiers of meter events, or ids of records; at most 1000."""
    who: str
    why: str
    at: float
    """When it was decided, Unix seconds."""
    id: str
    """32 hexadecimal digits; what was carried out under this id is not carried out again."""
    customer: str | None = None
    """Of `assign`: who used it."""
    before: str | None = None
    """Of `pause` and `resume`: how it stood."""

    def __post_init__(self) -> None:
        if problem := _problem(self):
            raise ValueError(f"a decision {problem}")


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a decision did to one meter event or record."""

    subject: str
    before: str | None = None
    """Its state, customer or hold before."""
    after: str | None = None
    replaced_by: str | None = None
    """The identifier of the new event that takes its place."""
    refused: str | None = None
    """Why nothing was done, in one sentence; None where it was done."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A person's word that nothing is to be sent."""

    who: str
    why: str
    at: float


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt to send a meter event, as it is on record."""

    number: int
    started_at: float
    ended_at: float | None
    outcome: str | None
    status: int | None
    code: str | None
    message: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class ActionRow:
    """One thing that a person did, as it is on record."""

    at: float
    who: str
    why: str
    what: str
    subject: str
    before: str | None
    after: str | None


def new_decision_id() -> str:
    return os.urandom(16).hex()


def decision_to_json(decision: Decision) -> str:
    return json.dumps(asdict(decision), ensure_ascii=True)


def decision_from_json(text: str) -> Decision:
    """A decision from what `decision_to_json` made; anything else is a ValueError."""
    try:
        given: Any = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"a decision is one JSON object: {exc}") from exc
    names = {f.name for f in fields(Decision)}
    if not isinstance(given, dict) or set(given) != names or not isinstance(given["subjects"], list):
        raise ValueError(f"a decision has exactly {', '.join(sorted(names))}")
    return Decision(**{**given, "subjects": tuple(given["subjects"])})


def rulings_to_json(rulings: list[Ruling]) -> str:
    return json.dumps([[getattr(r, f.name) for f in fields(Ruling)] for r in rulings])


def rulings_from_json(text: str) -> list[Ruling]:
    return [Ruling(*values) for values in json.loads(text)]


def _problem(d: Decision) -> str | None:
    if d.what not in get_args(What):
        return f"is one of {', '.join(get_args(What))}, not {d.what!r}"
    if not isinstance(d.id, str) or not _ID.fullmatch(d.id):
        return "has an id of 32 hexadecimal digits"
    if not _is_text(d.who, _MAX_WHO):
        return f"names who made it, in at most {_MAX_WHO} printable characters"
    if not _is_text(d.why, _MAX_WHY):
        return f"says why, in at most {_MAX_WHY} printable characters on one line"
    if type(d.at) not in (int, float) or not abs(d.at) <= _LATEST:
        return "has a time in Unix seconds"
    if not 0 < len(d.subjects) <= MAX_SUBJECTS or not all(_is_name(s) for s in d.subjects):
        return f"is about 1 to {MAX_SUBJECTS} events or records"
    if (d.what == "assign") != (d.customer is not None) or not _is_name(cast("Any", d.customer or "x")):
        return "names a customer if it assigns usage, and only then"
    if not _is_name(cast("Any", d.before or "x")):
        return "says in words how it stood before"
    return None


def _is_text(text: Any, longest: int) -> bool:
    return isinstance(text, str) and len(text.strip()) > 0 and len(text) <= longest and text.isprintable()


def _is_name(text: Any) -> bool:
    if not isinstance(text, str) or not 0 < len(text) <= _MAX_NAME:
        return False
    try:
        text.encode()  # a lone surrogate cannot be stored
    except UnicodeEncodeError:
        return False
    return True
