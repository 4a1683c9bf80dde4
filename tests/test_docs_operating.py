"""The runbook has a row for each alarm, the counters are all named, and the commands it gives are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import typer
from llm_metering.cli.app import app
from llm_metering.protocols import OutcomeKind

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [DOCS / name for name in ("operating.md", "going-live.md", "security.md")]
RAISING = {"alarm", "_alarm", "Alarm"}
COUNTING = {"count"}
FAILING = {"failure"}
NAME = re.compile(r"[a-z_]+\.[a-z0-9_]+")
AREAS = "audit|capacity|client|delivery|forwarder|ledger|metering|middleware|oracle|reconcile|stripe"


@cache
def calls_and_texts() -> tuple[dict[str, set[str]], set[str]]:
    """What is said in the package: constant arguments by the name of the function, and all texts."""
    told: dict[str, set[str]] = {}
    texts: set[str] = set()
    for path in (ROOT / "llm_metering").rglob("*.py"):
        if {"sandbox", "cli", "testing", "billing"} & set(path.parts):
            continue  # they raise no alarms
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
            if isinstance(node, ast.Call):
                told.setdefault(called(node.func), set()).update(names_in(node.args[:1]))
    return told, {text for text in texts if NAME.fullmatch(text)}


def called(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def names_in(arguments: list[ast.expr]) -> Iterator[str]:
    """Names, also those of a choice; of a name that is put together, its beginning and a star."""
    for node in arguments:
        choices = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]
        for each in choices:
            if isinstance(each, ast.Constant) and isinstance(each.value, str) and NAME.fullmatch(each.value):
                yield each.value
            if isinstance(each, ast.JoinedStr) and isinstance(each.values[0], ast.Constant):
                yield f"{each.values[0].value}*"


def told(functions: set[str]) -> set[str]:
    said, _ = calls_and_texts()
    return set().union(*(said.get(name, set()) for name in functions))


def alarms() -> set[str]:
    """Those that are raised by name, and all texts that look like one and are neither counter nor failure."""
    _, texts = calls_and_texts()
    alike = {text for text in texts if re.fullmatch(rf"({AREAS})\.[a-z0-9_]+", text)}
    return told(RAISING) | (alike - told(COUNTING) - told(FAILING) - OTHERS)


OTHERS = {"reconcile.py"}


def rows(page: Path, title: str) -> dict[str, list[str]]:
    section = page.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    cells = [[c.strip() for c in line[1:-1].split(" | ")] for line in section.splitlines() if line[:1] == "|"]
    return {name: cell[1:] for cell in cells for name in re.findall(r"`([\w.*]+)`", cell[0])}


def test_every_alarm_is_in_the_runbook_and_none_that_is_not_there() -> None:
    assert set(rows(PAGES[0], "Each alarm")) == alarms()


@pytest.mark.parametrize("name", sorted(rows(PAGES[0], "Each alarm")))
def test_an_alarm_has_its_urgency_its_meaning_and_what_to_do(name: str) -> None:
    urgency, meaning, remedy = rows(PAGES[0], "Each alarm")[name]
    assert urgency in {"now", "soon", "look", "good"}
    assert meaning.endswith(".")
    assert remedy.rstrip(")").endswith((".", ". "))


def test_every_counter_is_documented_and_none_that_is_not_there() -> None:
    documented = set(rows(PAGES[0], "Counters"))
    counted = told(COUNTING) | {"alarm.*", "failure.*", "telemetry.failed", "telemetry.other"}
    by_outcome = {f"delivery.{kind}" for kind in get_args(OutcomeKind)}
    counted = counted - {"*", "delivery.*"} | by_outcome | OVERHEARD
    assert {name for name in counted if not covered(name, documented)} == set()
    assert {name for name in documented if name not in counted} == set()


OVERHEARD = {"middleware.unread", "client.unread"}
"""Said with the name of the surface in front."""


def covered(name: str, documented: set[str]) -> bool:
    return name in documented or any(d.endswith(".*") and name.startswith(d[:-1]) for d in documented)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_commands_that_a_page_gives_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = []
    for line in re.findall(r"llm-metering ([^`\n]+)", text):
        words, command = line.split(), typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        options = {name for param in command.params for name in param.opts}
        if getattr(command, "commands", None) or not {w for w in words if w[:2] == "--"} <= options:
            missing.append(line)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_place_that_a_page_points_to_is_there(page: Path) -> None:
    missing = []
    for file, anchor in re.findall(r"\]\(([\w.-]*\.md)?#([\w-]+)\)", page.read_text(encoding="utf-8")):
        target = (DOCS / file if file else page).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.+)$", target, re.MULTILINE)
        if anchor not in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}:
            missing.append(f"{file}#{anchor}")
    assert missing == []
