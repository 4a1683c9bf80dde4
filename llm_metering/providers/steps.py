"""What one event of a stream adds: one step for each family of streams, named in a table at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..fields import dig, fields, first, get, items, own, text
from . import more_steps, shapes, written
from .shapes import Shape

if TYPE_CHECKING:
    from .streams import StreamTally

Step = Callable[["StreamTally", Any], None]


def step_of(event: Any, api: str | None) -> tuple[Shape, Step] | None:
    """The shape and step of a stream, told from an event; None where this event does not show it."""
    e = fields(event)
    if e.get("object") == "chat.completion.chunk" and _OTHERS.isdisjoint(e):
        return _CHAT  # as most are
    for key, table in _SIGNS:
        sign = get(event, key)
        if isinstance(sign, str):
            for prefix, found in table:
                if sign.startswith(prefix):
                    return found
    if get(event, "event") is not None and get(event, "data") is not None:
        return step_of(get(event, "data"), api)
    for key in _BEDROCK_KEYS:
        if get(event, key) is not None:
            return shapes.CONVERSE, bedrock
    if get(event, "token") is not None and "generated_text" in fields(event):
        return shapes.TGI, more_steps.tgi
    shape = shapes.shape_of(event)
    if shape is not None:
        return shape, _STEPS.get(shape, chat)
    return _BY_API.get(api) if api is not None else None


def chat(tally: StreamTally, event: Any) -> None:
    """Chat completions and completions: `choices[].delta` or `.text`, and a usage in any chunk."""
    e = event if type(event) is dict else own(event)
    choices = e.get("choices")
    finished = False
    for choice in choices or ():
        c = choice if type(choice) is dict else own(choice)
        index = c.get("index") or 0
        delta = c.get("delta")
        if delta is not None:
            d = delta if type(delta) is dict else own(delta)
            if "content" not in d:
                d = fields(delta)  # LiteLLM's keep it among what their model does not name
            piece = d.get("content")
            if piece:
                tally.add_text(piece if type(piece) is str else written.content_text(piece), index)
            if not piece or d.get("tool_calls"):
                _chat_rest(tally, fields(delta), index)
        elif piece := c.get("text"):
            tally.add_text(piece, index)
        if index > tally.last_choice:
            tally.last_choice = index
        if c.get("finish_reason") is not None:
            finished = True
            tally.end_choice(index)
    if tally.id is None or tally.model is None:
        tally.name(e.get("id"), e.get("model") or e.get("model_id"))
    usage = e.get("usage")
    if finished and e.get("error") is not None:
        tally.failed = True  # OpenRouter ends the choice in which an error came
    if usage is None and finished:
        usage = dig(event, ("x_groq", "usage")) or get(items(choices)[-1], "usage")  # Groq, Moonshot
    if usage is not None:
        tally.report(usage, final=tally.ended or not choices)
    elif not choices:
        _chat_odd(tally, fields(event))


def _chat_rest(tally: StreamTally, d: Mapping[str, Any], index: int) -> None:
    for call in d.get("tool_calls") or ():
        key = (index, get(call, "index"))
        function = get(call, "function") or get(call, "custom")
        tally.add_call(key, get(function, "name"), get(function, "arguments") or get(function, "input"))
    if (old := d.get("function_call")) is not None:
        tally.add_call((index, "old"), get(old, "name"), get(old, "arguments"))
    if refusal := d.get("refusal"):
        tally.add_text(refusal, index)
    if ("reasoning_content" in d or "reasoning" in d) and (thought := written.shown_reasoning(d)):
        tally.add_thought(thought)


def _chat_odd(tally: StreamTally, e: Mapping[str, Any]) -> None:
    if e.get("error") is not None:
        tally.failed = True
    elif (chunk := e.get("chunk")) is not None and e.get("type") == "chunk":
        # The SDK's stream helper wraps each chunk, beside events of its own.
        chat(tally, chunk)


def messages(tally: StreamTally, event: Any) -> None:
    """Anthropic's Messages. The SDK's helper adds events of its own, such as "text": they are skipped."""
    e = event if type(event) is dict else own(event)
    kind = e.get("type")
    if kind == "content_block_delta":
        delta = e.get("delta")
        d = delta if type(delta) is dict else own(delta)
        if piece := d.get("text"):
            tally.add_text(piece, 0)
        elif piece := d.get("partial_json"):
            tally.add_call(e.get("index"), None, piece)
        elif piece := d.get("thinking"):
            tally.add_thought(piece)
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
        tally.conclude()
    elif kind == "error":
        tally.failed = True


def responses(tally: StreamTally, event: Any) -> None:
    """OpenAI's Responses: deltas by type, the usage in the event that ends the response."""
    e = event if type(event) is dict else own(event)
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
    ("response.completed", "response.incomplete", "response.failed", "response.cancelled", "response.done")
)
"""Gateways, OpenRouter's among them, say "done"."""


