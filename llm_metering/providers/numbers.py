"""The arithmetic that takes a provider's overlapping numbers apart into disjoint leaves.

Each number names a slot (what it is, once, however it is spelled) and what it does to the leaves of `Usage`:
`prompt_tokens` adds to `input`, and `cached_tokens`, which it includes, adds to `cached_input` and takes from
`input`. The tables of names are in `dialects.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from .._values import dataclass, maker
from ..fields import Path, dig, fields, first, get, items
from ..usage import LEAVES, MAX_TOKENS, Usage


@dataclass(frozen=True, slots=True)
class Number:
    """One number of a usage object."""

    slot: str
    """What it is. Two names of one slot are two spellings; the first that is there counts."""
    adds: str
    """The leaf that it adds to."""
    moves: tuple[tuple[str, int], ...] = ()
    """Leaves that it is taken from, because their numbers include it (-1), or given back to (1)."""
    needed: bool = False
    """Whether null is a fault rather than "not said"."""
    weak: bool = False
    """Whether it counts only where no other name of its slot is there."""


@dataclass(frozen=True, slots=True)
class ByModality:
    """A list of `{modality, tokenCount}`, one number for each kind of content."""

    numbers: Mapping[str, Number]


@dataclass(frozen=True, slots=True)
class Summed:
    """A list of objects whose numbers of one name add up."""

    numbers: tuple[tuple[Path, Number], ...]
    """Where each number stands in an item, and what it is."""
    kind: str | None = None
    """Only items of this `type` count; None for all."""


Names = Mapping[str, "Number | ByModality | Summed | Names"]
Found = dict[str, tuple[int, Number]]
"""Counts by slot."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one family of providers spells its usage."""

    keys: tuple[str, ...]
    """Any of these in a usage object says that it is this dialect."""
    names: Names
    total: str | None = None
    """Its sum, which shows whether the completion holds the reasoning, and what was left unsaid."""
    beyond: str | None = None
    """The leaf of what the sum holds beyond all that was reported by name, such as hidden reasoning."""
    plans: Plans = field(default_factory=dict, init=False, repr=False, compare=False)


class UnbelievableUsage(ValueError):
    """A reported number that cannot be a count of tokens."""


def usage_of(reported: Any, dialect: Dialect) -> Usage:
    """Take reported numbers apart into disjoint leaves; raise `UnbelievableUsage` where they cannot be."""
    present = reported if type(reported) is dict else fields(reported)
    usage = _as_planned(present, dialect) if type(present) is dict else None
    return _as_found(reported, dialect) if usage is None else usage


def _as_found(reported: Any, dialect: Dialect) -> Usage:
    found: Found = {}
    _collect(fields(reported), dialect.names, found)
    leaves: dict[str, int] = {}
    moved: list[tuple[int, Number]] = []
    for entry in found.values():
        count, number = entry
        leaves[number.adds] = leaves.get(number.adds, 0) + count
        if count and number.moves:
            moved.append(entry)
    for count, number in moved:
        for leaf, sign in number.moves:
            # A part of a total that was not reported cannot be taken from it.
            if leaf in leaves:
                leaves[leaf] += sign * count
    if dialect.total is not None:
        _as_the_total_shows(leaves, found, get(reported, dialect.total), dialect.beyond)
    for name, count in leaves.items():
        if not 0 <= count <= MAX_TOKENS:
            raise UnbelievableUsage(_why(name, count))
    return Usage(**leaves)


# Keys of usage objects are the same from answer to answer, so which of them count is worked out once.


class Part(NamedTuple):
    """One number where it stands: in which object, under which name, and what it does to which leaves."""

    place: int
    name: str
    leaf: int
    moves: tuple[tuple[int, int], ...]


Keys = tuple[str, ...]
Plans = dict[Keys, "tuple[Keys, dict[tuple[Keys, ...], tuple[Part, ...] | None]]"]
"""By an object's own keys: which of its fields are objects whose numbers count, and by their keys: how all of
it is read, None where only `_as_found` can tell."""

_MOST_PLANS = 256
_MOST_CHARS = 2000
_INDEX = {leaf: index for index, leaf in enumerate(LEAVES)}
_OF_THE_TOTAL_NAMES = ("input", "output", "reasoning")
_OF_THE_TOTAL = _INPUT, _OUTPUT, _REASONING = tuple(_INDEX[leaf] for leaf in _OF_THE_TOTAL_NAMES)


