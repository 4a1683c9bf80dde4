"""docs/cli.md names every command and every option, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from llm_metering.cli.app import app

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
EVERYWHERE = {"--help", "--json", "--version"}


def commands(command: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every command by what is typed for it."""
    inner = getattr(command, "commands", None)
    if inner is None:
        return {" ".join(path): command}
    found: dict[str, Any] = {}
    for name, sub in inner.items():
        found |= commands(sub, (*path, name))
    return found


COMMANDS = commands(typer.main.get_command(app))


def options_of(command: Any) -> set[str]:
    return {n for p in command.params for n in (*p.opts, *p.secondary_opts) if n.startswith("--")}


def section_of(name: str) -> str:
    """The part of the page about a command, and the part about all that talk to Stripe."""
    parts = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
    return parts[name.split()[0]] + parts["Which Stripe account"] + PAGE.partition("##")[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name: str) -> None:
    section = section_of(name)
    assert name.split()[-1] in section or f"## {name}" in PAGE
    missing = {o for o in options_of(COMMANDS[name]) if not re.search(rf"{o}(?![\w-])", section)}
    assert missing == set()


def test_no_option_is_documented_that_is_not_there() -> None:
    known = set().union(*map(options_of, COMMANDS.values())) | EVERYWHERE
    assert set(re.findall(r"--[a-z][a-z-]*", PAGE)) <= known


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_json_when_asked(name: str) -> None:
    assert "--json" in options_of(COMMANDS[name])
