"""Usage that a provider reports in the headers of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..usage import Reading
from .answers import believed

_BEDROCK = {
    "x-amzn-bedrock-input-token-count": "inputTokenCount",
    "x-amzn-bedrock-output-token-count": "outputTokenCount",
    "x-amzn-bedrock-cache-read-input-token-count": "cacheReadInputTokenCount",
    "x-amzn-bedrock-cache-write-input-token-count": "cacheWriteInputTokenCount",
}
"""What Bedrock adds to every model's answer, spelled as in the metrics of its streams."""
_TGI = {"x-prompt-tokens": "input_length", "x-generated-tokens": "generated_tokens"}
"""What Hugging Face's server adds, spelled as in its streams."""
_FAMILIES = (("bedrock", _BEDROCK), ("huggingface", _TGI))


def with_headers(reading: Reading, headers: Mapping[str, Any]) -> Reading:
    """A reading with what the headers say, where the answer itself said nothing."""
    if reading.usage.input_total is not None and reading.usage.output_total is not None:
        return reading
    for provider, names in _FAMILIES:
        counts = {name: _count(headers.get(header)) for header, name in names.items()}
        if any(count is not None for count in counts.values()):
            return _filled(reading, provider, {n: c for n, c in counts.items() if c is not None})
    return reading


def _filled(reading: Reading, provider: str, said: dict[str, int]) -> Reading:
    usage, problem = believed(said)
    if problem is not None:
        return reading
    known = {**usage.as_dict(), **reading.usage.as_dict()}
    return replace(
        reading,
        usage=replace(usage, **known),
        provider=reading.provider or provider,
        problem=None,
        provenance="reported",
        text=None,
        written=None,
    )


def _count(value: Any) -> int | None:
    text = str(value) if value is not None else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
