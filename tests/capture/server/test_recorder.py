"""The recorder: one path from a reading to the ledger, and nothing that reaches the caller."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from typing import Any

import pytest
from llm_metering.capture.context import Scope, entered
from llm_metering.capture.counter import INLINE_CHARS, decoded
from llm_metering.capture.recorder import MAX_PARKED, new_id
from llm_metering.capture.waiting import LateTicket, wait_for
from llm_metering.customers import from_state
from llm_metering.usage import Reading, Usage

ANSWER = Reading(Usage(input=5, output=2), model="gpt-4o", response_id="r1", provider="openai", api="chat")


def request(**state: Any) -> Scope:
    return Scope(asgi={"type": "http", "headers": [], "state": state})


# One record.


def test_a_record_says_who_what_when_and_whence(new_home):
    home = new_home(customer="cus_1")
    home.recorder.now = lambda: 123.5
    home.recorder.record(ANSWER, surface="record", dimensions={"feature": "digest"})
    record = home.books.only
    assert (record.customer, record.model, record.provider) == ("cus_1", "gpt-4o", "openai")
    assert (record.used_at, record.surface, record.response_id) == (123.5, "record", "r1")
    assert (record.usage, record.provenance, record.held) == (ANSWER.usage, "reported", None)
    assert dict(record.dimensions) == {"feature": "digest"}


def test_what_the_caller_names_wins(home):
    home.recorder.record(
        ANSWER, surface="record", customer="cus_named", model="other", id="mine", used_at=7.0
    )
    record = home.books.only
    assert (record.customer, record.id, record.used_at) == ("cus_named", "mine", 7.0)
    assert record.model == "gpt-4o"  # what the answer says of itself is no matter of opinion


def test_a_model_that_the_answer_does_not_name_is_the_callers(home):
    home.recorder.record(Reading(Usage(input=1)), surface="record", model="my-model")
    assert home.books.only.model == "my-model"


def test_ids_are_fresh_and_long_enough(home):
    for _ in range(1000):
        home.recorder.record(Reading(Usage(input=1)), surface="record")
    ids = {record.id for record in home.books.records}
    assert len(ids) == 1000
    assert {len(i) for i in ids} == {32}


def test_what_another_model_used_for_an_answer_is_a_record_of_its_own(home):
    other = Reading(Usage(input=9, output=1), model="opus", response_id="r1:1", provider="anthropic")
    answer = replace(ANSWER, beside=(other,))
    with entered(request()):
        for surface in ("client", "middleware"):
            home.recorder.record(answer, surface=surface, customer="cus_1", id="mine", used_at=7.0)
    assert {(r.id, r.customer, r.model, r.usage.total, r.used_at) for r in home.books.records} == {
        ("mine", "cus_1", "gpt-4o", 7, 7.0),
        ("mine:r1:1", "cus_1", "opus", 10, 7.0),
    }


@pytest.mark.parametrize("bad", ["cus 1", "cus\n", 7, "x" * 300])
def test_a_customer_that_can_be_none_is_left_out_and_counted(new_home, bad):
    home = new_home()
    home.recorder.record(ANSWER, surface="record", customer=bad)
    assert home.books.only.customer is None
    assert home.failures == {"failure.customer.invalid": 1}


def test_usage_that_cannot_be_believed_is_held_without_its_numbers(home):
    home.recorder.record(Reading(Usage(input=5), problem="prompt_tokens is -5"), surface="client")
    record = home.books.only
    assert record.held == "prompt_tokens is -5"
    assert not record.usage


def test_a_provenance_that_is_set_to_hold_is_held_with_its_numbers(new_home):
    home = new_home(
        customer="c", bill={"reported": "bill", "partial": "hold", "counted": "bill", "estimated": "bill"}
    )
    home.recorder.record(Reading(Usage(input=5, output=1), provenance="partial"), surface="client")
    record = home.books.only
    assert "partial" in (record.held or "")
    assert record.usage.input == 5


def test_an_answer_with_nothing_to_count_is_held_and_says_so(home):
    home.recorder.record(Reading(api="embeddings"), surface="client")
    assert "nothing in it could be counted" in (home.books.only.held or "")


# Once.


def test_every_layer_that_sees_one_answer_makes_one_record(home):
    with entered(request()):
        tickets = [home.recorder.record(ANSWER, surface=s) for s in ("client", "decorator", "middleware")]
    assert len(home.books.records) == 1
    assert [ticket is None for ticket in tickets] == [False, True, True]


def test_outside_of_a_request_too(home):
    assert home.recorder.record(ANSWER, surface="client") is not None
    assert home.recorder.record(ANSWER, surface="record") is None


def test_outside_of_a_request_an_id_that_comes_again_for_another_customer_is_another_answer(home):
    for surface, customer in (("decorator", "cus_a"), ("record", "cus_b"), ("record", "cus_a")):
        home.recorder.record(ANSWER, surface=surface, customer=customer)
    assert home.books.totals() == {"cus_a": 7, "cus_b": 7}


def test_outside_of_a_request_a_layer_that_knows_no_customer_saw_the_same_answer(home):
    for customer in (None, "cus_b", None):
        home.recorder.record(ANSWER, surface="record" if customer else "client", customer=customer)
    assert [record.surface for record in home.books.records] == ["client", "client"]


def test_one_surface_that_sees_an_id_twice_saw_two_answers(home):
    for _ in range(2):
        home.recorder.record(ANSWER, surface="client")
        home.recorder.record(ANSWER, surface="decorator")
    assert len(home.books.records) == 2


def test_answers_of_different_apis_or_without_id_are_different(home):
    home.recorder.record(ANSWER, surface="client")
    home.recorder.record(Reading(Usage(input=1), response_id="r1", api="embeddings"), surface="decorator")
    home.recorder.record(Reading(Usage(input=1)), surface="client")
    home.recorder.record(Reading(Usage(input=1)), surface="decorator")
    assert len(home.books.records) == 4


def test_a_progress_row_of_an_answer_that_was_counted_elsewhere_is_dropped(home):
    with entered(request()) as scope:
        home.recorder.record(ANSWER, surface="client")
        home.recorder.progress(home.recorder.draft(ANSWER, surface="decorator", id="row", scope=scope))
        assert home.books.rows
        home.recorder.record(ANSWER, surface="decorator", id="row", closes="row")
    assert home.books.rows == {}
    assert len(home.books.records) == 1


# Waiting for the customer.


def test_a_record_waits_for_its_customer_with_a_row_in_the_ledger_meanwhile(new_home):
    home = new_home(from_state())
    scope = request()
    with entered(scope):
        home.recorder.progress(home.recorder.draft(ANSWER, surface="client", id="old"))
        home.recorder.record(ANSWER, surface="client", id="a", closes="old")
        assert home.books.records == []
        assert list(home.books.rows) == ["a"]
        assert scope.asgi is not None
        scope.asgi["state"]["stripe_customer_id"] = "cus_late"
        asyncio.run(home.recorder.settle(scope))
    assert home.books.totals() == {"cus_late": 7}
    assert home.books.rows == {}


def test_the_resolver_is_asked_no_more_once_it_has_named_somebody(new_home):
    asked: list[int] = []

    def resolver(connection: Any) -> str:
        asked.append(1)
        return "cus_1"

    home = new_home(resolver)
    with entered(request()):
        for _ in range(5):
            home.recorder.record(Reading(Usage(input=1)), surface="client")
    assert asked == [1]
    assert home.books.totals() == {"cus_1": 5}


def test_an_async_resolver_is_never_left_unawaited(new_home):
    """Warnings are errors here, and a coroutine that nobody awaits warns."""

    asked: list[int] = []

    def resolver(connection: Any) -> Any:
        asked.append(1)
        return answer()

    async def answer() -> str:
        return "cus_async"

    home = new_home(resolver)
    scope = request()
    with entered(scope):
        for _ in range(3):
            home.recorder.record(Reading(Usage(input=1)), surface="client")
        assert asyncio.run(home.recorder.resolve(scope)) == "cus_async"
    # Once to find out that it is async, once to wait for it.
    assert len(asked) == 2
    home.recorder.release(scope)
    gc.collect()
    assert home.books.totals() == {"cus_async": 3}


def test_outside_of_a_request_nobody_is_asked_and_nothing_waits(new_home):
    def resolver(connection: Any) -> str:
        raise AssertionError("there is no request to resolve")

    home = new_home(resolver)
    home.recorder.record(ANSWER, surface="client")
    with entered(Scope(customer="cus_block")):
        home.recorder.record(Reading(Usage(input=1)), surface="client")
    assert home.books.totals() == {None: 7, "cus_block": 1}
    assert home.failures == {}


def test_what_waits_is_bounded_and_the_rest_is_kept_unresolved(new_home):
    home = new_home(from_state())
    scope = request()
    with entered(scope):
        for _ in range(MAX_PARKED + 10):
            home.recorder.record(Reading(Usage(input=1)), surface="client")
        assert len(scope.parked or ()) == MAX_PARKED
        assert home.books.totals() == {None: 10}
    home.recorder.release(scope)
    assert home.books.totals() == {None: MAX_PARKED + 10}


def test_nothing_is_lost_between_parking_on_a_thread_and_the_end_of_the_request(new_home):
    """A text that is counted on another thread may be parked at the very moment the request ends."""
    for _ in range(200):
        home = new_home(from_state())
        scope = request()
        go = threading.Barrier(3)

        def record(home: Any = home, scope: Any = scope, go: Any = go) -> None:
            go.wait()
            for _ in range(5):
                home.recorder.record(Reading(Usage(input=1)), surface="client", scope=scope)

        threads = [threading.Thread(target=record) for _ in range(2)]
        for thread in threads:
            thread.start()
        go.wait()
        scope.closed = True
        home.recorder.release(scope)
        for thread in threads:
            thread.join()
        assert home.books.totals() == {None: 10}
        assert not scope.parked


# The ledger.


def test_a_sink_that_fails_is_counted_and_never_reaches_the_caller(new_home):
    home = new_home(customer="c")

    def fail(*args: Any, **more: Any) -> Any:
        raise OSError("disk")

    home.books.put = home.books.progress = home.books.drop = fail
    assert home.recorder.record(ANSWER, surface="client") is None
    home.recorder.progress(home.recorder.draft(ANSWER, surface="client", id="x"))
    home.recorder.drop("x")
    assert home.failures == {"failure.capture.record": 1, "failure.capture.progress": 2}


def test_committed_waits_for_every_record_of_the_request(home):
    home.books.slow = True
    scope = request()

    async def main() -> None:
        with entered(scope):
            for _ in range(100):
                home.recorder.record(Reading(Usage(input=1)), surface="client")
        waiting = asyncio.create_task(home.recorder.committed(scope))
        for receipt in home.books.receipts[:-1]:
            receipt.commit()
        await asyncio.sleep(0.01)
        assert not waiting.done()
        threading.Thread(target=home.books.receipts[-1].commit).start()
        assert await waiting

    asyncio.run(main())


def test_committed_gives_up_in_time_and_says_so(new_home):
    home = new_home(customer="c", commit_timeout_s=0.02)
    home.books.slow = True
    scope = request()
    with entered(scope):
        home.recorder.record(ANSWER, surface="client")
    assert asyncio.run(home.recorder.committed(scope)) is False
    assert home.telemetry.snapshot()["alarm.ledger.slow"] == 1


def test_a_loop_that_is_gone_when_the_disk_answers_is_no_problem(home):
    home.books.slow = True
    scope = request()
    with entered(scope):
        home.recorder.record(ANSWER, surface="client")
    assert asyncio.run(home.recorder.committed(scope, within_s=0.01)) is False
    home.books.commit_all()
    assert asyncio.run(home.recorder.committed(scope)) is True


# Counting.


def counted(home: Any) -> None:
    """Let the counter's thread do what it was given."""
    done = threading.Event()
    home.counter.later(done.set)
    assert done.wait(10)


