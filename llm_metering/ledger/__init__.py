"""Where usage is kept until Stripe has it: one contract, several stores, and the thread that writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import loaded_when_named

if TYPE_CHECKING:
    from .memory import MemoryLedger
    from .sqlite import SqliteLedger
    from .tickets import all_committed
    from .view import LedgerView
    from .writer import Writer
else:
    # Few programs need more than one store, and what only waits for a record needs none.
    __getattr__, __dir__ = loaded_when_named(
        __name__,
        {
            "LedgerView": ".view",
            "MemoryLedger": ".memory",
            "SqliteLedger": ".sqlite",
            "Writer": ".writer",
            "all_committed": ".tickets",
        },
    )

__all__ = ["LedgerView", "MemoryLedger", "SqliteLedger", "Writer", "all_committed"]
