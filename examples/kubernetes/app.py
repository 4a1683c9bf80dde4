"""A service of the fleet. Where a model would answer stands a constant: ten tokens an answer."""

from __future__ import annotations

import uuid

from llm_metering import Metering, MeteringMiddleware, Usage, from_state, health_endpoint
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route

metering = Metering(customer=from_state("customer"))


async def ask(request: Request) -> JSONResponse:
    request.state.customer = request.path_params["customer"]  # yours comes from authentication
    id_ = f"answer-{uuid.uuid4().hex}"
    metering.record(Usage(input=7, output=3), model="gpt-5-mini", id=id_)
    return JSONResponse({"answer": 42, "id": id_})


async def alive(_: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


app = Starlette(
    routes=[
        Route("/ask/{customer}", ask),
        Route("/alive", alive),
        Mount("/ready", health_endpoint(metering)),
    ]
)
app.add_middleware(MeteringMiddleware, metering=metering)
