"""OpenAI's shapes: chat completions, Responses and embeddings."""

from __future__ import annotations

import base64
import random
import struct
from typing import Any

from .answers import Answer
from .wire import Events, pieces, sse

# OpenAI chat completions.


def chat_usage(answer: Answer) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": answer.reasoning_tokens, "audio_tokens": 0},
    }


def chat_body(answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(answer)}
    return {**_chat(answer, "chat.completion"), "choices": [choice], "usage": chat_usage(answer)}


def chat_events(answer: Answer, wants_usage: bool) -> Events:
    usage: dict[str, Any] = {"usage": None} if wants_usage else {}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse({**_chat(answer, "chat.completion.chunk"), "choices": [choice], **usage})

    yield chunk({"role": "assistant", "content": "", "refusal": None}), None
    for text, n in pieces(answer):
        yield chunk({"content": text}), n
    yield chunk({}, _finish(answer)), None
    if wants_usage:
        head = _chat(answer, "chat.completion.chunk")
        yield sse({**head, "choices": [], "usage": chat_usage(answer)}), None
    yield sse("[DONE]"), None


def _chat(answer: Answer, kind: str) -> dict[str, Any]:
    return {"id": answer.id, "object": kind, "created": answer.created, "model": answer.model}


def _finish(answer: Answer) -> str:
    return "length" if answer.cut_short else "stop"


# OpenAI Responses.


def responses_body(answer: Answer, *, done: bool = True) -> dict[str, Any]:
    usage = {
        "input_tokens": answer.input_tokens,
        "input_tokens_details": {"cached_tokens": answer.cached_tokens},
        "output_tokens": answer.output_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": answer.input_tokens + answer.output_tokens,
    }
    return {
        "id": answer.id,
        "object": "response",
        "created_at": answer.created,
        "status": "completed" if done else "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": answer.model,
        "output": [_item(answer, done=True)] if done else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": usage if done else None,
    }


def responses_events(answer: Answer) -> Events:
    place = {"item_id": f"msg_{answer.id}", "output_index": 0, "content_index": 0}
    number = iter(range(10**6))

    def event(kind: str, **fields: Any) -> str:
        return sse({"type": f"response.{kind}", "sequence_number": next(number), **fields}, named=True)

    yield event("created", response=responses_body(answer, done=False)), None
    yield event("in_progress", response=responses_body(answer, done=False)), None
    yield event("output_item.added", output_index=0, item=_item(answer, done=False)), None
    yield event("content_part.added", **place, part=_part("")), None
    for text, n in pieces(answer):
        yield event("output_text.delta", **place, delta=text, logprobs=[]), n
    yield event("output_text.done", **place, text=answer.text, logprobs=[]), None
    yield event("content_part.done", **place, part=_part(answer.text)), None
    yield event("output_item.done", output_index=0, item=_item(answer, done=True)), None
    yield event("completed", response=responses_body(answer)), None


def _item(answer: Answer, *, done: bool) -> dict[str, Any]:
    content = [_part(answer.text)] if done else []
    status = "completed" if done else "in_progress"
    return {
        "id": f"msg_{answer.id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


# OpenAI embeddings.


def embeddings_body(answer: Answer, texts: list[Any], as_base64: bool) -> dict[str, Any]:
    def vector(text: Any) -> Any:
        luck = random.Random(f"{answer.model}:{text}")
        numbers = [luck.uniform(-1, 1) for _ in range(8)]
        return base64.b64encode(struct.pack("<8f", *numbers)).decode() if as_base64 else numbers

    data = [{"object": "embedding", "index": n, "embedding": vector(text)} for n, text in enumerate(texts)]
    usage = {"prompt_tokens": answer.input_tokens, "total_tokens": answer.input_tokens}
    return {"object": "list", "data": data, "model": answer.model, "usage": usage}
