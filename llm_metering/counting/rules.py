"""What wraps the text: each family's and API's overheads, read off reported usage, with their errors.

`benchmarks/accuracy.py` measures them against recorded answers and writes docs/accuracy.md.
"""

from __future__ import annotations

import re

from .._values import dataclass
from .models import base_name, family_of, is_reasoning


@dataclass(frozen=True, slots=True)
class Family:
    """How a family's own tokenizer and wrapping differ from o200k and no wrapping."""

    factor: float
    """Its tokens over o200k's, of the same text."""
    message: float = 0.0
    """Tokens round each message of a prompt but the system's."""
    prompt: float = 0.0
    """Tokens round the whole prompt."""
    answer: float = 0.0
    """Tokens round an answer."""
    tools: float = 0.0
    """Tokens of the instructions that come with tools."""
    call: float = 10.0
    """Tokens round a tool call."""


OPENAI = Family(1.0)

FAMILIES: dict[str, Family] = {
    "openai": OPENAI,
    "claude": Family(1.155, message=3, prompt=5, answer=3, tools=300, call=40),
    "claude-opus-4-8": Family(1.43, message=3, prompt=5, answer=3, tools=300, call=40),
    "gemini": Family(1.04),
    "llama": Family(1.05, message=5, prompt=6),
    "mistral": Family(1.08, message=3),
    "deepseek": Family(1.03, message=3, prompt=2),
    "nova": Family(1.01, message=2, tools=330, call=50),
    "cohere": Family(1.05),
}
UNKNOWN = Family(1.05, message=4, prompt=3)


def family_rules(model: str | None) -> Family:
    """The rules of a model's family."""
    name = base_name(model)
    if re.match(r"claude-opus-4-(?:[89]|\d\d)", name):
        return FAMILIES["claude-opus-4-8"]
    return FAMILIES.get(family_of(model), UNKNOWN)


@dataclass(frozen=True, slots=True)
class Wrapping:
    """What OpenAI puts round the texts of an API."""

    message: int = 3
    prompt: int = 3
    name: int = 1
    tools: int = 8
    """Round the namespace of tools, where there is no system message to hold it."""
    in_system: int = -3
    """Added where there is one."""
    required: int = 0
    named: int = 4
    """Beside the name of the function that must be called."""
    schema: int = 8
    schema_in_system: int = -4
    call_item: int = 11
    output_item: int = 6
    text: int = 0
    """Round an answer's text."""
    text_with_tools: int = 1
    calls: tuple[int, ...] = (0, 7, 28, 34)
    """Round an answer's tool calls, by their number; each further one adds the last step."""
    reasoning: int = 9
    """Round the visible text of a model that thinks first."""


CHAT = Wrapping()
RESPONSES = Wrapping(
    tools=3, in_system=0, required=9, named=7, schema=1, schema_in_system=0, text=1, text_with_tools=2,
    calls=(0, 8, 30, 36), reasoning=6,
)  # fmt: skip

OLD_TOOLS = 9
"""Round the namespace of tools, in models with cl100k."""


def round_calls(wrapping: Wrapping, n: int) -> int:
    """Tokens round `n` tool calls of one answer."""
    table = wrapping.calls
    return table[n] if n < len(table) else table[-1] + (n - len(table) + 1) * (table[-1] - table[-2])


def prompt_discount(model: str | None) -> int:
    """Models that think first report a prompt one token shorter."""
    return 1 if is_reasoning(model) else 0


def answer_extra(model: str | None) -> int:
    """gpt-4.1-mini reports one token more for an answer."""
    return 1 if base_name(model).startswith("gpt-4.1-mini") else 0
