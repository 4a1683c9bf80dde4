"""Recorded exchanges, where they are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def exchanges() -> list[dict[str, Any]]:
    root = Path(__file__).resolve().parents[2]
    shared = Path(os.environ.get("LLM_METERING_SHARED", root.parent / "shared"))
    folder = Path(os.environ.get("LLM_METERING_EXCHANGES", shared / "exchanges"))
    if not folder.is_dir():
        pytest.skip(f"the recorded exchanges are not at {folder}")
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    return [json.loads(line) for line in lines]
