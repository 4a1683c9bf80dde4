"""Wrapped clients of the real SDKs, against a provider on a socket: whole answers, and that the client
stays what it was."""

from __future__ import annotations

import asyncio
import gc
import inspect
import subprocess
import sys
from typing import Any

import anthropic
import openai
import pytest
from llm_metering import counting
from llm_metering.capture import context
from llm_metering.capture.clients import wrap
from llm_metering.errors import ConfigurationError

MESSAGES: Any = [{"role": "user", "content": "Say hello."}]
ASK: Any = {"model": "gpt-4o-mini", "messages": MESSAGES}
CLAUDE: Any = {"model": "claude-opus-4-8", "max_tokens": 100, "messages": MESSAGES}
KINDS = ["OpenAI", "AsyncOpenAI", "AzureOpenAI", "AsyncAzureOpenAI", "Anthropic", "AsyncAnthropic"]


@pytest.fixture
def make(provider):
    made = []

    def client(kind: str, **options: Any) -> Any:
        options = {"api_key": "sk-test", "max_retries": 0, **options}
        if "Azure" in kind:
            options |= {"azure_endpoint": provider.origin, "api_version": "2024-10-21"}
        else:
            options["base_url"] = provider.origin + ("" if "Anthropic" in kind else "/v1")
        made.append(getattr(anthropic if "Anthropic" in kind else openai, kind)(**options))
        return made[-1]

    yield client
    for each in made:
        closing = each.close()
        if inspect.isawaitable(closing):
            asyncio.run(closing)


def ask(client: Any) -> Any:
    """One ordinary call, on whatever client."""
    resource, arguments = (
        (client.messages, CLAUDE) if hasattr(client, "messages") else (client.chat.completions, ASK)
    )
    answer = resource.create(**arguments)
    return asyncio.run(answer) if inspect.isawaitable(answer) else answer


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_answer_is_recorded_as_reported(kind, make, bench, provider, said):
    anthropics = "Anthropic" in kind
    provider.json(said.message() if anthropics else said.chat())
    ask(wrap(make(kind), bench.recorder, feature="chat"))
    record = bench.only()
    assert (record.provenance, record.surface) == ("reported", "client")
    assert record.dimensions == {"feature": "chat"}
    if anthropics:
        assert record.usage.as_dict() == {"input": 12, "cached_input": 50, "cached_write": 100, "output": 6}
        assert (record.model, record.response_id) == ("claude-opus-4-8", "msg_1")
    else:
        known = {"input": 12, "cached_input": 8, "output": 3, "reasoning": 2}
        assert record.usage.as_dict() == {**known, "input_audio": 0, "output_audio": 0}
        assert (record.model, record.response_id) == ("gpt-4o-mini-2024-07-18", "chatcmpl-1")


@pytest.mark.parametrize("kind", KINDS)
def test_the_client_keeps_its_type_names_and_signatures(kind, make, bench):
    bare, client = make(kind), make(kind)
    wrapped = wrap(client, bench.recorder, feature="chat")
    assert wrapped is client
    assert type(wrapped) is type(bare)
    assert dir(wrapped) == dir(bare)
    for name in dir(bare):
        if name.startswith("__") or not inspect.ismethod(member := inspect.getattr_static(bare, name, None)):
            continue
        assert inspect.signature(getattr(wrapped, name)) == inspect.signature(member)
    for name in ("request", "copy", "with_options", "post", "get"):
        mine, theirs = getattr(wrapped, name), getattr(bare, name)
        assert inspect.signature(mine) == inspect.signature(theirs)
        assert inspect.iscoroutinefunction(mine) is inspect.iscoroutinefunction(theirs)
        assert mine.__doc__ == theirs.__doc__


@pytest.mark.parametrize("kind", ["OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"])
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 529])
def test_an_error_of_the_provider_is_the_same_and_records_nothing(kind, status, make, bench, provider):
    provider.json({"error": {"type": "t", "message": "No, because."}}, status=status)
    raised = []
    for client in (make(kind), wrap(make(kind), bench.recorder)):
        with pytest.raises((openai.APIError, anthropic.APIError)) as caught:
            ask(client)
        raised.append(caught.value)
    bare, mine = raised
    assert type(mine) is type(bare)
    assert (str(mine), mine.body, mine.status_code) == (str(bare), bare.body, bare.status_code)
    assert [type(e) for e in (mine.__cause__, mine.__context__)] == [
        type(e) for e in (bare.__cause__, bare.__context__)
    ]
    assert bench.records == []


