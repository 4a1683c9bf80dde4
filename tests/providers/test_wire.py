"""Answers as bytes: any cut, any size, any depth, and never fooled by what only looks like usage."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from llm_metering.providers import WireTally, read_response
from llm_metering.usage import Reading, Usage

from .conftest import compact, sse

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def chat(text: str = "Hello.", **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-4o",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": USAGE,
        **more,
    }


def chunk(text: str, usage: Any = None, finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "model": "gpt-4o",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}],
        "usage": usage,
    }


def read(
    body: bytes, content_type: str | None = "application/json", size: int = 1000, **more: Any
) -> Reading:
    tally = WireTally(content_type=content_type, **more)
    for at in range(0, len(body), size):
        tally.feed(body[at : at + size])
    return tally.result()


FOOLS = [
    '"usage":{"prompt_tokens":99999,"completion_tokens":99999}',
    '","usage":{"prompt_tokens":99999,"completion_tokens":99999},"x":"',
    '\\","usage":{"prompt_tokens":99999,"completion_tokens":99999}}',
    '}],"usage":{"prompt_tokens":99999,"completion_tokens":99999}}',
    '\\\\","usage":{"prompt_tokens":99999,"completion_tokens":99999}}',
    'data: {"usage":{"prompt_tokens":99999,"completion_tokens":99999}}\n\n',
    '\n\ndata: {"id":"x","choices":[],"usage":{"prompt_tokens":9999,"completion_tokens":9999}}\n\n',
]


@pytest.mark.parametrize("text", FOOLS)
def test_text_that_looks_like_usage_is_not_taken_for_it(text: str) -> None:
    body = compact(chat(text)).encode()
    assert read(body).usage == Usage(input=7, output=3)
    events = [chunk(text), chunk("", finish="stop"), {**chunk("", USAGE), "choices": []}]
    assert read(sse(events), "text/event-stream").usage == Usage(input=7, output=3)


@pytest.mark.parametrize("text", FOOLS)
def test_text_that_looks_like_usage_is_not_taken_for_it_where_there_is_none(text: str) -> None:
    answer = chat(text)
    del answer["usage"]
    reading = read(compact(answer).encode())
    assert (reading.usage, reading.text) == (Usage(), text)
    reading = read(sse([chunk(text), chunk("", finish="stop")]), "text/event-stream")
    assert (reading.usage, reading.text) == (Usage(), text)


@pytest.mark.parametrize(
    "more",
    [
        {"metadata": {"usage": {"prompt_tokens": 99999, "completion_tokens": 1}}},
        {"metadata": {"x": {"usage": "a lot"}}},
        {"metadata": {"usage": None}},
        {'a"usage': {"prompt_tokens": 99999, "completion_tokens": 1}},
        {"usage_policy": {"prompt_tokens": 99999, "completion_tokens": 1}},
        {"list": [{"usage": {"prompt_tokens": 99999, "completion_tokens": 1}}]},
    ],
)
def test_a_nested_key_called_usage_is_not_the_usage(more: dict[str, Any]) -> None:
    for answer in (chat(**more), {**more, **chat()}):
        for indent in (None, 1):
            assert read(json.dumps(answer, indent=indent).encode()).usage == Usage(input=7, output=3)


def test_usage_before_the_choices_is_found() -> None:
    answer = {
        "id": "x",
        "model": "m",
        "usage": USAGE,
        "object": "chat.completion",
        "choices": [{"message": {}}],
    }
    reading = read(compact(answer).encode())
    assert (reading.usage, reading.model, reading.response_id) == (Usage(input=7, output=3), "m", "x")


def test_the_quick_way_and_the_whole_parse_agree_on_large_bodies() -> None:
    for text in ("x" * 200_000, 'say "hi"\\ ' * 20_000, "é😀" * 30_000):
        body = compact(chat(text)).encode()
        assert read(body) == read_response(body) == read(body, size=64 * 1024)


def test_keep_text_keeps_what_was_written() -> None:
    assert read(compact(chat("Hi")).encode(), keep_text=True).text == "Hi"
    events = [chunk("Hi"), chunk("", USAGE, "stop")]
    assert read(sse(events), "text/event-stream", keep_text=True).text == "Hi"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"<html><body>502</body></html>", "not JSON"),
        (b'{"id": "x", "choi', "cut short"),
        (b'{"usage": {"prompt_tokens": 1, "completion_tokens": 2}', "cut short"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "too deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too deep"),
        (b"[" * 100_000, "too deep"),
    ],
)
def test_a_body_that_cannot_be_read_says_why(body: bytes, reason: str) -> None:
    reading = read(body)
    assert reading.usage == Usage()
    assert reading.problem is not None
    assert reason in reading.problem


@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b"5", b'"text"', b"true", b"[1]", b'{"usage":null}'])
def test_json_that_is_no_answer_of_a_model_is_empty(body: bytes) -> None:
    reading = read(body)
    assert (reading.usage, reading.problem, reading.text) == (Usage(), None, None)


def test_usage_is_read_beside_a_part_that_is_too_deep() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    body = compact(chat()).replace('"usage"', f'"deep":{deep},"usage"').encode()
    assert read(body).usage == Usage(input=7, output=3)


def test_bytes_that_are_not_utf8_do_not_matter() -> None:
    body = compact(chat("HERE")).encode().replace(b"HERE", b"\xff\xfe\xc3")
    assert read(body).usage == Usage(input=7, output=3)
    reading = read(body.replace(b'"usage"', b'"other"'))
    assert reading.text == "\ufffd\ufffd\ufffd"


def test_a_byte_order_mark_does_not_matter() -> None:
    body = b"\xef\xbb\xbf" + compact(chat()).encode()
    for content_type in ("application/json", None):
        for size in (1, 1000):
            assert read(body, content_type, size).usage == Usage(input=7, output=3)


@pytest.mark.parametrize("ending", ["\n", "\r", "\r\n"])
def test_a_stream_is_read_with_any_line_end_cut_anywhere(ending: str) -> None:
    body = b"\xef\xbb\xbf" + sse(
        [chunk("Hé"), chunk("llo", finish="stop"), {**chunk("", USAGE), "choices": []}]
    )
    body = b": keep-alive\n\n" + body.removeprefix(b"\xef\xbb\xbf") + b": bye\n\n"
    body = body.replace(b"\n", ending.encode())
    for size in (1, 2, 3, 5, 8, 13, len(body)):
        reading = read(body, "text/event-stream", size)
        assert (reading.usage, reading.provenance) == (Usage(input=7, output=3), "reported")


def test_a_stream_that_is_cut_at_any_byte_is_read_as_far_as_it_came() -> None:
    events = [chunk("Hé"), chunk("😀", finish="stop"), {**chunk("", USAGE), "choices": []}]
    body = sse(events)
    whole = read(body, "text/event-stream")
    seen = set()
    for cut in range(len(body)):
        reading = read(body[:cut], "text/event-stream")
        assert reading == whole or reading.usage == Usage()
        assert reading.problem is None
        seen.add((reading.provenance, reading.text, bool(reading.usage)))
    assert seen == {
        ("partial", None, False),
        ("partial", "Hé", False),
        ("reported", "Hé😀", False),
        ("reported", None, True),
    }


def test_data_over_several_lines_is_read() -> None:
    lines = json.dumps({**chunk("", USAGE), "choices": []}, indent=1).splitlines()
    body = sse([chunk("Hi")], done=False) + "".join(f"data: {line}\n" for line in lines).encode() + b"\n"
    assert read(body, "text/event-stream").usage == Usage(input=7, output=3)


def test_a_stream_without_usage_that_ends_with_done_is_whole() -> None:
    assert read(sse([chunk("Hi")]), "text/event-stream").provenance == "reported"
    assert read(sse([chunk("Hi")], done=False), "text/event-stream").provenance == "partial"


def test_a_gemini_answer_in_a_json_array_is_a_stream() -> None:
    counts = {"promptTokenCount": 8, "candidatesTokenCount": 4, "totalTokenCount": 12}
    part = {"candidates": [{"content": {"parts": [{"text": "a"}]}}], "modelVersion": "gemini-x"}
    last = {"candidates": [{"finishReason": "STOP"}], "usageMetadata": counts, "modelVersion": "gemini-x"}
    reading = read(json.dumps([part, last]).encode())
    assert (reading.usage, reading.model) == (Usage(input=8, output=4), "gemini-x")


def test_the_first_bytes_decide_where_no_content_type_does() -> None:
    assert read(compact(chat()).encode(), None, 1).usage == Usage(input=7, output=3)
    assert read(sse([chunk("", USAGE, "stop")]), None, 1).usage == Usage(input=7, output=3)
    assert read(b": hi\n\n" + sse([chunk("", USAGE, "stop")]), "text/plain", 1).usage == Usage(
        input=7, output=3
    )


@pytest.mark.parametrize("last", [compact, json.dumps, lambda e: json.dumps(e, separators=(" , ", " : "))])
@pytest.mark.parametrize("inside", [lambda end: end, lambda end: {**end, "usage": None, "x_groq": end}])
def test_usage_is_found_after_events_that_have_none_however_it_is_written(last: Any, inside: Any) -> None:
    """As where a gateway adds the last event to a provider's own, with a hand of its own."""
    end = inside(chunk("", USAGE, finish="stop"))
    texts = [*(compact(chunk(f"w{n}")) for n in range(300)), last(end), "[DONE]"]
    pieces = [f"data: {text}\n\n".encode() for text in texts]
    whole = b"".join(pieces)
    together = WireTally(content_type="text/event-stream")
    for at in range(0, len(pieces), 100):
        together.feed_all(pieces[at : at + 100])
    expected = Usage(input=7, output=3)
    assert together.result().usage == expected
    assert read(whole, "text/event-stream", size=70_000).usage == expected
    assert read(whole, "text/event-stream", size=333).usage == expected


