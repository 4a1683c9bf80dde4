"""A tap on a stream: progress rows as it goes, one record however it ends."""

from __future__ import annotations

import gc
import itertools
import threading
from typing import Any

import pytest
from llm_metering import counting
from llm_metering.capture import context, streams
from llm_metering.capture.estimates import rough_tokens
from llm_metering.capture.streams import StreamTap
from llm_metering.counting import count_text
from llm_metering.providers import StreamTally

REQUEST: Any = {
    "model": "gpt-4o",
    "messages": [{"role": "user", "content": "Tell me of the quick brown fox. " * 20}],
}
PROMPT = counting.count_text(REQUEST["messages"][0]["content"], model="gpt-4o") + 7


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(streams, "monotonic", clock)
    return clock


@pytest.fixture
def make_tap(bench):
    def make(**options: Any) -> StreamTap:
        options = {"tally": StreamTally(api="chat"), "surface": "client", "request": REQUEST, **options}
        return StreamTap(bench.recorder, **options)

    return make


def words(said: Any, *texts: str) -> list[dict[str, Any]]:
    return said.chat_events(list(texts), usage=False)[:-1]


def test_the_first_event_leaves_a_row_with_an_estimate_of_the_prompt(make_tap, bench, clock, said):
    tap = make_tap(customer="cus_1", dimensions={"feature": "chat"})
    tap.feed(words(said, "Hi")[0])
    (row,) = bench.sink.rows.values()
    assert row.provenance == "partial"
    assert (row.customer, row.dimensions, row.surface) == ("cus_1", {"feature": "chat"}, "client")
    assert row.usage.output_total == 0
    assert PROMPT * 0.5 < row.usage.input_total <= PROMPT  # rather too low than too high


def test_after_a_quarter_of_a_second_the_row_holds_the_counted_prompt(make_tap, bench, clock, said):
    tap = make_tap()
    for event in words(said, "one", " two", " three"):
        tap.feed(event)
    clock.now += 0.25
    tap.feed(words(said, " four")[1])
    bench.drain()
    (row,) = bench.sink.rows.values()
    assert (row.usage.input_total, row.usage.output_total) == (PROMPT, 4)


def test_rows_come_every_two_seconds_and_count_the_prompt_once(make_tap, bench, clock, said, monkeypatch):
    counts = []
    counted = bench.recorder.counter.counted
    monkeypatch.setattr(
        bench.recorder.counter, "counted", lambda *args: (counts.append(1), counted(*args))[1]
    )
    tap = make_tap()
    event = words(said, "word")[1]
    for _ in range(100):
        tap.feed(event)
        clock.now += 0.1
        bench.drain()
    # At the start, at 0.3 s (and again, once the prompt is counted), and every 2 s from then on.
    assert len(bench.sink.row_history) == 3 + 4
    assert sum(counts) == 1
    assert {row.usage.input_total for row in bench.sink.row_history[2:]} == {PROMPT}


def test_rows_come_every_500_tokens_however_fast(make_tap, bench, clock, said):
    tap = make_tap()
    event = words(said, "word")[1]
    for _ in range(2000):
        tap.feed(event)
    bench.drain()
    noted = sorted({row.usage.output_total for row in bench.sink.row_history})
    steps = [after - before for before, after in itertools.pairwise(noted)]
    assert len(noted) == 4
    assert all(500 <= step < 540 for step in steps)


def test_a_reported_prompt_is_used_as_it_is(make_tap, bench, clock, said):
    tap = make_tap(tally=StreamTally(api="messages"))
    for event in said.message_events():
        tap.feed(event)
    (row,) = bench.sink.rows.values()
    assert row.usage.input_total == 162


def test_the_record_closes_the_row_and_has_its_id(make_tap, bench, clock, said):
    tap = make_tap()
    for event in said.chat_events():
        tap.feed(event)
    (row_id,) = bench.sink.rows
    assert tap.finish() is not None
    assert bench.only().id == row_id
    assert bench.only().usage.total == 25


