"""Counting tokens where a provider does not report them: with tiktoken, from vocabularies in the package.

Importing it loads neither tiktoken nor its tables, nor the rules for what a provider left out.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .models import encoding_for
from .text import count_text
from .vocabulary import ENCODINGS, is_loaded, load

if TYPE_CHECKING:
    from .filling import audit_difference, fill, recount

__all__ = [
    "ENCODINGS",
    "audit_difference",
    "count_text",
    "encoding_for",
    "fill",
    "is_loaded",
    "load",
    "recount",
]


def __getattr__(name: str) -> Any:
    # The rules are a third of what importing this package would cost, and are needed by few calls.
    if name in ("audit_difference", "fill", "recount"):
        return getattr(import_module(".filling", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
