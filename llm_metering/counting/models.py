"""Which tokenizer a model uses, and how far another family's is from ours."""

from __future__ import annotations

import re
from functools import lru_cache

DEFAULT_ENCODING = "o200k_base"

# In order; a name matches where the pattern covers a whole part of it. tiktoken's own map errs on
# fine-tuned gpt-4.1, and knows no vendor prefixes, deployments, realtime, audio or newer names.
_ENCODINGS: tuple[tuple[str, str], ...] = (
    (r"gpt-oss", "o200k_harmony"),
    (r"gpt-4o|chatgpt-4o|gpt-4\.1|gpt-4\.5|gpt-5|gpt-5\.\d|o1|o3|o4", "o200k_base"),
    (r"gpt-realtime|gpt-audio|gpt-image|codex|codex-mini|computer-use", "o200k_base"),
    (r"gpt-4|gpt-3\.5|gpt-35|gpt-3\.5-turbo|gpt-35-turbo", "cl100k_base"),
    (r"text-embedding-(?:ada-002|3)|davinci-002|davinci:20\d\d|babbage-002", "cl100k_base"),
    (r"text-davinci-edit|code-davinci-edit", "p50k_edit"),
    (r"text-davinci-00[23]|code-davinci|code-cushman|davinci-codex|cushman-codex", "p50k_base"),
    (r"text-davinci-001|text-(?:curie|babbage|ada)-001", "r50k_base"),
    (r"text-similarity|text-search|code-search|davinci|curie|babbage|ada", "r50k_base"),
    (r"gpt-?2", "gpt2"),
)
_EXACT = tuple((re.compile(rf"(?:{pattern})(?![\w.])"), name) for pattern, name in _ENCODINGS)
_INSIDE = tuple(
    (re.compile(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])"), name) for pattern, name in _ENCODINGS[:4]
)

_FAMILIES = tuple(
    (re.compile(pattern), family)
    for pattern, family in (
        (r"claude|anthropic", "claude"),
        (r"gemini", "gemini"),
        (r"deepseek", "deepseek"),
        (r"mi[sx]tral|codestral|ministral|magistral|pixtral", "mistral"),
        (r"llama", "llama"),
        (r"nova", "nova"),
        (r"gemma", "gemma"),
        (r"command|cohere", "cohere"),
        (r"grok", "grok"),
        (r"qwen", "qwen"),
    )
)


@lru_cache(maxsize=1024)
def encoding_for(model: str | None) -> tuple[str, bool]:
    """The encoding of a model, and whether it is surely its own.

    Takes plain names, dated ones, fine-tuned ones (`ft:gpt-4.1:org::id`) and those with a vendor
    (`openai/gpt-4o`) or a tag (`gpt-oss:20b`). A name that only contains a known one, as an Azure
    deployment may, gets that one's encoding, not surely. Anything else gets o200k_base, not surely.
    """
    name = base_name(model)
    for pattern, encoding in _EXACT:
        if pattern.match(name):
            return encoding, True
    for pattern, encoding in _INSIDE:
        if pattern.search(name):
            return encoding, False
    return DEFAULT_ENCODING, False


@lru_cache(maxsize=1024)
def family_of(model: str | None) -> str:
    """ "openai" where the encoding is OpenAI's, else the family by name, else "unknown"."""
    if encoding_for(model)[1]:
        return "openai"
    name = (model or "").lower()
    for pattern, family in _FAMILIES:
        if pattern.search(name):
            return family
    return "openai" if any(pattern.search(base_name(model)) for pattern, _ in _INSIDE) else "unknown"


@lru_cache(maxsize=1024)
def base_name(model: str | None) -> str:
    """The model's name without vendor and fine-tuning."""
    name = (model or "").strip().lower()
    if name.startswith("ft:"):
        name = name[3:].partition(":")[0]
    return name.rpartition("/")[2]


@lru_cache(maxsize=1024)
def is_reasoning(model: str | None) -> bool:
    """Whether the model thinks before it answers, and bills for it without showing it."""
    name = base_name(model)
    return bool(_REASONING.match(name)) and "chat" not in name


_REASONING = re.compile(r"(?:o1|o3|o4|gpt-5|gpt-oss|codex|deepseek-r|deepseek-reasoner|magistral)")
