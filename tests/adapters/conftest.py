"""The provider stand-in on a socket, and a metering whose records stay in memory."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from llm_metering import Metering, Settings, UsageRecord, counting
from llm_metering.testing import capture_usage

EXAMPLES = Path(__file__).parents[2] / "examples"
if str(EXAMPLES) not in sys.path:
    sys.path.append(str(EXAMPLES))  # for provider_stand_in


def serve(app: Any) -> tuple[uvicorn.Server, threading.Thread, str]:
    """Serve an ASGI app from a thread of its own, on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="auto"))
    thread = threading.Thread(target=server.run, name="test-server", daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        assert thread.is_alive()
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    return server, thread, f"http://127.0.0.1:{port}"


class Provider:
    """What the stand-in said of itself."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.base_url = url + "/v1"

    def answers(self) -> list[dict[str, Any]]:
        return list(httpx.get(self.url + "/_tally").json()["answers"])

    def tokens(self, id: str) -> dict[str, int]:
        """What an answer used, by kind: reasoning is output."""
        return next(dict(each["tokens"]) for each in self.answers() if each["id"] == id)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            # The frameworks leave connections open; ours are closed.
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))


@pytest.fixture(autouse=True, scope="module")
def _left_open() -> Iterator[None]:
    """What they leave open goes while nobody minds."""
    yield
    if (litellm := sys.modules.get("litellm")) is not None:
        litellm.in_memory_llm_clients_cache.flush_cache()
    gc.collect()


@pytest.fixture(scope="session")
def _stand_in() -> Iterator[str]:
    from provider_stand_in import create_app

    counting.load("o200k_base")
    server, thread, url = serve(create_app())
    yield url
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def provider(_stand_in: str) -> Provider:
    return Provider(_stand_in)


class Used:
    """What was recorded, once there is as much as a test expects."""

    def __init__(self, captured: Any, metering: Metering) -> None:
        self._captured = captured
        self.metering = metering

    def records(self, count: int = 1, *, within_s: float = 5) -> list[UsageRecord]:
        deadline = time.monotonic() + within_s
        while len(found := self._captured.records) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(found) == count, found
        assert not self.failures, self.failures
        return list(found)

    @property
    def failures(self) -> dict[str, int]:
        return {k: v for k, v in self.metering.telemetry.snapshot().items() if k.startswith("failure")}

    def only(self) -> UsageRecord:
        return self.records(1)[0]

    def still(self, count: int) -> list[UsageRecord]:
        """So many, and no more a moment later: callbacks come late."""
        self.records(count)
        time.sleep(0.3)
        return self.records(count)


@pytest.fixture
def metering(tmp_path: Path) -> Metering:
    return Metering(customer="cus_a", ledger=tmp_path / "ledger", settings=Settings())


@pytest.fixture
def used(metering: Metering) -> Iterator[Used]:
    with capture_usage(metering) as captured:
        yield Used(captured, metering)


@pytest.fixture
def serving() -> Iterator[Callable[[Any], str]]:
    """Serve an app until the test is over."""
    running = []

    def start(app: Any) -> str:
        server, thread, url = serve(app)
        running.append((server, thread))
        return url

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)