def test_usage_that_follows_one_that_is_none_in_one_piece_is_found() -> None:
    body = sse([chunk("a"), chunk("b"), {**chunk("", USAGE), "choices": []}])
    assert read(body, "text/event-stream", size=len(body)).usage == Usage(input=7, output=3)


def test_a_long_stream_without_usage_keeps_all_of_its_text() -> None:
    pieces = [f"word{n} " for n in range(20_000)]
    body = sse([*map(chunk, pieces), chunk("", finish="stop")])
    assert len(body) > 3_000_000
    reading = read(body, "text/event-stream", 997)
    assert (reading.text, reading.provenance) == ("".join(pieces), "reported")


def test_memory_stays_bounded_for_a_stream_of_100_mb() -> None:
    event = sse([chunk("x" * 1000)], done=False) * 64
    tally = WireTally(content_type="text/event-stream", max_bytes=2_000_000)
    tracemalloc.start()
    for _ in range(100_000_000 // len(event)):
        tally.feed(event)
    tally.feed(sse([chunk("", USAGE, "stop")]))
    reading = tally.result()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reading.usage == Usage(input=7, output=3)
    assert peak < 12_000_000


def test_memory_stays_bounded_where_every_event_has_a_usage() -> None:
    event = sse([chunk("x" * 1000, USAGE)], done=False) * 64
    tally = WireTally(content_type="text/event-stream", max_bytes=2_000_000)
    tracemalloc.start()
    for _ in range(20_000_000 // len(event)):
        tally.feed(event)
    reading = tally.result()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (reading.usage, reading.provenance) == (Usage(input=7, output=3), "partial")
    assert peak < 12_000_000


def test_a_stream_whose_text_was_too_long_to_keep_is_partial() -> None:
    events = [chunk("x" * 1000) for _ in range(3000)]
    reading = read(sse([*events, chunk("", finish="stop")]), "text/event-stream", 65_536, max_bytes=1_500_000)
    assert reading.provenance == "partial"
    assert reading.text is not None
    assert 500_000 < len(reading.text) < 1_500_000


def test_memory_stays_bounded_for_a_body_of_100_mb_whose_usage_is_read_all_the_same() -> None:
    head, tail = compact(chat("HERE")).split("HERE")
    filler = b"x" * 65_536
    tally = WireTally(content_type="application/json", max_bytes=2_000_000)
    tracemalloc.start()
    tally.feed(head.encode())
    for _ in range(1600):
        tally.feed(filler)
    tally.feed(tail.encode())
    reading = tally.result()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (reading.usage, reading.model) == (Usage(input=7, output=3), "gpt-4o")
    assert peak < 12_000_000


def test_an_overlong_body_whose_ends_do_not_tell_is_marked() -> None:
    answer = {"usage": USAGE, **chat("x" * 300_000)}
    answer["choices"][0]["usage"] = {}
    reading = read(compact({**answer, "z": [1] * 50_000}).encode(), max_bytes=100_000)
    assert reading.usage == Usage()
    assert reading.problem is not None
    assert "longer than 100000 bytes" in reading.problem


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    tally = WireTally(content_type="text/event-stream", max_bytes=1_000_000)
    tracemalloc.start()
    for _ in range(300):
        tally.feed(b"x" * 65_536)
    tally.result()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


def test_what_came_so_far_is_known_on_the_way() -> None:
    tally = WireTally(content_type="text/event-stream")
    for n in range(5):
        tally.feed(sse([chunk(str(n))], done=False))
    assert tally.tokens_so_far == 5
    assert not tally.complete
    reading = tally.so_far()
    assert (reading.usage.output, reading.model, reading.provenance) == (5, "gpt-4o", "partial")
    tally.feed(sse([chunk("", USAGE, "stop")]))
    assert tally.complete


def test_an_error_in_mid_stream_is_known() -> None:
    tally = WireTally(content_type="text/event-stream")
    tally.feed(sse([chunk("Hi"), {"error": {"message": "boom"}}]))
    assert tally.result().provenance == "partial"
    assert tally.failed


CHAT_EVENTS = [
    {
        "id": "c",
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": "Hi"}}],
    },
    {
        "id": "c",
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    },
]


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "text/plain", None]
)
@pytest.mark.parametrize(
    "begin", [b"", b": OPENROUTER PROCESSING\n\n", b"event: message\n", b"\xef\xbb\xbf", b"\r\n"]
)
def test_a_stream_is_read_under_another_content_type(content_type: str | None, begin: bytes) -> None:
    tally = WireTally(content_type=content_type)
    tally.feed(begin + sse(CHAT_EVENTS))
    reading = tally.result()
    assert (reading.usage.input, reading.usage.output) == (3, 1)
    assert reading.problem is None