@pytest.mark.parametrize("kind", ["OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"])
def test_retries_of_the_sdk_count_only_the_answer_that_came(kind, make, bench, provider, said):
    for status in (429, 500):
        provider.json({"error": {"message": "later"}}, status=status, retry_after_ms="1")
    provider.json(said.message() if "Anthropic" in kind else said.chat())
    ask(wrap(make(kind, max_retries=3), bench.recorder))
    assert len(provider.asked) == 3
    bench.only()


def test_a_server_that_cannot_be_reached_raises_what_it_raised(make, bench, provider):
    client = make("OpenAI")
    client.base_url = "http://127.0.0.1:9/v1"
    with pytest.raises(openai.APIConnectionError):
        ask(wrap(client, bench.recorder))
    assert bench.records == []


def test_wrapping_twice_counts_once(make, bench, provider, said):
    provider.json(said.chat())
    client = make("OpenAI")
    assert wrap(wrap(client, bench.recorder, feature="a"), bench.recorder, feature="a") is client
    assert wrap(client, bench.recorder) is client
    ask(client)
    assert bench.only().dimensions == {"feature": "a"}


def test_other_dimensions_go_to_a_copy_and_leave_the_first_as_it_was(make, bench, provider, said):
    provider.json(said.chat())
    first = wrap(make("OpenAI"), bench.recorder, feature="a")
    second = wrap(first, bench.recorder, feature="b", region="eu")
    assert second is not first
    assert type(second) is type(first)
    ask(first)
    ask(second)
    assert [r.dimensions for r in bench.records] == [{"feature": "a"}, {"feature": "b", "region": "eu"}]


def test_a_client_of_another_recorder_is_metered_there_by_a_copy(make, bench, make_bench, provider, said):
    provider.json(said.chat())
    other = make_bench()
    client = wrap(make("OpenAI"), bench.recorder, feature="a")
    ask(wrap(client, other.recorder))
    assert (len(bench.records), other.only().dimensions) == (0, {})
    ask(client)
    assert (bench.only().dimensions, len(other.records)) == ({"feature": "a"}, 1)


@pytest.mark.parametrize("kind", ["OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"])
def test_clients_made_by_with_options_and_copy_stay_metered(kind, make, bench, provider, said):
    provider.json(said.message() if "Anthropic" in kind else said.chat())
    client = wrap(make(kind), bench.recorder, feature="a")
    derived = client.with_options(timeout=5).copy(max_retries=0)
    assert type(derived) is type(client)
    assert derived.timeout == 5
    ask(derived)
    assert bench.only().dimensions == {"feature": "a"}


def test_a_resource_taken_before_wrapping_is_metered(make, bench, provider, said):
    provider.json(said.chat())
    client = make("OpenAI")
    completions = client.chat.completions
    wrap(client, bench.recorder)
    completions.create(**ASK)
    bench.only()


def test_a_subclass_that_overrides_request_is_metered_round_its_own(bench, provider, said):
    class Mine(openai.OpenAI):
        def request(self, *args, **kwargs):
            seen.append(args[1].url)
            return super().request(*args, **kwargs)

    seen: list[str] = []
    provider.json(said.chat())
    with Mine(api_key="k", base_url=provider.origin + "/v1") as client:
        ask(wrap(client, bench.recorder))
    assert seen == ["/chat/completions"]
    bench.only()


@pytest.mark.parametrize("what", [None, "openai", openai, openai.OpenAI, object(), {"a": 1}])
def test_what_is_no_client_is_refused_with_what_to_do(what, bench):
    with pytest.raises(ConfigurationError, match=r"wrap\(\) cannot meter .*OpenAI\(\)"):
        wrap(what, bench.recorder)


