"""A service that asks four providers, as it was before it was metered."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Annotated

from anthropic import AsyncAnthropic
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import StreamingResponse
from groq import AsyncGroq
from mistralai.client import Mistral
from openai import AsyncOpenAI
from pydantic import BaseModel

app = FastAPI(title="Four providers")
openai, anthropic, groq = AsyncOpenAI(), AsyncAnthropic(), AsyncGroq()
mistral = Mistral(api_key=os.environ["MISTRAL_API_KEY"], server_url=os.environ.get("MISTRAL_BASE_URL"))

ACCOUNTS = dict(pair.split("=", 1) for pair in os.environ.get("CHAT_API_KEYS", "").split(",") if pair)


def account(request: Request, x_api_key: Annotated[str, Header()]) -> str:
    """Who calls, by API key."""
    if x_api_key not in ACCOUNTS:
        raise HTTPException(status_code=401, detail="unknown API key")
    return ACCOUNTS[x_api_key]


class Question(BaseModel):
    text: str


async def ask_openai(text: str) -> str | None:
    answer = await openai.responses.create(model="gpt-5-mini", input=text)
    return answer.output_text


async def ask_anthropic(text: str) -> str | None:
    messages = [{"role": "user", "content": text}]
    answer = await anthropic.messages.create(model="claude-sonnet-5", max_tokens=500, messages=messages)
    return answer.content[0].text


async def ask_groq(text: str) -> str | None:
    messages = [{"role": "user", "content": text}]
    answer = await groq.chat.completions.create(model="llama-3.3-70b-versatile", messages=messages)
    return answer.choices[0].message.content


async def ask_mistral(text: str) -> str | None:
    messages = [{"role": "user", "content": text}]
    answer = await mistral.chat.complete_async(model="mistral-small-latest", messages=messages)
    return answer.choices[0].message.content


ASK = {"openai": ask_openai, "anthropic": ask_anthropic, "groq": ask_groq, "mistral": ask_mistral}


@app.post("/ask/{provider}")
async def ask(
    provider: str, question: Question, who: Annotated[str, Depends(account)]
) -> dict[str, str | None]:
    """Answer in one piece."""
    return {"for": who, "text": await ASK[provider](question.text)}


@app.post("/stream")
async def stream(question: Question, who: Annotated[str, Depends(account)]) -> StreamingResponse:
    """Answer word by word."""

    async def words() -> AsyncIterator[str]:
        messages = [{"role": "user", "content": question.text}]
        async with anthropic.messages.stream(
            model="claude-sonnet-5", max_tokens=500, messages=messages
        ) as answer:
            async for text in answer.text_stream:
                yield text

    return StreamingResponse(words(), media_type="text/plain")


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}