def test_a_short_text_is_counted_at_once_and_a_long_one_elsewhere(home):
    short = Reading(text="one two three", model="gpt-4o", provenance="partial")
    home.recorder.record(short, surface="client")
    assert len(home.books.records) == 1
    home.recorder.record(Reading(text="word " * INLINE_CHARS, model="gpt-4o"), surface="client")
    counted(home)
    assert len(home.books.records) == 2
    assert (home.books.records[1].usage.output or 0) >= INLINE_CHARS


def test_a_long_text_keeps_the_time_customer_and_dimensions_of_its_call(new_home):
    home = new_home(from_state())
    gate = threading.Event()
    home.counter.later(lambda: gate.wait(10) and None)
    home.recorder.now = lambda: 1.0
    scope = request(stripe_customer_id="cus_then")
    with entered(scope):
        scope.dimensions["feature"] = "then"
        ticket = home.recorder.record(Reading(text="word " * INLINE_CHARS, model="gpt-4o"), surface="client")
        scope.dimensions["feature"] = "now"
        scope.customer = "cus_now"
    home.recorder.now = lambda: 2.0
    assert ticket is not None
    assert not ticket.done
    gate.set()
    assert ticket.wait(10)
    record = home.books.only
    assert (record.used_at, record.customer, dict(record.dimensions)) == (
        1.0,
        "cus_then",
        {"feature": "then"},
    )


