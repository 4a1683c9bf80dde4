"""What a ledger in memory holds, and what a person's decisions do to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..decisions import OF_EVENTS, OF_RECORDS, ActionRow, AttemptRow, Decision, Pause, Ruling
from ..protocols import EventHistory, EventRow, Outcome
from ..usage import MeterEvent, UsageRecord
from .clocks import Moment
from .judging import judge
from .lines import LineKey, Value
from .rulings import refuse_record
from .states import Standing

LANE = "memory"


@dataclass(slots=True)
class Stored:
    """A record."""

    record: UsageRecord
    lines: tuple[tuple[LineKey, Value], ...]
    freeze: int | None = None

    @property
    def billable(self) -> bool:
        return self.freeze is None and self.record.held is None and self.record.customer is not None


@dataclass(slots=True)
class StoredEvent:
    """A meter event."""

    event: MeterEvent
    key: LineKey
    frozen_at: float
    standing: Standing
    fence: int = 0
    lease_until: float | None = None
    replaces: str | None = None
    replaced_by: str | None = None
    attempts: list[AttemptRow] = field(default_factory=list)

    @property
    def pair(self) -> tuple[str, str]:
        return self.event.customer, self.event.event_name

    def end_attempt(self, o: Outcome, now: float) -> None:
        begun = self.attempts.pop()
        said = (o.status, o.code, o.message, o.request_id)
        self.attempts.append(AttemptRow(begun.number, begun.started_at, now, o.kind, *said))


@dataclass(slots=True)
class Store:
    """What survives `close`, so that a test can open it again as after a crash."""

    usage: dict[str, Stored] = field(default_factory=dict)
    progress: dict[str, Stored] = field(default_factory=dict)
    events: dict[str, StoredEvent] = field(default_factory=dict)
    actions: list[ActionRow] = field(default_factory=list)
    written_off: set[str] = field(default_factory=set)
    meta: dict[str, str] = field(default_factory=dict)
    pause: Pause | None = None
    account: str | None = None
    freezes: int = 0
    clock: Moment | None = None
    stripe_ahead_s: float = 0.0
    is_untold: bool = False
    """Whether doubts began before a moment in which nobody can tell whether the clock went on."""


def carry_out(store: Store, decision: Decision, new_id: Callable[[], str], *, now: float) -> list[Ruling]:
    """Do what a person decided; what it did to each subject."""
    if decision.what in OF_EVENTS:
        return [_rule_event(store, decision, subject, new_id, now) for subject in decision.subjects]
    if decision.what in OF_RECORDS:
        return [_rule_record(store, decision, subject, now) for subject in decision.subjects]
    before = "sending" if store.pause is None else "paused"
    store.pause = Pause(decision.who, decision.why, decision.at) if decision.what == "pause" else None
    after = "sending" if store.pause is None else "paused"
    (subject,) = decision.subjects
    _note(store, decision, subject, before, after, now)
    return [Ruling(subject, before, after)]


def event_row(each: StoredEvent, store: Store) -> EventRow:
    s = each.standing
    return EventRow(
        each.event,
        s.state,
        s.attempts,
        s.first_ambiguous_at,
        s.next_attempt_at,
        s.reason,
        LANE,
        written_off=s.state == "DEAD" and each.event.identifier in store.written_off,
        attempted_at=s.attempt_started_at,
    )


def history(store: Store, identifier: str) -> EventHistory | None:
    each = store.events.get(identifier)
    if each is None:
        return None
    actions = tuple(action for action in store.actions if action.subject == identifier)
    row = event_row(each, store)
    return EventHistory(row, each.frozen_at, each.replaces, each.replaced_by, tuple(each.attempts), actions)


def _rule_event(
    store: Store, decision: Decision, identifier: str, new_id: Callable[[], str], now: float
) -> Ruling:
    each = store.events.get(identifier)
    if each is None:
        return Ruling(identifier, refused="no meter event has this identifier")
    before = each.standing.state
    written_off = identifier in store.written_off
    judged = judge(decision, each.standing, written_off=written_off, replaced_by=each.replaced_by, now=now)
    if isinstance(judged, str):
        return Ruling(identifier, before, before, refused=judged)
    each.standing = judged.standing
    if decision.what == "write_off":
        store.written_off.add(identifier)
    if judged.replaced:
        child = replace(each.event, identifier=new_id())
        standing = Standing("PENDING", child.timestamp, next_attempt_at=now)
        store.events[child.identifier] = StoredEvent(child, each.key, now, standing, replaces=identifier)
        each.replaced_by = child.identifier
    _note(store, decision, identifier, before, judged.after, now)
    return Ruling(identifier, before, judged.after, each.replaced_by)


def _rule_record(store: Store, decision: Decision, id_: str, now: float) -> Ruling:
    stored = store.usage.get(id_)
    if stored is None:
        return Ruling(id_, refused="no record has this id")
    record = stored.record
    before = record.customer if decision.what == "assign" else record.held
    frozen = stored.freeze is not None
    if refused := refuse_record(decision, record.customer, record.held, frozen=frozen):
        return Ruling(id_, before, before, refused=refused)
    if decision.what == "assign":
        stored.record, after = replace(record, customer=decision.customer), decision.customer
    else:
        after = decision.why if decision.what == "hold" else None
        stored.record = replace(record, held=after)
    _note(store, decision, id_, before, after, now)
    return Ruling(id_, before, after)


def _note(store: Store, d: Decision, subject: str, before: str | None, after: str | None, now: float) -> None:
    store.actions.append(ActionRow(now, d.who, d.why, d.what, subject, before, after))
