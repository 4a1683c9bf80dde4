"""SDK objects whose usage is laid out as others' was: read by a plan, in a third of the time.

An SDK gives the same classes again and again, with numbers in the same places. The first answer of a layout
is read name by name, and shows where each number stood and what it does; whatever is laid out otherwise, down
to the type of each value, is read name by name too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .._values import maker
from ..usage import MAX_TOKENS, Reading
from .dialects import dialect_of
from .numbers import Arithmetic, Dialect, Number, arithmetic, parts_of
from .shapes import EMBEDDINGS, Shape, named_shape

MOST_LAYOUTS = 256


class Layout(NamedTuple):
    """Where the numbers of a usage object stand among all of its values."""

    shape: Shape
    counts: tuple[int, ...]
    """The places of those that `usage` takes."""
    usage: Arithmetic
    total: int | None


_layouts: dict[tuple[Any, ...], Layout] = {}
_nested: dict[type, tuple[str, ...]] = {}
"""Which fields of a usage object are objects whose numbers count, by its class."""
_reading = maker(Reading)


def read_object(answer: Any, provider: str | None, api: str | None) -> Reading | None:
    """The reading of an SDK's object; None where its layout is not known."""
    try:
        own = answer.__dict__
        usage = own["usage"]
        names, values = _laid_out(usage, _nested[usage.__class__])
        layout = _layouts[_key(own, names, values)]
        model, id_ = own["model"], own["id"]
    except (AttributeError, LookupError, TypeError):
        return None
    counts = [values[place] for place in layout.counts]
    if type(model) is not str or type(id_) is not str or not (model and id_):
        return None
    if min(counts) < 0 or max(counts) > MAX_TOKENS:
        return None
    found = layout.usage(counts, None if layout.total is None else values[layout.total])
    if found is None:
        return None
    shape = layout.shape
    return _reading(found, model, id_, "reported", provider or shape.provider, api or shape.api)


def learn_object(answer: Any) -> None:
    """Remember the layout of an answer that was read name by name."""
    try:
        own = answer.__dict__
        usage = own["usage"]
        flat: dict[str, Any] = usage.__dict__
        shape = named_shape(own.get("object"), own.get("type"))
        dialect = dialect_of(flat)
        if shape is None or dialect is None or not _is_plain(shape):
            return
        nested = _nested.get(usage.__class__) or tuple(
            name for name in flat if isinstance(dialect.names.get(name), Mapping)
        )
        names, values = _laid_out(usage, nested)
    except (AttributeError, LookupError, TypeError):
        return
    layout = _layout_of(shape, dialect, flat, nested, values)
    if layout is not None:
        if len(_layouts) >= MOST_LAYOUTS:
            _layouts.clear()
        _nested[usage.__class__] = nested
        _layouts[_key(own, names, values)] = layout


def _key(own: dict[str, Any], names: list[str], values: list[Any]) -> tuple[Any, ...]:
    return own.get("object"), own.get("type"), *names, *map(type, values)


def _is_plain(shape: Shape) -> bool:
    """Whether usage, model and id stand where most have them."""
    return shape is not EMBEDDINGS and (shape.usage[0], shape.model, shape.id) == _PLAIN


_PLAIN = (("usage",), (("model",),), (("id",),))


def _layout_of(
    shape: Shape, dialect: Dialect, flat: dict[str, Any], nested: tuple[str, ...], values: list[Any]
) -> Layout | None:
    """None where only reading name by name can tell."""
    said = {name: value for name, value in flat.items() if value is not None}
    for name in flat.keys() - said.keys():
        rule = dialect.names.get(name)
        if isinstance(rule, Number) and rule.needed:
            return None
    planned = parts_of(said, dialect)
    if planned is None or not planned[1]:
        return None
    paths, parts = planned
    inner = [(name, each) for name in nested if flat.get(name) is not None for each in flat[name].__dict__]
    places = {path: place for place, path in enumerate([*((name,) for name in flat), *inner])}
    if any(path not in places or type(values[places[path]]) is not int for path in paths):
        return None
    total = None if dialect.total is None else places.get((dialect.total,))
    return Layout(shape, tuple(places[path] for path in paths), arithmetic(parts, dialect.beyond), total)


def _laid_out(usage: Any, nested: tuple[str, ...]) -> tuple[list[str], list[Any]]:
    """The names in a usage object and in the objects that it holds, and their values.

    Raises LookupError where the SDK's model does not name all of them.
    """
    flat = usage.__dict__
    names, values = [*flat], [*flat.values()]
    more = usage.__pydantic_extra__
    for name in nested:
        inner = flat.get(name)
        if inner is not None:
            more = more or inner.__pydantic_extra__
            names += inner.__dict__
            values += inner.__dict__.values()
    if more:
        raise LookupError
    return names, values
