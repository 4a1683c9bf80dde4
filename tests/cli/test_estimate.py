"""What usage will cost, shown: bars, tiers, a page for the browser."""

from __future__ import annotations

import re
import shutil
import subprocess
import zlib
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
from llm_metering.billing import PriceSpec, Tier, rate
from llm_metering.cli.estimate_page import bar_of, words_of

USAGE = "customer,value,period\ncus_big,250000,2026-10\ncus_small,900,2026-10\n<b>x</b>,3000,2026-10\n"


@pytest.fixture
def usage(tmp_path: Path) -> str:
    path = tmp_path / "usage.csv"
    path.write_text(USAGE)
    return str(path)


def test_tiers_are_told_in_words_with_their_amounts(run, usage) -> None:
    seen = run("estimate", "flat-fee", "--usage", usage).out
    for shown in (
        "1 to 1,000 at 0.00 USD each", "1,001 and above at 0.04 USD each", "249,000", "9,960.00 USD",
        "100.00 USD every month, in advance", "flat-fee: 10,340.00 USD in all", "2026-10",
    ):  # fmt: skip
        assert shown in seen


def test_the_longest_bar_is_the_highest_cost_and_the_others_are_to_scale(run, usage) -> None:
    seen = run("estimate", "pay-as-you-go", "--usage", usage).out
    bars = {name: seen.split(name)[1].split("\n")[0].count("█") for name in ("cus_big", "cus_small")}
    assert bars == {"cus_big": 30, "cus_small": 0}
    blocks = bar_of([("a", Decimal(1)), ("b", Decimal(2))], Decimal(4), 10)
    assert blocks == [("a", "██"), ("b", "█████▌")], "2.5 and 7.5 of 10"
    assert bar_of([("a", Decimal(0))], Decimal(0), 10) == [("a", "")]


@pytest.mark.parametrize(
    ("price", "quantity", "words"),
    [
        ({"amount": "0.00002"}, 5, ["0.00002 USD each"]),
        ({"amount": 3, "package_size": 7, "package_round": "down"}, 5, ["3.00 USD per 7, rounded down"]),
        (
            {"tiers": (Tier(10, 1, 5), Tier("inf", 2)), "tiers_mode": "graduated"},
            12,
            ["1 to 10 at 1.00 USD each", "flat fee of tier 1", "11 and above at 2.00 USD each"],
        ),
        (
            {"tiers": (Tier(10, 1), Tier("inf", 2)), "tiers_mode": "volume"},
            12,
            ["all, as they reach tier 2 at 2.00 USD each"],
        ),
        ({"tiers": (Tier("inf", 2),), "tiers_mode": "volume"}, 12, ["any number at 2.00 USD each"]),
    ],
)
def test_each_model_has_its_words(price, quantity, words) -> None:
    spec = PriceSpec(key="k", product="p", currency="usd", meter="m", **price)
    assert [words_of(spec, line) for line in rate(spec, quantity)] == words


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_needs_nothing_else_and_shows_every_tier(run, usage, tmp_path) -> None:
    path = tmp_path / "page.html"
    assert run("estimate", "flat-fee", "--usage", usage, "--html", str(path)).code == 0
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert sum(tag == "details" for tag, _ in page.tags) == 3
    for shown in ("10,340.00 USD", "3 customers", "1,001 and above at 0.04 USD each", "9,960.00 USD"):
        assert shown in text
    widths = [attrs["style"] for tag, attrs in page.tags if tag == "i" and "title" in attrs]
    assert "width:99.006%;background:#0ca678" in widths, "9,960 of 10,060"


def test_a_page_that_cannot_be_written_is_told(run, usage, tmp_path) -> None:
    ran = run("estimate", "flat-fee", "--usage", usage, "--html", str(tmp_path / "no" / "page.html"))
    assert ran.code == 2
    assert "page.html cannot be written: No such file" in ran.err


@pytest.mark.once
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize(("scheme", "ground"), [(1, "light"), (0, "dark")])
def test_the_page_is_drawn_in_light_and_dark(run, usage, tmp_path, scheme, ground) -> None:
    path, shot = tmp_path / "page.html", tmp_path / "shot.png"
    run("estimate", "flat-fee", "--usage", usage, "--html", str(path))
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options = [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=900,500"]
    where = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", path.as_uri()]
    subprocess.run([*browser, *options, *where], check=True, capture_output=True, timeout=60)
    colours = colours_of(shot)
    assert {"light": (255, 255, 255), "dark": (0x12, 0x15, 0x1F)}[ground] in colours
    assert (0x63, 0x5B, 0xFF) in colours
    assert (0x0C, 0xA6, 0x78) in colours


def colours_of(png: Path) -> set[tuple[int, int, int]]:
    """The colours of a PNG of 8 bits a channel, read without any library."""
    data, at, packed = png.read_bytes(), 8, b""
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body, at = data[at + 8 : at + 8 + length], at + 12 + length
        if kind == b"IHDR":
            width, channels = int.from_bytes(body[:4], "big"), {2: 3, 6: 4}[body[9]]
        elif kind == b"IDAT":
            packed += body
    raw, stride, before = zlib.decompress(packed), width * channels, bytes(width * channels)
    found = set()
    for start in range(0, len(raw), stride + 1):
        before = _unfiltered(raw[start], raw[start + 1 : start + 1 + stride], before, channels)
        found |= set(zip(*(before[i::channels] for i in range(3)), strict=True))
    return found


def _unfiltered(kind: int, line: bytes, above: bytes, step: int) -> bytes:
    out = bytearray(line)
    for i in range(len(out)):
        left = out[i - step] if i >= step else 0
        corner = above[i - step] if i >= step else 0
        guess = left + above[i] - corner
        paeth = min((left, above[i], corner), key=lambda one: abs(guess - one))
        out[i] = (out[i] + (0, left, above[i], (left + above[i]) // 2, paeth)[kind]) & 255
    return bytes(out)


def test_the_ledgers_usage_is_priced_month_by_month(run, ledger) -> None:
    folder = str(ledger.folder)
    document = run("estimate", "pay-as-you-go", "--ledger", folder, "--by", "month", "--json").document
    totals = {(e["customer"], e["period"]): e["total"] for e in document["estimates"]}
    assert totals == {
        ("cus_accepted", "2023-11"): "0.04",
        ("cus_doubt", "2023-11"): "0.04",
        ("cus_pending", "2023-11"): "0.04",
    }, "what Stripe refused for good is not billed"
    days = run("estimate", "pay-as-you-go", "--ledger", folder, "--by", "day", "--json").document
    assert {e["period"] for e in days["estimates"]} == {"2023-11-14"}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--usage", "x.csv", "--by", "month"], "--by is for the ledger's own usage"),
        (["--by", "year"], "--by year must be month or day"),
    ],
)
def test_periods_that_cannot_be_told_apart_are_refused(run, ledger, argv, sentence) -> None:
    place = [] if "--usage" in argv else ["--ledger", str(ledger.folder)]
    ran = run("estimate", "pay-as-you-go", *argv, *place)
    assert ran.code == 2
    assert sentence in ran.err
