"""The two seams, Ledger and Sender, and the small types that cross them. No I/O here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from decimal import Context, Decimal, localcontext
from typing import Any, Literal, Protocol

from ._values import dataclass
from .decisions import ActionRow, AttemptRow, Pause, Ruling
from .usage import NOTHING, Line, MeterEvent, UsageRecord

State = Literal["PENDING", "SENDING", "AMBIGUOUS", "ACCEPTED", "SETTLED", "IN_DOUBT", "DEAD", "CLOSED"]
"""Where a meter event stands. CLOSED was shown not to have arrived and was replaced by a new event."""

OutcomeKind = Literal[
    "accepted",  # 2xx
    "duplicate",  # 400 "An event already exists with identifier …"
    "not_sent",  # surely not, retryable: never connected, 409 clash
    "throttled",  # surely not, retryable, slow down: 429
    "refused_config",  # surely not: 401, 403, wrong mode; nothing else will pass either
    "refused_data",  # surely not: any other 400 or 404; this event will never pass
    "ambiguous",  # perhaps: 5xx, time-out or reset after the first byte, crash
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one attempt to send."""

    kind: OutcomeKind
    status: int | None = None
    """HTTP status, None where no answer came."""
    code: str | None = None
    message: str | None = None
    """What Stripe or the network said, in one line without secrets."""
    request_id: str | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class ServerTime:
    """Stripe's clock, as an answer of its own told it."""

    now: float
    """What it shows at this moment, Unix seconds."""
    heard_at: float
    """When the answer came, on the monotonic clock: tells one from another."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record with what it adds to each meter, ready to be committed."""

    record: UsageRecord
    lines: tuple[Line, ...]
    """Empty for a held record whose counts are unknown."""
    closes: str | None = None
    """The id of the progress row that this record replaces, in the same transaction."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A stream under way: the entry that is to be billed, as it stands, should this process die now.

    Keyed by `entry.record.id`; a later one replaces an earlier one.
    """

    entry: Entry


@dataclass(frozen=True, slots=True)
class Claim:
    """A meter event that is about to be sent, its attempt row already committed."""

    event: MeterEvent
    attempt: int
    """1 for the first attempt on record."""
    fence: int
    """The lease's number; a write under an older fence changes nothing."""
    lane: str = ""
    """Which part of the ledger holds it; opaque to everyone else."""
    first_ambiguous_at: float | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """What an outcome did to a meter event."""

    identifier: str
    before: State
    after: State
    reason: str | None = None
    alarm: str | None = None
    """The stable name of the alarm to raise, if any."""
    next_attempt_at: float | None = None


@dataclass(frozen=True, slots=True)
class Balance:
    """The books of one customer, meter and set of dimensions.

    `conserved` holds where recorded = accepted + pending + in_doubt + dead.
    """

    customer: str | None
    """None: unresolved usage, which is recorded and pending."""
    event_name: str
    dimensions: tuple[tuple[str, str], ...]
    recorded: Decimal
    pending: Decimal
    """Not frozen yet, PENDING, SENDING and AMBIGUOUS."""
    accepted: Decimal
    """ACCEPTED and SETTLED."""
    in_doubt: Decimal
    dead: Decimal

    @property
    def conserved(self) -> bool:
        # Decimal's `+` rounds to 28 digits; sums of counts near 2**63 with 12 places have more.
        with localcontext(Context(prec=200)):
            return self.recorded == self.accepted + self.pending + self.in_doubt + self.dead


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """A ledger at a glance. Counts are of meter events unless named otherwise."""

    usage_records: int
    unfrozen_records: int
    """Committed, not yet part of a meter event."""
    unresolved_records: int
    """Without a customer."""
    held_records: int
    """Kept out of billing, with a reason."""
    streams_under_way: int
    events: Mapping[State, int]
    oldest_pending_at: float | None
    """`used_at` of the oldest usage that Stripe has not accepted, Unix seconds."""
    conserved: bool
    account: str | None
    """The Stripe account and mode this ledger is bound to, such as "acct_1 (test)"."""
    lanes: int
    paused: str | None = None
    """Why sending is paused, None if it is not."""
    paused_by: Pause | None = None
    """The person who paused it, if one did."""
    written_off: int = 0
    """How many of the DEAD a person has written off."""
    decisions_waiting: int = 0
    """Of people, not carried out yet."""
    disk_free_bytes: int | None = None
    """Where the ledger is; None where it is on no disk."""
    doubted_since: float | None = None
    """When the first ambiguous attempt was of those that are sent again; they are not 22 hours later."""
    last_trouble: str | None = None
    """What the latest attempt of those that wait ended with."""
    archived_records: int = 0
    """Moved out of the tables that are at work, and not among the others; so are the events."""
    archived_events: int = 0


