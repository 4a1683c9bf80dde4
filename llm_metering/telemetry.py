"""What metering says about itself: counters, alarms, and errors of its own that were swallowed."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from . import _forks
from ._redact import one_line
from .protocols import Alarm


class LogTelemetry:
    """Counts, and writes alarms and failures to a logger. Safe to call from any thread; never raises.

    An alarm is a log record of level ERROR whose `event` attribute is the alarm's stable name and whose
    `data` attribute holds its facts; `on_alarm` is called with the same as an `Alarm`. An alarm that keeps
    coming is let through five times a minute, the rest are counted and named in the next one. A failure
    (an error of ours that a request never saw) is logged once a minute for each kind. Secrets are masked,
    line breaks escaped.

        LogTelemetry(on_alarm=lambda alarm: pager.send(alarm.name, alarm.message))

    Args:
        on_alarm: Called on the thread that raised the alarm; keep it short. What it raises is counted.
        logger: The name of the logger.
        monotonic: The clock of the rate limits, in seconds.
    """

    def __init__(
        self,
        on_alarm: Callable[[Alarm], object] | None = None,
        logger: str = "llm_metering",
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_alarm = on_alarm
        self._logger = logging.getLogger(logger)
        self._monotonic = monotonic
        self._counters: dict[str, int] = {}
        self._gates: dict[str, _Gate] = {}
        # Reentrant: a garbage collection or a signal handler may count while this thread is counting.
        self._lock = threading.RLock()
        _forks.watch(self)

    def count(self, name: str, n: int = 1) -> None:
        """Add `n` to a counter."""
        with self._lock:
            if name not in self._counters and len(self._counters) >= _MAX_NAMES:
                name = "telemetry.other"
            self._counters[name] = self._counters.get(name, 0) + n

    def snapshot(self) -> dict[str, int]:
        """All counters, by name."""
        with self._lock:
            return dict(sorted(self._counters.items()))

    def alarm(self, name: str, message: str, /, **data: Any) -> None:
        """Tell a person. `name` is stable, such as "delivery.paused"."""
        self.count(f"alarm.{name}")
        try:
            passed, suppressed = self._pass(f"alarm.{name}", burst=_BURST)
            if not passed:
                return
            if suppressed:
                data = {**data, "suppressed": suppressed}
            alarm = Alarm(name, one_line(message, _MAX_MESSAGE), _clean(data))
        except Exception:
            self.count("telemetry.failed")
            return
        self._log(logging.ERROR, f"{name}: {alarm.message}", name, alarm.data)
        self._call_back(alarm)

    def failure(self, name: str, exc: BaseException) -> None:
        """An error of our own that was swallowed so that a request went on: counted and logged."""
        self.count(f"failure.{name}")
        try:
            kind = f"{name}: {type(exc).__name__}"
            passed, suppressed = self._pass(f"failure.{kind}", burst=1)
            if not passed:
                return
            where, said = _where(exc), one_line(str(exc))
            more = f" ({suppressed} more since)" if suppressed else ""
        except Exception:
            self.count("telemetry.failed")
            return
        data = {"error": type(exc).__name__, "message": said, "where": where}
        self._log(logging.WARNING, f"{kind}: {said} [{where}]{more}", name, data)

    def after_fork(self) -> None:
        """Replace the lock, which another thread of the parent may have held at the fork."""
        self._lock = threading.RLock()

    def _pass(self, name: str, *, burst: int) -> tuple[bool, int]:
        now = self._monotonic()
        with self._lock:
            if name not in self._gates and len(self._gates) >= _MAX_NAMES:
                name = "telemetry.other"
            gate = self._gates.setdefault(name, _Gate(now))
            return gate.passes(now, burst)

    def _log(self, level: int, text: str, event: str, data: Mapping[str, Any]) -> None:
        try:
            self._logger.log(level, "%s", text, extra={"event": event, "data": dict(data)})
        except Exception:
            self.count("telemetry.failed")

    def _call_back(self, alarm: Alarm) -> None:
        if self._on_alarm is None:
            return
        try:
            self._on_alarm(alarm)
        except Exception as exc:
            self.failure("telemetry.on_alarm", exc)


_BURST = 5
_PER_S = 60.0
_MAX_NAMES = 1000
_MAX_MESSAGE = 500


class _Gate:
    """Lets `burst` through in a minute, and counts the rest."""

    __slots__ = ("opened_at", "passed", "suppressed")

    def __init__(self, now: float) -> None:
        self.opened_at = now
        self.passed = 0
        self.suppressed = 0

    def passes(self, now: float, burst: int) -> tuple[bool, int]:
        if now - self.opened_at >= _PER_S:
            self.opened_at, self.passed = now, 0
        if self.passed >= burst:
            self.suppressed += 1
            return False, 0
        self.passed += 1
        suppressed, self.suppressed = self.suppressed, 0
        return True, suppressed


def _clean(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if value is None or isinstance(value, (int, float)) else one_line(str(value))
        for name, value in data.items()
    }


def _where(exc: BaseException) -> str:
    """The innermost place, without the source line, which may hold anything."""
    frames = traceback.extract_tb(exc.__traceback__)
    if not frames:
        return "?"
    last = frames[-1]
    return f"{last.filename}:{last.lineno} {last.name}"
