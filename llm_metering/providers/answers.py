"""Whole answers: the usage, model and id that a provider's answer names."""

from __future__ import annotations

import json
from typing import Any

from ..fields import first, get, is_object, items, text
from ..usage import Reading, Usage, Written
from .dialects import by_attributes, dialect_of
from .numbers import UnbelievableUsage, usage_of
from .objects import learn_object, read_object
from .shapes import MESSAGES, Shape, shape_of


def read_response(
    body: Any, *, provider: str | None = None, api: str | None = None, keep_text: bool = False
) -> Reading:
    """Read the usage in a provider's answer. Never raises.

    A number that cannot be a count of tokens sets `problem`, as does a body that is not JSON; what is no
    answer of a model gives an empty reading.

    Args:
        body: A mapping, an SDK's object, or JSON as bytes or str.
        provider: Whose answer it is, where you know better than the shape shows.
        api: "chat", "completions", "responses", "embeddings", "messages", … where the shape does not say.
        keep_text: Keep what the model wrote even where the usage was reported.
    """
    try:
        if isinstance(body, (bytes, bytearray, memoryview, str)):
            body = parsed(body)
        if isinstance(body, list):
            from .streams import read_stream

            return read_stream(body, provider=provider, api=api)
        return read_answer(body, provider=provider, api=api, keep_text=keep_text)
    except Unreadable as exc:
        return Reading(provider=provider, api=api, problem=str(exc))
    except Exception as exc:
        return Reading(provider=provider, api=api, problem=f"the answer could not be read: {exc!r}"[:200])


OTHER_USAGE = (("usage",), ("result", "usage"))
"""Where an answer of a shape that we do not know may hold a usage; Cloudflare wraps its own in a result."""


class Unreadable(ValueError):
    """A body that is not JSON."""


def parsed(body: bytes | bytearray | memoryview | str) -> Any:
    """Parse JSON; raise `Unreadable` for what is none."""
    if not isinstance(body, str):
        body = bytes(body).decode("utf-8-sig", "replace")
    try:
        return json.loads(body)
    except RecursionError:
        raise Unreadable("the answer is nested too deep to be read") from None
    except ValueError:
        raise Unreadable("the answer is not JSON, or was cut short") from None


def read_answer(
    answer: Any,
    *,
    provider: str | None = None,
    api: str | None = None,
    keep_text: bool = False,
    shape: Shape | None = None,
) -> Reading:
    """Read a decoded answer or an SDK's object; `shape` where it is known already."""
    is_dict = type(answer) is dict
    if not (is_dict or keep_text) and (known := read_object(answer, provider, api)) is not None:
        return known
    shape = shape or shape_of(answer, api)
    if shape is None:
        return _unknown(answer, provider, api)
    if not is_dict:
        learn_object(answer)
    reported = first(answer, shape.usage)
    usage, problem = believed(reported)
    words = shape.words(answer) if keep_text or not (usage or problem) else None
    is_messages = shape is MESSAGES
    return Reading(
        usage=usage,
        model=(served_by(reported) if is_messages else None) or text(first(answer, shape.model)),
        response_id=text(first(answer, shape.id)),
        provider=provider or shape.provider,
        api=api or shape.api,
        problem=problem,
        text=joined(words),
        written=words if words is not None and is_more_than_text(words) else None,
        beside=beside(reported, text(first(answer, shape.id))) if is_messages else (),
    )


def believed(reported: Any) -> tuple[Usage, str | None]:
    """The usage that a provider reported, or why it cannot be believed."""
    if reported is None:
        return Usage(), None
    dialect = dialect_of(reported)
    if dialect is None:
        dialect, reported = by_attributes(reported)
    if dialect is None:
        return Usage(), None if is_object(reported) else f"usage is {_kind(reported)}, not an object"
    try:
        return usage_of(reported, dialect), None
    except UnbelievableUsage as exc:
        return Usage(), f"reported usage cannot be believed: {exc}"


def beside(reported: Any, response_id: str | None) -> tuple[Reading, ...]:
    """What other models used for an answer of Anthropic's, and the usage itself leaves out.

    An advisor, and models that declined in mid-answer, so that another went on: each is charged at its own
    model's rates. One that declined before its first word is not.
    https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback
    """
    server = served_by(reported)
    found = []
    for number, each in enumerate(items(get(reported, "iterations"))):
        if get(each, "type") == "advisor_message" or _has_declined(each, server):
            usage, problem = believed(each)
            name = None if response_id is None else f"{response_id}:{number}"
            found.append(
                Reading(
                    usage,
                    text(get(each, "model")),
                    name,
                    provider="anthropic",
                    api="messages",
                    problem=problem,
                )
            )
    return tuple(found)


def served_by(reported: Any) -> str | None:
    """The model that went on where another had declined: a stream's beginning names the other."""
    for each in items(get(reported, "iterations")):
        if get(each, "type") == "fallback_message":
            return text(get(each, "model"))
    return None


def _has_declined(iteration: Any, server: str | None) -> bool:
    """Whether this is the attempt of a model that wrote something and then declined."""
    if server is None or get(iteration, "type") != "message" or get(iteration, "output_tokens") == 0:
        return False
    return text(get(iteration, "model")) not in (None, server)


def _kind(value: Any) -> str:
    return type(value).__name__


def joined(words: Written | None) -> str | None:
    """The visible text in one piece; None where there is none."""
    return None if words is None else "".join(words.texts) or None


def is_more_than_text(words: Written) -> bool:
    """Whether counting one plain text would leave something out."""
    return bool(words.calls or words.thoughts) or len(words.texts) > 1


def _unknown(answer: Any, provider: str | None, api: str | None) -> Reading:
    """An answer of a shape that we do not know, with a usage that we do."""
    reported = first(answer, OTHER_USAGE)
    usage, problem = believed(reported) if dialect_of(reported) else (Usage(), None)
    return Reading(
        usage=usage,
        model=text(get(answer, "model")),
        response_id=text(get(answer, "id")),
        provider=provider,
        api=api,
        problem=problem,
    )
