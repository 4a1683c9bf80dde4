"""What a model wrote, found in a whole answer: one small function for each family of shapes."""

from __future__ import annotations

import json
from typing import Any

from ..fields import dig, fields, get, items, text
from ..usage import Written


def from_choices(answer: Any) -> Written:
    """Chat completions and completions: `choices[].message` or `choices[].text`."""
    texts: list[str] = []
    calls: list[tuple[str, str]] = []
    thoughts: list[str] = []
    for choice in items(get(answer, "choices")):
        message = get(choice, "message")
        if message is None:
            texts.append(content_text(get(choice, "text")))
            continue
        texts.append(content_text(get(message, "content")) + (text(get(message, "refusal")) or ""))
        calls += function_calls(message)
        thoughts.append(shown_reasoning(message))
    return Written(tuple(texts), tuple(calls), "".join(thoughts))


def from_output(answer: Any) -> Written:
    """Responses: `output[]` items; hosted tools' own items are not the model's words."""
    texts: list[str] = []
    calls: list[tuple[str, str]] = []
    thoughts: list[str] = []
    for item in items(get(answer, "output")):
        kind = get(item, "type")
        if kind == "message":
            texts.append(content_text(get(item, "content")))
        elif kind in ("function_call", "custom_tool_call"):
            written = text(get(item, "arguments")) or text(get(item, "input")) or ""
            calls.append((text(get(item, "name")) or "", written))
        elif kind == "reasoning":
            thoughts.append(content_text(get(item, "summary")) or content_text(get(item, "content")))
    return Written(("".join(texts),) if texts else (), tuple(calls), "".join(thoughts))


def from_content(answer: Any) -> Written:
    """Anthropic's Messages: `content[]` blocks."""
    texts: list[str] = []
    calls: list[tuple[str, str]] = []
    thoughts: list[str] = []
    for block in items(get(answer, "content")):
        kind = get(block, "type")
        if kind == "text":
            texts.append(text(get(block, "text")) or "")
        elif kind in ("tool_use", "server_tool_use"):
            calls.append((text(get(block, "name")) or "", compact(get(block, "input"))))
        elif kind == "thinking":
            thoughts.append(text(get(block, "thinking")) or "")
    return Written(("".join(texts),) if texts else (), tuple(calls), "".join(thoughts))


def from_candidates(answer: Any) -> Written:
    """Gemini: `candidates[].content.parts[]`; a part may be a thought."""
    texts: list[str] = []
    calls: list[tuple[str, str]] = []
    thoughts: list[str] = []
    for candidate in items(get(answer, "candidates")):
        shown: list[str] = []
        for part in items(get(get(candidate, "content"), "parts")):
            (thoughts if get(part, "thought") is True else shown).append(text(get(part, "text")) or "")
            call = get(part, "functionCall") or get(part, "function_call")
            if call is not None:
                calls.append((text(get(call, "name")) or "", compact(get(call, "args"))))
        texts.append("".join(shown))
    return Written(tuple(texts), tuple(calls), "".join(thoughts))


def from_converse(answer: Any) -> Written:
    """Bedrock Converse and Nova: `output.message.content[]`."""
    texts: list[str] = []
    calls: list[tuple[str, str]] = []
    for block in items(dig(answer, ("output", "message", "content"))):
        texts.append(text(get(block, "text")) or "")
        if (use := get(block, "toolUse")) is not None:
            calls.append((text(get(use, "name")) or "", compact(get(use, "input"))))
    return Written(("".join(texts),) if texts else (), tuple(calls))


def from_titan(answer: Any) -> Written:
    """Titan: `results[].outputText`."""
    return Written(tuple(content_text(get(r, "outputText")) for r in items(get(answer, "results"))))


def from_generation(answer: Any) -> Written:
    """Llama on Bedrock: `generation`."""
    return Written((content_text(get(answer, "generation")),))


def from_cohere(answer: Any) -> Written:
    """Cohere: `message.content[]` (v2), `text` (v1) or `generations[]`."""
    generations = items(get(answer, "generations"))
    if generations:
        return Written(tuple(content_text(get(each, "text")) for each in generations))
    message = get(answer, "message")
    shown = content_text(get(answer, "text")) or content_text(get(message, "content"))
    return Written((shown,) if shown else (), tuple(function_calls(message)))


def from_ollama(answer: Any) -> Written:
    """Ollama's own API: `message.content` or `response`."""
    message = get(answer, "message")
    shown = content_text(get(answer, "response")) or content_text(get(message, "content"))
    return Written((shown,), tuple(function_calls(message)), text(get(message, "thinking")) or "")


def from_results(answer: Any) -> Written:
    """watsonx: `results[].generated_text`."""
    return Written(tuple(content_text(get(each, "generated_text")) for each in items(get(answer, "results"))))


def from_generated_text(answer: Any) -> Written:
    """Hugging Face's server: `generated_text`."""
    return Written((content_text(get(answer, "generated_text")),))


def from_outputs(answer: Any) -> Written:
    """Mistral's conversations: `outputs[]`, messages and calls of functions."""
    texts: list[str] = []
    calls: list[tuple[str, str]] = []
    for item in items(get(answer, "outputs")):
        if get(item, "type") == "function.call":
            calls.append((text(get(item, "name")) or "", compact(get(item, "arguments"))))
        else:
            texts.append(content_text(get(item, "content")))
    return Written(("".join(texts),) if texts else (), tuple(calls))


def from_steps(answer: Any) -> Written:
    """Gemini's Interactions: `steps[]` (once `outputs[]`) with contents."""
    texts: list[str] = []
    calls: list[tuple[str, str]] = []
    for item in [*items(get(answer, "steps")), *items(get(answer, "outputs"))]:
        kind = get(item, "type")
        if kind == "function_call":
            calls.append((text(get(item, "name")) or "", compact(get(item, "arguments"))))
        elif kind in ("model_output", "text"):
            texts.append(content_text(get(item, "content")) or text(get(item, "text")) or "")
    return Written(("".join(texts),) if texts else (), tuple(calls))


def from_message(answer: Any) -> Written:
    """LangChain: one message, `content` and `tool_calls`."""
    calls = [(text(get(c, "name")) or "", compact(get(c, "args"))) for c in items(get(answer, "tool_calls"))]
    return Written((content_text(get(answer, "content")),), tuple(calls))


def nothing(answer: Any) -> Written:
    """Embeddings and the like: no words to count."""
    return Written()


def content_text(content: Any) -> str:
    """The text of a message's content: a string, or parts with a text."""
    if isinstance(content, str):
        return content
    parts = (get(part, "text") or get(part, "refusal") for part in items(content))
    return "".join(part for part in parts if isinstance(part, str))


def function_calls(message: Any) -> list[tuple[str, str]]:
    """Name and arguments of each tool call in a chat message, the old `function_call` too."""
    calls = list(items(get(message, "tool_calls")))
    found = [get(call, "function") or get(call, "custom") for call in calls]
    if (old := get(message, "function_call")) is not None:
        found.append(old)
    return [
        (text(get(f, "name")) or "", compact(get(f, "arguments") or get(f, "input")))
        for f in found
        if f is not None
    ]


def shown_reasoning(message: Any) -> str:
    """DeepSeek's `reasoning_content`, Groq's and OpenRouter's `reasoning`."""
    return text(get(message, "reasoning_content")) or text(get(message, "reasoning")) or ""


def compact(value: Any) -> str:
    """Arguments as the model wrote them: the string itself, or compact JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=fields)
    except (TypeError, ValueError, RecursionError):
        return ""
