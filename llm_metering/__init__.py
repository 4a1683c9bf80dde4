"""Count every LLM call, tie it to the caller's Stripe customer, keep it safe, and bill it."""

import typing

from . import _lazy
from .capture.middleware import MeteringMiddleware
from .customers import from_api_key, from_auth, from_header, from_state
from .errors import (
    AccountMismatch,
    BillingError,
    ConfigurationError,
    LedgerError,
    LedgerInUse,
    LedgerUnreachable,
    MeteringError,
    MissingExtra,
    UnreadableResponse,
)
from .metering import Metering
from .meters import TokenMeter
from .protocols import Alarm, Ledger, Outcome, Sender
from .settings import Settings
from .usage import MeterEvent, Reading, Usage, UsageRecord

if typing.TYPE_CHECKING:
    from .capture.transport import MeteringTransport
    from .counting import count_text
    from .health import Health, health_endpoint
    from .ledger.memory import MemoryLedger
    from .ledger.sqlite import SqliteLedger
    from .providers import read_response, read_stream
    from .senders.memory import MemorySender
    from .senders.stripe_v1 import StripeSender
else:
    # Half of what there is to load is for programs that name it.
    __getattr__, __dir__ = _lazy.loaded_when_named(
        __name__,
        {
            "Health": ".health",
            "MemoryLedger": ".ledger.memory",
            "MemorySender": ".senders.memory",
            "MeteringTransport": ".capture.transport",
            "SqliteLedger": ".ledger.sqlite",
            "StripeSender": ".senders.stripe_v1",
            "count_text": ".counting",
            "health_endpoint": ".health",
            "read_response": ".providers",
            "read_stream": ".providers",
        },
    )

__all__ = [
    "AccountMismatch",
    "Alarm",
    "BillingError",
    "ConfigurationError",
    "Health",
    "Ledger",
    "LedgerError",
    "LedgerInUse",
    "LedgerUnreachable",
    "MemoryLedger",
    "MemorySender",
    "MeterEvent",
    "Metering",
    "MeteringError",
    "MeteringMiddleware",
    "MeteringTransport",
    "MissingExtra",
    "Outcome",
    "Reading",
    "Sender",
    "Settings",
    "SqliteLedger",
    "StripeSender",
    "TokenMeter",
    "UnreadableResponse",
    "Usage",
    "UsageRecord",
    "count_text",
    "from_api_key",
    "from_auth",
    "from_header",
    "from_state",
    "health_endpoint",
    "read_response",
    "read_stream",
]
