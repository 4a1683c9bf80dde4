"""A script that ends has its usage on disk, however it ends; also what a tokenizer had still to count."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from llm_metering.ledger import LedgerView

HEAD = """
from llm_metering import Metering
metering = Metering(customer="cus_1")

@metering.metered(model="gpt-4o-mini")
def title(prompt: str) -> str:
    return "on " + prompt
"""
ENDS = {
    "with": "with metering:\n    title('the rain')\n    metering.record({'usage': {'prompt_tokens': 3}})\n",
    "stop": "metering.start(); title('the rain'); title('the sea'); metering.stop()\n",
    "nothing": "title('the rain'); title('the sea')\n",
    "busy": "metering._counter.later(lambda: __import__('time').sleep(2.5)); title('rain'); title('sea')\n",
    "error": "title('the rain'); title('the sea'); raise SystemExit('no more')\n",
}


@pytest.mark.parametrize("end", ENDS)
def test_what_a_script_used_is_on_disk_when_it_has_ended(end, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HEAD + ENDS[end]],
        cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    view = LedgerView(tmp_path / ".llm_metering")
    assert view.status(now=time.time()).usage_records == 2
    assert sum(row.value for row in view.usage_sums()) > 3
