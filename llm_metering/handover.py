"""Where another process delivers: one daemon thread that hands over to it what was recorded here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from . import _forks
from .protocols import Ledger, Telemetry
from .settings import Settings

T = TypeVar("T")


class Writing(Protocol):
    """The ledger's own thread; `ledger.writer.Writer`."""

    def run(self, function: Callable[[Ledger], T], timeout_s: float | None = None) -> T: ...


class Handover:
    """Lets go of closed buckets every `flush_every_s`, and of everything when asked.

    Args:
        writer: Runs functions on the ledger's thread.
        settings: `flush_every_s` and `bucket_s` are used.
        telemetry: Hears of what fails; it is tried again.
        now: The wall clock, Unix seconds.
    """

    def __init__(
        self,
        writer: Writing,
        settings: Settings,
        telemetry: Telemetry,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._writer = writer
        self._settings = settings
        self._telemetry = telemetry
        self._now = now
        self.after_fork()
        _forks.watch(self)

    def after_fork(self) -> None:
        """Forget the parent's thread; called by itself in a forked child."""
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. Harmless when it runs."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._over = threading.Event()
        self._thread = threading.Thread(
            target=self._rounds, args=(self._over,), name="llm-metering-handover", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as exc:  # no thread to be had now, or the interpreter is ending
            self._thread = None
            self._telemetry.failure("handover.thread", exc)

    def stop(self, timeout_s: float) -> None:
        """End the thread. Closing the ledger afterwards hands over all of it."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def now(self) -> None:
        """Hand over everything that was recorded so far."""
        self._round(everything=True)

    def _rounds(self, over: threading.Event) -> None:
        while not over.wait(self._settings.flush_every_s):
            try:
                self._round(everything=False)
            except Exception as exc:  # noqa: PERF203 - one round that fails must not end the others
                self._telemetry.failure("handover.round", exc)

    def _round(self, *, everything: bool) -> None:
        now, bucket_s = self._now(), self._settings.bucket_s
        if self._writer.run(
            lambda ledger: ledger.hand_over(now=now, bucket_s=bucket_s, everything=everything)
        ):
            self._telemetry.count("handover.lanes")
