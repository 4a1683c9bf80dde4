"""Counts as libraries hand them on: parts that their totals include, and zeros where nothing was said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from ..providers import read_response
from ..usage import Reading

if TYPE_CHECKING:
    from ..capture.recorder import Recorder


class Home(Protocol):
    """What an adapter needs of `Metering`."""

    @property
    def recorder(self) -> Recorder: ...


def reading_of(
    counts: Mapping[str, Any],
    *,
    model: Any = None,
    response_id: Any = None,
    provider: Any = None,
    api: str | None = None,
) -> Reading:
    """Take totals and the parts that they include apart; what cannot be believed has a `problem`.

    Args:
        counts: Of `input`, `output`, and their parts `cached`, `written`, `input_audio`, `cached_audio`,
            `output_audio` and `reasoning`. A part that is None or 0 is left out, and so are totals that are
            both: a library that was told nothing says 0.
        model: As the library names it; what is no text is left out, as of the other names.
        response_id: The provider's.
        provider: Such as "openai".
        api: "embeddings", or None for some generation.
    """
    given = {name: counts.get(name) for name in (*_TOTALS, *_PARTS)}
    # False is no count, and equals 0.
    told = {name: value for name, value in given.items() if value is False or value not in (None, 0)}
    usage: dict[str, Any] = {"input_tokens": given["input"], "output_tokens": given["output"]} if told else {}
    for name, path in _PARTS.items():
        if name in told:
            _put(usage, path, told[name])
    reading = read_response(
        {"object": "response", "usage": {k: v for k, v in usage.items() if v is not None}} if usage else {},
        provider=_text(provider),
        api=api,
    )
    return replace(
        reading, api=api, provider=_text(provider), model=_text(model), response_id=_text(response_id)
    )


_TOTALS = ("input", "output")
_PARTS = {
    "cached": ("input_tokens_details", "cached_tokens"),
    "written": ("input_tokens_details", "cache_write_tokens"),
    "input_audio": ("input_tokens_details", "audio_tokens"),
    "cached_audio": ("input_tokens_details", "cached_tokens_details", "audio_tokens"),
    "output_audio": ("output_tokens_details", "audio_tokens"),
    "reasoning": ("output_tokens_details", "reasoning_tokens"),
}


def _put(target: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *outer, name = path
    for each in outer:
        target = target.setdefault(each, {})
    target[name] = value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def texts(dimensions: Mapping[str, Any]) -> dict[str, str]:
    """Dimensions as they are recorded."""
    return {name: str(value) for name, value in dimensions.items() if value is not None}
