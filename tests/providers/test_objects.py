"""An SDK's object whose layout is known is read as it would be name by name, whatever its values."""

from __future__ import annotations

import random
from typing import Any

import pytest
from llm_metering.providers import answers, objects, read_response

from .conftest import leaves

CHAT: dict[str, Any] = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 123, "completion_tokens": 45, "total_tokens": 168,
        "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 7, "audio_tokens": None},
    },
}  # fmt: skip
RESPONSE: dict[str, Any] = {
    "id": "resp_1", "object": "response", "status": "completed", "model": "gpt-5-mini", "output": [],
    "usage": {
        "input_tokens": 36, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 87,
        "output_tokens_details": {"reasoning_tokens": 1}, "total_tokens": 123,
    },
}  # fmt: skip
MESSAGE: dict[str, Any] = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4",
    "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn",
    "usage": {"input_tokens": 12, "cache_read_input_tokens": 3, "output_tokens": 9},
}  # fmt: skip
ANSWERS = [
    pytest.param(
        CHAT, id="chat", marks=pytest.mark.needs("openai.types.completion_usage.PromptTokensDetails")
    ),
    pytest.param(RESPONSE, id="response", marks=pytest.mark.needs("openai.types.responses")),
    pytest.param(
        MESSAGE, id="message", marks=pytest.mark.needs("anthropic.types.CacheControlEphemeralParam")
    ),
]
NUMBERS = (0, 1, 7, 45, 2**63 - 1, 2**63, -1, True, None, 1.0, "7", [], {"cached_tokens": 2})


@pytest.fixture(autouse=True)
def no_layouts(monkeypatch):
    monkeypatch.setattr(objects, "_layouts", {})
    monkeypatch.setattr(objects, "_nested", {})


def built(answer):
    """As the SDK builds it, which is without validation."""
    if "type" in answer:
        from anthropic import _models
        from anthropic.types import Message

        return _models.construct_type(type_=Message, value=answer)
    from openai import _models  # type: ignore[no-redef]

    if answer["object"] == "response":
        from openai.types.responses import Response as Kind
    else:
        from openai.types.chat import ChatCompletion as Kind  # type: ignore[assignment]
    return _models.construct_type(type_=Kind, value=answer)


def by_name(answer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(answers, "read_object", lambda *_: None)
        return read_response(answer)


def changed(value, choose):
    """The same, but for some of its numbers and keys."""
    if not isinstance(value, dict):
        return choose.choice(NUMBERS) if choose.random() < 0.15 else value
    made = {key: changed(each, choose) for key, each in value.items() if choose.random() > 0.05}
    if choose.random() < 0.05:
        made[choose.choice(("cost", "cached_tokens", "reasoning_tokens"))] = 3
    return made


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_known_layout_is_read_as_it_is_name_by_name(answer, monkeypatch):
    choose = random.Random(11)
    known = 0
    for _ in range(600):
        made = built({**answer, "usage": changed(answer["usage"], choose)})
        expected = by_name(made, monkeypatch)
        assert read_response(made) == expected
        known += objects.read_object(made, None, None) is not None
        assert read_response(made) == expected  # the second time by its layout, where that is known
    assert known > 100


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_second_answer_of_a_layout_is_read_by_it(answer):
    first, second = built(answer), built({**answer, "id": "other", "model": "another"})
    assert objects.read_object(first, None, None) is None
    read_response(first)
    found = objects.read_object(second, "azure", "chat")
    assert found is not None
    assert (found.response_id, found.model, found.provider, found.api) == (
        "other",
        "another",
        "azure",
        "chat",
    )
    assert leaves(found.usage) == leaves(read_response(answer).usage)


@pytest.mark.parametrize("field", ["id", "model"])
def test_an_answer_without_a_name_is_read_name_by_name(field, monkeypatch):
    read_response(built(CHAT))
    for odd in (None, "", 7):
        made = built({**CHAT, field: odd})
        assert read_response(made) == by_name(made, monkeypatch)


def test_numbers_in_another_order_are_another_layout(monkeypatch):
    made, straight = built(CHAT), built(CHAT)
    made.usage.__dict__.clear()
    made.usage.__dict__.update({"completion_tokens": 45, "prompt_tokens": 123}, total_tokens=168)
    read_response(made)
    straight.usage.__dict__.clear()
    straight.usage.__dict__.update({"prompt_tokens": 123, "completion_tokens": 45}, total_tokens=168)
    assert read_response(straight) == by_name(straight, monkeypatch)
    assert read_response(made) == by_name(made, monkeypatch)


def test_text_is_kept_where_it_is_asked_for():
    read_response(built(CHAT))
    assert read_response(built(CHAT), keep_text=True).text == "Hello"


def test_layouts_without_end_are_not_kept():
    for number in range(3 * objects.MOST_LAYOUTS):
        read_response(built({**CHAT, "usage": {**CHAT["usage"], "prompt_tokens_details": None}}))
        made = built(CHAT)
        made.usage.__dict__[f"more_{number}"] = 1
        read_response(made)
    assert len(objects._layouts) <= objects.MOST_LAYOUTS
