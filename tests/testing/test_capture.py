"""What an app records is kept in memory, and nothing of it reaches a disk or Stripe."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from llm_metering import Metering, MeteringMiddleware, Settings, Usage, from_state
from llm_metering.senders.memory import MemorySender
from llm_metering.testing import capture_usage
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient


class Unreachable(MemorySender):
    """Stands for the real Stripe."""

    def send(self, events):
        raise AssertionError("sent for real")

    def check(self):
        raise AssertionError("asked for real")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def metering(folder: Path) -> Metering:
    """As an app has it: made at import, with a ledger on disk and a sender to Stripe."""
    return Metering("cus_app", settings=Settings(), ledger=folder, sender=Unreachable())


def test_records_and_events_are_those_of_the_app(metering, folder):
    with capture_usage(metering) as used:
        metering.record(Usage(input=7, output=3), model="gpt-5-mini")
        metering.record(Usage(input=1), model="gpt-5", customer="cus_other")
        assert [(r.customer, r.model, r.usage.total) for r in used.records] == [
            ("cus_app", "gpt-5-mini", 10),
            ("cus_other", "gpt-5", 1),
        ]
        assert [(e.customer, e.payload["token_type"], e.value) for e in used.events] == [
            ("cus_app", "input", 7),
            ("cus_app", "output", 3),
            ("cus_other", "input", 1),
        ]
        assert (used.total(), used.total(customer="cus_app"), used.total(model="gpt-5")) == (11, 10, 1)
    assert not folder.exists()


def test_they_can_be_read_after_the_block_and_later_usage_is_not_among_them(metering):
    with capture_usage(metering) as used:
        metering.record(Usage(input=5))
    after = Metering("cus_1", settings=Settings(), ledger="memory:", sender=MemorySender())
    with after:
        after.record(Usage(input=100))
        after.flush(5)
    assert [r.usage.total for r in used.records] == [5]
    assert [e.value for e in used.events] == [Decimal(5)]


def test_the_object_is_as_it_was_when_the_block_ends(metering, folder):
    before = (metering.recorder.sink, metering.sender, set(vars(metering)))
    with capture_usage(metering):
        metering.record(Usage(input=5))
    assert (metering.recorder.sink, metering.sender, set(vars(metering))) == before
    metering.sender = None
    with metering:
        metering.record(Usage(input=9))
        assert metering.status().usage_records == 1
    assert folder.exists()


def test_without_arguments_all_objects_are_captured_also_those_made_inside(metering, tmp_path):
    with capture_usage() as used:
        metering.record(Usage(input=1))
        inside = Metering("cus_2", settings=Settings(), ledger=tmp_path / "other", sender=Unreachable())
        inside.record(Usage(input=2))
        assert sorted(r.usage.total or 0 for r in used.records) == [1, 2]
        assert len({e.identifier for e in used.events}) == 2
    assert not (tmp_path / "other").exists()
    assert Metering.__init__.__qualname__ == "Metering.__init__"
    assert not hasattr(Metering.__init__, "__wrapped__")


def test_a_whole_app_with_its_middleware_and_lifespan_is_captured(folder):
    metering = Metering(
        customer=from_state("customer"), settings=Settings(), ledger=folder, sender=Unreachable()
    )

    async def ask(request):
        request.state.customer = "cus_ada"
        metering.record(Usage(input=4))
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/", ask)])
    app.add_middleware(MeteringMiddleware, metering=metering)
    with capture_usage(metering) as used:
        for _ in range(2):  # an app may be started again
            with TestClient(app) as client:
                assert client.get("/").text == "hello"
    assert [(r.customer, r.usage.total) for r in used.records] == [("cus_ada", 4)] * 2
    assert not folder.exists()


def test_usage_that_another_process_would_deliver_makes_its_events_too(folder):
    metering = Metering("cus_1", settings=Settings(deliver="external"), ledger=folder)
    with capture_usage(metering) as used:
        metering.record(Usage(input=4))
    assert [e.value for e in used.events] == [4]
    assert not folder.exists()


def test_usage_without_a_customer_is_among_the_records_and_makes_no_event(folder):
    metering = Metering(settings=Settings(), ledger=folder)
    with capture_usage(metering) as used:
        metering.record(Usage(input=4))
    assert [r.customer for r in used.records] == [None]
    assert used.events == []


def test_clear_forgets_what_came_before(metering):
    with capture_usage(metering) as used:
        metering.record(Usage(input=4))
        used.clear()
        metering.record(Usage(input=6))
        assert [r.usage.total for r in used.records] == [6]
        assert [e.value for e in used.events] == [6]


def test_a_sender_that_fails_leaves_the_events_to_be_seen(metering):
    sender = MemorySender(otherwise="refused_data")
    with capture_usage(metering, sender=sender) as used:
        metering.record(Usage(input=4))
        assert [e.value for e in used.events] == [4]
    assert sender.accepted == []
    assert len(sender.attempts) == 1


def test_an_exception_in_the_block_restores_too(metering):
    sink = metering.recorder.sink
    with pytest.raises(RuntimeError, match="of the test"), capture_usage(metering):
        raise RuntimeError("of the test")
    assert metering.recorder.sink is sink
