"""Counting tokens where a provider does not report them: with tiktoken, from vocabularies in the package.

Importing it loads neither tiktoken nor its tables, nor the rules for what a provider left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import loaded_when_named
from .models import encoding_for
from .text import count_text
from .vocabulary import ENCODINGS, is_loaded, load

if TYPE_CHECKING:
    from .filling import audit_difference, fill, recount
else:
    # The rules are a third of what importing this package would cost, and are needed by few calls.
    __getattr__, __dir__ = loaded_when_named(
        __name__, {"audit_difference": ".filling", "fill": ".filling", "recount": ".filling"}
    )

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
