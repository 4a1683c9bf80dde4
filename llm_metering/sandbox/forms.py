"""Reading requests: form bodies and query strings into trees, trees into typed parameters.

A table names the parameters that a call takes, each with a reader. What is not in the table is refused, as
Stripe refuses it; `not_played` marks parameters that Stripe has and that would change what is billed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

from .errors import Refusal, missing_parameter, not_played, unknown_parameter, unreadable

Reader = Callable[[Any, str], Any]


@dataclass(frozen=True, slots=True)
class Required:
    """A parameter that must be given."""

    read: Reader


Table = Mapping[str, "Reader | Required"]


def decode_form(raw: str) -> dict[str, Any]:
    """A form body or query string as a tree. Arrays become mappings from index to value."""
    tree: dict[str, Any] = {}
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, errors="strict")
    except ValueError as exc:
        raise unreadable("Invalid request: the body is not form-encoded UTF-8.") from exc
    for key, value in pairs:
        if "[" not in key:
            tree[key] = value
            continue
        _put(tree, key, value)
    return tree


def read_params(tree: Mapping[str, Any], table: Table, prefix: str = "") -> dict[str, Any]:
    """The parameters that were given, typed; a `Refusal` for one unknown, missing or unreadable."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}[{name}]" if prefix else name
        field = table.get(name)
        if field is None:
            raise unknown_parameter(path)
        found[name] = filled(field.read)(value, path) if isinstance(field, Required) else field(value, path)
    for name, field in table.items():
        if name not in found and isinstance(field, Required):
            raise missing_parameter(f"{prefix}[{name}]" if prefix else name)
    return found


def filled(reader: Reader) -> Reader:
    """A parameter that cannot be unset by an empty string."""

    def read(value: Any, path: str) -> Any:
        if value == "":
            raise unreadable(
                f"You passed an empty string for '{path}'. We assume empty values are an attempt to unset a "
                f"parameter; however '{path}' cannot be unset. You should remove '{path}' from your request "
                "or supply a non-empty value.",
                path,
                "parameter_invalid_empty",
            )
        return reader(value, path)

    return read


def text(limit: int = 5000) -> Reader:
    """A string of at most `limit` characters. An empty one unsets."""

    def read(value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise unreadable(f"Invalid string: {_show(value)}", path)
        if len(value) > limit:
            raise unreadable(
                f"Invalid string: {value[:20]}…{value[-10:]}; must be at most {limit} characters", path
            )
        return value

    return read


def integer(low: int | None = None, high: int | None = None) -> Reader:
    def read(value: Any, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, (str, int)) or not _INTEGER.fullmatch(str(value)):
            raise unreadable(f"Invalid integer: {_show(value)}", path, "parameter_invalid_integer")
        number = int(value)
        if low is not None and number < low:
            raise unreadable(
                f"This value must be greater than or equal to {low}.", path, "parameter_invalid_integer"
            )
        if high is not None and number > high:
            raise unreadable(
                f"This value must be less than or equal to {high}.", path, "parameter_invalid_integer"
            )
        return number

    return read


def boolean(value: Any, path: str) -> bool:
    if value in (True, "true"):
        return True
    if value in (False, "false"):
        return False
    raise unreadable(f"Invalid boolean: {_show(value)}", path)


def decimal(value: Any, path: str) -> Decimal:
    """A decimal of at most 12 places, never negative, never in scientific notation."""
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value):
        raise unreadable(f"Invalid decimal: {_show(value)}", path)
    if len(value.partition(".")[2].rstrip("0")) > 12:
        raise unreadable(f"Invalid decimal: {value}; must have at most 12 decimal places", path)
    number = Decimal(value)
    if number < 0:
        raise unreadable("This value must be greater than or equal to 0.", path)
    return number


def choice(*values: str) -> Reader:
    def read(value: Any, path: str) -> str:
        if value not in values:
            *most, last = values
            one_of = f"{', '.join(most)}, or {last}" if len(most) > 1 else " or ".join(values)
            raise unreadable(f"Invalid {path}: must be one of {one_of}", path)
        return str(value)

    return read


