"""For tests of your own app: what it recorded, and the invoice that comes of it. No network, no account.

    with capture_usage() as used: ...          # records and meter events, with or without pytest
    def test_the_bill(stripe_sandbox): ...     # pytest has both as fixtures, see docs/testing.md

Nothing is loaded before it is used: pytest imports this package in every run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .capturing import CapturedUsage, capture_usage
    from .local_stripe import Clock, StripeSandbox

__all__ = ["CapturedUsage", "Clock", "StripeSandbox", "capture_usage"]


def __getattr__(name: str) -> Any:
    if name in ("CapturedUsage", "capture_usage"):
        from . import capturing

        return getattr(capturing, name)
    if name in ("Clock", "StripeSandbox"):
        from . import local_stripe

        return getattr(local_stripe, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
