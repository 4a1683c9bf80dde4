"""A stream that does not end is billed in parts: its lane is let go, and no token counts twice or is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from llm_metering import Metering, Settings, _failpoints
from llm_metering.ledger import SqliteLedger
from llm_metering.ledger.lines import add, key_of
from llm_metering.ledger.parts import MAX_STREAMS, Parts
from llm_metering.protocols import Entry, Progress
from llm_metering.usage import Usage
from tests.ledger.conftest import BUCKET, T0, conserved, deliver, entry, line, record, rows, totals

ROOT = Path(__file__).parents[2]
LONG = 600.0


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ledger"


@pytest.fixture
def service(folder):
    ledger = SqliteLedger(folder, adopt_after_s=1e9, max_stream_s=LONG)
    ledger.open(now=T0)
    yield ledger
    ledger.close()


@pytest.fixture
def worker(folder, service):
    ledger = SqliteLedger(folder, adopt_after_s=0)
    ledger.open(now=T0)
    yield ledger
    ledger.close()


def so_far(tokens: int, now: float, *, id: str = "s", closes: str | None = None, **more: Any) -> Entry:
    """What a stream has used since it began: 100 of input and so many of output."""
    made = record(id, usage=Usage(input=100, output=tokens), used_at=now, customer="cus_s", **more)
    kinds = [line(100, token_type="input"), line(tokens, token_type="output")]
    return Entry(made, (*kinds, line(1, event_name="calls", aggregation="count")), closes)


def goes_on(ledger: Any, tokens: int, now: float, **more: Any) -> None:
    ledger.commit([], [Progress(so_far(tokens, now, **more))], now=now)


def ends(ledger: Any, tokens: int, now: float, **more: Any) -> None:
    ledger.commit([so_far(tokens, now, closes=more.get("id", "s"), **more)], [], now=now)


def delivered(worker: Any, now: float) -> None:
    worker.maintain(now=now)
    worker.freeze(now=now, bucket_s=BUCKET)
    while deliver(worker, now=now):
        pass
    worker.maintain(now=now)


def billed(ledger: Any, event_name: str = "tokens") -> dict[str, int]:
    found: dict[str, int] = {}
    for balance in ledger.balances():
        if balance.customer == "cus_s" and balance.event_name == event_name:
            kind = dict(balance.dimensions).get("token_type", "")
            found[kind] = found.get(kind, 0) + int(balance.accepted)
    return found


def play(service: Any, worker: Any, minutes: int, *, each: int = 50) -> float:
    """A stream of so many minutes, with other usage beside it and a round each minute."""
    now, tokens = T0, 0
    for minute in range(minutes):
        tokens += each
        goes_on(service, tokens, now)
        service.commit([entry(f"other-{minute}", used_at=now)], [], now=now)
        now += BUCKET
        service.hand_over(now=now, bucket_s=BUCKET)
        delivered(worker, now)
    return now


def test_a_stream_that_does_not_end_is_billed_in_parts_that_add_up(service, worker, folder):
    now = play(service, worker, 30)
    assert billed(worker)["output"] >= 50, "a part of it is billed while it goes on"
    assert totals(worker)["pending"] <= 10 * 13, "what was recorded beside it waits ten minutes and no more"
    ends(service, 2000, now)
    service.hand_over(now=now + 2 * LONG, bucket_s=BUCKET, everything=True)
    delivered(worker, now + 2 * LONG)
    assert billed(worker) == {"input": 100, "output": 2000}
    assert billed(worker, "calls") == {"": 1}
    assert conserved(worker)
    parts = sorted(id_ for (id_,) in rows(folder, "SELECT id FROM usage WHERE customer = 'cus_s'"))
    assert parts[:2] == ["s", "s~part2"]
    assert totals(worker)["recorded"] == 30 * 10 + 2100 + 1


def test_a_stream_that_ends_in_time_is_one_record(service, worker, folder):
    now = play(service, worker, 5)
    ends(service, 500, now)
    service.hand_over(now=now, bucket_s=BUCKET, everything=True)
    delivered(worker, now + BUCKET)
    assert billed(worker) == {"input": 100, "output": 500}
    assert rows(folder, "SELECT id FROM usage WHERE customer = 'cus_s'") == [("s",)]


def test_what_ends_below_its_parts_takes_nothing_back_and_adds_nothing(service, worker):
    now = play(service, worker, 30)
    before = billed(worker)
    ends(service, 10, now)
    service.hand_over(now=now, bucket_s=BUCKET, everything=True)
    delivered(worker, now)
    assert billed(worker) == before
    assert conserved(worker)


def test_a_stream_that_is_dropped_after_a_part_leaves_that_part(service, worker, folder):
    now = play(service, worker, 30)
    service.commit([], [], drops=["s"], now=now)
    assert rows(folder, "SELECT id FROM progress") == []
    ends(service, 5000, now)  # said again later: an id is recorded once
    service.hand_over(now=now, bucket_s=BUCKET, everything=True)
    delivered(worker, now)
    assert billed(worker)["output"] < 5000


def test_an_end_that_is_told_twice_counts_once(service, worker):
    now = play(service, worker, 30)
    ends(service, 2000, now)
    service.hand_over(now=now, bucket_s=BUCKET, everything=True)
    ends(service, 2000, now)
    service.hand_over(now=now + BUCKET, bucket_s=BUCKET, everything=True)
    delivered(worker, now + BUCKET)
    assert billed(worker) == {"input": 100, "output": 2000}


def test_whoever_dies_in_the_middle_has_billed_what_was_noted(service, worker, folder):
    now = play(service, worker, 30)
    goes_on(service, 1777, now)
    service.close()
    delivered(worker, now + LONG)
    delivered(worker, now + LONG + BUCKET)
    assert billed(worker) == {"input": 100, "output": 1777}
    assert conserved(worker)


def test_zero_keeps_a_lane_until_its_streams_have_ended(folder):
    service = SqliteLedger(folder, adopt_after_s=1e9)
    service.open(now=T0)
    goes_on(service, 10, T0)
    service.commit([entry("a")], [], now=T0)
    service.hand_over(now=T0 + BUCKET, bucket_s=BUCKET)
    service.hand_over(now=T0 + 100 * LONG, bucket_s=BUCKET)
    assert rows(folder, "SELECT id FROM progress") == [("s",)]
    service.close()


WORK = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.ledger.conftest import BUCKET, T0, entry
from tests.ledger.test_parts import LONG, ends, goes_on
from llm_metering.ledger import SqliteLedger

ledger = SqliteLedger(Path(sys.argv[1]), adopt_after_s=1e9, max_stream_s=LONG)
ledger.open(now=T0)
now = T0
for n in range(1, 27):
    goes_on(ledger, n * 10, now)
    ledger.commit([entry(f"other-{n}", used_at=now)], [], now=now)
    print(f"noted {n * 10}", flush=True)
    now += BUCKET
    ledger.hand_over(now=now, bucket_s=BUCKET, everything=True)
ends(ledger, 1000, now)
print("noted 1000", flush=True)
ledger.hand_over(now=now, bucket_s=BUCKET, everything=True)
print("survived")
"""


