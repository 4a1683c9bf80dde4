"""Meters: which tokens of a record count for which Stripe meter, under which dimensions, at what weight.

A `TokenMeter` says it, `lines_of` does it: UsageRecord in, `Line`s out. Called for every record, so what a
meter makes of one (model, dimensions) is worked out once and kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from decimal import Context, Decimal, InvalidOperation
from functools import lru_cache, partial
from operator import attrgetter
from typing import Literal

from ._values import dataclass, maker
from .errors import ConfigurationError
from .usage import LEAVES, TOKEN_TYPES, Line, Usage, UsageRecord

ALL: tuple[str, ...] = tuple(dict.fromkeys(TOKEN_TYPES.values()))
"""Every token type, so every token: input, cached_input, cached_write, output."""

DIMENSIONS: tuple[str, ...] = ("model", "token_type")
UNKNOWN = "unknown"
"""What a dimension says where the record does not; Stripe refuses an event that lacks one."""

Weight = Decimal | str | int
Weights = Mapping[str, Weight] | Mapping[tuple[str, str], Weight] | Mapping[str | tuple[str, str], Weight]


@dataclass(frozen=True, slots=True)
class TokenMeter:
    """Which tokens a Stripe meter receives, and under which payload keys.

    The default takes every token, with the model and the token type beside it:

        TokenMeter()
        TokenMeter("output_tokens", types=("output",))
        TokenMeter("credits", dimensions=(), weights={"input": "1", "cached_input": "0.1",
                                                     "cached_write": "1.25", "output": "4"})

    On a Stripe account without the dimension preview, payload keys beside customer and value are kept by
    Stripe but cannot be billed: prices that differ by kind of token need one meter a kind.

    A `sum` meter adds tokens up; a `count` meter counts calls (value 1 a call, no `token_type`, no
    weights); a `last` meter reports each call's tokens and Stripe keeps the latest.

    Args:
        event_name: The Stripe meter's event name, at most 100 characters.
        dimensions: Payload keys beside customer and value: model, token_type, provider, provenance, or any
            name given to `bind`, `bound`, `wrap` or `record`. Where a record lacks one it says "unknown".
        types: The token types this meter takes (input, cached_input, cached_write, output; each with its
            audio and image kinds, output with reasoning), or single leaves of `Usage` such as "reasoning"
            or "input_audio".
        weights: Turns tokens into credits: a number for each token type or leaf, or for (model pattern,
            token type or leaf). The first model pattern that fits wins over the general weight, and a
            leaf's weight over its type's. Every token the meter takes needs one. At most 12 decimal
            places; text or Decimal, never a float.
        customer_key: The payload key that names the customer, as the Stripe meter has it.
        value_key: The payload key that holds the value, as the Stripe meter has it.
        models: Patterns of the models this meter takes, such as ("gpt-5*",); "!gpt-5*" leaves some out.
            Default: all.
        aggregation: As the Stripe meter has it: sum, count or last.
        overlaps: Say True to let this meter take tokens that another meter takes too. Otherwise two
            meters that would bill the same tokens are refused.

    Raises:
        ConfigurationError: Something cannot work; the message says what to change.
    """

    event_name: str = "hypernian_tokens"
    dimensions: Sequence[str] = DIMENSIONS
    types: Sequence[str] = ALL
    weights: Weights | None = None
    customer_key: str = "stripe_customer_id"
    value_key: str = "value"
    models: Sequence[str] | None = None
    aggregation: Literal["sum", "count", "last"] = "sum"
    overlaps: bool = False
    _plans: dict[tuple[str | None, ...], Plan] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _extra: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)
    """The dimensions that are not told by the record itself."""

    def __post_init__(self) -> None:
        _check_names(self)
        dimensions = _words(self, "dimensions", self.dimensions)
        if self.aggregation == "count" and dimensions == DIMENSIONS:
            dimensions = ("model",)
        _check_dimensions(self, dimensions)
        types = _words(self, "types", self.types)
        _check_types(self, types)
        weights = None if self.weights is None else _checked_weights(self, self.weights, types)
        models = None if self.models is None else _words(self, "models", self.models)
        _check_models(self, models)
        for name, value in (
            ("dimensions", dimensions),
            ("types", types),
            ("weights", weights),
            ("models", models),
            ("_extra", tuple(n for n in dimensions if n not in _OF_THE_RECORD)),
        ):
            object.__setattr__(self, name, value)

    def __hash__(self) -> int:
        return hash((self.event_name, self.dimensions, self.types, self.models, self.aggregation))

    def lines(self, record: UsageRecord) -> tuple[Line, ...]:
        """What `record` adds to this meter."""
        key: tuple[str | None, ...] = (record.model, record.provider, record.provenance)
        if self._extra:
            key += tuple([record.dimensions.get(name) for name in self._extra])
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[key] = _plan(self, record)
        return plan(record.usage)


def checked_meters(meters: Sequence[TokenMeter] | None) -> tuple[TokenMeter, ...]:
    """The meters as a tuple, one default meter where none are given.

    Raises:
        ConfigurationError: Two have one event name, or would bill the same tokens without saying so.
    """
    chosen = (TokenMeter(),) if meters is None else tuple(meters)
    for i, one in enumerate(chosen):
        for other in chosen[:i]:
            if one.event_name == other.event_name:
                raise ConfigurationError(
                    f"two meters are named {one.event_name!r}; Stripe has one meter an event name, so give "
                    "them different names or make them one"
                )
            if both := _both_bill(one, other):
                raise ConfigurationError(
                    f"the meters {other.event_name!r} and {one.event_name!r} would both bill {both} tokens; "
                    "give them different types or models, or overlaps=True on one if that is meant"
                )
    return chosen


def lines_of(record: UsageRecord, meters: Iterable[TokenMeter]) -> tuple[Line, ...]:
    """What one record adds to each meter. A count of 0, or a weight of 0, adds no line."""
    lines: tuple[Line, ...] = ()
    for meter in meters:
        lines += meter.lines(record)
    return lines


def liner(meters: Sequence[TokenMeter]) -> Callable[[UsageRecord], tuple[Line, ...]]:
    """`lines_of` for these meters."""
    return meters[0].lines if len(meters) == 1 else partial(lines_of, meters=meters)


Plan = Callable[[Usage], tuple[Line, ...]]
"""What one meter makes of the usage of one model and set of dimensions."""

_MAX_PLANS = 4096
_OF_THE_RECORD = frozenset(("model", "provider", "provenance", "token_type"))
_EXACT = Context(prec=100)
"""Wide enough for 2**63 tokens at any weight allowed; the caller's decimal context is never used."""
_every_leaf = attrgetter(*LEAVES)
_new_line = maker(Line)


