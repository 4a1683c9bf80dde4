from __future__ import annotations

import sys
from typing import Any

import pytest
from llm_metering.cli.stage import Server, free_port
from tests.e2e.conftest import EXAMPLES, World, sandbox, serve, world
from tests.simulation.world import World as VirtualWorld

__all__ = ["sandbox", "serve", "world"]


class Uvicorn:
    """Starts the chat example under uvicorn, in a process of its own, with options of uvicorn's."""

    def start(self, world: World, *options: str, **env: str) -> Server:
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES / "fastapi_chat"), "app:app"]
        command += ["--port", str(port), "--log-level", "warning", "--no-access-log", *options]
        server = world.stage.launch("service", command, env=world.env(**env), port=port, ready_path="/health")
        world.stage.wait_for(server)
        return server


@pytest.fixture
def uvicorn() -> Uvicorn:
    return Uvicorn()


@pytest.fixture
def virtual() -> type[Any]:
    """A ledger, delivery and Stripe on a virtual clock."""
    return VirtualWorld
