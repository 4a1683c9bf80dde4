"""One payload file a quirk: what it holds, and what is to be read from it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from llm_metering.providers import WireTally, read_response, read_stream
from llm_metering.usage import Reading

from .conftest import compact, leaves, payloads, sse

CASES = dict(payloads())
WHOLE = [name for name, case in CASES.items() if "body" in case]
STREAMS = [name for name, case in CASES.items() if "events" in case]


def as_objects(value: Any) -> Any:
    """The same answer as an SDK would give it: attributes instead of keys."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_objects(each) for name, each in value.items()})
    return [as_objects(each) for each in value] if isinstance(value, list) else value


def check(reading: Reading, case: dict[str, Any]) -> None:
    assert leaves(reading.usage) == case["expect"], case["why"]
    assert reading.problem is None
    assert (reading.response_id, reading.model) == (case["id"], case["model"])


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_answer_is_read(name: str) -> None:
    body = CASES[name]["body"]
    check(read_response(body), CASES[name])
    check(read_response(compact(body)), CASES[name])
    check(read_response(compact(body).encode()), CASES[name])


@pytest.mark.parametrize("name", [n for n in WHOLE if "amazon" not in compact(CASES[n])])
def test_a_whole_answer_is_read_from_an_object(name: str) -> None:
    check(read_response(as_objects(CASES[name]["body"])), CASES[name])


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_answer_is_read_from_bytes(name: str, indent: int | None) -> None:
    body = json.dumps(CASES[name]["body"], indent=indent).encode()
    for content_type in ("application/json", None):
        tally = WireTally(content_type=content_type)
        for at in range(0, len(body), 97):
            tally.feed(body[at : at + 97])
        check(tally.result(), CASES[name])


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_read(name: str) -> None:
    case = CASES[name]
    for reading in (read_stream(case["events"]), read_stream(map(as_objects, case["events"]))):
        check(reading, case)
        assert reading.provenance == "reported"
        assert reading.text is None


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_read_from_bytes(name: str) -> None:
    case = CASES[name]
    for body in (sse(case["events"]), sse(case["events"], done=False).rstrip(b"\n")):
        for size in (1, 13, len(body)):
            tally = WireTally(content_type="text/event-stream" if size > 1 else None)
            for at in range(0, len(body), size):
                tally.feed(body[at : at + size])
            check(tally.result(), case)
            assert tally.result().provenance == "reported"


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_breaks_off_before_its_usage_is_partial(name: str) -> None:
    events = CASES[name]["events"]
    shown = [e for e in events[:-2] if "error" not in e] or events[:1]
    reading = read_stream(shown)
    assert reading.provenance == "partial"
    assert reading.problem is None
