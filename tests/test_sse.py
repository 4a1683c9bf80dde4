"""Server-sent events from bytes, however they are cut."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_metering.sse import SSEDecoder, SSEvent


def decode(body: bytes, *sizes: int) -> list[SSEvent]:
    decoder = SSEDecoder()
    events = []
    at = n = 0
    while at < len(body):
        size = sizes[n % len(sizes)] if sizes else len(body)
        events += decoder.feed(body[at : at + size])
        at, n = at + size, n + 1
    return events + decoder.close()


def data(body: bytes, *sizes: int) -> list[str]:
    return [event.data for event in decode(body, *sizes)]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_any_line_end_ends_a_line(end: bytes) -> None:
    body = b"data: one\n\ndata: two\n\n".replace(b"\n", end)
    for size in range(1, len(body) + 1):
        assert data(body, size) == ["one", "two"]


def test_line_ends_may_be_mixed() -> None:
    assert data(b"data: a\r\n\ndata: b\r\rdata: c\n\r\n") == ["a", "b", "c"]


def test_fields_are_read() -> None:
    body = b"event: delta\nid: 7\nretry: 100\nunknown: x\ndata: a\n\ndata: b\n\n"
    assert decode(body) == [SSEvent("a", "delta", "7"), SSEvent("b", "message", "7")]


def test_data_lines_of_one_event_are_joined() -> None:
    assert data(b"data: a\ndata:\ndata:  b\ndata\n\n") == ["a\n\n b\n"]


def test_comments_and_keep_alives_are_no_events() -> None:
    assert data(b": hello\n\n:\n\n\n\nevent: ping\n\ndata: a\n\n: bye\n\n") == ["a"]


def test_done_is_an_event_like_any_other() -> None:
    assert data(b'data: {"a":1}\n\ndata: [DONE]\n\n') == ['{"a":1}', "[DONE]"]


@pytest.mark.parametrize("tail", [b"", b"\n", b"\r", b"\r\n"])
def test_the_last_event_needs_no_blank_line(tail: bytes) -> None:
    assert data(b"data: a\n\ndata: b" + tail) == ["a", "b"]


def test_a_byte_order_mark_is_skipped_once() -> None:
    body = b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n"
    for size in (1, 2, 100):
        assert data(body, size) == ["a"]


def test_characters_may_be_cut_in_the_middle() -> None:
    text = "é😀漢"
    for size in (1, 2, 3):
        assert data(f"data: {text}\n\n".encode(), size) == [text]


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    assert data(b"data: a\xff\xc3\n\n") == ["a\ufffd\ufffd"]


def test_only_the_line_ends_of_the_standard_end_a_line() -> None:
    text = "a\u2028b\x0bc\x85d"
    assert data(f"data: {text}\n\n".encode()) == [text]


def test_an_event_that_is_too_long_is_dropped_and_the_next_is_read() -> None:
    decoder = SSEDecoder(max_event_bytes=100)
    events = []
    for part in (
        b"data: ",
        *[b"x" * 30] * 10,
        b"\n\n",
        b"data: ok\n\n",
        *[b"data: " + b"y" * 60 + b"\n"] * 3,
    ):
        events += decoder.feed(part)
    events += decoder.feed(b"\ndata: fine\n\n")
    assert [event.data for event in events] == ["ok", "fine"]
    assert decoder.dropped == 2


def test_memory_stays_bounded_without_line_ends() -> None:
    decoder = SSEDecoder(max_event_bytes=1_000_000)
    tracemalloc.start()
    for _ in range(500):
        decoder.feed(b"x" * 65_536)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


LINES = st.lists(
    st.sampled_from(
        [b"data: a", b"data:b", b"data", b"event: e", b": c", b"", b"", b"id: 1", b"x\xc3", b"data: \xf0"]
    ),
    max_size=12,
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@settings(max_examples=300, deadline=None)
@given(LINES, ENDS, st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_cuts_never_matter(lines: list[bytes], end: bytes, sizes: list[int]) -> None:
    body = b"".join(line + end for line in lines)
    assert decode(body, *sizes) == decode(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_no_bytes_raise_and_cuts_never_matter(body: bytes, sizes: list[int]) -> None:
    assert decode(body, *sizes) == decode(body)
