"""What the numbers in a provider's usage object mean: the tables, and the arithmetic that takes them apart.

A provider's numbers overlap in its own way. Each number names a slot (what it is, once, however it is
spelled) and what it does to the disjoint leaves of `Usage`: `prompt_tokens` adds to `input`, and
`cached_tokens`, which it includes, adds to `cached_input` and takes from `input`. A new provider is a new
table, or a few names in one that is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..fields import fields, get, items
from ..usage import MAX_TOKENS, Usage

Effects = tuple[tuple[str, int], ...]
Found = dict[str, tuple[int, Effects]]


@dataclass(frozen=True, slots=True)
class Number:
    """One number of a usage object."""

    slot: str
    """What it is. Two names of one slot are two spellings; the first that is there counts."""
    effects: Effects
    needed: bool = False
    """Whether null is a fault rather than "not said"."""


@dataclass(frozen=True, slots=True)
class ByModality:
    """A list of `{modality, tokenCount}`, one number for each kind of content."""

    numbers: Mapping[str, Number]


Names = Mapping[str, "Number | ByModality | Names"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one family of providers spells its usage."""

    keys: tuple[str, ...]
    """Any of these in a usage object says that it is this dialect."""
    names: Names
    total: str | None = None
    """Its sum, to tell whether the completion holds the reasoning."""


class UnbelievableUsage(ValueError):
    """A reported number that cannot be a count of tokens."""


def usage_of(reported: Any, dialect: Dialect) -> Usage:
    """Take reported numbers apart into disjoint leaves; raise `UnbelievableUsage` where they cannot be."""
    found: Found = {}
    _collect(fields(reported), dialect.names, found)
    leaves = _leaves(found)
    if dialect.total is not None and "reasoning" in leaves:
        leaves = _reasoning_apart(leaves, found, get(reported, dialect.total))
    for name, count in leaves.items():
        if count < 0:
            raise UnbelievableUsage(f"the parts of {name} add up to more than their total (by {-count})")
        if count > MAX_TOKENS:
            raise UnbelievableUsage(f"{name} is above 2**63-1")
    return Usage(**leaves)


def dialect_of(reported: Any) -> Dialect | None:
    """The dialect that a usage object's own names show."""
    present = fields(reported)
    for dialect in DIALECTS:
        for key in dialect.keys:
            if present.get(key) is not None:
                return dialect
    return None


def _collect(present: Mapping[str, Any], names: Names, found: Found) -> None:
    for name, value in present.items():
        rule = names.get(name)
        if rule is None:
            continue
        if isinstance(rule, Number):
            _note(name, value, rule, found)
        elif isinstance(rule, ByModality):
            for part in items(value):
                kind = MODALITIES.get(str(getattr(get(part, "modality"), "value", get(part, "modality"))))
                if kind is not None and kind in rule.numbers:
                    count = get(part, "tokenCount")
                    count = get(part, "token_count") if count is None else count
                    _note(name, count, rule.numbers[kind], found)
        elif value is not None:
            _collect(fields(value), rule, found)


def _note(name: str, value: Any, number: Number, found: Found) -> None:
    if value is None:
        if number.needed:
            raise UnbelievableUsage(f"{name} is null")
        return
    if type(value) is not int:
        raise UnbelievableUsage(f"{name} is {_shown(value)}, not a whole number")
    if not 0 <= value <= MAX_TOKENS:
        raise UnbelievableUsage(f"{name} is {'negative' if value < 0 else 'above 2**63-1'}")
    if number.slot not in found:
        found[number.slot] = value, number.effects


def _leaves(found: Found) -> dict[str, int]:
    leaves: dict[str, int] = {}
    taken: list[tuple[str, int]] = []
    for count, effects in found.values():
        for leaf, sign in effects:
            if sign > 0:
                leaves[leaf] = leaves.get(leaf, 0) + count
            else:
                taken.append((leaf, count))
    for leaf, count in taken:
        # A part of a total that was not reported cannot be taken from it.
        if leaf in leaves:
            leaves[leaf] -= count
    return leaves


def _reasoning_apart(leaves: dict[str, int], found: Found, total: Any) -> dict[str, int]:
    """Give the completion back what was taken, where the total shows that it never held the reasoning.

    xAI, and Gemini behind OpenAI's shape: total = prompt + completion + reasoning.
    """
    prompt, completion, reasoning = (found.get(s, (0,))[0] for s in ("input", "output", "reasoning"))
    if reasoning and total == prompt + completion + reasoning and "output" in leaves:
        leaves["output"] += reasoning
    return leaves


