"""What the processes of a pool do."""

from __future__ import annotations

from typing import Any

from llm_metering import Metering, Settings, Usage
from llm_metering.carrying import Carrier

_metering: Metering | None = None


def begin(folder: str) -> None:
    """Once in each process."""
    global _metering
    _metering = Metering(ledger=folder, settings=Settings())


def metering() -> Metering:
    assert _metering is not None
    return _metering


def use(tokens: int, packed: Any, secret: str) -> None:
    assert _metering is not None
    if packed == "ambient":
        _metering.record(Usage(input=tokens))
    else:
        with Carrier(_metering, secret).bound(packed):
            _metering.record(Usage(input=tokens))


def end() -> None:
    assert _metering is not None
    _metering.commit_all(10)
