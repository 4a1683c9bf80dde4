from __future__ import annotations

import itertools
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from llm_metering.ledger import MemoryLedger, SqliteLedger
from llm_metering.protocols import Entry, Outcome, Progress
from llm_metering.usage import Line, Usage, UsageRecord

T0 = 1_700_000_040.0  # a whole minute
BUCKET = 60


def record(id: str, **more: Any) -> UsageRecord:
    given: dict[str, Any] = {"usage": Usage(input=10), "used_at": T0, "customer": "cus_1", "model": "m"}
    return UsageRecord(id=id, **{**given, **more})


def line(
    value: Any = 10, /, *, event_name: str = "tokens", aggregation: Any = "sum", **dimensions: str
) -> Line:
    return Line(event_name, value, tuple(sorted(dimensions.items())), aggregation=aggregation)


def lines_of(record: UsageRecord) -> tuple[Line, ...]:
    """One line a leaf, as the default meter makes them."""
    return tuple(line(n, model=record.model or "", token_type=leaf) for leaf, n in record.usage.leaves())


def entry(id: str, *lines: Line, closes: str | None = None, **more: Any) -> Entry:
    made = record(id, **more)
    return Entry(made, lines or lines_of(made), closes)


def progress(id: str, *lines: Line, **more: Any) -> Progress:
    return Progress(entry(id, *lines, **more))


@dataclass
class Bench:
    """A ledger, and how to open it again as after a crash."""

    kind: str
    reopened: Callable[[], Any]
    ledger: Any
    path: Path
    query: Callable[[str], list[Any]] = field(default=lambda _: [])

    def rows(self, query: str) -> list[Any]:
        """What a ledger on disk holds."""
        return self.query(query) if self.kind in ("postgres", "lanes") else rows(self.path, query)

    def crash(self, *, now: float = T0) -> Any:
        self.ledger = self.reopened()
        self.ledger.open(now=now)
        return self.ledger

    def event(self, identifier: str) -> Any:
        (row,) = (r for r in self.ledger.events(limit=10_000) if r.event.identifier == identifier)
        return row


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A PostgreSQL of our own."""
    from tests.ledger.postgres.cluster import Cluster, needed

    cluster = Cluster(needed())
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def place(cluster: Any) -> Any:
    """A schema of one's own in it, with the tables of a ledger."""
    return cluster.new_place()


class ByLanes:
    """A ledger in PostgreSQL as a service records to it: into a lane of its host, and from there."""

    def __init__(self, folder: Path, ledger: Any) -> None:
        from llm_metering.ledger.outbox import Outbox

        self._ledger = ledger
        self._lanes = SqliteLedger(folder, forwards=True, adopt_after_s=0)
        self._outbox = Outbox(self._lanes, window_s=900)

    def open(self, *, now: float) -> None:
        self._lanes.open(now=now)
        self._ledger.open(now=now)
        self._forward(now)

    def close(self) -> None:
        self._lanes.close()
        self._ledger.close()

    def commit(self, entries: Any, progress: Any, *, drops: Any = (), now: float) -> int:
        self._lanes.commit(entries, progress, drops=drops, now=now)
        return self._forward(now)

    def _forward(self, now: float) -> int:
        new = 0
        while (offer := self._outbox.next(now=now)) is not None:
            answer = self._ledger.take_in(offer, now=now)
            self._outbox.answered(offer, answer, now=now)
            new += getattr(answer, "new", 0)
        return new

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)


@pytest.fixture(params=["memory", "sqlite", "postgres", "lanes"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    numbers = itertools.count(1)

    def new_id() -> str:
        return f"id{next(numbers):05d}"

    made: list[Any] = []

    def memory() -> Any:
        ledger = made[-1] if made else MemoryLedger(new_id=new_id, random=lambda: 0.5)
        made.append(ledger)
        ledger.close()
        return ledger

    def sqlite() -> Any:
        if made:
            made[-1].close()
        made.append(SqliteLedger(tmp_path / "ledger", new_id=new_id, random=lambda: 0.5, adopt_after_s=0))
        return made[-1]

    def postgres() -> Any:
        from llm_metering.ledger.postgres import PostgresLedger

        if made:
            made[-1].close()
        made.append(
            PostgresLedger(place.url, schema=place.schema, new_id=new_id, random=lambda: 0.5, clock="caller")
        )
        return made[-1]

    def lanes() -> Any:
        made.append(ByLanes(tmp_path / "lanes", postgres()))
        return made[-1]

    place = request.getfixturevalue("place") if request.param in ("postgres", "lanes") else None
    reopened = {"memory": memory, "sqlite": sqlite, "postgres": postgres, "lanes": lanes}[request.param]
    bench = Bench(request.param, reopened, reopened(), tmp_path / "ledger")
    bench.ledger.open(now=T0)
    if place is not None:
        bench.query = place.rows
    yield bench
    made[-1].close()


@pytest.fixture
def quick_folder() -> Iterator[Path]:
    """A folder in memory where there is one: for tests of very many transactions."""
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


@pytest.fixture
def ledger(bench: Bench) -> Any:
    return bench.ledger


@dataclass
class Heard:
    """A Telemetry that keeps what it is told."""

    counts: dict[str, int] = field(default_factory=dict)
    alarms: list[tuple[str, str]] = field(default_factory=list)
    failures: list[tuple[str, BaseException]] = field(default_factory=list)

    def count(self, name: str, n: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + n

    def alarm(self, name: str, message: str, /, **data: Any) -> None:
        self.alarms.append((name, message))

    def failure(self, name: str, exc: BaseException) -> None:
        self.failures.append((name, exc))

    @property
    def alarm_names(self) -> list[str]:
        return [name for name, _ in self.alarms]


@pytest.fixture
def heard() -> Heard:
    return Heard()


def conserved(ledger: Any) -> bool:
    return all(balance.conserved for balance in ledger.balances())


def totals(ledger: Any) -> dict[str, Decimal]:
    """All balances in one."""
    columns = ("recorded", "pending", "accepted", "in_doubt", "dead")
    return {c: sum((getattr(b, c) for b in ledger.balances()), Decimal(0)) for c in columns}


def deliver(ledger: Any, *, now: float, outcome: Outcome | None = None, limit: int = 100) -> list[Any]:
    """Claim what is due and end each attempt alike."""
    claims = ledger.claim(now=now, limit=limit)
    for claim in claims:
        assert ledger.finish(claim, outcome or Outcome("accepted", 200), now=now) is not None
    return claims


def rows(path: Path, query: str) -> list[Any]:
    """What a SQLite ledger's lanes hold."""
    found: list[Any] = []
    for file in sorted(path.glob("lane-*.db")):
        db = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        found += db.execute(query).fetchall()
        db.close()
    return found