@dataclass(frozen=True, slots=True)
class Array:
    """Reads a list, however its indexes are written. An empty string unsets it."""

    item: Reader
    limit: int

    def __call__(self, value: Any, path: str) -> list[Any]:
        if value == "":
            return []
        if isinstance(value, list):
            values = value
        elif isinstance(value, dict) and all(key.isdigit() for key in value):
            values = [value[key] for key in sorted(value, key=int)]
        else:
            raise unreadable("Invalid array", path)
        if len(values) > self.limit:
            raise unreadable(f"Array {path} exceeded maximum {self.limit} allowed elements.", path)
        return [self.item(one, f"{path}[{n}]") for n, one in enumerate(values)]


@dataclass(frozen=True, slots=True)
class Hash:
    """Reads a nested mapping with a table of its own."""

    table: Table

    def __call__(self, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise unreadable("Invalid object", path)
        return read_params(value, self.table, path)


def array(item: Reader, limit: int = 1000) -> Array:
    return Array(item, limit)


def hash_of(table: Table) -> Hash:
    return Hash(table)


def either(*options: Reader) -> Reader:
    """The first of several forms that fits; the last one's refusal if none does."""

    def read(value: Any, path: str) -> Any:
        for option in options[:-1]:
            # Only the last form's refusal is worth telling.
            with suppress(Refusal):
                return option(value, path)
        return options[-1](value, path)

    return read


def strings(key_limit: int = 40, value_limit: int = 500) -> Reader:
    """A map of strings, such as metadata. An empty value removes its key."""

    def read(value: Any, path: str) -> dict[str, str]:
        if value == "":
            return {}
        if not isinstance(value, dict):
            raise unreadable("Invalid hash", path)
        for key, one in value.items():
            if not isinstance(one, str):
                raise unreadable(f"Invalid string: {_show(one)}", f"{path}[{key}]")
            if len(key) > key_limit or len(one) > value_limit:
                raise unreadable(
                    f"Keys of {path} have at most {key_limit} characters and values {value_limit}.",
                    f"{path}[{key}]",
                )
        return dict(value)

    return read


def anything(value: Any, path: str) -> Any:
    """Taken and not looked at: it changes nothing that the sandbox plays."""
    return value


def refused(value: Any, path: str) -> Any:
    """A parameter of Stripe's that the sandbox does not play."""
    raise not_played(path)


EXPAND = array(text(), 20)
METADATA = strings()
CREATED = either(integer(), hash_of({"gt": integer(), "gte": integer(), "lt": integer(), "lte": integer()}))
LIST: Table = {
    "limit": integer(1, 100),
    "starting_after": text(),
    "ending_before": text(),
    "expand": EXPAND,
}

MAX_DEPTH = 16
"""Brackets in one key; Stripe's own parameters need five."""

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_DECIMAL = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?")
_STEPS = re.compile(r"\[([^\]]*)\]")


def _put(tree: dict[str, Any], key: str, value: str) -> None:
    steps = [key.partition("[")[0], *_STEPS.findall(key)]
    if len(steps) > MAX_DEPTH:
        raise unreadable(f"Invalid request: {key[:100]}… is nested too deeply.")
    node = tree
    for n, step in enumerate(steps[:-1]):
        index = step or _open_index(node, steps[n + 1])
        below = node.setdefault(index, {})
        if not isinstance(below, dict):
            raise unreadable(f"Invalid request: {key} is given twice in two forms.", key)
        node = below
    last = steps[-1] or str(len(node))
    node[last] = value


def _open_index(node: dict[str, Any], next_step: str) -> str:
    """For `items[][price]=…`: the element under way, or a new one where it has that key already."""
    if node and next_step not in node[str(len(node) - 1)]:
        return str(len(node) - 1)
    return str(len(node))


def _show(value: Any) -> str:
    return str(value)[:100]
