"""`kill -9` under load, over and over: what a caller was answered is billed once, what was cut at most once.

The service is examples/fastapi_chat under uvicorn in a process of its own, on one ledger all the time. Each
round asks questions, kills the service at a random moment, starts it again on the same ledger (and in some
rounds kills it again while it starts), and then holds the sandbox's books against what the callers got.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time

import pytest

KILLS = int(os.environ.get("LLM_METERING_KILLS", "50"))
SEED = int(os.environ.get("LLM_METERING_SEED") or time.time_ns() % 1_000_000)
CALLS_A_ROUND = 30
CALLERS = 6
POINTS = (
    "before_commit:9", "after_commit:9", "in_freeze:2", "after_freeze:2", "after_claim:2", "after_response:3",
    "before_finish:3", "after_finish:3",
)  # fmt: skip

pytestmark = pytest.mark.slow


def play_round(world, service, luck: random.Random) -> int:
    """One batch of questions with a kill in it; how many kills it was."""
    load = world.ask(service, CALLS_A_ROUND, seed=luck.randrange(2**32), callers=CALLERS)
    kills = 1
    time.sleep(luck.uniform(0.0, 0.6))
    service.kill()
    while luck.random() < 0.25:
        # Starting takes most of a second: this hits the imports, the opening and adopting of the ledger,
        # the first requests, or the resending.
        world.stage.relaunch(service, wait=False)
        time.sleep(luck.uniform(0.2, 1.4))
        service.kill()
        kills += 1
    world.stage.relaunch(service)
    world.answered(load)
    world.wait_for_delivery()
    return kills


@pytest.mark.timeout(420)
def test_after_each_of_fifty_kills_the_books_equal_what_was_answered(world, capsys):
    luck = random.Random(SEED)
    service = world.start()
    began, kills, rounds = time.monotonic(), 0, 0
    while kills < KILLS:
        kills += play_round(world, service, luck)
        rounds += 1
        found = world.compare()
        assert found.is_right, f"seed {SEED}, round {rounds}: {found.problems}"
    service.stop()
    log = service.log.read_text()
    with capsys.disabled():
        print(
            f"\n  seed {SEED}: {kills} kills in {rounds} rounds, {time.monotonic() - began:.0f} s; "
            f"{found.answered} answered in full, each once in Stripe's books ({found.in_stripe} tokens); "
            f"{found.cut} cut, of which {found.cut_recorded} on record, each once; "
            f"{world.status().lanes} lanes"
        )
    assert found.answered > found.cut, "too few calls were answered to prove anything"
    assert found.cut >= KILLS / 2, "the kills hit nobody"
    assert found.cut_recorded > 0
    assert "Traceback" not in log, log[-4000:]


@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_each_step_from_answer_to_stripe_loses_nothing_and_doubles_nothing(point, world):
    service = world.start(LLM_METERING_FAILPOINT=point)
    load = world.ask(service, 60)
    assert load.wait_until(lambda: not service.is_running, timeout_s=20), f"never came to {point}"
    service.env = world.env()
    world.stage.relaunch(service)
    world.answered(load)
    world.wait_for_delivery()
    found = world.compare()
    assert found.is_right, found.problems
    assert found.answered > 20


def test_no_answer_ends_before_its_usage_is_on_disk(world):
    service = world.start(LLM_METERING_COMMIT_TIMEOUT_S="60")
    # A disk that takes no writes: somebody else holds the lane's lock.
    (lane,) = world.ledger.glob("lane-*.db")
    disk = sqlite3.connect(lane, isolation_level=None)
    disk.execute("BEGIN IMMEDIATE")
    load = world.ask(service, 20, callers=CALLERS)
    world.wait_for(lambda: len(world.provider.answers) == CALLERS)
    assert not load.wait_until(lambda: bool(load.fates), timeout_s=1.5), "answered before the commit"
    assert len(world.provider.answers) == CALLERS, "somebody went on"
    service.kill()
    disk.close()
    world.stage.relaunch(service)
    world.answered(load)
    world.wait_for_delivery()
    found = world.compare()
    assert found.is_right, found.problems
    assert found.answered + found.cut == 20
    assert found.answered > 0
    assert found.cut >= CALLERS  # and those that the dying service's port still took
