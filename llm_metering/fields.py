"""Fields of answers: mappings and SDK objects read alike, with no SDK imported and nothing raised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Path = tuple[str, ...]

_PLAIN = (str, bytes, int, float, bool, list, tuple, type(None))


def get(value: Any, name: str) -> Any:
    """A field of a mapping or an attribute of an object; None where there is none."""
    if type(value) is dict:
        return value.get(name)
    if isinstance(value, _PLAIN):
        return None
    try:
        if isinstance(value, Mapping):
            return value.get(name)
        return getattr(value, name, None)
    except Exception:
        return None


def dig(value: Any, path: Path) -> Any:
    """A field of a field of a field."""
    for name in path:
        if value is None:
            return None
        value = get(value, name)
    return value


def first(value: Any, paths: Iterable[Path]) -> Any:
    """What stands at the first path that leads anywhere."""
    for path in paths:
        found = dig(value, path)
        if found is not None:
            return found
    return None


def fields(value: Any) -> Mapping[str, Any]:
    """All fields of a mapping or an object; empty where it has none."""
    if type(value) is dict:
        return value
    if isinstance(value, _PLAIN):
        return {}
    try:
        if isinstance(value, Mapping):
            return dict(value)
        return _attributes(value)
    except Exception:
        return {}


def items(value: Any) -> Sequence[Any]:
    """A list's items; empty for anything else."""
    return value if isinstance(value, (list, tuple)) else ()


def text(value: Any) -> str | None:
    """A string that is not empty; None for anything else."""
    return value if isinstance(value, str) and value else None


def _attributes(value: Any) -> Mapping[str, Any]:
    own = getattr(value, "__dict__", None)
    if own is None:
        names = [n for kind in type(value).__mro__ for n in getattr(kind, "__slots__", ())]
        return {name: getattr(value, name, None) for name in names}
    # Pydantic keeps what its model does not know, such as a vendor's own fields, apart.
    extra = getattr(value, "__pydantic_extra__", None)
    return {**own, **extra} if extra else own
