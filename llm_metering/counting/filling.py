"""Filling in what a provider did not report: prompt and answer counted by us, and how far to trust that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..usage import Provenance, Reading, Usage, Written
from . import bounds
from .models import encoding_for, is_reasoning
from .parts import Prompt
from .prompts import answer_tokens, prompt_tokens, thought_tokens
from .requests import prompt_of

HIDDEN_REASONING = "hidden reasoning"
NO_WORDS = Written()


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

    None where they agree, and where there is no bound to hold them to. Answers of models that think unseen
    are not compared: what they report as reasoning is not always all of it.
    """
    if counted.bound is None or not reported.usage:
        return None
    pairs = [("prompt", reported.usage.input_total, counted.usage.input_total)]
    if not is_reasoning(reported.model):
        pairs.append(("answer", *_answers(reported.usage, counted.usage)))
    found = [
        f"{name}: {theirs} reported, {ours} counted"
        for name, theirs, ours in pairs
        if theirs is not None and ours is not None and not _is_near(theirs, ours, counted.bound)
    ]
    if not found:
        return None
    return f"{'; '.join(found)} (bound {counted.bound:.0%} and {bounds.SLACK_TOKENS} tokens)"


def _is_near(theirs: int, ours: int, bound: float) -> bool:
    return abs(theirs - ours) <= bound * max(theirs, ours) + bounds.SLACK_TOKENS


def _answers(reported: Usage, counted: Usage) -> tuple[int | None, int | None]:
    """Both totals, without reasoning where the provider tells it apart."""
    if reported.reasoning is None:
        return reported.output_total, counted.output_total
    return (reported.output_total or 0) - reported.reasoning, counted.output


def _counted(reading: Reading, request: Any, model: str | None, known: Usage) -> Reading:
    if reading.api == "rerank":
        return reading
    prompt = prompt_of(request, reading.api)
    if reading.api is None and prompt.is_empty and not reading.text and reading.written is None:
        return reading  # not an answer that anybody knows: there is nothing to count in it
    model = reading.model or model or prompt.model
    leaves = known.as_dict()
    unknown: list[str] = []
    if known.input_total is None:
        tokens, unknown = prompt_tokens(prompt, model=model, api=reading.api)
        if tokens is not None:
            leaves["input"] = tokens
    if reading.api != "embeddings":
        unknown += _count_answer(reading, prompt, model, known, leaves)
    return replace(
        reading,
        usage=Usage(**leaves),
        provenance=_provenance(reading, prompt, model, bool(unknown)),
        text=None,
        written=None,
        bound=None if unknown else bounds.bound_for(model, prompt),
        uncounted="; ".join(dict.fromkeys(unknown)) or None,
    )


def _count_answer(
    reading: Reading, prompt: Prompt, model: str | None, known: Usage, leaves: dict[str, int]
) -> list[str]:
    """Add the answer to `leaves`; what of it could not be counted."""
    words = reading.written or Written((reading.text,) if reading.text else ())
    if words == NO_WORDS and known.output_total is not None:
        return []
    shown = answer_tokens(
        words,
        model=model,
        api=reading.api,
        asked=prompt,
        whole=reading.provenance != "partial",
    )
    thought = thought_tokens(words, model=model)
    if thought is not None and known.reasoning is None:
        leaves["reasoning"] = thought
    # A running total of the provider's is a floor: it has seen what did not reach us.
    rest = sum(leaves.get(name, 0) for name in ("reasoning", "output_audio", "output_image"))
    leaves["output"] = max(shown, (known.output_total or 0) - rest, 0)
    is_hidden = thought is None and (is_reasoning(model) or bool(words.thoughts))
    return [HIDDEN_REASONING] if is_hidden and reading.usage.reasoning is None else []


def _provenance(reading: Reading, prompt: Prompt, model: str | None, incomplete: bool) -> Provenance:
    if reading.provenance == "partial":
        return "partial"
    exact = encoding_for(model)[1] and not incomplete and bounds.case_of(prompt) == "text"
    return "counted" if exact else "estimated"
