"""The script: each SDK's call on record once, with what its provider reported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

SCRIPT = Path(__file__).parents[2] / "examples" / "wrapped_clients" / "script.py"


def test_each_sdk_s_call_is_recorded_once(ground):
    for package in ("google.genai", "mistralai", "cohere", "boto3", "httpx2"):
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=ground.env(), cwd=ground.stage.folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "5 calls recorded" in done.stdout
    records = {(r["provider"], r["surface"]): r for r in ground.records(5)}
    assert {key: record["counts"] for key, record in records.items()} == {
        ("google", "client"): {"input": 12, "output": 4, "reasoning": 30},
        ("mistral", "client"): {"input": 8, "output": 3},
        ("cohere", "client"): {"input": 69, "output": 2},
        ("bedrock", "client"): {"input": 6, "cached_input": 100, "output": 5},
        ("openai", "transport"): {"input": 8, "output": 3},
    }
    assert records["mistral", "client"]["dimensions"] == {"feature": "greeting"}
    assert {record["customer"] for record in records.values()} == {"cus_house"}