class PanicException(BaseException):
    """As a tokenizer in Rust raises: it passes `except Exception`."""


@pytest.mark.parametrize("error", [RuntimeError, PanicException])
def test_a_counting_that_fails_keeps_what_the_provider_did_say(new_home, monkeypatch, error):
    home = new_home(customer="c")
    import llm_metering.counting as counting

    def fail(*args: Any, **more: Any) -> Any:
        raise error("ours")

    monkeypatch.setattr(counting, "fill", fail)
    home.recorder.record(Reading(Usage(input=9), provenance="partial", text="x"), surface="client")
    assert home.books.only.usage.input == 9
    assert home.failures == {"failure.capture.count": 1}


def test_an_idle_counter_keeps_nothing_alive(home):
    class Thing:
        def job(self) -> None:
            pass

    thing = Thing()
    gone = weakref.ref(thing)
    home.counter.later(thing.job)
    del thing
    limit = time.monotonic() + 5
    while gone() is not None and time.monotonic() < limit:
        time.sleep(0.001)
    assert gone() is None


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000])
def test_a_request_that_cannot_be_read_counts_as_none(body):
    assert decoded(body) is None


def test_an_audit_is_drawn_for_its_share_of_answers(new_home):
    home = new_home(customer="c", audit=0.25)
    draws = iter([0.1, 0.3, 0.24, 0.9])
    home.recorder._random = lambda: next(draws)
    assert [home.recorder.wants_text() for _ in range(4)] == [True, False, True, False]
    home.recorder.record(Reading(Usage(input=1, output=2), text="a b", model="gpt-4o"), surface="client")
    home.recorder.record(Reading(Usage(input=1, output=2), model="gpt-4o"), surface="client")
    counted(home)
    assert home.telemetry.snapshot()["audit.compared"] == 1


