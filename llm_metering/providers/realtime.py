"""Messages of a websocket conversation: OpenAI's Realtime and what is shaped like it, and Gemini's Live.

Each answer of the model reports its own usage in the message that ends it, so readings add up.
"""

from __future__ import annotations

from typing import Any

from ..fields import dig, first, get, text
from ..usage import Reading
from .answers import believed

_TRANSCRIBED = "conversation.item.input_audio_transcription.completed"


def read_event(event: Any) -> Reading | None:
    """What one message from the provider says of usage; None where it says nothing. Never raises.

    `response.done` is one answer of the model, a completed transcription one of the transcriber (which is
    billed beside it), a Live message with usage one turn. None of them names the model: `session_model`.

    Args:
        event: A decoded message: a mapping, or an SDK's object.
    """
    try:
        kind = get(event, "type")
        if kind == "response.done":
            return _answer(get(event, "response"))
        if kind == _TRANSCRIBED:
            return _transcription(event)
        return _live_turn(event) if kind is None else None
    except Exception as exc:
        return Reading(api="realtime", problem=f"the message could not be read: {exc!r}"[:200])


def session_model(event: Any) -> str | None:
    """The model that a conversation was opened with, where this message names it."""
    if get(event, "type") in ("session.created", "session.updated"):
        return text(dig(event, ("session", "model")))
    return text(dig(event, ("setup", "model")))


def _answer(response: Any) -> Reading | None:
    reported = get(response, "usage")
    if reported is None:
        return None
    return _reading(reported, "openai", "realtime", text(get(response, "id")), text(get(response, "model")))


def _transcription(event: Any) -> Reading | None:
    reported = get(event, "usage")
    if reported is None or get(reported, "type") == "duration":
        return None  # billed by the minute
    item, index = text(get(event, "item_id")), get(event, "content_index")
    name = None if item is None else f"{item}:{index if type(index) is int else 0}"
    return _reading(reported, "openai", "audio", name, None)


def _live_turn(event: Any) -> Reading | None:
    reported = first(event, (("usageMetadata",), ("usage_metadata",)))
    content = first(event, (("serverContent",), ("server_content",)))
    if reported is None:
        return None
    over = first(content, (("turnComplete",), ("turn_complete",), ("interrupted",)))
    if content is not None and over is not True:
        return None  # a running total, in the middle of a turn
    return _reading(reported, "google", "live", None, None)


def _reading(reported: Any, provider: str, api: str, id: str | None, model: str | None) -> Reading:
    usage, problem = believed(reported)
    return Reading(usage=usage, model=model, response_id=id, provider=provider, api=api, problem=problem)
