"""A local, stateful Stripe for usage-based billing: meters, prices, subscriptions, previews.

The official SDK talks to it by `base_addresses`. It imports nothing else of this package, so that agreement
between the two means something. `docs/sandbox.md` tells what it plays, and where it had to assume.
"""

from __future__ import annotations

from .app import SandboxApp, create_app
from .books import Books, Row
from .faults import Fault, Match, parse_fault, shown_fault
from .running import Sandbox, running_sandbox, serve, served_app
from .switches import Switches

__all__ = [
    "Books",
    "Fault",
    "Match",
    "Row",
    "Sandbox",
    "SandboxApp",
    "Switches",
    "create_app",
    "parse_fault",
    "running_sandbox",
    "serve",
    "served_app",
    "shown_fault",
]
