"""What `import llm_metering` costs, beside imports that a service has anyway.

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

OURS = "llm_metering"
REFERENCES = {
    "what it stands on": "json, logging, sqlite3, dataclasses, pathlib, decimal",
    "starlette": "starlette.applications",
    "the stripe SDK": "stripe",
}
HEAVY = ("stripe", "tiktoken", "openai", "anthropic", "starlette", "anyio", "asyncio", "ssl", "http.client")
TARGET_MS = 50.0
PROGRAM = "import time; began = time.process_time(); import {}; print(time.process_time() - began)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    modules = {"ours": OURS, **REFERENCES}
    with tempfile.TemporaryDirectory() as folder:
        environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environ["PYTHONPYCACHEPREFIX"] = folder
        for module in modules.values():
            seconds(module, environ)  # compiles
        took: dict[str, list[float]] = {name: [] for name in modules}
        for _ in range(rounds):
            for name, module in modules.items():
                took[name].append(seconds(module, environ))
        heavy = run(f"import {OURS}, sys; print(*[m for m in {HEAVY!r} if m in sys.modules])", environ)
    ms = {name: statistics.median(times) * 1e3 for name, times in took.items()}
    verdict = "reached" if ms["ours"] <= TARGET_MS else "missed"
    print(f"{'import ' + OURS:52} {ms['ours']:7.1f} ms   target <= {TARGET_MS:.0f}: {verdict}")
    for name, module in REFERENCES.items():
        print(f"  beside {name:43} {ms[name]:7.1f} ms   {ms['ours'] / ms[name]:.2f} x  {module}")
    print(f"  heavy modules that it loads: {heavy or 'none'}")


def seconds(module: str, environ: dict[str, str]) -> float:
    return float(run(PROGRAM.format(module), environ))


def run(program: str, environ: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
