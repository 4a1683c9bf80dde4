"""The plug-in in pytest runs of other people's projects."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_pytest(folder: Path, *options: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """A pytest run in a folder of its own, with nothing of this project's configuration."""
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\naddopts = --strict-markers\n")
    env = {n: v for n, v in os.environ.items() if not n.startswith("PYTEST_")}
    start = [sys.executable, "-c", code] if code else [sys.executable, "-m", "pytest"]
    return subprocess.run(
        [*start, "-q", "-p", "no:cacheprovider", *options],
        cwd=folder, env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return tmp_path


def test_a_run_that_does_not_use_it_loads_nothing_of_it(project):
    (project / "test_it.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    assert 'llm_metering.testing.plugin' in sys.modules\n"
        "    heavy = {'stripe', 'tiktoken', 'openai', 'starlette', 'uvicorn', 'llm_metering.sandbox',\n"
        "             'llm_metering.testing.capturing', 'llm_metering.testing.local_stripe'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    ran = run_pytest(project, "-p", "no:anyio", "-p", "no:hypothesispytest")
    assert "1 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "warning" not in ran.stdout


def test_both_fixtures_are_there_and_can_be_listed(project):
    (project / "test_it.py").write_text(
        "from llm_metering import Metering, Usage\n"
        "def test_usage(capture_usage):\n"
        "    Metering('cus_1').record(Usage(input=3))\n"
        "    assert capture_usage.records[0].customer == 'cus_1'\n"
        "def test_stripe(stripe_sandbox):\n"
        "    stripe_sandbox.stripe.v1.customers.create({'name': 'John Doe'})\n"
        "def test_each_test_has_an_empty_one(stripe_sandbox):\n"
        "    assert stripe_sandbox.stripe.v1.customers.list().data == []\n"
    )
    ran = run_pytest(project)
    assert "3 passed" in ran.stdout, ran.stdout + ran.stderr
    assert sorted(p.name for p in project.iterdir() if p.name != "__pycache__") == [
        "pytest.ini",
        "test_it.py",
    ]
    listed = run_pytest(project, "--fixtures").stdout
    assert "stripe_sandbox" in listed
    assert "A local Stripe, empty" in listed
    assert "_llm_metering_stripe" not in listed


def test_it_can_be_left_out(project):
    (project / "test_it.py").write_text(
        "import sys\ndef test_it():\n    assert 'llm_metering' not in sys.modules\n"
    )
    ran = run_pytest(project, "-p", "no:llm_metering")
    assert "1 passed" in ran.stdout, ran.stdout + ran.stderr


def test_without_the_sandbox_extra_only_what_needs_it_fails_and_says_why(project):
    (project / "test_it.py").write_text(
        "def test_unaffected(): pass\n"
        "def test_in_process(stripe_sandbox):\n"
        "    stripe_sandbox.stripe.v1.customers.list()\n"
        "def test_on_a_port(stripe_sandbox):\n"
        "    stripe_sandbox.url\n"
    )
    code = "import sys; sys.modules['uvicorn'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    ran = run_pytest(project, code=code)
    assert "1 failed, 2 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "llm_metering[sandbox]" in ran.stdout
