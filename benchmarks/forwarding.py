"""What a call waits for its usage: in lanes that are forwarded to PostgreSQL, and in the ledger of one host.

    python benchmarks/forwarding.py            # needs PostgreSQL on this machine

Calls come at a steady pace; each waits until its record is on disk, as the last message of a response does.
The two take turns, several times; told are the medians of the rounds, and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from llm_metering import Metering, Settings, Usage, UsageRecord
from llm_metering.ledger.postgres import PostgresBooks, migrate

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.ledger.postgres.cluster import Cluster, needed


def waits_ms(metering: Metering, name: str, calls: int, per_s: float) -> list[float]:
    """How long each call waited."""
    waits = []
    at = time.perf_counter()
    for n in range(calls):
        at += 1 / per_s
        time.sleep(max(at - time.perf_counter(), 0))
        record = UsageRecord(f"{name}-{n}", Usage(input=10, output=5), time.time(), "cus_1", "gpt-5-mini")
        began = time.perf_counter()
        assert metering.recorder.sink.put(record).wait(30)
        waits.append((time.perf_counter() - began) * 1000)
    return sorted(waits)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=600)
    parser.add_argument("--per-s", type=float, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    cluster = Cluster(needed())
    found: dict[str, list[tuple[float, float]]] = {"one host": [], "forwarded": []}
    try:
        cluster.start()
        url = cluster.new_database()
        migrate(url)
        with TemporaryDirectory() as folder:
            places = {"one host": f"{folder}/ledger", "forwarded": url}
            for turn in range(asked.rounds):
                for name, ledger in places.items():
                    settings = Settings(lane_folder=f"{folder}/lanes", deliver="external", encodings=())
                    with Metering("cus_1", ledger=ledger, settings=settings) as metering:
                        waits_ms(metering, f"warm-{name}-{turn}", 50, asked.per_s)
                        waits = waits_ms(metering, f"{name}-{turn}", asked.calls, asked.per_s)
                    found[name].append((statistics.median(waits), waits[int(len(waits) * 0.99)]))
        records = PostgresBooks(url).status(now=time.time()).usage_records
        assert records == asked.rounds * (asked.calls + 50), "all of it was forwarded"
    finally:
        cluster.remove()
    rows = {name: [statistics.median(r) for r in zip(*rounds, strict=True)] for name, rounds in found.items()}
    for name, (p50, p99) in rows.items():
        print(f"{name:10}  p50 {p50:6.2f} ms   p99 {p99:6.2f} ms")
    one, two = rows["one host"], rows["forwarded"]
    print(
        f"ratio       p50 {two[0] / one[0]:6.2f}      p99 {two[1] / one[1]:6.2f}      (target: at most 1.1)"
    )


if __name__ == "__main__":
    main()