def test_wrapping_imports_no_sdk():
    code = (
        "import sys, llm_metering.capture.clients as c, llm_metering.capture.decorators, types\n"
        "assert not c.is_supported(types.SimpleNamespace())\n"
        "heavy = 'openai anthropic httpx httpx2 tiktoken stripe asyncio'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_dropped_client_can_be_collected(make, bench, provider, said):
    import weakref

    provider.json(said.chat())
    client = openai.OpenAI(api_key="k", base_url=provider.origin + "/v1")
    ask(wrap(client, bench.recorder))
    gone = weakref.ref(client)
    client.close()
    del client
    gc.collect()
    assert gone() is None


# Other APIs.


@pytest.mark.needs("openai.resources.responses")
def test_embeddings_completions_and_responses_are_recorded(make, bench, provider, said):
    client = wrap(make("OpenAI"), bench.recorder)
    provider.json(said.embeddings())
    provider.json({
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "gpt-3.5-turbo-instruct",
        "choices": [{"text": "Hi", "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    })  # fmt: skip
    provider.json(said.responses())
    client.embeddings.create(model="text-embedding-3-small", input="Hello")
    client.completions.create(model="gpt-3.5-turbo-instruct", prompt="Hello")
    client.responses.create(model="gpt-4o-mini", input="Hello")
    assert bench.sink.tokens() == [(7, None), (3, 1), (30, 9)]
    assert all(record.provenance == "reported" for record in bench.records)


@pytest.mark.needs(
    "openai.types.responses.InputTokenCountResponse", "anthropic.resources.messages.Messages.count_tokens"
)
def test_what_brings_no_usage_records_nothing(make, bench, provider):
    claude, chat = wrap(make("Anthropic"), bench.recorder), wrap(make("OpenAI"), bench.recorder)
    provider.json({"input_tokens": 2095})
    claude.messages.count_tokens(model="claude-opus-4-8", messages=MESSAGES)
    provider.replies.clear()
    provider.json({"id": "b", "type": "message_batch", "processing_status": "in_progress"})
    claude.messages.batches.create(requests=[])
    provider.replies.clear()
    provider.json({"object": "list", "data": [], "id": "x", "results": [], "input_tokens": 5})
    chat.models.list()
    chat.moderations.create(input="Hello")
    chat.responses.input_tokens.count(model="m", input="Hello")
    assert bench.records == []
    assert bench.notes.counts == {}


def test_images_and_transcriptions_are_recorded_where_tokens_are_reported(make, bench, provider):
    client = wrap(make("OpenAI"), bench.recorder)
    usage = {
        "total_tokens": 110, "input_tokens": 10, "output_tokens": 100,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 0},
    }  # fmt: skip
    provider.json({"created": 1, "data": [{"b64_json": ""}], "usage": usage})
    provider.json({"created": 1, "data": [{"url": "http://x"}]})
    provider.json({"text": "Hi", "usage": {"type": "duration", "seconds": 3}})
    client.images.generate(model="gpt-image-1", prompt="A fox")
    client.images.generate(model="dall-e-3", prompt="A fox")
    client.audio.transcriptions.create(model="whisper-1", file=b"RIFF")
    record = bench.only()
    assert (record.usage.total, record.model) == (110, "gpt-image-1")


def test_an_answer_without_usage_is_counted_by_us(make, bench, provider, said):
    provider.json(said.chat(usage=None))
    ask(wrap(make("OpenAI"), bench.recorder))
    record = bench.only()
    assert record.provenance == "counted"
    assert record.usage.output_total == counting.count_text("Hello there.", model="gpt-4o")
    assert record.usage.input_total == counting.count_text("Say hello.", model="gpt-4o") + 3 + 1 + 3


def test_an_answer_that_only_says_error_is_not_counted(make, bench, provider):
    provider.json({"error": {"message": "no provider", "code": 502}})
    answer = ask(wrap(make("OpenAI"), bench.recorder))
    assert answer.choices is None
    assert bench.records == []


@pytest.mark.parametrize("number", [-5, 1.5, "twelve", 2**63, 1e400])
def test_unbelievable_usage_is_set_aside_and_the_answer_goes_on(number, make, bench, provider, said):
    usage = {"prompt_tokens": number, "completion_tokens": 5, "total_tokens": 10}
    provider.json(said.chat(usage=usage))
    answer = ask(wrap(make("OpenAI"), bench.recorder))
    assert answer.choices[0].message.content == "Hello there."
    assert bench.only().held
    assert not bench.only().usage


def test_a_reported_zero_stays_zero(make, bench, provider, said):
    provider.json(said.chat(usage={"prompt_tokens": 4, "completion_tokens": 0, "total_tokens": 4}))
    ask(wrap(make("OpenAI"), bench.recorder))
    assert bench.sink.tokens() == [(4, 0)]


def test_several_choices_tool_calls_and_refusals_are_all_counted_where_nothing_is_reported(
    make, bench, provider, said
):
    body = said.chat(usage=None)
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": '{"city": "Paris"}'}}
    messages = [
        {"role": "assistant", "content": "One two three."},
        {"role": "assistant", "content": None, "refusal": "I will not do that."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    body["choices"] = [
        {"index": n, "message": message, "finish_reason": "stop", "logprobs": None}
        for n, message in enumerate(messages)
    ]
    provider.json(body)
    ask(wrap(make("OpenAI"), bench.recorder))
    words = ("One two three.", "I will not do that.", "find", '{"city": "Paris"}')
    least = sum(counting.count_text(each, model="gpt-4o") for each in words)
    assert least <= bench.only().usage.output_total <= least + 12


# Failures of ours.


def test_a_failure_of_ours_never_reaches_the_caller(make, bench, provider, said, monkeypatch):
    provider.json(said.chat())
    client = wrap(make("OpenAI"), bench.recorder)

    def fail(*args, **kwargs):
        raise RuntimeError("ours")

    monkeypatch.setattr(bench.recorder, "record", fail)
    assert ask(client).choices[0].message.content == "Hello there."
    monkeypatch.setattr(bench.recorder, "wants_text", fail)
    assert ask(client).choices[0].message.content == "Hello there."
    assert len(bench.notes.failures) == 2
    bench.notes.failures.clear()


# Who is billed.


def test_the_scope_of_the_call_names_the_customer(make, bench, provider, said):
    provider.json(said.chat())
    client = wrap(make("AsyncOpenAI"), bench.recorder)

    async def serve(customer):
        with context.entered(context.Scope(customer=customer, dimensions={"region": customer[-1]})):
            await asyncio.sleep(0)
            await client.chat.completions.create(**ASK)

    async def main():
        await asyncio.gather(*(serve(f"cus_{n}") for n in range(20)))

    asyncio.run(main())
    assert sorted(r.customer for r in bench.records) == sorted(f"cus_{n}" for n in range(20))
    assert all(r.dimensions == {"region": r.customer[-1]} for r in bench.records)


# Background responses.


@pytest.mark.needs("openai.resources.responses")
def test_a_background_response_is_recorded_when_it_is_retrieved_done_and_once(make, bench, provider, said):
    client = wrap(make("OpenAI"), bench.recorder)
    for status in ("queued", "in_progress"):
        provider.json(said.responses(status=status, background=True, usage=None, output=[]))
    for _ in range(3):
        provider.json(said.responses(background=True))
    client.responses.create(model="gpt-4o-mini", input="Hello", background=True)
    for _ in range(4):
        client.responses.retrieve("resp_1")
    record = bench.only()
    assert (record.id, record.usage.total) == ("background-resp_1", 39)


@pytest.mark.needs("openai.resources.responses")
def test_retrieving_an_ordinary_response_records_nothing(make, bench, provider, said):
    client = wrap(make("OpenAI"), bench.recorder)
    provider.json(said.responses())
    client.responses.create(model="gpt-4o-mini", input="Hello")
    client.responses.retrieve("resp_1")
    client.responses.input_items.list("resp_1")
    bench.only()


@pytest.mark.needs("openai.resources.responses")
def test_a_failed_response_is_recorded_only_with_what_it_reports(make, bench, provider, said):
    client = wrap(make("OpenAI"), bench.recorder)
    error = {"code": "server_error", "message": "No."}
    provider.json(said.responses(status="failed", error=error, usage=None, output=[]))
    provider.json(said.responses(status="failed", error=error, id="resp_2"))
    client.responses.create(model="gpt-4o-mini", input="Hello")
    client.responses.create(model="gpt-4o-mini", input="Hello")
    assert bench.only().response_id == "resp_2"
