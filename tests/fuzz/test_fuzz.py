"""A minute of it; `make fuzz MINUTES=10` for longer. LLM_METERING_FUZZ_S is the time for one target."""

from __future__ import annotations

import os
import time

import pytest
from tests.fuzz.running import fuzz
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("LLM_METERING_FUZZ_S", "6"))


@pytest.mark.timeout(300 + 2 * SECONDS)
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_that_is_read_breaks_a_reader(name: str) -> None:
    assert fuzz(name, seconds=SECONDS, first_seed=int(time.time())) > 0


def test_a_target_that_fails_says_which_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: object) -> None:
        raise ValueError("no")

    monkeypatch.setitem(TARGETS, "sse", (never, TARGETS["sse"][1]))
    with pytest.raises(AssertionError, match="sse, seed 7: ValueError"):
        fuzz("sse", seconds=0, first_seed=7)