def _responses_delta(tally: StreamTally, kind: str, e: Mapping[str, Any]) -> None:
    piece = e.get("delta")
    if not isinstance(piece, str):
        return
    if kind in ("response.output_text.delta", "response.refusal.delta"):
        tally.add_text(piece, 0)
    elif kind in ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"):
        tally.add_call(e.get("output_index"), None, piece)
    elif kind.startswith("response.reasoning"):
        tally.add_thought(piece)


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


def gemini(tally: StreamTally, event: Any) -> None:
    """Gemini and Vertex: whole answers in pieces, with running totals in every chunk."""
    words = written.from_candidates(event)
    for index, piece in enumerate(words.texts):
        if piece:
            tally.add_text(piece, index)
    for name, arguments in words.calls:
        tally.add_call(object(), name, arguments)
    if words.thoughts:
        tally.add_thought(words.thoughts)
    tally.name(first(event, shapes.GEMINI.id), first(event, shapes.GEMINI.model))
    candidates = items(get(event, "candidates"))
    tally.last_choice = max(tally.last_choice, len(candidates) - 1)
    for index, candidate in enumerate(candidates):
        if (get(candidate, "finishReason") or get(candidate, "finish_reason")) is not None:
            tally.end_choice(get(candidate, "index") or index)
    tally.report(first(event, shapes.GEMINI.usage), final=tally.ended)


def bedrock(tally: StreamTally, event: Any) -> None:
    """Bedrock: Converse's events under their names, an invoked model's own, and metrics in the last."""
    e = event if type(event) is dict else fields(event)
    if (raw := dig(e.get("chunk"), ("bytes",))) is not None:
        tally.feed(json.loads(raw))
        return
    if "type" in e:
        messages(tally, e)
    inner = next((e[key] for key in _CONVERSE_EVENTS if e.get(key) is not None), e)
    delta = get(inner, "delta")
    piece = text(get(delta, "text")) or text(e.get("outputText")) or text(e.get("generation"))
    if piece and "type" not in e:
        tally.add_text(piece, 0)
    if (arguments := dig(delta, ("toolUse", "input"))) is not None:
        tally.add_call(get(inner, "contentBlockIndex"), None, arguments)
    if (name := dig(get(inner, "start"), ("toolUse", "name"))) is not None:
        tally.add_call(get(inner, "contentBlockIndex"), name, None)
    if thought := text(dig(delta, ("reasoningContent", "text"))):
        tally.add_thought(thought)
    tally.ended = tally.ended or get(inner, "stopReason") is not None
    if "type" not in e:
        tally.report(get(inner, "usage"), final=True)
    tally.report(e.get("amazon-bedrock-invocationMetrics"), final=True)


def cohere(tally: StreamTally, event: Any) -> None:
    """Cohere: v2's typed events, v1's `event_type`."""
    e = event if type(event) is dict else fields(event)
    kind = e.get("type") or e.get("event_type")
    tally.name(e.get("id") or e.get("generation_id"), None)
    if kind == "content-delta":
        if piece := text(dig(e.get("delta"), ("message", "content", "text"))):
            tally.add_text(piece, 0)
    elif kind == "text-generation":
        if piece := text(e.get("text")):
            tally.add_text(piece, 0)
    elif kind in ("tool-call-start", "tool-call-delta"):
        function = dig(e.get("delta"), ("message", "tool_calls", "function"))
        tally.add_call(e.get("index"), get(function, "name"), get(function, "arguments"))
    elif kind == "tool-plan-delta":
        tally.add_thought(text(dig(e.get("delta"), ("message", "tool_plan"))) or "")
    elif kind in ("message-end", "stream-end"):
        tally.ended = True
        tally.report(first(e, (("delta", "usage"), ("response", "meta"))), final=True)


