"""The documentation names what there is, and names nothing that is not."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

import llm_metering
import pytest
from llm_metering.settings import Settings, variable

from .test_docs_faults import missing_of, named_in

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


def text_of(*pages: Path) -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in pages or PAGES)


@pytest.mark.parametrize("setting", fields(Settings), ids=lambda f: f.name)
def test_every_setting_is_documented_with_its_variable_and_default(setting) -> None:
    row = next(
        (
            r
            for r in (ROOT / "docs/settings.md").read_text().splitlines()
            if r.startswith(f"| `{setting.name}` ")
        ),
        None,
    )
    assert row is not None, f"docs/settings.md lacks {setting.name}"
    assert f"`{variable(setting.name)}`" in row
    if setting.default not in (MISSING, None) and not isinstance(setting.default, tuple):
        assert f"| `{setting.default}` |" in row


def test_no_setting_is_documented_that_is_not_there() -> None:
    named = set(
        re.findall(r"^\| `(\w+)` \| `[A-Z_]+` \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    )
    assert named == {f.name for f in fields(Settings)}


@pytest.mark.parametrize("name", llm_metering.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert re.search(rf"\b{name}\b", text_of()), f"{name} is in no page of the documentation"


PACKAGES = {
    "agents": "openai-agents",
    "google": "google-genai",
    "langchain_core": "langchain-core",
    "opentelemetry": "opentelemetry-sdk",
    "pydantic_ai": "pydantic-ai",
    "yaml": "pyyaml",
}
THERE = {"anyio", "llm_metering", "pydantic", "starlette"}
"""With this package, or with FastAPI."""


@pytest.mark.parametrize(
    "example", sorted({p.parent for p in (ROOT / "examples").glob("*/*.py")}), ids=lambda p: p.name
)
def test_what_an_example_imports_is_named_in_its_row(example: Path) -> None:
    rows = (ROOT / "docs/examples.md").read_text().splitlines()
    [row] = [row for row in rows if f"(../examples/{example.name})" in row]
    trees = [ast.parse(path.read_text()) for path in example.glob("*.py")]
    names = {name.partition(".")[0] for tree in trees for name in imported(tree)}
    own = {path.stem for path in example.glob("*.py")}
    needed = {PACKAGES.get(name, name) for name in names - own - THERE - sys.stdlib_module_names}
    assert needed <= set(re.split(r"[^\w-]+", row.rpartition(" | ")[2]))


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_every_bug_of_others_has_tests_that_are_there() -> None:
    section = (ROOT / "docs/accuracy.md").read_text(encoding="utf-8").partition("## What others got wrong")[2]
    [_, *rows] = re.findall(r"^\| (?!---).*", section, re.MULTILINE)
    assert len(rows) == 13
    assert [row for row in rows if not named_in(row)] == []
    assert missing_of([name for row in rows for name in named_in(row)]) == []
