"""Anthropic's shape: messages."""

from __future__ import annotations

from typing import Any

from .answers import Answer
from .wire import Events, pieces, sse


def message_body(answer: Answer) -> dict[str, Any]:
    return {
        **_message(answer),
        "content": [{"type": "text", "text": answer.text}],
        "stop_reason": _stop_reason(answer),
        "usage": {**_message_input(answer), "output_tokens": answer.output_tokens},
    }


def message_events(answer: Answer) -> Events:
    start = {**_message(answer), "usage": {**_message_input(answer), "output_tokens": 1}}
    yield sse({"type": "message_start", "message": start}, named=True), None
    block = {"type": "text", "text": ""}
    yield sse({"type": "content_block_start", "index": 0, "content_block": block}, named=True), None
    yield sse({"type": "ping"}, named=True), None
    for text, n in pieces(answer):
        delta = {"type": "text_delta", "text": text}
        yield sse({"type": "content_block_delta", "index": 0, "delta": delta}, named=True), n
    yield sse({"type": "content_block_stop", "index": 0}, named=True), None
    end = {"stop_reason": _stop_reason(answer), "stop_sequence": None}
    usage = {"output_tokens": answer.output_tokens}
    yield sse({"type": "message_delta", "delta": end, "usage": usage}, named=True), None
    yield sse({"type": "message_stop"}, named=True), None


def _message(answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _message_input(answer: Answer) -> dict[str, int]:
    # Anthropic's input_tokens leaves out what was read from or written to the cache.
    return {
        "input_tokens": answer.input_tokens - answer.cached_tokens - answer.written_tokens,
        "cache_read_input_tokens": answer.cached_tokens,
        "cache_creation_input_tokens": answer.written_tokens,
    }


def _stop_reason(answer: Answer) -> str:
    return "max_tokens" if answer.cut_short else "end_turn"
