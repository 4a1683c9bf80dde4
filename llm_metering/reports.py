"""Stripe's error reports that are open: heard of, fetched, told, and kept until all they name is decided.

Which reports are done is in the ledger, so that a report is neither forgotten by a restart nor taken twice.
What they say is confirmed by Stripe's sums before anything is changed; `settling` does that.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from .errors import StripeUnavailable
from .protocols import Books, EventRow, Ledger, Telemetry
from .senders.error_events import NO_METER, ErrorEvents, ErrorReport
from .senders.summaries import Summaries

T = TypeVar("T")

HEARD, DONE = "heard", "done"
KEPT_S = 3 * 86_400.0
"""How long a report is kept open, and how far back reports are asked for."""
MAX_KNOWN = 1000
"""How many events the ledger remembers, so that none is taken twice."""
GONE = frozenset({"archived_meter", "no_meter"})
"""Codes that every event of the meter will get."""
_EARLY_S, _LATE_S = 300.0, 5.0
"""Stripe checks an event up to minutes after it took it."""


class Run(Protocol):
    """Runs a function on the ledger's thread."""

    def __call__(self, function: Callable[[Ledger], T], /) -> T: ...


def key_of(event_id: str) -> str:
    return f"stripe_event.{event_id}"


def note(ledger: Ledger, event_id: str, state: str) -> bool:
    """Note in the ledger that an event was heard of, or is done; False if that was known already."""
    if ledger.meta(key_of(event_id)) in (state, DONE):
        return False
    known = [i for i in json.loads(ledger.meta("stripe_events") or "[]") if i != event_id]
    too_many = max(len(known) + 1 - MAX_KNOWN, 0)
    for old in known[:too_many]:
        ledger.set_meta(key_of(old), None)
    ledger.set_meta("stripe_events", json.dumps([*known[too_many:], event_id]))
    ledger.set_meta(key_of(event_id), state)
    return True


@dataclass(slots=True)
class _Open:
    report: ErrorReport
    since: float
    scopes: list[tuple[str, str, str]] = field(default_factory=list)
    """Customer, event name and cause of what else the report counts and does not name."""


class Reports:
    """The open reports of one process. `hear` may be called by any thread, the rest by one."""

    def __init__(self, run: Run, telemetry: Telemetry, now: Callable[[], float]) -> None:
        self._run = run
        self._telemetry = telemetry
        self._now = now
        self._heard: deque[str] = deque(maxlen=MAX_KNOWN)
        self._open: dict[str, _Open] = {}
        self._left: set[str] = set()

    @property
    def are_open(self) -> bool:
        return bool(self._open or self._heard)

    def hear(self, event_id: str) -> None:
        """A webhook brought this one."""
        self._heard.append(event_id)

    def take(self, events: ErrorEvents, summaries: Summaries) -> None:
        """Fetch what was heard of, and what may have been missed; tell of it, and pause what must be."""
        wanted = dict.fromkeys(self._heard)
        try:
            wanted.update(dict.fromkeys(events.since(self._now() - KEPT_S)))
        except StripeUnavailable as exc:
            self._telemetry.failure("reports.list", exc)  # the key need not have the right to
        for event_id in wanted:
            if event_id not in self._open and self._run(_is_open(event_id)):
                self._take(event_id, events, summaries)
            if event_id in self._heard:
                self._heard.remove(event_id)

    def cause_of(self, row: EventRow) -> tuple[str, bool] | None:
        """Why Stripe refused an event, and whether it named it; None if no report is about it."""
        if row.event.identifier in self._left:
            return None
        for each in self._open.values():
            for error in each.report.errors:
                if row.event.identifier in error.identifiers:
                    return f"{error.code}: {error.message}", True
            for customer, event_name, cause in each.scopes:
                if (customer, event_name) == (row.event.customer, row.event.event_name) and _within(
                    each.report, row
                ):
                    return cause, False
        return None

    def leave(self, identifier: str) -> None:
        """It was looked at, and what the report says of it was not confirmed."""
        self._left.add(identifier)

    def close(self, books: Books) -> None:
        """Let go of the reports of which nothing is left to decide."""
        for event_id, each in list(self._open.items()):
            named = {i for error in each.report.errors for i in error.identifiers} - self._left
            pending = any((h := books.history(i)) is not None and h.row.state == "ACCEPTED" for i in named)
            waits = pending or bool(each.scopes)
            if not waits or self._now() - each.since > KEPT_S:
                self._run(lambda ledger, i=event_id: note(ledger, i, DONE))  # type: ignore[misc]
                del self._open[event_id]
        if not self._open:
            self._left.clear()

    def _take(self, event_id: str, events: ErrorEvents, summaries: Summaries) -> None:
        try:
            report = events.fetch(event_id)
        except StripeUnavailable as exc:
            if exc.code == "not_a_report" or exc.status == 404:
                self._run(lambda ledger: note(ledger, event_id, DONE))
                return
            raise
        self._open[event_id] = each = _Open(report, self._now())
        books = self._run(lambda ledger: ledger.view())
        names = self._names(report, books, summaries, each)
        self._tell(report, names)
        if any(error.code in GONE for error in report.errors) or report.type == NO_METER:
            for name in names:
                why = f"Stripe has no active meter of this name ({report.summary})"
                self._run(lambda ledger, n=name, w=why: ledger.pause_meter(n, why=w))  # type: ignore[misc]

    def _names(self, report: ErrorReport, books: Books, summaries: Summaries, each: _Open) -> list[str]:
        """The event names that a report is about; on the way, what else it may be about."""
        names = {m.event_name for m in summaries.meters(afresh=True).values() if m.id == report.meter_id}
        for error in report.errors:
            rows = [h.row for i in error.identifiers if (h := books.history(i)) is not None]
            names |= {row.event.event_name for row in rows}
            if error.count > len(error.identifiers):
                cause = f"{error.code}: {error.message}"
                pairs = {(row.event.customer, row.event.event_name) for row in rows}
                each.scopes += [(*pair, cause) for pair in sorted(pairs)]
        return sorted(names)

    def _tell(self, report: ErrorReport, names: list[str]) -> None:
        name = "stripe.no_meter" if report.type == NO_METER else "stripe.error_report"
        causes = "; ".join(f"{e.count} × {e.code} ({e.message})" for e in report.errors)
        about = f"meter {', '.join(names)}" if names else "events of no meter of ours"
        self._telemetry.alarm(
            name,
            f"Stripe refused events that it had accepted, of {about}: {causes or report.summary}",
            event_id=report.id,
            event_names=", ".join(names),
            count=report.count,
        )


def _is_open(event_id: str) -> Callable[[Ledger], bool]:
    return lambda ledger: ledger.meta(key_of(event_id)) != DONE


def _within(report: ErrorReport, row: EventRow) -> bool:
    if report.started_at is None or report.ended_at is None or row.attempted_at is None:
        return False
    return report.started_at - _EARLY_S <= row.attempted_at <= report.ended_at + _LATE_S
