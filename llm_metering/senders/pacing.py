"""How fast to send, and when not to: permit, breaker, rate. Pure: the clock and the die are passed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from ..protocols import Outcome

Random = Callable[[], float]


class Backoff:
    """Waits with decorrelated jitter: each between the base and three times the one before, capped."""

    def __init__(self, random: Random, *, base_s: float, cap_s: float) -> None:
        self._random = random
        self._base_s = base_s
        self._cap_s = cap_s
        self._last_s = base_s

    def next_s(self) -> float:
        longest = min(self._cap_s, max(self._base_s, self._last_s * 3))
        self._last_s = self._base_s + self._random() * (longest - self._base_s)
        return self._last_s

    def reset(self) -> None:
        self._last_s = self._base_s


class Permit:
    """Whether the key may send at all.

    unknown ── check: the right account ──▶ good ── 401, 403, another account ──▶ paused
    paused ── check ──▶ good, or trial (one event) if an event was what was refused
    trial ── any other answer ──▶ good · refused again ──▶ paused, for longer
    """

    def __init__(self, random: Random) -> None:
        self.state: Literal["unknown", "good", "paused", "trial"] = "unknown"
        self.reason: str | None = None
        """Why it is paused; kept while on trial."""
        self.check_at = -math.inf
        """When the next check is due while unknown or paused."""
        self._backoff = Backoff(random, base_s=2.0, cap_s=60.0)
        self._by_event = False

    @property
    def may_send(self) -> bool:
        return self.state in ("good", "trial")

    def refused(self, reason: str, *, by_event: bool, now: float) -> bool:
        """The key will not do. Whether that is news."""
        is_news = self.reason is None
        self._by_event = by_event or self.state == "trial"
        if self.state != "paused" or not by_event:
            self.check_at = now + self._backoff.next_s()
        self.state = "paused"
        if is_news or not by_event:
            self.reason = reason
        return is_news

    def undecided(self, *, now: float) -> None:
        """A check had no answer."""
        if not self.may_send:
            self.check_at = now + self._backoff.next_s()

    def confirmed(self) -> bool:
        """A check found the key well, and of the right account. Whether sending goes on with that."""
        if self.state == "paused" and self._by_event:
            self.state = "trial"
            return False
        return self._good()

    def answered(self) -> bool:
        """An event got an answer that was not about the key. Whether sending goes on with that."""
        return self._good() if self.state == "trial" else False

    def _good(self) -> bool:
        resumed = self.reason is not None
        self.state, self.reason = "good", None
        self._backoff.reset()
        return resumed


class Breaker:
    """Whether new events may be sent.

        closed ── an ambiguous outcome, or three refusals in a row ──▶ open: nothing new starts
        open ── a probe (an ambiguous event, else a harmless GET) got through ──▶ trial: one at a time
        trial ── a definite answer ──▶ closed · trouble ──▶ open, for longer

    A whole outage so puts at most what was in flight at its start in doubt, and one more for each probe
    that got through in vain. A refusal is an unreachable server or an event that Stripe will not have:
    three of those may mean that every event is wrong, and must not use up the backlog.
    """

    def __init__(self, random: Random, *, base_s: float = 1.0, cap_s: float = 60.0) -> None:
        self.state: Literal["closed", "open", "trial"] = "closed"
        self.probe_at = math.inf
        """When the next probe is due while open; infinite while one is under way."""
        self._backoff = Backoff(random, base_s=base_s, cap_s=cap_s)
        self._refusals = 0

    def room(self, in_flight: int, limit: int) -> int:
        """How many new sends may start."""
        if self.state == "open":
            return 0
        return max(0, (limit if self.state == "closed" else 1) - in_flight)

    def note(self, outcome: Outcome, *, now: float) -> None:
        """An attempt ended."""
        if self.state == "open" and self.probe_at != math.inf:
            return  # begun before it opened
        if outcome.kind == "ambiguous":
            self.trouble(now=now)
        elif outcome.kind == "refused_data" or (outcome.kind == "not_sent" and outcome.status is None):
            self._refusals += 1
            if self._refusals >= 3 or self.state != "closed":
                self.trouble(now=now)
        else:
            self._close(outcome)

    def trouble(self, *, now: float) -> None:
        """Open, or stay open for longer if this was a probe."""
        if self.state != "open" or self.probe_at == math.inf:
            self.probe_at = now + self._backoff.next_s()
        self.state = "open"

    def probing(self) -> None:
        """A probe has begun."""
        self.probe_at = math.inf

    def postpone(self, until: float) -> None:
        """There is nothing to probe with before then."""
        self.probe_at = until

    def on_trial(self) -> None:
        """A probe that is no event got through: try one event."""
        self.state = "trial"
        self._refusals = 0

    def _close(self, outcome: Outcome) -> None:
        # "Not now" is an answer of a server that is well, but no proof that events pass.
        if outcome.kind in ("accepted", "duplicate"):
            self._refusals = 0
        self.state = "closed"
        self._backoff.reset()


class Rate:
    """How many sends a second: no bound until Stripe says to slow down, then half, and slowly back up.

    The bound is the account's. Where several processes send for it, each follows what any of them was told,
    and takes its share of it.
    """

    GROWTH = 1.1
    """A second, once a second has passed without a refusal."""
    CEILING = 1000.0
    """Events a second that v1 takes from a live account; a rate above it is no bound."""

    def __init__(self) -> None:
        self.unsaid: tuple[float, float] | None = None
        """A bound that others do not know of yet: requests a second, and seconds to wait."""
        self._per_s = math.inf
        self._cut_at = -math.inf
        self._not_before = -math.inf
        self._share = 1.0
        self._tokens = 0.0
        self._filled_at = 0.0
        self._window = (0.0, 0, 0)

    def per_s(self, now: float) -> float:
        """The bound now, infinite if there is none."""
        return self._of_all(now) * self._share

    def room(self, now: float) -> int | None:
        """How many sends may start now; None without a bound."""
        if now < self._not_before:
            return 0
        rate = self.per_s(now)
        if rate == math.inf:
            return None
        burst = max(1.0, rate / 4)
        self._tokens = min(burst, self._tokens + max(0.0, now - self._filled_at) * rate)
        self._filled_at = now
        return int(self._tokens)

    def wait_s(self, now: float) -> float:
        """How long until one more may start."""
        if now < self._not_before:
            return self._not_before - now
        rate = self.per_s(now)
        return 0.0 if rate == math.inf else max(0.0, (1 - self._tokens) / rate)

    def started(self, n: int, *, now: float) -> None:
        """`n` sends start."""
        self._tokens = max(0.0, self._tokens - n)
        since, count, before = self._window
        if now - since >= 1:
            # What one second held; a window that lies further back holds nothing.
            before = count if now - since < 2 else 0
            since, count = now, 0
        self._window = (since, count + n, before)

    def throttled(self, *, now: float, retry_after_s: float | None) -> None:
        """Stripe said to slow down. Several such answers within a second count once."""
        wait_s = retry_after_s or 0.0
        is_longer = now + wait_s > self._not_before
        self._not_before = max(self._not_before, now + wait_s)
        if now - self._cut_at >= 1:
            _, count, before = self._window
            # Others send in proportion to their shares, as far as we can tell.
            sent = max(count, before, 2) / self._share
            self._cut(max(1.0, min(self._of_all(now), sent) / 2), now)
        elif not (is_longer and wait_s):
            return
        self.unsaid = self._per_s, wait_s

    def follow(self, per_s: float, *, cut_at: float, not_before: float, share: float, now: float) -> None:
        """What holds for all who send, on our clock, and which share of it is ours."""
        self._share = max(share, _LEAST_SHARE)
        self._not_before = max(self._not_before, not_before)
        if cut_at - self._cut_at > _SAME_CUT_S:
            self._cut(per_s, now)
            self._cut_at = cut_at

    def _of_all(self, now: float) -> float:
        # After some minutes any rate is past the ceiling; after hours the power would be past all numbers.
        grown = self._per_s * self.GROWTH ** min(max(0.0, now - self._cut_at - 1), 600.0)
        return grown if grown < self.CEILING else math.inf

    def _cut(self, per_s: float, now: float) -> None:
        self._per_s, self._cut_at = per_s, now
        self._tokens, self._filled_at = 0.0, now


_LEAST_SHARE = 1 / 1024
_SAME_CUT_S = 0.5
"""Cuts that lie nearer to one another, as two clocks see it, are the same one."""
