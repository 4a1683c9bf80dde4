"""A person's pause: nothing is sent, nothing is lost, and no key lifts it."""

from __future__ import annotations

from llm_metering.delivery import Flush
from llm_metering.errors import LedgerError
from llm_metering.protocols import Outcome
from tests.simulation.world import HOUR, World

ADA = {"who": "ada", "why": "prices are wrong"}


def test_while_a_person_has_paused_nothing_is_sent_and_then_everything_once() -> None:
    world = World()
    world.ledger.pause(**ADA, now=world.now)
    for i in range(5):
        world.use(f"cus_{i}")
    world.pass_(2 * HOUR)
    assert world.stripe.attempts == []
    assert world.flusher.paused == "by ada: prices are wrong"
    assert world.states() == {"PENDING": 5}
    assert world.is_conserved()
    world.ledger.resume(**ADA, now=world.now)
    world.pass_until(world.settled, within=60)
    assert world.states() == {"ACCEPTED": 5}
    assert len(world.stripe.attempts) == 5
    assert world.flusher.paused is None


def test_a_pause_that_comes_while_sends_are_under_way_lets_them_end() -> None:
    world = World()
    world.latency_s = 5
    for i in range(30):
        world.use(f"cus_{i}")
    world.pass_until(lambda: world.states().get("ACCEPTED"))
    assert world.states()["SENDING"] > 0
    world.ledger.pause(**ADA, now=world.now)
    world.pass_(60)
    accepted = world.states()["ACCEPTED"]
    assert world.states() == {"ACCEPTED": accepted, "PENDING": 30 - accepted}
    world.pass_(HOUR)
    assert world.states()["ACCEPTED"] == accepted < 30


def test_a_good_key_does_not_lift_a_persons_pause() -> None:
    world = World()
    world.use()
    world.stripe.otherwise = Outcome("refused_config", 401)
    world.pass_(120)
    assert world.ledger.meta("paused")
    world.ledger.pause(**ADA, now=world.now)
    world.stripe.otherwise = "accepted"
    world.pass_(2 * HOUR)
    assert world.stripe.accepted == []
    assert world.ledger.status(now=world.now).paused == "by ada: prices are wrong"
    world.ledger.resume(**ADA, now=world.now)
    world.pass_until(world.settled, within=600)
    assert world.states() == {"ACCEPTED": 1}


def test_a_pause_is_no_busy_loop_and_keeps_nobody_waiting_who_flushes() -> None:
    world = World()
    world.ledger.pause(**ADA, now=world.now)
    world.use()
    waiting = Flush(world.now + 300)
    world.flusher._delivery.flushes.append(waiting)
    world.pass_(30)
    assert waiting.done.is_set()
    before = world.turns
    world.pass_(HOUR)
    assert world.turns - before <= 2 * HOUR / world.settings.flush_every_s + 2


def test_while_it_is_not_known_whether_a_person_has_paused_nothing_is_sent(monkeypatch) -> None:
    world = World()

    def fails() -> None:
        raise LedgerError("the folder cannot be read")

    world.use()
    with monkeypatch.context() as patch:
        patch.setattr(world.ledger, "paused_by", fails)
        world.pass_(600)
        assert world.stripe.attempts == []
        assert "delivery.failing" in world.names()
    world.pass_until(world.settled, within=120)
    assert world.states() == {"ACCEPTED": 1}
