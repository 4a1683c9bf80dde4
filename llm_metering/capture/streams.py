"""A provider's stream while it is read: progress rows as it goes, one record when it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from os import getpid
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from ..usage import NOTHING, Reading, Surface, Usage
from .collecting import is_collecting, watch
from .estimates import rough_tokens
from .overhearing import tell_opened

if TYPE_CHECKING:
    from ..protocols import Ticket
    from .context import Opened, Scope
    from .recorder import Recorder

EVENTS_BETWEEN_LOOKS = 32
"""How many events pass before the tokens so far are added up again; the clock is read at every event."""

_LASTING = frozenset(("responses", "interactions", "assistants"))
"""APIs whose answers can go on without us, and have ids that no two of them share."""

_ROUND = frozenset(("middleware", "decorator"))

SECOND_ROW_AFTER_S = 0.25
"""A stream that lives so long has its prompt counted for its second row; the first holds an estimate."""


class Tally(Protocol):
    """What adds a stream's events up, such as `providers.StreamTally`."""

    def feed(self, event: Any, /) -> None: ...

    def so_far(self) -> Reading:
        """A cheap estimate of what is to be billed should the stream break off now."""

    def result(self) -> Reading: ...

    @property
    def complete(self) -> bool:
        """Whether the provider's final usage came."""

    @property
    def tokens_so_far(self) -> int: ...


