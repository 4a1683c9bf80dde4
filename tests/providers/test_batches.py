"""Result files of batches, as each provider writes them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llm_metering.providers import read_batch

from .conftest import leaves

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-4-8",
    "content": [{"type": "text", "text": "Hi"}],
    "usage": {"input_tokens": 9, "output_tokens": 2},
}
GEMINI = {
    "candidates": [{"content": {"parts": [{"text": "Hi"}]}}],
    "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 2, "totalTokenCount": 11},
    "modelVersion": "gemini-2.5-flash",
    "responseId": "r1",
}
LINES = {
    "openai": (
        {
            "id": "batch_req_1",
            "custom_id": "a",
            "response": {"status_code": 200, "body": CHAT},
            "error": None,
        },
        "batch-batch_req_1",
    ),
    "anthropic": ({"custom_id": "a", "result": {"type": "succeeded", "message": MESSAGE}}, "batch-msg_1"),
    "gemini": ({"key": "a", "response": GEMINI}, "batch-r1"),
    "bedrock": ({"recordId": "a", "modelInput": {}, "modelOutput": MESSAGE}, "batch-msg_1"),
}


@pytest.mark.parametrize("provider", LINES)
def test_a_line_gives_the_caller_s_name_the_usage_and_an_id_that_never_changes(provider: str) -> None:
    line, record_id = LINES[provider]
    text = json.dumps(line)
    for given in (text, text.encode(), [text], [text.encode() + b"\n", b"\n"]):
        (result,) = read_batch(given)
        assert (result.name, result.id) == ("a", record_id)
        assert leaves(result.reading.usage) == {"input": 9, "output": 2}
        assert result.reading.problem is None


@pytest.mark.parametrize(
    "line",
    [
        {"custom_id": "a", "response": {"status_code": 429, "body": {"error": {"message": "no"}}}},
        {"custom_id": "a", "response": None, "error": {"code": "batch_expired"}},
        {"custom_id": "a", "result": {"type": "errored", "error": {"type": "overloaded"}}},
        {"custom_id": "a", "result": {"type": "expired"}},
        {"key": "a", "error": {"code": 13}},
        {"status": "Bad Request: no", "request": {}, "response": {}},
        {"custom_id": "a"}, {}, [], 7,
    ],
)  # fmt: skip
def test_calls_that_were_not_answered_are_left_out(line: Any) -> None:
    assert list(read_batch(json.dumps(line))) == []


def test_a_line_that_cannot_be_read_is_a_problem_and_the_others_are_read() -> None:
    good = json.dumps(LINES["openai"][0])
    results = list(read_batch(f'{good}\n{{"custom_id": "b", "resp\n{good}'))
    assert [result.reading.problem is None for result in results] == [True, False, True]
    assert results[1].id.startswith("batch-1-")


LLAMA = {"generation": "Hi", "prompt_token_count": 9, "generation_token_count": 2}
EMBEDDED = [{"embeddings": {"values": [0.5], "statistics": {"token_count": 9, "truncated": False}}}]
WITHOUT_AN_ID = {
    "bedrock": ({"recordId": "a", "modelOutput": LLAMA}, "a"),
    "gemini, inline": ({"metadata": {"key": "a"}, "response": {**GEMINI, "responseId": None}}, "a"),
    "vertex": ({"status": "", "request": {}, "response": {**GEMINI, "responseId": None}}, None),
    "vertex embeddings": ({"instance": {"content": "Hi"}, "predictions": EMBEDDED, "status": ""}, None),
}


@pytest.mark.parametrize("provider", WITHOUT_AN_ID)
def test_a_line_without_an_id_is_another_one_in_another_file_and_the_same_in_the_same(provider: str) -> None:
    line, name = WITHOUT_AN_ID[provider]
    first, second = json.dumps(line), json.dumps({**line, "processed_time": "2026-11-02"})
    ids = [result.id for text in (first, second) for result in read_batch(f"{text}\n{text}\n")]
    assert len(set(ids)) == 4
    again = list(read_batch(f"{first}\r\n{first}".encode()))
    assert [result.id for result in again] == ids[:2]
    assert [result.name for result in again] == [name, name]
    assert [result.reading.usage.input for result in again] == [9, 9]


def test_lines_that_cannot_be_read_are_others_in_other_files() -> None:
    ids = {result.id for text in ('{"custom_id": "a"', '{"custom_id": "b"') for result in read_batch(text)}
    assert len(ids) == 2


def test_a_line_may_hold_what_others_take_for_the_end_of_one() -> None:
    chat = {**CHAT, "choices": [{"index": 0, "message": {"role": "assistant", "content": "a\u2028b\x85c"}}]}
    line = {"id": "b1", "custom_id": "a", "response": {"status_code": 200, "body": chat}}
    (result,) = read_batch(json.dumps(line, ensure_ascii=False))
    assert result.reading.usage.total == 11


def test_the_results_of_xai_are_read() -> None:
    (result,) = read_batch(
        json.dumps({"batch_request_id": "a", "batch_result": {"response": {"chat_get_completion": CHAT}}})
    )
    assert (result.name, result.id, result.reading.usage.total) == ("a", "batch-chatcmpl-1", 11)


def test_usage_that_cannot_be_believed_is_a_problem() -> None:
    broken = {**CHAT, "usage": {"prompt_tokens": -1, "completion_tokens": 2}}
    (result,) = read_batch(json.dumps({"custom_id": "a", "response": {"status_code": 200, "body": broken}}))
    assert result.reading.problem
    assert not result.reading.usage


def test_a_job_that_runs_twice_and_gives_the_same_is_told_apart_by_its_name() -> None:
    text = json.dumps(WITHOUT_AN_ID["bedrock"][0])
    ids = [
        result.id for batch in ("job-1", "job-2", "job-1", None) for result in read_batch(text, batch=batch)
    ]
    assert (len(set(ids)), ids[0]) == (3, ids[2])
    named = json.dumps(LINES["openai"][0])
    assert {each.id for batch in ("job-1", None) for each in read_batch(named, batch=batch)} == {
        "batch-batch_req_1"
    }


def test_azures_lines_without_an_id_are_known_by_their_requests() -> None:
    body = {"object": "list", "data": [], "model": "m", "usage": {"prompt_tokens": 9, "total_tokens": 9}}
    rows = [
        {"custom_id": "a", "response": {"request_id": name, "status_code": 200, "body": body}}
        for name in ("r-1", "r-2")
    ]
    assert [each.id for row in rows for each in read_batch(json.dumps(row))] == ["batch-r-1", "batch-r-2"]


def test_results_are_read_as_anthropics_sdk_gives_them() -> None:
    batches = pytest.importorskip("anthropic.types.messages")
    kind = batches.MessageBatchIndividualResponse
    succeeded = {"custom_id": "a", "result": {"type": "succeeded", "message": MESSAGE}}
    error = {"type": "error", "error": {"type": "api_error", "message": "no"}}
    failed = {"custom_id": "b", "result": {"type": "errored", "error": error}}
    (result,) = read_batch(kind.construct(**each) for each in (succeeded, failed))
    assert (result.name, result.id) == ("a", "batch-msg_1")
    assert leaves(result.reading.usage) == {"input": 9, "output": 2}
    assert [each.id for each in read_batch([succeeded])] == ["batch-msg_1"]


def test_a_file_that_begins_with_a_byte_order_mark_is_read() -> None:
    text = json.dumps(LINES["openai"][0])
    for given in ("\ufeff" + text, ("\ufeff" + text).encode()):
        assert [each.reading.problem for each in read_batch(given)] == [None]
