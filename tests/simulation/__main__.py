"""`python -m tests.simulation --seeds N --start K`: play many lives, and say which went wrong.

`--trace` tells the story of each; one seed and `--trace` is how a life that went wrong is looked at.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from typing import cast

from tests.simulation.lives import Kind, Tally, live
from tests.simulation.world import BrokenRule

CHUNK = 50


def kind_of(seed: int, ledger: str) -> Kind:
    """Which ledger a seed is played on: SQLite takes ten times as long as memory, so one life in fifty."""
    if ledger == "mixed":
        return "sqlite" if seed % 50 == 0 else "memory"
    return cast("Kind", ledger)


def play(seeds: range, ledger: str) -> tuple[list[Tally], list[str]]:
    tallies, broken = [], []
    for seed in seeds:
        kind = kind_of(seed, ledger)
        try:
            tallies.append(live(seed, kind))
        except (BrokenRule, Exception) as exc:
            again = f"python -m tests.simulation --seeds 1 --start {seed} --ledger {kind} --trace"
            broken.append(f"seed {seed} ({kind}): {type(exc).__name__}: {exc}\n  again: {again}")
    return tallies, broken


def main() -> int:
    asked = _arguments()
    if asked.trace:
        for seed in range(asked.start, asked.start + asked.seeds):
            print(f"seed {seed}")
            print(live(seed, kind_of(seed, asked.ledger), say=print))
        return 0
    began = time.monotonic()
    chunks = [
        range(at, min(at + CHUNK, asked.start + asked.seeds))
        for at in range(asked.start, asked.start + asked.seeds, CHUNK)
    ]
    tallies: list[Tally] = []
    broken: list[str] = []
    with ProcessPoolExecutor(asked.jobs) as pool:
        for n, (some, wrong) in enumerate(pool.map(play, chunks, [asked.ledger] * len(chunks)), start=1):
            tallies += some
            broken += wrong
            for line in wrong:
                print(line, flush=True)
            if n % 20 == 0:
                print(f"{len(tallies) + len(broken)} lives, {len(broken)} wrong", flush=True)
    _report(tallies, broken, time.monotonic() - began)
    return 1 if broken else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many lives")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--ledger", choices=("memory", "sqlite", "postgres", "mixed"), default="mixed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--trace", action="store_true", help="tell the story of each life")
    return parser.parse_args()


def _report(tallies: list[Tally], broken: list[str], took_s: float) -> None:
    names = [f.name for f in fields(Tally) if f.type == "int" and f.name != "seed"]
    sums = {name: sum(getattr(t, name) for t in tallies) for name in names}
    states: Counter[str] = sum((t.states for t in tallies), Counter())
    kinds = Counter(t.kind for t in tallies)
    print(f"{len(tallies)} lives well, {len(broken)} wrong, in {took_s:.0f} s ({dict(kinds)})")
    print(", ".join(f"{n} {name}" for name, n in sums.items()))
    print("events in the end: " + ", ".join(f"{n} {state}" for state, n in states.most_common()))


if __name__ == "__main__":
    sys.exit(main())
