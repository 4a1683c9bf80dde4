"""The words: what was used, by whom, and what Stripe will be told.

`Usage` is counts. A `Reading` is counts found in a provider's answer. A `UsageRecord` adds who, what for
and when. `Line`s are what one record adds to each meter. A `MeterEvent` is what Stripe receives, frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from ._values import dataclass

if TYPE_CHECKING:
    from decimal import Decimal

Provenance = Literal["reported", "partial", "counted", "estimated"]
"""Where counts come from: the provider said so; it said so for a part (an aborted stream); our tokenizer
with the model's own encoding; a tokenizer or factor that is not the model's own."""

Surface = Literal[
    "client", "decorator", "middleware", "record", "transport",
    "langchain", "litellm", "openai_agents", "opentelemetry", "pydantic_ai",
]  # fmt: skip
"""Which part of the package saw the call; an adapter is named for what it listens to."""

MAX_TOKENS = 2**63 - 1
"""The largest count that a ledger can hold."""

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts in disjoint leaves: no token is counted in two of them.

    A leaf is None where the provider did not say; 0 means that it said 0.
    """

    input: int | None = None
    """Prompt tokens that were neither read from a cache nor written to one; text unless told apart."""
    cached_input: int | None = None
    """Prompt tokens read from the provider's cache."""
    cached_write: int | None = None
    """Prompt tokens written to the provider's cache."""
    output: int | None = None
    """Completion tokens that the caller can see, and rejected predictions."""
    reasoning: int | None = None
    """Completion tokens spent on hidden reasoning."""
    input_audio: int | None = None
    """Prompt tokens of audio, not cached."""
    cached_input_audio: int | None = None
    """Prompt tokens of audio read from the cache."""
    output_audio: int | None = None
    """Completion tokens of audio."""
    input_image: int | None = None
    """Prompt tokens of images, not cached."""
    cached_input_image: int | None = None
    """Prompt tokens of images read from the cache."""
    output_image: int | None = None
    """Completion tokens of images."""

    def __post_init__(self) -> None:
        # Spelled out, because it runs for every answer.
        for value in (
            self.input, self.cached_input, self.cached_write, self.output, self.reasoning,
            self.input_audio, self.cached_input_audio, self.output_audio,
            self.input_image, self.cached_input_image, self.output_image,
        ):  # fmt: skip
            if value is not None and (type(value) is not int or not 0 <= value <= MAX_TOKENS):
                name = next(n for n in LEAVES if getattr(self, n) is value)
                raise ValueError(
                    f"Usage.{name} must be a whole number from 0 to 2**63-1 or None, not {value!r}"
                )

    @property
    def input_total(self) -> int | None:
        """All prompt tokens, cached ones included; None where nothing is known of them."""
        return _total(self, _INPUT_LEAVES)

    @property
    def output_total(self) -> int | None:
        """All completion tokens, reasoning included; None where nothing is known of them."""
        return _total(self, _OUTPUT_LEAVES)

    @property
    def total(self) -> int | None:
        """All tokens, as the provider bills them; None where nothing is known."""
        return _total(self, LEAVES)

    def leaves(self) -> Iterator[tuple[str, int]]:
        """The leaves that are known, as (name, count)."""
        for name in LEAVES:
            value = getattr(self, name)
            if value is not None:
                yield name, value

    def as_dict(self) -> dict[str, int]:
        """The known leaves by name."""
        return dict(self.leaves())

    def __bool__(self) -> bool:
        """Whether any leaf is known (0 counts as known)."""
        if self.input is not None or self.output is not None:
            return True
        return any(getattr(self, name) is not None for name in LEAVES)


LEAVES: tuple[str, ...] = tuple(f.name for f in fields(Usage))

TOKEN_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "input": "input",
        "cached_input": "cached_input",
        "cached_write": "cached_write",
        "output": "output",
        "reasoning": "output",
        "input_audio": "input",
        "cached_input_audio": "cached_input",
        "output_audio": "output",
        "input_image": "input",
        "cached_input_image": "cached_input",
        "output_image": "output",
    }
)
"""The `token_type` that Stripe is told, by leaf: reasoning is output, audio goes with its direction."""

_INPUT_LEAVES = tuple(n for n in LEAVES if "output" not in n and n != "reasoning")
_OUTPUT_LEAVES = tuple(n for n in LEAVES if n not in _INPUT_LEAVES)


def _total(usage: Usage, names: tuple[str, ...]) -> int | None:
    known = [value for name in names if (value := getattr(usage, name)) is not None]
    return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote, kept only while its tokens may have to be counted; never stored."""

    texts: tuple[str, ...] = ()
    """The visible text of each choice."""
    calls: tuple[tuple[str, str], ...] = ()
    """Each tool call's name and arguments."""
    thoughts: str = ""
    """Reasoning that the provider showed."""

    def __bool__(self) -> bool:
        """Whether there is anything to count."""
        return bool(self.texts or self.calls or self.thoughts)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader found in a provider's answer."""

    usage: Usage = Usage()
    model: str | None = None
    """The model that the answer names, as the provider spells it."""
    response_id: str | None = None
    provenance: Provenance = "reported"
    provider: str | None = None
    """Such as "openai" or "anthropic": whose shape the answer has."""
    api: str | None = None
    """Such as "chat", "completions", "responses", "embeddings", "messages"."""
    problem: str | None = None
    """Why the reported usage cannot be believed (negative, not a number, too large); then `usage` is
    empty and the record is set aside."""
    text: str | None = None
    """The answer's visible text, kept only while it is needed to count tokens; never stored."""
    written: Written | None = None
    """As `text`, where there is more to count than one plain text: several choices, tool calls, thoughts."""
    bound: float | None = None
    """By what share our own count may be off, as published in docs/accuracy.md; None where it was not
    counted, or where what was counted has no bound."""
    uncounted: str | None = None
    """What our count leaves out because it cannot be told from the request and the text, such as hidden
    reasoning or hosted tools."""
    beside: tuple[Reading, ...] = ()
    """What other models used for this answer, such as an advisor; not part of `usage`, recorded apart."""


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One call's usage: counts plus customer, dimensions, time and id. It is what a ledger keeps."""

    id: str
    """Unique; recording the same id twice in one lane records it once."""
    usage: Usage
    used_at: float
    """When the usage happened, Unix seconds."""
    customer: str | None = None
    """Stripe customer id; None is unresolved: kept, shown, assignable later."""
    model: str | None = None
    provider: str | None = None
    provenance: Provenance = "reported"
    response_id: str | None = None
    dimensions: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    """What the caller added, such as feature or region."""
    surface: Surface = "record"
    held: str | None = None
    """Why this record is kept out of billing for now (unreadable usage, `bill` set to hold)."""


@dataclass(frozen=True, slots=True)
class Line:
    """What one record adds to one meter under one set of dimensions."""

    event_name: str
    value: Decimal | int
    dimensions: tuple[tuple[str, str], ...] = ()
    """Sorted payload keys beside customer and value."""
    customer_key: str = "stripe_customer_id"
    value_key: str = "value"
    aggregation: Literal["sum", "count", "last"] = "sum"


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """What Stripe receives. Identifier, payload and timestamp are frozen before the first byte is sent."""

    identifier: str
    """At most 100 characters; Stripe refuses it a second time for at least 24 hours."""
    event_name: str
    customer: str
    value: Decimal
    timestamp: int
    """Unix seconds: the last `used_at` inside, never a bucket's start."""
    payload: Mapping[str, str]
    """Customer key, value key and dimensions, all strings, as they go over the wire."""
