"""A stream that does not end is billed in parts: what each part adds to those that were billed before. Pure.

A provider tells, and a stream's rows hold, what was used since the stream began. Once a part of that is usage
of its own, only the rest may be added: under an id of its own, kind by kind, and never less than nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

from ..protocols import Entry
from ..usage import Line, Usage
from .lines import LineKey, Value, add, key_of, less

MAX_STREAMS = 4096
"""So many streams are remembered of which a part was billed."""

_MARK = "~part"
K = TypeVar("K")


@dataclass(slots=True)
class Billed:
    """What was billed of one stream."""

    parts: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    values: dict[LineKey, Value] = field(default_factory=dict)

    def add(self, counts: Mapping[str, int], lines: Iterable[tuple[LineKey, Value]]) -> None:
        self.parts += 1
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        for key, value in lines:
            if key.aggregation != "last":  # a reading, which adds nothing up
                self.values[key] = add(self.values.get(key, 0), value)


class Parts:
    """The streams of one process of which parts were billed."""

    def __init__(self) -> None:
        self._billed: dict[str, Billed] = {}

    def __bool__(self) -> bool:
        return bool(self._billed)

    def clear(self) -> None:
        self._billed.clear()

    def name(self, id_: str) -> str:
        """The id under which this stream goes on."""
        billed = self._billed.get(id_)
        return id_ if billed is None else f"{id_}{_MARK}{billed.parts + 1}"

    def cut(self, name: str, counts: Mapping[str, int], lines: Sequence[tuple[LineKey, Value]]) -> None:
        """What was written of a stream, under the name that it had until now, is usage."""
        id_, mark, number = name.rpartition(_MARK)
        whose = id_ if mark and number.isdigit() and id_ in self._billed else name
        self._billed.setdefault(whose, Billed()).add(counts, lines)
        if len(self._billed) > MAX_STREAMS:
            del self._billed[next(iter(self._billed))]

    def over(self, id_: str) -> None:
        """The stream has ended."""
        self._billed.pop(id_, None)

    def rest(self, entry: Entry) -> Entry:
        """What this entry adds to the parts that were billed; the entry itself where none were."""
        record, closes = entry.record, entry.closes
        id_ = closes if closes is not None and closes in self._billed else record.id
        billed = self._billed.get(id_)
        if billed is None:
            return entry
        name = self.name(id_)
        counts = _without(record.usage.as_dict(), billed.counts, _direction)
        return Entry(
            replace(
                record,
                id=name if record.id == id_ else record.id,
                usage=Usage(**cast("dict[str, int]", counts)),
            ),
            _rest_of_lines(entry.lines, billed.values),
            None if closes is None else self.name(closes),
        )


def _rest_of_lines(lines: Sequence[Line], billed: Mapping[LineKey, Value]) -> tuple[Line, ...]:
    sums: dict[LineKey, Value] = {}
    for line in lines:
        if line.aggregation != "last":
            sums[key_of(line)] = add(sums.get(key_of(line), 0), line.value)
    rest = _without(sums, billed, _kind_of_key)
    made = [line for line in lines if line.aggregation == "last"]
    made += [
        Line(key.event_name, value, key.dimensions, key.customer_key, key.value_key, key.aggregation)
        for key, value in rest.items()
        if value
    ]
    return tuple(made)


def _without(
    whole: Mapping[K, Value], billed: Mapping[K, Value], kind_of: Callable[[K], object]
) -> dict[K, Value]:
    """The whole less what was billed, name by name. What was billed under a name that the whole has less of,
    or not at all (an estimate without a cache, another model), is taken from the others of its kind."""
    rest: dict[K, Value] = {}
    surplus: dict[object, Value] = {}
    for name, value in billed.items():
        kind, over = kind_of(name), less(value, whole.get(name, 0))
        surplus[kind] = add(surplus.get(kind, 0), max(over, 0))
    for name, value in whole.items():
        kind, left = kind_of(name), max(less(value, billed.get(name, 0)), 0)
        taken = min(left, surplus.get(kind, 0))
        rest[name] = less(left, taken)
        surplus[kind] = less(surplus.get(kind, 0), taken)
    return rest


def _direction(leaf: str) -> str:
    return "output" if "output" in leaf or leaf == "reasoning" else "input"


def _kind_of_key(key: LineKey) -> object:
    token_type = dict(key.dimensions).get("token_type")
    return key.event_name, key.aggregation, token_type and _direction(token_type)
