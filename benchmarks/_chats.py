"""The chat that several benchmarks have: what is asked, the provider's answer, and a client that gets it."""

from __future__ import annotations

import json
from typing import Any

ASK: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello to the people." * 8}]}
HEAD: Any = {"id": "chatcmpl-1", "created": 1_750_000_000, "model": "gpt-4o-mini-2024-07-18"}
USAGE: Any = {
    "prompt_tokens": 123, "completion_tokens": 45, "total_tokens": 168,
    "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 7, "audio_tokens": 0},
}  # fmt: skip


def whole_answer() -> dict[str, Any]:
    message = {"role": "assistant", "content": "Hello there, how can I help?", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}


def stream_events(count: int) -> list[dict[str, Any]]:
    """So many of them, the last with the usage."""
    head = {**HEAD, "object": "chat.completion.chunk"}
    events = [
        {**head, "usage": None, "choices": [
            {"index": 0, "delta": {"content": f" tok{n % 97}"}, "logprobs": None,
             "finish_reason": None if n < count - 2 else "stop"}]}
        for n in range(count - 1)
    ]  # fmt: skip
    return [*events, {**head, "choices": [], "usage": USAGE}]


def client_in_memory(kind: Any, chunks: int) -> Any:
    """The whole SDK, over a transport that answers at once: a call, or a stream of so many chunks."""
    import httpx2

    answer = json.dumps(whole_answer()).encode()
    events = [b"data: %b\n\n" % json.dumps(event).encode() for event in stream_events(chunks)]
    stream = b"".join(events) + b"data: [DONE]\n\n"

    def handle(request: httpx2.Request) -> httpx2.Response:
        if b'"stream":true' in request.content:
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
        return httpx2.Response(200, headers={"content-type": "application/json"}, content=answer)

    transport = httpx2.MockTransport(handle)
    client = (httpx2.AsyncClient if "Async" in kind.__name__ else httpx2.Client)(transport=transport)
    return kind(api_key="k", base_url="http://provider.local/v1", http_client=client, max_retries=0)
