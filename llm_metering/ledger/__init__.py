"""Where usage is kept until Stripe has it: one contract, several stores, and the thread that writes."""

from .memory import MemoryLedger
from .sqlite import SqliteLedger
from .tickets import all_committed
from .view import LedgerView
from .writer import Writer

__all__ = ["LedgerView", "MemoryLedger", "SqliteLedger", "Writer", "all_committed"]
