"""The ledger of a fleet: what recording, freezing and delivering cost beside plain COPY and plain batched
INSERT into the same server, in the same run.

    python benchmarks/postgres.py [--rounds 3] [--folder DIR] [--only ingest,work,delivery,growth,pod]
        [--settled 100000,1000000,10000000]

It starts a PostgreSQL of its own, on the disk that holds `--folder`, which syncs as usual. Each of the eight
clients is a process with one connection that sends groups of 500 rows. "Plain" is a table with the same
columns, a unique id and no other index; its rows are made beforehand. A row is one call with three kinds of
tokens. All processes share the machine with the server, so ratios say more than figures.
Ten million settled rows, each with an event, take some 15 GB and some minutes to make.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ledger import make_record
from llm_metering import Metering, Settings
from llm_metering.ledger import rows
from llm_metering.ledger.postgres import PostgresLedger, migrate
from llm_metering.ledger.postgres.workers import PARTITIONS
from llm_metering.meters import checked_meters, liner
from llm_metering.protocols import Entry, Outcome
from llm_metering.usage import Reading, Usage
from tests.ledger.postgres.cluster import Cluster, Place, binaries

lines_of = liner(checked_meters(None))
CLIENTS = 8
GROUP = 500
EACH = 10_000
"""Rows of one client."""
BUCKET_S = 60
LATER = 1_700_000_000.0 + 20 * 86_400
COLUMNS = tuple(rows.RECORD.split(", "))
_numbers = itertools.count()
_fork = multiprocessing.get_context("fork")


def entries(first: int, count: int) -> list[Entry]:
    records = [make_record(n) for n in range(first, first + count)]
    return [Entry(record, lines_of(record)) for record in records]


# ---- recording, from eight processes at once


Client = Callable[[str, str, int], Callable[[], None]]
"""Makes ready what one client will do, and returns it."""


def plain_table(place: Place, name: str) -> None:
    kinds = {"used_at": "float8", "recorded_at": "float8"}
    columns = ", ".join(f"{c} {kinds.get(c, 'text')}" for c in COLUMNS)
    seq = "seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    place.rows(f"CREATE TABLE {name} ({seq}, {columns}, UNIQUE (id))")


def plain_rows(first: int) -> list[list[rows.Row]]:
    """As the ledger's, made beforehand: a reference pays for nothing but the sending."""
    made = rows.RecordRows(_Numbers())
    all_ = [made.row(entry, 1_700_000_000.0) for entry in entries(first, EACH)]
    return [all_[i : i + GROUP] for i in range(0, EACH, GROUP)]


class _Numbers(rows.LineKeys):
    """Keys of lines, numbered without a database."""

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self._next = itertools.count(1)

    def _give(self, key: Any) -> int:
        self._numbers[key] = number = next(self._next)
        return number


def with_copy(url: str, schema: str, number: int) -> Callable[[], None]:
    groups, db = plain_rows(number * EACH), psycopg.connect(url, autocommit=True)

    def run() -> None:
        for group in groups:
            with (
                db.cursor() as cursor,
                cursor.copy(f"COPY {schema}.plain_copy ({rows.RECORD}) FROM STDIN".encode()) as copy,
            ):
                for row in group:
                    copy.write_row(row)

    return run


def with_values(url: str, schema: str, number: int) -> Callable[[], None]:
    """`INSERT … VALUES (…), (…), …`: what most would write."""
    groups, db = plain_rows(number * EACH), psycopg.connect(url, autocommit=True)
    marks = ", ".join([f"({', '.join(['%s'] * len(COLUMNS))})"] * GROUP)
    query = f"INSERT INTO {schema}.plain_values ({rows.RECORD}) VALUES {marks}".encode()

    def run() -> None:
        for group in groups:
            db.execute(query, [value for row in group for value in row])

    return run


