"""Recorded exchanges and payload files, and their wire forms."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_metering.usage import LEAVES, Usage

PAYLOADS = Path(__file__).parent / "payloads"


def shared() -> Path:
    root = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("LLM_METERING_SHARED", root.parent / "shared"))


def exchanges_folder() -> Path:
    named = os.environ.get("LLM_METERING_EXCHANGES")
    return Path(named) if named else shared() / "exchanges"


@pytest.fixture(scope="session")
def exchanges() -> dict[str, list[dict[str, Any]]]:
    """The recorded exchanges by provider."""
    folder = exchanges_folder()
    if not folder.is_dir():
        pytest.skip(f"the recorded exchanges are not at {folder}")
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.setdefault(row["provider"], []).append(row)
    return found


def payloads() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(PAYLOADS.glob("*.json")):
        yield path.stem, json.loads(path.read_text(encoding="utf-8"))


def leaves(usage: Usage) -> dict[str, int]:
    return {name: value for name in LEAVES if (value := getattr(usage, name)) is not None}


def sse(events: list[Any], *, done: bool = True) -> bytes:
    """The wire form of a stream; Anthropic's events are named."""
    parts = []
    for event in events:
        kind = event.get("type")
        named = isinstance(kind, str) and ("_" in kind or kind == "ping")
        parts.append((f"event: {kind}\n" if named else "") + f"data: {compact(event)}\n\n")
    return ("".join(parts) + ("data: [DONE]\n\n" if done else "")).encode()


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
