"""Senders: meter events out, outcomes back. One seam, `protocols.Sender`, and what stands behind it.

`StripeSender` speaks to Stripe's v1 API; `MemorySender` is for tests.
"""

from .memory import MemorySender
from .stripe_v1 import StripeSender

__all__ = ["MemorySender", "StripeSender"]
