"""The smallest service there is to bill: a summary costs the tokens that its model reports."""

from __future__ import annotations

from llm_metering import Metering, MeteringMiddleware, from_state
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

metering = Metering(customer=from_state("stripe_customer_id"))


async def summary(request: Request) -> JSONResponse:
    """Ask a model, as far as this example goes, and say what came of it."""
    request.state.stripe_customer_id = request.headers["x-test-customer"]  # your authentication's work
    answer = {
        "id": "msg_1",
        "model": "gpt-5-mini",
        "usage": {"prompt_tokens": 2000, "completion_tokens": 1000},
    }
    metering.record(answer)
    return JSONResponse({"summary": "It is about the sea."})


app = Starlette(routes=[Route("/summary", summary, methods=["POST"])])
app.add_middleware(MeteringMiddleware, metering=metering)
