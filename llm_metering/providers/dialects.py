"""How each family of providers spells its usage. A new provider is a new table, or a few names in one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..fields import fields, get, is_object
from .numbers import ByModality, Dialect, Names, Number, Summed


def dialect_of(reported: Any) -> Dialect | None:
    """The dialect that a usage object's own names show."""
    present = fields(reported)
    for dialect in DIALECTS:
        for key in dialect.keys:
            if key in present:
                return dialect
    return None


def by_attributes(reported: Any) -> tuple[Dialect | None, Any]:
    """As `dialect_of`, for an object that keeps its counts behind properties, and its counts by name."""
    if is_object(reported) and not isinstance(reported, Mapping):
        for dialect in DIALECTS:
            if any(type(get(reported, key)) is int for key in dialect.keys):
                return dialect, {name: get(reported, name) for name in dialect.names}
    return None, reported


_INPUT = Number("input", "input")
_OUTPUT = Number("output", "output")
_INPUT_NEEDED = Number("input", "input", needed=True)
_OUTPUT_NEEDED = Number("output", "output", needed=True)

# Parts of an input or output that includes them.
_FROM_INPUT, _FROM_OUTPUT = (("input", -1),), (("output", -1),)
_CACHED = Number("cached", "cached_input", _FROM_INPUT)
_WRITTEN = Number("written", "cached_write", _FROM_INPUT)
_REASONING = Number("reasoning", "reasoning", _FROM_OUTPUT)
_INPUT_AUDIO = Number("input_audio", "input_audio", _FROM_INPUT)
_INPUT_IMAGE = Number("input_image", "input_image", _FROM_INPUT)
_OUTPUT_AUDIO = Number("output_audio", "output_audio", _FROM_OUTPUT)
_OUTPUT_IMAGE = Number("output_image", "output_image", _FROM_OUTPUT)
# Parts of the cached and of the audio tokens at once: both took it from the input, which gets it back.
_CACHED_AUDIO = Number(
    "cached_audio", "cached_input_audio", (("cached_input", -1), ("input_audio", -1), ("input", 1))
)
_CACHED_IMAGE = Number(
    "cached_image", "cached_input_image", (("cached_input", -1), ("input_image", -1), ("input", 1))
)

# LangChain's, for each time to live: then the one number for all of them is 0.
_WRITTEN_5M = Number("written_5m", "cached_write", _FROM_INPUT)
_WRITTEN_1H = Number("written_1h", "cached_write", _FROM_INPUT)

# Beside an input or output that excludes them.
_CACHED_BESIDE = Number("cached", "cached_input")
_WRITTEN_BESIDE = Number("written", "cached_write")
_REASONING_BESIDE = Number("reasoning", "reasoning")
_TOOL_INPUT = Number("tool_input", "input")
_CITED = Number("cited", "input")

_OPENAI_INPUT_DETAILS: Names = {
    "cached_tokens": _CACHED,
    "cache_write_tokens": _WRITTEN,
    "audio_tokens": _INPUT_AUDIO,
    "image_tokens": _INPUT_IMAGE,
    "cached_tokens_details": {"audio_tokens": _CACHED_AUDIO, "image_tokens": _CACHED_IMAGE},
    "cache_read": _CACHED,  # LangChain
    "priority_cache_read": _CACHED,  # by OpenAI's service tier
    "flex_cache_read": _CACHED,
    "cache_creation": _WRITTEN,
    "ephemeral_5m_input_tokens": _WRITTEN_5M,
    "ephemeral_1h_input_tokens": _WRITTEN_1H,
    "audio": _INPUT_AUDIO,
}
_OPENAI_OUTPUT_DETAILS: Names = {
    "reasoning_tokens": _REASONING,
    "audio_tokens": _OUTPUT_AUDIO,
    "image_tokens": _OUTPUT_IMAGE,
    "reasoning": _REASONING,  # LangChain
    "priority_reasoning": _REASONING,
    "flex_reasoning": _REASONING,
    "audio": _OUTPUT_AUDIO,
}

