"""Counting a prompt and an answer by the rules of the model's family."""

from __future__ import annotations

from collections.abc import Callable

from ..usage import Written
from .images import image_tokens
from .models import base_name, encoding_for, family_of, is_reasoning
from .parts import Message, Prompt
from .rules import (
    CHAT,
    OLD_TOOLS,
    RESPONSES,
    Family,
    Wrapping,
    answer_extra,
    family_rules,
    prompt_discount,
    round_calls,
)
from .text import count_in
from .tools import CHAT_STYLE, RESPONSES_STYLE, as_json, as_typescript, schema_text

Count = Callable[[str], int]


def prompt_tokens(prompt: Prompt, *, model: str | None, api: str | None) -> tuple[int | None, list[str]]:
    """The prompt's tokens, None where there is nothing to count, and what of it could not be counted."""
    encoding = encoding_for(model)[0]

    def count(text: str) -> int:
        return count_in(encoding, text)

    unknown = list(prompt.unknown)
    if prompt.is_empty:
        return None, [*unknown, "the prompt"]
    total = sum(map(count, prompt.plain)) + prompt.plain_tokens
    if prompt.messages:
        images = _images(prompt, model, unknown)
        family = family_of(model)
        if family == "openai":
            return total + images + _openai(prompt, model, api, count), unknown
        return round(total + images + _other(prompt, family_rules(model), count)), unknown
    return round(total * family_rules(model).factor), unknown


def answer_tokens(words: Written, *, model: str | None, api: str | None, asked: Prompt, whole: bool) -> int:
    """The tokens of what the answer shows; `thought_tokens` has its reasoning.

    Args:
        words: What the model wrote.
        model: For the encoding and the family.
        api: For what is wrapped round an answer; None for a plain text, which nothing is wrapped round.
        asked: The prompt, for the tools that were offered.
        whole: Whether the answer came to its end, and so with what is wrapped round it.
    """
    encoding = encoding_for(model)[0]
    text = sum(count_in(encoding, each) for each in words.texts)
    calls = sum(count_in(encoding, name) + count_in(encoding, args) for name, args in words.calls)
    rules = family_rules(model)
    if family_of(model) != "openai":
        wrapped = rules.answer * (whole and api is not None) + rules.call * len(words.calls)
        return round((text + calls) * rules.factor + wrapped)
    if api in (None, "completions") or not whole:
        return text + calls
    if words.calls and asked.tool_choice is not None and api == "responses":
        # Where a call is forced the model does not write what leads up to its arguments.
        return text + sum(count_in(encoding, args) for _, args in words.calls) + len(words.calls)
    wrapping = RESPONSES if api == "responses" else CHAT
    return text + calls + _round_answer(words, wrapping, model, bool(asked.functions))


def thought_tokens(words: Written, *, model: str | None) -> int | None:
    """The tokens of reasoning that was shown; None where it is a summary of what is billed."""
    if not words.thoughts or family_of(model) == "openai":
        return None
    return round(count_in(encoding_for(model)[0], words.thoughts) * family_rules(model).factor)


def _round_answer(words: Written, wrapping: Wrapping, model: str | None, with_tools: bool) -> int:
    if words.calls:
        return round_calls(wrapping, len(words.calls))
    answers = sum(1 for each in words.texts if each)
    if is_reasoning(model):
        return wrapping.reasoning * answers
    return answers * (wrapping.text_with_tools if with_tools else wrapping.text + answer_extra(model))


def _openai(prompt: Prompt, model: str | None, api: str | None, count: Count) -> int:
    wrapping = RESPONSES if api == "responses" else CHAT
    total = wrapping.prompt - prompt_discount(model)
    for message in prompt.messages:
        total += _openai_message(message, wrapping, count)
    in_system = any(message.role in ("system", "developer") for message in prompt.messages)
    if prompt.functions:
        style = RESPONSES_STYLE if api == "responses" else CHAT_STYLE
        total += count(as_typescript(prompt.functions, style)) + wrapping.tools
        total += wrapping.in_system if in_system else 0
        if api != "responses" and encoding_for(model)[0] == "cl100k_base":
            total += OLD_TOOLS - wrapping.tools
        total += _choice(prompt.tool_choice, wrapping, count)
    if prompt.schema is not None:
        total += count(schema_text(*prompt.schema)) + wrapping.schema
        total += wrapping.schema_in_system if in_system else 0
    return total


def _openai_message(message: Message, wrapping: Wrapping, count: Count) -> int:
    inside = sum(map(count, message.texts)) + sum(count(name) + count(args) for name, args in message.calls)
    if message.role == "function_call":
        return inside + wrapping.call_item
    if message.role == "function_call_output":
        return inside + wrapping.output_item
    named = wrapping.name + count(message.name) if message.name else 0
    called = round_calls(CHAT, len(message.calls))
    return inside + wrapping.message + count(message.role) + named + called


def _choice(choice: str | None, wrapping: Wrapping, count: Count) -> int:
    if choice is None:
        return 0
    return wrapping.required if choice == "required" else wrapping.named + count(choice)


def _other(prompt: Prompt, rules: Family, count: Count) -> float:
    text = 0
    for message in prompt.messages:
        text += sum(map(count, message.texts))
        text += sum(count(name) + count(args) for name, args in message.calls)
    calls = sum(len(message.calls) for message in prompt.messages)
    turns = sum(message.role != "system" for message in prompt.messages)
    total = text * rules.factor + rules.message * turns + rules.prompt + rules.call * calls
    if prompt.functions:
        total += count(as_json(prompt.functions)) * rules.factor + rules.tools
    if prompt.schema is not None:
        total += count(schema_text(*prompt.schema)) * rules.factor
    return total


def _images(prompt: Prompt, model: str | None, unknown: list[str]) -> int:
    total = 0
    name, family = base_name(model), family_of(model)
    for message in prompt.messages:
        for image in message.images:
            tokens = image_tokens(name, family, image)
            if tokens is None:
                unknown.append("an image of unknown size")
            total += tokens or 0
    return total
