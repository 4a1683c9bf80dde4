"""Scopes and sightings: one request's shared notes."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from llm_metering.capture.context import CURRENT, Request, Scope, Sightings, current, enter, entered, leave

SURFACES = ("client", "decorator", "middleware", "record")


@given(st.lists(st.sampled_from(SURFACES), max_size=30))
def test_an_answer_counts_as_often_as_the_surface_that_saw_it_most(seen):
    sightings = Sightings()
    counted = sum(sightings.is_new("chat:1", surface) for surface in seen)
    assert counted == max((seen.count(surface) for surface in SURFACES), default=0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(SURFACES)), max_size=40))
def test_answers_do_not_disturb_each_other(seen):
    sightings = Sightings()
    counted = dict.fromkeys("abc", 0)
    for key, surface in seen:
        counted[key] += sightings.is_new(key, surface)
    for key in "abc":
        assert counted[key] == max(sum(s == (key, surface) for s in seen) for surface in SURFACES)


def test_sightings_are_bounded_and_forget_the_oldest():
    sightings = Sightings()
    for n in range(10_000):
        assert sightings.is_new(str(n), "client")
    assert not sightings.is_new("9999", "middleware")
    assert sightings.is_new("0", "middleware")


def test_threads_that_see_one_answer_at_once_count_it_once():
    for _ in range(50):
        sightings = Sightings()
        barrier = threading.Barrier(4)
        counted: list[bool] = []

        def see(
            surface: Any, sightings: Any = sightings, barrier: Any = barrier, into: Any = counted
        ) -> None:
            barrier.wait()
            into.append(sightings.is_new("k", surface))

        threads = [threading.Thread(target=see, args=(surface,)) for surface in SURFACES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(counted) == 1


def test_inner_customers_and_dimensions_win_and_outer_ones_show_through():
    outer = Scope(asgi={}, customer="cus_out", dimensions={"a": "1", "b": "1"})
    middle = Scope(parent=outer, dimensions={"b": "2"})
    inner = Scope(parent=middle, customer="cus_in")
    assert (middle.bound_customer(), inner.bound_customer()) == ("cus_out", "cus_in")
    assert dict(inner.all_dimensions()) == {"a": "1", "b": "2"}
    assert inner.root is outer
    assert inner.sightings is outer.sightings


def test_what_is_recorded_inside_is_known_all_the_way_out_and_not_beside():
    outer = Scope()
    inner, beside = Scope(parent=outer), Scope(parent=outer)
    inner.note_recorded("chat")
    assert (outer.recorded, inner.recorded, beside.recorded) == (1, 1, 0)


def test_a_scope_covers_generations_and_embeddings_apart():
    scope = Scope()
    assert not scope.covers("chat")
    scope.note_recorded("embeddings")
    assert scope.covers("embeddings")
    assert not scope.covers("chat")
    assert not scope.covers(None)
    scope.note_recorded("messages")
    assert scope.covers("chat")
    assert scope.covers(None)


class Stream:
    def leave_progress(self) -> None:
        pass


def test_an_open_stream_covers_until_it_is_finished():
    outer = Scope()
    inner = Scope(parent=outer)
    stream, other = Stream(), Stream()
    inner.note_opened(stream)
    assert inner.covers("chat")
    assert outer.covers("chat")
    assert not outer.covers("chat", besides=stream)
    inner.note_opened(other)
    assert outer.covers("chat", besides=stream)
    assert len(outer.streams) == 2
    inner.note_finished(other)
    inner.note_finished(stream)
    assert outer.streams == []
    assert not outer.covers("chat")


def test_a_stream_is_held_weakly_and_covers_until_what_it_saw_is_recorded():
    scope = Scope()
    late: list[Any] = []

    class Abandoned(Stream):
        def __init__(self) -> None:
            self.itself = self  # as a tap in a reference cycle: the collector forgets references first

        def __del__(self) -> None:
            late.append(self)  # recorded later, by another thread

    scope.note_opened(Abandoned())
    gc.collect()
    assert scope.streams == []
    assert scope.covers("chat")
    scope.note_finished(late.pop())
    assert not scope.covers("chat")


def test_the_context_is_left_as_found():
    assert current() is None
    outer, inner = Scope(), Scope()
    with entered(outer):
        with entered(inner):
            assert current() is inner
        assert current() is outer
    assert current() is None
    assert outer.closed


def test_leaving_from_another_context_is_harmless():
    """A generator that is closed by another task, or by the garbage collector."""
    scope = Scope()
    token = contextvars.copy_context().run(enter, scope)
    leave(scope, token)
    assert scope.closed
    assert current() is None


def test_tasks_and_threads_share_the_scope_they_were_started_in():
    async def main() -> list[Scope | None]:
        async def one(scope: Scope) -> list[Scope | None]:
            with entered(scope):
                task = asyncio.create_task(asyncio.to_thread(current))
                return [current(), await task]

        return [scope for pair in await asyncio.gather(*map(one, scopes)) for scope in pair]

    scopes = [Scope() for _ in range(8)]
    assert asyncio.run(main()) == [scope for scope in scopes for _ in range(2)]


def test_the_scope_of_another_metering_is_looked_past():
    ours, theirs = object(), object()
    outer = Scope(owner=ours)
    with entered(outer):
        foreign = Scope(owner=theirs)
        with entered(foreign):
            within = Scope(parent=current(theirs), customer="cus_theirs")
            with entered(within):
                assert within.owner is theirs
                assert current(theirs) is within
                assert current(ours) is outer
                assert current(object()) is None


def test_a_block_outside_of_any_request_serves_every_metering():
    with entered(Scope(customer="cus_1")) as block:
        assert current(object()) is block


def test_sightings_without_end_are_forgotten_oldest_first():
    seen = Sightings()
    for number in range(20_000):
        assert seen.is_new(f"chat:{number}", "client")
    assert not seen.is_new("chat:19999", "decorator")
    assert seen.is_new("chat:0", "decorator")
    assert len(seen._seen) <= 4097


def begun(owner: Any = None) -> Request:
    """A request as the middleware begins it."""
    request = Request()
    request.asgi, request.owner, request.made, request.over = {}, owner, [], False
    request.token = CURRENT.set(request)
    return request


def test_a_request_has_one_scope_whichever_threads_ask_first():
    for _ in range(50):
        request = begun()
        barrier = threading.Barrier(4)
        found: list[Any] = []

        def ask(request: Any = request, barrier: Any = barrier, found: Any = found) -> None:
            barrier.wait()
            found.append(request.scope())

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        CURRENT.reset(request.token)
        assert len({id(scope) for scope in found}) == 1
        assert found[0].asgi is request.asgi
        assert not found[0].closed


def test_a_scope_that_is_first_asked_for_after_the_request_is_closed():
    request = begun()
    request.over = True
    assert current().closed
    CURRENT.reset(request.token)


def test_a_request_of_one_recorder_is_looked_through_by_another():
    mine, theirs = object(), object()
    outer = begun(mine)
    inner = begun(theirs)
    assert current(mine) is outer.scope()
    assert not inner.made
    assert current(theirs) is inner.scope()
    assert inner.scope().outer is outer
    assert current(object()) is None
    CURRENT.reset(inner.token)
    CURRENT.reset(outer.token)