def _as_planned(reported: dict[str, Any], dialect: Dialect) -> Usage | None:
    """As `_as_found`, in a third of the time, for what providers nearly always send.

    None for all else: a value that is no plain count, a count under two names, a list of modalities.
    """
    objects, parts = _plan_of(reported, dialect)
    if parts is None:
        return None
    counts = [objects[part.place][part.name] for part in parts]
    for count in counts:
        if type(count) is not int or not 0 <= count <= MAX_TOKENS:
            return None
    total = None if dialect.total is None else reported.get(dialect.total)
    return arithmetic(parts, dialect.beyond)(counts, total)


def parts_of(reported: Any, dialect: Dialect) -> tuple[list[tuple[str, ...]], tuple[Part, ...]] | None:
    """Where each number of a usage object stands, and what it does; None where only its values can tell."""
    if type(reported) is not dict:
        return None
    nested = [name for name in reported if isinstance(dialect.names.get(name), Mapping)]
    _, parts = _plan_of(reported, dialect)
    if parts is None:
        return None
    return [(p.name,) if p.place == 0 else (nested[p.place - 1], p.name) for p in parts], parts


_usage = maker(Usage)
Arithmetic = Callable[[Sequence[int], Any], "Usage | None"]


@lru_cache(maxsize=_MOST_PLANS)
def arithmetic(parts: tuple[Part, ...], beyond: str | None = None) -> Arithmetic:
    """What takes numbers apart into leaves, given one number from 0 to 2**63-1 for each part, and the total.

    It gives None where too much is taken from a leaf, or the total shows what only `_as_found` sees to. Most
    answers come this way, so it is written out as one function: for a prompt and what of it was cached,
    `return usage(n0 - n1, n1, None, …)`.
    """
    sums: dict[int, list[str]] = {}
    for number, part in enumerate(parts):
        sums.setdefault(part.leaf, []).append(f"+ n{number}")
    prompt, completion, thought = (" ".join(sums.get(leaf, ["+ 0"])) for leaf in _OF_THE_TOTAL)
    for number, part in enumerate(parts):
        for leaf, sign in part.moves:
            # A part of a total that was not reported cannot be taken from it.
            if leaf in sums:
                sums[leaf].append(f"{'+' if sign > 0 else '-'} n{number}")
    lines = [f"[{', '.join(f'n{number}' for number in range(len(parts)))}] = numbers"]
    lines += [f"leaf{leaf} = {' '.join(terms)}" for leaf, terms in sums.items()]
    if _OUTPUT in sums and _REASONING not in sums:
        if beyond is not None and _INPUT in sums:
            lines.append(f"if type(total) is int and total > {prompt} {completion}: return None")
    elif _OUTPUT in sums and all(part.moves for part in parts if part.leaf == _REASONING):
        lines.append(
            f"if ({thought}) and total == {prompt} {completion} {thought}: leaf{_OUTPUT} += {thought}"
        )
    elif _OUTPUT in sums:
        lines.append(f"if ({thought}) and total == {prompt} {completion}: return None")
    # The others are what they were, and so need no check by `Usage` either.
    several = [f"0 <= leaf{leaf} <= {MAX_TOKENS}" for leaf, terms in sums.items() if len(terms) > 1]
    if several:
        lines.append(f"if not ({' and '.join(several)}): return None")
    values = ", ".join(f"leaf{index}" if index in sums else "None" for index in range(len(LEAVES)))
    lines.append(f"return usage({values})")
    made: dict[str, Any] = {"usage": _usage}
    exec("def apart(numbers, total):\n " + "\n ".join(lines), made)  # noqa: S102  (made of our own names)
    apart: Arithmetic = made["apart"]
    return apart


def _plan_of(reported: dict[str, Any], dialect: Dialect) -> tuple[list[Any], tuple[Part, ...] | None]:
    """The objects that hold numbers, the usage object first, and how they are read."""
    keys = tuple(reported)
    known = dialect.plans.get(keys)
    if known is None:
        known = tuple(k for k in keys if isinstance(dialect.names.get(k), Mapping)), {}
        _keep(dialect.plans, keys, keys, known)
    nested, by_keys = known
    objects: list[Any] = [reported]
    for name in nested:
        value = reported[name]
        if type(value) is not dict:
            value = fields(value)  # of an SDK's object; of nothing, none
        # A part that is null was not said.
        objects.append({k: v for k, v in value.items() if v is not None})
    inner = tuple(map(tuple, objects))
    if inner in by_keys:
        return objects, by_keys[inner]
    parts = _parts(inner, nested, dialect.names)
    _keep(by_keys, inner, chain.from_iterable(inner), parts)
    return objects, parts


