"""Counting tokens where a provider does not report them: with tiktoken, from vocabularies in the package.

Importing it loads neither tiktoken nor its tables.
"""

from __future__ import annotations

from .fill import audit_difference, fill, recount
from .models import encoding_for
from .text import count_text
from .vocabulary import ENCODINGS, is_loaded, load

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
