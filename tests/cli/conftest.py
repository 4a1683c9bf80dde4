"""The command line as a user has it: its exit code, its stdout, its stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import stripe
from llm_metering.__main__ import main
from llm_metering.ledger import SqliteLedger
from llm_metering.protocols import Entry, Outcome
from llm_metering.sandbox import Sandbox, running_sandbox
from llm_metering.usage import Line, Usage, UsageRecord

stripe.enable_telemetry = False

T0 = 1_700_000_040.0


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the developer's own, and a folder to stand in."""
    for name in list(os.environ):
        if name.startswith(("STRIPE_", "LLM_METERING_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command in this process."""

    def call(*argv: str) -> Ran:
        capsys.readouterr()
        code = main(list(argv))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture
def spawn() -> Callable[..., Ran]:
    """Run a command in a process of its own."""

    def call(*argv: str, **env: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "llm_metering", *argv],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def one_sandbox() -> Iterator[Sandbox]:
    with running_sandbox() as running:
        yield running


@pytest.fixture
def sandbox(one_sandbox: Sandbox) -> Sandbox:
    """A real sandbox on a socket, empty."""
    one_sandbox.clear_faults()
    one_sandbox.reset()
    return one_sandbox


@pytest.fixture
def at(sandbox: Sandbox) -> list[str]:
    """The options that name the sandbox."""
    return ["--sandbox", sandbox.url]


@pytest.fixture
def client(sandbox: Sandbox) -> stripe.StripeClient:
    return sandbox.client()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    """A real ledger with usage in every state, still open, as beside a running service."""
    made = SqliteLedger(tmp_path / "ledger")
    made.open(now=T0)
    made.bind("acct_1 (test)")
    usages = {"cus_accepted": 100, "cus_dead": 20, "cus_doubt": 3, "cus_pending": 4}
    made.commit([entry(customer, value, T0) for customer, value in usages.items()], [], now=T0)
    made.commit([entry(None, 50, T0), entry("cus_held", 9, T0, held="unreadable")], [], now=T0)
    made.freeze(now=T0 + 120, bucket_s=60)
    outcomes = {"cus_accepted": "accepted", "cus_dead": "refused_data", "cus_doubt": "duplicate"}
    for claim in made.claim(now=T0 + 121, limit=10):
        kind: Any = outcomes.get(claim.event.customer, "not_sent")
        made.finish(claim, Outcome(kind, message="as told"), now=T0 + 122)
    yield made
    made.close()


def entry(customer: str | None, value: int, at: float, held: str | None = None) -> Entry:
    record = UsageRecord(
        id=f"rec_{customer}_{value}",
        usage=Usage(input=value),
        used_at=at,
        customer=customer,
        model="gpt-5-mini",
        held=held,
    )
    dimensions = (("model", "gpt-5-mini"), ("token_type", "input"))
    return Entry(record, (Line("hypernian_tokens", value, dimensions),))