def _plan(meter: TokenMeter, record: UsageRecord) -> Plan:
    model = record.model or UNKNOWN
    if not _takes_model(meter.models, model):
        return _no_lines
    fixed = {name: _clean(_dimension(record, name)) for name in meter.dimensions if name != "token_type"}
    groups: dict[tuple[tuple[str, str], ...], list[tuple[int, Decimal | None]]] = {}
    for index, leaf in enumerate(LEAVES):
        if not _takes_leaf(meter.types, leaf):
            continue
        dimensions = dict(fixed)
        if "token_type" in meter.dimensions:
            dimensions["token_type"] = TOKEN_TYPES[leaf]
        weight = None if meter.weights is None else _weight(meter, model, leaf)
        groups.setdefault(tuple(sorted(dimensions.items())), []).append((index, weight))
    return _summing(meter, [(d, tuple(parts)) for d, parts in groups.items()])


def _summing(
    meter: TokenMeter,
    groups: list[tuple[tuple[tuple[str, str], ...], tuple[tuple[int, Decimal | None], ...]]],
) -> Plan:
    if meter.weights is None and meter.aggregation != "count":
        return _adding(meter, groups)
    name, customer_key, value_key = meter.event_name, meter.customer_key, meter.value_key
    aggregation = meter.aggregation

    def lines(usage: Usage) -> tuple[Line, ...]:
        counts = _every_leaf(usage)
        found = []
        for dimensions, parts in groups:
            value: Decimal | int = 0
            for index, weight in parts:
                if count := counts[index]:
                    if weight is None:
                        value += count
                    else:
                        value = _EXACT.add(value, _EXACT.multiply(count, weight))
            if value:
                if aggregation == "count":
                    value = 1
                found.append(Line(name, value, dimensions, customer_key, value_key, aggregation))
        return tuple(found)

    return lines


