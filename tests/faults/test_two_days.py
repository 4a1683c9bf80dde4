"""As an operator would: Stripe does not answer, then is gone for two days, and comes back.

The real delivery and the real ledger on a virtual clock, over real sockets to the sandbox; at each stage the
operator looks with `llm-metering status`. `docs/ledger.md` tells this story with what is printed here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llm_metering.__main__ import main
from llm_metering.ledger import SqliteLedger
from llm_metering.sandbox import Sandbox
from llm_metering.sandbox.app import create_app
from llm_metering.sandbox.running import served_app
from llm_metering.senders.reading import StripeReader
from llm_metering.senders.stripe_v1 import StripeSender
from llm_metering.senders.summaries import Summaries
from llm_metering.settling import Settler
from tests.simulation.world import DAY, HOUR, World

METER_EVENTS = "/v1/billing/meter_events"
DOUBTFUL = 3
"""Customers whose usage is on its way when Stripe stops to answer."""


class Operator:
    """A service's ledger and delivery, Stripe, and a person with a terminal."""

    def __init__(self, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.capsys = capsys
        began = float(int(time.time() - 3.5 * DAY) // 3600 * 3600)
        self.clock = SimpleNamespace(at=began)
        self.app = create_app(None, now=lambda: self.clock.at)
        self.served: Any = None
        self.heard: list[str] = []
        self.sandbox: Sandbox = self.serve()
        client = self.sandbox.client()
        client.v1.billing.meters.create(
            {
                "display_name": "Tokens",
                "event_name": "hypernian_tokens",
                "default_aggregation": {"formula": "sum"},
            }
        )
        self.customers = [str(client.v1.customers.create({"name": f"c{n}"}).id) for n in range(6)]
        sender = StripeSender(
            "sk_test_sandbox", api_base=self.sandbox.url, timeout_s=0.3, now=lambda: self.clock.at
        )
        self.world = World(sender, ledger=SqliteLedger(folder, adopt_after_s=0.0), flush_every_s=300)
        self.world.now = began
        self.world.latency_s = 0.05
        self.world.ledger.maintain(now=began)
        self.reader = StripeReader(
            "sk_test_sandbox", api_base=self.sandbox.url, per_s=10_000, sleep=lambda _: None
        )
        self.settler = Settler(
            self.world,
            lambda: Summaries(self.reader),
            self.world.telemetry,
            every_s=900,
            now=lambda: self.world.now,
            monotonic=lambda: self.world.now,
        )
        self.sender = sender
        for module in ("standing", "comparing", "deciding"):
            clock = SimpleNamespace(time=lambda: self.world.now)
            monkeypatch.setattr(f"llm_metering.cli.{module}.time", clock)

    def serve(self, port: int = 0) -> Sandbox:
        self.served = served_app(self.app, port)
        return self.served.__enter__()

    def stripe_is_gone(self) -> None:
        self.port = int(self.sandbox.url.rpartition(":")[2])
        self.served.__exit__(None, None, None)

    def stripe_is_back(self) -> None:
        self.app.faults.clear()
        self.sandbox = self.serve(self.port)

    def use(self, *customers: str, tokens: int) -> None:
        for customer in customers:
            self.world.use(customer, tokens)

    def pass_(self, seconds: float) -> None:
        """Time passes, for all; the settler looks every hour."""
        end = self.world.now + seconds
        while self.world.now < end:
            self.world.pass_(min(HOUR, end - self.world.now), each=self.tick)
            self.settler.step()

    def tick(self) -> None:
        self.clock.at = self.world.now

    def run(self, *command: str) -> tuple[int, str]:
        self.capsys.readouterr()
        code = main([*command, "--ledger", str(self.folder)])
        return code, self.capsys.readouterr().out

    def status(self) -> tuple[dict[str, Any], str]:
        """What `status` explains: by name, and as a person reads it."""
        code, out = self.run("status", "--json")
        document = json.loads(out)
        assert code == 0
        assert document["status"]["conserved"]
        code, text = self.run("status")
        assert code == 0
        for each in document["explanations"]:
            assert each["what"] in text.replace("\n", " ") or each["what"][1:] in text
        lines = [line for line in text.splitlines() if line.startswith("- ")]
        assert len(lines) == len(document["explanations"])
        return {each["about"]: each for each in document["explanations"]}, "\n".join(lines)

    def in_stripe(self) -> dict[str, Decimal]:
        sums: dict[str, Decimal] = {}
        for row in self.sandbox.books():
            sums[row.customer] = sums.get(row.customer, Decimal()) + row.value
        return sums

    def recorded(self) -> dict[str | None, Decimal]:
        sums: dict[str | None, Decimal] = {}
        for balance in self.world.ledger.balances():
            sums[balance.customer] = sums.get(balance.customer, Decimal()) + balance.recorded
        return sums

    def alarms(self) -> list[str]:
        """Those of the ledger and those of delivery."""
        self.heard += [alarm.name for alarm in self.world.ledger.take_alarms()]
        return self.heard + self.world.names()

    def states(self) -> dict[str, int]:
        return dict(self.world.ledger.status(now=self.world.now).events)


@pytest.fixture
def operator(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    in_memory = Path("/dev/shm")  # days of commits need not wait for a disk
    folder = Path(tempfile.mkdtemp(dir=in_memory if in_memory.is_dir() else tmp_path)) / "ledger"
    operator = Operator(folder, capsys, monkeypatch)
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_sandbox")
    monkeypatch.setenv("STRIPE_API_BASE", operator.sandbox.url)
    yield operator
    operator.sender.close()
    operator.reader.close()
    operator.world.ledger.close()
    operator.served.__exit__(None, None, None)
    operator.app.close()
    shutil.rmtree(folder.parent)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_days_without_stripe(operator: Operator) -> None:
    world = operator.world
    operator.use(*operator.customers, tokens=100)
    operator.pass_(900)
    found, _ = operator.status()
    assert found == {}, "nothing waits"

    # Stripe takes what it is sent and does not answer any more; then it is gone.
    operator.sandbox.fault("accept_then_hang", path=METER_EVENTS, count=DOUBTFUL, seconds=1.0)
    operator.use(*operator.customers[:DOUBTFUL], tokens=7)
    world.pass_until(lambda: operator.tick() or operator.states().get("AMBIGUOUS") == DOUBTFUL, within=900)
    operator.stripe_is_gone()
    gone_at = world.now
    operator.use(*operator.customers, tokens=10)
    operator.pass_(HOUR)

    found, text = operator.status()
    assert found["ambiguous"]["count"] == DOUBTFUL
    assert gone_at + 21.9 * HOUR < found["ambiguous"]["until"] < gone_at + 22.1 * HOUR
    assert "may have reached Stripe" in text
    assert "nothing new is sent" in found["pending"]["why"]
    assert "in_doubt" not in found
    assert operator.run("status", "--check")[0] == 0, "nothing waits for a person"

    operator.use(*operator.customers, tokens=20)
    operator.pass_(20 * HOUR)
    found, text = operator.status()
    assert found["ambiguous"]["count"] == DOUBTFUL
    assert "delivery.doubt_near" in operator.alarms()
    assert "delivery.in_doubt" not in operator.alarms()

    operator.pass_(2 * HOUR)
    found, text = operator.status()
    assert "ambiguous" not in found
    assert found["in_doubt"]["count"] == DOUBTFUL
    assert "Stripe's own sums decide" in text
    assert "llm-metering doubt list" in text
    assert operator.run("status", "--check")[0] == 1

    operator.use(*operator.customers, tokens=40)
    operator.pass_(25 * HOUR)
    found, text = operator.status()
    assert found["in_doubt"]["count"] == DOUBTFUL
    assert found["pending"]["count"] == 3 * len(operator.customers)
    assert found["pending"]["until"] > world.now + 30 * DAY
    assert "Stripe does not answer, or nobody delivers" in text

    operator.stripe_is_back()
    operator.pass_(HOUR)
    assert operator.states().get("PENDING", 0) == 0
    assert operator.states().get("AMBIGUOUS", 0) == 0
    operator.pass_(8 * HOUR)
    found, text = operator.status()
    assert found == {}, f"nothing needs a hand: {text}"
    assert set(operator.states()) <= {"SETTLED", "ACCEPTED"}
    assert operator.in_stripe() == operator.recorded()
    code, out = operator.run("reconcile", "--since", "4d")
    assert code == 0, out


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_the_sums_cannot_tell_is_settled_by_the_operator(operator: Operator) -> None:
    """Somebody else writes to the same customer's meter, another customer is deleted at Stripe meanwhile."""
    world = operator.world
    one, other, gone = operator.customers[:3]
    operator.use(one, other, gone, tokens=100)
    operator.pass_(900)
    operator.sandbox.fault("accept_then_hang", path=METER_EVENTS, count=1, seconds=1.0, customer=one)
    operator.sandbox.fault("500_before", path=METER_EVENTS, count=1, customer=other)
    operator.use(one, other, tokens=7)
    world.pass_until(lambda: operator.tick() or operator.states().get("AMBIGUOUS") == 2, within=900)
    doubtful = int(world.now) - 60
    for customer in (one, other):  # not the ledger's
        operator.sandbox.client().v1.billing.meter_events.create(
            {
                "event_name": "hypernian_tokens",
                "payload": {"stripe_customer_id": customer, "value": "7"},
                "timestamp": doubtful,
            }
        )
    operator.use(gone, tokens=10)
    operator.sandbox.client().v1.customers.delete(gone)
    operator.stripe_is_gone()
    operator.pass_(2 * DAY)
    operator.stripe_is_back()
    operator.pass_(9 * HOUR)
    found, text = operator.status()
    assert {name: each["count"] for name, each in found.items()} == {"in_doubt": 2, "dead": 1}, text
    assert "oracle.undecided" in operator.alarms()
    assert operator.run("reconcile", "--since", "4d")[0] == 1

    # The service goes on meanwhile; the person looks, and decides.
    _, out = operator.run("doubt", "list", "--json")
    by_customer = {e["customer"]: e["identifier"] for e in json.loads(out)["events"]}
    world.ledger.close()  # nobody holds the lane, so that the decision is carried out at once
    why = ("--reason", "asked the other team", "--yes")
    assert operator.run("doubt", "resolve", by_customer[one], "--arrived", *why)[0] == 0
    assert operator.run("doubt", "resolve", by_customer[other], "--not-arrived", *why)[0] == 0
    assert operator.run("dead", "write-off", "--all", *why)[0] == 0
    world.ledger.open(now=world.now)
    operator.pass_(HOUR)
    found, text = operator.status()
    assert found == {}, text
    assert operator.run("status", "--check")[0] == 0
    ours = operator.recorded()
    assert operator.in_stripe()[one] == ours[one] + 7, "the other writer's"
    assert operator.in_stripe()[other] == ours[other] + 7
