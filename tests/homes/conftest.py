"""A metering whose records stay in memory, and a carrier with a secret."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_metering import Metering, Settings, UsageRecord
from llm_metering.carrying import Carrier
from llm_metering.testing import capture_usage

SECRET = "a secret of services and workers"


class Used:
    """What was recorded."""

    def __init__(self, captured: Any, metering: Metering) -> None:
        self._captured = captured
        self._metering = metering

    @property
    def records(self) -> list[UsageRecord]:
        return list(self._captured.records)

    @property
    def failures(self) -> dict[str, int]:
        return {k: v for k, v in self._metering.telemetry.snapshot().items() if k.startswith("failure")}

    def by_customer(self) -> dict[str | None, int]:
        sums: Counter[str | None] = Counter()
        for record in self.records:
            sums[record.customer] += record.usage.total or 0
        return dict(sums)

    def becomes(self, expected: dict[str | None, int]) -> None:
        deadline = time.monotonic() + 15
        while self.by_customer() != expected and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.by_customer() == expected
        assert self.failures == {}


@pytest.fixture
def metering(tmp_path: Path) -> Metering:
    return Metering(ledger=tmp_path / "ledger", settings=Settings())


@pytest.fixture
def used(metering: Metering) -> Iterator[Used]:
    with capture_usage(metering) as captured:
        yield Used(captured, metering)


@pytest.fixture
def make_used() -> type[Used]:
    return Used


@pytest.fixture
def secret() -> str:
    return SECRET


@pytest.fixture
def carrier(metering: Metering, secret: str) -> Carrier:
    return Carrier(metering, secret)
