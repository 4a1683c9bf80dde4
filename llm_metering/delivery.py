"""Delivery, turn by turn: what to send, what became of it, when to come back. It never waits.

    ledger ──freeze, claim──▶ Delivery ──jobs──▶ sending threads ──▶ Sender ──▶ Stripe
       ▲──────finish────────────┘ ◀──outcomes──────────┘

Everything that is asked of the ledger in one turn is one visit to its thread. The clocks are passed in.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from .decisions import Pause
from .errors import AccountMismatch, LedgerError
from .protocols import Claim, Ledger, Outcome, OutcomeKind, Sender, ServerTime, Telemetry, Transition
from .senders.pacing import Breaker, Permit, Rate
from .senders.threads import Ended
from .settings import Settings

T = TypeVar("T")


class Writing(Protocol):
    """The ledger's own thread; `ledger.writer.Writer`."""

    def run(self, fn: Callable[[Ledger], T]) -> T:
        """Call `fn` with the ledger on the thread that owns it; return or raise what it does."""


class Sending(Protocol):
    """Carries jobs to a sender; `senders.threads.SendingThreads`."""

    def submit(self, claims: Sequence[Claim]) -> None: ...
    def collect(self) -> list[Ended]: ...
    def recall(self) -> list[tuple[Claim, ...]]: ...
    def wait(self, timeout_s: float) -> None: ...
    def wake(self) -> None: ...
    def release(self) -> None: ...


