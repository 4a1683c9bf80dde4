"""A long answer that reports nothing is decoded away from the event loop, and counts as any other."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from llm_metering.capture import context
from llm_metering.capture.middleware import MeteringMiddleware
from llm_metering.capture.overhearing import WatchedCall
from llm_metering.providers import wire as wire_reading
from llm_metering.usage import Reading, Usage

from .test_middleware_answers import answering, metered

pytestmark = pytest.mark.anyio

WORDS = "A word, and another. " * 16_000


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that decoded a whole answer."""
    names: list[str] = []
    inner = wire_reading.read_response

    def noting(*args: Any, **kwargs: Any) -> Reading:
        names.append(threading.current_thread().name)
        return inner(*args, **kwargs)

    monkeypatch.setattr(wire_reading, "read_response", noting)
    return names


def unreported(wire: Any, text: str = WORDS) -> bytes:
    answer = wire.chat(text)
    del answer["usage"]
    return json.dumps(answer).encode()


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_long_answer_without_usage_is_decoded_on_another_thread(pieces, home, wire, decoding):
    body = unreported(wire)
    size = len(body) // pieces + 1
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    passed = await wire.exchange(metered(answering(*chunks), home))
    assert passed.body == body
    assert decoding == ["llm-metering-counter"]
    # It was there before the last message passed: `exchange` has waited for it.
    assert home.books.only.provenance == "counted"
    assert home.books.only.usage.output == 6 * 16_000 + 1
    assert home.books.only.response_id == "chatcmpl-1"


async def test_a_short_one_and_one_that_reports_its_usage_are_read_at_once(home, wire, decoding):
    await wire.exchange(metered(answering(unreported(wire, "Hello")), home))
    assert decoding == [threading.current_thread().name]
    await wire.exchange(metered(answering(json.dumps(wire.chat(WORDS, id="chatcmpl-2")).encode()), home))
    assert len(decoding) == 1
    assert [record.response_id for record in home.books.records] == ["chatcmpl-1", "chatcmpl-2"]


async def test_two_middlewares_count_a_long_answer_once(home, wire, decoding):
    app = MeteringMiddleware(metered(answering(unreported(wire)), home), home)
    await wire.exchange(app)
    assert home.books.only.provenance == "counted"
    assert decoding == ["llm-metering-counter"]


async def test_an_adapter_that_listens_hears_of_it_before_the_answer_is_over(home, wire, decoding):
    inner = answering(unreported(wire))
    heard: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        here = context.current()
        assert here is not None
        call = WatchedCall(home.recorder, "litellm", scope=here)
        await inner(scope, receive, send)
        heard.append(bool(call._heard))
        call.answered(Reading(Usage(input=3, output=70_000), api="chat"))

    await wire.exchange(metered(app, home))
    assert heard == [True]
    assert decoding == [threading.current_thread().name]


async def test_a_long_answer_that_cannot_be_read_is_kept_and_held(home, wire, decoding):
    body = unreported(wire)[:-20]
    await wire.exchange(metered(answering(body), home))
    assert decoding == ["llm-metering-counter"]
    assert "cut short" in (home.books.only.held or "")


async def test_a_failure_while_it_is_read_is_counted_and_nobody_waits_for_it(new_home, wire, monkeypatch):
    home = new_home(customer="cus_a")

    def broken(*args: Any, **kwargs: Any) -> Reading:
        raise RuntimeError("of our own")

    monkeypatch.setattr(wire_reading, "read_response", broken)
    passed = await wire.exchange(metered(answering(unreported(wire)), home))
    assert passed.status == 200
    assert home.failures == {"failure.middleware.read": 1}
    assert home.books.records == []
