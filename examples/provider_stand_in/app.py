"""The routes, and the sending that notes how much of an answer has left."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .answers import Answer, Provider, words_in
from .anthropic_wire import message_body, message_events
from .openai_wire import chat_body, chat_events, embeddings_body, responses_body, responses_events
from .wire import Events


def create_app(*, seed: int | None = None, delay_s: float | None = None) -> Starlette:
    """The stand-in as an ASGI app.

    Args:
        seed: Decides the answers. Default: STAND_IN_SEED, else 0.
        delay_s: Wait between chunks, and before an answer that is not streamed. Default: STAND_IN_DELAY_S,
            else 0. `POST /_tune {"delay_s": 0.1}` changes it.
    """
    provider = Provider(
        seed=int(os.environ.get("STAND_IN_SEED", "0")) if seed is None else seed,
        delay_s=float(os.environ.get("STAND_IN_DELAY_S", "0")) if delay_s is None else delay_s,
    )

    async def chat(request: Request) -> Response:
        body = await request.json()
        answer = provider.answer("chat", "chatcmpl-", request, body, body.get("messages"))
        wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        return await send(request, provider, answer, chat_body, lambda a: chat_events(a, wants_usage))

    async def responses(request: Request) -> Response:
        body = await request.json()
        prompt = [body.get("instructions"), body.get("input")]
        answer = provider.answer("responses", "resp_", request, body, prompt)
        return await send(request, provider, answer, responses_body, responses_events)

    async def embeddings(request: Request) -> Response:
        body = await request.json()
        answer = provider.answer("embeddings", "emb_", request, body, None)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        answer.input_tokens = sum(words_in(text) for text in texts)
        as_base64 = body.get("encoding_format") == "base64"
        return await send(request, provider, answer, lambda a: embeddings_body(a, texts, as_base64), None)

    async def messages(request: Request) -> Response:
        body = await request.json()
        prompt = [body.get("system"), body.get("messages")]
        answer = provider.answer("messages", "msg_", request, body, prompt)
        if "cache_control" in json.dumps(body):
            answer.written_tokens = (answer.input_tokens - answer.cached_tokens) // 4
        return await send(request, provider, answer, message_body, message_events)

    async def tally(request: Request) -> Response:
        return JSONResponse(provider.tally())

    async def tune(request: Request) -> Response:
        provider.delay_s = float((await request.json())["delay_s"])
        return JSONResponse({"delay_s": provider.delay_s})

    post = ["POST"]
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=post),
            Route("/openai/v1/chat/completions", chat, methods=post),  # Groq
            Route("/v1/responses", responses, methods=post),
            Route("/v1/embeddings", embeddings, methods=post),
            Route("/v1/messages", messages, methods=post),
            Route("/_tally", tally),
            Route("/_tune", tune, methods=post),
        ]
    )
    app.state.provider = provider
    return app


async def send(
    request: Request,
    provider: Provider,
    answer: Answer,
    body: Callable[[Answer], dict[str, Any]],
    events: Callable[[Answer], Events] | None,
) -> Response:
    """Send one answer, streamed if that was asked for, and note how much of it left."""
    if answer.stream and events is not None:
        stream = _stream(provider, answer, events(answer))
        return StreamingResponse(stream, media_type="text/event-stream")
    await asyncio.sleep(provider.delay_s)
    if await request.is_disconnected():
        answer.state = "cut"
        return Response(status_code=499)

    def whole() -> None:
        answer.state, answer.words_sent = "whole", len(answer.words)

    return JSONResponse(body(answer), background=BackgroundTask(whole))


async def _stream(provider: Provider, answer: Answer, events: Events) -> AsyncIterator[str]:
    try:
        for piece, words_sent in events:
            yield piece
            # We are asked for the next piece only when this one has been written.
            answer.words_sent = answer.words_sent if words_sent is None else words_sent
            if provider.delay_s:
                await asyncio.sleep(provider.delay_s)
        answer.state = "whole"
    finally:
        if answer.state != "whole":
            answer.state = "cut"
