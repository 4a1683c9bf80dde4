"""The table of faults has every row, each names tests that are there, and says what is missing."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/faults.md"
ROWS = set(range(1, 59))


def table() -> dict[int, list[str]]:
    """Number → fault, promise, tests, state."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("| ")]
    return {int(row[0]): row[1:] for row in cells if row[0].isdigit()}


def names_of(row: list[str]) -> list[str]:
    return named_in(row[2])


def named_in(text: str) -> list[str]:
    """The tests that a text names, as `capture/test_clients.py::test_a_claim`."""
    return re.findall(r"`([\w/]+\.py::\w+)`", text)


def missing_of(names: list[str]) -> list[str]:
    """Those that are not there."""
    return [
        name
        for name in names
        if not (path := TESTS / name.partition("::")[0]).exists()
        or name.partition("::")[2] not in names_in(path)
    ]


@cache
def names_in(path: Path) -> frozenset[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    functions = {n.name for n in body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assigned = {t.id for n in body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    return frozenset(name for name in functions | assigned if name.lower().startswith("test"))


def test_every_row_is_there_once() -> None:
    numbers = re.findall(r"^\| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(map(int, numbers)) == sorted(ROWS)


@pytest.mark.parametrize("number", sorted(ROWS))
def test_every_test_that_a_row_names_is_there(number: int) -> None:
    row = table()[number]
    assert len(row) == 4, "a row has fault, promise, tests and state"
    assert missing_of(names_of(row)) == []


@pytest.mark.parametrize("number", sorted(ROWS))
def test_a_row_is_held_or_says_what_is_missing(number: int) -> None:
    row = table()[number]
    named, state = names_of(row), row[3]
    assert re.fullmatch(r"held|partly: .+|not yet(: .+)?", state), state
    assert bool(named) == (not state.startswith("not yet")), "only what has a test is held"


def test_a_test_that_is_gone_would_be_noticed() -> None:
    assert "test_every_row_is_there_once" in names_in(Path(__file__))
    assert "test_that_was_never_written" not in names_in(Path(__file__))
    assert "TestAMemoryLedgersLife" in names_in(TESTS / "ledger/test_lives.py")
    gone = ["ledger/test_lives.py::test_that_was_never_written", "ledger/test_of_nothing.py::test_it"]
    assert missing_of([*gone, "ledger/test_lives.py::TestAMemoryLedgersLife"]) == gone
