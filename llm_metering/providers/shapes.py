"""Where things stand in each provider's answers: one table entry for each shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..fields import Path, get, items
from ..usage import Written
from . import written


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of answer."""

    provider: str
    api: str
    words: Callable[[Any], Written]
    """What the model wrote, of a whole answer."""
    usage: tuple[Path, ...] = (("usage",),)
    """Where the usage object is; the empty path is the answer itself."""
    model: tuple[Path, ...] = (("model",),)
    id: tuple[Path, ...] = (("id",),)


CHAT = Shape(
    "openai", "chat", written.from_choices,
    usage=(("usage",), ("x_groq", "usage")),
)  # fmt: skip
COMPLETIONS = Shape("openai", "completions", written.from_choices)
RESPONSES = Shape("openai", "responses", written.from_output)
EMBEDDINGS = Shape("openai", "embeddings", written.nothing)
RUNS = Shape("openai", "assistants", written.nothing)
MESSAGES = Shape("anthropic", "messages", written.from_content)

BY_API = {shape.api: shape for shape in (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, RUNS, MESSAGES)}

_BY_OBJECT = {
    "chat.completion": CHAT,
    "chat.completion.chunk": CHAT,
    "text_completion": COMPLETIONS,
    "text.completion": COMPLETIONS,  # Together
    "response": RESPONSES,
    "thread.run": RUNS,
    "list": EMBEDDINGS,
}

_BY_TYPE = {"message": MESSAGES}


def shape_of(answer: Any, api: str | None = None) -> Shape | None:
    """Whose shape an answer has; None where it is no answer of a model that we know."""
    if api is not None and api in BY_API:
        return BY_API[api]
    shape = _BY_OBJECT.get(_str(get(answer, "object"))) or _BY_TYPE.get(_str(get(answer, "type")))
    if shape is EMBEDDINGS and not _is_embeddings(answer):
        return None
    if shape is not None:
        return shape
    choices = get(answer, "choices")
    if choices is not None:
        only = items(choices)
        return COMPLETIONS if only and get(only[0], "text") is not None else CHAT
    return None


def _is_embeddings(answer: Any) -> bool:
    """A list of models or files is an `object: "list"` too."""
    data = items(get(answer, "data"))
    return get(answer, "usage") is not None or (bool(data) and get(data[0], "object") == "embedding")


def _str(value: Any) -> str:
    return value if isinstance(value, str) else ""