def _keep(plans: dict[Any, Any], key: Any, names: Iterable[Any], plan: Any) -> None:
    """Remember a plan, but not for names that no provider would think of."""
    if sum(len(name) if type(name) is str else _MOST_CHARS for name in names) < _MOST_CHARS:
        if len(plans) >= _MOST_PLANS:
            plans.clear()
        plans[key] = plan


def _parts(keys: tuple[Keys, ...], nested: Keys, names: Names) -> tuple[Part, ...] | None:
    parts: dict[str, Part] = {}
    for place, present in enumerate(keys):
        rules = names if place == 0 else names[nested[place - 1]]
        for name in present:
            rule = rules.get(name) if isinstance(rules, Mapping) else None
            if rule is None or (place == 0 and name in nested):
                continue
            if type(rule) is not Number or rule.weak or rule.slot in parts:
                return None
            moves = tuple((_INDEX[leaf], sign) for leaf, sign in rule.moves)
            parts[rule.slot] = Part(place, name, _INDEX[rule.adds], moves)
    return tuple(parts.values())


def _collect(present: Mapping[str, Any], names: Names, found: Found) -> None:
    for name, value in present.items():
        rule = names.get(name)
        if rule is None:
            continue
        if type(rule) is Number:
            if type(value) is int and 0 <= value <= MAX_TOKENS and rule.slot not in found:
                found[rule.slot] = value, rule
            else:
                _note(name, value, rule, found)
        elif isinstance(rule, ByModality):
            for part in items(value):
                if (number := rule.numbers.get(_modality(part))) is not None:
                    _note(name, first(part, _COUNTS), number, found, add=True)
        elif isinstance(rule, Summed):
            for part in items(value):
                if rule.kind is not None and get(part, "type") != rule.kind:
                    continue
                for path, number in rule.numbers:
                    _note(path[-1], dig(part, path), number, found, add=True)
        elif value is not None and isinstance(rule, Mapping):
            _collect(fields(value), rule, found)


def _note(name: str, value: Any, number: Number, found: Found, add: bool = False) -> None:
    if value is None:
        if number.needed:
            raise UnbelievableUsage(f"{name} is null")
        return
    if type(value) is not int:
        raise UnbelievableUsage(f"{name} is {_shown(value)}, not a whole number")
    if not 0 <= value <= MAX_TOKENS:
        raise UnbelievableUsage(f"{name} is {'negative' if value < 0 else 'above 2**63-1'}")
    before = found.get(number.slot)
    if before is None or (before[1].weak and not number.weak):
        found[number.slot] = value, number
    elif add:
        found[number.slot] = before[0] + value, number


def _modality(part: Any) -> str:
    kind = get(part, "modality")
    return MODALITIES.get(str(getattr(kind, "value", kind)), "")


def _as_the_total_shows(leaves: dict[str, int], found: Found, total: Any, beyond: str | None) -> None:
    """Put right what the parts alone do not show, where the provider's total does."""
    prompt, completion, thought = (
        sum(count for count, number in found.values() if number.adds == leaf) for leaf in _OF_THE_TOTAL_NAMES
    )
    if type(total) is not int or "output" not in leaves:
        return
    if "reasoning" not in found:
        if beyond is not None and beyond not in leaves and "input" in leaves and total > sum(leaves.values()):
            # Gemini behind OpenAI's shape does not say that it thought, Mistral not how long it listened.
            leaves[beyond] = total - sum(leaves.values())
    elif not found["reasoning"][1].moves:
        if total == prompt + completion and 0 < thought <= completion:
            leaves["output"] -= thought  # Gemini's previews counted thoughts among the candidates
    elif total == prompt + completion + thought:
        leaves["output"] += thought  # xAI, and Gemini behind OpenAI's shape: it never held the reasoning
    elif total == prompt + completion and leaves["output"] < 0:
        # OpenRouter counts reasoning by another tokenizer: it cannot be more than was billed.
        leaves["reasoning"] += leaves["output"]
        leaves["output"] = 0


def _why(leaf: str, count: int) -> str:
    if count < 0:
        return f"the parts of {leaf} add up to more than their total (by {-count})"
    return f"{leaf} is above 2**63-1"


def _shown(value: Any) -> str:
    if isinstance(value, (str, float, bool)):
        return repr(value)[:40]
    return f"a {type(value).__name__}"


_COUNTS = (("tokenCount",), ("token_count",), ("tokens",))
"""What the number of a modality is called: Gemini and Vertex, their SDKs, Interactions."""

MODALITIES = {
    "AUDIO": "audio", "IMAGE": "image", "audio": "audio", "image": "image",
    "2": "image", "4": "audio",  # Vertex, as protobuf numbers
}  # fmt: skip