def _adding(
    meter: TokenMeter,
    groups: list[tuple[tuple[tuple[str, str], ...], tuple[tuple[int, Decimal | None], ...]]],
) -> Plan:
    """As `_summing`, for plain tokens: most meters, and so most records, come this way."""
    name, customer_key, value_key = meter.event_name, meter.customer_key, meter.value_key
    aggregation = meter.aggregation
    every_dimensions = tuple(dimensions for dimensions, _ in groups)
    place = {index: number for number, (_, parts) in enumerate(groups) for index, _ in parts}
    # What the meter does not take is added up in a place of its own.
    places = tuple(place.get(index, len(groups)) for index in range(len(LEAVES)))
    zeros = (0,) * (len(groups) + 1)

    def lines(usage: Usage) -> tuple[Line, ...]:
        sums = [*zeros]
        for count, number in zip(_every_leaf(usage), places):  # noqa: B905  (of one length; strict costs)
            if count:
                sums[number] += count
        return tuple(
            [
                _new_line(name, value, dimensions, customer_key, value_key, aggregation)
                for dimensions, value in zip(every_dimensions, sums)  # noqa: B905  (the last is left out)
                if value
            ]
        )

    return lines


def _no_lines(_: Usage) -> tuple[Line, ...]:
    return ()


def _takes_leaf(types: Sequence[str], leaf: str) -> bool:
    return leaf in types or TOKEN_TYPES[leaf] in types


def _dimension(record: UsageRecord, name: str) -> str | None:
    if name == "model":
        return record.model
    if name == "provider":
        return record.provider
    if name == "provenance":
        return record.provenance
    return record.dimensions.get(name)


def _clean(value: str | None) -> str:
    """Fit for a payload: at most 100 characters, nothing that breaks a line or cannot be encoded."""
    if value is None:
        return UNKNOWN
    if not value.isprintable():
        value = "".join(c if c.isprintable() else " " for c in value)
    return value.strip()[:_MAX_CHARS].rstrip() or UNKNOWN


# Models.


def _takes_model(patterns: Sequence[str] | None, model: str) -> bool:
    if patterns is None:
        return True
    wanted = [p for p in patterns if not p.startswith("!")]
    if any(_pattern(p[1:]).fullmatch(model) for p in patterns if p.startswith("!")):
        return False
    return not wanted or any(_pattern(p).fullmatch(model) for p in wanted)


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(c) or re.escape(c) for c in text), re.DOTALL)


def _both_bill(one: TokenMeter, other: TokenMeter) -> str | None:
    """A token type that both sum meters would bill for some model; None if there is none, or it is meant."""
    if one.overlaps or other.overlaps or "count" in (one.aggregation, other.aggregation):
        return None
    if not _share_models(one.models, other.models):
        return None
    for leaf in LEAVES:
        if _takes_leaf(one.types, leaf) and _takes_leaf(other.types, leaf):
            return leaf
    return None


def _share_models(one: Sequence[str] | None, other: Sequence[str] | None) -> bool:
    """Whether some model's name may match both; rather yes than no where it is hard to tell."""
    ours, theirs = one or (), other or ()
    wanted = [p for p in ours if not p.startswith("!")] or ["*"]
    others = [p for p in theirs if not p.startswith("!")] or ["*"]
    refused = [p[1:] for p in (*ours, *theirs) if p.startswith("!")]
    return any(
        _intersect(a, b) and not _covered(a, refused) and not _covered(b, refused)
        for a in wanted
        for b in others
    )


def _covered(pattern: str, refused: Sequence[str]) -> bool:
    # A pattern read as a name: "gpt-5*" is covered by "gpt-*", as "*" matches the star too.
    return any("?" not in r and _pattern(r).fullmatch(pattern) for r in refused)


@lru_cache(maxsize=1024)
def _intersect(a: str, b: str) -> bool:
    if not a or not b:
        return not (a or b).strip("*")
    if a[0] == "*":
        return _intersect(a[1:], b) or _intersect(a, b[1:])
    if b[0] == "*":
        return _intersect(b, a)
    return (a[0] == b[0] or "?" in (a[0], b[0])) and _intersect(a[1:], b[1:])


# Weights.


def _weight(meter: TokenMeter, model: str, leaf: str) -> Decimal:
    weights: Mapping[object, Decimal] = meter.weights or {}  # type: ignore[assignment]
    for kind in (leaf, TOKEN_TYPES[leaf]):
        for key, weight in weights.items():
            if isinstance(key, tuple) and key[1] == kind and _pattern(key[0]).fullmatch(model):
                return weight
    return weights[leaf] if leaf in weights else weights[TOKEN_TYPES[leaf]]


