"""Frozen dataclasses with slots, made at a quarter of the price: at import, and for each value.

`dataclasses` writes six functions of source for every frozen class, and sets each field of a new value by a
call. Here one function is written, when the first value is made, the others are shared, and a new value takes
its fields as an ordinary object and is frozen then. `fields`, `replace`, `asdict`, pattern matching, pickling
and `FrozenInstanceError` are as they were; inheriting from such a class is not foreseen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    T = TypeVar("T")

    def maker(cls: Callable[P, T]) -> Callable[P, T]: ...

else:
    import dataclasses
    from functools import partial
    from operator import attrgetter

    def dataclass(*, frozen, slots, kw_only=False):
        """As `dataclasses.dataclass(frozen=True, slots=True)`."""
        if not (frozen and slots):
            raise TypeError("only frozen dataclasses with slots are made here")
        return partial(_made, kw_only=kw_only)

    def maker(cls):
        """A function that makes a value of `cls` in a third of the time, without its `__post_init__`: for
        what is made for every answer, of fields that are known to be right."""
        return _init(cls, alone=True)

    def _made(cls, kw_only):
        if cls.__mro__ != (cls, object):
            raise TypeError(f"{cls.__name__}: a value inherits nothing")
        own = dict(vars(cls))
        made = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)(cls)
        made.__init__, made.__signature__ = _first_init(made), _SIGNATURE
        made.__setattr__, made.__delattr__, made.__setstate__ = _setattr, _delattr, _setstate
        made.__getstate__ = _getstate
        if "__repr__" not in own:
            made.__repr__ = _repr
        compares, hashes = _equality([f.name for f in dataclasses.fields(made) if f.compare])
        if "__eq__" not in own:
            made.__eq__ = compares
        if own.get("__hash__") is None:
            made.__hash__ = hashes
        return made

    def _first_init(made):
        """Writes the real one when it is called. Most classes of a process have no values yet when it serves
        its first request, or never."""

        def __init__(self, *args, **kwargs):  # noqa: N807
            made.__init__ = _init(made)
            made.__init__(self, *args, **kwargs)

        return __init__

    class _Signature:
        """What `inspect.signature` finds on a class, whether its `__init__` is written or not."""

        def __get__(self, value, made):
            from inspect import signature

            whole = signature(_init(made))
            return whole.replace(parameters=list(whole.parameters.values())[1:])

    _SIGNATURE = _Signature()

    def _init(made, alone=False):
        """Set all fields while the object is of a class like this one that is not frozen, and swap then."""
        known = {"_set": object.__setattr__, "_frozen": made, "_MISSING": dataclasses.MISSING}
        known["_open"] = type(made.__name__, (), {"__slots__": made.__slots__})
        parameters, body = [], ["self = _open()" if alone else "_set(self, '__class__', _open)"]
        for f in dataclasses.fields(made):
            parameter, value = f.name, f.name
            if f.default is not dataclasses.MISSING:
                known[f"_d_{f.name}"] = f.default
                parameter = f"{f.name}=_d_{f.name}"
                value = f.name if f.init else f"_d_{f.name}"
            elif f.default_factory is not dataclasses.MISSING:
                known[f"_f_{f.name}"] = f.default_factory
                parameter = f"{f.name}=_MISSING"
                value = f"_f_{f.name}() if {f.name} is _MISSING else {f.name}"
                value = value if f.init else f"_f_{f.name}()"
            if f.init:
                if f.kw_only and "*" not in parameters:
                    parameters.append("*")
                parameters.append(parameter)
            body.append(f"self.{f.name} = {value}")
        body.append("self.__class__ = _frozen")
        if alone:
            body.append("return self")
        elif hasattr(made, "__post_init__"):
            body.append("self.__post_init__()")
        takes = parameters if alone else ["self", *parameters]
        exec(f"def __init__({', '.join(takes)}):\n " + "\n ".join(body), known)  # noqa: S102  (of our own names)
        init = known["__init__"]
        init.__qualname__ = f"{made.__qualname__}.__init__"
        return init

    def _setattr(self, name, value):
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def _delattr(self, name):
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    def _getstate(self):
        return [getattr(self, name) for name in self.__slots__]

    def _setstate(self, state):
        for name, value in zip(self.__slots__, state, strict=True):
            object.__setattr__(self, name, value)

    def _repr(self):
        shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
        return f"{type(self).__qualname__}({shown})"

    def _equality(names):
        def values(self, get=attrgetter(*names)):
            return get(self)

        def equals(self, other):
            return values(self) == values(other) if type(other) is type(self) else NotImplemented

        def hash_of(self):
            return hash(values(self))

        return equals, hash_of
