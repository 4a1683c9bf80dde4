"""The writer's hand: keeps what is not on disk yet, commits it in groups, and bears with a failing disk.

Only one thread at a time uses it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .._values import maker
from ..errors import LedgerError, LedgerFull
from ..protocols import Entry, Ledger, Progress, Telemetry
from ..usage import Line, UsageRecord
from .tickets import Ticket, settle

FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 5.0
GRACE_S = 2.0
"""A disk that fails for longer than this counts as full: no more usage should be made."""
REOPEN_AFTER = 3
"""After this many failures in a row the ledger is opened anew, which sets a damaged lane apart."""
_MAX_CLOSED = 4096

_Waiting = tuple[Ticket, Entry]
_entry = maker(Entry)


class Pen:
    """Commits records and the progress of streams; what cannot be written now is kept and tried again."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        lines_of: Callable[[UsageRecord], tuple[Line, ...]],
        telemetry: Telemetry,
        now: Callable[[], float],
        max_group: int,
        max_kept: int,
        where_kept: str = "in memory",
    ) -> None:
        self.ledger = ledger
        self.is_open = False
        self.open_error: BaseException | None = None
        self.problem: str | None = None
        """Why nothing can be written, None while all is well."""
        self.refusing = False
        """Whether records were turned away for want of room since things were last well."""
        self._lines_of = lines_of
        self._telemetry = telemetry
        self._now = now
        self._max_group = max_group
        self._max_kept = max_kept
        self._where_kept = where_kept
        self._kept: list[_Waiting] = []
        self._streams: dict[str, Progress] = {}
        self._drops: set[str] = set()
        self._open_streams: set[str] = set()
        self._closed_streams: dict[str, None] = {}
        self._failures = 0
        self._failing_since = 0.0
        self._no_room = False
        self._retry_at = 0.0

    @property
    def kept(self) -> int:
        """How many records wait for the disk."""
        return len(self._kept)

    @property
    def has_room(self) -> bool:
        """Whether more usage can be taken. A disk that hesitates for a moment is not full."""
        if self.refusing or self._no_room:
            return False
        return self.problem is None or time.monotonic() - self._failing_since < GRACE_S

    @property
    def needed(self) -> bool:
        """Whether the ledger must stay open: streams under way have their progress rows in our lane."""
        return bool(self._open_streams or self._waits())

    def retry_in(self) -> float | None:
        """Seconds until the next try, None while all is well."""
        return max(self._retry_at - time.monotonic(), 0.0) if self.problem else None

    def hasten(self) -> None:
        """Try again at once."""
        self._retry_at = 0.0

    def add(self, ticket: Ticket, record: UsageRecord) -> None:
        """Take a record, to be committed by the next `write`."""
        if ticket.closes is not None:
            self._close_stream(ticket.closes)
        try:
            self._kept.append((ticket, _entry(record, self._lines_of(record), ticket.closes)))
        except Exception as exc:
            self._reject(ticket, exc)

    def note(self, record: UsageRecord) -> None:
        """Keep the latest of a stream until the next `write`."""
        if record.id in self._closed_streams:
            return
        try:
            self._streams[record.id] = Progress(Entry(record, self._lines_of(record)))
        except Exception as exc:
            self._telemetry.failure("ledger.progress", exc)

    def drop(self, id_: str) -> None:
        """Forget the progress of a stream: its answer is counted elsewhere."""
        if id_ in self._open_streams:
            self._drops.add(id_)
        self._close_stream(id_)

    def write(self) -> None:
        """Commit all that waits, or keep it for later."""
        if not self._write():
            while len(self._kept) > self._max_kept:
                ticket, _ = self._kept.pop()
                self.refuse(ticket)

    def refuse(self, ticket: Ticket) -> None:
        """Turn a record away for want of room; never in silence."""
        error = LedgerError(f"the ledger takes no more: {self._max_kept} records wait to be written")
        settle([ticket], error)
        self._telemetry.count("ledger.refused")
        if not self.refusing:
            self.refusing = True
            self._telemetry.alarm("ledger.refusing", f"{error}; usage is being lost")

    def try_to_open(self) -> bool:
        """Open the ledger unless it is open; whether it is now."""
        if self.is_open:
            return True
        try:
            self.ledger.open(now=self._now())
        except Exception as exc:
            self.open_error = exc
            self._fail(exc)
        else:
            self.open_error = None
            self.is_open = True
        self.pass_on_alarms()
        return self.is_open

    def close(self) -> None:
        self.is_open = False
        try:
            self.ledger.close()
        except Exception as exc:
            self._telemetry.failure("ledger.close", exc)

    def pass_on_alarms(self) -> None:
        for alarm in self.ledger.take_alarms():
            self._telemetry.alarm(alarm.name, alarm.message, **alarm.data)

    def _write(self) -> bool:
        """False if the disk fails, or failed a moment ago."""
        if self.problem and time.monotonic() < self._retry_at:
            return False
        if (self.problem or self._waits()) and not self.try_to_open():
            return False
        while self._waits():
            if not self._write_group():
                return False
        if self.problem is not None or self.refusing:
            self.problem, self._failures, self.refusing, self._no_room = None, 0, False, False
            self._telemetry.alarm("ledger.writing_again", "the ledger can be written again")
        return True

    def _waits(self) -> bool:
        return bool(self._kept or self._streams or self._drops)

    def _write_group(self) -> bool:
        group = self._kept[: self._max_group]
        streams = list(self._streams.values())
        try:
            self._commit(group, streams)
        except LedgerError as exc:
            self._fail(exc)
            return False
        except Exception:
            # One of them cannot be stored: find it, and let the others through.
            return all(self._write_one([each], []) for each in group) and all(
                self._write_one([], [each]) for each in streams
            )
        return True

    def _write_one(self, group: list[_Waiting], streams: list[Progress]) -> bool:
        try:
            self._commit(group, streams)
        except LedgerError as exc:
            self._fail(exc)
            return False
        except Exception as exc:
            for ticket, _ in group:
                self._reject(ticket, exc)
            for progress in streams:
                self._telemetry.failure("ledger.progress", exc)
                self._streams.pop(progress.entry.record.id, None)
            del self._kept[: len(group)]
        return True

    def _commit(self, group: Sequence[_Waiting], streams: Sequence[Progress]) -> None:
        """Commit these, which are the first that wait, and tell those who wait for them."""
        entries = [entry for _, entry in group]
        drops = tuple(self._drops)
        new = self.ledger.commit(entries, streams, drops=drops, now=self._now())
        self._drops.difference_update(drops)
        del self._kept[: len(group)]
        for progress in streams:
            self._streams.pop(progress.entry.record.id, None)
            self._open_streams.add(progress.entry.record.id)
        for exc in settle([ticket for ticket, _ in group]):
            self._telemetry.failure("ledger.callback", exc)
        self._telemetry.count("ledger.committed", new)

    def _close_stream(self, id_: str) -> None:
        self._streams.pop(id_, None)
        self._open_streams.discard(id_)
        self._closed_streams[id_] = None
        if len(self._closed_streams) > _MAX_CLOSED:
            del self._closed_streams[next(iter(self._closed_streams))]

    def _reject(self, ticket: Ticket, exc: Exception) -> None:
        """A record that can never be stored."""
        self._telemetry.count("ledger.rejected")
        self._telemetry.failure("ledger.record", exc)
        for raised in settle([ticket], exc):
            self._telemetry.failure("ledger.callback", raised)

    def _fail(self, exc: BaseException) -> None:
        """The disk fails: keep everything and try again, less and less often."""
        self._failures += 1
        wait = min(FIRST_RETRY_S * 2 ** (self._failures - 1), LONGEST_RETRY_S)
        self._retry_at = time.monotonic() + wait
        self._telemetry.count("ledger.write_failed")
        if self.problem is None:
            self._failing_since = time.monotonic()
            self._telemetry.alarm(
                "ledger.cannot_write", f"usage is kept {self._where_kept} until it can: {exc}"
            )
        if isinstance(exc, LedgerFull) and not self._no_room:
            self._no_room = True
            self._telemetry.alarm("ledger.full", f"there is no room for more usage: {exc}")
        self.problem = str(exc)
        if self.is_open and self._failures % REOPEN_AFTER == 0:
            self.close()
