"""The ledger beside a sandbox's summaries: what differs is found, named and left as it is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from llm_metering.__main__ import main
from llm_metering.errors import StripeUnavailable
from llm_metering.ledger import MemoryLedger, SqliteLedger
from llm_metering.protocols import Claim, Entry, EventRow, Outcome, State
from llm_metering.reconcile import Report, explained, reconcile
from llm_metering.sandbox import Sandbox, running_sandbox
from llm_metering.senders.reading import StripeReader
from llm_metering.senders.stripe_v1 import StripeSender
from llm_metering.senders.summaries import Summaries
from llm_metering.usage import Line, MeterEvent, Usage, UsageRecord

NOW = float(int(time.time()) // 3600 * 3600 + 1800)
HOUR = int(NOW) // 3600 * 3600
Act = Callable[[Claim], Outcome]


class Shop:
    """A sandbox with a meter, a ledger, and a way to send or to pretend."""

    def __init__(self, sandbox: Sandbox, ledger: Any) -> None:
        self.sandbox = sandbox
        self.client = sandbox.client()
        self.meter = self.client.v1.billing.meters.create(
            {"display_name": "T", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}
        )
        self.ledger = ledger
        self.sender = StripeSender(sandbox.api_key, api_base=sandbox.url, now=lambda: NOW)
        self.reader = StripeReader(sandbox.api_key, api_base=sandbox.url, per_s=10_000)
        self.summaries = Summaries(self.reader)
        self.records = 0

    def customer(self) -> str:
        return str(self.client.v1.customers.create({"name": "c"}).id)

    def use(self, customer: str, value: Decimal | int, at: float, act: Act | None = None) -> str:
        """Record usage, freeze it, and send it or do `act` instead, an hour ago; its event's identifier."""
        self.records += 1
        record = UsageRecord(id=f"r{self.records}", usage=Usage(input=1), used_at=at, customer=customer)
        then = NOW - 3600
        self.ledger.commit([Entry(record, (Line("tokens", value),))], [], now=then)
        self.ledger.freeze(now=then, bucket_s=60, everything=True)
        (claim,) = self.ledger.claim(now=then, limit=10)
        assert self.ledger.finish(claim, (act or self.send)(claim), now=then) is not None
        return str(claim.event.identifier)

    def send(self, claim: Claim) -> Outcome:
        return self.sender.send([claim.event])[0]

    def foreign(self, customer: str, value: str, at: float) -> None:
        payload = {"stripe_customer_id": customer, "value": value}
        self.client.v1.billing.meter_events.create(
            {"event_name": "tokens", "payload": payload, "timestamp": int(at)}
        )

    def reconcile(self, hours: int = 5, **more: Any) -> Report:
        return reconcile(
            self.ledger, self.summaries, **{"since": NOW - hours * 3600, "until": NOW, "now": NOW, **more}
        )


def says(kind: Any, *, send: bool = False) -> Callable[[Shop], Act]:
    """An attempt that ends so, whether or not Stripe has got it."""

    def of(shop: Shop) -> Act:
        def act(claim: Claim) -> Outcome:
            if send:
                assert shop.send(claim).kind == "accepted"
            return Outcome(kind, message="as told")

        return act

    return of


@pytest.fixture(scope="module")
def one_sandbox() -> Iterator[Sandbox]:
    with running_sandbox(now=lambda: NOW) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(one_sandbox: Sandbox) -> Sandbox:
    one_sandbox.clear_faults()
    one_sandbox.reset()
    one_sandbox.set_switches(aggregation_delay_s=0)
    return one_sandbox


@pytest.fixture(params=["memory", "sqlite"])
def shop(request: pytest.FixtureRequest, sandbox: Sandbox, tmp_path: Path) -> Iterator[Shop]:
    ledger: Any = MemoryLedger() if request.param == "memory" else SqliteLedger(tmp_path / "ledger")
    ledger.open(now=NOW - 7200)
    shop = Shop(sandbox, ledger)
    yield shop
    shop.reader.close()
    shop.sender.close()
    ledger.close()


