"""A request as far as its tokens matter: messages, tools and schema, from any provider's payload."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..fields import fields, get, items
from .parts import Message, Prompt, add_call, add_content
from .tools import functions_of


def prompt_of(request: Any, api: str | None) -> Prompt:
    """Take a request apart: a payload (mapping or JSON), a list of messages, or plain text. Never raises."""
    if isinstance(request, (bytes, bytearray)):
        request = _decoded(bytes(request))
    if isinstance(request, str):
        return Prompt(plain=[request] if request else [])
    prompt = Prompt()
    try:
        if isinstance(request, (list, tuple)):
            _conversation(request, prompt)
        elif request is not None:
            _payload(fields(request), api, prompt)
    except (RecursionError, ValueError, TypeError, AttributeError):
        # What was found until then still counts.
        prompt.unknown.append("a part of the request that could not be read")
    return prompt


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _payload(request: Any, api: str | None, prompt: Prompt) -> None:
    model = get(request, "model")
    prompt.model = model if isinstance(model, str) else None
    for name in ("system", "instructions", "systemInstruction", "system_instruction"):
        if (system := get(request, name)) is not None:
            parts = get(system, "parts")
            _message("system", system if parts is None else parts, prompt)
    if api == "embeddings":
        _embedded(request, prompt)
        return
    _plain(get(request, "prompt"), prompt)
    for name in ("chat_history", "messages", "contents", "input"):
        if (conversation := get(request, name)) is not None:
            _conversation(conversation, prompt)
    if isinstance(last := get(request, "message"), str):
        _message("user", last, prompt)
    _tools(request, prompt)
    for name in ("previous_response_id", "conversation", "cached_content", "cachedContent"):
        if get(request, name):
            prompt.unknown.append(f"what {name} refers to")
    config = get(request, "config")
    if config is not None:
        # google-genai puts everything beside the contents here.
        for key in ("system_instruction", "systemInstruction"):
            if (system := get(config, key)) is not None:
                _message("system", get(system, "parts") or system, prompt)
        _tools(config, prompt)


def _embedded(request: Any, prompt: Prompt) -> None:
    """What is to be embedded: OpenAI's and Ollama's `input`, Cohere's `texts`, Hugging Face's `inputs`,
    Gemini's `content`, alone or in a batch."""
    for name in ("input", "inputs", "texts"):
        _plain(get(request, name), prompt)
    for each in (request, *items(get(request, "requests"))):
        for part in items(get(get(each, "content"), "parts")):
            _plain(get(part, "text"), prompt)


def _plain(value: Any, prompt: Prompt) -> None:
    if isinstance(value, str):
        prompt.plain.append(value)
        return
    listed = items(value)
    if listed and all(type(each) is int for each in listed):
        prompt.plain_tokens += len(listed)
        return
    for each in listed:
        if isinstance(each, str):
            prompt.plain.append(each)
        elif items(each) and all(type(token) is int for token in each):
            prompt.plain_tokens += len(each)
        elif each is not None:
            prompt.unknown.append("an input that is no text")


def _conversation(value: Any, prompt: Prompt) -> None:
    if isinstance(value, str):
        _message("user", value, prompt)
        return
    for each in items(value) or ((value,) if not isinstance(value, (list, tuple)) else ()):
        if isinstance(each, str):
            _message("user", each, prompt)
        elif (item := _ITEMS.get(str(get(each, "type")))) is not None:
            item(each, prompt)
        else:
            _whole_message(each, prompt)


def _whole_message(value: Any, prompt: Prompt) -> None:
    role = get(value, "role")
    content = get(value, "content")
    if content is None:
        content = get(value, "parts") if get(value, "parts") is not None else get(value, "message")
    message = _message(role if isinstance(role, str) else "user", content, prompt)
    name = get(value, "name")
    message.name = name if isinstance(name, str) and name else None
    if isinstance(refusal := get(value, "refusal"), str):
        message.texts.append(refusal)
    for call in items(get(value, "tool_calls")):
        function = get(call, "function") or get(call, "custom") or call
        add_call(message, get(function, "name"), get(function, "arguments") or get(function, "input"))
    if (old := get(value, "function_call")) is not None:
        add_call(message, get(old, "name"), get(old, "arguments"))


def _message(role: str, content: Any, prompt: Prompt) -> Message:
    message = Message(role)
    prompt.messages.append(message)
    add_content(content, message, prompt)
    return message


def _call_item(item: Any, prompt: Prompt) -> None:
    """Responses: a call that the model made earlier stands beside the messages."""
    message = Message("function_call")
    prompt.messages.append(message)
    add_call(message, get(item, "name"), get(item, "arguments") or get(item, "input"))


def _output_item(item: Any, prompt: Prompt) -> None:
    message = Message("function_call_output")
    prompt.messages.append(message)
    add_content(get(item, "output"), message, prompt)


def _reasoning_item(item: Any, prompt: Prompt) -> None:
    """Responses: reasoning of earlier turns may or may not be taken up again."""
    prompt.unknown.append("reasoning of earlier turns")


_ITEMS: dict[str, Callable[[Any, Prompt], None]] = {
    "function_call": _call_item,
    "custom_tool_call": _call_item,
    "function_call_output": _output_item,
    "custom_tool_call_output": _output_item,
    "reasoning": _reasoning_item,
}


def _tools(request: Any, prompt: Prompt) -> None:
    tools = get(request, "tools")
    if tools is None:
        tools = get(get(request, "toolConfig"), "tools")
    functions, hosted = functions_of(tools)
    old, _ = functions_of(get(request, "functions"))
    prompt.functions += functions + old
    if hosted:
        prompt.unknown.append(f"hosted tools ({', '.join(sorted(set(hosted)))})"[:120])
    choice = get(request, "tool_choice")
    if isinstance(choice, str):
        prompt.tool_choice = choice if choice == "required" else None
    else:
        name = get(get(choice, "function"), "name") or get(choice, "name")
        prompt.tool_choice = name if isinstance(name, str) else None
    wanted = (
        get(request, "response_format")
        or get(get(request, "text"), "format")
        or get(request, "output_format")
        or get(get(request, "output_config"), "format")
    )
    if get(wanted, "type") == "json_schema":
        inner = get(wanted, "json_schema") or wanted
        name, described = get(inner, "name"), get(inner, "description")
        prompt.schema = (str(name or ""), str(described or ""), get(inner, "schema"))