@dataclass(frozen=True, slots=True)
class UsageSum:
    """Usage added up for a report."""

    customer: str | None
    model: str | None
    event_name: str
    dimensions: tuple[tuple[str, str], ...]
    value: Decimal


@dataclass(frozen=True, slots=True)
class EventRow:
    """A meter event as the ledger holds it."""

    event: MeterEvent
    state: State
    attempts: int
    first_ambiguous_at: float | None
    next_attempt_at: float | None
    reason: str | None
    """Of the last outcome, in one line."""
    lane: str = ""
    written_off: bool = False
    attempted_at: float | None = None
    """When the latest attempt began."""


@dataclass(frozen=True, slots=True)
class EventSum:
    """The meter events of one customer and meter within one window of time, added up by state."""

    customer: str
    event_name: str
    start: int
    """Of the window, Unix seconds; what counts is an event's timestamp."""
    values: Mapping[State, Decimal]

    @property
    def accepted(self) -> Decimal:
        """What Stripe has accepted: ACCEPTED and SETTLED."""
        with localcontext(Context(prec=200)):
            return self.values.get("ACCEPTED", Decimal(0)) + self.values.get("SETTLED", Decimal(0))


@dataclass(frozen=True, slots=True)
class EventHistory:
    """All that is on record of one meter event."""

    row: EventRow
    frozen_at: float
    replaces: str | None
    """The event whose place it took."""
    replaced_by: str | None
    attempts: tuple[AttemptRow, ...]
    actions: tuple[ActionRow, ...]


