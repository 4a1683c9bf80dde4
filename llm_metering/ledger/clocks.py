"""By how much the wall clock was set back since a moment that was noted, when nobody may have looked.

Ages are told by the wall clock, which people, time servers and flat batteries set. Linux has a second clock,
which nobody sets: the seconds since the machine began to run, those of its sleep included, beside a name for
that run. While the name is the same, what passed in truth is known to the second, whether or not a process
ran meanwhile. Where it is another one, Stripe's answers tell the time. Pure, but for what reads
these clocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from .._values import dataclass
from .states import CLOCK_GRAIN_S, HORIZON_S

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE = Path("/proc/self/ns/time")


@dataclass(frozen=True, slots=True)
class Boot:
    """A reading of the clock that nobody sets."""

    run: str
    """Names this run of the machine; the next one has another. Containers of a machine share it."""
    at: float
    """Seconds since it began."""


ReadBoot = Callable[[], "Boot | None"]


@dataclass(frozen=True, slots=True)
class Moment:
    """What both clocks said at once."""

    wall: float
    boot: Boot | None
    """None where there is no such clock."""


@dataclass(frozen=True, slots=True)
class Lag:
    """By how many seconds the wall clock fell behind what passed in truth; what was measured on it is moved
    along by as much."""

    s: float
    is_known: bool = True
    """False where it went back so far on its own face, and nobody can tell for how long nobody looked."""

    def __bool__(self) -> bool:
        return self.s > 0

    @property
    def of_doubts_s(self) -> float:
        """By how much doubts are moved. Where the lag is not known each counts as too old to be sent again;
        what was done since the note was written may be as much as its grain younger."""
        return self.s if self.is_known else self.s + HORIZON_S + CLOCK_GRAIN_S

    def __str__(self) -> str:
        if self.is_known:
            return (
                f"the clock was set back by {self.s:.0f} s; doubts keep their age, and no event gets a time "
                "in the future"
            )
        return (
            f"the clock shows a time {self.s:.0f} s before the last that was noted, and for how long nobody "
            "looked is not known: what Stripe may have is not sent again, and is in doubt"
        )


NO_LAG = Lag(0.0)

STRIPE_GRAIN_S = 60.0
"""How exactly Stripe's answers tell the time: they say the second, and may be half a minute under way."""


def look(noted: Moment | None, now: Moment, *, latest: float | None = None) -> tuple[Lag, Moment | None]:
    """By how much the wall clock fell behind since `noted`, and what is to be noted now, None if nothing.

    Args:
        latest: The latest time that anybody noted, where nobody looked since; None where somebody did all the
            time, as in a process that runs. It matters where no clock says what passed.
    """
    if noted is None:
        return NO_LAG, now
    lag = _lag(noted, now, latest)
    if lag.s > CLOCK_GRAIN_S:
        return lag, now
    if abs(now.wall - noted.wall) <= CLOCK_GRAIN_S and _run(noted) == _run(now):
        return NO_LAG, None
    return NO_LAG, _keeping(now, max(lag.s, 0.0))


def behind(ahead_s: float, noted_s: float) -> float | None:
    """By how much the wall clock fell behind Stripe's since that was noted to be so far ahead; below zero
    where it has caught up, None where nothing is to be noted."""
    fell_s = ahead_s - noted_s
    return fell_s if abs(fell_s) > STRIPE_GRAIN_S else None


def said_by_stripe(fell_s: float) -> str:
    return (
        f"by the time in Stripe's answers the clock fell {fell_s:.0f} s behind; what Stripe may have counts "
        "as so much older"
    )


def passed_s(noted: Moment, now: Moment) -> float | None:
    """The seconds that passed in truth, None where no clock says."""
    then, here = noted.boot, now.boot
    if then is None or here is None or then.run != here.run:
        return None
    # A clock that nobody sets and that went back all the same is another one.
    return here.at - then.at if here.at >= then.at - CLOCK_GRAIN_S else None


def this_boot() -> Boot | None:
    """The clock of this machine that nobody sets; None where there is none."""
    run = _this_run()
    return None if run is None else Boot(run, time.clock_gettime(time.CLOCK_BOOTTIME))


def steady() -> float:
    """Seconds by a clock of this machine that nobody sets; by one that goes on while it sleeps, if it can."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def to_text(moment: Moment, *, wall: float | None = None) -> str:
    """For a file; perhaps with another time of the wall clock."""
    at = f"{moment.wall if wall is None else wall!r}"
    return at if moment.boot is None else f"{at} {moment.boot.run} {moment.boot.at!r}"


def from_text(text: str | None) -> Moment | None:
    """What was written, as far as it can be read."""
    wall, _, boot = (text or "").partition(" ")
    with suppress(ValueError):
        moment = Moment(float(wall), None)
        with suppress(ValueError):
            run, _, at = boot.rpartition(" ")
            return Moment(moment.wall, Boot(run, float(at)))
        return moment
    return None


def noted(wall: str | None, both: str | None) -> Moment | None:
    """What was noted. Where an older version noted the wall clock alone, the other is not known."""
    moment, alone = from_text(both), from_text(wall)
    return moment if moment is not None and alone is not None and moment.wall == alone.wall else alone


def brought_up(moment: Moment, boot: Boot | None) -> float:
    """What the wall clock would show by now had it gone on from that moment."""
    here = Moment(moment.wall, boot)
    return moment.wall + max(passed_s(moment, here) or 0.0, 0.0)


def _lag(noted: Moment, now: Moment, latest: float | None) -> Lag:
    back = noted.wall - now.wall
    passed = passed_s(noted, now)
    if passed is not None:
        return Lag(passed + back)
    if latest is None:
        return Lag(back)
    # The machine was started anew, or has no such clock. A clock that goes on from where it was is believed.
    back = max(back, latest - now.wall)
    return Lag(back, is_known=back <= CLOCK_GRAIN_S)


def _run(moment: Moment) -> str | None:
    return None if moment.boot is None else moment.boot.run


def _keeping(now: Moment, lag_s: float) -> Moment:
    """The present, as if a lag too small to move anything were still to come: many small ones add up."""
    if now.boot is None or lag_s <= 0:
        return now
    return Moment(now.wall, Boot(now.boot.run, now.boot.at - lag_s))


@lru_cache(maxsize=1)
def _this_run() -> str | None:
    """The run's name. A container may be given a clock of its own, and then has a name of its own, too."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return None
    with suppress(OSError):
        run = _BOOT_ID.read_text(encoding="ascii", errors="replace").strip()[:64]
        with suppress(OSError):
            run = f"{run}/{_TIME_NAMESPACE.readlink()}"
        return run or None
    return None
