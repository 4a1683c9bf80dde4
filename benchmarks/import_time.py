"""What importing `llm_metering` costs, alone and as the five lines of the README do, beside other imports.

Each import runs in a fresh interpreter, with compiled files, in turns; a figure is the median of its CPU
time. Read the ratios: the machine may be shared.

    python benchmarks/import_time.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

OURS = "import llm_metering"
FIVE_LINES = "from llm_metering import Metering, MeteringMiddleware, from_state"
REFERENCES = {
    "what it stands on": "import json, logging, sqlite3, dataclasses, pathlib, decimal",
    "starlette": "import starlette.applications",
    "the stripe SDK": "import stripe",
}
HEAVY = ("stripe", "tiktoken", "openai", "anthropic", "starlette", "anyio", "asyncio", "ssl", "http.client")
TARGET_MS = 50.0
PROGRAM = "import time; began = time.process_time(); {}; print(time.process_time() - began)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    imports = {"ours": OURS, "five lines": FIVE_LINES, **REFERENCES}
    with tempfile.TemporaryDirectory() as folder:
        environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environ["PYTHONPYCACHEPREFIX"] = folder
        for statement in imports.values():
            seconds(statement, environ)  # compiles
        took: dict[str, list[float]] = {name: [] for name in imports}
        for _ in range(rounds):
            for name, statement in imports.items():
                took[name].append(seconds(statement, environ))
        heavy = run(f"{FIVE_LINES}; import sys; print(*[m for m in {HEAVY!r} if m in sys.modules])", environ)
    ms = {name: statistics.median(times) * 1e3 for name, times in took.items()}
    for name in ("ours", "five lines"):
        verdict = "reached" if ms[name] <= TARGET_MS else "missed"
        print(f"{imports[name]:68} {ms[name]:7.1f} ms   target <= {TARGET_MS:.0f}: {verdict}")
    for name, statement in REFERENCES.items():
        print(f"  beside {name:59} {ms[name]:7.1f} ms   {ms['five lines'] / ms[name]:.2f} x  {statement}")
    print(f"  heavy modules that it loads: {heavy or 'none'}")


def seconds(statement: str, environ: dict[str, str]) -> float:
    return float(run(PROGRAM.format(statement), environ))


def run(program: str, environ: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
