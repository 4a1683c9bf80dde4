"""Stripe's meters and summaries, read over real sockets from the sandbox or from a server that misbehaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from llm_metering.errors import ConfigurationError, StripeUnavailable
from llm_metering.sandbox import Sandbox, running_sandbox
from llm_metering.senders.reading import StripeReader
from llm_metering.senders.summaries import Meter, Summaries
from stripe import StripeClient

NOW = 1_750_000_000
HOUR = NOW - NOW % 3600
Raw = Any


class Waits:
    """A clock that moves only while someone waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waited: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waited.append(round(seconds, 3))
        self.now += seconds


@pytest.fixture(scope="module")
def one_sandbox() -> Iterator[Sandbox]:
    with running_sandbox(now=lambda: NOW + 86_400 * 6) as sandbox:
        yield sandbox


@lru_cache(maxsize=1)
def client_of(sandbox: Sandbox) -> StripeClient:
    """One for all requests: making it takes longer than a request."""
    return sandbox.client()


@pytest.fixture
def sandbox(one_sandbox: Sandbox) -> Sandbox:
    one_sandbox.clear_faults()
    one_sandbox.reset()
    return one_sandbox


def meter(sandbox: Sandbox, event_name: str = "tokens", **more: Any) -> Any:
    return client_of(sandbox).v1.billing.meters.create(
        {
            "display_name": "Tokens",
            "event_name": event_name,
            "default_aggregation": {"formula": "sum"},
            **more,
        }
    )


def use(sandbox: Sandbox, customer: str, value: str, at: int, event_name: str = "tokens") -> None:
    payload = {"stripe_customer_id": customer, "value": value}
    client_of(sandbox).v1.billing.meter_events.create(
        {"event_name": event_name, "payload": payload, "timestamp": at}
    )


@pytest.fixture
def summaries(sandbox: Sandbox) -> Iterator[Summaries]:
    reader = StripeReader(sandbox.api_key, api_base=sandbox.url, per_s=10_000)
    yield Summaries(reader)
    reader.close()


@pytest.fixture
def customer(sandbox: Sandbox) -> str:
    return str(client_of(sandbox).v1.customers.create({"name": "c"}).id)


def test_a_minute_is_added_up_exactly(sandbox: Sandbox, summaries: Summaries, customer: str) -> None:
    meter(sandbox)
    minute = HOUR + 120
    for value, at in (("0.1", minute), ("0.2", minute + 59), ("7", minute + 60), ("9", minute - 1)):
        use(sandbox, customer, value, at)
    assert summaries.total("tokens", customer, start=minute, end=minute + 60) == Decimal("0.3")


def test_a_minute_without_usage_is_zero(sandbox: Sandbox, summaries: Summaries, customer: str) -> None:
    meter(sandbox)
    assert summaries.total("tokens", customer, start=HOUR, end=HOUR + 60) == 0


@pytest.mark.parametrize("order", ["newest_first", "oldest_first"])
@pytest.mark.parametrize("empty", [False, True])
def test_hours_are_read_to_their_last_page(
    sandbox: Sandbox, summaries: Summaries, customer: str, order: str, empty: bool
) -> None:
    meter(sandbox)
    sandbox.set_switches(summary_order=order, empty_windows=empty)
    used = {HOUR + i * 3600: Decimal(i + 1) for i in range(130)}
    for at, value in used.items():
        use(sandbox, customer, str(value), at + 5)
    found = summaries.hours("tokens", customer, start=HOUR, end=HOUR + 135 * 3600)
    assert {at: value for at, value in found.items() if value} == used
    sandbox.set_switches(summary_order="newest_first", empty_windows=False)


def test_meters_are_found_by_event_name_on_any_page(sandbox: Sandbox, summaries: Summaries) -> None:
    first = meter(sandbox, "the_first", event_time_window="day")
    for i in range(104):
        meter(sandbox, f"m{i}")
    assert summaries.meter("the_first") == Meter(first.id, "the_first", True, "sum", "day")
    assert len(summaries.meters()) == 105


