"""tiktoken encodings built from the rank files in this package: nothing is ever downloaded.

Loading takes 0.1 to 0.3 s and holds the interpreter's lock for most of it: load at start, in a thread,
and only what the configured models need.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from threading import Lock, RLock
from types import MappingProxyType
from typing import TYPE_CHECKING

from .._values import dataclass

if TYPE_CHECKING:
    from tiktoken import Encoding


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an encoding is made of a rank file."""

    ranks: str
    """The packed file."""
    pattern: str
    special: Mapping[str, int]
    below: int | None = None
    """Only ranks below this are used."""


def load(name: str) -> None:
    """Load what counting in this encoding needs; `KeyError` for a name that is not in `ENCODINGS`."""
    encoding(counts_as(name))


def is_loaded(name: str) -> bool:
    """Whether counting in this encoding would not have to wait for its tables."""
    return counts_as(name) in _loaded


def counts_as(name: str) -> str:
    """The encoding that splits ordinary text in the same way: it differs in special tokens only, which
    text never holds, and the tables are large."""
    return _SAME_FOR_TEXT.get(name, name)


def encoding(name: str) -> Encoding:
    """The encoding itself, loaded if it is not yet; threads that ask together wait for one loading."""
    found = _loaded.get(name)
    if found is not None:
        return found
    with _locks[name]:
        if name not in _loaded:
            with _building:
                _loaded[name] = _build(name, RECIPES[name])
        return _loaded[name]


def ranks(name: str) -> dict[bytes, int]:
    """The ranks of a packed file by token, in rank order."""
    import lzma
    from importlib import resources

    packed = resources.files(__package__).joinpath("vocab").joinpath(f"{name}.xz").read_bytes()
    raw = lzma.decompress(packed)
    n = int.from_bytes(raw[:4], "little")
    # A length of 0 marks a rank that is not used.
    ends = list(itertools.accumulate(raw[4 : 4 + n], initial=4 + n))
    return {raw[a:b]: rank for rank, (a, b) in enumerate(itertools.pairwise(ends)) if b > a}


def published_sha256(of: Mapping[bytes, int]) -> str:
    """The SHA-256 of the rank file as OpenAI publishes it."""
    import base64
    import hashlib

    digest = hashlib.sha256()
    for token, rank in of.items():
        digest.update(base64.b64encode(token) + b" %d\n" % rank)
    return digest.hexdigest()


def _build(name: str, recipe: Recipe) -> Encoding:
    from tiktoken import Encoding

    mergeable = ranks(recipe.ranks)
    if recipe.below is not None:
        mergeable = {token: rank for token, rank in mergeable.items() if rank < recipe.below}
    return Encoding(
        name=name,
        pat_str=recipe.pattern,
        mergeable_ranks=mergeable,
        special_tokens=dict(recipe.special),
    )


_R50K_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_CL100K_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
_CONTRACTION = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)?"""
_O200K_PATTERN = "|".join(
    (
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+""" + _CONTRACTION,
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*""" + _CONTRACTION,
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    )
)

_END = "<|endoftext|>"
_O200K_SPECIAL = {_END: 199999, "<|endofprompt|>": 200018}
_HARMONY_NAMED = {
    198: "startoftext", 202: "return", 203: "constrain", 205: "channel", 206: "start", 207: "end",
    208: "message", 212: "call",
}  # fmt: skip
_HARMONY_SPECIAL = {
    **{f"<|{_HARMONY_NAMED.get(n - 199800, f'reserved_{n}')}|>": n for n in (199998, *range(200000, 201088))},
    **_O200K_SPECIAL,
}

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "o200k_base": Recipe("o200k_base", _O200K_PATTERN, _O200K_SPECIAL),
        "o200k_harmony": Recipe("o200k_base", _O200K_PATTERN, _HARMONY_SPECIAL),
        "cl100k_base": Recipe(
            "cl100k_base",
            _CL100K_PATTERN,
            {
                _END: 100257,
                "<|fim_prefix|>": 100258,
                "<|fim_middle|>": 100259,
                "<|fim_suffix|>": 100260,
                "<|endofprompt|>": 100276,
            },
        ),
        "p50k_base": Recipe("p50k_base", _R50K_PATTERN, {_END: 50256}),
        "p50k_edit": Recipe(
            "p50k_base",
            _R50K_PATTERN,
            {_END: 50256, "<|fim_prefix|>": 50281, "<|fim_middle|>": 50282, "<|fim_suffix|>": 50283},
        ),
        "r50k_base": Recipe("p50k_base", _R50K_PATTERN, {_END: 50256}, below=50256),
        "gpt2": Recipe("p50k_base", _R50K_PATTERN, {_END: 50256}, below=50256),
    }
)

ENCODINGS: tuple[str, ...] = tuple(RECIPES)
"""The encodings that this package holds."""

_SAME_FOR_TEXT = {"o200k_harmony": "o200k_base", "p50k_edit": "p50k_base", "gpt2": "r50k_base"}

_loaded: dict[str, Encoding] = {}
_locks: dict[str, Lock] = {name: Lock() for name in ENCODINGS}
_building = RLock()
"""Held while tables are built. Building imports modules, and a child that is forked in the middle of an
import waits for ever for its end: so a fork waits instead, about a fifth of a second."""


_MAX_WAIT_S = 5.0
_held: list[bool] = []


def _before_fork() -> None:
    _held.append(_building.acquire(timeout=_MAX_WAIT_S))


def _after_fork_in_parent() -> None:
    if _held.pop():
        _building.release()


def _after_fork_in_child() -> None:
    global _building
    _held.clear()
    _building = RLock()
    _locks.update({name: Lock() for name in ENCODINGS})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
