"""A Stripe on a virtual clock: takes an identifier once in 24 hours, and fails in every way there is."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from llm_metering.protocols import Outcome, ServerTime
from llm_metering.usage import MeterEvent
from tests.simulation.world import DAY, HOUR, rule

WINDOW_S = DAY
"""How long a repeated identifier is refused; Stripe promises no more."""
OLDEST_S = 35 * DAY
AHEAD_S = 300.0

WELL = "well"
REFUSE = "refuse"
DOUBTFUL = (
    "accept, then hang", "hang", "500 before", "500 after", "reset before", "reset after", "answer lost",
)  # fmt: skip
"""All that leaves the sender not knowing."""
NOT_NOW = ("429", "429 lock", "409")
MIXED = "mixed"
TROUBLES = (REFUSE, *DOUBTFUL, *NOT_NOW, MIXED)

_ARRIVES = frozenset({"accept, then hang", "500 after", "reset after", "answer lost"})
_STATUS = {"500 before": 500, "500 after": 500}


class SimulatedStripe:
    """Its books, and how it behaves at the moment."""

    max_batch = 1
    key_hint = "test:simulated"
    account = "acct_simulated (test)"

    def __init__(self, now: Callable[[], float], dice: random.Random) -> None:
        self.trouble = WELL
        self.gets_pass = False
        """Whether a GET passes while events do not."""
        self.deleted: set[str] = set()
        self.has_meter = True
        self.takes_key = True
        self.looks_first = dice.random() < 0.5
        """Whether a repeated identifier is noticed before anything else that is wrong."""
        self.books: dict[str, MeterEvent] = {}
        self.requests = 0
        self.answers = 0
        """Those tell the time."""
        self._now = now
        self._dice = dice
        self._seen: dict[str, MeterEvent] = {}
        self._received_at: dict[str, float] = {}

    def send(self, events: Sequence[MeterEvent]) -> list[Outcome]:
        return [self._told(self._send(event)) for event in events]

    def check(self) -> Outcome:
        return self._told(self._check())

    def server_time(self) -> ServerTime | None:
        return ServerTime(self._now(), self.answers) if self.answers else None

    def _told(self, outcome: Outcome) -> Outcome:
        self.answers += outcome.status is not None
        return outcome

    def _check(self) -> Outcome:
        if self.trouble != WELL and not self.gets_pass:
            kind = "not_sent" if self.trouble == REFUSE else "ambiguous"
            return Outcome(kind, message="no answer")  # type: ignore[arg-type]
        if not self.takes_key:
            return Outcome("refused_config", 401, message="Invalid API Key provided")
        return Outcome("accepted", 200, message=self.account)

    def close(self) -> None: ...

    def receive(self, event: MeterEvent) -> Outcome:
        """A request that has arrived, whoever hears the answer."""
        first = self._seen.setdefault(event.identifier, event)
        rule(first == event, f"{event.identifier} was sent with other bytes than before")
        if not self.takes_key:
            return Outcome("refused_config", 401, message="Invalid API Key provided")
        known = self._is_known(event.identifier)
        if known and self.looks_first:
            return _duplicate(event)
        if refused := self._refused(event):
            return refused
        if known:
            return _duplicate(event)
        rule(event.identifier not in self.books, f"{event.identifier} is billed twice")
        self.books[event.identifier] = event
        self._received_at[event.identifier] = self._now()
        return Outcome("accepted", 200)

    def _send(self, event: MeterEvent) -> Outcome:
        self.requests += 1
        trouble = self.trouble
        if trouble == MIXED:
            trouble = self._dice.choice((WELL, *TROUBLES[:-1]))
        if trouble == WELL:
            return self.receive(event)
        if trouble == REFUSE:
            return Outcome("not_sent", message="connection refused")
        if trouble == "409":
            return Outcome("not_sent", 409)
        if trouble in NOT_NOW:
            wait_s = self._dice.choice((None, 1.0, 30.0, 2 * HOUR))
            return Outcome("throttled", 429, retry_after_s=wait_s)
        if trouble in _ARRIVES:
            self.receive(event)
        return Outcome("ambiguous", _STATUS.get(trouble), message=trouble)

    def _is_known(self, identifier: str) -> bool:
        at = self._received_at.get(identifier)
        return at is not None and self._now() - at < WINDOW_S

    def _refused(self, event: MeterEvent) -> Outcome | None:
        if not self.has_meter:
            return Outcome("not_sent", 400, code="no_meter", message="No active meter found")
        if event.customer in self.deleted:
            return Outcome("refused_data", 400, message="No such customer")
        age = self._now() - event.timestamp
        if age > OLDEST_S or age < -AHEAD_S:
            return Outcome("refused_data", 400, message="The timestamp is out of bounds")
        return None


def _duplicate(event: MeterEvent) -> Outcome:
    return Outcome("duplicate", 400, message=f"An event already exists with identifier {event.identifier}.")
