"""What other meters got wrong, where no other test has it: zeros, details, totals, choices, retries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic import Anthropic
from llm_metering import counting
from llm_metering.capture.clients import wrap
from llm_metering.capture.transport import MeteringTransport
from openai import OpenAI

from .conftest import OPENAI_HTTP, Bench, ProviderStub, Said

MESSAGES: Any = [{"role": "user", "content": "Say hello."}]
ASK: Any = {"model": "gpt-4o-mini", "messages": MESSAGES}
CLAUDE: Any = {"model": "claude-opus-4-8", "max_tokens": 100, "messages": MESSAGES}


@pytest.fixture
def chat(bench: Bench, provider: ProviderStub) -> Iterator[OpenAI]:
    with OpenAI(api_key="k", base_url=provider.origin + "/v1", max_retries=2) as client:
        yield wrap(client, bench.recorder)


@pytest.fixture
def claude(bench: Bench, provider: ProviderStub) -> Iterator[Anthropic]:
    with Anthropic(api_key="k", base_url=provider.origin, max_retries=0) as client:
        yield wrap(client, bench.recorder)


def test_a_zero_that_a_stream_reports_stays_zero(
    chat: OpenAI, bench: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    events = said.chat_events()
    events[-1]["usage"] = {"prompt_tokens": 4, "completion_tokens": 0, "total_tokens": 4}
    provider.events(events)
    list(chat.chat.completions.create(**ASK, stream=True))
    assert bench.sink.tokens() == [(4, 0)]
    assert bench.only().provenance == "reported"


def test_the_details_of_a_stream_are_kept_and_its_cached_tokens_counted_once(
    chat: OpenAI, claude: Anthropic, bench: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    provider.events(said.chat_events())
    provider.events(said.message_events())
    list(chat.chat.completions.create(**ASK, stream=True))
    list(claude.messages.create(**CLAUDE, stream=True))
    by_openai, by_anthropic = (record.usage for record in bench.records)
    known = {"input": 12, "cached_input": 8, "output": 3, "reasoning": 2}
    assert by_openai.as_dict() == {**known, "input_audio": 0, "output_audio": 0}
    assert by_anthropic.as_dict() == {"input": 12, "cached_input": 50, "cached_write": 100, "output": 6}


def test_a_message_s_running_totals_are_not_summed(
    claude: Anthropic, bench: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    *events, delta, stop = said.message_events()
    running = [{**delta, "usage": {"input_tokens": 12, "output_tokens": n}} for n in (2, 4, 6)]
    provider.events([*events, *running, stop])
    list(claude.messages.create(**CLAUDE, stream=True))
    assert bench.sink.tokens() == [(162, 6)]


def test_choices_and_refusals_of_a_stream_without_usage_are_all_counted(
    chat: OpenAI, bench: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    first = said.chat_events(["One two three."], usage=False)
    second = said.chat_events(["-"], usage=False)
    second[1]["choices"][0]["delta"] = {"refusal": "I will not do that."}
    for event in second:
        event["choices"][0]["index"] = 1
    provider.events([event for pair in zip(first, second, strict=True) for event in pair])
    list(chat.chat.completions.create(**ASK, n=2, stream=True))
    least = sum(
        counting.count_text(each, model="gpt-4o") for each in ("One two three.", "I will not do that.")
    )
    assert least <= (bench.only().usage.output_total or 0) <= least + 12
    assert bench.only().provenance == "counted"


@pytest.mark.parametrize("by", ["client", "transport", "both"])
def test_an_answer_that_an_sdk_asks_for_again_counts_once(
    by: str, bench: Bench, provider: ProviderStub, said: type[Said]
) -> None:
    body = json.dumps(said.chat()).encode()
    ids = {"x_request_id": "req_1", "retry_after_ms": "1"}
    provider.json({"error": {"message": "later"}}, status=500, **ids)
    provider.raw(b"", chunks=[body[:-200]], hang_up=True, headers=ids)
    provider.json(said.chat(), **ids)
    transport = None if by == "client" else MeteringTransport(bench)  # type: ignore[arg-type]
    with OPENAI_HTTP.Client(transport=transport) as http:
        client = OpenAI(api_key="k", base_url=provider.origin, max_retries=3, http_client=http)
        (client if by == "transport" else wrap(client, bench.recorder)).chat.completions.create(**ASK)
    bench.drain()
    assert len(provider.asked) == 3
    billed = [record for record in bench.records if not record.held]
    assert [record.usage.total for record in billed] == [25]
    # The transport sees the part that came of the second: it is kept without counts, for a person to look at.
    assert len(bench.records) == (2 if by == "transport" else 1)
