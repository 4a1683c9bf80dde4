"""An answer whose form is known is read as if it had been decoded, whatever its values and its damage."""

from __future__ import annotations

import json
import random

import pytest
from llm_metering.providers import WireTally, read_response, recognised

CHAT = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1750000000, "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": 'He said "usage": {1}'}}],
    "usage": {
        "prompt_tokens": 123, "completion_tokens": 45, "total_tokens": 168, "queue_time": 0.25,
        "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 7, "audio_tokens": 0},
    },
    "service_tier": "default", "system_fingerprint": None,
}  # fmt: skip
APART = {
    **CHAT, "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 22, "reasoning_tokens": 7},
}  # fmt: skip
MESSAGE = {
    "model": "claude-sonnet-4", "id": "msg_1", "type": "message", "role": "assistant",
    "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn", "stop_sequence": None,
    "usage": {
        "input_tokens": 12, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 3,
        "output_tokens": 9, "service_tier": "standard",
    },
}  # fmt: skip
RESPONSE = {
    "id": "resp_1", "object": "response", "created_at": 1750000000, "status": "completed", "error": None,
    "model": "gpt-5-mini", "output": [{"type": "message", "content": []}], "truncation": "disabled",
    "usage": {
        "input_tokens": 36, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 87,
        "output_tokens_details": {"reasoning_tokens": 1}, "total_tokens": 123,
    },
    "user": None, "metadata": {},
}  # fmt: skip
ANSWERS = {"chat": CHAT, "apart": APART, "message": MESSAGE, "response": RESPONSE}


@pytest.fixture(autouse=True)
def no_forms(monkeypatch):
    monkeypatch.setattr(recognised, "_forms", {})


def wire(body):
    tally = WireTally(content_type="application/json")
    tally.feed(body)
    return tally.result()


def known():
    forms = recognised._forms.get((None, None))
    return forms._known if forms else ()


def decoded(body, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(recognised.Forms, "read", lambda *_: None)
        patch.setattr(recognised.Forms, "learn", lambda *_: None)
        return wire(body)


def with_other_values(answer, choose):
    """The same keys, with other numbers and names."""
    if isinstance(answer, dict):
        return {k: with_other_values(v, choose) for k, v in answer.items()}
    if type(answer) is int:
        return choose.choice([answer, 0, choose.randint(0, 500), choose.randint(0, 2**70)])
    if isinstance(answer, str) and choose.random() < 0.1:
        return choose.choice(["", "x" * choose.randint(0, 300), 'a"b', "é", "\\", "\u2028", "usage"])
    return answer


def damaged(body, choose):
    """A few bytes changed, left out, doubled or swapped with those of another place."""
    for _ in range(choose.randint(1, 3)):
        at = choose.randrange(len(body))
        piece = choose.choice(
            [b"", b"0", b"-", b".5", b"e3", b"1", b'"', b"\\", b"{", b"}", b"]", b",", b":", b" ", b"\n",
             b"null", b"\xff", b'"usage":', b'"id":"b",', b'"model":"m",',
             body[at : at + choose.randint(1, 30)]]
        )  # fmt: skip
        body = body[:at] + piece + body[at + choose.randint(0, 3) :]
    return body


@pytest.mark.parametrize("spaces", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_of_a_known_form_is_read_as_its_decoding_says(answer, spaces, monkeypatch):
    choose = random.Random(1)
    wire(json.dumps(answer, separators=spaces).encode())
    assert len(known()) == 1
    for _ in range(1500):
        body = json.dumps(with_other_values(answer, choose), separators=spaces).encode()
        assert wire(body) == decoded(body, monkeypatch) == read_response(body)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_damaged_answer_is_read_as_its_decoding_says(answer, monkeypatch):
    choose = random.Random(2)
    body = json.dumps(answer, indent=choose.choice([None, 2])).encode()
    wire(body)
    for _ in range(4000):
        broken = damaged(body, choose)
        assert wire(broken) == decoded(broken, monkeypatch), broken


def test_it_is_recognised_and_not_decoded(monkeypatch):
    body = json.dumps(CHAT).encode()
    first = wire(body)

    def never(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("llm_metering.providers.wire.ends_of", never)
    monkeypatch.setattr("llm_metering.providers.wire.read_response", never)
    assert wire(body) == first
    longer = body.replace(b'"He said', b'"' + b"x" * 70_000 + b"He said").replace(b": 45", b": 46")
    assert wire(longer).usage.output == 39
    with pytest.raises(AssertionError, match="decoded"):
        wire(body.replace(b'"queue_time"', b'"other_time"'))


def test_answers_that_never_repeat_are_decoded_and_not_learned_for_ever():
    for n in range(200):
        body = json.dumps({**CHAT, f"key{n}": 1, "usage": {**CHAT["usage"], f"new{n}": 1}}).encode()
        assert wire(body).usage.input == 59
    assert len(known()) == recognised.MOST_FORMS
    assert recognised._forms[None, None]._left == 0


def test_forms_of_one_api_are_not_those_of_another():
    body = json.dumps(CHAT).encode()
    wire(body)
    tally = WireTally(content_type="application/json", provider="groq", api="chat")
    tally.feed(body)
    assert tally.result().provider == "groq"
