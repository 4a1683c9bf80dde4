"""The stand-in speaks as the providers do, and its tally is exact: demo and end-to-end tests lean on it."""

from __future__ import annotations

import time

import httpx
import pytest
from anthropic import Anthropic
from llm_metering import count_text, read_response
from llm_metering.cli.stage import Server
from openai import OpenAI

from provider_stand_in import create_app
from provider_stand_in.answers import WORDS

MESSAGES = [{"role": "user", "content": "tell me of the sea"}]
CLAUDE = "claude-opus-4-8"


@pytest.fixture
def provider(ground) -> Server:
    return ground.provider


@pytest.fixture
def openai(provider):
    with OpenAI(base_url=f"{provider.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic(provider):
    with Anthropic(base_url=provider.url, api_key="any", max_retries=0) as client:
        yield client


def tally(provider) -> dict:
    return httpx.get(f"{provider.url}/_tally").json()


def test_each_word_of_an_answer_is_one_token_so_what_it_reports_is_what_a_tokenizer_finds(openai):
    for model in ("gpt-4o-mini", "gpt-4"):
        assert all(
            count_text(word, model=model) == count_text(f" {word}", model=model) == 1 for word in WORDS
        )
        answer = openai.chat.completions.create(model=model, messages=MESSAGES)
        assert answer.usage.completion_tokens == count_text(answer.choices[0].message.content, model=model)
    assert answer.usage.prompt_tokens == 3 + 3 + 1 + count_text("tell me of the sea", model="gpt-4")


def test_a_stream_says_what_the_whole_answer_says(openai, anthropic, provider):
    with openai.responses.stream(model="gpt-5-mini", input="tell me of the sea") as stream:
        words = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert words == final.output_text
    assert final.usage.output_tokens - final.usage.output_tokens_details.reasoning_tokens == len(
        words.split()
    )
    with anthropic.messages.stream(model=CLAUDE, max_tokens=9, messages=MESSAGES) as stream:
        words = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert (len(words.split()), message.stop_reason, message.usage.output_tokens) == (9, "max_tokens", 9)
    assert {answer["state"] for answer in tally(provider)["answers"]} == {"whole"}


@pytest.mark.parametrize("wanted", [True, False])
def test_usage_ends_a_chat_stream_only_where_it_was_asked_for(openai, wanted):
    options = {"stream_options": {"include_usage": True}} if wanted else {}
    chunks = list(openai.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True, **options))
    assert [bool(chunk.choices) for chunk in chunks] == [True] * (len(chunks) - wanted) + [False] * wanted
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - wanted) + [True] * wanted


def test_long_prompts_come_from_the_cache_and_some_models_think(openai):
    long = [{"role": "user", "content": "sea " * 1200}]
    used = [
        openai.chat.completions.create(model="gpt-5-mini", messages=long, seed=seed).usage
        for seed in range(8)
    ]
    assert {u.prompt_tokens_details.cached_tokens for u in used} == {512}
    assert any(u.completion_tokens_details.reasoning_tokens for u in used)
    assert all(u.total_tokens == u.prompt_tokens + u.completion_tokens for u in used)


def test_anthropics_counts_leave_the_cache_out_of_the_input(anthropic, provider):
    cached = [{"type": "text", "text": "sea " * 1200, "cache_control": {"type": "ephemeral"}}]
    usage = anthropic.messages.create(model=CLAUDE, max_tokens=50, system=cached, messages=MESSAGES).usage
    (answer,) = tally(provider)["answers"]
    assert answer["tokens"] == {
        "input": usage.input_tokens,
        "cached_input": usage.cache_read_input_tokens,
        "cached_write": usage.cache_creation_input_tokens,
        "output": usage.output_tokens,
    }
    assert all(answer["tokens"].values())


def test_the_tally_knows_whom_an_answer_was_for_and_adds_it_up(openai, anthropic, provider):
    openai.chat.completions.create(model="gpt-4o", messages=MESSAGES, user="cus_ada")
    openai.embeddings.create(model="text-embedding-3-small", input="sea and wind", user="cus_ada")
    openai.chat.completions.create(model="gpt-4o", messages=MESSAGES, extra_headers={"x-end-user": "cus_ben"})
    anthropic.messages.create(model=CLAUDE, max_tokens=5, messages=MESSAGES, metadata={"user_id": "cus_cleo"})
    told = tally(provider)
    assert [answer["customer"] for answer in told["answers"]] == ["cus_ada", "cus_ada", "cus_ben", "cus_cleo"]
    assert len({answer["id"] for answer in told["answers"]}) == 4
    assert {"customer": "cus_cleo", "model": CLAUDE, "token_type": "output", "tokens": 5} in told["sums"]
    assert {
        "customer": "cus_ada", "model": "text-embedding-3-small", "token_type": "input", "tokens": 3
    } in told["sums"]  # fmt: skip


def test_a_reader_who_hangs_up_is_tallied_as_cut_with_the_words_that_left(openai, provider):
    httpx.post(f"{provider.url}/_tune", json={"delay_s": 0.02})
    stream = openai.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
    seen = 0
    for chunk in stream:
        seen += bool(chunk.choices[0].delta.content)
        if seen == 5:
            break
    stream.close()
    deadline = time.monotonic() + 5
    while (answer := tally(provider)["answers"][0])["state"] == "sending":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert answer["state"] == "cut"
    assert 4 <= answer["words_sent"] <= 8
    assert tally(provider)["sums"] == []


def test_the_same_seed_and_question_give_the_same_answer():
    async def first(seed: int) -> dict:
        transport = httpx.ASGITransport(app=create_app(seed=seed))
        async with httpx.AsyncClient(transport=transport, base_url="http://provider") as client:
            answer = await client.post("/v1/chat/completions", json={"model": "gpt-4o", "messages": MESSAGES})
        return {**answer.json(), "created": None}

    import asyncio

    assert asyncio.run(first(1)) == asyncio.run(first(1))
    assert asyncio.run(first(1)) != asyncio.run(first(2))
    assert read_response(asyncio.run(first(1))).usage.output > 0
