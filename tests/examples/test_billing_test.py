"""The example of a user's billing test passes, run as its README says, and is as short as it claims."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

EXAMPLE = Path(__file__).parents[2] / "examples" / "billing_test"


def test_the_example_passes_in_a_pytest_of_its_own(tmp_path: Path) -> None:
    env = {n: v for n, v in os.environ.items() if not n.startswith(("LLM_METERING_", "STRIPE_", "PYTEST_"))}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", EXAMPLE],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout
    assert list(tmp_path.iterdir()) == [], "nothing is written to disk"


def test_the_test_in_it_has_fifteen_lines_at_most() -> None:
    lines = (EXAMPLE / "test_billing.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 16
    assert len(lines) - next(i for i, line in enumerate(lines) if line.startswith("def ")) <= 12