def test_equal_books_are_equal(shop: Shop) -> None:
    one, two = shop.customer(), shop.customer()
    for i in range(6):
        shop.use(one, 100 + i, NOW - 3600 - i * 1500)
        shop.use(two, Decimal("0.1"), NOW - 3600 - i * 60)
    report = shop.reconcile()
    assert report.is_equal
    assert (report.differences, report.skipped) == ((), ())
    assert report.ledger == report.stripe == Decimal("615.6")
    assert report.hours >= 4


def test_each_hour_and_customer_is_compared_by_itself(shop: Shop) -> None:
    """Too much here and too little there must not add up to nothing."""
    one, two = shop.customer(), shop.customer()
    lost = shop.use(one, 50, HOUR - 7200 + 5, says("accepted")(shop))
    shop.use(one, 3, HOUR - 7200 + 5)
    shop.use(two, 4, HOUR - 3600 + 5)
    shop.foreign(two, "50", HOUR - 3600 + 5)
    report = shop.reconcile()
    assert report.ledger == report.stripe
    assert not report.is_equal
    found = {(d.customer, d.start): d for d in report.differences}
    assert set(found) == {(one, HOUR - 7200), (two, HOUR - 3600)}
    assert (found[one, HOUR - 7200].by, found[two, HOUR - 3600].by) == (-50, 50)
    assert [e.event.identifier for e in found[one, HOUR - 7200].events] == [lost]
    assert found[two, HOUR - 3600].events == ()
    assert "someone else" in found[two, HOUR - 3600].note


@pytest.mark.parametrize(
    ("kind", "state"),
    [("duplicate", "IN_DOUBT"), ("refused_data", "DEAD")],
)
def test_a_surplus_names_the_event_that_explains_it(shop: Shop, kind: Any, state: State) -> None:
    customer = shop.customer()
    shop.use(customer, 100, NOW - 3700)
    sent = shop.use(customer, 7, NOW - 3700, says(kind, send=True)(shop))
    (difference,) = shop.reconcile().differences
    assert (difference.by, difference.verdict) == (7, "differs")
    assert [(e.event.identifier, e.state) for e in difference.events] == [(sent, state)]


def test_a_doubtful_event_that_did_not_arrive_is_no_difference(shop: Shop) -> None:
    customer = shop.customer()
    shop.use(customer, 100, NOW - 3700)
    shop.use(customer, 7, NOW - 3700, says("duplicate")(shop))
    assert shop.reconcile().is_equal


def test_what_was_accepted_just_now_is_too_early_to_tell(shop: Shop) -> None:
    shop.sandbox.set_switches(aggregation_delay_s=60)
    shop.use(shop.customer(), 7, NOW - 3700)
    (late,) = shop.reconcile(lag_s=4000).differences
    assert late.verdict == "early"
    assert shop.reconcile(lag_s=4000).is_equal
    assert not shop.reconcile(lag_s=900).is_equal


def test_what_is_under_way_is_too_early_to_tell(shop: Shop) -> None:
    customer = shop.customer()
    shop.use(customer, 7, NOW - 3700, says("ambiguous", send=True)(shop))
    assert [d.verdict for d in shop.reconcile().differences] == ["early"]
    shop.foreign(customer, "1", NOW - 3700)
    assert [d.verdict for d in shop.reconcile().differences] == ["differs"]


def test_usage_of_someone_else_in_an_hour_of_its_own_is_seen(shop: Shop) -> None:
    customer = shop.customer()
    shop.use(customer, 7, NOW - 3600)
    shop.foreign(customer, "9", NOW - 3 * 3600)
    (difference,) = shop.reconcile().differences
    assert (difference.ledger, difference.stripe) == (0, 9)


def test_a_customer_or_meter_that_stripe_does_not_have_is_a_difference(shop: Shop) -> None:
    shop.use("cus_nobody", 5, NOW - 3700)
    (difference,) = shop.reconcile().differences
    assert "no such customer" in difference.note
    assert difference.by == -5


