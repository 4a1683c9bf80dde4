"""The chat service: answers, streams and digests are billed to the caller whose key it is."""

from __future__ import annotations

import json

import httpx
import pytest

KEYS = "key-ada=cus_ada,key-ben=cus_ben"


@pytest.fixture
def chat(ground):
    return ground.start(
        "fastapi_chat",
        ready_path="/health",
        CHAT_API_KEYS=KEYS,
        OPENAI_API_KEY="any",
        OPENAI_BASE_URL=f"{ground.provider.url}/v1",
    )


def ask(chat, path: str, key: str = "key-ada", **body: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{chat.url}{path}", json={"text": "tell me of the sea", **body}, headers=headers)


def tally(ground) -> dict[str, dict]:
    answers = httpx.get(f"{ground.provider.url}/_tally").json()["answers"]
    return {answer["id"]: answer for answer in answers}


def test_each_way_to_ask_is_recorded_once_with_the_providers_counts(ground, chat):
    plain = ask(chat, "/chat").json()
    stream = ask(chat, "/chat/stream", "key-ben", model="gpt-5-mini").text
    digest = ask(chat, "/digest").json()
    records = ground.records(3)
    sent = tally(ground)

    assert [(r["customer"], r["dimensions"]) for r in records] == [
        ("cus_ada", {"feature": "chat"}),
        ("cus_ben", {"feature": "chat"}),
        ("cus_ada", {"feature": "digest"}),
    ]
    assert [r["response_id"] for r in records] == list(sent)
    assert records[0]["response_id"] == plain["id"]
    assert records[2]["response_id"] == digest["id"]
    for record in records:
        answer = sent[record["response_id"]]
        counts = record["counts"]
        assert record["provenance"] == "reported"
        assert record["model"] == answer["model"]
        assert counts["input"] == answer["tokens"]["input"]
        assert counts["output"] + counts["reasoning"] == answer["tokens"]["output"]
    events = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    words = "".join(json.loads(event)["text"] for event in events[:-1]).split()
    assert len(words) == sent[records[1]["response_id"]]["words_sent"]


def test_a_caller_without_a_known_key_is_refused_and_nothing_is_asked(ground, chat):
    assert ask(chat, "/chat", "key-of-nobody").status_code == 401
    assert httpx.post(f"{chat.url}/chat", json={"text": "hello"}).status_code in (401, 403)
    assert tally(ground) == {}


def test_a_request_cannot_name_its_customer(ground, chat):
    ask(chat, "/chat", "key-ben", user="cus_ada", customer="cus_ada", stripe_customer_id="cus_ada")
    assert [record["customer"] for record in ground.records(1)] == ["cus_ben"]