@pytest.mark.parametrize(
    "point",
    ["in_cut", "after_cut", "in_cut:2", "after_cut:2", *(f"before_commit:{n}" for n in (25, 53))]
    + [f"after_commit:{n}" for n in (25, 53)],
)
def test_killed_at_any_point_a_long_stream_counts_what_was_noted_and_once(folder, point):
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(folder), str(ROOT)],
        env={**os.environ, _failpoints.VARIABLE: point},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    noted = [int(said.split()[1]) for said in done.stdout.splitlines() if said.startswith("noted")]
    worker = SqliteLedger(folder, adopt_after_s=0)
    now = T0 + 100 * BUCKET
    worker.open(now=now)
    delivered(worker, now)
    found = billed(worker)
    assert found["input"] == 100
    assert found["output"] in (noted[-1], 1000 if noted[-1] == 260 else noted[-1] + 10)
    assert billed(worker, "calls") == {"": 1}
    assert conserved(worker)
    worker.close()


def test_a_stream_of_a_service_is_billed_while_it_goes_on(folder):
    """Through the public face: what a decorated generator yields, in a process that only records."""
    settings = Settings(deliver="external", max_stream_s=0.1, flush_every_s=0.05, bucket_s=1)
    with Metering(ledger=folder, settings=settings) as metering:

        @metering.metered(model="gpt-4o", customer="cus_s")
        def story(prompt: str):
            while True:
                yield "once upon a time "

        told = story("go on")
        deadline = time.monotonic() + 60
        parts: list[Any] = []
        while len(parts) < 2:
            assert time.monotonic() < deadline, parts
            next(told)
            metering.record(Usage(input=1), customer="cus_1", model="gpt-4o")
            metering.flush()
            parts = rows(folder, "SELECT id, counts FROM usage WHERE customer = 'cus_s' ORDER BY id")
        told.close()
    written = rows(folder, "SELECT id, counts FROM usage WHERE customer = 'cus_s' ORDER BY id")
    assert [id_ for id_, _ in written][1] == f"{written[0][0]}~part2"
    assert sum(json.loads(counts).get("input", 0) for _, counts in written) == 2  # as of one call


