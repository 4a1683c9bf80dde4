"""Metering without a web service: a batch script whose functions are metered by a decorator.

    python script.py            # counts and keeps the usage; with STRIPE_API_KEY set, delivers it too

The functions stand for whatever calls a model in your code. Here they make up their answers, so the script
runs as it is.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator

from llm_metering import Metering, Usage

MODEL = "gpt-4o-mini"
metering = Metering(customer="cus_house")  # billed wherever nobody else is named


@metering.metered(model=MODEL, feature="title")
def title(prompt: str) -> str:
    return f"On {prompt}"


@metering.metered(model=MODEL, feature="summary")
async def summary(prompt: str) -> str:
    return f"A short text about {prompt}."


@metering.metered(model=MODEL, feature="verse")
def verse(prompt: str) -> Iterator[str]:
    yield from ("the ", prompt, " goes ", "on")


@metering.metered(model=MODEL, feature="tale", customer=lambda prompt, reader: reader)
async def tale(prompt: str, reader: str) -> AsyncIterator[str]:
    for word in ("once ", "there ", "was ", prompt):
        yield word


async def evening() -> None:
    print(await summary("the sea"))
    print("".join([word async for word in tale("a wheel", reader="cus_reader")]))


def main() -> int:
    with metering:
        print(title("the rain"))
        print("".join(verse("road")))
        asyncio.run(evening())

        with metering.bound(customer="cus_123", feature="batch"):
            print(title("the batch"))

        # By hand: any provider's answer, or counts. With an id, recording twice bills once.
        answer = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [],
            "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25},
        }
        metering.record(answer, customer="cus_123")
        for _ in range(2):
            metering.record(
                Usage(input=1000, cached_input=200, output=50), customer="cus_123", model=MODEL, id="job-17"
            )

        undelivered = metering.flush()
        status = metering.status()
        print(f"{status.usage_records} calls recorded, {undelivered} meter events not delivered yet")
    return 0 if status.conserved else 1


if __name__ == "__main__":
    sys.exit(main())
