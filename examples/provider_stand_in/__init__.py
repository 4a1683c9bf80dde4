"""A small LLM provider for demos and tests: it speaks OpenAI's and Anthropic's API, and counts what it sends.

    STAND_IN_SEED=7 uvicorn --app-dir examples provider_stand_in:create_app --factory --port 8100
    export OPENAI_BASE_URL=http://127.0.0.1:8100/v1 OPENAI_API_KEY=any

Chat completions, Responses, embeddings and Anthropic messages, streamed and not. The same seed and the same
request give the same answer; every answer has its own id. Each word of an answer is one token, so what it
reports is what a tokenizer finds. `GET /_tally` tells what was sent to whom, and whether all of it was.
It knows nothing of llm_metering: a shared mistake would agree with itself.
"""

from .app import create_app

__all__ = ["create_app"]