@dataclass(frozen=True, slots=True)
class RecordRow:
    """A record that is set aside: held, or without a customer."""

    record: UsageRecord
    values: tuple[tuple[str, Decimal], ...]
    """What it adds to each meter."""
    recorded_at: float | None = None
    lane: str = ""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that a person should know. `name` is stable, such as "delivery.paused"."""

    name: str
    message: str
    data: Mapping[str, Any] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast all who deliver from a shared ledger may send, since Stripe told one of them to slow down."""

    per_s: float
    """Requests a second of all of them when it was cut; it grows from there."""
    cut_at: float
    not_before: float
    """Nothing is to be sent before then."""
    share: float
    """Of the process that asks, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """The few facts of a ledger that can be read at any moment for little."""

    oldest_pending_at: float | None = None
    """`used_at` of the oldest usage that Stripe has not accepted, Unix seconds."""
    paused: str | None = None
    """Why sending is paused, None if it is not."""
    disk_free_bytes: int | None = None
    is_full: bool = False
    """Whether the ledger takes no more usage until there is room again. Only who writes to it can tell."""
    read_only: bool = False
    """Whether the disk takes no writes, as one that its system made read-only after an error."""


class Books(Protocol):
    """What can be read of a ledger, by the one who writes it or beside them."""

    def balances(self) -> list[Balance]: ...

    def status(self, *, now: float) -> LedgerStatus: ...

    def usage_sums(self) -> list[UsageSum]: ...

    def pulse(self) -> Pulse:
        """A few facts, for a probe that comes every second; `status` reads all usage."""

    def events(
        self,
        *,
        states: Sequence[State] = (),
        limit: int = 100,
        customer: str | None = None,
        since: float | None = None,
    ) -> list[EventRow]:
        """Meter events, the newest first; of usage since a time, if one is given."""

    def event_sums(
        self, *, since: float, until: float, window_s: int = 3600, customer: str | None = None
    ) -> list[EventSum]:
        """Meter events with a timestamp from `since` to before `until`, added up by customer, meter and
        window."""

    def events_within(
        self, customer: str, event_name: str, *, since: float, until: float, limit: int = 10_000
    ) -> list[EventRow]:
        """The meter events of a customer and meter with a timestamp from `since` to before `until`, the
        newest first."""

    def meta(self, name: str) -> str | None:
        """A small fact kept beside the usage: "paused" (why), "key_hints" (keys known to be ours). A reader
        finds it whichever process noted it; a ledger that is written to knows its own."""

    def history(self, identifier: str) -> EventHistory | None:
        """All that is on record of one meter event, None if it is not here."""

    def set_aside(
        self,
        which: Literal["unresolved", "held"],
        *,
        limit: int = 100,
        customer: str | None = None,
        since: float | None = None,
    ) -> list[RecordRow]:
        """Records that are not frozen because they have no customer or are held, the oldest first."""


class Ledger(Books, Protocol):
    """Holds usage, freezes it into meter events, remembers what became of each.

    Every method is one transaction and is called from one thread (the writer's), which owns the
    connection. Times are Unix seconds and are always passed in. `LedgerError` is raised where the store
    fails; then nothing of that call has happened.
    """

    def open(self, *, now: float) -> None:
        """Open or create the store, take a lane, adopt what dead processes left, and turn what they
        were sending into AMBIGUOUS and their progress rows into usage."""

    def close(self) -> None: ...

    def bind(self, account: str) -> None:
        """Tie the ledger to one Stripe account and mode; raise `AccountMismatch` if tied to another."""

    def account(self) -> str | None:
        """The account and mode that it is tied to; cheaper than `status`, which reads all usage."""

    def commit(
        self, entries: Sequence[Entry], progress: Sequence[Progress], *, drops: Sequence[str] = (), now: float
    ) -> int:
        """Commit records and progress durably in one transaction; return how many records were new.
        A record whose id is known already changes nothing. Progress rows named in `drops` are forgotten."""

    def freeze(self, *, now: float, bucket_s: int, everything: bool = False) -> int:
        """Turn usage of closed buckets (or all of it) into PENDING meter events; return how many."""

    def claim(self, *, now: float, limit: int, ambiguous_only: bool = False) -> list[Claim]:
        """Take up to `limit` due events, at most one for each customer and meter, none of a customer
        and meter that is being sent; commit their SENDING state, fence and attempt row."""

    def finish(self, claim: Claim, outcome: Outcome, *, now: float) -> Transition | None:
        """Commit what became of an attempt. None if the fence is no longer ours."""

    def finish_many(self, results: Sequence[tuple[Claim, Outcome]], *, now: float) -> list[Transition | None]:
        """`finish` for several attempts in one transaction, for the price of one."""

    def finish_and_claim(
        self,
        results: Sequence[tuple[Claim, Outcome]],
        *,
        now: float,
        limit: int,
        ambiguous_only: bool = False,
    ) -> tuple[list[Transition | None], list[Claim]]:
        """`finish_many`, then `claim`, in one transaction where the store can. If it raises, nothing of it
        has happened."""

    def maintain(self, *, now: float) -> list[Transition]:
        """Let time pass: adopt lanes of dead processes, expire leases, move states by age."""

    def hand_over(self, *, now: float, bucket_s: int, everything: bool = False) -> bool:
        """Where another process delivers: let it have usage of closed buckets (or all of it) and events that
        wait; whether there were any. Recording goes on. False where the store is shared anyway."""

    def slow_down(self, per_s: float, *, wait_s: float, now: float) -> None:
        """Stripe refused for the rate: let all who deliver from this store send at most `per_s` requests a
        second, and none for `wait_s`. Nothing where nobody else does."""

    def pace(self) -> Pace | None:
        """The bound that holds for all of them, and our share, as the last claim has read it; None where
        nobody else delivers."""

    def due_at(self) -> float | None:
        """When the next event is due to be sent, None if nothing waits. It may lie in the past while
        another event of the same customer and meter is being sent."""

    def assign(
        self, customer: str, *, ids: Sequence[str] | None = None, who: str, why: str, now: float
    ) -> int:
        """Name the customer of unresolved usage (of all of it without `ids`); return how many records
        changed. Usage that has a customer is never moved."""

    def hold(self, ids: Sequence[str], *, who: str, why: str, now: float) -> int:
        """Keep records that are not frozen yet out of billing; return how many."""

    def release(self, ids: Sequence[str], *, who: str, why: str, now: float) -> int:
        """Let held records be billed; return how many."""

    def replay(self, identifiers: Sequence[str], *, who: str, why: str, now: float) -> list[Ruling]:
        """Close DEAD events and make for each a new one of the same value and time, linked to it. An event
        is replaced once, however often and by how many this is called."""

    def write_off(self, identifiers: Sequence[str], *, who: str, why: str, now: float) -> list[Ruling]:
        """Note that DEAD events are given up; they stay DEAD and in the books."""

    def resolve(self, identifier: str, arrived: bool, *, who: str, why: str, now: float) -> Ruling:
        """Settle an event IN_DOUBT: ACCEPTED if it arrived, else closed and a new one in its place."""

    def unsettled(self, *, before: float, since: float = 0.0, limit: int = 10_000) -> list[EventRow]:
        """Events ACCEPTED or IN_DOUBT that this process may move and whose latest attempt began before a
        time; those with a timestamp from `since` on, the oldest first."""

    def settle(self, identifiers: Sequence[str], *, now: float) -> list[Transition]:
        """Stripe's summaries agree: ACCEPTED events become SETTLED, others stay as they are."""

    def refute(self, identifier: str, *, why: str, now: float) -> Transition | None:
        """Stripe has refused what it had accepted: ACCEPTED becomes DEAD. None if it was not ACCEPTED."""

    def hear_time(self, ahead_s: float | None, *, now: float) -> bool:
        """Stripe has just told the time: its clock is so many seconds ahead of ours; None if it has not. By
        what ours fell behind since the last time, doubts grow older. Whether doubts wait to hear it: from the
        first call on none is claimed that began before a moment in which nobody can tell whether our clock
        went on, as in a machine that was started anew, until the time is told."""

    def pause_meter(self, event_name: str, *, why: str | None) -> None:
        """Begin to send nothing more of this event name, since its meter is gone; None lets it go on. What
        may have arrived already is sent again all the same."""

    def paused_meters(self) -> dict[str, str]:
        """The event names of which nothing new is sent, and why."""

    def pause(self, *, who: str, why: str, now: float) -> None:
        """Send nothing, from any process, until `resume`."""

    def resume(self, *, who: str, why: str, now: float) -> bool:
        """Lift a person's pause; False if there was none. What the key is paused for is not touched."""

    def paused_by(self) -> Pause | None:
        """A person's pause, from whichever process; cheap."""

    def take_alarms(self) -> list[Alarm]:
        """What a person should know of the store itself since the last call (a damaged file, a newer
        schema, a clock that jumped). Alarms about a meter event are in its `Transition`."""

    def view(self) -> Books:
        """The books for a reader on any other thread; it never disturbs the writer."""

    def set_meta(self, name: str, value: str | None) -> None: ...


class Sender(Protocol):
    """Sends meter events and says what happened. Never raises for what a server or network does.

    One that has a method `server_time() -> ServerTime | None` besides, as Stripe's own have, lets the ledger
    hold its clock against Stripe's.
    """

    max_batch: int
    """How many events one request may carry."""
    key_hint: str
    """Tells keys apart without showing them: mode and a digest, such as "test:1f3a…"."""

    def send(self, events: Sequence[MeterEvent]) -> list[Outcome]:
        """Send one request; one outcome for each event, in order. Called from several threads."""

    def check(self) -> Outcome:
        """A harmless GET: `accepted` if key and server are well; its `message` is then the account and
        mode, such as "acct_1 (test)"."""

    def close(self) -> None: ...


class Telemetry(Protocol):
    """Counts what happens and what is swallowed, and raises alarms. Never raises itself."""

    def count(self, name: str, n: int = 1) -> None: ...

    def alarm(self, name: str, message: str, /, **data: Any) -> None: ...

    def failure(self, name: str, exc: BaseException) -> None:
        """An error of our own that was swallowed so that a request went on: counted and logged."""


class Ticket(Protocol):
    """What became of one record on its way to the ledger."""

    @property
    def done(self) -> bool:
        """Whether the record is committed, or has failed for good."""

    @property
    def error(self) -> BaseException | None: ...

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until done; False if the time ran out."""

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        """Call `callback` once done, on whatever thread that is; at once if it is done already."""


class Sink(Protocol):
    """Where capture puts what it has seen: the writer's queue. Never blocks, never raises."""

    def put(self, record: UsageRecord, *, closes: str | None = None) -> Ticket:
        """Queue a record. `closes` names the progress row that it replaces."""

    def progress(self, record: UsageRecord) -> None:
        """Queue what is to be billed, as it stands in `record`, should this process die now."""

    def drop(self, record_id: str) -> None:
        """Forget the progress row of this record: its answer was counted elsewhere."""
