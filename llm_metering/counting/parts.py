"""The parts of a message: text, images, tool calls and their results, in any provider's spelling."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..fields import fields, get, items
from .images import Image, size_of_base64, size_of_data_url
from .tools import Function


@dataclass(slots=True)
class Message:
    """One message of a prompt."""

    role: str
    texts: list[str] = field(default_factory=list)
    name: str | None = None
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Tool calls that the model made earlier: name and arguments."""
    images: list[Image] = field(default_factory=list)


@dataclass(slots=True)
class Prompt:
    """What a request asks, as far as its tokens matter."""

    messages: list[Message] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    """Texts that are sent without a chat's wrapping: completions and embeddings."""
    plain_tokens: int = 0
    """Texts that came as tokens already."""
    functions: list[Function] = field(default_factory=list)
    schema: tuple[str, str, Any] | None = None
    """A response format's name, description and JSON schema."""
    tool_choice: str | None = None
    """"required", or the name of the function that the model must call."""
    unknown: list[str] = field(default_factory=list)
    """What is in the request and cannot be counted from it."""
    model: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it to count."""
        return not (self.messages or self.plain or self.plain_tokens)


def add_content(content: Any, message: Message, prompt: Prompt) -> None:
    """Add a message's content, a string or parts, to it."""
    if isinstance(content, str):
        message.texts.append(content)
        return
    for part in items(content) or ((content,) if fields(content) else ()):
        if isinstance(part, str):
            message.texts.append(part)
            continue
        for key, take in _PARTS:
            value = get(part, key)
            if value is not None and take(value, part, message, prompt):
                break
        else:
            prompt.unknown.append(f"a {get(part, 'type') or 'part'} in a message")


Take = Callable[[Any, Any, Message, Prompt], bool]


def _text_part(value: Any, part: Any, message: Message, prompt: Prompt) -> bool:
    if not isinstance(value, str):
        return False
    message.texts.append(value)
    return True


def _image_url(value: Any, part: Any, message: Message, prompt: Prompt) -> bool:
    """OpenAI: `image_url`, a string or an object with `url` and `detail`."""
    url = value if isinstance(value, str) else get(value, "url")
    detail = get(value, "detail") or get(part, "detail") or "auto"
    size = size_of_data_url(url) if isinstance(url, str) else None
    message.images.append(Image(size, str(detail)))
    return True


def _source(value: Any, part: Any, message: Message, prompt: Prompt) -> bool:
    """Anthropic: `source` of an image or a document."""
    if get(part, "type") != "image":
        return False
    data = get(value, "data")
    message.images.append(Image(size_of_base64(data) if isinstance(data, str) else None))
    return True


def _inline_data(value: Any, part: Any, message: Message, prompt: Prompt) -> bool:
    """Gemini: `inlineData` with a MIME type."""
    kind = get(value, "mimeType") or get(value, "mime_type")
    data = get(value, "data")
    if not isinstance(kind, str) or not kind.startswith("image/"):
        return False
    message.images.append(Image(size_of_base64(data) if isinstance(data, str) else None))
    return True


def _tool_use(value: Any, part: Any, message: Message, prompt: Prompt) -> bool:
    """Anthropic's `input` beside a `name`; Bedrock's `toolUse`, Gemini's `functionCall`."""
    inner = part if get(part, "type") == "tool_use" else value
    arguments = get(inner, "input") if get(inner, "input") is not None else get(inner, "args")
    add_call(message, get(inner, "name"), arguments)
    return True


def _tool_result(value: Any, part: Any, message: Message, prompt: Prompt) -> bool:
    """Anthropic's `content` of a tool_result; Bedrock's `toolResult`, Gemini's `functionResponse`."""
    content = get(value, "content") if get(value, "content") is not None else get(value, "response")
    content = value if content is None else content
    if isinstance(content, (str, list, tuple)):
        add_content(content, message, prompt)
    else:
        message.texts.append(_compact(content))
    return True


def _skip(value: Any, part: Any, message: Message, prompt: Prompt) -> bool:
    """Parts that cost nothing: thinking of earlier turns is taken out by the provider."""
    return True


# In order: the first key that a part has says what it is.
_PARTS: tuple[tuple[str, Take], ...] = (
    ("text", _text_part),
    ("refusal", _text_part),
    ("image_url", _image_url),
    ("source", _source),
    ("inlineData", _inline_data),
    ("inline_data", _inline_data),
    ("toolUse", _tool_use),
    ("functionCall", _tool_use),
    ("function_call", _tool_use),
    ("input", _tool_use),
    ("toolResult", _tool_result),
    ("functionResponse", _tool_result),
    ("function_response", _tool_result),
    ("content", _tool_result),
    ("json", _tool_result),
    ("thinking", _skip),
    ("cache_control", _skip),
    ("cachePoint", _skip),
)


def add_call(message: Message, name: Any, arguments: Any) -> None:
    """Add a tool call that the model made earlier."""
    message.calls.append((name if isinstance(name, str) else "", _compact(arguments)))


def _compact(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=fields)
    except (TypeError, ValueError, RecursionError):
        return ""
