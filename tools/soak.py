"""Minutes of trouble, and then the audit: `make soak`, or `python tools/soak.py --minutes 3`.

The chat example serves with four uvicorn workers over one ledger. Callers ask for plain answers and streams
without a pause. Stripe (the sandbox) refuses, hangs, fails before and after accepting, breaks off, slows down
and loses answers in turn, through its own `/_sandbox/faults`. At random a worker, or the whole service, is
killed with `kill -9`. In the end everything is well again, and three books are compared: what the provider
sent and callers got, what the ledger recorded, and what Stripe bills. Exit 1 unless recorded = Stripe's
books, nothing is there twice, nothing is left unexplained, and the workers' memory stayed flat.
"""

# ruff: noqa: S101, S310, S311  (a test in all but name)
from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from llm_metering import billing
from llm_metering.cli.demo_books import Kind, Sent, audit, recorded_in
from llm_metering.cli.demo_load import Load, calls
from llm_metering.cli.stage import Server, Stage, free_port
from llm_metering.ledger import LedgerView
from llm_metering.sandbox import Sandbox, running_sandbox

EXAMPLES = Path(__file__).parent.parent / "examples"
KEYS = ("key-ada", "key-ben", "key-cleo", "key-dan")
WORKERS = 4
BATCH = 400
"""Calls a load is made of; the next one begins when these are answered."""
EVENTS = "/v1/billing/meter_events"
FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "refuse", "seconds": 4.0},
    {"kind": "accept_then_hang", "count": 3, "seconds": 12.0},
    {"kind": "500_before", "count": 20},
    {"kind": "500_after", "count": 20},
    {"kind": "accept_then_reset", "count": 10},
    {"kind": "truncated", "count": 10},
    {"kind": "429", "count": 30},
    {"kind": "429_lock", "count": 10},
    {"kind": "409", "count": 10},
    {"kind": "slow", "count": 10, "seconds": 2.0},
    {"kind": "html", "status": 502, "count": 10},
    {"kind": "401", "count": 5},
)
FLAT_MIB = 20.0
"""How much a worker may grow from its first minute on."""
SETTLE_S = 180.0


