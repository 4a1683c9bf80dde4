"""Which encoding a model has, and whether that is sure."""

from __future__ import annotations

import pytest
from llm_metering.counting import encoding_for
from llm_metering.counting.models import family_of, is_reasoning

O200K, CL100K, P50K, R50K = "o200k_base", "cl100k_base", "p50k_base", "r50k_base"


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o", O200K),
        ("gpt-4o-mini-2024-07-18", O200K),
        ("chatgpt-4o-latest", O200K),
        ("gpt-4.1", O200K),
        ("gpt-4.1-nano-2025-04-14", O200K),
        ("gpt-4.5-preview", O200K),
        ("gpt-5", O200K),
        ("gpt-5-mini", O200K),
        ("gpt-5.4-2026-03-05", O200K),
        ("o1", O200K),
        ("o1-preview", O200K),
        ("o3-mini", O200K),
        ("o4-mini-2025-04-16", O200K),
        ("gpt-realtime", O200K),
        ("gpt-audio", O200K),
        ("codex-mini-latest", O200K),
        ("computer-use-preview", O200K),
        ("gpt-oss:20b", "o200k_harmony"),
        ("openai/gpt-oss-120b", "o200k_harmony"),
        ("gpt-4", CL100K),
        ("gpt-4-0613", CL100K),
        ("gpt-4-turbo", CL100K),
        ("gpt-4-1106-vision-preview", CL100K),
        ("gpt-3.5-turbo", CL100K),
        ("gpt-3.5-turbo-0125", CL100K),
        ("gpt-3.5-turbo-instruct", CL100K),
        ("gpt-35-turbo", CL100K),
        ("gpt-35-turbo-16k", CL100K),
        ("text-embedding-3-small", CL100K),
        ("text-embedding-ada-002", CL100K),
        ("davinci-002", CL100K),
        ("davinci:2023-07-21-v2", CL100K),
        ("text-davinci-003", P50K),
        ("code-davinci-002", P50K),
        ("text-davinci-edit-001", "p50k_edit"),
        ("text-davinci-001", R50K),
        ("davinci", R50K),
        ("ada", R50K),
        ("text-search-ada-doc-001", R50K),
        ("gpt2", "gpt2"),
        ("gpt-2", "gpt2"),
        ("ft:gpt-4.1:my-org::abc", O200K),
        ("ft:gpt-4.1-mini-2025-04-14:my-org::abc", O200K),
        ("ft:gpt-4o-2024-08-06:my-org:custom:abc", O200K),
        ("ft:gpt-5:my-org::abc", O200K),
        ("ft:gpt-4-0613:my-org::abc", CL100K),
        ("ft:gpt-3.5-turbo:my-org:name:id", CL100K),
        ("openai/gpt-4o", O200K),
        ("azure/gpt-4", CL100K),
        ("GPT-4o", O200K),
    ],
)
def test_known_models_have_their_own_encoding(model: str, encoding: str) -> None:
    assert encoding_for(model) == (encoding, True)
    assert family_of(model) == "openai"


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("my-gpt-4-deployment", CL100K),
        ("prod-gpt-4o-eu", O200K),
        ("chat-gpt-35-turbo", CL100K),
        ("team.gpt-5-mini", O200K),
    ],
)
def test_a_deployment_named_after_a_model_is_guessed(model: str, encoding: str) -> None:
    assert encoding_for(model) == (encoding, False)
    assert family_of(model) == "openai"


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("claude-3-5-sonnet-20240620", "claude"),
        ("us.anthropic.claude-3-7-sonnet-20250219-v1:0", "claude"),
        ("gemini-2.5-pro", "gemini"),
        ("models/gemini-1.5-flash", "gemini"),
        ("llama3-8b-8192", "llama"),
        ("meta-llama/Llama-3.1-8B", "llama"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistral"),
        ("codestral-latest", "mistral"),
        ("deepseek-chat", "deepseek"),
        ("amazon.nova-lite-v1:0", "nova"),
        ("command-r-08-2024", "cohere"),
        ("o200", "unknown"),
        ("gpt-40", "unknown"),
        ("my-model", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_other_models_are_estimated_with_o200k(model: str | None, family: str) -> None:
    assert encoding_for(model) == (O200K, False)
    assert family_of(model) == family


@pytest.mark.parametrize("model", ["o1", "o3-mini", "o4-mini", "gpt-5", "gpt-5-nano-2025-08-07", "gpt-5.4"])
def test_models_that_think_first_are_known(model: str) -> None:
    assert is_reasoning(model)


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4.1", "gpt-5-chat-latest", "claude-x", "o200", None])
def test_models_that_do_not_are_known_too(model: str | None) -> None:
    assert not is_reasoning(model)
