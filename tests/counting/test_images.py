"""Image sizes are read from their heads, and cost what OpenAI's documents and bills say."""

from __future__ import annotations

import base64
import struct
import zlib

import pytest
from llm_metering.counting.images import Image, image_tokens, size_of, size_of_base64, size_of_data_url
from llm_metering.counting.models import family_of


def png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def jpeg(width: int, height: int, extra: int = 0) -> bytes:
    exif = b"\xff\xe1" + struct.pack(">H", extra + 2) + b"x" * extra if extra else b""
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\0" * 9
    return b"\xff\xd8\xff\xe0\x00\x10JFIF\0" + b"\0" * 9 + exif + b"\xff" + frame


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0" * 25


def webp(kind: bytes, body: bytes) -> bytes:
    return b"RIFF\0\0\0\0WEBP" + kind + b"\0\0\0\0" + body + b"\0" * 16


SIZE = (1234, 567)
IMAGES = {
    "png": png(*SIZE),
    "jpeg": jpeg(*SIZE),
    "jpeg with a large thumbnail": jpeg(*SIZE, extra=60_000),
    "gif": gif(*SIZE),
    "webp extended": webp(b"VP8X", b"\0\0\0\0" + (1233).to_bytes(3, "little") + (566).to_bytes(3, "little")),
    "webp lossless": webp(b"VP8L", b"\x2f" + (1233 | 566 << 14).to_bytes(4, "little")),
    "webp lossy": webp(b"VP8 ", b"\0" * 6 + struct.pack("<HH", *SIZE)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_the_size_is_read_from_the_head(name: str) -> None:
    data = IMAGES[name]
    assert size_of(data) == SIZE
    encoded = base64.b64encode(data).decode()
    assert size_of_data_url(f"data:image/any;base64,{encoded}") == SIZE
    assert size_of_base64(encoded.rstrip("=")) == SIZE


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_is_cut_short_does_not_raise(name: str) -> None:
    data = IMAGES[name]
    for end in range(min(len(data), 64)):
        assert size_of(data[:end]) in (None, SIZE)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "data:image/png;base64,!!!",
        "data:,",
        "",
        "data:image/png;base64,",
        "data:x",
    ],
)
def test_an_image_whose_size_cannot_be_told_has_none(url: str) -> None:
    assert size_of_data_url(url) is None


def tokens(model: str, width: int, height: int, detail: str = "auto") -> int | None:
    return image_tokens(model, family_of(model), Image((width, height), detail))


@pytest.mark.parametrize(
    ("model", "width", "height", "detail", "cost"),
    [
        # The examples of OpenAI's guide.
        ("gpt-4o", 1024, 1024, "high", 765),
        ("gpt-4o", 2048, 4096, "high", 1105),
        ("gpt-4o", 4096, 8192, "low", 85),
        ("gpt-4.1", 1024, 1024, "high", 765),
        ("gpt-4-1106-vision-preview", 800, 400, "auto", 425),
        ("gpt-4o-mini", 1024, 1024, "high", 2833 + 4 * 5667),
        ("gpt-4o-mini", 10, 10, "low", 2833),
        ("gpt-5", 1024, 1024, "high", 70 + 4 * 140),
        ("gpt-5-2025-08-07", 10, 10, "auto", 70 + 140),
        ("o1", 512, 512, "auto", 75 + 150),
        ("o4-mini", 1024, 1024, "auto", 1762),
        ("o4-mini", 1800, 2400, "auto", 2498),
        ("gpt-4.1-mini", 1024, 1024, "auto", 1660),
        ("gpt-4.1-nano", 1024, 1024, "auto", 2521),
        ("gpt-5-mini", 1024, 1024, "auto", 1229),
        ("gpt-5-nano", 1024, 1024, "auto", 1536),
        ("claude-x", 1000, 1000, "auto", 1334),
        ("gemini-x", 300, 300, "auto", 258),
        ("gemini-x", 1000, 1000, "auto", 4 * 258),
    ],
)
def test_an_image_costs_what_its_size_says(
    model: str, width: int, height: int, detail: str, cost: int
) -> None:
    assert tokens(model, width, height, detail) == cost


def test_a_patch_count_never_exceeds_its_limit() -> None:
    for width in (100, 1_000, 5_000, 999_999):
        for height in (1, 33, 4_000, 999_999):
            cost = tokens("o4-mini", width, height)
            assert cost is not None
            assert 0 < cost <= 2642


def test_an_image_of_a_model_without_a_known_rule_has_no_cost() -> None:
    assert tokens("gpt-4", 100, 100) is None
    assert tokens("my-model", 100, 100) is None
    assert image_tokens("gpt-4o", "openai", Image(None)) is None
    assert image_tokens("gpt-4o", "openai", Image(None, "low")) == 85
