"""Names of a package that are loaded when they are first asked for, so that importing it stays cheap."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def loaded_when_named(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562).

    Hide both from the type checker, which would believe in any name of a package that has a `__getattr__`,
    and show it the imports instead.

    Args:
        package: Its `__name__`.
        modules: Which module of it has each name, such as {"SqliteLedger": ".ledger.sqlite"}.
    """
    namespace = vars(sys.modules[package])

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        namespace[name] = value = getattr(import_module(modules[name], package), name)
        return value

    def names() -> list[str]:
        return sorted({*namespace, *modules})

    return load, names
