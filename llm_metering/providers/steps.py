"""What one event of a stream adds: one step for each family of streams, named in a table at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..fields import dig, fields, get, items, text
from . import shapes, written
from .shapes import Shape

if TYPE_CHECKING:
    from .streams import StreamTally

Step = Callable[["StreamTally", Any], None]


def step_of(event: Any, api: str | None) -> tuple[Shape, Step] | None:
    """The shape and step of a stream, told from an event; None where this event does not show it."""
    if api is not None:
        return _BY_API.get(api)
    kind = get(event, "type")
    if isinstance(kind, str):
        for prefix, found in _BY_TYPE:
            if kind.startswith(prefix):
                return found
    if get(event, "event") is not None and get(event, "data") is not None:
        return step_of(get(event, "data"), None)
    name = get(event, "object")
    if isinstance(name, str) and name.startswith("thread."):
        return shapes.RUNS, runs
    shape = shapes.shape_of(event)
    return None if shape is None else _BY_API.get(shape.api)


def chat(tally: StreamTally, event: Any) -> None:
    """Chat completions and completions: `choices[].delta` or `.text`, and a usage in any chunk."""
    e = event if type(event) is dict else fields(event)
    choices = e.get("choices")
    finished = False
    for choice in choices or ():
        c = choice if type(choice) is dict else fields(choice)
        index = c.get("index") or 0
        delta = c.get("delta")
        if delta is not None:
            d = delta if type(delta) is dict else fields(delta)
            piece = d.get("content")
            if piece:
                tally.add_text(piece if type(piece) is str else written.content_text(piece), index)
            if len(d) > 1 or not piece:
                _chat_rest(tally, d, index)
        elif piece := c.get("text"):
            tally.add_text(piece, index)
        if index > tally.last_choice:
            tally.last_choice = index
        if c.get("finish_reason") is not None:
            finished = True
            tally.end_choice(index)
    if tally.id is None or tally.model is None:
        tally.name(e.get("id"), e.get("model"))
    usage = e.get("usage")
    if usage is None:
        usage = dig(e.get("x_groq"), ("usage",))
    if usage is not None:
        tally.report(usage, final=finished or not choices)
    elif not choices:
        _chat_odd(tally, event, e)


def _chat_rest(tally: StreamTally, d: Mapping[str, Any], index: int) -> None:
    for call in d.get("tool_calls") or ():
        key = (index, get(call, "index"))
        function = get(call, "function") or get(call, "custom")
        tally.add_call(key, get(function, "name"), get(function, "arguments") or get(function, "input"))
    if (old := d.get("function_call")) is not None:
        tally.add_call((index, "old"), get(old, "name"), get(old, "arguments"))
    if refusal := d.get("refusal"):
        tally.add_text(refusal, index)
    if thought := written.shown_reasoning(d):
        tally.thoughts.append(thought)


def _chat_odd(tally: StreamTally, event: Any, e: Mapping[str, Any]) -> None:
    if e.get("error") is not None:
        tally.failed = True
    elif (chunk := e.get("chunk")) is not None and e.get("type") == "chunk":
        # The SDK's stream helper wraps each chunk, beside events of its own.
        chat(tally, chunk)


def messages(tally: StreamTally, event: Any) -> None:
    """Anthropic's Messages. The SDK's helper adds events of its own, such as "text": they are skipped."""
    e = event if type(event) is dict else fields(event)
    kind = e.get("type")
    if kind == "content_block_delta":
        delta = e.get("delta")
        d = delta if type(delta) is dict else fields(delta)
        if piece := d.get("text"):
            tally.add_text(piece, 0)
        elif piece := d.get("partial_json"):
            tally.add_call(e.get("index"), None, piece)
        elif piece := d.get("thinking"):
            tally.thoughts.append(piece)
    elif kind == "content_block_start":
        block = e.get("content_block")
        if get(block, "type") in ("tool_use", "server_tool_use"):
            tally.add_call(e.get("index"), get(block, "name"), None)
    elif kind == "message_start":
        message = e.get("message")
        tally.name(get(message, "id"), get(message, "model"))
        tally.report(get(message, "usage"), final=False)
    elif kind == "message_delta":
        stopped = dig(e.get("delta"), ("stop_reason",)) is not None
        tally.report(e.get("usage"), final=stopped)
    elif kind == "message_stop":
        tally.ended = True
    elif kind == "error":
        tally.failed = True


def responses(tally: StreamTally, event: Any) -> None:
    """OpenAI's Responses: deltas by type, the usage in the event that ends the response."""
    e = event if type(event) is dict else fields(event)
    kind = e.get("type")
    if not isinstance(kind, str):
        return
    if kind.endswith(".delta"):
        _responses_delta(tally, kind, e)
    elif kind == "response.output_item.added":
        item = e.get("item")
        if get(item, "type") in ("function_call", "custom_tool_call"):
            tally.add_call(e.get("output_index"), get(item, "name"), None)
    elif (response := e.get("response")) is not None:
        tally.name(get(response, "id"), get(response, "model"))
        ended = kind in _RESPONSE_ENDS
        tally.report(get(response, "usage"), final=ended)
        tally.ended = tally.ended or (ended and kind != "response.failed")
        tally.failed = tally.failed or kind == "response.failed"
    elif kind == "error":
        tally.failed = True


_RESPONSE_ENDS = frozenset(
    ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
)


def _responses_delta(tally: StreamTally, kind: str, e: Mapping[str, Any]) -> None:
    piece = e.get("delta")
    if not isinstance(piece, str):
        return
    if kind in ("response.output_text.delta", "response.refusal.delta"):
        tally.add_text(piece, 0)
    elif kind in ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"):
        tally.add_call(e.get("output_index"), None, piece)
    elif kind.startswith("response.reasoning"):
        tally.thoughts.append(piece)


def runs(tally: StreamTally, event: Any) -> None:
    """Assistants: the run's own usage; the usages of its steps are parts of it."""
    e = event if type(event) is dict else fields(event)
    if "object" not in e and e.get("data") is not None:
        e = fields(e["data"])
    kind = e.get("object")
    if kind == "thread.message.delta":
        for part in items(dig(e.get("delta"), ("content",))):
            if piece := text(dig(part, ("text", "value"))):
                tally.add_text(piece, 0)
    elif kind == "thread.run":
        tally.name(e.get("id"), e.get("model"))
        over = e.get("status") in _RUN_ENDS
        tally.report(e.get("usage"), final=over)
        tally.ended = tally.ended or over


_RUN_ENDS = frozenset(("completed", "failed", "cancelled", "expired", "incomplete", "requires_action"))

_BY_API: dict[str, tuple[Shape, Step]] = {
    "chat": (shapes.CHAT, chat),
    "completions": (shapes.COMPLETIONS, chat),
    "responses": (shapes.RESPONSES, responses),
    "messages": (shapes.MESSAGES, messages),
    "assistants": (shapes.RUNS, runs),
}

_BY_TYPE: tuple[tuple[str, tuple[Shape, Step]], ...] = (
    ("response.", _BY_API["responses"]),
    ("message_", _BY_API["messages"]),
    ("content_block_", _BY_API["messages"]),
    ("chunk", _BY_API["chat"]),
)
