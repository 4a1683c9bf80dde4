"""Recording: what the ledger costs beside the bare disk and bare SQLite, in the same run.

    python benchmarks/ledger.py [--rounds 5] [--folder DIR]

Every round runs each column once, one after another; the median of the rounds is shown. Ratios travel
between machines, absolute figures do not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import queue
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from llm_metering import Metering, Settings
from llm_metering.ledger import SqliteLedger, Writer, all_committed
from llm_metering.meters import checked_meters, liner
from llm_metering.usage import Reading, Usage, UsageRecord

MODELS = ("gpt-5-mini", "gpt-5", "claude-sonnet-4-5", "o4-mini")


class Silent:
    def count(self, name: str, n: int = 1) -> None: ...

    def alarm(self, name: str, message: str, /, **data: object) -> None:
        raise RuntimeError(message)

    def failure(self, name: str, exc: BaseException) -> None:
        raise exc


def make_record(n: int) -> UsageRecord:
    return UsageRecord(
        id=f"chatcmpl-{n:032x}",
        usage=Usage(input=900 + n % 100, cached_input=128, output=40, reasoning=12),
        used_at=1_700_000_000.0 + n / 1000,
        customer=f"cus_{n % 1000:014d}",
        model=MODELS[n % 4],
        provider="openai",
        response_id=f"chatcmpl-{n:032x}",
        dimensions={"feature": "chat"},
        surface="client",
    )


def started(folder: Path) -> Writer:
    writer = Writer(SqliteLedger(folder), lines_of=liner(checked_meters(None)), telemetry=Silent())
    writer.start()
    return writer


# ---- on the caller's thread


def put_cost(folder: Path, count: int = 20_000) -> float:
    """Seconds a `put` takes, records made before, the writer at work beside it."""
    records = [make_record(n) for n in range(count)]
    writer = started(folder)
    took = []
    for record in records:
        begin = time.perf_counter()
        writer.put(record)
        took.append(time.perf_counter() - begin)
    writer.stop(60)
    return statistics.median(took)


def record_cost(folder: Path, count: int = 20_000) -> float:
    """Seconds that recording an answer with a reported usage takes, the writer at work beside it."""
    metering = Metering("cus_1", settings=Settings(deliver="external", encodings=()), ledger=folder)
    metering.start()
    usage = Usage(input=900, cached_input=128, output=40, reasoning=12)
    readings = [
        Reading(usage, "gpt-4o", f"chatcmpl-{n}", provider="openai", api="chat") for n in range(count)
    ]
    took = []
    for reading in readings:
        begin = time.perf_counter()
        metering.recorder.record(reading, surface="client")
        took.append(time.perf_counter() - begin)
    metering.stop()
    return statistics.median(took)


def append_cost(count: int = 20_000) -> float:
    """The floor: a SimpleQueue that nobody reads."""
    waiting: queue.SimpleQueue[object] = queue.SimpleQueue()
    took = []
    for _ in range(count):
        begin = time.perf_counter()
        waiting.put(None)
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


# ---- acknowledged only once durable


async def acknowledged(in_flight: int, count: int, one: Callable[[int], object]) -> tuple[float, float]:
    """Acknowledgements a second, and the median wait, of `in_flight` callers at a time."""
    waits: list[float] = []
    numbers = iter(range(count))

    async def caller() -> None:
        for n in numbers:
            begin = time.perf_counter()
            await one(n)  # type: ignore[misc]
            waits.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return count / (time.perf_counter() - begin), statistics.median(waits)


def through_the_ledger(folder: Path, in_flight: int, count: int) -> tuple[float, float]:
    records = [make_record(n) for n in range(count)]
    writer = started(folder)

    async def one(n: int) -> None:
        await all_committed((writer.put(records[n]),), 60)

    result = asyncio.run(acknowledged(in_flight, count, one))
    writer.stop(60)
    return result


def through_bare_sqlite(folder: Path, in_flight: int, count: int) -> tuple[float, float]:
    """The same shape with nothing in it: a thread that inserts one short row a caller."""
    folder.mkdir()
    waiting: queue.SimpleQueue[tuple[asyncio.Future[None], int] | None] = queue.SimpleQueue()

    def work(loop: asyncio.AbstractEventLoop) -> None:
        db = bare(folder / "bare.db")
        while True:
            group = [waiting.get()]
            while not waiting.empty():
                group.append(waiting.get())
            live = [item for item in group if item is not None]
            db.execute("BEGIN")
            db.executemany("INSERT INTO t (id, d) VALUES (?, ?)", [(f"{n:040x}", "x" * 120) for _, n in live])
            db.execute("COMMIT")
            loop.call_soon_threadsafe(resolve, [f for f, _ in live])
            if len(live) < len(group):
                db.close()
                return

    def resolve(futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            future.set_result(None)

    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=work, args=(loop,))
        thread.start()

        async def one(n: int) -> None:
            future = loop.create_future()
            waiting.put((future, n))
            await future

        result = await acknowledged(in_flight, count, one)
        waiting.put(None)
        thread.join()
        return result

    return asyncio.run(main())


def bare(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, d TEXT)")
    return db


def bare_inserts(folder: Path, group: int = 500, groups: int = 40) -> float:
    """Rows a second of bare SQLite in groups, without callers."""
    folder.mkdir()
    db = bare(folder / "bare.db")
    begin = time.perf_counter()
    for g in range(groups):
        db.execute("BEGIN")
        rows = [(f"{g * group + n:040x}", "x" * 120) for n in range(group)]
        db.executemany("INSERT INTO t (id, d) VALUES (?, ?)", rows)
        db.execute("COMMIT")
    took = time.perf_counter() - begin
    db.close()
    return group * groups / took


def fdatasync(folder: Path, count: int = 200) -> float:
    """Seconds of one 4 kB write and fdatasync."""
    folder.mkdir()
    fd = os.open(folder / "f", os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(fd, b"\0" * 4096 * 64, 0)
    os.fsync(fd)
    took = []
    for n in range(count):
        begin = time.perf_counter()
        os.pwrite(fd, b"x" * 4096, 4096 * (n % 64))
        os.fdatasync(fd)
        took.append(time.perf_counter() - begin)
    os.close(fd)
    return statistics.median(took)


def freezing(folder: Path, count: int = 100_000) -> tuple[float, float]:
    """Records a second of a freeze, and of reading the books."""
    writer = started(folder)
    for n in range(count):
        writer.put(make_record(n))
    writer.flush()
    begin = time.perf_counter()
    writer.run(lambda ledger: ledger.freeze(now=1_800_000_000.0, bucket_s=60))
    frozen = count / (time.perf_counter() - begin)
    begin = time.perf_counter()
    if not all(balance.conserved for balance in SqliteLedger.read_only(folder).balances()):
        raise RuntimeError("the books are not conserved")
    read = count / (time.perf_counter() - begin)
    writer.stop(60)
    return frozen, read


def a_round(folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    found["fdatasync"] = fdatasync(folder / "f")
    found["append"] = append_cost()
    found["record"] = record_cost(folder / "record")
    found["put"] = put_cost(folder / "put")
    found["bare rows/s"] = bare_inserts(folder / "rows")
    for in_flight, count in ((1, 1000), (64, 30_000), (512, 30_000)):
        rate, wait = through_bare_sqlite(folder / f"bare{in_flight}", in_flight, count)
        found[f"bare {in_flight} rate"], found[f"bare {in_flight} wait"] = rate, wait
        rate, wait = through_the_ledger(folder / f"ledger{in_flight}", in_flight, count)
        found[f"ledger {in_flight} rate"], found[f"ledger {in_flight} wait"] = rate, wait
    found["freeze"], found["books"] = freezing(folder / "freeze")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="on the disk that is to be measured; default: here")
    options = parser.parse_args()
    rounds: list[dict[str, float]] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=options.folder or Path.cwd()) as folder:
            rounds.append(a_round(Path(folder)))
    m = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    us = 1e6
    print(f"{'record() on the caller':38} {m['record'] * us:9.2f} us   target <= 10")
    print(f"{'put() on the caller':38} {m['put'] * us:9.2f} us   queue append {m['append'] * us:.2f} us")
    print(f"{'one fdatasync of 4 kB':38} {m['fdatasync'] * us:9.0f} us")
    for n in (1, 64, 512):
        ours, theirs = m[f"ledger {n} rate"], m[f"bare {n} rate"]
        wait = m[f"ledger {n} wait"]
        print(
            f"{f'acknowledged/s, {n} in flight':38} {ours:9.0f}      bare SQLite {theirs:.0f}, ratio "
            f"{ours / theirs:.2f}; p50 {wait * us:.0f} us = {wait / m['fdatasync']:.1f} fdatasyncs, bare "
            f"{m[f'bare {n} wait'] * us:.0f} us"
        )
    print(f"{'bare SQLite, rows/s in groups of 500':38} {m['bare rows/s']:9.0f}")
    print(
        f"{'frozen, records/s':38} {m['freeze']:9.0f}      {m['freeze'] / m['bare rows/s']:.2f} x bare rows"
    )
    print(f"{'books read, records/s':38} {m['books']:9.0f}")


if __name__ == "__main__":
    main()
