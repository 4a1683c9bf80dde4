"""Answers: made from a seed, remembered, and tallied by what really left."""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request

_WORDS = """
about above after again along always another around back because been before best between both bring call
came change clear close cold come could country course dark day deep different down each early earth east
easy even every fact family far fast few find first five follow food form found four free full good great
green ground group half hand hard head heard help here high home hour house idea keep kind know land
large last late learn leave left letter life light line list little live long look made main make many
mean might mind money more most mother move much music name near need never new next night north note
nothing notice number often old once only open order other over own page paper part people place plain
plan plant play point power problem question quick rain reach read ready real red rest right river road
rock room round rule same school sea second sentence set ship short should show side simple since sing
sleep slow small snow some song soon sound south space stand star start state step still stop story
street strong study such sun sure table take talk tell ten that then there thing think those thought
three through time town travel tree true turn under until upon usual very voice wait walk want warm watch
water way week well west wheel where which while white whole wind window winter wood word work world
would year young
"""
_SMALL_WORDS = "a the of to and in is it on at by be as we he so no up do go if an or my me us"
SMALL_WORDS = tuple(_SMALL_WORDS.split())
WORDS = (*SMALL_WORDS, *_WORDS.split())
"""Each is one token in o200k_base and cl100k_base, with a space in front and without."""


@dataclass
class Answer:
    """One answer: its words, its token counts, and how much of it has left."""

    id: str
    api: str
    model: str
    customer: str | None
    stream: bool
    words: list[str]
    input_tokens: int
    cached_tokens: int = 0
    written_tokens: int = 0
    reasoning_tokens: int = 0
    cut_short: bool = False
    """Whether `max_tokens` ended it."""
    state: Literal["sending", "whole", "cut"] = "sending"
    words_sent: int = 0
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def output_tokens(self) -> int:
        return len(self.words) + self.reasoning_tokens

    def by_type(self) -> dict[str, int]:
        """Disjoint counts: what a bill would list."""
        fresh = self.input_tokens - self.cached_tokens - self.written_tokens
        kinds = ("input", "cached_input", "cached_write", "output")
        counts = (fresh, self.cached_tokens, self.written_tokens, self.output_tokens)
        return {kind: count for kind, count in zip(kinds, counts, strict=True) if count}

    def as_row(self) -> dict[str, Any]:
        names = ("id", "api", "model", "customer", "stream", "state", "words_sent", "reasoning_tokens")
        return {**{name: getattr(self, name) for name in names}, "tokens": self.by_type()}


class Provider:
    """Makes answers and remembers them."""

    def __init__(self, *, seed: int = 0, delay_s: float = 0.0) -> None:
        self.seed = seed
        self.delay_s = delay_s
        self.answers: list[Answer] = []

    def answer(self, api: str, prefix: str, request: Request, body: dict[str, Any], prompt: Any) -> Answer:
        luck = self._luck(api, body)
        model = str(body.get("model") or "gpt-4o-mini")
        length = 0 if api == "embeddings" else luck.randint(12, 60)
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or body.get("max_output_tokens")
        input_tokens = prompt_tokens(prompt)
        answer = Answer(
            id=f"{prefix}{self.seed:04d}{len(self.answers):08d}",
            api=api,
            model=model,
            customer=customer_of(request, body),
            stream=bool(body.get("stream")),
            words=[_word(luck) for _ in range(min(length, limit or length))],
            input_tokens=input_tokens,
            # As OpenAI does it: from 1024 tokens on, in steps of 128.
            cached_tokens=0 if input_tokens < 1024 or api == "embeddings" else input_tokens // 2 // 128 * 128,
            reasoning_tokens=64 * luck.randint(0, 3) if length and thinks(model) else 0,
            cut_short=bool(limit) and limit < length,
        )
        self.answers.append(answer)
        return answer

    def tally(self) -> dict[str, Any]:
        sums: Counter[tuple[str, str, str]] = Counter()
        for answer in self.answers:
            if answer.state == "whole":
                for kind, tokens in answer.by_type().items():
                    sums[answer.customer or "", answer.model, kind] += tokens
        return {
            "seed": self.seed,
            "sums": [
                {"customer": customer or None, "model": model, "token_type": kind, "tokens": tokens}
                for (customer, model, kind), tokens in sorted(sums.items())
            ],
            "answers": [answer.as_row() for answer in self.answers],
        }

    def _luck(self, api: str, body: dict[str, Any]) -> random.Random:
        what = json.dumps([self.seed, api, {**body, "stream_options": None, "user": None}], sort_keys=True)
        return random.Random(hashlib.sha256(what.encode()).digest())


def _word(luck: random.Random) -> str:
    return luck.choice(SMALL_WORDS if luck.random() < 0.45 else WORDS)  # about as in any text


def customer_of(request: Request, body: dict[str, Any]) -> str | None:
    """The caller's own name for its user: a header, or the field that each API has for it."""
    named = request.headers.get("x-end-user") or body.get("user") or body.get("safety_identifier")
    return named or (body.get("metadata") or {}).get("user_id")


def thinks(model: str) -> bool:
    return model.startswith(("gpt-5", "o1", "o3", "o4"))


def prompt_tokens(prompt: Any) -> int:
    """The chat rule: 3 a message, its role, its words, and 3 for the answer's start."""
    parts = _flat(prompt)
    messages = [part for part in parts if isinstance(part, dict) and "role" in part]
    loose = [part for part in parts if part not in messages]
    framing = 4 * len(messages) if messages else 4
    return 3 + framing + sum(words_in(m.get("content")) for m in messages) + words_in(loose)


def words_in(content: Any) -> int:
    """One token for each plain word and each mark, as tokenizers have it, too."""
    if isinstance(content, str):
        return len(re.findall(r"\w+|[^\w\s]", content))
    if isinstance(content, list):
        return sum(words_in(part) for part in content)
    return words_in(content.get("text")) if isinstance(content, dict) else 0


def _flat(prompt: Any) -> list[Any]:
    return [p for part in prompt for p in _flat(part)] if isinstance(prompt, list) else [prompt]
