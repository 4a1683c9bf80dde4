"""A sender for tests: remembers what it was sent, and answers what it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from ..protocols import Outcome, OutcomeKind
from ..usage import MeterEvent

Answer = Outcome | OutcomeKind | Callable[[MeterEvent], Outcome | OutcomeKind]


class MemorySender:
    """Keeps the books that Stripe would keep, without a network.

    It accepts each event once and answers "duplicate" after that, as Stripe does. A script says what comes
    instead, one answer an attempt; then `otherwise` holds. An answer is an `Outcome`, its kind, or a function
    of the event that gives one. Only "accepted" and `MemorySender.LOST` enter the books.

        sender = MemorySender(["throttled", MemorySender.LOST])
        with Metering(sender=sender, ledger="memory:") as metering: ...
        assert sender.accepted[0].payload["value"] == "3000"

        sender.otherwise = "not_sent"  # Stripe is down, until you say "accepted" again

    Args:
        script: Answers for the attempts to come, in order.
        otherwise: The answer where the script is at its end.
        account: What `check` says: account and mode.
        max_batch: How many events one call of `send` may carry.
    """

    LOST = Outcome("ambiguous", message="the event arrived, the answer did not")
    """An answer for the script: the event enters the books, the sender does not learn of it."""

    def __init__(
        self,
        script: Iterable[Answer] = (),
        *,
        otherwise: Answer = "accepted",
        account: str = "acct_memory (test)",
        max_batch: int = 1,
    ) -> None:
        self.max_batch = max_batch
        self.key_hint = f"test:{account.partition(' ')[0]}"
        self.account = account
        self.script: list[Answer] = list(script)
        self.otherwise: Answer = otherwise
        self.accepted: list[MeterEvent] = []
        """What Stripe would have, each once, in order of arrival."""
        self.attempts: list[MeterEvent] = []
        """Every event of every attempt."""
        self.checks = 0
        self.check_script: list[Outcome | OutcomeKind] = []
        """Answers for the calls of `check` to come."""
        self.check_otherwise: Outcome | OutcomeKind = "accepted"
        """The answer after that; "accepted" names the account."""
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def send(self, events: Sequence[MeterEvent]) -> list[Outcome]:
        """One outcome for each event, in order."""
        with self._lock:
            return [self._answer(event) for event in events]

    def check(self) -> Outcome:
        """`accepted` with the account, unless the test says otherwise."""
        with self._lock:
            self.checks += 1
            answer = self.check_script.pop(0) if self.check_script else self.check_otherwise
            return (
                Outcome("accepted", 200, message=self.account) if answer == "accepted" else _outcome(answer)
            )

    def close(self) -> None: ...

    def _answer(self, event: MeterEvent) -> Outcome:
        self.attempts.append(event)
        answer = self.script.pop(0) if self.script else self.otherwise
        outcome = _outcome(answer(event) if callable(answer) else answer)
        if outcome.kind != "accepted" and outcome is not self.LOST:
            return outcome
        if event.identifier in self._known:
            message = f"An event already exists with identifier {event.identifier}."
            return self.LOST if outcome is self.LOST else Outcome("duplicate", 400, message=message)
        self._known.add(event.identifier)
        self.accepted.append(event)
        return outcome


_STATUS: dict[OutcomeKind, int] = {
    "accepted": 200,
    "duplicate": 400,
    "throttled": 429,
    "refused_config": 401,
    "refused_data": 400,
}


def _outcome(answer: Outcome | OutcomeKind) -> Outcome:
    return answer if isinstance(answer, Outcome) else Outcome(answer, _STATUS.get(answer))
