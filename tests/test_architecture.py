"""The shape of the package: imports go downward, the public face is what it says, import is cheap."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import llm_metering
import pytest

PACKAGE = Path(llm_metering.__file__).parent

FLOORS = {
    "_failpoints": 1,
    "_forks": 0,
    "_lazy": 0,
    "_redact": 1,
    "_values": 0,
    "decisions": 1,
    "errors": 1,
    "fields": 1,
    "protocols": 1,
    "settings": 1,
    "usage": 1,
    "counting": 2,
    "providers": 2,
    "sse": 2,
    "customers": 3,
    "ledger": 3,
    "meters": 3,
    "oracle": 3,
    "senders": 3,
    "telemetry": 3,
    "capture": 4,
    "delivery": 4,
    "flusher": 4,
    "forwarder": 4,
    "handover": 4,
    "health": 4,
    "reports": 4,
    "settling": 4,
    "adapters": 5,
    "carrying": 5,
    "metering": 5,
    "wiring": 5,
    "billing": 6,
    "reconcile": 6,
    "webhooks": 6,
    "sandbox": 6,
    "testing": 6,
    "cli": 7,
    "__main__": 8,
    "__init__": 8,
}
"""`cli` stands on the sixth floor too, but alone may import its neighbours."""

MAY_MEET = {
    ("protocols", "usage"),
    ("protocols", "decisions"),
    ("settings", "errors"),
    ("settings", "usage"),
    ("providers", "sse"),
    ("providers", "counting"),
    ("flusher", "delivery"),
    ("adapters", "carrying"),
    ("metering", "wiring"),
    ("settling", "reports"),
    ("testing", "sandbox"),
}
"""Neighbours that may meet, in this direction only: words are made of words, the readers of streams stand
on the SSE parser, what a provider did not report is counted, the flusher turns delivery over, and metering is
wired of parts."""

ON_ITS_OWN = {"sandbox"}
"""Imports nothing of the package: a mistake it shared with us would agree with itself."""


def area_of(module: str) -> str:
    return module.split(".")[0] if module else "__init__"


def imports_of(path: Path) -> set[str]:
    """The areas of this package that a file imports, whichever way it spells them."""
    inside = path.relative_to(PACKAGE).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= _from_import(node, inside)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "llm_metering"]
            found |= {area_of(name.partition(".")[2]) for name in names}
    return found


def _from_import(node: ast.ImportFrom, inside: tuple[str, ...]) -> set[str]:
    if node.level == 0:
        first, _, rest = (node.module or "").partition(".")
        if first != "llm_metering":
            return set()
        return {area_of(rest)} if rest else {_area_or_init(alias.name) for alias in node.names}
    base = list(inside[: len(inside) - node.level])
    module = base + (node.module.split(".") if node.module else [])
    if module:
        return {module[0]}
    return {_area_or_init(alias.name) for alias in node.names}


def _area_or_init(name: str) -> str:
    return name if name in FLOORS else "__init__"


def files() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "examples" not in p.relative_to(PACKAGE).parts)


def problems_of(path: Path) -> list[str]:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    bad = []
    for other in imports_of(path) - {own}:
        if own in ON_ITS_OWN:
            bad.append(f"{own} imports {other}, but stands on its own")
        elif FLOORS[other] > FLOORS[own]:
            bad.append(f"{own} (floor {FLOORS[own]}) imports {other} (floor {FLOORS[other]})")
        elif FLOORS[other] == FLOORS[own] and (own, other) not in MAY_MEET:
            bad.append(f"{own} imports its neighbour {other}")
    return bad


def test_every_module_has_a_floor() -> None:
    areas = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files()}
    assert areas <= set(FLOORS), f"give these a floor: {areas - set(FLOORS)}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    assert problems_of(path) == []


def test_an_upward_import_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    bad = tmp_path / "usage.py"
    bad.write_text("def f():\n    from .ledger.sqlite import SqliteLedger\n")
    assert problems_of(bad) == ["usage (floor 1) imports ledger (floor 3)"]
    neighbour = tmp_path / "senders"
    neighbour.mkdir()
    (neighbour / "stripe_v1.py").write_text("from ..ledger import states\nimport llm_metering.cli.main\n")
    assert sorted(problems_of(neighbour / "stripe_v1.py")) == [
        "senders (floor 3) imports cli (floor 7)",
        "senders imports its neighbour ledger",
    ]


def test_all_is_sorted_and_says_what_can_be_imported() -> None:
    # `dir` names what is loaded when it is first asked for, too.
    found = {name: getattr(llm_metering, name) for name in dir(llm_metering) if not name.startswith("_")}
    public = {name for name, value in found.items() if not isinstance(value, type(sys))}
    assert sorted(llm_metering.__all__) == llm_metering.__all__
    assert set(llm_metering.__all__) == public


@pytest.mark.parametrize("package", ["llm_metering", "llm_metering.ledger", "llm_metering.counting"])
def test_what_is_loaded_when_named_is_what_the_type_checker_is_shown(package: str) -> None:
    """The imports under `TYPE_CHECKING` and the names that are loaded later are the same, from the same."""
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    (guard,) = [node for node in tree.body if isinstance(node, ast.If)]
    shown = {
        alias.name: f".{node.module}"
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (later,) = [node for each in guard.orelse for node in ast.walk(each) if isinstance(node, ast.Dict)]
    assert shown == ast.literal_eval(later)
    assert shown.keys() <= set(module.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_public_things_have_docstrings() -> None:
    bare = [n for n in llm_metering.__all__ if not (getattr(llm_metering, n).__doc__ or "").strip()]
    assert bare == []


def test_import_loads_nothing_heavy() -> None:
    heavy = [
        "stripe",
        "tiktoken",
        "openai",
        "anthropic",
        "starlette",
        "anyio",
        "asyncio",
        "ssl",
        "http.client",
        "typer",
        "rich",
        "litellm",
        "langchain_core",
        "pydantic_ai",
        "agents",
        "opentelemetry",
        "celery",
        "rq",
        "brotli",
        "zstandard",
        "backports.zstd",
        # Of ours, what a program that only meters its requests has no use for until it starts.
        "llm_metering.ledger.memory",
        "llm_metering.ledger.sqlite",
        "llm_metering.senders.connection",
        "llm_metering.settling",
        "llm_metering.counting",
        "sqlite3",
    ]
    code = f"import sys, llm_metering; print(*(m for m in {heavy!r} if m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []
