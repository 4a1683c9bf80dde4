"""Litestar and Django, each as an ASGI app under the middleware: callers are billed as in any other."""

from __future__ import annotations

import asyncio

import httpx
import pytest

pytestmark = pytest.mark.once


@pytest.fixture(params=["litestar", "django"])
def service(request, ground):
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return ground.start(
        f"{request.param}_chat",
        ready_path="/health",
        OPENAI_BASE_URL=f"{ground.provider.url}/v1",
        OPENAI_API_KEY="any",
        CHAT_API_KEYS=",".join(f"key-{n}=cus_{n}" for n in range(12)),
    )


def test_each_caller_is_billed_for_plain_and_streamed_answers(ground, service):
    async def ask(n: int) -> None:
        headers = {"authorization": f"Bearer key-{n}"}
        async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30) as client:
            plain, streamed = await asyncio.gather(
                client.post("/chat", json={"text": f"question {n}"}),
                client.post("/chat/stream", json={"text": f"question {n}"}),
            )
            assert plain.status_code in (200, 201)
            assert "data: " in streamed.text

    async def all_at_once() -> None:
        await asyncio.gather(*(ask(n) for n in range(12)))

    asyncio.run(all_at_once())
    records = ground.records(24)
    assert sorted((r["customer"], r["dimensions"]["feature"]) for r in records) == sorted(
        (f"cus_{n}", feature) for n in range(12) for feature in ("chat", "stream")
    )
    sent = {each["id"]: each for each in httpx.get(f"{ground.provider.url}/_tally").json()["answers"]}
    for record in records:
        counts = record["counts"]
        assert record["provenance"] == "reported"
        assert sum(counts.values()) == sum(sent[record["response_id"]]["tokens"].values())


def test_an_unknown_key_gets_nowhere(ground, service):
    answer = httpx.post(f"{service.url}/chat", json={"text": "hello"}, headers={"authorization": "Bearer x"})
    assert answer.status_code == 401
    assert httpx.get(f"{ground.provider.url}/_tally").json()["answers"] == []
