"""Row 41 of docs/faults.md: ten times the traffic for a while. Nothing is lost; memory stays bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from llm_metering.ledger import LedgerView

SERVICE = """
import json, os, sys, threading, time
from llm_metering import Metering, Settings
from llm_metering.senders.memory import MemorySender
from llm_metering.usage import Usage

folder, usual, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
stripe = MemorySender()
settings = Settings(ledger=folder, encodings=(), bucket_s=1, flush_every_s=0.5)
metering = Metering(settings=settings, sender=stripe)
metering.start()
recorded, slowest = 0, 0.0

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

def load(per_s, for_s):
    global recorded, slowest
    began, done, waits = time.monotonic(), 0, []
    while (now := time.monotonic() - began) < for_s:
        while done < now * per_s:
            at = time.perf_counter()
            metering.record(Usage(input=3, output=1), customer=f"cus_{done % 20}", model=f"m{done % 3}")
            waits.append(time.perf_counter() - at)
            done += 1
        time.sleep(0.005)
    recorded += done
    return sorted(waits)[int(len(waits) * 0.99)]

load(usual, seconds)
before = rss()
usual_p99 = load(usual, seconds)
spike_p99 = load(10 * usual, seconds * 3)
peak = rss()
load(usual, seconds)
left = metering.flush(60)
status = metering.status()
snapshot = metering.telemetry.snapshot()
metering.stop()
print(json.dumps({
    "recorded": recorded, "left": left, "on_disk": status.usage_records, "conserved": status.conserved,
    "in_stripe": int(sum(e.value for e in stripe.accepted)), "grew_mib": peak - before,
    "refused": snapshot.get("ledger.refused", 0), "usual_p99": usual_p99, "spike_p99": spike_p99,
    "events": len(stripe.accepted), "failures": {k: v for k, v in snapshot.items() if "failure" in k},
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads its memory from /proc")
def test_ten_times_the_traffic_loses_nothing_and_stays_bounded(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SERVICE, str(tmp_path / "ledger"), "300", "3"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["recorded"] > 300 * 9 + 3000 * 9 * 0.9
    assert told["on_disk"] == told["recorded"], told
    assert told["in_stripe"] == 4 * told["recorded"], told
    assert told["left"] == told["refused"] == 0, told
    assert told["conserved"]
    assert told["failures"] == {}
    # A record is some hundred bytes on disk and nothing in memory once it is committed; what grows here is
    # the double's own list of what it accepted.
    assert told["grew_mib"] < 30, told
    # A second's usage of one customer, model and kind is one event, however many calls it was.
    assert told["events"] < 20 * 3 * 2 * 25, told
    assert told["spike_p99"] < 0.005, told
    size = sum(path.stat().st_size for path in (tmp_path / "ledger").glob("lane-*.db"))
    assert size < 1000 * told["recorded"]
    assert LedgerView(tmp_path / "ledger").status(now=time.time()).conserved
