"""The parts of `Metering`, made from what arguments and settings say."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .errors import ConfigurationError, LedgerUnreachable, MeteringError
from .ledger.writer import Writer
from .protocols import Ledger, Pulse, Sender, Sink, Ticket
from .settings import Settings, is_postgres
from .telemetry import LogTelemetry
from .usage import Line, UsageRecord

if TYPE_CHECKING:
    from pathlib import Path

    from .forwarder import Forwarder
    from .ledger import SqliteLedger
    from .ledger.outbox import Waiting
    from .senders.summaries import Summaries
    from .settling import Settler


def ledger_at(where: str | Path | Ledger, settings: Settings) -> Ledger:
    """The ledger that a folder, a URL or "memory:" names.

    Raises:
        ConfigurationError: It names none that there is.
        MissingExtra: It needs a package that is not installed.
    """
    if not isinstance(where, (str, os.PathLike)):
        return where
    text = os.fspath(where)
    if text == "memory:":
        from .ledger.memory import MemoryLedger

        return MemoryLedger()
    if is_postgres(text):
        from .ledger.postgres import PostgresLedger

        return PostgresLedger(
            text, rounds_s=settings.flush_every_s, archive_after_s=settings.archive_after_days * DAY_S
        )
    if "://" in text and not text.startswith("file://"):
        raise ConfigurationError(
            f"a ledger at {text.partition('://')[0]}:// is not supported; give a folder, "
            "'postgresql://…' or 'memory:'"
        )
    from pathlib import Path

    from .ledger.sqlite import SqliteLedger

    return SqliteLedger(
        Path(text.removeprefix("file://")),
        max_bytes=settings.max_ledger_bytes,
        min_free_bytes=settings.min_free_bytes,
        max_stream_s=settings.max_stream_s,
    )


class Way:
    """The way of what is recorded here to the ledger: straight into it, or by way of lanes on this host.

    Args:
        where: As `Metering` is given it.
        lines_of: What a record adds to each meter.
    """

    def __init__(
        self,
        where: str | Path | Ledger,
        settings: Settings,
        telemetry: LogTelemetry,
        *,
        lines_of: Callable[[UsageRecord], tuple[Line, ...]],
        now: Callable[[], float],
    ) -> None:
        self.ledger = ledger_at(where, settings)

        def new_writer(ledger: Ledger, kept: str = "in memory") -> Writer:
            return Writer(ledger, lines_of=lines_of, telemetry=telemetry, now=now, kept=kept)

        by_lanes = isinstance(where, str) and is_postgres(where)
        self.to_ledger = new_writer(self.ledger, "on this host" if by_lanes else "in memory")
        """Whose thread owns the ledger."""
        self.writer = self.to_ledger
        """What records are put to first."""
        self.forwarder: Forwarder | None = None
        self.lanes: SqliteLedger | None = None
        """On this host, where records are forwarded from there."""
        self.sink: Sink = self.writer
        if by_lanes:
            self._lead_by_lanes(new_writer, settings, telemetry, now)

    def _lead_by_lanes(
        self,
        new_writer: Callable[[Ledger], Writer],
        settings: Settings,
        telemetry: LogTelemetry,
        now: Callable[[], float],
    ) -> None:
        from .forwarder import Forwarder
        from .ledger.outbox import Outbox
        from .ledger.postgres import PostgresLedger
        from .ledger.sqlite import SqliteLedger

        lanes = SqliteLedger(
            settings.lane_folder,
            max_bytes=settings.max_ledger_bytes,
            min_free_bytes=settings.min_free_bytes,
            forwards=True,
        )
        ledger = self.ledger
        assert isinstance(ledger, PostgresLedger)  # noqa: S101
        self.lanes, self.writer = lanes, new_writer(lanes)
        self.forwarder = Forwarder(
            self.writer,
            Outbox(lanes, window_s=settings.reoffer_s),
            lambda offer: self.to_ledger.run(lambda _: ledger.take_in(offer, now=now())),
            telemetry,
            every_s=settings.forward_every_s,
            now=now,
        )
        self.sink = Followed(self.writer, self.forwarder) if settings.durability == "ledger" else self.writer

    def open(self) -> None:
        """Open what is recorded to, and reach for the ledger; where that is elsewhere it may be away.

        Raises:
            LedgerError: It cannot be opened.
        """
        self.writer.start()
        if self.forwarder is None:
            return
        try:
            self.to_ledger.start()
        except LedgerUnreachable:
            pass  # an alarm has said so, and every round tries again
        except MeteringError:
            self.writer.stop()
            raise
        self.forwarder.start()

    def stop_forwarding(self, drain_s: float) -> None:
        """Forward what is held."""
        if self.forwarder is not None:
            self.writer.flush(drain_s)
            self.forwarder.stop(drain_s)

    def close(self, timeout_s: float) -> None:
        """Commit what is queued, and let go of everything."""
        if self.forwarder is not None:
            self.to_ledger.stop(timeout_s)
        self.writer.stop(timeout_s)

    def pulse(self) -> tuple[Pulse, Waiting | None]:
        """The facts of what is recorded to, and what of it waits on this host, where it is forwarded. A
        database is not asked: it may be away."""
        if self.lanes is None:
            return self.ledger.view().pulse(), None
        from dataclasses import replace

        from .ledger.outbox import waiting_in

        waiting = waiting_in(self.lanes.folder)
        return replace(self.lanes.view().pulse(), oldest_pending_at=waiting.since), waiting


class Followed:
    """A sink whose tickets are done once the ledger has the record, and not only this host."""

    __slots__ = ("_forwarder", "drop", "progress", "put")

    def __init__(self, lanes: Writer, forwarder: Forwarder) -> None:
        self.put = forwarder.put
        self.progress = lanes.progress
        self.drop = lanes.drop


def sender_of(settings: Settings) -> Sender | None:
    """The way to Stripe. None without a key."""
    if settings.stripe_api_key is None:
        return None
    if settings.sender == "stream":
        from .senders.stripe_stream import StripeStream

        return StripeStream(
            settings.stripe_api_key,
            api_base=settings.stripe_api_base,
            meter_events_base=settings.stream_base,
            timeout_s=settings.send_timeout_s,
        )
    from .senders.stripe_v1 import StripeSender

    return StripeSender(
        settings.stripe_api_key,
        api_base=settings.stripe_api_base,
        timeout_s=settings.send_timeout_s,
    )


def settler_of(
    writer: Writer, settings: Settings, telemetry: LogTelemetry, now: Callable[[], float]
) -> Settler | None:
    """Who holds the ledger against Stripe's summaries. None without a key."""
    key = settings.stripe_api_key
    if key is None:
        return None
    from .settling import Settler

    def summaries() -> Summaries:
        from .senders.reading import StripeReader
        from .senders.summaries import Summaries

        return Summaries(
            StripeReader(key, api_base=settings.stripe_api_base, timeout_s=settings.send_timeout_s, per_s=2)
        )

    return Settler(writer, summaries, telemetry, every_s=settings.reconcile_every_s, now=now)


DAY_S = 86_400.0


class Home(Protocol):
    """What can be started by the first usage."""

    @property
    def is_started(self) -> bool: ...
    def start_soon(self) -> None: ...


class StartingSink:
    """The writer's queue, which starts metering when the first usage comes."""

    __slots__ = ("_home", "_writer")

    def __init__(self, home: Home, writer: Sink) -> None:
        self._home = home
        self._writer = writer

    def put(self, record: UsageRecord, *, closes: str | None = None) -> Ticket:
        if not self._home.is_started:
            self._home.start_soon()
        return self._writer.put(record, closes=closes)

    def progress(self, record: UsageRecord) -> None:
        if not self._home.is_started:
            self._home.start_soon()
        self._writer.progress(record)

    def drop(self, record_id: str) -> None:
        self._writer.drop(record_id)
