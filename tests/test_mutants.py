"""The check that takes protections out is itself true: its texts are there, it kills, it says who lives."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tools/mutants.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("mutants", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module
    spec.loader.exec_module(module)
    return module


mutants = _load()
PARTS = 6


def run(*arguments: str, timeout_s: float = 400) -> Sequence[Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=timeout_s, cwd=ROOT
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_a_mutants_text_is_in_the_source_and_its_tests_are_there(mutant: Any) -> None:
    source = (ROOT / "llm_metering" / mutant.file).read_text(encoding="utf-8")
    assert mutant.old in source, "bring the mutant up to date"
    assert mutant.new != mutant.old
    for test in mutant.tests:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(encoding="utf-8")


def test_no_protection_is_left_out() -> None:
    names = " ".join(m.name for m in mutants.MUTANTS)
    for what in (
        "freeze before send", "frozen time and body", "attempt before send", "fence", "lane lock", "22 hours",
        "a duplicate on a retry", "one call at a time", "breaker", "refused key", "last message",
        "one answer counts once", "header", "body", "streams under way",
    ):  # fmt: skip
        assert what in names


def test_a_mutant_that_changes_nothing_is_told_to_live() -> None:
    fence = next(m for m in mutants.MUTANTS if m.name.startswith("fence"))
    source = (ROOT / "llm_metering" / fence.file).read_text(encoding="utf-8")
    with mutants.copied() as copy:
        harmless = replace(fence, new=fence.old + "  # as before")
        assert mutants._judge(harmless, copy, quick=True).problem == "no test noticed"
        assert mutants._judge(fence, copy, quick=True).problem is None
        gone = replace(fence, old="text that nobody wrote")
        assert "bring the mutant up to date" in mutants._judge(gone, copy, quick=True).problem
        broken = replace(fence, new="this is no Python")
        assert "broken" in mutants._judge(broken, copy, quick=True).problem
        assert (copy / "llm_metering" / fence.file).read_text(encoding="utf-8") == source, (
            "they left no trace"
        )


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_protection_that_is_taken_out_turns_a_test_red(part: int) -> None:
    code, output = run("--part", f"{part + 1}/{PARTS}", "--jobs", "1")
    assert code == 0, output
    count = len(mutants.MUTANTS[part::PARTS])
    assert count > 1
    assert f"{count} of {count} killed" in output
