"""Stripe's clock, as the `Date` of its answers tells it.

Ours is set by people, time servers and flat batteries, and where the machine was started anew nothing else
may show it. Pages of a proxy in between tell nothing here: an answer of Stripe's names its request.
"""

from __future__ import annotations

import math
import re
import time

from .._values import dataclass
from ..protocols import ServerTime

EVERY_S = 1.0
"""One answer in so many seconds is listened to; the others cost nothing."""
PROMPT_S = 30.0
"""An answer that took longer tells too little of when it was written."""
GRAIN_S = 5.0

_DATE = re.compile(
    rb"\r\ndate[ \t]*:[ \t]*[a-z]{3}, (\d\d) ([a-z]{3}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT[ \t]*(?=\r\n|\Z)",
    re.IGNORECASE,
)
_REQUEST = re.compile(rb"\r\nrequest-id[ \t]*:[ \t]*req_", re.IGNORECASE)
_MONTHS = (b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec")


@dataclass(frozen=True, slots=True)
class _Heard:
    """What it showed, and what ours did as it was heard."""

    shown: float
    monotonic: float
    wall: float


class ServerClock:
    """Hears the time from the heads of answers. Safe to use from several threads."""

    def __init__(self) -> None:
        self.listen_at = -math.inf
        """When the next answer is listened to, on the monotonic clock."""
        self._heard: _Heard | None = None

    def hear(self, head: bytes, *, sent_at: float, monotonic: float) -> None:
        """An answer came, as `monotonic` says, to what was sent at `sent_at` of the wall clock."""
        self.listen_at = monotonic + EVERY_S
        wall = time.time()
        shown = date_of(head)
        # The wall clock goes on where the machine slept before the answer was read.
        if shown is not None and 0 <= wall - sent_at <= PROMPT_S:
            self._heard = _Heard(shown, monotonic, wall)

    def time(self) -> ServerTime | None:
        """What it shows now; None where no answer told, or it cannot be known how long ago."""
        heard = self._heard
        if heard is None:
            return None
        passed = time.monotonic() - heard.monotonic
        if abs(time.time() - heard.wall - passed) > GRAIN_S:
            return None  # the machine slept, or our clock was set
        return ServerTime(heard.shown + passed, heard.monotonic)


def date_of(head: bytes) -> float | None:
    """The `Date` of an answer of Stripe's, Unix seconds; None where there is none that can be read."""
    found = _DATE.findall(head)
    if not found or not _REQUEST.search(head):
        return None
    from datetime import datetime, timezone

    day, name, year, hour, minute, second = found[-1]
    try:
        month = 1 + _MONTHS.index(name.lower())
        at = datetime(int(year), month, int(day), int(hour), int(minute), int(second), tzinfo=timezone.utc)
    except ValueError:
        return None
    return at.timestamp()
