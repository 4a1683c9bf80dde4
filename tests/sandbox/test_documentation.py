"""`docs/sandbox.md` names what there is: switches with their defaults, faults, calls, tests."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from llm_metering import sandbox
from llm_metering.sandbox import Switches
from llm_metering.sandbox.control import _ROUTES
from llm_metering.sandbox.faults import KINDS

HERE = Path(__file__).parent
PAGE = (HERE.parent.parent / "docs" / "sandbox.md").read_text(encoding="utf-8")
CONTRACT = (HERE.parent / "data" / "stripe" / "contract.md").read_text(encoding="utf-8")
TESTS = "\n".join(path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py"))


NO_RULES = {"12", "14"}
"""Sections of the contract that state no rules: other emulators, and sources."""


def table() -> list[list[str]]:
    """The rows of the rules: place in the contract, rule, mark, tests, switches."""
    section = PAGE.partition("## The rules")[2].partition("## What to know")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows]


def places() -> set[str]:
    """What the contract numbers: its sections, and each point of its two lists."""
    found = set()
    for match in re.finditer(r"^#{2,3} ([0-9.]+) .*$((?:\n(?!#).*)*)", CONTRACT, re.MULTILINE):
        number = match[1].strip(".")
        points = re.findall(r"^([0-9]+)\. ", match[2], re.MULTILINE)
        found |= {f"{number}.{point}" for point in points} if points else {number}
    covered = {number.partition(".")[0] for number in found if "." in number}
    return found - (covered - {"4"}) - NO_RULES


def test_the_table_holds_every_rule_of_the_contract():
    held = {place for row in table() for place in row[0].split(", ")}
    assert len(places()) > 50
    assert places() - held == set()
    assert held - places() == {"beside"}


def test_every_rule_has_a_test():
    assert [row[1] for row in table() if not re.search(r"`test_\w+`", row[3])] == []


def test_every_assumption_has_a_switch_or_says_why_there_is_none():
    names = {field.name for field in fields(Switches)}
    named = [set(re.findall(r"`(\w+)`", row[4])) for row in table()]
    assert set().union(*named) <= names
    without = [row[1] for row, switches in zip(table(), named, strict=True) if "A" in row[2] and not switches]
    assert [rule for rule in without if "wording **A**" not in rule and "o switch" not in rule] == []


def test_every_switch_belongs_to_a_rule():
    named = {name for row in table() for name in re.findall(r"`(\w+)`", row[4])}
    assert {field.name for field in fields(Switches)} == named


@pytest.mark.parametrize("switch", fields(Switches), ids=lambda field: field.name)
def test_every_switch_is_documented_with_its_default(switch):
    section = PAGE.partition("## Switches")[2].partition("## The rules")[0]
    [row] = [line for line in section.splitlines() if re.match(rf"\| [^|]*`{switch.name}`", line)]
    default = str(switch.default) if not isinstance(switch.default, str) else f'"{switch.default}"'
    assert f"`{default.removesuffix('.0')}`" in row.split("|")[2]


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_documented(kind):
    assert re.search(rf"^\| .*`{kind}`", PAGE, re.MULTILINE)


@pytest.mark.parametrize("call", _ROUTES, ids=" ".join)
def test_every_call_of_its_own_is_documented(call):
    method, path = call
    assert re.search(rf"^\| .*`{method}.*{re.escape(path)}", PAGE, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", PAGE))))
def test_every_test_that_is_named_exists(name):
    assert f"def {name}(" in TESTS


@pytest.mark.parametrize("name", sandbox.__all__)
def test_every_public_name_is_documented_or_shown(name):
    assert re.search(rf"\b{name}\b", PAGE)
