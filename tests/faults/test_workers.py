"""Four workers on one ledger, under load, killed one by one and all at once: each has a lane of its own, what
the dead left is delivered by the living within 30 seconds, and the books are those of the callers.

Rows 21, 31 and 32 of docs/faults.md. Under gunicorn the app is loaded, metering started and usage recorded
before the workers are forked.
"""

from __future__ import annotations

import importlib.util
import os
import random
import re
import signal
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from llm_metering.cli.demo_books import Audit, Kind, Sent, audit, recorded_in
from llm_metering.cli.stage import Server, free_port
from tests.faults.test_signals import SLOW_S, assert_what_was_produced_is_billed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

EXAMPLE = Path(__file__).parents[2] / "examples/fastapi_chat"
SEED = int(os.environ.get("LLM_METERING_SEED") or time.time_ns() % 1_000_000)
ADOPTED_WITHIN_S = 30.0
MASTERS_OWN = 7

PRELOADED = f'''
"""Starts metering and uses it before gunicorn forks: threads, a queue, an open database and a lock."""
import os, sys
sys.path.insert(0, {str(EXAMPLE)!r})
from app import app, metering
from llm_metering import Usage
metering.start()
name = f"master-{{os.getpid()}}"
metering.record(Usage(input={MASTERS_OWN}), customer=os.environ["MASTER"], model="m", id=name)
'''


def start(world: Any, kind: str, *, grace_s: int = 30) -> Server:
    port = free_port()
    if kind == "gunicorn":
        for module in ("gunicorn", "uvicorn_worker"):
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"{module} is not installed")
        (world.stage.folder / "preloaded.py").write_text(PRELOADED)
        command = [sys.executable, "-m", "gunicorn", "preloaded:app", "--preload", "-w", "4"]
        command += ["-k", "uvicorn_worker.UvicornWorker", "-b", f"127.0.0.1:{port}", "--log-level", "warning"]
        command += ["--chdir", str(world.stage.folder), "--graceful-timeout", str(grace_s)]
    else:
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLE), "app:app", "--workers", "4"]
        command += ["--port", str(port), "--log-level", "warning", "--no-access-log"]
        command += ["--timeout-graceful-shutdown", str(grace_s)]
    env = world.env(MASTER=world.customers[0])
    server = world.stage.launch(kind, command, env=env, port=port, ready_path="/health")
    world.stage.wait_for(server)
    return server


def workers(server: Server) -> list[int]:
    """The processes under the master that serve: those that hold our lanes or may soon."""
    assert server.process is not None
    return [pid for pid in children(server.process.pid) if "resource_tracker" not in command_of(pid)]


def children(master: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == master and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def wait_until_four(world: Any, server: Server) -> None:
    world.wait_for(lambda: len(workers(server)) >= 4, timeout_s=20)
    world.wait_for(lambda: lanes_in_use(world, server) >= 4, timeout_s=20)


def lanes_in_use(world: Any, server: Server) -> int:
    """How many living workers have signed a lane's lock, each its own."""
    signed = []
    for lock in world.ledger.glob("lane-*.lock"):
        found = re.match(r'{"pid": (\d+)', lock.read_text(errors="replace"))
        signed += [int(found[1])] if found else []
    return len({pid for pid in workers(server) if pid in signed})


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn"])
def test_four_workers_that_are_killed_at_random_bill_each_answer_once(world, kind):
    luck = random.Random(SEED)
    server = start(world, kind)
    try:
        wait_until_four(world, server)
        load = world.ask(server, 160, seed=luck.randrange(2**32), callers=8)
        for _ in range(3):
            time.sleep(luck.uniform(0.1, 0.5))
            world.wait_for(lambda: workers(server), timeout_s=20)  # those killed before are being replaced
            living = workers(server)
            for pid in luck.sample(living, min(len(living), luck.choice([1, 2]))):
                os.kill(pid, signal.SIGKILL)
        world.answered(load)
        killed_at = time.monotonic()
        world.wait_for_delivery(timeout_s=ADOPTED_WITHIN_S)  # by those that live
        print(f"seed {SEED}: delivered {time.monotonic() - killed_at:.1f} s after the last call")
        load = world.ask(server, 60, seed=luck.randrange(2**32), callers=8)
        time.sleep(luck.uniform(0.1, 0.4))
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGKILL)  # the master alone; its workers serve on, or end
        time.sleep(0.3)
        server.kill()
        world.stage.relaunch(server)
        world.answered(load)
        world.wait_for_delivery(timeout_s=ADOPTED_WITHIN_S)
    finally:
        server.kill()
    found = check(world, kind)
    assert found.answered > found.cut, f"seed {SEED}"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn"])
@pytest.mark.parametrize("grace_s", [15, 1], ids=["streams end within the grace", "grace exceeded"])
def test_sigterm_to_the_master_with_streams_under_way_in_four_workers(world, kind, grace_s):
    server = start(world, kind, grace_s=grace_s)
    try:
        wait_until_four(world, server)
        world.provider.delay_s = SLOW_S if grace_s < 2 else 0.03
        load = world.ask(server, 24, seed=SEED, callers=16)
        assert load.wait_until(lambda: load.streaming >= 4, timeout_s=30)
        if grace_s < 2:
            time.sleep(1.5)
        assert server.process is not None
        began = time.monotonic()
        os.kill(server.process.pid, signal.SIGTERM)
        server.process.wait(grace_s + 20)
        took = time.monotonic() - began
        # At most five more to let requests to Stripe end, and the interpreters' own end, four at once.
        assert took < grace_s + 10, f"it ended {took:.1f} s after it was told to"
        produced = {a.id: a.words_sent for a in world.provider.answers if a.stream and a.state != "whole"}
        world.provider.delay_s = 0.004
        world.stage.relaunch(server)
        world.answered(load)
        world.wait_for_delivery(timeout_s=ADOPTED_WITHIN_S)
    finally:
        server.kill()
    found = check(world, kind)
    if grace_s < 2:
        assert produced, f"seed {SEED}: no stream was under way"
        assert found.cut >= 2
        assert_what_was_produced_is_billed(world, produced)
    else:
        # A call that came as the door closed was never asked.
        assert found.cut_recorded == 0, f"seed {SEED}: an answer was cut that had time to end"


def check(world: Any, kind: str) -> Audit:
    in_stripe = world.in_stripe()
    masters = in_stripe.pop(Kind(world.customers[0], "m", "input"), 0)
    recorded = [r for r in recorded_in(world.ledger) if all(kind.model != "m" for kind in r.tokens)]
    # The master recorded once in each of its two lives, each time in a lane that did not know the other.
    assert masters == (2 * MASTERS_OWN if kind == "gunicorn" else 0)
    found = audit(
        sent=[
            Sent(a.id, {Kind(a.customer, a.model, t): Decimal(n) for t, n in a.by_type().items()})
            for a in world.provider.answers
        ],
        answered=[str(fate.response_id) for fate in world.fates if fate.whole],
        cut=sum(not fate.whole for fate in world.fates),
        recorded=recorded,
        in_stripe=in_stripe,
    )
    assert found.is_right, f"seed {SEED}: {found.problems}"
    assert world.status().conserved
    assert world.status().events.keys() <= {"ACCEPTED"}
    return found