_OPENAI_NAMES: Names = {
    "prompt_tokens": _INPUT_NEEDED,
    "completion_tokens": _OUTPUT_NEEDED,
    "prompt_tokens_details": _OPENAI_INPUT_DETAILS,
    "prompt_token_details": _OPENAI_INPUT_DETAILS,  # Assistants, Writer
    "completion_tokens_details": _OPENAI_OUTPUT_DETAILS,
    "completion_token_details": _OPENAI_OUTPUT_DETAILS,  # Writer
    "prompt_cache_hit_tokens": _CACHED,  # DeepSeek
    "cached_tokens": _CACHED,  # Moonshot
    "num_cached_tokens": _CACHED,  # Mistral
    "cache_read_input_tokens": _CACHED,  # LiteLLM adds Anthropic's to prompt_tokens
    "cache_creation_input_tokens": _WRITTEN,
    "reasoning_tokens": _REASONING,  # SGLang
}
OPENAI = Dialect(
    keys=("prompt_tokens", "completion_tokens"),
    names=_OPENAI_NAMES,
    total="total_tokens",
    beyond="reasoning",
)

MISTRAL = Dialect(
    keys=("prompt_audio_seconds",),
    names=_OPENAI_NAMES,
    total="total_tokens",
    beyond="input_audio",
)
"""As OpenAI's; the tokens of audio are in the total only."""

PERPLEXITY = Dialect(
    keys=("citation_tokens", "num_search_queries"),
    names={**_OPENAI_NAMES, "citation_tokens": _CITED, "reasoning_tokens": _REASONING_BESIDE},
)
"""As OpenAI's; what its research read and thought is billed beside, and left out of the total."""

_COMPACTION = Summed(
    (
        (("input_tokens",), Number("compacted", "input")),
        (("output_tokens",), Number("summary", "output")),
        (("cache_read_input_tokens",), Number("compacted_cached", "cached_input")),
        (("cache_creation_input_tokens",), Number("compacted_written", "cached_write")),
    ),
    kind="compaction",
)
"""Anthropic's summary of a long conversation, which its own numbers leave out. What other models used, they
leave out too: see `answers.beside`."""

ANTHROPIC_OR_RESPONSES = Dialect(
    keys=("input_tokens", "output_tokens", "cache_read_input_tokens"),
    names={
        "input_tokens": _INPUT_NEEDED,
        "output_tokens": _OUTPUT_NEEDED,
        # OpenAI's Responses, images, transcriptions and Realtime: parts of the input.
        "input_tokens_details": _OPENAI_INPUT_DETAILS,
        "input_token_details": _OPENAI_INPUT_DETAILS,
        "prompt_tokens_details": _OPENAI_INPUT_DETAILS,  # Alibaba's own API
        "output_tokens_details": {**_OPENAI_OUTPUT_DETAILS, "thinking_tokens": _REASONING},
        "output_token_details": _OPENAI_OUTPUT_DETAILS,
        # Anthropic's Messages: beside the input.
        "cache_read_input_tokens": _CACHED_BESIDE,
        "cache_creation_input_tokens": _WRITTEN_BESIDE,
        "iterations": _COMPACTION,
    },
    total="total_tokens",
)

_INPUT_BY_KIND = ByModality({"audio": _INPUT_AUDIO, "image": _INPUT_IMAGE})
_CACHED_BY_KIND = ByModality({"audio": _CACHED_AUDIO, "image": _CACHED_IMAGE})
_OUTPUT_BY_KIND = ByModality({"audio": _OUTPUT_AUDIO, "image": _OUTPUT_IMAGE})


def _spelled(name: str) -> str:
    return re.sub("[A-Z]", lambda m: "_" + m[0].lower(), name)


_GEMINI_NAMES: dict[str, Number | ByModality] = {
    "promptTokenCount": _INPUT,
    "candidatesTokenCount": _OUTPUT,
    "responseTokenCount": _OUTPUT,  # Live
    "thoughtsTokenCount": _REASONING_BESIDE,
    "cachedContentTokenCount": _CACHED,
    "toolUsePromptTokenCount": _TOOL_INPUT,
    "promptTokensDetails": _INPUT_BY_KIND,
    "toolUsePromptTokensDetails": _INPUT_BY_KIND,
    "cacheTokensDetails": _CACHED_BY_KIND,
    "candidatesTokensDetails": _OUTPUT_BY_KIND,
    "responseTokensDetails": _OUTPUT_BY_KIND,
}