def test_only_the_first_finish_records_whoever_calls_it(make_tap, bench, said):
    for _ in range(20):
        tap = make_tap()
        for event in said.chat_events(id=f"c{_}"):
            tap.feed(event)
        start = threading.Barrier(4)

        def finish(tap: StreamTap = tap, start: threading.Barrier = start) -> None:
            start.wait()
            tap.finish()

        threads = [threading.Thread(target=finish) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(bench.records) == 20
    assert not bench.sink.rows


def test_no_row_comes_after_the_record(make_tap, bench, clock, said):
    tap = make_tap()
    gate = threading.Event()
    bench.recorder.counter.later(lambda: gate.wait(5))
    for event in words(said, "one", " two"):
        tap.feed(event)
        clock.now += 1
    tap.finish(complete=False)
    tap.feed(words(said, "late")[1])
    tap.leave_progress()
    gate.set()
    bench.drain()
    assert bench.only().provenance == "partial"


def test_a_stream_that_said_nothing_leaves_nothing(make_tap, bench, clock, said):
    make_tap().finish()
    failing = make_tap()
    failing.feed({"error": {"message": "no"}})
    failing.finish(complete=False)
    assert bench.records == []
    assert not bench.sink.rows
    assert bench.notes.counts["stream.empty"] == 2


def test_a_tap_that_is_covered_writes_no_rows(make_tap, bench, clock, said):
    tap = make_tap(covered=lambda: True)
    for event in words(said, "one", " two"):
        tap.feed(event)
        clock.now += 3
    tap.leave_progress()
    assert bench.sink.row_history == []


def test_a_tap_that_is_discarded_records_nothing_and_its_row_goes(make_tap, bench, said):
    tap = make_tap()
    for event in words(said, "one"):
        tap.feed(event)
    assert bench.sink.rows
    tap.discard()
    tap.finish()
    assert not bench.sink.rows
    assert bench.records == []
    assert tap.scope.streams == []


def test_a_dropped_tap_is_recorded_and_the_request_waits_for_it(make_tap, bench, said):
    with context.entered(context.Scope(customer="cus_1")) as scope:
        tap = make_tap()
        for event in words(said, "one"):
            tap.feed(event)
        del tap
        assert scope.covers("chat")
        assert scope.tickets
        assert all(ticket.wait(5) for ticket in scope.tickets)
    assert (bench.only().customer, bench.only().provenance) == ("cus_1", "partial")
    assert bench.notes.counts["stream.abandoned"] == 1


def test_a_collection_inside_of_our_own_locks_cannot_block(make_bench, said):
    """A dropped stream is closed by the collector, which may run while the ledger's queue is locked."""
    bench = make_bench()

    class Dropped:
        def __init__(self, tap: StreamTap) -> None:
            self.me = self
            self.tap = tap

        def __del__(self) -> None:
            self.tap.finish(complete=False)  # what an SDK's generator does when it is closed

    def drop() -> StreamTap:
        tap = StreamTap(bench.recorder, tally=StreamTally(api="chat"), surface="client", request=REQUEST)
        for event in said.chat_events():
            tap.feed(event)
        Dropped(tap)
        return tap

    def collect_under_lock() -> None:
        with bench.sink._lock:
            gc.collect()

    gc.disable()
    try:
        tap = drop()
        thread = threading.Thread(target=collect_under_lock, daemon=True)
        thread.start()
        thread.join(5)
        assert not thread.is_alive(), "the collection waits for a lock that its own thread holds"
    finally:
        gc.enable()
    bench.drain()
    assert bench.only().usage.total == 25
    assert tap.finish() is None


def test_a_forked_child_leaves_its_parents_streams_alone(make_tap, bench, said, monkeypatch):
    tap = make_tap()
    for event in words(said, "one"):
        tap.feed(event)
    with monkeypatch.context() as child:
        child.setattr(streams, "getpid", lambda: -1)
        assert tap.finish() is None
        assert bench.records == []
    assert tap.finish() is not None
    bench.only()


def test_a_failing_ledger_or_tally_never_reaches_the_stream(make_bench, clock, said, monkeypatch):
    bench = make_bench()

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("ours")

    tap = StreamTap(bench.recorder, tally=StreamTally(api="chat"), surface="client", request=REQUEST)
    monkeypatch.setattr(bench.sink, "progress", fail)
    for event in words(said, "one"):
        tap.feed(event)
    monkeypatch.setattr(StreamTally, "so_far", fail)
    clock.now += 3
    tap.feed(words(said, "two")[1])
    tap.leave_progress()
    monkeypatch.setattr(StreamTally, "result", fail)
    assert tap.finish() is None
    assert {name for name, _ in bench.notes.failures} == {"capture.progress", "capture.stream"}
    bench.notes.failures.clear()


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog, and then it sleeps until the morning comes. " * 20,
        "for (let i = 0; i < rows.length; i++) { total += rows[i].value * weights[i]; }\n" * 20,
        "汉字的数量很多，模型把它们分成小块。" * 20,
    ],
    ids=["prose", "code", "chinese"],
)
def test_a_prompt_is_estimated_rather_too_low_than_too_high(text: str) -> None:
    assert rough_tokens({"messages": [{"role": "user", "content": text}]}) <= count_text(text, model="gpt-4o")


def test_a_prompt_is_estimated_without_its_pictures():
    text = "x" * 600
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    parts = [{"type": "text", "text": text}, picture]
    assert 100 <= rough_tokens({"messages": [{"role": "user", "content": parts}]}) < 110
    assert rough_tokens(b'{"prompt": "%b"}' % text.encode()) == 100
    assert rough_tokens(b'{"base64": "' + b"A" * 1_000_000) == 0
    assert rough_tokens(None) == 0
    loop: list[Any] = []
    loop.append(loop)
    assert rough_tokens(loop) == 0
