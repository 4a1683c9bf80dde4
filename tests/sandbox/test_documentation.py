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
TESTS = "\n".join(path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py"))


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
