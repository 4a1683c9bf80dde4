"""Stripe's published rate limits, for those who switch them on. Seconds are counted one by one."""

from __future__ import annotations

from collections.abc import Iterator

from .errors import Refusal, rate_limited
from .store import Account

EVENTS_PATH = "/v1/billing/meter_events"
STREAM_PATH = "/v2/billing/meter_event_stream"
V2_EVENTS_PATH = "/v2/billing/meter_events"
LIVE_ACCOUNT = 100
TEST_ACCOUNT = 25
ENDPOINT = 25
LIVE_EVENTS = 1_000
LIVE_STREAM_EVENTS = 10_000


class Limits:
    """What each account has asked for in the current second."""

    def __init__(self) -> None:
        self._second = 0
        self._counts: dict[tuple[int, str], int] = {}

    def check(self, account: Account, endpoint: str, events: int, now: float) -> Refusal | None:
        """Count a request; the refusal it gets if it is one too many.

        Args:
            endpoint: Method and path, ids left out.
            events: How many meter events it holds.
        """
        if int(now) != self._second:
            self._second = int(now)
            self._counts.clear()
        scopes = list(_scopes(account.livemode, endpoint, events))
        for scope, limit, weight, reason in scopes:
            if self._counts.get((account.n, scope), 0) + weight > limit:
                return rate_limited(reason)
        for scope, _, weight, _ in scopes:
            self._counts[(account.n, scope)] = self._counts.get((account.n, scope), 0) + weight
        return None

    def forget(self) -> None:
        self._counts.clear()


def _scopes(livemode: bool, endpoint: str, events: int) -> Iterator[tuple[str, int, int, str]]:
    """What a request counts towards: scope, limit, how much, and the reason of a refusal."""
    path = endpoint.partition(" ")[2]
    if livemode and path in (EVENTS_PATH, V2_EVENTS_PATH):
        yield endpoint, LIVE_EVENTS, 1, "endpoint-rate"
    elif livemode and path == STREAM_PATH:
        yield endpoint, LIVE_STREAM_EVENTS, events, "endpoint-rate"
    else:
        yield "account", LIVE_ACCOUNT if livemode else TEST_ACCOUNT, 1, "global-rate"
        yield endpoint, ENDPOINT, 1, "endpoint-rate"
