"""The examples as a reader would run them: uvicorn in a process of its own, the stand-in beside it."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from llm_metering.cli.stage import Server, Stage, free_port
from llm_metering.ledger import LedgerView

EXAMPLES = Path(__file__).parents[2] / "examples"
if str(EXAMPLES) not in sys.path:
    sys.path.append(str(EXAMPLES))  # for provider_stand_in


@dataclass
class Ground:
    """A stage with the stand-in on it, and a ledger."""

    stage: Stage
    provider: Server
    ledger: Path

    def start(self, example: str, *, ready_path: str, **env: str) -> Server:
        folder = ("--app-dir", str(EXAMPLES / example), "app:app")
        return _start(self.stage, example, *folder, ready_path=ready_path, **self.env(**env))

    def env(self, **more: str) -> dict[str, str]:
        meant_for_others = ("LLM_METERING_", "STRIPE_", "OPENAI_")
        kept = {n: v for n, v in os.environ.items() if not n.startswith(meant_for_others)}
        return {**kept, "LLM_METERING_LEDGER": str(self.ledger), **more}

    def records(self, count: int) -> list[dict[str, Any]]:
        """All records, once there are so many."""
        deadline = time.monotonic() + 10
        view = LedgerView(self.ledger)
        while view.status(now=time.time()).usage_records < count:
            assert time.monotonic() < deadline, f"fewer than {count} records"
            time.sleep(0.02)
        return [record for lane in self.ledger.glob("lane-*.db") for record in _records(lane)]


def _records(lane: Path) -> list[dict[str, Any]]:
    db = sqlite3.connect(f"{lane.absolute().as_uri()}?mode=ro", uri=True)
    db.row_factory = sqlite3.Row
    rows = [dict(row) for row in db.execute("SELECT * FROM usage ORDER BY seq")]
    db.close()
    return [
        {**row, "counts": json.loads(row["counts"]), "dimensions": json.loads(row["dimensions"])}
        for row in rows
    ]


def _start(stage: Stage, name: str, *args: str, ready_path: str, **env: str) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", *args, "--port", str(port), "--log-level", "warning"]
    server = stage.launch(name, command, env=env, port=port, ready_path=ready_path)
    stage.wait_for(server)
    return server


@pytest.fixture
def ground() -> Iterator[Ground]:
    with Stage() as stage:
        app = ("--app-dir", str(EXAMPLES), "provider_stand_in:create_app", "--factory")
        provider = _start(stage, "provider", *app, ready_path="/_tally", **os.environ)
        yield Ground(stage, provider, stage.folder / "ledger")
