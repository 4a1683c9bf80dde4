"""Amazon's event streams from their bytes, cut anywhere; and counts in headers."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_metering.providers import WireTally, read_response
from llm_metering.providers.headers import with_headers
from llm_metering.usage import Reading, Usage

from .conftest import leaves

TYPE = "application/vnd.amazon.eventstream"


def frame(name: str, body: Any, kind: str = "event") -> bytes:
    key = ":event-type" if kind == "event" else ":exception-type"
    named = ((key, name), (":content-type", "application/json"), (":message-type", kind))
    headers = b"".join(
        bytes([len(k)]) + k.encode() + b"\x07" + len(v).to_bytes(2, "big") + v.encode() for k, v in named
    )
    headers += b"\x01n\x00" + b"\x01t\x08" + bytes(8)  # a flag and a time, which say nothing here
    payload = json.dumps(body).encode()
    prelude = (16 + len(headers) + len(payload)).to_bytes(4, "big") + len(headers).to_bytes(4, "big")
    whole = prelude + binascii.crc32(prelude).to_bytes(4, "big") + headers + payload
    return whole + binascii.crc32(whole).to_bytes(4, "big")


def chunk(body: Any) -> bytes:
    return frame("chunk", {"bytes": base64.b64encode(json.dumps(body).encode()).decode(), "p": "abc"})


def test_frames_are_told_by_their_first_byte_where_no_content_type_does() -> None:
    told, untold = WireTally(content_type=TYPE), WireTally()
    for at, byte in enumerate(body := b"".join(CONVERSE)):
        told.feed(body[at : at + 1])
        untold.feed(bytes([byte]))
    assert untold.result() == told.result()
    assert untold.result().usage


CONVERSE = [
    frame("messageStart", {"role": "assistant"}),
    frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hello there"}}),
    frame("messageStop", {"stopReason": "end_turn"}),
    frame("metadata", {"usage": {"inputTokens": 9, "outputTokens": 2, "totalTokens": 11}}),
]
INVOKED = [
    chunk(
        {
            "type": "message_start",
            "message": {"id": "msg_1", "model": "claude-x", "usage": {"input_tokens": 9}},
        }
    ),
    chunk({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}),
    chunk({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}),
    chunk(
        {
            "type": "message_stop",
            "amazon-bedrock-invocationMetrics": {"inputTokenCount": 9, "outputTokenCount": 2},
        }
    ),
]


@pytest.mark.parametrize("size", [1, 5, 64, 10**6])
@pytest.mark.parametrize("frames", [CONVERSE, INVOKED], ids=["converse", "invoke"])
def test_streams_are_read_cut_anywhere(frames: list[bytes], size: int) -> None:
    body = b"".join(frames)
    tally = WireTally(content_type=TYPE)
    for at in range(0, len(body), size):
        tally.feed(body[at : at + size])
    reading = tally.result()
    assert leaves(reading.usage) == {"input": 9, "output": 2}
    assert reading.provenance == "reported"
    assert tally.complete


def test_a_stream_that_breaks_off_keeps_what_came() -> None:
    tally = WireTally(content_type=TYPE)
    tally.feed(b"".join(CONVERSE)[: len(CONVERSE[0]) + len(CONVERSE[1]) + 20])
    reading = tally.result()
    assert reading.provenance == "partial"
    assert reading.text == "Hello there"


def test_an_exception_in_mid_stream_is_a_failure_and_what_came_still_counts() -> None:
    tally = WireTally(content_type=TYPE)
    tally.feed(b"".join(CONVERSE[:2]) + frame("throttlingException", {"message": "slow down"}, "exception"))
    reading = tally.result()
    assert tally.failed
    assert (reading.provenance, reading.text) == ("partial", "Hello there")


@given(st.binary(max_size=400), st.integers(min_value=0, max_value=400))
def test_whatever_bytes_come_nothing_is_raised(noise: bytes, at: int) -> None:
    body = b"".join(CONVERSE)
    for damaged in (noise, body[:at] + noise + body[at:], body[:at] + noise):
        tally = WireTally(content_type=TYPE)
        tally.feed(damaged)
        tally.result()


HEADERS = {
    "x-amzn-bedrock-input-token-count": "9",
    "x-amzn-bedrock-output-token-count": "2",
    "x-amzn-bedrock-cache-read-input-token-count": "4",
}


def test_headers_count_where_the_body_says_nothing() -> None:
    body = {"outputs": [{"text": " Hello", "stop_reason": "stop"}]}  # Mistral on Bedrock
    reading = with_headers(read_response(body), HEADERS)
    assert leaves(reading.usage) == {"input": 9, "output": 2, "cached_input": 4}
    assert (reading.provider, reading.provenance, reading.problem) == ("bedrock", "reported", None)


def test_the_body_s_own_counts_win_over_headers() -> None:
    known = Reading(usage=Usage(input=1, output=0), provider="anthropic")
    assert with_headers(known, HEADERS) is known
    half = with_headers(Reading(usage=Usage(output=7), provider="huggingface"), {"x-prompt-tokens": "3"})
    assert leaves(half.usage) == {"input": 3, "output": 7}


@pytest.mark.parametrize("value", ["", "-1", "1.5", "NaN", "٣", "9" * 40, None])
def test_headers_that_are_no_counts_say_nothing(value: Any) -> None:
    assert not with_headers(Reading(), {"x-amzn-bedrock-input-token-count": value}).usage
