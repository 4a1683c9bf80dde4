"""A chat service that bills its callers' tokens through Stripe. See README.md beside this file."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from llm_metering import Metering, MeteringMiddleware, from_state
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

# "key=customer,key=customer": your user table.
CUSTOMERS = dict(pair.split("=", 1) for pair in os.environ.get("CHAT_API_KEYS", "").split(",") if pair)
DIGEST_MODEL = os.environ.get("CHAT_DIGEST_MODEL", "gpt-5-mini")

metering = Metering(customer=from_state("stripe_customer_id"))
app = FastAPI(title="Chat")
app.add_middleware(MeteringMiddleware, metering=metering)
openai = metering.wrap(AsyncOpenAI())


def customer(request: Request, key: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    """Who calls, by API key. Metering bills whom this names."""
    if key.credentials not in CUSTOMERS:
        raise HTTPException(status_code=401, detail="unknown API key")
    request.state.stripe_customer_id = CUSTOMERS[key.credentials]
    return CUSTOMERS[key.credentials]


Customer = Annotated[str, Depends(customer)]


class Question(BaseModel):
    text: str
    context: str = "You are a helpful assistant."
    model: str = "gpt-4o-mini"

    @property
    def messages(self) -> list[ChatCompletionMessageParam]:
        return [{"role": "system", "content": self.context}, {"role": "user", "content": self.text}]


@app.post("/chat")
async def chat(question: Question, who: Customer) -> dict[str, Any]:
    """Answer in one piece."""
    metering.bind(feature="chat")
    answer = await openai.chat.completions.create(model=question.model, messages=question.messages, user=who)
    return {"id": answer.id, "text": answer.choices[0].message.content}


@app.post("/chat/stream")
async def chat_stream(question: Question, who: Customer) -> StreamingResponse:
    """Answer word by word, as server-sent events."""
    metering.bind(feature="chat")
    stream = await openai.chat.completions.create(
        model=question.model, messages=question.messages, user=who, stream=True
    )

    async def events() -> AsyncIterator[str]:
        async with stream:
            async for chunk in stream:
                piece = {"id": chunk.id, "text": chunk.choices[0].delta.content or ""}
                yield f"data: {json.dumps(piece)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/digest")
async def digest(question: Question, who: Customer) -> dict[str, Any]:
    """Boil a text down to a sentence."""
    return await summarise(question.text, who)


@metering.metered(model=DIGEST_MODEL, feature="digest")
async def summarise(prompt: str, who: str) -> dict[str, Any]:
    # The client inside is metered too: it is still one call, counted once, under this feature.
    answer = await openai.chat.completions.create(
        model=DIGEST_MODEL,
        messages=[{"role": "user", "content": f"In one sentence: {prompt}"}],
        user=who,
    )
    return {"id": answer.id, "text": answer.choices[0].message.content}


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}
