"""Fields of answers: mappings and SDK objects read alike, with no SDK imported and nothing raised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

Path = tuple[str, ...]
NO_FIELDS: Mapping[str, Any] = MappingProxyType({})


def get(value: Any, name: str) -> Any:
    """A field of a mapping or an attribute of an object; None where there is none."""
    if type(value) is dict:
        return value.get(name)
    kind = _KINDS.get(type(value)) or _learn(type(value))
    if kind == "plain":
        return None
    try:
        if kind == "pydantic":
            # Asking a pydantic model for an attribute that is not there takes a microsecond and a half.
            present = value.__dict__
            return present[name] if name in present else (value.__pydantic_extra__ or NO_FIELDS).get(name)
        return value.get(name) if kind == "mapping" else getattr(value, name, None)
    except Exception:
        return None


def dig(value: Any, path: Path) -> Any:
    """A field of a field of a field."""
    for name in path:
        if value is None:
            return None
        value = value.get(name) if type(value) is dict else get(value, name)
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
    kind = _KINDS.get(type(value)) or _learn(type(value))
    try:
        return _READ[kind](value)
    except Exception:
        return NO_FIELDS


def own(value: Any) -> Mapping[str, Any]:
    """As `fields`, quicker, but perhaps without what an SDK's model does not know."""
    return getattr(value, "__dict__", None) or fields(value)


def is_object(value: Any) -> bool:
    """Whether a value may have fields at all, unlike a number or a list."""
    return (_KINDS.get(type(value)) or _learn(type(value))) != "plain"


def items(value: Any) -> Sequence[Any]:
    """A list's items; empty for anything else."""
    return value if isinstance(value, (list, tuple)) else ()


def text(value: Any) -> str | None:
    """A string that is not empty; None for anything else."""
    return value if isinstance(value, str) and value else None


Kind = Literal["plain", "mapping", "pydantic", "object", "slots"]

_KINDS: dict[type, Kind] = dict.fromkeys(
    (str, bytes, bytearray, int, float, bool, list, tuple, set, type(None)), "plain"
)
_MOST_KINDS = 10_000


def _learn(kind: type) -> Kind:
    """How objects of a type are read; looked up once a type, for streams read thousands of one."""
    if len(_KINDS) > _MOST_KINDS:
        _KINDS.clear()
    _KINDS[kind] = found = _kind_of(kind)
    return found


def _kind_of(kind: type) -> Kind:
    if issubclass(kind, Mapping):
        return "mapping"
    if issubclass(kind, (str, bytes, bytearray, int, float, list, tuple, set, type)):
        return "plain"
    if hasattr(kind, "__pydantic_extra__"):
        return "pydantic"
    return "object" if hasattr(kind, "__dict__") and _has_dict(kind) else "slots"


def _pydantic(value: Any) -> Mapping[str, Any]:
    """Pydantic keeps what its model does not know, such as a vendor's own fields, apart."""
    extra = value.__pydantic_extra__
    return {**value.__dict__, **extra} if extra else value.__dict__


_READ: dict[Kind, Callable[[Any], Mapping[str, Any]]] = {
    "plain": lambda value: NO_FIELDS,
    "mapping": dict,
    "pydantic": _pydantic,
    "object": lambda value: value.__dict__,
    "slots": lambda value: {name: getattr(value, name, None) for name in _slots(type(value))},
}


def _has_dict(kind: type) -> bool:
    return any("__dict__" in base.__dict__ for base in kind.__mro__)


def _slots(kind: type) -> list[str]:
    found: list[str] = []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        found += [slots] if isinstance(slots, str) else list(slots)
    return found
