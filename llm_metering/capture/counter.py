"""Counts tokens that a provider did not report, off the caller's thread where that takes long."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

from .waiting import LateTicket

if TYPE_CHECKING:
    from ..protocols import Telemetry, Ticket
    from ..settings import Settings
    from ..usage import Reading

INLINE_CHARS = 32_768
"""Longer texts are counted on the counter's thread: counting 32 kB takes about a millisecond."""


class Counter:
    """Fills in what a reading lacks. Its thread starts when it is first needed."""

    def __init__(self, *, settings: Settings, telemetry: Telemetry) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self.after_fork()

    def after_fork(self) -> None:
        """Begin with an empty queue and no thread; what waited in a parent is the parent's."""
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: Thread | None = None
        self._lock = Lock()

    def is_needed(self, reading: Reading) -> bool:
        """Whether anything is left for us to count."""
        if self._settings.tokens_from == "tiktoken":
            return True
        return reading.provenance != "reported" or not reading.usage

    def count(
        self,
        reading: Reading,
        request: Any,
        model: str | None,
        then: Callable[[Reading], Ticket],
    ) -> Ticket:
        """Count, then hand the full reading to `then`; the ticket is done when the record is."""
        if self._is_quick(reading, request, model):
            return then(self.counted(reading, request, model))
        late = LateTicket()

        def job() -> None:
            try:
                late.follow(then(self.counted(reading, request, model)))
            except Exception as exc:
                self._telemetry.failure("capture.count", exc)
                late.fail(exc)

        self.later(job)
        return late

    def audit(self, reading: Reading, request: Any, model: str | None) -> None:
        """Count a reported answer too, later, and raise an alarm where the two differ too much."""
        self.later(lambda: self._audit(reading, request, model))

    def load(self, encodings: tuple[str, ...]) -> None:
        """Load tokenizer tables, on the counter's thread."""
        self.later(lambda: self._load(encodings))

    def later(self, job: Callable[[], None]) -> None:
        """Run `job` on the counter's thread. Takes no lock that may be held: safe while objects die."""
        self._jobs.put(job)
        if self._thread is None or not self._thread.is_alive():
            self._start()

    def settle(self, timeout_s: float) -> bool:
        """Wait until all that was to be counted so far has been; False if the time ran out."""
        if self._thread is None:
            return True
        done = Event()
        self.later(done.set)  # one thread takes the jobs in their order
        return done.wait(timeout_s)

    def counted(self, reading: Reading, request: Any, model: str | None) -> Reading:
        """Count on this very thread; what the provider did say stays as it is."""
        from ..counting import fill, recount

        count = recount if self._settings.tokens_from == "tiktoken" else fill
        try:
            return count(reading, decoded(request), model=model)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:
            # A panic inside the tokenizer is no Exception; what the provider did say is worth keeping.
            self._telemetry.failure("capture.count", exc)
            return reading

    def _is_quick(self, reading: Reading, request: Any, model: str | None) -> bool:
        from ..counting import encoding_for, is_loaded

        if not is_loaded(encoding_for(reading.model or model)[0]):
            return False
        return _written_size(reading) + rough_size(request, INLINE_CHARS) <= INLINE_CHARS

    def _audit(self, reading: Reading, request: Any, model: str | None) -> None:
        from ..counting import audit_difference, recount

        difference = audit_difference(reading, recount(reading, decoded(request), model=model))
        self._telemetry.count("audit.compared")
        if difference is not None:
            self._telemetry.alarm("audit.difference", difference, model=reading.model or model)

    def _load(self, encodings: tuple[str, ...]) -> None:
        from ..counting import load

        for name in encodings:
            load(name)

    def _start(self) -> None:
        # Whoever holds the lock is starting it, and will find this job too.
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._thread is None or not self._thread.is_alive():
                # tiktoken imports it, and it cannot be imported any more once the program is ending.
                import concurrent.futures.thread  # noqa: F401

                self._thread = Thread(target=self._run, name="llm-metering-counter", daemon=True)
                self._thread.start()
        finally:
            self._lock.release()

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except Exception as exc:
                self._telemetry.failure("capture.count", exc)
            # While this thread waits, it must not keep an abandoned stream alive.
            del job


def decoded(request: Any) -> Any:
    """A request as the counting wants it: a body in bytes is parsed, here and not on the event loop."""
    if not isinstance(request, bytes):
        return request
    try:
        return json.loads(request)
    except (ValueError, RecursionError):
        return None


def _written_size(reading: Reading) -> int:
    written = reading.written
    if written is None:
        return len(reading.text or "")
    calls = sum(len(name) + len(arguments) for name, arguments in written.calls)
    return sum(map(len, written.texts)) + calls + len(written.thoughts)


def rough_size(value: Any, limit: int) -> int:
    """About how many characters of text are in a request; stops early above `limit`."""
    total = 0
    left = [value]
    while left and total <= limit:
        item = left.pop()
        if isinstance(item, (str, bytes)):
            total += len(item)
        elif isinstance(item, dict):
            left.extend(item.values())
        elif isinstance(item, (list, tuple)):
            left.extend(item)
    return total
