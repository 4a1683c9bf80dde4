"""The packed vocabularies are the published ones, loaded once, offline."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import tiktoken.load
from llm_metering.counting import ENCODINGS, count_text, is_loaded, load, vocabulary

PUBLISHED = {
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "p50k_base": "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
}
R50K = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_packed_ranks_are_the_published_file(name: str) -> None:
    assert vocabulary.published_sha256(vocabulary.ranks(name)) == PUBLISHED[name]


def test_r50k_is_the_beginning_of_p50k() -> None:
    recipe = vocabulary.RECIPES["r50k_base"]
    assert recipe.below is not None
    below = {token: rank for token, rank in vocabulary.ranks(recipe.ranks).items() if rank < recipe.below}
    assert vocabulary.published_sha256(below) == R50K


def test_recipes_are_those_of_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiktoken_ext import openai_public

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *a, **k: {})
    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", lambda *a, **k: {})
    assert set(ENCODINGS) == set(openai_public.ENCODING_CONSTRUCTORS)
    for name, construct in openai_public.ENCODING_CONSTRUCTORS.items():
        theirs: dict[str, Any] = construct()
        ours = vocabulary.RECIPES[name]
        assert theirs["pat_str"] == ours.pattern
        assert theirs["special_tokens"] == dict(ours.special)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("o200k_base", [24912, 2375]),
        ("cl100k_base", [15339, 1917]),
        ("p50k_base", [31373, 995]),
        ("r50k_base", [31373, 995]),
        ("gpt2", [31373, 995]),
    ],
)
def test_hello_world_has_the_published_tokens(name: str, tokens: list[int]) -> None:
    assert vocabulary.encoding(name).encode_ordinary("hello world") == tokens


@pytest.mark.parametrize("name", ENCODINGS)
def test_special_tokens_do_not_change_how_text_is_counted(name: str) -> None:
    text = "Zażółć gęślą jaźń, 世界! <|endoftext|> 12345\n\n  def f(x): return x\t😀"
    own = vocabulary.encoding(name)
    shared = vocabulary.encoding(vocabulary.counts_as(name))
    assert own.encode_ordinary(text) == shared.encode_ordinary(text)
    assert own.n_vocab > len(vocabulary.RECIPES[name].special)


def test_nothing_is_ever_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> bytes:
        raise AssertionError("tiktoken tried to read a file of its own")

    monkeypatch.setattr(tiktoken.load, "read_file", refuse)
    monkeypatch.setattr(vocabulary, "_loaded", {})
    assert count_text("hello world", model="gpt-4") == 2


def test_threads_that_ask_together_wait_for_one_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    begin = threading.Barrier(8)

    def build(name: str, recipe: Any) -> Any:
        built.append(name)
        time.sleep(0.05)
        return object()

    monkeypatch.setattr(vocabulary, "_loaded", {})
    monkeypatch.setattr(vocabulary, "_build", build)
    seen: list[Any] = []

    def ask() -> None:
        begin.wait()
        seen.append(vocabulary.encoding("o200k_base"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == ["o200k_base"]
    assert len(set(map(id, seen))) == 1


def test_loading_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_loaded", {})
    assert not is_loaded("r50k_base")
    load("gpt2")
    assert is_loaded("r50k_base")
    assert is_loaded("gpt2")
    with pytest.raises(KeyError):
        load("unheard_of")


def test_importing_loads_neither_tiktoken_nor_an_sdk() -> None:
    program = (
        "import sys, llm_metering.counting, llm_metering.providers; "
        "heavy = {'tiktoken', 'openai', 'anthropic', 'pydantic', 'stripe', 'asyncio', 'lzma', 'ssl'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
