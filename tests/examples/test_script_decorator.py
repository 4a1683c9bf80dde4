"""The script: seven calls on record whatever becomes of Stripe, and delivered where there is one."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from llm_metering import billing
from llm_metering.sandbox import running_sandbox

pytestmark = pytest.mark.once

SCRIPT = Path(__file__).parents[2] / "examples" / "script_decorator" / "script.py"


def run(ground, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT)],
        env=ground.env(**env), cwd=ground.stage.folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_kind_of_function_is_recorded_once_for_whom_it_names(ground):
    told = run(ground)
    assert "7 calls recorded" in told
    records = ground.records(7)
    named = Counter((r["customer"], r["dimensions"].get("feature")) for r in records)
    assert named == {
        ("cus_house", "title"): 1,
        ("cus_house", "verse"): 1,
        ("cus_house", "summary"): 1,
        ("cus_reader", "tale"): 1,
        ("cus_123", "title"): 1,  # the decorator's own feature wins over the one that is bound
        ("cus_123", None): 2,
    }
    by_feature = {
        r["dimensions"].get("feature"): r["counts"] for r in records if r["customer"] == "cus_house"
    }
    assert by_feature["verse"]["output"] == 4  # "the road goes on"
    job = next(r for r in records if r["id"] == "job-17")
    assert job["counts"] == {"input": 1000, "cached_input": 200, "output": 50}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_with_a_stripe_it_delivers_before_it_ends(ground):
    with running_sandbox() as stripe:
        billing.apply(billing.PayAsYouGo(), stripe.client())
        told = run(ground, STRIPE_API_KEY=stripe.api_key, STRIPE_API_BASE=stripe.url)
        assert "0 meter events not delivered yet" in told
        assert stripe.books().total(customer="cus_123", token_type="cached_input") == 200
        run(ground, STRIPE_API_KEY=stripe.api_key, STRIPE_API_BASE=stripe.url)
        # The job's own id makes the second run's record the same one; everything else was used twice.
        assert stripe.books().total(customer="cus_123", token_type="cached_input") == 200
