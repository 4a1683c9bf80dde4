"""Stripe is down, or the key is wrong: the service goes on, and all is delivered once when that is over."""

from __future__ import annotations

import time

import pytest
from llm_metering.cli.stage import free_port

pytestmark = pytest.mark.once


def test_a_wrong_key_pauses_consumes_nothing_and_a_restart_with_the_right_one_delivers(world):
    world.sandbox.app.service.keys = {world.sandbox.api_key}
    service = world.start(STRIPE_API_KEY="sk_test_wrong")
    world.answered(world.ask(service, 20))
    world.wait_for(lambda: world.status().paused)
    assert all(fate.whole for fate in world.fates)
    assert world.status().events.keys() <= {"PENDING"}
    assert world.status().account is None
    assert world.in_stripe() == {}
    service.stop()
    log = service.log.read_text()
    assert log.count("delivery.paused") == 1, log
    assert "sk_test_wrong" not in log

    service.env = world.env()
    world.stage.relaunch(service)
    world.wait_for_delivery()
    found = world.compare()
    assert found.is_right, found.problems
    assert found.answered == 20
    assert world.status().paused is None


def test_a_key_that_becomes_right_resumes_delivery_by_itself(world):
    world.sandbox.app.service.keys = {"sk_test_another"}
    service = world.start()
    world.answered(world.ask(service, 10))
    world.wait_for(lambda: world.status().paused)
    assert world.in_stripe() == {}
    world.sandbox.app.service.keys = None
    world.wait_for_delivery()
    found = world.compare()
    assert found.is_right, found.problems
    assert world.status().paused is None


def test_usage_of_a_service_that_ended_while_stripe_was_down_is_delivered_once_after_a_restart(
    world, tmp_path
):
    world.stripe_url = f"http://127.0.0.1:{free_port()}"
    service = world.start()
    world.answered(world.ask(service, 20))
    world.wait_for(lambda: world.status().events.get("PENDING"))
    began = time.monotonic()
    service.stop()
    assert time.monotonic() - began < 5, "Stripe being down held up the exit"
    assert all(fate.whole for fate in world.fates)
    assert world.in_stripe() == {}
    assert world.status().conserved

    service.env = {**service.env, "STRIPE_API_BASE": world.sandbox.url}
    world.stage.relaunch(service)
    world.wait_for_delivery()
    found = world.compare()
    assert found.is_right, found.problems
    assert found.answered == 20


def test_an_event_that_stripe_took_without_answering_is_billed_once(world):
    world.sandbox.fault("accept_then_reset", path="/v1/billing/meter_events", after=2)
    service = world.start()
    world.answered(world.ask(service, 20))
    world.wait_for_delivery()
    assert not world.sandbox.app.faults.waiting(), "no event met the fault"
    found = world.compare()
    assert found.is_right, found.problems
    assert found.answered == 20