def _checked_weights(
    meter: TokenMeter, weights: Weights, types: Sequence[str]
) -> Mapping[str | tuple[str, str], Decimal]:
    if meter.aggregation == "count":
        raise _problem(meter, "a count meter counts calls and takes no weights; leave weights out")
    checked: dict[str | tuple[str, str], Decimal] = {}
    for key, weight in weights.items():
        pattern, kind = key if isinstance(key, tuple) else ("*", key)
        if kind not in _KINDS or not isinstance(pattern, str):
            raise _problem(
                meter, f"weights names {key!r}; a key is one of {', '.join(_KINDS)}, or (model pattern, that)"
            )
        checked[key] = _checked_weight(meter, key, weight)
    general = {k for k in checked if isinstance(k, str)} | {k[1] for k in checked if k[0] == "*"}
    for leaf in LEAVES:
        if _takes_leaf(types, leaf) and leaf not in general and TOKEN_TYPES[leaf] not in general:
            kind = TOKEN_TYPES[leaf] if TOKEN_TYPES[leaf] in types else leaf
            raise _problem(
                meter, f"weights says nothing of {kind}; give it a weight, or leave it out of types"
            )
    return checked


def _checked_weight(meter: TokenMeter, key: object, weight: object) -> Decimal:
    if isinstance(weight, (float, bool)) or not isinstance(weight, (Decimal, str, int)):
        raise _problem(meter, f'the weight of {key!r} must be text or a Decimal, such as "{weight}", not '
                       f"{weight!r}: a float is not exact")  # fmt: skip
    try:
        number = Decimal(weight)
    except InvalidOperation:
        raise _problem(meter, f"the weight of {key!r} is not a number: {weight!r}") from None
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or number < 0:
        raise _problem(meter, f"the weight of {key!r} must be 0 or more, not {weight!r}")
    if exponent < -_MAX_PLACES and number != round(number, _MAX_PLACES):
        raise _problem(meter, f"the weight of {key!r} has more than {_MAX_PLACES} decimal places: {weight!r}")
    if number >= _MAX_WEIGHT:
        raise _problem(meter, f"the weight of {key!r} must be below {_MAX_WEIGHT}, not {weight!r}")
    return number


# Names.

_MAX_CHARS = 100
_MAX_PLACES = 12
_MAX_WEIGHT = 10**15
_KINDS: tuple[str, ...] = tuple(dict.fromkeys((*ALL, *LEAVES)))


def _problem(meter: TokenMeter, text: str) -> ConfigurationError:
    return ConfigurationError(f"TokenMeter({meter.event_name!r}): {text}")


def _check_names(meter: TokenMeter) -> None:
    for name in ("event_name", "customer_key", "value_key"):
        _check_name(meter, name, getattr(meter, name))
    if meter.customer_key == meter.value_key:
        raise _problem(meter, f"customer_key and value_key are both {meter.value_key!r}; they must differ")
    if meter.aggregation not in ("sum", "count", "last"):
        raise _problem(meter, f"aggregation={meter.aggregation!r} must be one of sum, count, last")


def _check_name(meter: TokenMeter, what: str, name: object) -> None:
    if not isinstance(name, str) or not name or name != name.strip() or not name.isprintable():
        raise _problem(meter, f"{what}={name!r} must be text without control characters or outer blanks")
    if len(name) > _MAX_CHARS:
        raise _problem(meter, f"{what}={name[:20]!r}… has {len(name)} characters; Stripe takes {_MAX_CHARS}")


def _words(meter: TokenMeter, what: str, words: Sequence[str]) -> tuple[str, ...]:
    if isinstance(words, str):
        raise _problem(meter, f"{what}={words!r} must be a sequence: write {what}=({words!r},)")
    found = tuple(words)
    for word in found:
        _check_name(meter, f"one of {what}", word)
    if len(set(found)) != len(found):
        raise _problem(meter, f"{what}={found!r} names something twice")
    return found


def _check_dimensions(meter: TokenMeter, dimensions: tuple[str, ...]) -> None:
    for taken in (meter.customer_key, meter.value_key):
        if taken in dimensions:
            raise _problem(meter, f"dimensions names {taken!r}, which is the payload's customer or value key")
    if meter.aggregation == "count" and "token_type" in dimensions:
        raise _problem(meter, "a count meter counts calls, which have no one token_type; leave it out")


def _check_types(meter: TokenMeter, types: tuple[str, ...]) -> None:
    if not types:
        raise _problem(meter, "types is empty, so nothing would be billed; name at least one")
    for kind in types:
        if kind not in _KINDS:
            raise _problem(meter, f"types names {kind!r}; it takes {', '.join(_KINDS)}")


def _check_models(meter: TokenMeter, models: tuple[str, ...] | None) -> None:
    if models is not None and (not models or "!" in models):
        raise _problem(meter, f"models={models!r} names no model; leave it out to take all of them")