# ---- what a part adds


def parts_of(*steps: Entry) -> list[Entry]:
    """Each is cut, but the last, which is the end."""
    parts, made = Parts(), []
    for step in steps:
        rest = parts.rest(step)
        made.append(rest)
        lines = [(key_of(each), each.value) for each in rest.lines]
        parts.cut(rest.record.id, rest.record.usage.as_dict(), lines)
    return made


def summed(parts: list[Entry]) -> dict[tuple[str, str], Any]:
    sums: dict[tuple[str, str], Any] = {}
    for each in parts:
        for made in each.lines:
            name = (made.event_name, dict(made.dimensions).get("token_type", ""))
            sums[name] = sums.get(name, 0) + made.value
    return sums


def test_parts_add_up_to_the_whole_however_it_is_cut():
    dice = random.Random(4)
    for _ in range(200):
        tokens = sorted(dice.randrange(10**6) for _ in range(dice.randrange(2, 7)))
        parts = parts_of(*(so_far(n, T0) for n in tokens))
        assert summed(parts) == {("tokens", "input"): 100, ("tokens", "output"): tokens[-1], ("calls", ""): 1}
        assert sum(p.record.usage.output or 0 for p in parts) == tokens[-1]
        assert len({p.record.id for p in parts}) == len(parts)


def test_an_estimate_that_knew_no_cache_is_not_billed_again_as_cached():
    first = entry("s", line(1000, token_type="input"), usage=Usage(input=1000))
    end = entry(
        "s",
        line(100, token_type="input"),
        line(900, token_type="cached_input"),
        line(50, token_type="output"),
        usage=Usage(input=100, cached_input=900, output=50),
    )
    assert summed(parts_of(first, end)) == {("tokens", "input"): 1000, ("tokens", "output"): 50}
    usage = [part.record.usage for part in parts_of(first, end)]
    assert sum(u.total or 0 for u in usage) == 1050


def test_a_model_or_dimension_that_is_known_late_does_not_count_the_first_part_again():
    first = entry("s", line(600, model="alias", token_type="output"))
    end = entry("s", line(900, model="full-name", feature="x", token_type="output"))
    assert sum(each.value for part in parts_of(first, end) for each in part.lines) == 900


def test_hidden_reasoning_that_is_told_at_the_end_is_not_counted_on_top():
    first = entry("s", usage=Usage(output=600))
    end = entry("s", usage=Usage(output=200, reasoning=700))
    assert sum(p.record.usage.output_total or 0 for p in parts_of(first, end)) == 900


def test_values_of_any_size_and_places_are_exact():
    small, large = Decimal("0.000000000001"), Decimal(2**63 * 10**20)
    parts = parts_of(entry("s", line(small)), entry("s", line(add(large, small))))
    assert parts[1].lines[0].value == large


def test_a_reading_of_a_last_meter_is_told_whole():
    parts = parts_of(*(entry("s", line(n, aggregation="last")) for n in (5, 7)))
    assert [each.value for part in parts for each in part.lines] == [5, 7]


def test_streams_that_were_never_cut_are_as_they_were():
    parts = Parts()
    other = so_far(10, T0, id="other", closes="other")
    assert parts.rest(other) is other
    parts.cut("s", {"output": 1}, [])
    assert parts.rest(other) is other


def test_an_id_that_looks_like_a_part_is_an_id():
    parts = Parts()
    parts.cut("mine~part2", {"output": 1}, [])
    assert parts.name("mine~part2") == "mine~part2~part2"
    assert parts.name("mine") == "mine"


def test_no_more_than_a_few_thousand_streams_are_remembered():
    parts = Parts()
    for n in range(MAX_STREAMS + 10):
        parts.cut(f"s{n}", {}, [])
    assert parts.name("s0") == "s0"
    assert parts.name(f"s{MAX_STREAMS}") != f"s{MAX_STREAMS}"
