"""The gateway: whoever points an OpenAI SDK at it is billed, though it looks into no body."""

from __future__ import annotations

import httpx
import pytest
from openai import AuthenticationError, OpenAI

pytestmark = pytest.mark.once

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "tell me of the sea"}]}


@pytest.fixture
def gateway(ground):
    return ground.start(
        "starlette_gateway",
        ready_path="/v1/models",
        GATEWAY_UPSTREAM=f"{ground.provider.url}/v1",
        GATEWAY_UPSTREAM_KEY="any",
        GATEWAY_API_KEYS="key-ada=cus_ada,key-ben=cus_ben",
    )


def client(gateway, key: str) -> OpenAI:
    return OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


def tally(ground) -> list[dict]:
    return httpx.get(f"{ground.provider.url}/_tally").json()["answers"]


def billed(record: dict) -> dict[str, int]:
    counts = record["counts"]
    sums = {
        "input": counts.get("input", 0),
        "cached_input": counts.get("cached_input", 0),
        "output": counts.get("output", 0) + counts.get("reasoning", 0),
    }
    return {kind: count for kind, count in sums.items() if count}


def test_answers_that_pass_by_are_billed_as_the_provider_reports_them(ground, gateway):
    with client(gateway, "key-ada") as ada, client(gateway, "key-ben") as ben:
        ada.chat.completions.create(**ASK)
        list(ben.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
        ada.responses.create(model="gpt-5-mini", input="tell me of the sea")
        list(ben.responses.create(model="gpt-4.1", input="and of the rain", stream=True))
        ada.embeddings.create(model="text-embedding-3-small", input=["sea", "rain and wind"])
    records = ground.records(5)
    sent = tally(ground)
    assert [record["customer"] for record in records] == [
        f"cus_{n}" for n in ("ada", "ben", "ada", "ben", "ada")
    ]
    assert [record["surface"] for record in records] == ["middleware"] * 5
    assert [record["provenance"] for record in records] == ["reported"] * 5
    assert [(r["model"], billed(r)) for r in records] == [(s["model"], s["tokens"]) for s in sent]


def test_a_stream_that_reports_no_usage_is_counted(ground, gateway):
    with client(gateway, "key-ada") as ada:
        text = "".join(
            chunk.choices[0].delta.content or "" for chunk in ada.chat.completions.create(**ASK, stream=True)
        )
    (record,) = ground.records(1)
    (sent,) = tally(ground)
    assert record["provenance"] == "counted"
    assert billed(record) == sent["tokens"]
    assert billed(record)["output"] == len(text.split())


def test_an_unknown_key_gets_nowhere(ground, gateway):
    with client(gateway, "key-of-nobody") as nobody, pytest.raises(AuthenticationError):
        nobody.chat.completions.create(**ASK)
    assert tally(ground) == []


def test_an_error_of_the_provider_passes_as_it_is_and_is_not_billed(ground, gateway):
    answer = httpx.post(
        f"{gateway.url}/v1/no/such/path", json={}, headers={"Authorization": "Bearer key-ada"}
    )
    assert (answer.status_code, answer.text) == (404, "Not Found")
