"""The parts of `Metering`, made from what arguments and settings say."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .errors import ConfigurationError
from .ledger.writer import Writer
from .protocols import Ledger, Sender, Ticket
from .settings import Settings
from .telemetry import LogTelemetry
from .usage import UsageRecord

if TYPE_CHECKING:
    from pathlib import Path

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
    if text.startswith(("postgresql://", "postgres://")):
        from .ledger.postgres import PostgresLedger

        return PostgresLedger(text, rounds_s=settings.flush_every_s)
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
    )


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


class Home(Protocol):
    """What can be started by the first usage."""

    @property
    def is_started(self) -> bool: ...
    def start_soon(self) -> None: ...


class StartingSink:
    """The writer's queue, which starts metering when the first usage comes."""

    __slots__ = ("_home", "_writer")

    def __init__(self, home: Home, writer: Writer) -> None:
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
