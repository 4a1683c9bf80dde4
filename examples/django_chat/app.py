"""A Django service that bills its callers' tokens, as an ASGI app. It is a project of one file; in yours,
`asgi.py` wraps what `get_asgi_application()` returns, and the rest is as it was.

    OPENAI_API_KEY=… CHAT_API_KEYS=key-ada=cus_ada uvicorn app:app
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from llm_metering import Metering, MeteringMiddleware
from openai import AsyncOpenAI, OpenAI

settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="only for this example", ALLOWED_HOSTS=["*"])
django.setup()

# "key=customer,key=customer": your user table.
CUSTOMERS = dict(pair.split("=", 1) for pair in os.environ.get("CHAT_API_KEYS", "").split(",") if pair)
MODEL = "gpt-4o-mini"

metering = Metering()
openai = metering.wrap(OpenAI())
openai_async = metering.wrap(AsyncOpenAI())


def customer_of(request: HttpRequest) -> str | None:
    return CUSTOMERS.get(request.headers.get("authorization", "").removeprefix("Bearer "))


def known(view: Callable[..., Any]) -> Callable[..., Any]:
    """Only for callers that we know; metering bills whom `bind` names."""

    @functools.wraps(view)
    def checked(request: HttpRequest) -> Any:
        customer = customer_of(request)
        if customer is None:
            return JsonResponse({"error": "unknown API key"}, status=401)
        metering.bind(customer=customer, feature=view.__name__)
        return view(request)

    return csrf_exempt(checked)


def messages(request: HttpRequest) -> list[Any]:
    return [{"role": "user", "content": json.loads(request.body)["text"]}]


def health(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


@known
def chat(request: HttpRequest) -> HttpResponse:
    """A plain view, which Django runs on a thread."""
    answer = openai.chat.completions.create(model=MODEL, messages=messages(request))
    return JsonResponse({"id": answer.id, "text": answer.choices[0].message.content})


@csrf_exempt
async def stream(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    """An async view that answers word by word."""
    customer = customer_of(request)
    if customer is None:
        return JsonResponse({"error": "unknown API key"}, status=401)
    metering.bind(customer=customer, feature="stream")

    async def words() -> AsyncIterator[str]:
        answer = await openai_async.chat.completions.create(
            model=MODEL, messages=messages(request), stream=True
        )
        async for chunk in answer:
            yield f"data: {json.dumps(chunk.choices[0].delta.content or '')}\n\n"

    return StreamingHttpResponse(words(), content_type="text/event-stream")


urlpatterns = [path("health", health), path("chat", chat), path("chat/stream", stream)]

app = MeteringMiddleware(get_asgi_application(), metering=metering)