def ollama(tally: StreamTally, event: Any) -> None:
    """Ollama's own API: JSON lines, the counts in the last."""
    words = written.from_ollama(event)
    if words.texts[0]:
        tally.add_text(words.texts[0], 0)
    for name, arguments in words.calls:
        tally.add_call(object(), name, arguments)
    if words.thoughts:
        tally.add_thought(words.thoughts)
    tally.name(None, get(event, "model"))
    if get(event, "done") is True:
        tally.ended = True
        tally.report(event, final=True)


_CONVERSE_EVENTS = (
    "contentBlockDelta", "contentBlockStart", "messageStart", "messageStop", "metadata", "contentBlockStop",
)  # fmt: skip
_BEDROCK_KEYS = (*_CONVERSE_EVENTS, "_event", "chunk", "amazon-bedrock-invocationMetrics", "outputText")

_CHAT = (shapes.CHAT, chat)
_RESPONSES = (shapes.RESPONSES, responses)
_MESSAGES = (shapes.MESSAGES, messages)
_COHERE = (shapes.COHERE, cohere)
_IMAGES = (shapes.IMAGES, more_steps.media)
_AUDIO = (shapes.AUDIO, more_steps.media)
_CONVERSATIONS = (shapes.CONVERSATIONS, more_steps.conversations)
_INTERACTIONS = (shapes.INTERACTIONS, more_steps.interactions)

_SIGNS: tuple[tuple[str, tuple[tuple[str, tuple[Shape, Step]], ...]], ...] = (
    (
        "type",
        (
            ("response.", _RESPONSES),
            ("message_", _MESSAGES),
            ("content_block_", _MESSAGES),
            ("message-", _COHERE),
            ("content-", _COHERE),
            ("tool-", _COHERE),
            ("chunk", _CHAT),
            ("conversation.", _CONVERSATIONS),
            ("message.output", _CONVERSATIONS),
            ("function.call", _CONVERSATIONS),
            ("tool.execution", _CONVERSATIONS),
            ("agent.handoff", _CONVERSATIONS),
            ("image_generation.", _IMAGES),
            ("image_edit.", _IMAGES),
            ("transcript.", _AUDIO),
            ("speech.audio.", _AUDIO),
            ("transcription.", _AUDIO),  # Mistral
        ),
    ),
    ("event_type", (("interaction.", _INTERACTIONS), ("step.", _INTERACTIONS), ("content.", _INTERACTIONS))),
    ("event_type", (("stream-", _COHERE), ("text-generation", _COHERE), ("tool-calls", _COHERE))),
    ("object", (("thread.", (shapes.RUNS, runs)),)),
)
"""Beginnings of names in a stream's events, and whose they are."""

_OTHERS = frozenset(
    (*(key for key, _ in _SIGNS if key != "object"), "event", "data", "token", *_BEDROCK_KEYS)
)
"""Fields that chunks of a chat do not have, and whose owner is asked first."""

_STEPS: dict[Shape, Step] = {
    shapes.CHAT: chat,
    shapes.COMPLETIONS: chat,
    shapes.RESPONSES: responses,
    shapes.MESSAGES: messages,
    shapes.RUNS: runs,
    shapes.GEMINI: gemini,
    shapes.CONVERSE: bedrock,
    shapes.TITAN: bedrock,
    shapes.LLAMA: bedrock,
    shapes.COHERE: cohere,
    shapes.OLLAMA: ollama,
    shapes.CONVERSATIONS: more_steps.conversations,
    shapes.INTERACTIONS: more_steps.interactions,
    shapes.WATSONX_CHAT: chat,
    shapes.WATSONX: more_steps.watsonx,
    shapes.TGI: more_steps.tgi,
}
_BY_API = {shape.api: (shape, step) for shape, step in reversed(_STEPS.items())}
