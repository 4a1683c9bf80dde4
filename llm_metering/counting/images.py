"""How many tokens an image costs, from its size. A remote image's size is unknown: it is never fetched."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable

from .._values import dataclass

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a prompt."""

    size: Size | None
    """Width and height in pixels; None where they cannot be told."""
    detail: str = "auto"


def image_tokens(model: str, family: str, image: Image) -> int | None:
    """What an image costs, None where its size or the model's rule is unknown."""
    if family == "claude":
        return None if image.size is None else _by_area(image.size)
    if family == "gemini":
        return None if image.size is None else _gemini(image.size)
    for pattern, base, tile in _TILES:
        if pattern.match(model):
            if image.detail == "low":
                return base
            return None if image.size is None else base + tile * _tiles(image.size)
    for pattern, factor, more in _PATCHES:
        if pattern.match(model):
            return None if image.size is None else math.ceil(_patches(image.size) * factor) + more
    return None


def size_of_data_url(url: str) -> Size | None:
    """Width and height of the image in a `data:` URL, read from its head only."""
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or ";base64" not in head:
        return None
    return size_of_base64(data)


def size_of_base64(data: str) -> Size | None:
    """Width and height of a base64 image, read from its head only."""
    try:
        return size_of(base64.b64decode(data[:_HEAD_CHARS] + "=" * (-len(data[:_HEAD_CHARS]) % 4)))
    except (binascii.Error, ValueError):
        return None


def size_of(data: bytes) -> Size | None:
    """Width and height of a PNG, JPEG, GIF or WebP."""
    if len(data) < _SHORTEST:
        return None
    for magic, read in _FORMATS:
        if data.startswith(magic):
            return read(data)
    return None


def _tiles(size: Size) -> int:
    """Fit into 2048 by 2048, bring the short side down to 768, count tiles of 512."""
    width, height = _within(size, 2048, 2048)
    shorter = min(width, height)
    if shorter > 768:
        width, height = width * 768 / shorter, height * 768 / shorter
    return math.ceil(width / 512) * math.ceil(height / 512)


def _patches(size: Size) -> int:
    """Patches of 32, scaled down to 1536 of them."""
    width, height = size
    patches = math.ceil(width / 32) * math.ceil(height / 32)
    if patches <= _MAX_PATCHES:
        return patches
    shrink = math.sqrt(32 * 32 * _MAX_PATCHES / (width * height))
    across, down = width * shrink / 32, height * shrink / 32
    shrink *= min(math.floor(across) / across, math.floor(down) / down) or 1
    return min(_MAX_PATCHES, math.ceil(width * shrink / 32) * math.ceil(height * shrink / 32))


def _by_area(size: Size) -> int:
    """Anthropic: fit into 1568 by 1568 and about 1.15 megapixels, then a token for 750 pixels."""
    width, height = _within(size, 1568, 1568)
    area = min(width * height, 1_200_000)
    return math.ceil(area / 750)


def _gemini(size: Size) -> int:
    """Gemini: 258 for a small image, else for each tile of 768."""
    width, height = size
    if width <= 384 and height <= 384:
        return 258
    return 258 * math.ceil(width / 768) * math.ceil(height / 768)


def _within(size: Size, most_width: int, most_height: int) -> tuple[float, float]:
    width, height = size
    shrink = min(1.0, most_width / width, most_height / height)
    return width * shrink, height * shrink


def _png(data: bytes) -> Size | None:
    return _sane(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))


def _gif(data: bytes) -> Size | None:
    return _sane(int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little"))


def _jpeg(data: bytes) -> Size | None:
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            return None
        kind = data[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[i : i + 2], "big") for i in (at + 5, at + 7))
            return _sane(width, height)
        at += 1 if kind == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _webp(data: bytes) -> Size | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return _sane(1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little"))
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return _sane(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if kind == b"VP8 ":
        width, height = (int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (26, 28))
        return _sane(width, height)
    return None


def _sane(width: int, height: int) -> Size | None:
    return (width, height) if 0 < width < 1_000_000 and 0 < height < 1_000_000 else None


_HEAD_CHARS = 256 * 1024
_SHORTEST = 30
"""No image is shorter than what is read of its head."""
_MAX_PATCHES = 1536

_FORMATS: tuple[tuple[bytes, Callable[[bytes], Size | None]], ...] = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8", _jpeg),
    (b"GIF8", _gif),
    (b"RIFF", _webp),
)

# In order; names as `base_name` gives them. The patch factors are those that bills show.
_TILES = tuple(
    (re.compile(pattern), base, tile)
    for pattern, base, tile in (
        (r"gpt-4o-mini", 2833, 5667),
        (r"gpt-5(?!.*(?:mini|nano))", 70, 140),
        (r"gpt-4\.1(?!-mini|-nano)|gpt-4o|gpt-4\.5|gpt-4-turbo|gpt-4-.*vision|chatgpt-4o", 85, 170),
        (r"o1|o3", 75, 150),
        (r"computer-use", 65, 129),
    )
)
_PATCHES = tuple(
    (re.compile(pattern), factor, more)
    for pattern, factor, more in (
        (r"o4-mini", 1.72, 0),
        (r"gpt-4\.1-mini", 1.62, 1),
        (r"gpt-4\.1-nano", 2.46, 1),
        (r"gpt-5.*-mini", 1.2, 0),
        (r"gpt-5.*-nano", 1.5, 0),
    )
)
