"""GenAI spans, with the real SDK of OpenTelemetry."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")

from llm_metering.adapters.opentelemetry import GenAISpanProcessor
from llm_metering.usage import Usage
from opentelemetry.sdk.trace import TracerProvider

CHAT: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-5-mini",
}
ANSWER: dict[str, Any] = {
    "gen_ai.response.model": "gpt-5-mini-2025-08-07",
    "gen_ai.response.id": "chatcmpl-1",
    "gen_ai.usage.input_tokens": 350,
    "gen_ai.usage.output_tokens": 240,
}


@pytest.fixture
def tracer(metering) -> Any:
    provider = TracerProvider()
    provider.add_span_processor(GenAISpanProcessor(metering, feature="traced"))
    return provider.get_tracer("test")


def call(tracer: Any, **more: Any) -> None:
    with tracer.start_as_current_span("chat gpt-5-mini", attributes=CHAT) as span:
        span.set_attributes({**ANSWER, **{name.replace("__", "."): value for name, value in more.items()}})


def test_a_span_of_a_call_is_billed(tracer, used):
    call(tracer)
    record = used.only()
    assert record.usage == Usage(input=350, output=240)
    assert (record.model, record.provider, record.response_id) == (
        "gpt-5-mini-2025-08-07", "openai", "chatcmpl-1",
    )  # fmt: skip
    assert (record.surface, record.customer, record.dimensions) == (
        "opentelemetry", "cus_a", {"feature": "traced"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (
            {
                "gen_ai.usage.cache_read.input_tokens": 100,
                "gen_ai.usage.cache_creation.input_tokens": 200,
                "gen_ai.usage.reasoning.output_tokens": 90,
            },
            Usage(input=50, cached_input=100, cached_write=200, output=150, reasoning=90),
        ),
        # Against the conventions: an input without its cached tokens, as Anthropic itself reports it.
        (
            {"gen_ai.usage.input_tokens": 50, "gen_ai.usage.cache_read_input_tokens": 300},
            Usage(input=50, cached_input=300, output=240),
        ),
    ],
)
def test_cached_tokens_and_reasoning_are_taken_apart(tracer, used, parts, expected):
    call(tracer, **parts)
    assert used.only().usage == expected


def test_the_older_names_are_read(tracer, used):
    said = {"gen_ai.system": "Anthropic", "gen_ai.request.model": "claude", "llm.request.type": "chat"}
    with tracer.start_as_current_span("anthropic.chat", attributes=said) as span:
        span.set_attribute("gen_ai.usage.prompt_tokens", 5)
        span.set_attribute("gen_ai.usage.completion_tokens", 7)
    assert used.only().usage == Usage(input=5, output=7)


def test_what_only_adds_up_is_not_billed_again(tracer, used):
    """An agent's span carries the sum of its calls, a framework's span repeats that of the SDK below it."""
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.usage.input_tokens": 700}
    with tracer.start_as_current_span("invoke_agent", attributes=agent):
        for name in ("chatcmpl-1", "chatcmpl-2"):
            with tracer.start_as_current_span("chat", attributes={**CHAT, **ANSWER}) as outer:
                outer.set_attribute("gen_ai.response.id", name)
                with tracer.start_as_current_span("POST"):
                    call(tracer, gen_ai__response__id=name)
    assert [r.response_id for r in used.still(2)] == ["chatcmpl-1", "chatcmpl-2"]


def test_a_call_that_a_tool_makes_while_another_goes_on_hides_neither(tracer, used):
    """Google's SDK calls tools itself, within the span of its call."""
    said = {**CHAT, **ANSWER, "gen_ai.operation.name": "generate_content", "gen_ai.response.id": "g-1"}
    tool = {"gen_ai.operation.name": "execute_tool"}
    start = tracer.start_as_current_span
    with start("generate_content", attributes=said), start("execute_tool", attributes=tool):
        call(tracer)
    assert {r.response_id for r in used.still(2)} == {"g-1", "chatcmpl-1"}


@pytest.mark.parametrize(
    ("id", "counts", "is_own"),
    [
        ("other", (7, 3), True),
        ("other", (350, 240), False),  # a framework that makes up ids of its own
        ("other", (700, 480), False),  # and adds up what is below it
        (None, (7, 3), False),
    ],
)
def test_a_span_over_others_is_a_call_of_its_own_where_ids_and_counts_both_say_so(
    tracer, used, id, counts, is_own
):
    with tracer.start_as_current_span("chat", attributes=CHAT) as outer:
        call(tracer)
        call(tracer, gen_ai__response__id="chatcmpl-2")
        outer.set_attribute("gen_ai.usage.input_tokens", counts[0])
        outer.set_attribute("gen_ai.usage.output_tokens", counts[1])
        if id is not None:
            outer.set_attribute("gen_ai.response.id", id)
    found = [r.response_id for r in used.still(3 if is_own else 2)]
    assert found == ["chatcmpl-1", "chatcmpl-2", *(["other"] if is_own else [])]


def test_other_spans_and_calls_without_usage_add_nothing(tracer, used):
    with tracer.start_as_current_span("GET /"):
        pass
    with tracer.start_as_current_span("execute_tool", attributes={"gen_ai.operation.name": "execute_tool"}):
        pass
    with tracer.start_as_current_span("chat", attributes=CHAT):
        pass
    used.records(0)


@pytest.mark.parametrize("bad", [-5, 1.5, True, "12", 2**63])
def test_numbers_that_cannot_be_tokens_are_held(tracer, used, bad):
    call(tracer, **{"gen_ai.usage.input_tokens": bad})
    record = used.only()
    assert record.held
    assert not record.usage


def test_a_span_bills_the_customer_at_its_start_wherever_it_ends(tracer, metering, used):
    async def one(customer: str) -> None:
        with metering.bound(customer=customer):
            span = tracer.start_span("chat", attributes=CHAT)
        await asyncio.sleep(0)
        span.set_attributes(ANSWER)
        ending = threading.Thread(target=span.end)
        ending.start()
        ending.join()

    async def several() -> None:
        await asyncio.gather(*(one(f"cus_{n}") for n in range(8)))

    asyncio.run(several())
    assert sorted(str(r.customer) for r in used.records(8)) == [f"cus_{n}" for n in range(8)]


def test_a_span_that_says_late_what_it_is_bills_the_customer_at_its_start(tracer, metering, used):
    """An abandoned stream's may end where the garbage collector finds it: in anybody's context."""
    with metering.bound(customer="cus_1"):
        span = tracer.start_span("POST")
    outside = tracer.start_span("POST")
    with metering.bound(customer="cus_2"):
        span.set_attributes({**CHAT, **ANSWER})
        span.end()
        outside.set_attributes({**CHAT, **ANSWER, "gen_ai.response.id": "chatcmpl-2"})
        outside.end()
    assert [record.customer for record in used.records(2)] == ["cus_1", "cus_a"]


def test_spans_that_never_end_take_bounded_room(metering, used, monkeypatch):
    monkeypatch.setattr("llm_metering.adapters.opentelemetry._MAX_SPANS", 10)
    processor = GenAISpanProcessor(metering)
    provider = TracerProvider()
    provider.add_span_processor(processor)
    spans = [provider.get_tracer("t").start_span("chat", attributes=CHAT) for _ in range(50)]
    assert len(processor._open) == 10
    spans[0].set_attributes(ANSWER)
    spans[0].end()
    used.records(1)  # forgotten, and billed all the same
