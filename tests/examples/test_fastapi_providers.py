"""An existing service with four providers is metered by adding five lines."""

from __future__ import annotations

import difflib

import httpx
import pytest

from .conftest import EXAMPLES

pytestmark = pytest.mark.once

for package in ("anthropic", "groq", "mistralai", "openai"):
    pytest.importorskip(package, reason=f"{package} is not installed")

FOLDER = EXAMPLES / "fastapi_providers"
PROVIDERS = ("openai", "anthropic", "groq", "mistral")


def keys(url: str) -> dict[str, str]:
    return {
        "CHAT_API_KEYS": "key-ada=cus_ada,key-ben=cus_ben",
        "OPENAI_BASE_URL": f"{url}/v1",
        "ANTHROPIC_BASE_URL": url,
        "GROQ_BASE_URL": url,
        "MISTRAL_BASE_URL": url,
        **{f"{name.upper()}_API_KEY": "any" for name in PROVIDERS},
    }


def test_it_takes_five_lines() -> None:
    before, after = ((FOLDER / name).read_text().splitlines()[1:] for name in ("before.py", "app.py"))
    changes = [line for line in difflib.unified_diff(before, after, n=0) if line[:1] in "+-"][2:]
    assert [line[0] for line in changes] == ["+"] * 5


def test_every_provider_is_billed_to_whoever_asked(ground) -> None:
    service = ground.start("fastapi_providers", ready_path="/health", **keys(ground.provider.url))
    for who in ("ada", "ben"):
        with httpx.Client(base_url=service.url, headers={"x-api-key": f"key-{who}"}, timeout=30) as client:
            for provider in PROVIDERS:
                answer = client.post(f"/ask/{provider}", json={"text": f"Hello from {who}"})
                assert answer.json()["text"], answer.text
            assert client.post("/stream", json={"text": "Hello"}).text
    records = ground.records(10)
    said = {each["id"]: each for each in httpx.get(f"{ground.provider.url}/_tally").json()["answers"]}
    assert len(said) == 10
    assert sorted(r["customer"] for r in records) == ["cus_ada"] * 5 + ["cus_ben"] * 5
    for record in records:
        assert record["provenance"] == "reported"
        assert sum(record["counts"].values()) == sum(said[record["response_id"]]["tokens"].values())
    assert (
        httpx.post(f"{service.url}/stream", json={"text": "x"}, headers={"x-api-key": "no"}).status_code
        == 401
    )