def with_arrays(url: str, schema: str, number: int) -> Callable[[], None]:
    """`INSERT … SELECT … FROM unnest(…)`: the fastest INSERT that we know of."""
    groups, db = plain_rows(number * EACH), psycopg.connect(url, autocommit=True)
    kinds = ["float8" if c in ("used_at", "recorded_at") else "text" for c in COLUMNS]
    arrays = ", ".join(f"%s::{kind}[]" for kind in kinds)
    query = f"INSERT INTO {schema}.plain_arrays ({rows.RECORD}) SELECT * FROM unnest({arrays})".encode()

    def run() -> None:
        for group in groups:
            db.execute(query, [list(column) for column in zip(*group, strict=True)])

    return run


def with_ledger(url: str, schema: str, number: int) -> Callable[[], None]:
    groups = [entries(number * EACH + i, GROUP) for i in range(0, EACH, GROUP)]
    ledger = PostgresLedger(url, schema=schema)
    ledger.open(now=time.time())

    def run() -> None:
        for group in groups:
            if ledger.commit(group, [], now=time.time()) != GROUP:
                raise RuntimeError("a record was known already")

    return run


def together(client: Client, place: Place, count: int = CLIENTS) -> float:
    """Seconds that all clients take, from the moment when all are ready."""
    ready, done = _fork.Barrier(count + 1), _fork.Barrier(count + 1)

    def work(number: int) -> None:
        run = client(place.url, place.schema, number)
        ready.wait(120)
        run()
        done.wait(120)

    processes = [_fork.Process(target=work, args=(n,)) for n in range(count)]
    for process in processes:
        process.start()
    ready.wait(120)
    begin = time.perf_counter()
    done.wait(300)
    took = time.perf_counter() - begin
    for process in processes:
        process.join()
    return took


