"""A Litestar service that bills its callers' tokens. The middleware goes round it, as round any ASGI app.

OPENAI_API_KEY=… CHAT_API_KEYS=key-ada=cus_ada uvicorn app:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

from litestar import Litestar, Request, get, post
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException
from litestar.handlers import BaseRouteHandler
from litestar.response import ServerSentEvent
from llm_metering import Metering, MeteringMiddleware, from_state
from openai import AsyncOpenAI

# "key=customer,key=customer": your user table.
CUSTOMERS = dict(pair.split("=", 1) for pair in os.environ.get("CHAT_API_KEYS", "").split(",") if pair)
MODEL = "gpt-4o-mini"

metering = Metering(customer=from_state("stripe_customer_id"))
openai = metering.wrap(AsyncOpenAI())


def knows(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Who calls, by API key. Metering bills whom this names."""
    key = connection.headers.get("authorization", "").removeprefix("Bearer ")
    if key not in CUSTOMERS:
        raise NotAuthorizedException("unknown API key")
    connection.state.stripe_customer_id = CUSTOMERS[key]


@get("/health")
async def health() -> str:
    return "ok"


@post("/chat", guards=[knows])
async def chat(data: dict[str, str]) -> dict[str, Any]:
    """Answer in one piece."""
    metering.bind(feature="chat")
    answer = await openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": data["text"]}]
    )
    return {"id": answer.id, "text": answer.choices[0].message.content}


@post("/chat/stream", guards=[knows])
async def chat_stream(request: Request[Any, Any, Any], data: dict[str, str]) -> ServerSentEvent:
    """Answer word by word, as server-sent events."""
    metering.bind(feature="stream")

    async def words() -> AsyncIterator[str]:
        stream = await openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": data["text"]}], stream=True
        )
        async for chunk in stream:
            if text := chunk.choices[0].delta.content:
                yield text

    return ServerSentEvent(words())


app = MeteringMiddleware(Litestar([health, chat, chat_stream]), metering=metering)
