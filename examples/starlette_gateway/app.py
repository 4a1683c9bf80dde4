"""A gateway that offers the OpenAI API and bills its callers: metered by the middleware alone.

Its callers point their SDK here (`OPENAI_BASE_URL=http://gateway/v1`) with a key that the gateway gave them.
It forwards to the real provider with its own key and looks into no body: the middleware finds the usage in
what passes by.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx
from llm_metering import Metering, MeteringMiddleware, from_api_key
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

UPSTREAM = os.environ.get("GATEWAY_UPSTREAM", "https://api.openai.com/v1")
UPSTREAM_KEY = os.environ.get("GATEWAY_UPSTREAM_KEY", "")
# "key=customer,key=customer": your user table.
CUSTOMERS = dict(pair.split("=", 1) for pair in os.environ.get("GATEWAY_API_KEYS", "").split(",") if pair)
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "authorization"}

metering = Metering(customer=from_api_key(CUSTOMERS.get))


async def forward(request: Request) -> Response:
    """Pass a call on, and its answer back, byte for byte."""
    if request.headers.get("authorization", "").removeprefix("Bearer ") not in CUSTOMERS:
        return JSONResponse({"error": {"message": "unknown API key"}}, status_code=401)
    headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
    upstream: httpx.AsyncClient = request.state.upstream
    outgoing = upstream.build_request(
        request.method,
        f"{UPSTREAM}/{request.path_params['path']}",
        headers={**headers, "authorization": f"Bearer {UPSTREAM_KEY}"},
        params=request.query_params,
        content=await request.body(),
    )
    answer = await upstream.send(outgoing, stream=True)
    return StreamingResponse(
        passed_on(answer),
        status_code=answer.status_code,
        headers={name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP},
    )


async def passed_on(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The answer as it comes in. A caller who hangs up ends the call to the provider, too."""
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        with anyio.CancelScope(shield=True):
            await answer.aclose()


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    async with httpx.AsyncClient(timeout=600) as upstream:
        yield {"upstream": upstream}


app = Starlette(
    routes=[Route("/v1/{path:path}", forward, methods=["GET", "POST"])],
    middleware=[Middleware(MeteringMiddleware, metering=metering)],
    lifespan=lifespan,
)