@dataclass(eq=False, slots=True)
class Flush:
    """Someone waits for everything to be delivered, until `deadline` on the monotonic clock."""

    deadline: float
    frozen: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Delivery:
    """The state of delivery between two turns. One thread takes turns; `flushes`, `hurry` and `stopping`
    may be set by others."""

    def __init__(
        self,
        writer: Writing,
        sender: Sender,
        sending: Sending,
        settings: Settings,
        telemetry: Telemetry,
        *,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self.flushes: list[Flush] = []
        self.hurry = False
        """Take a round with the next turn."""
        self.stopping = False
        """Start nothing more."""
        self.permit = Permit(random)
        self.breaker = Breaker(random)
        self.rate = Rate()
        self.in_flight = 0
        """Requests with events that are under way."""
        self.rest_s = 0.0
        """For how long to leave the interpreter to others after the last turn."""
        self.pause: Pause | None = None
        """A person's word that nothing is to be sent; no key lifts it."""
        self._writer = writer
        self._sender = sender
        self._sending = sending
        self._settings = settings
        self._telemetry = telemetry
        self._now = now
        self._monotonic = monotonic
        self._ended: deque[tuple[Claim, Outcome]] = deque()
        self._claimed: list[Claim] = []
        self._news: list[Transition] = []
        self._checking = False
        self._check_wanted = False
        self._server_time: Callable[[], ServerTime | None] | None = getattr(sender, "server_time", None)
        before = None if self._server_time is None else self._server_time()
        self._heard_at = None if before is None else before.heard_at
        self._awaits_time = False
        self._asks_time = False
        self._ask_at = -math.inf
        self._verdict: str | None = None
        self._round_at = -math.inf
        self._not_before = -math.inf
        self._due_at: float | None = None
        self._reason_in_ledger: str | None = ""
        self._without_meter: set[str] = set()
        self._knows_pause = False
        self._moved = 0
        """Meter events that this turn claimed or finished."""

    @property
    def is_settled(self) -> bool:
        """Whether every send that was begun has ended and the ledger knows."""
        return not (self.in_flight or self._ended or self._claimed)

    def turn(self) -> float:
        """Take one turn; return for how many seconds there is nothing to do unless something ends.

        Raises:
            LedgerError: The ledger failed; what has ended is kept and told again in the next turn.
        """
        self._moved = 0
        self._collect()
        try:
            if self._has_news_for_ledger() or self._is_round_due() or self._room() > 0:
                self._writer.run(self._visit)
        finally:
            self._announce()
            self._dispatch()
            self.rest_s = self._moved * _REST_S if self._moved >= _MANY else 0.0
        return self._wait_s()

    def dismiss_flushes(self) -> None:
        """Let those who wait go on: no turn will come that could answer them."""
        while self.flushes:
            self.flushes.pop().done.set()

    # What ended.

    def _collect(self) -> None:
        kinds: dict[OutcomeKind, int] = {}
        mono = self._monotonic()
        for ended in self._sending.collect():
            if not ended.claims:
                self._check_ended(ended.outcomes[0])
                continue
            self.in_flight -= 1
            self._not_before = -math.inf
            for claim, outcome in zip(ended.claims, ended.outcomes, strict=True):
                kinds[outcome.kind] = kinds.get(outcome.kind, 0) + 1
                self._note(claim, outcome, mono)
        for kind, n in kinds.items():
            self._telemetry.count(f"delivery.{kind}", n)
        if self.stopping:
            self._recall()

    def _note(self, claim: Claim, outcome: Outcome, mono: float) -> None:
        self._ended.append((claim, outcome))
        self.breaker.note(outcome, now=mono)
        if outcome.kind == "refused_config":
            self._refused(_said(outcome), by_event=True)
        elif outcome.kind == "throttled":
            self.rate.throttled(now=mono, retry_after_s=outcome.retry_after_s)
        if outcome.kind not in ("refused_config", "ambiguous") and outcome.status and self.permit.answered():
            self._resumed()
        self._note_meter(claim.event.event_name, outcome)

    def _note_meter(self, event_name: str, outcome: Outcome) -> None:
        if outcome.kind == "accepted":
            self._without_meter.discard(event_name)
        elif outcome.code == "no_meter" and event_name not in self._without_meter:
            self._without_meter.add(event_name)
            self._telemetry.alarm(
                "delivery.no_meter",
                f"Stripe has no active meter {event_name!r}; its usage is kept and tried again: create or "
                "reactivate the meter",
                event_name=event_name,
            )

    def _recall(self) -> None:
        """What no thread has begun is surely not sent."""
        for job in self._sending.recall():
            if not job:
                self._checking = self._asks_time = False
                continue
            self.in_flight -= 1
            outcome = Outcome("not_sent", message="stopped before it was sent")
            self._ended.extend((claim, outcome) for claim in job)

    # The key.

    def _check_ended(self, outcome: Outcome) -> None:
        asked_time = self._asks_time
        self._checking = self._asks_time = False
        if not asked_time:  # else any answer will do, and none says anything of the key
            self._checked(outcome)

    def _checked(self, outcome: Outcome) -> None:
        if outcome.kind == "accepted":
            self._verdict = outcome.message or "an unnamed account"
        elif outcome.kind in ("refused_config", "refused_data"):
            self._refused(_said(outcome), by_event=False)
            if outcome.code == "no_key":
                self.permit.check_at = math.inf
        elif self.permit.may_send:
            self.breaker.trouble(now=self._monotonic())
        else:
            self.permit.undecided(now=self._monotonic())

    def _refused(self, reason: str, *, by_event: bool) -> None:
        if self.permit.refused(reason, by_event=by_event, now=self._monotonic()):
            self._telemetry.alarm(
                "delivery.paused",
                f"nothing is sent to Stripe, and usage is kept: {reason}",
                key=self._sender.key_hint,
            )

    def _resumed(self) -> None:
        self._telemetry.alarm("delivery.resumed", "Stripe takes the key; sending goes on")

    # The ledger, on its thread.

    def _has_news_for_ledger(self) -> bool:
        waiting = self._ended or self._verdict or self.flushes or self.rate.unsaid
        is_told = self._awaits_time and self._told() is not None
        return bool(waiting) or self._is_reason_new() or is_told

    def _visit(self, ledger: Ledger) -> None:
        # What ended is told before time passes, so that a lease that ran out meanwhile makes no doubt of it,
        # and before anything else that may fail. Otherwise it is told together with the next claim.
        if self._verdict is not None or self._is_reason_new() or self._is_time_to_freeze():
            self._finish(ledger)
        self._bind(ledger)
        trouble = self._keep_time(ledger)
        trouble = self._heed_pause(ledger) or trouble
        self._keep_reason(ledger)
        self._tell_rate(ledger)
        self._claim(ledger)
        self._follow_rate(ledger)
        self._answer_flushes()
        if trouble is not None:
            raise trouble

    def _finish(self, ledger: Ledger) -> None:
        if not self._ended:
            return
        try:
            transitions = ledger.finish_many(list(self._ended), now=self._now())
        except LedgerError:
            raise  # a full disk, say; these are told again
        except Exception as exc:
            # Told again it would fail again. The leases will run out, and the events count as ambiguous.
            self._telemetry.failure("delivery.finish", exc)
            transitions = [None] * len(self._ended)
        self._finished(transitions)

    def _finished(self, transitions: Sequence[Transition | None]) -> None:
        self._moved += len(self._ended)
        self._ended.clear()
        self._news += [t for t in transitions if t is not None]
        if fenced := transitions.count(None):
            self._telemetry.count("delivery.fenced", fenced)

    def _bind(self, ledger: Ledger) -> None:
        """The key is well; whether it is of the ledger's account, the ledger knows."""
        account = self._verdict
        if account is None:
            return
        try:
            ledger.bind(account)
        except AccountMismatch as exc:
            self._verdict = None
            self._refused(str(exc), by_event=False)
            return
        hints = (ledger.meta("key_hints") or "").split()
        if self._sender.key_hint not in hints:
            ledger.set_meta("key_hints", " ".join([*hints[-_MAX_HINTS:], self._sender.key_hint]))
        self._verdict = None
        self._confirmed()

    def _confirmed(self) -> None:
        if self.permit.confirmed():
            self._resumed()
        if self.breaker.state == "open" or self.permit.state == "trial":
            self.breaker.on_trial()

    def _keep_time(self, ledger: Ledger) -> Exception | None:
        """Freeze, and let the ledger's time pass. What fails here must not keep frozen events back."""
        if not self._is_time_to_freeze():
            return None
        waiting = [flush for flush in self.flushes if not flush.frozen]
        self.hurry = False
        self._round_at = self._monotonic() + self._settings.flush_every_s
        self._not_before = -math.inf
        try:
            if self.permit.state == "unknown":
                self._recognise(ledger)
            self._news += ledger.maintain(now=self._now())
            bucket_s = self._settings.bucket_s
            ledger.freeze(now=self._now(), bucket_s=bucket_s, everything=bool(waiting))
        except Exception as exc:
            return exc
        for flush in waiting:
            flush.frozen = True
        return None

    def _heed_pause(self, ledger: Ledger) -> Exception | None:
        """A person may have paused sending, in any process, and doubts may have to wait; where that cannot be
        told, nothing is sent."""
        self._knows_pause = False
        try:
            self.pause = ledger.paused_by()
            self._keep_clock(ledger)
        except Exception as exc:
            return exc
        self._knows_pause = True
        return None

    def _keep_clock(self, ledger: Ledger) -> None:
        """Hold our clock against Stripe's, as its answers tell it."""
        if self._server_time is not None:
            told = self._told()
            ahead_s = None if told is None else told.now - self._now()
            self._awaits_time = ledger.hear_time(ahead_s, now=self._now())
            self._heard_at = self._heard_at if told is None else told.heard_at

    def _told(self) -> ServerTime | None:
        """The time, where an answer told it that the ledger has not heard of."""
        told = None if self._server_time is None else self._server_time()
        return None if told is None or told.heard_at == self._heard_at else told

    def _recognise(self, ledger: Ledger) -> None:
        """A key that this ledger has met needs no question to Stripe."""
        if self._sender.key_hint in (ledger.meta("key_hints") or "").split():
            self._confirmed()

    def _is_reason_new(self) -> bool:
        return self.permit.state != "unknown" and self.permit.reason != self._reason_in_ledger

    def _keep_reason(self, ledger: Ledger) -> None:
        if self._is_reason_new():
            ledger.set_meta("paused", self.permit.reason)
            self._reason_in_ledger = self.permit.reason

    def _tell_rate(self, ledger: Ledger) -> None:
        if self.rate.unsaid is not None:
            per_s, wait_s = self.rate.unsaid
            ledger.slow_down(per_s, wait_s=wait_s, now=self._now())
            self.rate.unsaid = None

    def _follow_rate(self, ledger: Ledger) -> None:
        """Others who send for the same account may have been told to slow down."""
        if (pace := ledger.pace()) is not None:
            ahead = self._monotonic() - self._now()
            self.rate.follow(
                pace.per_s,
                cut_at=pace.cut_at + ahead,
                not_before=pace.not_before + ahead,
                share=pace.share,
                now=self._monotonic(),
            )

    def _claim(self, ledger: Ledger) -> None:
        room, probing = self._room(), self.breaker.state == "open"
        size = self._sender.max_batch
        limit = min(room * size, max(_AT_A_TIME, size))
        if limit > 0:
            claims = self._next(ledger, limit, probing)
            self._claimed += claims
            self._moved += len(claims)
            if probing:
                self._probe(ledger, claims)
        else:
            self._finish(ledger)
        if limit > 0 and len(claims) == limit:
            self._due_at = self._now()  # there may be more; it is asked for once fewer come
            return
        self._due_at = ledger.due_at()
        is_due = self._due_at is not None and self._due_at <= self._now()
        if limit > 0 and not probing and is_due and len(claims) < limit:
            # It waits for another of its customer and meter: ours, whose end will wake us, or someone
            # else's.
            ours = self.in_flight or self._claimed
            self._not_before = math.inf if ours else self._monotonic() + _BLOCKED_S

    def _next(self, ledger: Ledger, limit: int, probing: bool) -> list[Claim]:
        """Claim, and finish with the same stroke what ended: a transaction costs more than what is in it."""
        if self._ended:
            try:
                transitions, claims = ledger.finish_and_claim(
                    list(self._ended), now=self._now(), limit=limit, ambiguous_only=probing
                )
            except Exception:
                # One of them may be what fails: what ended is told first, and by itself.
                self._finish(ledger)
            else:
                self._finished(transitions)
                return claims
        return ledger.claim(now=self._now(), limit=limit, ambiguous_only=probing)

    def _probe(self, ledger: Ledger, claims: list[Claim]) -> None:
        """Probe with an ambiguous event, which counts once however often it is sent; without one, by a GET.

        While any event is ambiguous a GET would prove nothing: it may pass where events hang.
        """
        if claims:
            self.breaker.probing()
        elif waiting := ledger.events(states=("AMBIGUOUS",), limit=100):
            due_at = min(row.next_attempt_at or 0.0 for row in waiting)
            self.breaker.postpone(self._monotonic() + min(max(due_at - self._now(), 1.0), 30.0))
        else:
            self.breaker.probing()
            self._check_wanted = True

    def _answer_flushes(self) -> None:
        settled = self.is_settled and not (self._checking or self._check_wanted)
        stuck = self.stopping or self.permit.state == "paused" or self.pause is not None
        due_in = math.inf if self._due_at is None else self._due_at - self._now()
        for flush in list(self.flushes):
            left = flush.deadline - self._monotonic()
            if left <= 0 or (settled and (stuck or (flush.frozen and due_in > left))):
                self.flushes.remove(flush)
                flush.done.set()

    # What starts, and when.

    @property
    def _may_send(self) -> bool:
        """Whether the key and a person allow it."""
        return self.permit.may_send and self._knows_pause and self.pause is None

    def _room(self) -> int:
        """How many requests with events may start now."""
        mono = self._monotonic()
        if self.stopping or not self._may_send:
            return 0
        if self.breaker.state == "open":
            return int(mono >= self.breaker.probe_at)
        under_way = self.in_flight + math.ceil(len(self._claimed) / self._sender.max_batch)
        room = self.breaker.room(under_way, self._settings.max_in_flight)
        bound = self.rate.room(mono)
        return room if bound is None else min(room, bound)

    def _dispatch(self) -> None:
        claims, self._claimed = self._claimed, []
        size = self._sender.max_batch
        jobs = [claims[i : i + size] for i in range(0, len(claims), size)]
        for job in jobs:
            self.in_flight += 1
            self._sending.submit(job)
        if jobs:
            self.rate.started(len(jobs), now=self._monotonic())
        if self._should_check():
            self._checking, self._check_wanted = True, False
            self._sending.submit(())
        elif self._should_ask_time():
            self._checking = self._asks_time = True
            self._ask_at = self._monotonic() + _ASK_AGAIN_S
            self._sending.submit(())

    def _should_check(self) -> bool:
        if self._checking or self._verdict is not None or self.stopping:
            return False
        return self._check_wanted or (not self.permit.may_send and self._monotonic() >= self.permit.check_at)

    def _should_ask_time(self) -> bool:
        """Where doubts wait for the time, there may be nothing else to send that would bring it."""
        if not self._awaits_time or self._checking or self.stopping or not self._may_send:
            return False
        return self._monotonic() >= self._ask_at

    def _announce(self) -> None:
        news, self._news = self._news, []
        for t in news:
            # A refused key is one alarm of its own, however many events met it.
            if t.alarm is not None and t.alarm != "delivery.paused":
                what = f"meter event {t.identifier}: {t.before} → {t.after}"
                message = f"{what}, {t.reason}" if t.reason else what
                self._telemetry.alarm(t.alarm, message, identifier=t.identifier, state=t.after)

    def _is_time_to_freeze(self) -> bool:
        waiting = any(not flush.frozen for flush in list(self.flushes))
        return not self.stopping and (waiting or self._is_round_due())

    def _is_round_due(self) -> bool:
        return self.hurry or self._monotonic() >= self._round_at

    def _wait_s(self) -> float:
        mono = self._monotonic()
        next_at = self._sendable_at(mono) if self.permit.may_send else self.permit.check_at
        if self.permit.may_send and not self._may_send:
            next_at = math.inf  # the next round sees whether the person has changed their mind
        if self._checking and not self.permit.may_send:
            next_at = math.inf
        until = min(self._round_at, next_at, *(flush.deadline for flush in list(self.flushes)))
        return min(max(until - mono, 0.0), self._settings.flush_every_s)

    def _sendable_at(self, mono: float) -> float:
        """When the next send may start, as far as is known; what ends will wake us before."""
        if self.breaker.state == "open":
            return self.breaker.probe_at
        if self._due_at is None or not self.breaker.room(self.in_flight, self._settings.max_in_flight):
            return math.inf
        due_at = mono + self._due_at - self._now()
        return max(due_at, mono + self.rate.wait_s(mono), self._not_before)


_AT_A_TIME = 200
"""The most events that are claimed in one turn: more would keep the interpreter's lock from others for
milliseconds, and keep those that could be under way waiting."""
_MANY = 32
_REST_S = 10e-6
"""After a turn of many events what is served beside it comes first, for so long an event: such a turn keeps
the interpreter's lock for longer than a request takes. Little is slower for it, as sending goes on."""
_MAX_HINTS = 15
_BLOCKED_S = 1.0
_ASK_AGAIN_S = 10.0
"""How long until Stripe is asked for the time once more, where it did not tell."""


def _said(outcome: Outcome) -> str:
    said = outcome.message or outcome.code or "refused"
    return said if outcome.status is None else f"{said} (HTTP {outcome.status})"