def test_a_meter_that_was_made_since_is_found(sandbox: Sandbox, summaries: Summaries) -> None:
    assert dict(summaries.meters()) == {}
    made = meter(sandbox)
    assert summaries.meter("tokens").id == made.id


def test_a_deactivated_meter_is_seen_when_asked_afresh(sandbox: Sandbox, summaries: Summaries) -> None:
    made = meter(sandbox)
    assert summaries.meter("tokens").active
    client_of(sandbox).v1.billing.meters.deactivate(made.id)
    assert not summaries.meters(afresh=True)["tokens"].active


@pytest.mark.parametrize(
    ("options", "adds_up"),
    [
        ({}, True),
        ({"default_aggregation": {"formula": "count"}}, True),
        ({"default_aggregation": {"formula": "last"}}, False),
        ({"event_time_window": "hour"}, False),
    ],
)
def test_which_meters_add_up(sandbox: Sandbox, summaries: Summaries, options: Any, adds_up: bool) -> None:
    meter(sandbox, **options)
    assert summaries.meter("tokens").adds_up is adds_up


def test_a_meter_that_is_not_there_is_said_so(summaries: Summaries, customer: str) -> None:
    with pytest.raises(StripeUnavailable) as caught:
        summaries.total("nothing", customer, start=HOUR, end=HOUR + 60)
    assert caught.value.code == "no_meter"


def test_an_unknown_customer_is_told_from_other_refusals(sandbox: Sandbox, summaries: Summaries) -> None:
    made = meter(sandbox)
    with pytest.raises(StripeUnavailable) as caught:
        summaries.total("tokens", "cus_nobody", start=HOUR, end=HOUR + 60)
    assert caught.value.is_unknown_customer
    with pytest.raises(StripeUnavailable) as caught:
        summaries.reader.get(f"/v1/billing/meters/{made.id}x")
    assert not caught.value.is_unknown_customer


@pytest.mark.parametrize(("start", "end"), [(HOUR + 1, HOUR + 60), (HOUR, HOUR + 61), (HOUR, HOUR)])
def test_times_that_stripe_would_refuse_are_an_error_of_ours(
    summaries: Summaries, start: int, end: int
) -> None:
    with pytest.raises(ValueError, match="multiples of 60"):
        summaries.total("tokens", "cus_1", start=start, end=end)


# Against a server that says what it is told to.


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def reader(server: Any, waits: Waits) -> Iterator[StripeReader]:
    reader = StripeReader(
        "sk_test_key", api_base=server.url, timeout_s=5, per_s=5, monotonic=lambda: waits.now,
        sleep=waits.sleep,
    )  # fmt: skip
    yield reader
    reader.close()


def answered(raw: Raw, text: str) -> Any:
    return raw.says(raw.answer(text.encode()))


def page(raw: Raw, *values: str) -> Any:
    items = ",".join(f'{{"id":"s{i}","aggregated_value":{v}}}' for i, v in enumerate(values))
    return answered(raw, f'{{"object":"list","data":[{items}],"has_more":false}}')


METERS = json.dumps(
    {
        "data": [
            {"id": "mtr_1", "event_name": "t", "status": "active", "default_aggregation": {"formula": "sum"}}
        ],
        "has_more": False,
    }
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", "0.1"),
        ("9007199254740993", "9007199254740993"),
        ("9007199254740993.000000000001", "9007199254740993.000000000001"),
        ("1e3", "1000"),
        ("-5", "-5"),
    ],
)
def test_numbers_are_never_floats(server: Any, reader: StripeReader, raw: Raw, text: str, value: str) -> None:
    server.script = [answered(raw, METERS), page(raw, text)]
    assert Summaries(reader).total("t", "cus_1", start=0, end=60) == Decimal(value)


