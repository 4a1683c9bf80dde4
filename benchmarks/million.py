"""A million calls of a thousand customers: recorded, frozen, delivered to the sandbox, the books compared.

    python benchmarks/million.py [--calls 20000] [--customers 1000] [--sender v1|stream] [--folder DIR]

The calls are recorded through the public face into a durable ledger, each with tokens of its own; the sandbox
runs in a process of its own. Printed are the times, the peak of this process's memory, the bytes on disk, and
whether the books agree for every customer and kind of token. The default number of calls is small;
`--calls 1000000` is the run that the title speaks of. A difference between the books ends it with status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import stripe
from llm_metering import Metering, Settings, Usage
from llm_metering.sandbox import running_sandbox

Books = dict[tuple[str, str], Decimal]


# ---- Stripe's side


def serve() -> None:
    with running_sandbox() as sandbox:
        print(sandbox.url, flush=True)
        sys.stdin.read()  # until the benchmark ends


@contextmanager
def sandbox_process() -> Iterator[str]:
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.communicate()


def set_up(base: str, customers: int) -> list[str]:
    client = stripe.StripeClient("sk_test_sandbox", base_addresses={"api": base})
    client.v1.billing.meters.create(
        {
            "display_name": "Tokens",
            "event_name": "hypernian_tokens",
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }
    )
    return [client.v1.customers.create({"name": f"c{i}"}).id for i in range(customers)]


def stripes_books(base: str) -> Books:
    ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    ask(urllib.request.Request(f"{base}/_sandbox/settle", b"{}", method="POST")).close()
    with ask(f"{base}/_sandbox/books") as answer:
        rows = json.loads(answer.read(), parse_float=Decimal)["rows"]
    found: Books = {}
    for row in rows:
        assert not row["refused"], row
        key = (row["customer"], row["dimensions"]["token_type"])
        found[key] = found.get(key, Decimal(0)) + Decimal(row["value"])
    return found


# ---- ours


def record(metering: Metering, customers: list[str], calls: int) -> Counter[tuple[str, str]]:
    """Record every call, never far ahead of the disk; what was used, counted beside the ledger."""
    used: Counter[tuple[str, str]] = Counter()
    for i in range(calls):
        customer = customers[i % len(customers)]
        usage = Usage(input=500 + i % 1000, cached_input=i % 300, output=20 + i % 97)
        metering.record(usage, customer=customer, model="gpt-5-mini", provider="openai", id=f"call-{i}")
        used[customer, "input"] += usage.input or 0
        used[customer, "cached_input"] += usage.cached_input or 0
        used[customer, "output"] += usage.output or 0
        while i % 1000 == 0 and i - committed(metering) > 20_000:
            time.sleep(0.01)
    return used


def committed(metering: Metering) -> int:
    return metering.telemetry.snapshot().get("ledger.committed", 0)


def our_books(metering: Metering) -> tuple[Books, bool]:
    balances = metering.run_on_ledger(lambda ledger: ledger.view()).balances()
    found: Books = {}
    for b in balances:
        assert b.customer is not None
        key = (b.customer, dict(b.dimensions)["token_type"])
        found[key] = found.get(key, Decimal(0)) + b.accepted
    return found, all(b.conserved for b in balances)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# ---- the run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--customers", type=int, default=1000)
    parser.add_argument("--sender", choices=["v1", "stream"], default="v1")
    parser.add_argument("--folder", help="where the ledger is made; a disk like yours")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return
    with sandbox_process() as base, tempfile.TemporaryDirectory(dir=args.folder) as folder:
        customers = set_up(base, args.customers)
        ledger = Path(folder) / "ledger"
        settings = Settings(
            stripe_api_key="sk_test_sandbox",
            stripe_api_base=base,
            ledger=str(ledger),
            sender=args.sender,
            flush_every_s=1.0,
        )
        with Metering(settings=settings) as metering:
            ok = run(metering, customers, args.calls, base, ledger)
        print(f"{'on disk once closed':34}{bytes_in(ledger) / 2**20:9.1f} MiB")
    sys.exit(0 if ok else 1)


def run(metering: Metering, customers: list[str], calls: int, base: str, ledger: Path) -> bool:
    before = peak_mib()
    began = time.perf_counter()
    used = record(metering, customers, calls)
    recorded_in = time.perf_counter() - began
    left = metering.flush(3600)
    took = time.perf_counter() - began
    peak, on_disk = peak_mib(), bytes_in(ledger)
    ours, conserved = our_books(metering)
    theirs = stripes_books(base)
    wanted = {key: Decimal(value) for key, value in used.items() if value}
    events = metering.status().events
    print(f"{calls} calls of {len(customers)} customers became {sum(events.values())} meter events")
    print(
        f"{'recorded in':34}{recorded_in:9.1f} s  {recorded_in / calls * 1e6:9.1f} µs a call, on its thread"
    )
    print(f"{'recorded, frozen and delivered in':34}{took:9.1f} s  {calls / took:9.0f} calls/s")
    print(f"{'peak memory':34}{peak:9.1f} MiB{peak - before:9.1f} MiB above an idle process")
    print(f"{'on disk, delivered':34}{on_disk / 2**20:9.1f} MiB{on_disk / calls:9.0f} bytes a call")
    ok = not left and conserved and wanted == ours == theirs
    print(f"{'used = accepted = Stripe has':34}{'equal' if ok else 'NOT EQUAL'}, {len(wanted)} sums")
    return ok


if __name__ == "__main__":
    os.environ["NO_PROXY"] = "127.0.0.1"
    main()
