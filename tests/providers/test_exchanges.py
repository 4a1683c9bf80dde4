"""Every usage that a provider reported in the recorded exchanges is read exactly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llm_metering.providers import StreamTally, WireTally, read_response, read_stream
from llm_metering.usage import Reading

from .conftest import compact, exchanges_folder, leaves, sse

Row = dict[str, Any]


def openai_leaves(u: Row) -> dict[str, int]:
    """Chat, completions, embeddings, assistants and everybody compatible; and Responses."""
    responses = "input_tokens" in u
    prompt = u["input_tokens"] if responses else u["prompt_tokens"]
    answer = u.get("output_tokens" if responses else "completion_tokens")
    names = ("input_tokens_details",) if responses else ("prompt_tokens_details", "prompt_token_details")
    inside = next((u[n] for n in names if u.get(n)), {})
    names = (
        ("output_tokens_details",) if responses else ("completion_tokens_details", "completion_token_details")
    )
    outside = next((u[n] for n in names if u.get(n)), {})
    found = {
        "input": prompt - inside.get("cached_tokens", 0) - inside.get("audio_tokens", 0),
        "cached_input": inside.get("cached_tokens"),
        "input_audio": inside.get("audio_tokens"),
        "reasoning": outside.get("reasoning_tokens"),
        "output_audio": outside.get("audio_tokens"),
    }
    if answer is not None:
        found["output"] = answer - outside.get("reasoning_tokens", 0) - outside.get("audio_tokens", 0)
    return known(found)


def anthropic_leaves(u: Row) -> dict[str, int]:
    return known(
        {
            "input": u["input_tokens"],
            "cached_input": u.get("cache_read_input_tokens"),
            "cached_write": u.get("cache_creation_input_tokens"),
            "output": u["output_tokens"],
        }
    )


def gemini_leaves(u: Row) -> dict[str, int]:
    images = [d["tokenCount"] for d in u["promptTokensDetails"] if d["modality"] in (2, "IMAGE")]
    return known(
        {
            "input": u["promptTokenCount"] - sum(images),
            "input_image": sum(images) if images else None,
            "output": u.get("candidatesTokenCount"),
            "reasoning": u.get("thoughtsTokenCount"),
        }
    )


def bedrock_leaves(u: Row) -> dict[str, int]:
    if "inputTokens" in u:
        read = u.get("cacheReadInputTokens", u.get("cacheReadInputTokenCount"))
        write = u.get("cacheWriteInputTokens", u.get("cacheWriteInputTokenCount"))
        return known(
            {
                "input": u["inputTokens"],
                "output": u.get("outputTokens"),
                "cached_input": read,
                "cached_write": write,
            }
        )
    if "input_tokens" in u:
        return anthropic_leaves(u)
    if "prompt_tokens" in u:
        return openai_leaves(u)
    if "prompt_token_count" in u:
        return {"input": u["prompt_token_count"], "output": u["generation_token_count"]}
    if "inputTokenCount" in u:
        return {"input": u["inputTokenCount"], "output": u["outputTokenCount"]}
    return {"input": u["inputTextTokenCount"]}


def cohere_leaves(u: Row) -> dict[str, int]:
    if "search_units" in u:
        return {}
    tokens = u.get("tokens", u)
    cached = u.get("cached_tokens")
    return known(
        {
            "input": tokens["input_tokens"] - (cached or 0),
            "cached_input": cached,
            "output": tokens.get("output_tokens"),
        }
    )


def ollama_leaves(u: Row) -> dict[str, int]:
    return known({"input": u.get("prompt_eval_count"), "output": u.get("eval_count")})


def known(found: dict[str, int | None]) -> dict[str, int]:
    return {name: count for name, count in found.items() if count is not None}


PROVIDERS = {
    "openai": (openai_leaves, 256),
    "azure-openai": (openai_leaves, 21),
    "groq": (openai_leaves, 13),
    "mistral": (openai_leaves, 14),
    "deepseek": (openai_leaves, 1),
    "together": (openai_leaves, 2),
    "writer": (openai_leaves, 9),
    "anthropic": (anthropic_leaves, 37),
    "gemini": (gemini_leaves, 2),
    "vertex": (gemini_leaves, 22),
    "bedrock": (bedrock_leaves, 79),
    "cohere": (cohere_leaves, 39),
    "ollama": (ollama_leaves, 11),
    "voyage": (lambda u: {"input": u["total_tokens"]}, 4),
}


def expected(row: Row) -> dict[str, int]:
    usage = row["usage"]
    if "meta" in row["response"] and "cached_tokens" in row["response"]["meta"]:
        # Cohere v1 says how much was cached outside of what the exchange calls its usage.
        usage = {**usage, "cached_tokens": row["response"]["meta"]["cached_tokens"]}
    found = PROVIDERS[row["provider"]][0](usage)
    if row["provider"] == "bedrock" and "results" in row["response"]:
        # Titan says how long its answers are outside of what the exchange calls its usage.
        found["output"] = sum(r["tokenCount"] for r in row["response"]["results"])
    return found


def is_exact(reading: Reading, row: Row) -> bool:
    return (
        leaves(reading.usage) == expected(row)
        and reading.problem is None
        and reading.provenance == "reported"
        and reading.text is None
    )


def wire_form(row: Row) -> tuple[bytes, str]:
    if not row["stream"]:
        return json.dumps(row["response"]).encode(), "application/json"
    if row["provider"] == "ollama":
        return "".join(compact(e) + "\n" for e in row["response"]).encode(), "application/x-ndjson"
    return sse(row["response"]), "text/event-stream; charset=utf-8"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_all_reported_usage_is_read_exactly_from_decoded_answers(
    exchanges: dict[str, list[Row]], provider: str
) -> None:
    rows = exchanges[provider]
    read = {True: read_stream, False: read_response}
    wrong = [row["source"] for row in rows if not is_exact(read[row["stream"]](row["response"]), row)]
    print(f"{provider}: {len(rows) - len(wrong)} of {len(rows)}")
    assert wrong == []
    assert len(rows) == PROVIDERS[provider][1]


@pytest.mark.parametrize("size", [1, 7, 61, 1024, 10**9])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_all_reported_usage_is_read_exactly_from_bytes_cut_anywhere(
    exchanges: dict[str, list[Row]], provider: str, size: int
) -> None:
    wrong = []
    for row in exchanges[provider]:
        body, content_type = wire_form(row)
        if size == 1 and len(body) > 50_000:
            continue
        tally = WireTally(content_type=content_type)
        for at in range(0, len(body), size):
            tally.feed(body[at : at + size])
        reading = tally.result()
        if not is_exact(reading, row) or not same_names(reading, row):
            wrong.append((row["source"], reading))
    assert wrong == []


def same_names(reading: Reading, row: Row) -> bool:
    """The bytes name the same model and id as the decoded answer."""
    decoded = (read_stream if row["stream"] else read_response)(row["response"])
    return (reading.model, reading.response_id, reading.provider, reading.api) == (
        decoded.model,
        decoded.response_id,
        decoded.provider,
        decoded.api,
    )


@pytest.mark.parametrize("provider", ["openai", "azure-openai", "groq", "mistral", "anthropic", "deepseek"])
def test_names_are_read(exchanges: dict[str, list[Row]], provider: str) -> None:
    for row in exchanges[provider]:
        reading = (read_stream if row["stream"] else read_response)(row["response"])
        assert reading.model
        assert reading.response_id or row["api"] == "embeddings"
        assert reading.api == row["api"]


@pytest.mark.parametrize(
    "provider", [p for p in PROVIDERS if p not in ("azure-openai", "together", "gemini", "voyage")]
)
def test_a_tally_is_complete_only_at_the_end(exchanges: dict[str, list[Row]], provider: str) -> None:
    streams = [row for row in exchanges[provider] if row["stream"]]
    assert streams
    for row in streams:
        tally = StreamTally()
        for event in row["response"][:-2]:
            tally.feed(event)
        if len(row["response"]) > 4:
            assert not tally.complete or provider == "openai"
        for event in row["response"][-2:]:
            tally.feed(event)
        assert tally.complete
        assert tally.unreadable == 0


def test_the_exchanges_are_all_there(exchanges: dict[str, list[Row]]) -> None:
    assert sum(map(len, exchanges.values())) == 510, f"in {exchanges_folder()}"
    assert set(exchanges) == set(PROVIDERS)