@dataclass
class Memory:
    """What the workers hold, by process."""

    samples: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def note(self, pid: int, at: float) -> None:
        with suppress(OSError, ValueError, IndexError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            self.samples.setdefault(pid, []).append((at, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))

    def growth(self) -> dict[int, tuple[float, float, float]]:
        """For processes that lived long enough: MiB after their first half minute, at the end, and how long
        they were watched."""
        found = {}
        for pid, samples in self.samples.items():
            warm = [mib for at, mib in samples if at - samples[0][0] >= 30]
            if len(warm) >= 10:
                third = max(len(warm) // 3, 1)
                first, last = sum(warm[:third]) / third, sum(warm[-third:]) / third
                found[pid] = (first, last, samples[-1][0] - samples[0][0])
        return found


class Soak:
    """The service, its callers, the provider and Stripe, and those who make trouble."""

    def __init__(self, stage: Stage, sandbox: Sandbox, seed: int, *, kills: bool) -> None:
        self.kills = kills
        self.stage = stage
        self.sandbox = sandbox
        self.luck = random.Random(seed)
        self.ledger = stage.folder / "ledger"
        self.done: Counter[str] = Counter()
        self.memory = Memory()
        self.fates: list[Any] = []
        client = sandbox.client()
        billing.apply(billing.PayAsYouGo(), client)
        self.customers = [billing.create_customer(client, key) for key in KEYS]
        self.provider = self._start_provider()
        self.service = self._start_service()

    def _start_provider(self) -> Server:
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "--factory", "--app-dir", str(EXAMPLES)]
        command += ["provider_stand_in:create_app", "--port", str(port), "--log-level", "warning"]
        env = {**os.environ, "STAND_IN_SEED": "1", "STAND_IN_DELAY_S": "0.01"}
        server = self.stage.launch("provider", command, env=env, port=port, ready_path="/_tally")
        self.stage.wait_for(server)
        return server

    def _start_service(self) -> Server:
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES / "fastapi_chat"), "app:app"]
        command += [
            "--port",
            str(port),
            "--workers",
            str(WORKERS),
            "--log-level",
            "warning",
            "--no-access-log",
        ]
        pairs = ",".join(f"{key}={customer}" for key, customer in zip(KEYS, self.customers, strict=True))
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LLM_METERING_")},
            "OPENAI_API_KEY": "any",
            "OPENAI_BASE_URL": f"{self.provider.url}/v1",
            "STRIPE_API_KEY": self.sandbox.api_key,
            "STRIPE_API_BASE": self.sandbox.url,
            "LLM_METERING_LEDGER": str(self.ledger),
            "LLM_METERING_BUCKET_S": "1",
            "LLM_METERING_FLUSH_EVERY_S": "0.5",
            "CHAT_API_KEYS": pairs,
        }
        server = self.stage.launch("service", command, env=env, port=port, ready_path="/health")
        self.stage.wait_for(server)
        return server

    # Trouble.

    def workers(self) -> list[int]:
        assert self.service.process is not None
        found = []
        for child in _children(self.service.process.pid):
            with suppress(OSError):
                if b"multiprocessing.spawn" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(child)
        return found

    def make_trouble(self, until: float) -> None:
        """Callers call, Stripe fails in turn, processes die, until the time is over."""
        load: Load | None = None
        fault_at = kill_at = sample_at = time.monotonic()
        kill_at += 10
        number = 0
        while (now := time.monotonic()) < until:
            if load is None or load.is_done:
                self.take(load)
                number += 1
                load = Load(self.service.port, calls(seed=number, count=BATCH, keys=KEYS), callers=12)
                load.start()
            if now >= fault_at:
                self.fail()
                fault_at = now + self.luck.uniform(2, 6)
            if self.kills and now >= kill_at:
                self.kill()
                kill_at = now + self.luck.uniform(2, 12)
            if now >= sample_at:
                for pid in self.workers():
                    self.memory.note(pid, now)
                sample_at = now + 1
            load.wait_until(lambda load=load: load.is_done, timeout_s=0.2)  # type: ignore[misc]
        assert load is not None
        if not load.wait_until(lambda: load.is_done, timeout_s=120):
            raise RuntimeError("callers hang")
        self.take(load)

    def take(self, load: Load | None) -> None:
        self.fates += [] if load is None else load.fates

    def fail(self) -> None:
        fault = dict(self.luck.choice(FAULTS))
        self.done[f"Stripe: {fault['kind']}"] += 1
        if fault["kind"] != "refuse":
            fault["match"] = {"path": EVENTS}
        with suppress(OSError):  # its port may be closed just now
            self.post("/_sandbox/faults", fault)

    def kill(self) -> None:
        if self.luck.random() < 0.05:
            self.done["kill -9 of the service"] += 1
            self.service.kill()
            time.sleep(self.luck.uniform(0, 1))
            self.stage.relaunch(self.service)
        elif workers := sorted(self.workers()):
            self.done["kill -9 of a worker"] += 1  # uvicorn starts another in its place
            # Mostly one of the younger: whether memory stays flat, only a long life can tell.
            some = workers if self.luck.random() < 0.05 else workers[-2:]
            with suppress(ProcessLookupError):
                os.kill(self.luck.choice(some), signal.SIGKILL)

    def post(self, path: str, body: Any) -> None:
        request = urllib.request.Request(self.sandbox.url + path, json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()

    # The end.

    def settle(self) -> bool:
        """All is well again; wait until everything that can be delivered is."""
        self.sandbox.clear_faults()
        until = time.monotonic() + SETTLE_S
        while time.monotonic() < until:
            status = LedgerView(self.ledger).status(now=time.time())
            if not (status.unfrozen_records or status.streams_under_way or status.events.keys() - _SETTLED):
                return True
            time.sleep(0.2)
        return False

    def report(self, minutes: float, settled: bool) -> list[str]:
        """Print the table; what is wrong."""
        tally = json.loads(urllib.request.urlopen(f"{self.provider.url}/_tally", timeout=30).read())
        found = audit(
            sent=[_sent(row) for row in tally["answers"]],
            answered=[str(fate.response_id) for fate in self.fates if fate.whole],
            cut=sum(not fate.whole for fate in self.fates),
            recorded=recorded_in(self.ledger),
            in_stripe=self.in_stripe(),
        )
        status = LedgerView(self.ledger).status(now=time.time())
        identifiers = [i for row in self.sandbox.books(identifiers=True) for i in row.identifiers]
        twice = len(identifiers) - len(set(identifiers))
        doubtful = {s: n for s, n in status.events.items() if s not in ("ACCEPTED", "SETTLED")}
        growth = self.memory.growth()
        grown = {pid: last - first for pid, (first, last, _) in growth.items()}
        rows: list[tuple[str, Any]] = [
            ("minutes", f"{minutes:.1f}"),
            ("calls answered in full", found.answered),
            ("calls cut by a kill", f"{found.cut}, of which on record {found.cut_recorded}"),
            ("tokens sent by the provider", found.sent),
            ("tokens recorded", found.in_ledger),
            ("tokens in Stripe's books", found.in_stripe),
            ("billed for cut calls", found.cut_billed),
            ("meter events", len(identifiers)),
            ("there twice", twice),
            ("not accepted in the end", doubtful or "none"),
            ("conserved", status.conserved),
            *sorted(self.done.items()),
            *(
                (f"memory of worker {pid}", f"{first:.1f} → {last:.1f} MiB in {took:.0f} s")
                for pid, (first, last, took) in growth.items()
            ),
        ]
        for name, value in rows:
            print(f"{name:32} {value}")
        problems = list(found.problems)
        if not found.is_right:
            problems.append("the three books differ")
        if twice:
            problems.append(f"{twice} meter events are in Stripe's books twice")
        if not settled or doubtful:
            problems.append(f"not everything was delivered: {doubtful}")
        if not status.conserved:
            problems.append("the books are not conserved")
        if any(mib > FLAT_MIB for mib in grown.values()):
            problems.append(f"a worker grew by {max(grown.values()):.0f} MiB")
        if not growth and minutes >= 2:
            problems.append("no worker lived long enough to watch its memory")
        if "Traceback" in (log := self.service.log.read_text(errors="replace")):
            at = log.index("Traceback")
            problems.append(f"the service's log has a traceback: {log[at : at + 1500]}")
        return problems

    def in_stripe(self) -> dict[Kind, Decimal]:
        sums: dict[Kind, Decimal] = {}
        for row in self.sandbox.books():
            kind = Kind(row.customer, row.dimensions["model"], row.dimensions["token_type"])
            sums[kind] = sums.get(kind, Decimal()) + row.value
        return sums


_SETTLED = {"ACCEPTED", "SETTLED"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--no-kills", action="store_true", help="let workers live, to watch their memory")
    parser.add_argument("--fleet", action="store_true", help="six services, three workers and one PostgreSQL")
    parser.add_argument("--steady", action="store_true", help="one process, and whether its memory is flat")
    asked = parser.parse_args()
    print(f"seed {asked.seed}, {asked.minutes} minutes", flush=True)
    if asked.fleet:
        import soak_fleet

        return soak_fleet.main(asked.minutes, asked.seed)
    if asked.steady:
        import steady

        return steady.run(asked.minutes, asked.seed)
    began = time.monotonic()
    with _stage() as (stage, sandbox):
        soak = Soak(stage, sandbox, asked.seed, kills=not asked.no_kills)
        soak.make_trouble(began + asked.minutes * 60)
        settled = soak.settle()
        problems = soak.report((time.monotonic() - began) / 60, settled)
        if problems:
            stage.keeps_folder = True
            print(f"logs and ledger are kept in {stage.folder}")
    for problem in problems:
        print(f"WRONG: {problem}")
    print(
        "wrong" if problems else "recorded = Stripe's books; nothing twice, nothing unexplained, memory flat"
    )
    return 1 if problems else 0


@contextmanager
def _stage() -> Iterator[tuple[Stage, Sandbox]]:
    with running_sandbox() as sandbox, Stage() as stage:
        yield stage, sandbox


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                stat = (entry / "stat").read_text()
                if int(stat.rsplit(")", 1)[1].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


def _sent(row: dict[str, Any]) -> Sent:
    tokens = {Kind(row["customer"], row["model"], kind): Decimal(n) for kind, n in row["tokens"].items()}
    return Sent(row["id"], tokens)


if __name__ == "__main__":
    sys.exit(main())
