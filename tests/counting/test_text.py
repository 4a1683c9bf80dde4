"""Counting a text: exact, safe on hostile input, quick on repeated ones."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_metering.counting import count_text, vocabulary
from llm_metering.counting import text as text_module
from llm_metering.counting.text import count_in


@pytest.mark.parametrize(
    ("text", "model", "tokens"),
    [
        ("", "gpt-4o", 0),
        ("hello world", "gpt-4o", 2),
        ("hello world", "gpt-4", 2),
        ("antidisestablishmentarianism", "gpt-4o", 6),
        ("お誕生日おめでとう", "gpt-4", 9),
        ("お誕生日おめでとう", "gpt-4o", 8),
        ("2 + 2 = 4", "gpt-4", 7),
        ("2 + 2 = 4", "davinci", 5),
    ],
)
def test_counts_are_the_published_ones(text: str, model: str, tokens: int) -> None:
    assert count_text(text, model=model) == tokens


def test_the_model_may_be_left_out() -> None:
    assert count_text("hello world") == 2


def test_special_tokens_in_text_are_plain_characters() -> None:
    assert count_text("<|endoftext|>", model="gpt-4o") > 1
    assert count_text("<|im_start|>user<|im_sep|>", model="gpt-4") > 1


def test_lone_surrogates_are_counted() -> None:
    assert count_text("a\ud800b\udfff", model="gpt-4o") > 0
    assert count_text("\ud83d\ude00", model="gpt-4o") == count_text("😀", model="gpt-4o")


@pytest.mark.parametrize("name", ["o200k_base", "cl100k_base", "p50k_base"])
@pytest.mark.parametrize("blank", [" ", "\t", "\u3000", "\n", " \n"])
def test_a_million_blanks_are_counted_in_a_moment(name: str, blank: str) -> None:
    began = time.perf_counter()
    tokens = count_in(name, blank * 1_100_000)
    assert 0 < tokens <= 3_400_000
    assert time.perf_counter() - began < 10


def test_cutting_long_runs_of_blanks_costs_a_few_tokens_at_most() -> None:
    encoding = vocabulary.encoding("o200k_base")
    text = "word" + " " * 900_000 + "word"
    exact = len(encoding.encode_ordinary(text))
    assert abs(count_in("o200k_base", text) - exact) <= 10


@pytest.mark.parametrize(
    "text", ["a" * 1_000_000, "ab" * 500_000, "é" * 300_000, "1" * 500_000, "!" * 500_000]
)
def test_a_megabyte_without_a_space_is_counted_in_a_moment(text: str) -> None:
    began = time.perf_counter()
    assert count_text(text, model="gpt-4o") > 0
    assert time.perf_counter() - began < 10


def test_a_repeated_text_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "You are a helpful assistant. " * 30
    first = count_text(text, model="gpt-4o")
    monkeypatch.setattr(vocabulary, "_loaded", {})
    monkeypatch.setattr(vocabulary, "_build", lambda *a: pytest.fail("counted again"))
    assert count_text(text, model="gpt-4o") == first


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_the_tokens_that_tiktoken_makes(text: str) -> None:
    for name in ("o200k_base", "cl100k_base"):
        assert count_in(name, text) == len(vocabulary.encoding(name).encode_ordinary(text))


PARTS = (
    "word",
    "Word's",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\n\n",
    "\t",
    "1234",
    ".",
    "…",
    "don't",
    "日本",
    "é",
    "/",
    "a",
    "'s",
    "🙂",
)


@pytest.mark.parametrize("name", ["o200k_base", "cl100k_base", "p50k_base", "r50k_base"])
@pytest.mark.parametrize("piece", [1, 7, 64])
def test_a_long_text_is_counted_in_pieces_that_add_up(
    name: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer that counts a megabyte in one go lets no other thread run for 5 to 8 ms."""
    monkeypatch.setattr(text_module, "_PIECE", piece)
    whole = vocabulary.encoding(name).encode_ordinary
    choose = random.Random(piece)
    for _ in range(300):
        text = "".join(choose.choices(PARTS, k=choose.randint(1, 80)))
        assert text_module._count(name, text) == len(whole(text)), text


def test_no_piece_of_ordinary_text_is_long() -> None:
    text = "He said: nothing, and that was it.\n" * 40_000
    assert max(map(len, text_module._pieces(text))) < 40_000
