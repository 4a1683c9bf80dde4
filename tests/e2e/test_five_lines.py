"""The five lines of the README in an empty file, and a reader who hangs up half way through a stream."""

from __future__ import annotations

import http.client
import re
from pathlib import Path

import pytest
from llm_metering.cli.demo_books import recorded_in

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
FIVE_LINES = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)

THEIR_OWN = """
from fastapi import Request
from fastapi.responses import StreamingResponse

@app.get("/health")
def health():
    return "ok"

@app.get("/tale/{customer}")
async def tale(customer: str, request: Request):
    request.state.stripe_customer_id = customer
    stream = await openai.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "tell me of the sea"}], stream=True
    )

    async def words():
        async for chunk in stream:
            yield (chunk.choices[0].delta.content or "") + "|"

    return StreamingResponse(words(), media_type="text/plain")
"""


@pytest.fixture
def service(world, tmp_path):
    assert "metering.wrap(AsyncOpenAI())" in FIVE_LINES
    (tmp_path / "main.py").write_text(FIVE_LINES + THEIR_OWN)
    world.provider.delay_s = 0.02
    world.provider.seed = 4  # a tale of fifty words
    return world.start(tmp_path, "main:app")


def read(service, customer: str, words: int | None = None) -> str:
    """Read a tale: so many words of it, or all."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    connection.request("GET", f"/tale/{customer}")
    answer = connection.getresponse()
    text = ""
    while piece := answer.read1():
        text += piece.decode()
        if words is not None and text.count("|") > words:
            break
    answer.close()
    connection.close()  # hangs up
    return text


def test_a_stream_whose_reader_hangs_up_is_billed_for_what_was_produced(world, service):
    ada = world.customers[0]
    seen = read(service, ada, words=10)
    world.wait_for(lambda: world.status().usage_records)
    world.wait_for_delivery()

    (answer,) = world.provider.answers
    assert len(answer.words) > 20, "the tale is too short for its reader to hang up half way"
    (record,) = recorded_in(world.ledger)
    assert record.provenance == "partial"  # counted by us, of a stream that broke off
    assert record.response_id == answer.id
    billed = {kind.token_type: int(tokens) for kind, tokens in world.in_stripe().items()}
    assert {kind.customer for kind in world.in_stripe()} == {ada}
    assert billed["input"] == answer.input_tokens
    # At least what its reader saw, at most what had left the provider.
    assert seen.count("|") - 1 <= billed["output"] <= answer.words_sent + 1 < len(answer.words)


def test_a_stream_that_is_read_to_its_end_is_billed_as_the_provider_reports(world, service):
    ben = world.customers[1]
    text = read(service, ben)
    world.wait_for_delivery()
    (answer,) = world.provider.answers
    assert text.replace("|", "") == answer.text
    assert recorded_in(world.ledger)[0].provenance == "reported"
    billed = {(k.customer, k.token_type): int(n) for k, n in world.in_stripe().items()}
    assert billed == {(ben, kind): n for kind, n in answer.by_type().items()}
