"""What an app records, kept in memory for a test to look at instead of in its ledger."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import wraps
from typing import Any

from ..ledger.memory import MemoryLedger
from ..metering import Metering, _instances
from ..protocols import Sender, Sink, Ticket
from ..senders.memory import MemorySender
from ..usage import MeterEvent, UsageRecord

_BEHIND = ("start", "start_soon", "stop", "flush", "status", "run_on_ledger", "has_room", "commit_all")
"""What reaches past the recorder, into the ledger and to Stripe."""
_PATIENCE_S = 10.0
_ALL = 10**9


class CapturedUsage:
    """What was recorded, and the meter events that come of it, to be read inside the block and after."""

    def __init__(self, sender: Sender | None = None) -> None:
        self.sender: Sender = MemorySender() if sender is None else sender
        """Where meter events go. A `MemorySender` can be told to refuse, to fail, or to lose an answer."""
        self._captured: list[_StandIn] = []
        self._skipped = 0
        self._events_skipped = 0
        self._kept: tuple[list[UsageRecord], list[MeterEvent]] | None = None
        """What there was at the end of the block. Looking at it later starts nothing anew."""

    @property
    def records(self) -> list[UsageRecord]:
        """Every record, in the order in which it was recorded. Those without a customer are among them."""
        self._settle()
        return self._records()[self._skipped :]

    @property
    def events(self) -> list[MeterEvent]:
        """Every meter event, one for each customer, meter, set of dimensions and minute."""
        self._settle()
        return self._events()[self._events_skipped :]

    def total(self, *, customer: str | None = None, model: str | None = None) -> int:
        """Tokens of all records, or of one customer's or model's."""
        return sum(
            record.usage.total or 0
            for record in self.records
            if customer in (None, record.customer) and model in (None, record.model)
        )

    def clear(self) -> None:
        """Forget what was recorded until now."""
        self._settle()
        self._skipped = len(self._records())
        self._events_skipped = len(self._events())

    def capture(self, metering: Metering) -> Callable[[], None]:
        """Let one object record here, until what is returned is called."""
        stand_in = _StandIn(metering, self.sender)
        sink, sender = metering.recorder.sink, metering.sender
        metering.recorder.sink = stand_in.watched
        metering.sender = self.sender
        for name in _BEHIND:
            setattr(metering, name, getattr(stand_in, name))
        self._captured.append(stand_in)

        def release() -> None:
            metering.recorder.counter.settle(_PATIENCE_S)
            metering.recorder.sink = sink
            metering.sender = sender
            for name in _BEHIND:
                with suppress(AttributeError):
                    delattr(metering, name)

        return release

    def finish(self) -> None:
        """Take in what is under way, and end the threads."""
        self._settle()
        self._kept = (self._records(), self._events())
        for stand_in in self._captured:
            stand_in.stop()

    def _settle(self) -> None:
        if self._kept is not None:
            return
        for stand_in in self._captured:
            stand_in.of.recorder.counter.settle(_PATIENCE_S)
            if stand_in.watched.is_used:
                stand_in.flush(_PATIENCE_S)

    def _records(self) -> list[UsageRecord]:
        if self._kept is not None:
            return self._kept[0]
        return [record for stand_in in self._captured for record in stand_in.memory.records]

    def _events(self) -> list[MeterEvent]:
        if self._kept is not None:
            return self._kept[1]
        rows = [stand_in.memory.events(limit=_ALL)[::-1] for stand_in in self._captured]
        return [row.event for some in rows for row in some]


@contextmanager
def capture_usage(*metering: Metering, sender: Sender | None = None) -> Iterator[CapturedUsage]:
    """Keep in memory what is recorded inside this block; nothing is written to disk or sent to Stripe.

    with capture_usage() as used:
        client.post("/chat", json={"text": "hello"})
    assert used.records[0].customer == "cus_ada"

    Args:
        metering: Which objects; by default all there are and all that are made inside the block.
        sender: Where meter events go, such as `stripe_sandbox.sender()`; default a `MemorySender`.
    """
    used = CapturedUsage(sender)
    with ExitStack() as cleanup:
        cleanup.callback(used.finish)
        if not metering:
            cleanup.callback(_capture_new_ones(used))
        for one in metering or _alive():
            cleanup.callback(used.capture(one))
        yield used


def _capture_new_ones(used: CapturedUsage) -> Callable[[], None]:
    """Capture objects as they are made."""
    original = Metering.__init__

    @wraps(original)
    def init(self: Metering, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if not isinstance(self, _StandIn):
            used.capture(self)

    Metering.__init__ = init  # type: ignore[method-assign]

    def restore() -> None:
        Metering.__init__ = original  # type: ignore[method-assign]

    return restore


def _alive() -> list[Metering]:
    return [one for one in list(_instances) if not isinstance(one, _StandIn)]


class _StandIn(Metering):
    """What stands behind the recorder of another object meanwhile."""

    def __init__(self, of: Metering, sender: Sender) -> None:
        self.of = of
        self.memory = MemoryLedger(new_id=lambda: os.urandom(16).hex())
        super().__init__(
            # The tokenizer is the other's own; and a service whose usage another process delivers is
            # to show its meter events, too.
            settings=replace(of.settings, deliver="thread", encodings=()),
            ledger=self.memory,
            sender=sender,
            meters=of.meters,
            now=of.now,
        )
        self.watched = _Watched(self.recorder.sink)


class _Watched:
    """A sink that knows whether anything was put into it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.is_used = False

    def put(self, record: UsageRecord, *, closes: str | None = None) -> Ticket:
        self.is_used = True
        return self._sink.put(record, closes=closes)

    def progress(self, record: UsageRecord) -> None:
        self.is_used = True
        self._sink.progress(record)

    def drop(self, record_id: str) -> None:
        self._sink.drop(record_id)