GEMINI = Dialect(
    keys=("promptTokenCount", "totalTokenCount", "candidatesTokenCount", "thoughtsTokenCount"),
    names=_GEMINI_NAMES,
    total="totalTokenCount",
)
GEMINI_SDK = Dialect(
    keys=tuple(map(_spelled, GEMINI.keys)),
    names={
        **{_spelled(name): number for name, number in _GEMINI_NAMES.items()},
        "generation_token_count": _OUTPUT,  # Llama on Bedrock shares prompt_token_count
    },
    total="total_token_count",
)
"""As the SDKs spell it."""

CONVERSE = Dialect(
    keys=("inputTokens", "outputTokens"),
    names={
        "inputTokens": _INPUT,
        "outputTokens": _OUTPUT,
        "cacheReadInputTokens": _CACHED_BESIDE,
        "cacheReadInputTokenCount": _CACHED_BESIDE,
        "cacheWriteInputTokens": _WRITTEN_BESIDE,
        "cacheWriteInputTokenCount": _WRITTEN_BESIDE,
    },
)

INVOCATION = Dialect(
    keys=("inputTokenCount", "outputTokenCount"),
    names={
        "inputTokenCount": _INPUT,
        "outputTokenCount": _OUTPUT,
        "cacheReadInputTokenCount": _CACHED_BESIDE,
        "cacheWriteInputTokenCount": _WRITTEN_BESIDE,
    },
)
"""`amazon-bedrock-invocationMetrics`, in the last event of any stream that Bedrock invokes."""

TITAN = Dialect(
    keys=("inputTextTokenCount",),
    names={
        "inputTextTokenCount": _INPUT,
        "results": Summed(((("tokenCount",), _OUTPUT),)),
        "totalOutputTextTokenCount": _OUTPUT,
    },
)

COHERE = Dialect(
    keys=("tokens", "billed_units"),
    names={
        "tokens": {"input_tokens": _INPUT, "output_tokens": _OUTPUT},
        # What is billed leaves out Cohere's own preamble; embeddings say nothing else.
        "billed_units": {
            "input_tokens": Number("input", "input", weak=True),
            "output_tokens": Number("output", "output", weak=True),
        },
        "cached_tokens": _CACHED,
    },
)

OLLAMA = Dialect(
    keys=("prompt_eval_count", "eval_count"),
    names={"prompt_eval_count": _INPUT, "eval_count": _OUTPUT},
)

INTERACTIONS = Dialect(
    keys=("total_input_tokens", "total_output_tokens"),
    names={
        "total_input_tokens": _INPUT,
        "total_cached_tokens": _CACHED,
        "total_tool_use_tokens": _TOOL_INPUT,
        "total_output_tokens": _OUTPUT,
        "total_thought_tokens": _REASONING_BESIDE,
        "total_reasoning_tokens": _REASONING_BESIDE,
        "input_tokens_by_modality": _INPUT_BY_KIND,
        "tool_use_tokens_by_modality": _INPUT_BY_KIND,
        "cached_tokens_by_modality": _CACHED_BY_KIND,
        "output_tokens_by_modality": _OUTPUT_BY_KIND,
    },
)
"""Gemini's Interactions."""

WATSONX = Dialect(
    keys=("model_id", "generated_token_count", "input_token_count"),
    names={
        "input_token_count": _INPUT,
        "generated_token_count": _OUTPUT,
        "results": Summed(((("input_token_count",), _INPUT), (("generated_token_count",), _OUTPUT))),
    },
)

TGI = Dialect(
    keys=("generated_tokens", "input_length"),
    names={"generated_tokens": _OUTPUT, "input_length": _INPUT},
)
"""Hugging Face's server: the details of an answer, and of a stream's last event."""

VERTEX_EMBEDDINGS = Dialect(
    keys=("predictions",),
    names={"predictions": Summed(((("embeddings", "statistics", "token_count"), _INPUT),))},
)

TOTAL_ONLY = Dialect(keys=("total_tokens",), names={"total_tokens": _INPUT})
"""Embeddings and rerankers that report nothing but their sum (Voyage, Jina)."""

DIALECTS = (
    PERPLEXITY, MISTRAL, OPENAI, ANTHROPIC_OR_RESPONSES, GEMINI, GEMINI_SDK, CONVERSE, INVOCATION, TITAN,
    TGI, COHERE, OLLAMA, INTERACTIONS, WATSONX, VERTEX_EMBEDDINGS, TOTAL_ONLY,
)  # fmt: skip
