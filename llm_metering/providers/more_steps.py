"""Steps of streams, as in `steps`, of providers that are met less often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..fields import first, get, items, text
from .answers import OTHER_USAGE

if TYPE_CHECKING:
    from .streams import StreamTally


def interactions(tally: StreamTally, event: Any) -> None:
    """Gemini's Interactions: deltas, and the whole without its words in the event that ends it."""
    kind = text(get(event, "event_type")) or ""
    if kind in ("step.delta", "content.delta"):
        delta = get(event, "delta")
        if get(delta, "type") == "text":
            tally.add_text(text(get(delta, "text")) or "", 0)
        elif (arguments := text(get(delta, "arguments"))) is not None:
            tally.add_call(get(event, "index"), None, arguments)
    elif kind == "error":
        tally.failed = True
    elif (whole := get(event, "interaction")) is not None:
        over = kind in ("interaction.completed", "interaction.complete")
        tally.name(get(whole, "id"), first(whole, (("model",), ("agent",))))
        tally.report(get(whole, "usage"), final=over)
        tally.ended = tally.ended or over
        tally.failed = tally.failed or get(whole, "status") == "failed"


def conversations(tally: StreamTally, event: Any) -> None:
    """Mistral's conversations: deltas of messages, the usage in the event that ends the response."""
    inner = get(event, "data") if get(event, "type") is None else event
    kind = text(get(inner, "type")) or ""
    if kind == "message.output.delta":
        content = get(inner, "content")
        tally.add_text(text(content) or text(get(content, "text")) or "", get(inner, "output_index") or 0)
    elif kind == "function.call.delta":
        tally.add_call(get(inner, "tool_call_id"), get(inner, "name"), text(get(inner, "arguments")))
    elif kind == "conversation.response.done":
        tally.ended = True
        tally.report(get(inner, "usage"), final=True)
    elif kind == "conversation.response.error":
        tally.failed = True


def watsonx(tally: StreamTally, event: Any) -> None:
    """watsonx: results in pieces with running totals; a total may be 0 in all events but one."""
    tally.name(None, get(event, "model_id"))
    counts: dict[str, int] = {}
    for result in items(get(event, "results")):
        if piece := text(get(result, "generated_text")):
            tally.add_text(piece, 0)
        for name in ("input_token_count", "generated_token_count"):
            value = get(result, name)
            if value is not None:
                counts[name] = value
        reason = text(get(result, "stop_reason"))
        tally.ended = tally.ended or (reason is not None and reason.lower() != "not_finished")
    if counts:
        tally.report(tally.largest(counts), final=tally.ended)


def tgi(tally: StreamTally, event: Any) -> None:
    """Hugging Face's server: a token an event, the details in the last."""
    token = get(event, "token")
    whole = text(get(event, "generated_text"))
    if token is None:
        tally.add_text(whole or "", 0)
    elif get(token, "special") is not True:
        tally.add_text(text(get(token, "text")) or "", 0)
    details = get(event, "details")
    tally.ended = tally.ended or whole is not None or details is not None
    if details is not None:
        tally.report({name: get(details, name) for name in ("generated_tokens", "input_length")}, final=True)
    elif get(event, "error") is not None:
        tally.failed = True


def media(tally: StreamTally, event: Any) -> None:
    """Streamed images, transcriptions and speech: the usage in the event that ends them."""
    kind = text(get(event, "type")) or ""
    if kind.endswith((".completed", ".done")) and (usage := get(event, "usage")) is not None:
        tally.ended = True
        tally.name(None, get(event, "model"))
        tally.report(usage, final=True)
    elif kind == "error":
        tally.failed = True


def other(tally: StreamTally, event: Any) -> None:
    """A stream that we do not know, with a usage that we do: running totals in any of its events."""
    tally.name(get(event, "id"), get(event, "model"))
    words = first(event, (("response",), ("output", "text")))  # Cloudflare's, and Alibaba's
    reason = first(event, (("finish_reason",), ("output", "finish_reason")))
    tally.report(first(event, OTHER_USAGE), final=not words or reason not in (None, "null"))


__all__ = ["conversations", "interactions", "media", "other", "tgi", "watsonx"]