def test_only_the_customer_that_is_asked_for(shop: Shop) -> None:
    one, two = shop.customer(), shop.customer()
    shop.use(one, 5, NOW - 3700)
    shop.use(two, 5, NOW - 3700, says("accepted")(shop))
    assert shop.reconcile(customer=one).is_equal
    assert not shop.reconcile(customer=two).is_equal


def test_only_the_time_that_is_asked_for(shop: Shop) -> None:
    shop.use(shop.customer(), 5, HOUR - 3 * 3600 + 5, says("accepted")(shop))
    assert shop.reconcile(since=HOUR - 2 * 3600).is_equal
    assert not shop.reconcile(since=HOUR - 3 * 3600 + 3000).is_equal  # from the hour that holds it
    assert shop.reconcile(until=HOUR - 3 * 3600).is_equal
    with pytest.raises(ValueError, match="before"):
        shop.reconcile(since=NOW, until=NOW - 7200)


def test_a_meter_of_last_values_is_not_compared_and_said_so(shop: Shop) -> None:
    shop.client.v1.billing.meters.create(
        {"display_name": "L", "event_name": "gauge", "default_aggregation": {"formula": "last"}}
    )
    record = UsageRecord(id="g", usage=Usage(input=1), used_at=NOW - 3700, customer=shop.customer())
    shop.ledger.commit([Entry(record, (Line("gauge", 5, aggregation="last"),))], [], now=NOW)
    shop.ledger.freeze(now=NOW, bucket_s=60, everything=True)
    report = shop.reconcile()
    assert [s.event_name for s in report.skipped] == ["gauge"]
    assert report.is_equal


def test_nothing_is_changed_on_either_side(shop: Shop) -> None:
    customer = shop.customer()
    shop.use(customer, 7, NOW - 3700, says("duplicate", send=True)(shop))
    shop.use(customer, 8, NOW - 3700, says("accepted")(shop))
    shop.sandbox.settle()
    before = shop.ledger.events(), shop.ledger.balances(), list(shop.sandbox.books())
    shop.reconcile()
    assert (shop.ledger.events(), shop.ledger.balances(), list(shop.sandbox.books())) == before


