"""Where things stand in each provider's answers: one table entry for each shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._values import dataclass
from ..fields import Path, dig, get, items
from ..usage import Written
from . import written


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of answer."""

    provider: str
    api: str
    words: Callable[[Any], Written]
    """What the model wrote, of a whole answer."""
    signs: tuple[Path, ...] = ()
    """Where all of these lead somewhere, an answer without a telling `object` or `type` has this shape."""
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
RERANK = Shape("openai", "rerank", written.nothing)
RUNS = Shape("openai", "assistants", written.nothing)
IMAGES = Shape("openai", "images", written.nothing)
AUDIO = Shape("openai", "audio", written.nothing)
MESSAGES = Shape("anthropic", "messages", written.from_content)
GEMINI = Shape(
    "google", "generate_content", written.from_candidates,
    usage=(("usageMetadata",), ("usage_metadata",)),
    model=(("modelVersion",), ("model_version",)),
    id=(("responseId",), ("response_id",)),
)  # fmt: skip
CONVERSE = Shape(
    "bedrock", "converse", written.from_converse,
    signs=(("output", "message"),),
    id=(("ResponseMetadata", "RequestId"),),
)  # fmt: skip
TITAN = Shape(
    "bedrock", "invoke", written.from_titan,
    signs=(("inputTextTokenCount",),), usage=((),),
)  # fmt: skip
LLAMA = Shape(
    "bedrock", "invoke", written.from_generation,
    signs=(("generation_token_count",),), usage=((),),
)  # fmt: skip
COHERE = Shape(
    "cohere", "chat", written.from_cohere,
    usage=(("usage",), ("meta",), ("response", "meta")),
    id=(("id",), ("response_id",), ("generation_id",)),
)  # fmt: skip
OLLAMA = Shape(
    "ollama", "chat", written.from_ollama,
    signs=(("done",), ("model",)), usage=((),), id=(),
)  # fmt: skip
OLLAMA_EMBEDDINGS = Shape(
    "ollama", "embeddings", written.nothing,
    signs=(("embeddings",), ("prompt_eval_count",)), usage=((),), id=(),
)  # fmt: skip
INTERACTIONS = Shape("google", "interactions", written.from_steps)
CONVERSATIONS = Shape("mistral", "conversations", written.from_outputs, id=())
WATSONX_CHAT = Shape("watsonx", "chat", written.from_choices, model=(("model_id",),))
WATSONX = Shape(
    "watsonx", "completions", written.from_results,
    signs=(("model_id",), ("results",)), usage=((),), model=(("model_id",),), id=(),
)  # fmt: skip
TGI = Shape(
    "huggingface", "completions", written.from_generated_text,
    signs=(("generated_text",),), usage=(("details",),), id=(),
)  # fmt: skip
VERTEX_EMBEDDINGS = Shape(
    "google", "embeddings", written.nothing,
    signs=(("predictions",),), usage=((),), id=(),
)  # fmt: skip
LANGCHAIN = Shape(
    "langchain", "chat", written.from_message,
    signs=(("usage_metadata", "input_tokens"),), usage=(("usage_metadata",),),
    model=(("response_metadata", "model_name"), ("response_metadata", "model")),
)  # fmt: skip

_SIGNED: tuple[tuple[tuple[Path, ...], Shape], ...] = (
    ((("usageMetadata",),), GEMINI),
    ((("usage_metadata", "prompt_token_count"),), GEMINI),
    ((("candidates",),), GEMINI),
    *((shape.signs, shape) for shape in (CONVERSE, TITAN, LLAMA, OLLAMA, OLLAMA_EMBEDDINGS, LANGCHAIN)),
    *((shape.signs, shape) for shape in (WATSONX, TGI, VERTEX_EMBEDDINGS)),
    ((("usage", "total_input_tokens"),), INTERACTIONS),
    ((("usage", "total_output_tokens"),), INTERACTIONS),
    ((("usage", "billed_units"),), COHERE),
    ((("usage", "tokens"),), COHERE),
    ((("meta", "billed_units"),), COHERE),
    ((("meta", "tokens"),), COHERE),
)

_BY_OBJECT = {
    "chat.completion": CHAT,
    "chat.completion.chunk": CHAT,
    "text_completion": COMPLETIONS,
    "text.completion": COMPLETIONS,  # Together
    "response": RESPONSES,
    "response.compaction": RESPONSES,
    "thread.run": RUNS,
    "list": EMBEDDINGS,
    "interaction": INTERACTIONS,
    "conversation.response": CONVERSATIONS,
}

_BY_TYPE = {"message": MESSAGES}

BY_API = {
    shape.api: shape
    for shape in (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, RERANK, RUNS, MESSAGES, GEMINI, CONVERSE)
}


def shape_of(answer: Any, api: str | None = None) -> Shape | None:
    """Whose shape an answer has; None where it is no answer of a model that we know.

    Args:
        answer: A mapping or an SDK's object.
        api: Decides where the answer itself does not.
    """
    shape = named_shape(get(answer, "object"), get(answer, "type"))
    if shape is not None:
        return _list_shape(answer) if shape is EMBEDDINGS else shape
    choices = get(answer, "choices")
    if choices is not None:
        if get(answer, "model") is None and get(answer, "model_id") is not None:
            return WATSONX_CHAT
        only = items(choices)
        return COMPLETIONS if only and get(only[0], "text") is not None else CHAT
    for signs, shape in _SIGNED:
        if all(dig(answer, path) is not None for path in signs):
            return shape
    return BY_API.get(api) if api is not None else None


def named_shape(object: Any, type: Any) -> Shape | None:
    """The shape of an answer that calls itself so; a list may be of anything."""
    return _BY_OBJECT.get(_str(object)) or _BY_TYPE.get(_str(type))


def _list_shape(answer: Any) -> Shape | None:
    """A list of models or files is an `object: "list"` too."""
    data = items(get(answer, "data"))
    if data and get(data[0], "relevance_score") is not None:
        return RERANK
    if get(answer, "usage") is not None or (data and get(data[0], "object") == "embedding"):
        return EMBEDDINGS
    return None


def _str(value: Any) -> str:
    return value if isinstance(value, str) else ""