def freezing(workers: int) -> Client:
    """Each of so many workers freezes the usage of its share of the customers."""

    def client(url: str, schema: str, number: int) -> Callable[[], None]:
        ledger = PostgresLedger(url, schema=schema, clock="caller")
        ledger.open(now=LATER)
        shares = f"SELECT count(*) FROM {schema}.partition WHERE worker IS NOT NULL GROUP BY worker".encode()
        until = time.monotonic() + 60
        with psycopg.connect(url, autocommit=True) as db:
            while [n for (n,) in db.execute(shares)] != [PARTITIONS // workers] * workers:
                if time.monotonic() > until:
                    raise RuntimeError("the workers have not found their shares")
                ledger.maintain(now=LATER)
                time.sleep(0.01)

        def run() -> None:
            ledger.freeze(now=LATER, bucket_s=BUCKET_S)

        return run

    return client


def ingest(cluster: Cluster) -> dict[str, float]:
    """All in one round; the ledger's rows are frozen at the end, by one worker and, once more, by two."""
    place, other = cluster.new_place(), cluster.new_place()
    for name in ("plain_copy", "plain_values", "plain_arrays"):
        plain_table(place, name)
    rows_ = CLIENTS * EACH
    found = {
        "COPY": rows_ / together(with_copy, place),
        "INSERT, VALUES": rows_ / together(with_values, place),
        "INSERT, arrays": rows_ / together(with_arrays, place),
    }
    for where, workers in ((place, 1), (other, 2)):
        taken = together(with_ledger, where)
        frozen = together(freezing(workers), where, workers)
        left = where.rows('SELECT count(*) FROM usage WHERE "freeze" IS NULL')[0][0]
        if left:
            raise RuntimeError(f"{left} rows were not frozen")
        found["ledger"] = rows_ / taken
        found[f"frozen by {workers}"] = rows_ / frozen
        found[f"ledger, frozen by {workers}"] = rows_ / (taken + frozen)
    found["events"] = place.rows("SELECT count(*) FROM meter_event")[0][0]
    return found


# ---- freezing and claiming


def opened(place: Place, **more: Any) -> PostgresLedger:
    ledger = PostgresLedger(place.url, schema=place.schema, clock="caller", **more)
    ledger.open(now=LATER)
    ledger.maintain(now=LATER)
    return ledger


def fill(ledger: PostgresLedger, count: int) -> None:
    first = next(_numbers) * 10_000_000
    for i in range(0, count, 5000):
        ledger.commit(entries(first + i, min(5000, count - i)), [], now=LATER)


def work(cluster: Cluster, count: int = 40_000) -> dict[str, float]:
    """One worker's rates: usage to events, events claimed and finished in groups of 200."""
    place = cluster.new_place()
    ledger = opened(place)
    fill(ledger, count)
    begin = time.perf_counter()
    events = ledger.freeze(now=LATER, bucket_s=1)
    found = {"freeze rows": count / (time.perf_counter() - begin), "events": float(events)}
    found["freeze events"] = events / (time.perf_counter() - begin)
    found["claim and finish"] = cycle(ledger, LATER)
    ledger.close()
    return found


def cycle(ledger: PostgresLedger, now: float, most: int = 20_000) -> float:
    """Events a second, claimed and finished as accepted."""
    begin, done, ended = time.perf_counter(), 0, []
    while done < most:
        _, claims = ledger.finish_and_claim(ended, now=now, limit=200)
        ended = [(claim, Outcome("accepted", 200)) for claim in claims]
        done += len(claims)
        if not claims:
            break
    took = time.perf_counter() - begin
    ledger.finish_many(ended, now=now)  # or their customers would wait for them in what is measured next
    return done / took


# ---- delivery by several workers


WORKER = """
import sys, time
from llm_metering.flusher import Flusher
from llm_metering.ledger import Writer
from llm_metering.ledger.postgres import PostgresLedger
from llm_metering.senders.stripe_v1 import StripeSender
from llm_metering.settings import Settings
from llm_metering.telemetry import LogTelemetry
url, schema, base = sys.argv[1:]
telemetry = LogTelemetry()
writer = Writer(PostgresLedger(url, schema=schema), lines_of=lambda _: (), telemetry=telemetry)
writer.start()
flusher = Flusher(writer, StripeSender("sk_test_x", api_base=base), Settings(flush_every_s=1), telemetry)
print("ready", flush=True)
input()
flusher.start()
input()
flusher.stop()
writer.stop()
print(telemetry.snapshot().get("delivery.accepted", 0), flush=True)
"""


def delivery(cluster: Cluster, base: str, workers: int, count: int = 3_000) -> float:
    """Events a second of so many worker processes, over v1 to a server that accepts at once."""
    place = cluster.new_place()
    ledger = opened(place)
    fill(ledger, count // 3)
    # An event a call and kind: each call has a second of its own.
    at = time.time()
    events = ledger.freeze(now=LATER, bucket_s=1, everything=True)
    ledger.close()
    place.rows(f"UPDATE meter_event SET frozen_at = {at}, next_attempt_at = {at}, timestamp = {int(at)}")
    place.rows("DELETE FROM worker")
    place.rows("DELETE FROM meta WHERE name = 'clock'")
    processes = [_worker(place, base) for _ in range(workers)]
    for process in processes:
        _say(process)
    left = "SELECT count(*) FROM meter_event WHERE state <> 'ACCEPTED'"
    begin = time.perf_counter()
    while place.rows(left)[0][0] > events - events // 10:  # all have found their share
        time.sleep(0.02)
    first, before = time.perf_counter(), place.rows(left)[0][0]
    while (now_left := place.rows(left)[0][0]) > events // 10:
        if time.perf_counter() - begin > 240:
            raise RuntimeError(f"{now_left} of {events} are left")
        time.sleep(0.05)
    rate = (before - now_left) / (time.perf_counter() - first)
    for process in processes:
        process.communicate("\n", timeout=30)
    return rate


def _worker(place: Place, base: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, place.url, place.schema, base],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


# ---- growth


_COPIES_OF_USAGE = """
    INSERT INTO usage (id, customer, model, provider, provenance, response_id, surface, used_at, counts,
        dimensions, lines, held, recorded_at, "freeze")
    SELECT md5('{times}' || n || id), customer, model, provider, provenance, response_id, surface, used_at,
        counts, dimensions, lines, held, recorded_at, "freeze"
    FROM (SELECT * FROM usage ORDER BY seq LIMIT 10000) u, generate_series(1, {times}) n
"""
_COPIES_OF_EVENTS = """
    INSERT INTO meter_event (identifier, "freeze", line_key, customer, event_name, value, timestamp, payload,
        frozen_at, state, attempts, attempt_started_at)
    SELECT md5('{times}' || n || identifier), "freeze", line_key, customer, event_name, value, timestamp,
        payload, frozen_at, 'SETTLED', 1, attempt_started_at
    FROM (SELECT * FROM meter_event ORDER BY seq LIMIT 10000) e, generate_series(1, {times}) n
"""
_INDEXES = """
    SELECT indexname, indexdef, tablename,
        EXISTS (SELECT 1 FROM pg_constraint WHERE contype = 'u' AND conname = indexname
            AND conrelid = tablename::regclass)
    FROM pg_indexes WHERE schemaname = current_schema() AND tablename IN ('usage', 'meter_event')
        AND indexname NOT LIKE '%_pkey'
"""
_SIZES = """
    SELECT c::text, pg_total_relation_size(c)::float8 / greatest(n, 1) FROM (VALUES
        ('usage'::regclass, (SELECT count(*) FROM usage)),
        ('meter_event'::regclass, (SELECT count(*) FROM meter_event)),
        ('attempt'::regclass, (SELECT count(*) FROM attempt))) v (c, n)
"""


def growth(cluster: Cluster, settled: Sequence[int]) -> dict[int, dict[str, float]]:
    """Rates with so many settled rows in the ledger, each of which has an event of its own."""
    place = cluster.new_place()
    ledger = opened(place)
    found: dict[int, dict[str, float]] = {}
    fill(ledger, 10_000)
    ledger.freeze(now=LATER, bucket_s=1)
    cycle(ledger, LATER, 10**6)
    place.rows("UPDATE meter_event SET state = 'SETTLED'")
    there = 10_000
    for wanted in settled:
        times = (wanted - there) // 10_000
        if times > 0:
            begin = time.perf_counter()
            copy_settled(place, times)
            print(f"{wanted} settled rows were there after {time.perf_counter() - begin:.0f} s")
            there = wanted
        for table in ("usage", "meter_event", "attempt"):
            cluster.execute(f"VACUUM (ANALYZE) {place.schema}.{table}")
        found[wanted] = medians([_rates(ledger) for _ in range(3)])
        found[wanted] |= {f"bytes a row of {name}": size for name, size in place.rows(_SIZES)}
    ledger.close()
    return found


def copy_settled(place: Place, times: int) -> None:
    """Fill both tables without their indexes, which are made afterwards in one go."""
    indexes = place.rows(_INDEXES)
    for name, _, table, is_constraint in indexes:
        how = f"ALTER TABLE {table} DROP CONSTRAINT" if is_constraint else "DROP INDEX"
        place.rows(f"{how} {name}")
    place.rows(_COPIES_OF_USAGE.format(times=times))
    place.rows(_COPIES_OF_EVENTS.format(times=times))
    for _, definition, _, _ in indexes:
        place.rows(f"SET maintenance_work_mem = '512MB'; {definition}")


def _rates(ledger: PostgresLedger) -> dict[str, float]:
    found: dict[str, float] = {}
    begin = time.perf_counter()
    fill(ledger, 10_000)
    found["commit rows"] = 10_000 / (time.perf_counter() - begin)
    begin = time.perf_counter()
    ledger.freeze(now=LATER, bucket_s=1)
    found["freeze rows"] = 10_000 / (time.perf_counter() - begin)
    found["claim and finish"] = cycle(ledger, LATER, 5000)
    begin = time.perf_counter()
    for _ in range(10):
        ledger.maintain(now=LATER)
    found["maintain"] = 10 / (time.perf_counter() - begin)
    cycle(ledger, LATER, 10**6)
    return found


# ---- what a pod's request waits for


def pod(cluster: Cluster, count: int = 4000, waits: int = 300) -> dict[str, float]:
    """Seconds of `record()` on the caller, and of one acknowledgement alone: on one host, and as a pod that
    forwards to PostgreSQL beside it."""
    found: dict[str, float] = {}
    url = cluster.new_database()
    migrate(url)
    with tempfile.TemporaryDirectory() as folder:
        for name, ledger in (("one host", f"{folder}/ledger"), ("pod", url)):
            settings = Settings(deliver="external", encodings=(), lane_folder=f"{folder}/lanes")
            metering = Metering("cus_1", settings=settings, ledger=ledger)
            metering.start()
            found[f"{name}, record"] = statistics.median(_recorded(metering, n) for n in range(count))
            found[f"{name}, wait"] = statistics.median(_waited(metering, n) for n in range(waits))
            metering.stop()
    return found


def _recorded(metering: Metering, n: int) -> float:
    usage = Usage(input=900, cached_input=128, output=40, reasoning=12)
    reading = Reading(usage, "gpt-4o", f"chatcmpl-{n}", provider="openai", api="chat")
    begin = time.perf_counter()
    metering.recorder.record(reading, surface="client")
    return time.perf_counter() - begin


def _waited(metering: Metering, n: int) -> float:
    record = make_record(10**9 + n)
    begin = time.perf_counter()
    if not metering._writer.put(record).wait(30):
        raise RuntimeError("the record was not committed")
    return time.perf_counter() - begin


# ---- the report


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def medians(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


RECORDED = (
    "COPY",
    "INSERT, VALUES",
    "INSERT, arrays",
    "ledger",
    "ledger, frozen by 1",
    "ledger, frozen by 2",
)


def show_ingest(rounds: Sequence[dict[str, float]]) -> None:
    m = medians(rounds)
    print(f"recording from {CLIENTS} connections, rows/s ({load()})")
    for name in (*RECORDED, "frozen by 1", "frozen by 2"):
        ratio = statistics.median(r[name] / r["INSERT, VALUES"] for r in rounds)
        fast = statistics.median(r[name] / r["INSERT, arrays"] for r in rounds)
        print(f"  {name:22}{m[name]:9.0f}   {ratio:5.2f} x INSERT VALUES   {fast:5.2f} x INSERT arrays")
    print(f"  frozen into {m['events']:.0f} events")
    print("  target: >= 30 000 rows/s with dedupe and sum, >= 0.5 x plain batched INSERT\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="on the disk that is to be measured")
    parser.add_argument("--only", default="ingest,work,delivery,growth,pod")
    parser.add_argument("--settled", default="100000,1000000")
    args = parser.parse_args()
    if (found := binaries()) is None:
        print("needs PostgreSQL: make system")
        return
    parts = args.only.split(",")
    cluster = Cluster(found, within=args.folder or tempfile.gettempdir())
    try:
        cluster.start(shared_buffers="256MB", max_wal_size="2GB")
        if "ingest" in parts:
            show_ingest([ingest(cluster) for _ in range(args.rounds)])
        if "work" in parts:
            m = medians([work(cluster) for _ in range(args.rounds)])
            print(f"one worker ({load()}): {m}")
        if "delivery" in parts:
            from benchmarks.delivery import running_server

            with running_server() as base:
                for workers in (1, 2, 4):
                    print(f"{workers} workers: {delivery(cluster, base, workers):.0f} events/s ({load()})")
        if "pod" in parts:
            m = medians([pod(cluster) for _ in range(args.rounds)])
            for what in ("record", "wait"):
                ours, alone = m[f"pod, {what}"], m[f"one host, {what}"]
                print(f"{what}: pod {ours * 1e6:.0f} us, one host {alone * 1e6:.0f} us, {ours / alone:.2f} x")
        if "growth" in parts:
            for settled, rates in growth(cluster, [int(n) for n in args.settled.split(",")]).items():
                print(settled, {k: round(v) for k, v in rates.items()}, load())
    finally:
        cluster.remove()


if __name__ == "__main__":
    os.environ["NO_PROXY"] = "127.0.0.1"
    main()
