"""Filling in what a provider did not report: prompt and answer counted by us, and how far to trust that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..usage import Provenance, Reading, Usage, Written
from . import bounds
from .models import encoding_for, is_reasoning
from .prompts import answer_tokens, prompt_tokens
from .requests import Prompt, prompt_of

HIDDEN_REASONING = "hidden reasoning"


def fill(reading: Reading, request: Any = None, *, model: str | None = None) -> Reading:
    """Count what a reading lacks. What was reported stays; an answer that was broken off is counted as far
    as it came, and no lower than the provider's running total.

    Args:
        reading: What was read; one with reported usage or a problem is given back as it is.
        request: The call's payload (mapping or JSON), its messages, or its prompt as plain text.
        model: Used where the reading names none.
    """
    if reading.problem is not None or (reading.usage and reading.provenance == "reported"):
        return reading
    return _counted(reading, request, model, reading.usage)


def recount(reading: Reading, request: Any = None, *, model: str | None = None) -> Reading:
    """Count everything ourselves, whatever was reported. The reading must have kept its text."""
    if reading.problem is not None:
        return reading
    return _counted(reading, request, model, Usage())


def audit_difference(reported: Reading, counted: Reading) -> str | None:
    """How a reported usage and our own count differ beyond the published bound, in one sentence.

    None where they agree, and where there is no bound to hold them to.
    """
    if counted.bound is None or not reported.usage:
        return None
    found = []
    for name, theirs, ours in (
        ("prompt", reported.usage.input_total, counted.usage.input_total),
        ("answer", _visible(reported.usage), _visible(counted.usage)),
    ):
        if theirs is None or ours is None:
            continue
        if abs(theirs - ours) > counted.bound * max(theirs, ours) + bounds.SLACK_TOKENS:
            found.append(f"{name} {theirs} reported, {ours} counted")
    if not found:
        return None
    return f"{'; '.join(found)} (bound {counted.bound:.1%} and {bounds.SLACK_TOKENS} tokens)"


def _visible(usage: Usage) -> int | None:
    total = usage.output_total
    return None if total is None else total - (usage.reasoning or 0)


def _counted(reading: Reading, request: Any, model: str | None, known: Usage) -> Reading:
    api = reading.api
    prompt = prompt_of(request, api)
    if api is None and prompt.empty and not _words_of(reading):
        return reading  # not an answer that anybody knows: there is nothing to count in it
    model = reading.model or model or prompt.model
    leaves = known.as_dict()
    unknown: list[str] = []
    if known.input_total is None and not prompt.empty:
        leaves["input"], unknown = prompt_tokens(prompt, model=model, api=api)
    elif known.input_total is None:
        unknown = ["the prompt"]
    hidden = _count_answer(reading, prompt, model, known, leaves)
    if hidden and reading.usage.reasoning is None:
        unknown.append(HIDDEN_REASONING)
    bound = None if unknown else bounds.bound_for(model, api, prompt)
    return replace(
        reading,
        usage=Usage(**leaves),
        provenance=_provenance(reading, prompt, model, bool(unknown)),
        text=None,
        written=None,
        bound=bound,
        uncounted="; ".join(dict.fromkeys(unknown)) or None,
    )


def _count_answer(
    reading: Reading, prompt: Prompt, model: str | None, known: Usage, leaves: dict[str, int]
) -> bool:
    """Add the answer to `leaves`; whether the model thought unseen."""
    words = _words_of(reading)
    if reading.api in ("embeddings", "rerank"):
        return False
    if not words and known.output_total is not None:
        return False
    count = answer_tokens(
        words,
        model=model,
        api=reading.api,
        with_tools=bool(prompt.functions),
        whole=reading.provenance != "partial",
    )
    rest = sum(
        count for name, count in known.leaves() if name in ("reasoning", "output_audio", "output_image")
    )
    leaves["output"] = max(count - rest, known.output or 0)
    return is_reasoning(model) and not words.thoughts


def _words_of(reading: Reading) -> Written:
    return reading.written or Written((reading.text,) if reading.text else ())


def _provenance(reading: Reading, prompt: Prompt, model: str | None, incomplete: bool) -> Provenance:
    if reading.provenance == "partial":
        return "partial"
    exact = encoding_for(model)[1] and not incomplete and not prompt.functions and prompt.schema is None
    return "counted" if exact else "estimated"
