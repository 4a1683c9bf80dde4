"""Real servers for the end-to-end tests: uvicorn on a free port, in a thread or as a process."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from llm_metering.sandbox import running_sandbox

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

if str(EXAMPLES) not in sys.path:
    sys.path.append(str(EXAMPLES))  # for provider_stand_in

Serve = Callable[[Any], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve an ASGI app with uvicorn in a thread; returns its URL."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: Any) -> str:
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the server ended"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.005)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in reversed(running):
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def sandbox() -> Iterator[Any]:
    """A local Stripe with the guides' meter."""
    with running_sandbox() as stripe:
        yield stripe