def test_lines_of_json_are_read_under_another_content_type() -> None:
    lines = [
        {"model": "llama3", "message": {"role": "assistant", "content": "Hi"}, "done": False},
        {"model": "llama3", "done": True, "prompt_eval_count": 5, "eval_count": 2},
    ]
    tally = WireTally(content_type="application/json")
    tally.feed("\n".join(json.dumps(line) for line in lines).encode())
    assert (tally.result().usage.input, tally.result().usage.output) == (5, 2)


@pytest.mark.parametrize("body", [b"data: nothing", b"<html>", b'{"usage": ', b"{}\n{}", b"event: x\n\n"])
def test_what_is_neither_json_nor_a_stream_stays_a_problem(body: bytes) -> None:
    tally = WireTally(content_type="application/json")
    tally.feed(body)
    assert tally.result().problem


@pytest.mark.parametrize("content_type", ["text/event-stream", "application/x-ndjson"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_whole_answer_that_is_called_a_stream_is_read_whole(content_type: str, indent: int | None) -> None:
    tally = WireTally(content_type=content_type)
    tally.feed(json.dumps(chat(usage=USAGE), indent=indent).encode())
    reading = tally.result()
    assert (reading.usage.input, reading.usage.output, reading.provenance) == (7, 3, "reported")


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_that_breaks_off_counts_the_items_that_came(indent: int | None) -> None:
    said = [
        {"candidates": [{"content": {"parts": [{"text": text}]}}], "usageMetadata": {"promptTokenCount": 3}}
        for text in ("Hello", " you", " there")
    ]
    body = json.dumps(said, indent=indent).encode()
    for cut in (body[: body.rfind(b"there")], body[: body.rfind(b"{")]):
        tally = WireTally(content_type="application/json")
        tally.feed(cut)
        reading = tally.result()
        assert (reading.provenance, reading.text, reading.usage.input) == ("partial", "Hello you", 3)
        assert reading.problem is None