# Tickets of what is still being counted.


def test_a_late_ticket_is_done_when_the_ticket_it_follows_is(home):
    home.books.slow = True
    late, called = LateTicket(), []
    late.add_done_callback(lambda: called.append(1))
    first = home.books.put(home.recorder.draft(ANSWER, surface="client", id="x"))
    late.follow(first)
    late.add_done_callback(lambda: called.append(2))
    assert (late.done, late.wait(0.01), called) == (False, False, [])
    first.commit()
    assert (late.done, late.wait(0.01), sorted(called), late.error) == (True, True, [1, 2], None)


def test_a_late_ticket_that_failed_is_done_and_says_why():
    late, called, error = LateTicket(), [], ValueError("x")
    late.add_done_callback(lambda: called.append(1))
    late.fail(error)
    late.add_done_callback(lambda: called.append(2))
    assert (late.done, late.wait(1), called, late.error) == (True, True, [1, 2], error)


def test_waiting_for_tickets_ends_with_the_last_of_them():
    tickets = [LateTicket() for _ in range(20)]

    async def main() -> bool:
        threading.Thread(target=lambda: [ticket.fail(None) for ticket in reversed(tickets)]).start()
        return await wait_for(tickets, timeout_s=5)

    assert asyncio.run(main())


def test_ids_of_threads_are_never_the_same():
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.extend(new_id() for _ in range(5000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 20_000
    assert {len(i) for i in found} == {32}


def test_forked_children_draw_other_numbers_than_each_other():
    """They begin with their parent's state; the time alone is not to keep their ids apart."""
    script = """
import os
from llm_metering.capture.recorder import new_id
for _ in range(3):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, "".join(new_id()[16:] for _ in range(20)).encode())
        os._exit(0)
    os.wait()
    print(os.read(read, 10_000).decode())
"""
    lines = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    drawn = [line[n : n + 16] for line in lines for n in range(0, len(line), 16)]
    assert len(drawn) == 60
    assert len(set(drawn)) == 60
