"""Real servers for the end-to-end tests: uvicorn in a thread or as a process, a local Stripe, a provider."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from llm_metering import billing
from llm_metering.cli.demo_books import Audit, Kind, Sent, audit, recorded_in
from llm_metering.cli.demo_load import Fate, Load, calls
from llm_metering.cli.stage import Server, Stage, free_port
from llm_metering.ledger import LedgerView
from llm_metering.protocols import LedgerStatus
from llm_metering.sandbox import Sandbox, running_sandbox

EXAMPLES = Path(__file__).parents[2] / "examples"
KEYS = ("key-ada", "key-ben", "key-cleo")

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
def sandbox() -> Iterator[Sandbox]:
    """A local Stripe, empty."""
    with running_sandbox() as stripe:
        yield stripe


class World:
    """A service in a process of its own, its callers, a provider and a Stripe; and the books of all three."""

    def __init__(self, stage: Stage, sandbox: Sandbox, provider: Any, provider_url: str) -> None:
        self.stage = stage
        self.sandbox = sandbox
        self.provider = provider
        self.provider_url = provider_url
        self.stripe_url = sandbox.url
        self.ledger = stage.folder / "ledger"
        self.fates: list[Fate] = []
        client = sandbox.client()
        billing.apply(billing.PayAsYouGo(), client)
        self.customers = [billing.create_customer(client, key) for key in KEYS]

    def start(self, folder: Path = EXAMPLES / "fastapi_chat", app: str = "app:app", **env: str) -> Server:
        """Start a service under uvicorn; by default the chat example."""
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(folder), app, "--port", str(port)]
        command += ["--log-level", "warning", "--no-access-log"]
        ready_path = "/health"
        server = self.stage.launch("service", command, env=self.env(**env), port=port, ready_path=ready_path)
        self.stage.wait_for(server)
        return server

    def env(self, **more: str) -> dict[str, str]:
        """The environment of the service; the user's own metering settings are left out."""
        keys = zip(KEYS, self.customers, strict=True)
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("LLM_METERING_")},
            "OPENAI_API_KEY": "any",
            "OPENAI_BASE_URL": f"{self.provider_url}/v1",
            "STRIPE_API_KEY": self.sandbox.api_key,
            "STRIPE_API_BASE": self.stripe_url,
            "LLM_METERING_LEDGER": str(self.ledger),
            "LLM_METERING_BUCKET_S": "1",
            "LLM_METERING_FLUSH_EVERY_S": "0.2",
            "CHAT_API_KEYS": ",".join(f"{key}={customer}" for key, customer in keys),
            **more,
        }

    def ask(self, service: Server, count: int, *, seed: int = 1, callers: int = 6) -> Load:
        """Start asking questions; `answered` waits for the end."""
        load = Load(service.port, calls(seed=seed, count=count, keys=KEYS), callers=callers)
        load.start()
        return load

    def answered(self, load: Load) -> None:
        assert load.wait_until(lambda: load.is_done, timeout_s=30), "calls hang"
        self.fates += load.fates

    def status(self) -> LedgerStatus:
        return LedgerView(self.ledger).status(now=time.time())

    def wait_for_delivery(self, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while _unsettled(status := self.status()):
            assert time.monotonic() < deadline, f"not delivered: {status}"
            time.sleep(0.03)
        assert status.conserved

    def wait_for(self, ready: Callable[[], object], timeout_s: float = 15) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            assert time.monotonic() < deadline, "it did not come true"
            time.sleep(0.03)

    def in_stripe(self) -> dict[Kind, Decimal]:
        sums: dict[Kind, Decimal] = {}
        for row in self.sandbox.books():
            kind = Kind(row.customer, row.dimensions["model"], row.dimensions["token_type"])
            sums[kind] = sums.get(kind, Decimal()) + row.value
        return sums

    def compare(self) -> Audit:
        """Hold the three books against what the callers got."""
        return audit(
            sent=[_sent(answer) for answer in self.provider.answers],
            answered=[str(fate.response_id) for fate in self.fates if fate.whole],
            cut=sum(not fate.whole for fate in self.fates),
            recorded=recorded_in(self.ledger),
            in_stripe=self.in_stripe(),
        )


def _unsettled(status: LedgerStatus) -> Sequence[str] | bool:
    waiting = status.unfrozen_records or status.streams_under_way
    return bool(waiting or status.events.keys() - {"ACCEPTED"})


def _sent(answer: Any) -> Sent:
    kinds = {Kind(answer.customer, answer.model, t): Decimal(n) for t, n in answer.by_type().items()}
    return Sent(answer.id, kinds)


@pytest.fixture
def world(serve: Serve, sandbox: Sandbox) -> Iterator[World]:
    """Everything but the service, which the test starts."""
    from provider_stand_in import create_app

    app = create_app(seed=1, delay_s=0.004)
    with Stage() as stage:
        yield World(stage, sandbox, app.state.provider, serve(app))
