"""Five SDKs in one script, each metered by one `metering.wrap(...)` or by a transport.

    python script.py            # needs google-genai, mistralai, cohere, boto3, httpx2; asks no real provider

A small server on this machine stands in for the providers, so the script runs as it is. With your own keys,
leave the addresses away and it asks the real ones; nothing else changes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from uuid import uuid4

import boto3
import cohere
import httpx2
from google import genai
from llm_metering import Metering, MeteringTransport
from mistralai.client import Mistral

metering = Metering(customer="cus_house")

ANSWERS: dict[str, dict[str, Any]] = {
    ":generateContent": {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "Hello from Gemini"}]}}],
        "usageMetadata": {
            "promptTokenCount": 12,
            "candidatesTokenCount": 4,
            "thoughtsTokenCount": 30,
            "totalTokenCount": 46,
        },
        "modelVersion": "gemini-2.5-flash",
        "responseId": "gemini-1",
    },
    "/chat/completions": {
        "id": "mistral-1",
        "object": "chat.completion",
        "created": 1,
        "model": "mistral-small-latest",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Bonjour"}}
        ],
        "usage": {"prompt_tokens": 8, "completion_tokens": 3, "total_tokens": 11},
    },
    "/v2/chat": {
        "id": "cohere-1",
        "finish_reason": "COMPLETE",
        "message": {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]},
        "usage": {
            "billed_units": {"input_tokens": 3, "output_tokens": 2},
            "tokens": {"input_tokens": 69, "output_tokens": 2},
        },
    },
    "/converse": {
        "output": {"message": {"role": "assistant", "content": [{"text": "Hello from Nova"}]}},
        "stopReason": "end_turn",
        "usage": {"inputTokens": 6, "outputTokens": 5, "totalTokens": 11, "cacheReadInputTokens": 100},
        "metrics": {"latencyMs": 1},
    },
}


def ask_all(origin: str) -> Iterator[tuple[str, str]]:
    """Ask each provider through its own SDK."""
    google = metering.wrap(genai.Client(api_key="key", http_options={"base_url": origin}))
    yield (
        "google-genai",
        google.models.generate_content(model="gemini-2.5-flash", contents="Hello?").text or "",
    )

    mistral = metering.wrap(Mistral(api_key="key", server_url=origin), feature="greeting")
    said = mistral.chat.complete(
        model="mistral-small-latest", messages=[{"role": "user", "content": "Hello?"}]
    )
    yield "mistralai", str(said.choices[0].message.content)

    command = metering.wrap(cohere.ClientV2(api_key="key", base_url=origin))
    answer = command.chat(model="command-r", messages=[{"role": "user", "content": "Hello?"}])
    yield "cohere", answer.message.content[0].text

    bedrock = metering.wrap(
        boto3.client(
            "bedrock-runtime",
            region_name="us-east-1",
            endpoint_url=origin,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
    )
    question = [{"role": "user", "content": [{"text": "Hello?"}]}]
    told = bedrock.converse(modelId="amazon.nova-lite-v1:0", messages=question)
    yield "boto3", told["output"]["message"]["content"][0]["text"]

    # No SDK at all, or one that is not known: what passes through its HTTP client is metered.
    with httpx2.Client(transport=MeteringTransport(metering)) as http:
        asked = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": "Hello?"}]}
        told = http.post(f"{origin}/v1/chat/completions", json=asked).json()
        yield "httpx2", told["choices"][0]["message"]["content"]


class Providers(BaseHTTPRequestHandler):
    """Answers like each provider, told from the path."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        answer = next(answer for path, answer in ANSWERS.items() if self.path.endswith(path))
        if "id" in answer:
            answer = {**answer, "id": uuid4().hex}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def providers() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Providers)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def main() -> int:
    with metering, providers() as origin:
        for sdk, text in ask_all(origin):
            print(f"{sdk:14}{text}")
        metering.flush()
        print(f"{metering.status().usage_records} calls recorded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