class StreamTap:
    """Sees the events of one stream and records it, once, however it ends.

    The scope is the one in which the stream was opened, wherever it is read or closed. A tap that is
    garbage collected was abandoned: what came until then is recorded.

    Args:
        recorder: Where the record goes.
        tally: Adds the events up.
        surface: Who sees the stream.
        request: The call's arguments, for counting what the provider does not report.
        model: Used where the stream names none.
        customer: Named by the caller; wins over the scope and the resolver.
        dimensions: Win over the scope's.
        scope: Default: the current one.
        covered: Whether another surface counts this stream at the moment; then there are no progress rows.
        lasting: The provider goes on when nobody reads, and the whole can be retrieved later: the record is
            named after the response, and what is broken off is left to whoever retrieves it. It counts only
            for APIs that know such answers, whatever a client asked for.
    """

    __slots__ = (
        "__weakref__", "_began", "_covered", "_customer", "_dimensions", "_due", "_every_tokens", "_finished",
        "_id", "_last", "_lasting", "_left", "_lock", "_model", "_noted", "_opened", "_process", "_prompt",
        "_recorder", "_request", "_rows", "_surface", "hold", "scope", "tally",
    )  # fmt: skip

    def __init__(
        self,
        recorder: Recorder,
        *,
        tally: Tally,
        surface: Surface,
        request: Any = None,
        model: str | None = None,
        customer: str | None = None,
        dimensions: Mapping[str, str] = NOTHING,
        scope: Scope | None = None,
        covered: Callable[[], bool] | None = None,
        lasting: bool = False,
    ) -> None:
        self.tally = tally
        self.scope = recorder.scope_here() if scope is None else scope
        self._recorder = recorder
        self._surface: Surface = surface
        self._request = request
        self._model = model
        self._customer = customer
        self._dimensions = dimensions
        self._covered = covered
        self._lasting = lasting
        self._id: str | None = None
        self._lock = Lock()
        self._began = False
        self._finished = False
        self._process = getpid()
        self._left = 0
        self._due = 0.0
        self._noted = 0
        self._every_tokens = recorder.settings.progress_every_tokens
        self._last: Reading | None = None
        self._rows = 0
        self._prompt: Usage | None = None
        self.hold: Callable[[], bool] | None = None
        """Asked when a stream breaks off: whether its rest is read, and `finish` called again afterwards."""
        watch()
        self.scope.note_opened(self)
        self._opened: Opened | None = None
        # What stands round an adapter's call may leave the stream to it, and so cannot be left it.
        if surface not in _ROUND and self.scope.is_listened_to:
            self._opened = tell_opened(self.scope.sightings.listeners, tally)

    def feed(self, event: Any) -> None:
        """Take one event. Never raises."""
        self.tally.feed(event)
        self._left -= 1
        if self._left < 0 or monotonic() >= self._due:
            self.look()

    def look(self) -> float:
        """Write a progress row if it is time; when to look again, by the monotonic clock. Never raises."""
        self._left = EVENTS_BETWEEN_LOOKS
        self._began = True
        try:
            now = monotonic()
            with self._lock:
                if now >= self._due or self.tally.tokens_so_far - self._noted >= self._every_tokens:
                    self._note(now)
        except Exception as exc:
            self._recorder.telemetry.failure("capture.progress", exc)
        return self._due

    def finish(self, complete: bool = True, *, here: bool = False) -> Ticket | None:
        """Record the stream; only the first call does anything. Never raises, never waits.

        Args:
            complete: Whether it was read to its end. What a provider said of the whole counts either way.
            here: On this thread, however much is left to be decoded.
        """
        if self._process != getpid():
            return None  # a forked child holds a copy; the stream is its parent's
        if is_collecting():
            return self._finish_later(complete)
        if not complete and self.hold is not None and self.hold():
            return None
        if not here and getattr(self.tally, "is_slow", False) and not self.scope.is_listened_to:
            return self._finish_later(complete)
        with self._lock:
            if self._finished:
                return None
            self._finished = True
        try:
            return self._record(complete)
        except Exception as exc:
            self._recorder.telemetry.failure("capture.stream", exc)
            return None
        finally:
            self._over()

    def _finish_later(self, complete: bool) -> Ticket | None:
        """Finish on the counter's thread. Takes no lock; the request waits for the record all the same."""
        if self._finished or not self._began or self._process != getpid():
            return None
        return self._recorder.later(self.scope, lambda: self.finish(complete, here=True))

    def discard(self) -> None:
        """Record nothing: somebody else counted this stream. Its progress row goes."""
        with self._lock:
            if self._finished:
                return
            self._finished = True
        self._recorder.drop(self._id)
        self._over()

    def _over(self) -> None:
        self.scope.note_finished(self)
        if self._opened is not None:
            self._opened.is_over = True

    def leave_progress(self) -> None:
        """Note in the ledger what came so far: the request is over, and the rest may never be read."""
        try:
            with self._lock:
                if self._began:
                    self._note(monotonic())
        except Exception as exc:
            self._recorder.telemetry.failure("capture.progress", exc)

    def __del__(self) -> None:
        if getattr(self, "_finished", True):
            return
        if not self._began:
            self._over()
            return
        with suppress(Exception):
            self._recorder.telemetry.count("stream.abandoned")
            self._finish_later(complete=False)

    # Progress.

    def _note(self, now: float) -> None:
        """Write a progress row. Under the lock, so that none comes after the record that closes it."""
        every_s = self._recorder.settings.progress_every_s
        self._due = now + (every_s if self._rows else min(SECOND_ROW_AFTER_S, every_s))
        self._noted = self.tally.tokens_so_far
        if self._finished or (self._covered is not None and self._covered()):
            return
        reading = self.tally.so_far()
        if reading.problem is not None or (self._lasting and not self._can_be_named(reading)):
            return  # a row of one that lasts is named after it
        self._rows += 1
        if reading.usage.input_total is None:
            if self._rows == 2:
                self._count_prompt(reading)
            elif self._prompt is None:
                self._prompt = Usage(input=rough_tokens(self._request))
        self._put_row(reading)

    def _put_row(self, reading: Reading) -> None:
        if self._id is None:
            self._id = self._name(reading)
        self._last = reading
        if self._prompt is not None and reading.usage.input_total is None:
            usage = Usage(**{**self._prompt.as_dict(), **reading.usage.as_dict()})
            reading = replace(reading, usage=usage)
        draft = self._recorder.draft(
            reading,
            surface=self._surface,
            id=self._id,
            customer=self._customer,
            model=self._model,
            dimensions=self._dimensions,
            scope=self.scope,
        )
        self._recorder.progress(draft)

    def _count_prompt(self, reading: Reading) -> None:
        """Count the prompt, off this thread; the row is written again with it."""
        counter = self._recorder.counter
        # An output of 0 is known, so that only the prompt is counted.
        prompt_only = replace(reading, usage=Usage(output=0), text=None, written=None)
        counter.later(lambda: self._prompt_counted(counter.counted(prompt_only, self._request, self._model)))

    def _prompt_counted(self, counted: Reading) -> None:
        if counted.usage.input_total is None:
            return
        with self._lock:
            self._prompt = Usage(**{k: v for k, v in counted.usage.leaves() if k != "output"})
            if not self._finished and self._last is not None:
                self._put_row(self._last)

    def _lasts(self, reading: Reading) -> bool:
        return self._lasting and reading.api in _LASTING

    def _can_be_named(self, reading: Reading) -> bool:
        """Whether it is known by now what the record of a stream that may last is called."""
        return reading.response_id is not None if self._lasts(reading) else reading.api is not None

    def _name(self, reading: Reading) -> str:
        if self._lasts(reading) and reading.response_id is not None:
            return lasting_id(reading.response_id)
        return self._recorder.new_id()

    # The record.

    def _record(self, complete: bool) -> Ticket | None:
        reading = self.tally.result()
        if not complete and reading.provenance == "reported" and not reading.usage:
            reading = replace(reading, provenance="partial")
        row = self._id
        if self._lasts(reading) and reading.provenance == "partial" and reading.response_id is not None:
            # It goes on without us; the row stands for it until somebody retrieves the whole.
            if row is None:
                self._prompt = self._prompt or Usage(input=rough_tokens(self._request))
                self._put_row(self.tally.so_far())
            return None
        if not self._began or not is_billable(reading, failed=getattr(self.tally, "failed", False)):
            self._recorder.drop(row)
            self._recorder.telemetry.count("stream.empty")
            return None
        name = row or self._name(reading)
        return self._recorder.record(
            reading,
            surface=self._surface,
            request=self._request,
            customer=self._customer,
            model=self._model,
            dimensions=self._dimensions,
            id=name,
            closes=name if self._lasts(reading) else row,
            scope=self.scope,
        )


def is_billable(reading: Reading, *, failed: bool = False) -> bool:
    """Whether an answer came at all: numbers or words; or a name at least, where no error came with it."""
    if reading.usage or reading.problem or reading.text or reading.written:
        return True
    return reading.response_id is not None and not failed


def lasting_id(response_id: str) -> str:
    """The record id of an answer that may be retrieved again and again, here or elsewhere."""
    return f"background-{response_id}"
