"""`python -m tests.fuzz --minutes 10`: try every target in turn, and say what broke."""

from __future__ import annotations

import argparse
import sys
import time
import warnings

from hypothesis.errors import NonInteractiveExampleWarning
from tests.fuzz.running import ROUND, fuzz
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, help="the first; default: drawn from the clock")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append")
    asked = parser.parse_args()
    warnings.simplefilter("ignore", NonInteractiveExampleWarning)
    names = asked.target or list(TARGETS)
    number = int(time.time()) if asked.seed is None else asked.seed
    seconds = asked.minutes * 60 / len(names)
    broken = 0
    for name in names:
        try:
            rounds = fuzz(name, seconds=seconds, first_seed=number)
        except AssertionError as exc:
            broken += 1
            print(f"{name}: BROKEN: {exc}\n  again: python -m tests.fuzz --minutes 0 --target {name} "
                  f"--seed {str(exc).partition('seed ')[2].partition(':')[0]}", flush=True)  # fmt: skip
        else:
            print(f"{name}: {rounds * ROUND} examples from seed {number}", flush=True)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
