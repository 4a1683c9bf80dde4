"""Real signals to a service under uvicorn: what it had seen is in the books, and it ends when it should.

Rows 21 and 22 of docs/faults.md. The provider sends a word every `delay_s`, so a stream can be made to
outlive any grace period.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SLOW_S = 0.3
"""Between two words of a stream that is not to end by itself."""


def end(server: Any, within_s: float) -> float:
    """Wait for a process that was told to end; how long it took."""
    began = time.monotonic()
    server.process.wait(within_s)
    return time.monotonic() - began


def tell(server: Any, *signals: signal.Signals, pause_s: float = 0.3) -> None:
    for n, number in enumerate(signals):
        if n:
            time.sleep(pause_s)
        if server.is_running:
            os.kill(server.process.pid, number)


def after_a_restart(world: Any, server: Any, load: Any | None) -> Any:
    """Start the service again on the same ledger, and hold the books against what the callers got."""
    world.provider.delay_s = 0.004
    world.stage.relaunch(server)
    if load is not None:
        world.answered(load)
    world.wait_for_delivery()
    found = world.compare()
    assert found.is_right, found.problems
    return found


def test_sigterm_while_idle_ends_at_once_with_everything_on_disk(world, uvicorn):
    server = uvicorn.start(world)
    world.answered(world.ask(server, 20))
    tell(server, signal.SIGTERM)
    assert end(server, 10) < 5
    status = world.status()
    assert status.usage_records == 20
    assert status.streams_under_way == 0
    assert status.conserved
    assert "Traceback" not in server.log.read_text()
    assert after_a_restart(world, server, None).answered == 20


def test_sigterm_lets_streams_end_that_end_within_the_grace_period(world, uvicorn):
    world.provider.delay_s = 0.03
    server = uvicorn.start(world, "--timeout-graceful-shutdown", "20")
    load = world.ask(server, 30)
    assert load.wait_until(lambda: load.streaming >= 2, timeout_s=20)
    streaming = load.streaming
    tell(server, signal.SIGTERM)
    assert end(server, 25) < 20
    assert "Traceback" not in server.log.read_text()
    found = after_a_restart(world, server, load)
    # A call may come to a door that is just being closed; of none that went in was the answer cut.
    assert found.answered == len(world.provider.answers), "an answer was cut that had time to end"
    assert found.answered + found.cut == 30
    assert streaming >= 2


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGTERM,),
        (signal.SIGINT,),
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGKILL),
    ],
    ids=lambda signals: "+".join(s.name for s in signals),
)
def test_streams_that_outlive_the_grace_period_are_billed_for_what_was_produced(world, uvicorn, signals):
    world.provider.delay_s = SLOW_S
    server = uvicorn.start(world, "--timeout-graceful-shutdown", "1")
    load = world.ask(server, 12, callers=6)
    assert load.wait_until(lambda: load.streaming >= 2, timeout_s=20)
    time.sleep(1.5)
    tell(server, *signals)
    # One second of grace, at most five to let requests to Stripe end, and the interpreter's own end.
    assert end(server, 20) < 9
    produced = {a.id: a.words_sent for a in world.provider.answers if a.stream and a.state != "whole"}
    assert produced, "no stream was under way"
    found = after_a_restart(world, server, load)
    assert found.cut >= 2
    assert_what_was_produced_is_billed(world, produced)


def assert_what_was_produced_is_billed(world: Any, produced: dict[str, int]) -> None:
    """Each stream that was cut is on record with its words, at most two seconds of them short."""
    from llm_metering.cli.demo_books import recorded_in

    recorded = {r.response_id: r for r in recorded_in(world.ledger)}
    for id_, words in produced.items():
        if words == 0:
            continue  # it had said nothing yet
        assert id_ in recorded, f"{words} words of {id_} left no trace"
        billed = sum(int(n) for kind, n in recorded[id_].tokens.items() if kind.token_type == "output")
        short = words - billed
        # Two seconds between rows, and what was on its way from the provider to us.
        assert short <= 2 / SLOW_S + 3, f"{billed} of {words} words of {id_} are billed"
        assert recorded[id_].provenance == "partial"
