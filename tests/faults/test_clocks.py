"""Stripe tells the time: a clock that was set while the machine was down makes nobody pay twice.

Row 35 of docs/faults.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_metering import billing
from llm_metering.ledger import SqliteLedger
from llm_metering.ledger.clocks import Boot
from llm_metering.sandbox import Sandbox, running_sandbox
from llm_metering.senders.stripe_v1 import StripeSender
from tests.simulation.world import HOUR, START, World

EVENTS = "/v1/billing/meter_events"
pytestmark = pytest.mark.boot_clock


class Machine(World):
    """A service on a machine whose wall clock may be set back; Stripe goes by the time itself, `now`."""

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        self.folder = folder
        self.sandbox = sandbox
        self.set_back_s = 0.0
        self.runs = 1
        super().__init__(self.new_sender(), ledger=self.new_ledger())

    @property
    def wall(self) -> float:
        return self.now - self.set_back_s

    def new_sender(self) -> StripeSender:
        return StripeSender("sk_test_sandbox", api_base=self.sandbox.url, timeout_s=0.5)

    def new_ledger(self) -> Any:
        def boot() -> Boot:
            return Boot(f"run {self.runs}", self.now)

        return SqliteLedger(self.folder, adopt_after_s=0, random=lambda: 0.5, boot=boot)

    def doubt(self) -> None:
        """An event that Stripe has, and whose answer never came."""
        self.use(str(self.sandbox.client().v1.customers.create({"name": "Ada"}).id), tokens=70)
        self.sandbox.fault("accept_then_hang", path=EVENTS, seconds=2.0)
        self.pass_until(lambda: self.states() == {"AMBIGUOUS": 1})

    def goes_down(self, for_s: float, *, set_back_s: float) -> None:
        """The machine is off for a while, and comes back with another clock."""
        self.ledger.close()
        self.stripe.close()
        self.now += for_s
        self.set_back_s = set_back_s
        self.runs += 1
        self.stripe, self.ledger = self.new_sender(), self.new_ledger()
        self.start_process()

    def listen(self) -> None:
        """One answer in a second is listened to, of those that pass in truth."""
        self.stripe.clock.listen_at = 0.0

    def attempts(self) -> int:
        (row,) = self.ledger.events()
        return int(row.attempts)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made: list[Machine] = []
    with running_sandbox(now=lambda: made[0].now if made else START) as sandbox:
        billing.apply(billing.PayAsYouGo(), sandbox.client())
        made.append(Machine(tmp_path / "ledger", sandbox))
        yield made[0]
        made[0].ledger.close()
        made[0].stripe.close()


def test_what_stripe_has_forgotten_is_not_sent_again_by_a_machine_that_came_up_with_an_old_clock(machine):
    machine.doubt()
    machine.goes_down(25 * HOUR, set_back_s=15 * HOUR)  # ten hours, as it seems
    machine.pass_until(lambda: machine.states() == {"IN_DOUBT": 1})
    assert machine.attempts() == 1
    assert machine.sandbox.books().total() == 70
    (alarm,) = [a for a in machine.ledger.take_alarms() if a.name == "ledger.clock_went_back"]
    assert alarm.data["by_s"] == pytest.approx(15 * HOUR, abs=60)


def test_what_stripe_remembers_is_sent_again_as_soon_as_it_has_told_the_time(machine):
    machine.doubt()
    machine.goes_down(15 * HOUR, set_back_s=10 * HOUR)
    machine.pass_until(lambda: machine.states() == {"ACCEPTED": 1}, within=60)
    assert machine.attempts() == 2
    assert machine.sandbox.books().total() == 70


def test_a_refusal_tells_the_time_as_well_and_pauses_nothing(machine):
    """A key need not be allowed to read anything, once it is known to be ours."""
    machine.doubt()
    machine.sandbox.fault("403", method="GET", count=None)
    machine.goes_down(HOUR, set_back_s=0.0)
    machine.pass_until(lambda: machine.states() == {"ACCEPTED": 1}, within=60)
    assert machine.attempts() == 2
    assert machine.flusher.paused is None
    assert machine.names() == []


def test_pages_of_a_proxy_tell_nothing_and_stripe_is_asked_again(machine):
    machine.doubt()
    machine.sandbox.fault("html", method="GET", status=502, count=3)
    machine.goes_down(25 * HOUR, set_back_s=15 * HOUR)
    machine.pass_(15, each=machine.listen)
    assert machine.states() == {"AMBIGUOUS": 1}
    assert machine.attempts() == 1
    machine.pass_(30, each=machine.listen)
    assert machine.states() == {"IN_DOUBT": 1}
    assert machine.attempts() == 1