def test_progress_is_told(shop: Shop) -> None:
    for _ in range(3):
        shop.use(shop.customer(), 7, NOW - 3700)
    told: list[tuple[int, int]] = []
    shop.reconcile(progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_stripe_that_cannot_be_asked_is_an_error_and_no_report(shop: Shop) -> None:
    shop.use(shop.customer(), 7, NOW - 3700)
    shop.sandbox.fault("403", method="GET", path="*event_summaries")
    with pytest.raises(StripeUnavailable):
        shop.reconcile()


# What a difference may come from.


def event(name: str, value: str, state: State, attempted_at: float = 0.0) -> EventRow:
    made = MeterEvent(name, "tokens", "cus_1", Decimal(value), HOUR, {})
    return EventRow(made, state, 1, None, None, None, attempted_at=attempted_at)


@pytest.mark.parametrize(
    ("events", "ledger", "stripe", "named"),
    [
        ([("a", "5", "ACCEPTED"), ("b", "7", "ACCEPTED")], "12", "5", {"b"}),
        ([("a", "5", "ACCEPTED"), ("b", "7", "SETTLED")], "12", "0", {"a", "b"}),
        ([("a", "5", "ACCEPTED"), ("d", "3", "DEAD"), ("e", "4", "IN_DOUBT")], "5", "12", {"d", "e"}),
        ([("a", "5", "ACCEPTED"), ("c", "3", "CLOSED")], "5", "8", {"c"}),
        ([("a", "5", "ACCEPTED"), ("p", "3", "PENDING")], "5", "8", set()),
        ([("a", "5", "ACCEPTED")], "5", "2", set()),
    ],
)
def test_explanations(events: Any, ledger: str, stripe: str, named: set[str]) -> None:
    rows = [event(*e) for e in events]
    found = explained("cus_1", "tokens", HOUR, Decimal(ledger), Decimal(stripe), rows, fresh_at=1.0)
    assert {e.event.identifier for e in found.events} == named
    assert found.verdict == "differs"


def test_one_of_several_explanations_is_said_to_be_that() -> None:
    rows = [event("a", "5", "IN_DOUBT"), event("b", "5", "IN_DOUBT")]
    found = explained("cus_1", "tokens", HOUR, Decimal(0), Decimal(5), rows, fresh_at=1.0)
    assert len(found.events) == 1
    assert "several" in found.note


# The command.

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("STRIPE_API_KEY", "STRIPE_API_BASE", "LLM_METERING_LEDGER"):
        monkeypatch.delenv(name, raising=False)

    def call(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(argv))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def disk(sandbox: Sandbox, tmp_path: Path) -> Iterator[Shop]:
    ledger = SqliteLedger(tmp_path / "ledger")
    ledger.open(now=NOW - 7200)
    shop = Shop(sandbox, ledger)
    yield shop
    shop.reader.close()
    shop.sender.close()
    ledger.close()


def test_the_command_exits_with_0_if_the_books_are_equal(disk: Shop, run: Run, tmp_path: Path) -> None:
    disk.use(disk.customer(), 7, NOW - 3700)
    code, out, err = run("reconcile", "--ledger", str(tmp_path / "ledger"), "--sandbox", disk.sandbox.url)
    assert (code, err) == (0, "")
    assert "Equal" in out
    assert "ledger 7, Stripe 7" in out


def test_the_command_exits_with_1_on_a_difference(disk: Shop, run: Run, tmp_path: Path) -> None:
    customer = disk.customer()
    lost = disk.use(customer, 7, NOW - 3700, says("accepted")(disk))
    argv = ["reconcile", "--ledger", str(tmp_path / "ledger"), "--sandbox", disk.sandbox.url, "--lag", "0"]
    code, out, _ = run(*argv)
    assert code == 1
    assert customer in out
    assert lost in out
    code, out, _ = run(*argv, "--json")
    document = json.loads(out)
    assert (code, document["equal"]) == (1, False)
    (difference,) = document["differences"]
    assert (difference["by"], difference["events"][0]["identifier"]) == ("-7", lost)
    code, _, _ = run(*argv, "--customer", disk.customer())
    assert code == 0


def test_a_ledger_of_another_account_is_not_compared(disk: Shop, run: Run, tmp_path: Path) -> None:
    disk.ledger.bind("acct_1OtherOtherOther (test)")
    code, _, err = run("reconcile", "--ledger", str(tmp_path / "ledger"), "--sandbox", disk.sandbox.url)
    assert code == 2
    assert "acct_1OtherOtherOther" in err


@pytest.mark.parametrize("since", ["soon", "2026-13-01", "-3h", ""])
def test_a_time_that_is_none_is_refused(disk: Shop, run: Run, tmp_path: Path, since: str) -> None:
    code, _, err = run("reconcile", "--ledger", str(tmp_path / "ledger"), f"--since={since}")
    assert code == 2
    assert "is no time" in err


def test_times_may_be_spans_and_dates(disk: Shop, run: Run, tmp_path: Path) -> None:
    argv = ["reconcile", "--ledger", str(tmp_path / "ledger"), "--sandbox", disk.sandbox.url, "--json"]
    for since, until in (("30d", "1h"), ("2025-01-01", "2025-01-02T05:00:00Z")):
        code, out, err = run(*argv, "--since", since, "--until", until)
        assert (code, err) == (0, "")
    assert (json.loads(out)["since"], json.loads(out)["until"]) == (
        "2025-01-01T00:00:00Z",
        "2025-01-02T05:00:00Z",
    )


def test_a_sandbox_that_does_not_run_is_said_so(disk: Shop, run: Run, tmp_path: Path) -> None:
    code, _, err = run("reconcile", "--ledger", str(tmp_path / "ledger"), "--sandbox", "http://127.0.0.1:9")
    assert code == 1
    assert "llm-metering sandbox" in err