@pytest.mark.parametrize("text", ["null", '"12"', "true", "NaN", "[]"])
def test_what_is_no_number_is_no_usage(server: Any, reader: StripeReader, raw: Raw, text: str) -> None:
    server.script = [answered(raw, METERS), page(raw, text)]
    with pytest.raises(StripeUnavailable, match="aggregated_value"):
        Summaries(reader).total("t", "cus_1", start=0, end=60)


def test_what_is_asked_for(server: Any, reader: StripeReader, raw: Raw) -> None:
    server.script = [answered(raw, METERS), page(raw, "1")]
    Summaries(reader).total("t", "cus_&=1", start=60, end=120)
    method, target, _ = server.requests[-1].line.split()
    assert (method, urlsplit(target).path) == ("GET", "/v1/billing/meters/mtr_1/event_summaries")
    assert parse_qs(urlsplit(target).query) == {
        "customer": ["cus_&=1"], "start_time": ["60"], "end_time": ["120"], "limit": ["100"],
    }  # fmt: skip
    assert server.requests[-1].headers["authorization"] == "Bearer sk_test_key"
    assert server.connections == 1


def test_it_never_asks_faster_than_it_may(server: Any, reader: StripeReader, raw: Raw, waits: Waits) -> None:
    server.otherwise = answered(raw, "{}")
    for _ in range(4):
        reader.get("/v1/x")
    assert waits.waited == [0.2, 0.2, 0.2]


@pytest.mark.parametrize(
    "trouble",
    [
        lambda raw: raw.refuses(429, "Slow down."),
        lambda raw: raw.refuses(500),
        lambda raw: raw.resets,
        lambda raw: raw.says(raw.answer(b"<html>")),
        lambda raw: raw.says(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", then_close=True),
    ],
)
def test_a_question_is_asked_again(
    server: Any, reader: StripeReader, raw: Raw, waits: Waits, trouble: Any
) -> None:
    server.script = [trouble(raw)] * 3 + [answered(raw, '{"a":1}')]
    assert reader.get("/v1/x") == {"a": 1}
    assert [w for w in waits.waited if w >= 0.5] == [0.5, 1.0, 2.0]


def test_a_server_may_ask_for_patience(server: Any, reader: StripeReader, raw: Raw, waits: Waits) -> None:
    server.script = [raw.refuses(429, "No.", "Retry-After: 7"), raw.refuses(429, "No.", "Retry-After: 900")]
    server.otherwise = answered(raw, "{}")
    reader.get("/v1/x")
    assert waits.waited == [7.0, 30.0]


def test_after_a_few_tries_it_says_what_is_wrong(server: Any, reader: StripeReader, raw: Raw) -> None:
    server.otherwise = raw.refuses(500, "Broken.")
    with pytest.raises(StripeUnavailable, match="Broken") as caught:
        reader.get("/v1/x")
    assert (caught.value.status, len(server.requests)) == (500, 4)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_plain_no_is_not_asked_again(server: Any, reader: StripeReader, raw: Raw, status: int) -> None:
    server.otherwise = raw.refuses(status, "No such key sk_test_abc123.", param="customer")
    with pytest.raises(StripeUnavailable) as caught:
        reader.get("/v1/x")
    assert (caught.value.status, caught.value.param, len(server.requests)) == (status, "customer", 1)
    assert "abc123" not in str(caught.value)


def test_a_list_that_never_ends_is_given_up(server: Any, reader: StripeReader, raw: Raw) -> None:
    server.otherwise = answered(raw, '{"data":[{"id":"x"}],"has_more":true}')
    reader._gap_s = 0
    with pytest.raises(StripeUnavailable, match="pages"):
        list(reader.pages("/v1/x"))


def test_a_live_key_is_not_sent_in_the_clear() -> None:
    with pytest.raises(ConfigurationError, match="https"):
        StripeReader("sk_live_x", api_base="http://stripe.example")
