"""A relay of Realtime conversations: callers talk to it as to the provider, and are billed for each answer.

    RELAY_UPSTREAM=wss://api.openai.com/v1/realtime RELAY_UPSTREAM_KEY=… RELAY_API_KEYS=key-ada=cus_ada \
        uvicorn app:app

It looks into no message: the middleware finds the usage in what the relay passes on.
"""

from __future__ import annotations

import os

import anyio
from llm_metering import Metering, MeteringMiddleware, from_api_key
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

UPSTREAM = os.environ.get("RELAY_UPSTREAM", "wss://api.openai.com/v1/realtime")
UPSTREAM_KEY = os.environ.get("RELAY_UPSTREAM_KEY", "")
# "key=customer,key=customer": your user table.
CUSTOMERS = dict(pair.split("=", 1) for pair in os.environ.get("RELAY_API_KEYS", "").split(",") if pair)

metering = Metering(customer=from_api_key(CUSTOMERS.get))


async def relay(socket: WebSocket) -> None:
    """Pass messages both ways until one side ends."""
    if socket.headers.get("authorization", "").removeprefix("Bearer ") not in CUSTOMERS:
        await socket.close(1008, "unknown API key")
        return
    await socket.accept()
    model = socket.query_params.get("model", "gpt-realtime")
    headers = {"Authorization": f"Bearer {UPSTREAM_KEY}"}
    async with (
        connect(f"{UPSTREAM}?model={model}", additional_headers=headers, max_size=None) as upstream,
        anyio.create_task_group() as both,
    ):
        both.start_soon(up, socket, upstream, both.cancel_scope)
        both.start_soon(down, socket, upstream, both.cancel_scope)


async def up(socket: WebSocket, upstream: ClientConnection, over: anyio.CancelScope) -> None:
    try:
        while True:
            await upstream.send(await socket.receive_text())
    except (WebSocketDisconnect, ConnectionClosed):
        over.cancel()


async def down(socket: WebSocket, upstream: ClientConnection, over: anyio.CancelScope) -> None:
    try:
        async for message in upstream:
            await socket.send_text(message if isinstance(message, str) else message.decode())
        await socket.close()
    except (WebSocketDisconnect, ConnectionClosed):
        pass
    over.cancel()


app = Starlette(
    routes=[WebSocketRoute("/v1/realtime", relay)],
    middleware=[Middleware(MeteringMiddleware, metering=metering)],
)
