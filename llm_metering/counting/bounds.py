"""How far our own counts may be off, by family and case, as measured and published in docs/accuracy.md."""

from __future__ import annotations

from .models import family_of
from .parts import Prompt

SLACK_TOKENS = 4
"""On short texts a token or two is a large share: so many are always allowed."""

CASES = ("text", "tools", "schema", "images")


def case_of(prompt: Prompt) -> str:
    """What makes the prompt hard to count."""
    if prompt.functions or any(message.calls for message in prompt.messages):
        return "tools"
    if prompt.schema is not None:
        return "schema"
    if any(message.images for message in prompt.messages):
        return "images"
    return "text"


def bound_for(model: str | None, prompt: Prompt) -> float | None:
    """The published bound; None where there is none."""
    table = BOUNDS.get(family_of(model))
    return None if table is None else table.get(case_of(prompt))


BOUNDS: dict[str, dict[str, float]] = {
    "openai": {"text": 0.05, "tools": 0.30, "schema": 0.15, "images": 0.15},
    "claude": {"text": 0.50, "tools": 0.60},
}