def _shown(value: Any) -> str:
    if isinstance(value, (str, float, bool)):
        return repr(value)[:40]
    return f"a {type(value).__name__}"


def _number(slot: str, plus: str, minus: str = "", needed: bool = False) -> Number:
    """`plus` and `minus` name leaves, parted by spaces."""
    effects = [(leaf, 1) for leaf in plus.split()] + [(leaf, -1) for leaf in minus.split()]
    return Number(slot, tuple(effects), needed)


MODALITIES = {
    "AUDIO": "audio", "IMAGE": "image", "audio": "audio", "image": "image",
    "2": "image", "4": "audio",  # Vertex, as protobuf numbers
}  # fmt: skip

_INPUT = _number("input", "input")
_OUTPUT = _number("output", "output")
_INPUT_NEEDED = _number("input", "input", needed=True)
_OUTPUT_NEEDED = _number("output", "output", needed=True)

# Parts of an input or output that includes them.
_CACHED = _number("cached", "cached_input", "input")
_WRITTEN = _number("written", "cached_write", "input")
_REASONING = _number("reasoning", "reasoning", "output")
_INPUT_AUDIO = _number("input_audio", "input_audio", "input")
_INPUT_IMAGE = _number("input_image", "input_image", "input")
_OUTPUT_AUDIO = _number("output_audio", "output_audio", "output")
_OUTPUT_IMAGE = _number("output_image", "output_image", "output")
# A part of the cached and of the audio tokens at once: both took it from the input, which gets it back.
_CACHED_AUDIO = _number("cached_audio", "cached_input_audio input", "cached_input input_audio")
_CACHED_IMAGE = _number("cached_image", "cached_input_image input", "cached_input input_image")

# Beside an input that excludes them.
_CACHED_BESIDE = _number("cached", "cached_input")
_WRITTEN_BESIDE = _number("written", "cached_write")

_OPENAI_INPUT_DETAILS: Names = {
    "cached_tokens": _CACHED,
    "cache_write_tokens": _WRITTEN,
    "audio_tokens": _INPUT_AUDIO,
    "image_tokens": _INPUT_IMAGE,
    "cached_tokens_details": {"audio_tokens": _CACHED_AUDIO, "image_tokens": _CACHED_IMAGE},
}
_OPENAI_OUTPUT_DETAILS: Names = {
    "reasoning_tokens": _REASONING,
    "audio_tokens": _OUTPUT_AUDIO,
    "image_tokens": _OUTPUT_IMAGE,
}

OPENAI = Dialect(
    keys=("prompt_tokens", "completion_tokens"),
    names={
        "prompt_tokens": _INPUT_NEEDED,
        "completion_tokens": _OUTPUT_NEEDED,
        "prompt_tokens_details": _OPENAI_INPUT_DETAILS,
        "prompt_token_details": _OPENAI_INPUT_DETAILS,  # Assistants, Writer
        "completion_tokens_details": _OPENAI_OUTPUT_DETAILS,
        "completion_token_details": _OPENAI_OUTPUT_DETAILS,  # Writer
        "prompt_cache_hit_tokens": _CACHED,  # DeepSeek
        "cached_tokens": _CACHED,  # Moonshot
        "cache_read_input_tokens": _CACHED,  # LiteLLM adds Anthropic's to prompt_tokens
        "cache_creation_input_tokens": _WRITTEN,
        "reasoning_tokens": _REASONING,  # Perplexity
    },
    total="total_tokens",
)  # fmt: skip

ANTHROPIC_OR_RESPONSES = Dialect(
    keys=("input_tokens", "output_tokens", "cache_read_input_tokens"),
    names={
        "input_tokens": _INPUT,
        "output_tokens": _OUTPUT_NEEDED,
        # OpenAI's Responses, images, transcriptions and Realtime: parts of the input.
        "input_tokens_details": _OPENAI_INPUT_DETAILS,
        "input_token_details": _OPENAI_INPUT_DETAILS,
        "output_tokens_details": {**_OPENAI_OUTPUT_DETAILS, "thinking_tokens": _REASONING},
        "output_token_details": _OPENAI_OUTPUT_DETAILS,
        # Anthropic's Messages: beside the input.
        "cache_read_input_tokens": _CACHED_BESIDE,
        "cache_creation_input_tokens": _WRITTEN_BESIDE,
    },
    total="total_tokens",
)

TOTAL_ONLY = Dialect(keys=("total_tokens",), names={"total_tokens": _INPUT})
"""Embeddings and rerankers that report nothing but their sum (Voyage, Jina)."""

DIALECTS = (OPENAI, ANTHROPIC_OR_RESPONSES, TOTAL_ONLY)
