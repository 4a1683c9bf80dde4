"""Stripe's error reports: signed deliveries over sockets into a mounted app, and what becomes of them."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from llm_metering.errors import ConfigurationError, LedgerError
from llm_metering.ledger import MemoryLedger, SqliteLedger
from llm_metering.metering import Metering
from llm_metering.protocols import Alarm, Entry, Outcome, State
from llm_metering.reports import MAX_KNOWN, key_of, note
from llm_metering.sandbox import Sandbox, running_sandbox
from llm_metering.senders.error_events import NO_METER, ErrorEvents, ErrorReport, ReportedError
from llm_metering.senders.memory import MemorySender
from llm_metering.senders.reading import StripeReader
from llm_metering.senders.summaries import Summaries
from llm_metering.settings import Settings
from llm_metering.settling import LAG_S, SETTLE_S, Settler
from llm_metering.usage import Line, Usage, UsageRecord
from llm_metering.webhooks import MAX_BODY_BYTES, _read, heard, stripe_webhooks
from starlette.applications import Starlette
from starlette.routing import Mount
from stripe import WebhookSignature

NOON = 1_750_032_000 + 12 * 3600
SECRET = "whsec_ours"
ERRORS = "v1.billing.meter.error_report_triggered"


class QuietSettler(Settler):
    """Takes its rounds when the test says so."""

    def _start(self) -> None: ...


class Service:
    """A service with the endpoint mounted, a sandbox that delivers to it, and one clock for both."""

    def __init__(self, sandbox: Sandbox, ledger: Any) -> None:
        self.sandbox = sandbox
        self.now = float(NOON + 6 * 3600)
        self.alarms: list[Alarm] = []
        settings = Settings(
            stripe_api_key="sk_test_sandbox",
            stripe_api_base=sandbox.url,
            reconcile_every_s=0,
            deliver="external",
        )
        self.metering = Metering(
            settings=settings, ledger=ledger, on_alarm=self.alarms.append, now=lambda: self.now
        )
        self.reader = StripeReader(
            "sk_test_sandbox", api_base=sandbox.url, per_s=10_000, sleep=lambda _: None
        )
        self.settler = self.metering.settler = QuietSettler(
            self.metering._writer,
            lambda: Summaries(self.reader),
            self.metering.telemetry,
            every_s=0,
            now=lambda: self.now,
            monotonic=lambda: self.now,
        )
        self.records = 0
        self.listens = False

    def open(self) -> None:
        self.client = self.sandbox.client()
        self.meter = self.client.v1.billing.meters.create(
            {"display_name": "T", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}
        )
        self.customer = str(self.client.v1.customers.create({"name": "c"}).id)
        app = Starlette(routes=[Mount("/stripe/hooks", stripe_webhooks(self.metering, secret=SECRET))])
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.002)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.metering.stop()
        self.reader.close()
        assert self.metering.sender is not None
        self.metering.sender.close()

    def listen(self) -> None:
        """Let the sandbox deliver here; from now on the secret is the sandbox's."""
        destination = self.client.v2.core.event_destinations.create(
            {
                "name": "errors",
                "type": "webhook_endpoint",
                "event_payload": "thin",
                "enabled_events": [ERRORS, NO_METER],
                "webhook_endpoint": {"url": f"http://127.0.0.1:{self.port}/stripe/hooks/"},
                "include": ["webhook_endpoint.signing_secret", "webhook_endpoint.url"],
            }
        )
        self.listens = True
        hooks = self.server.config.app.routes[0].app  # type: ignore[union-attr]
        hooks._secrets = ["whsec_old", destination.webhook_endpoint.signing_secret]

    def use(self, value: int, customer: str, at: float = NOON, event_name: str = "tokens") -> str:
        """One event, frozen and accepted by Stripe's stream, which finds everything later."""
        self.records += 1
        record = UsageRecord(id=f"r{self.records}", usage=Usage(input=1), used_at=at, customer=customer)
        entry = Entry(record, (Line(event_name, value),))

        def freeze(ledger: Any) -> Any:
            ledger.commit([entry], [], now=self.now)
            ledger.freeze(now=self.now, bucket_s=60, everything=True)
            (claim,) = ledger.claim(now=self.now, limit=10)
            return claim

        claim = self.metering.run_on_ledger(freeze)
        self.stream(claim.event)
        self.metering.run_on_ledger(
            lambda ledger: ledger.finish(claim, Outcome("accepted", 200), now=self.now)
        )
        return str(claim.event.identifier)

    def stream(self, event: Any) -> None:
        session = self.client.v2.billing.meter_event_session.create()
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event.timestamp))
        self.client.v2.billing.meter_event_stream.create(
            {
                "events": [
                    {
                        "event_name": event.event_name,
                        "identifier": event.identifier,
                        "payload": dict(event.payload),
                        "timestamp": moment,
                    }
                ]
            },
            {"api_key": session.authentication_token},
        )

    def report(self) -> int:
        """Let Stripe check what it took, and deliver what it found; how many reports have come by now."""
        self.now += 60
        self.sandbox.settle()
        self.now += 60
        self.sandbox.settle()
        deadline = time.monotonic() + 5
        while True:
            self.sandbox.deliver_webhooks()
            come = len(json.loads(self.meta("stripe_events") or "[]"))
            # Some may be on their way by the sandbox's own upkeep.
            if come or not self.listens or time.monotonic() > deadline:
                return come
            time.sleep(0.01)

    def rounds(self, *after_s: float) -> None:
        for seconds in after_s:
            self.now += seconds
            self.settler.step()

    def state(self, identifier: str) -> State:
        history = self.metering.run_on_ledger(lambda ledger: ledger.history(identifier))
        assert history is not None
        return history.row.state

    def reason(self, identifier: str) -> str:
        history = self.metering.run_on_ledger(lambda ledger: ledger.history(identifier))
        return str(history and history.row.reason)

    def names(self) -> list[str]:
        return [alarm.name for alarm in self.alarms]

    def meta(self, name: str) -> str | None:
        return self.metering.run_on_ledger(lambda ledger: ledger.meta(name))

    def post(
        self, body: bytes, header: str | None = None, method: str = "POST", **headers: str
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            sent = {**headers, **({"Stripe-Signature": header} if header is not None else {})}
            connection.request(method, "/stripe/hooks/", body, sent)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def signed(self, body: bytes, secret: str = SECRET, at: float | None = None) -> tuple[int, Any]:
        when = int(time.time() if at is None else at)
        header = WebhookSignature.generate_signature_header(body.decode(), secret, when)
        return self.post(body, header)


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Sandbox, list[Service]]]:
    current: list[Service] = []
    with running_sandbox(now=lambda: current[-1].now if current else float(NOON)) as sandbox:
        sandbox.set_switches(aggregation_delay_s=30)  # what is sent in one moment is judged in one
        yield sandbox, current


@pytest.fixture(params=["memory", "sqlite"])
def service(
    request: pytest.FixtureRequest, stage: tuple[Sandbox, list[Service]], tmp_path: Path
) -> Iterator[Service]:
    sandbox, current = stage
    ledger: Any = MemoryLedger() if request.param == "memory" else SqliteLedger(tmp_path / "ledger")
    current.append(Service(sandbox, ledger))
    sandbox.clear_faults()
    sandbox.reset()
    current[-1].open()
    yield current[-1]
    current[-1].close()


SOON = (SETTLE_S + 1, SETTLE_S + 1)


def thin(event_id: str = "evt_test_1", **more: Any) -> bytes:
    event = {
        "id": event_id,
        "object": "v2.core.event",
        "type": ERRORS,
        "livemode": False,
        "context": None,
        "related_object": None,
    }
    return json.dumps({**event, **more}).encode()


# From Stripe to the ledger.


def test_what_stripe_refused_after_it_took_it_is_dead_and_the_rest_is_settled(service: Service) -> None:
    """Row 15: silent at first, then reported; nothing is lost silently."""
    service.listen()
    good, bad = service.use(7, service.customer), service.use(9, "cus_gone")
    assert service.report() == 1
    service.rounds(1)
    assert service.state(bad) == "ACCEPTED"  # reported, not confirmed yet
    assert service.names() == ["stripe.error_report"]
    service.rounds(*SOON, *SOON)
    assert (service.state(good), service.state(bad)) == ("SETTLED", "DEAD")
    assert "meter_event_customer_not_found" in service.reason(bad)
    assert service.names() == ["stripe.error_report", "delivery.dead"]
    assert all(b.conserved for b in service.metering.run_on_ledger(lambda ledger: ledger.balances()))


def test_a_report_that_comes_twice_is_taken_once(service: Service) -> None:
    service.listen()
    service.sandbox.fault("webhook_twice", count=None)
    bad = service.use(9, "cus_gone")
    service.report()
    service.rounds(1, *SOON, *SOON)
    assert service.state(bad) == "DEAD"
    assert service.names() == ["stripe.error_report", "delivery.dead"]
    (event_id,) = json.loads(service.meta("stripe_events") or "")
    assert service.meta(key_of(event_id)) == "done"
    status, said = service.signed(thin(event_id), secret="whsec_old")
    assert (status, said) == (200, {"message": "known already"})
    service.rounds(900, 900)
    assert service.names() == ["stripe.error_report", "delivery.dead"]


def test_a_report_whose_webhook_was_lost_is_found_all_the_same(service: Service) -> None:
    bad = service.use(9, "cus_gone")
    service.report()  # nobody listens
    service.rounds(1, *SOON)
    assert service.state(bad) == "DEAD"


def test_a_report_outlives_a_restart(service: Service) -> None:
    service.listen()
    bad = service.use(9, "cus_gone")
    service.report()
    service.rounds(1)
    service.settler.after_fork()  # forgets all it knew
    service.rounds(*SOON, SETTLE_S + 1)
    assert service.state(bad) == "DEAD"


def test_events_that_a_report_counts_and_does_not_name_are_dead_only_once_nothing_lags(
    service: Service,
) -> None:
    service.listen()
    ids = [service.use(5 + n, "cus_gone", at=NOON + 60 * n) for n in range(5)]
    service.report()
    service.rounds(1, *SOON)
    states = sorted(service.state(i) for i in ids)
    assert states == ["ACCEPTED", "ACCEPTED", "DEAD", "DEAD", "DEAD"]  # three samples are named
    service.rounds(LAG_S, *SOON)
    assert {service.state(i) for i in ids} == {"DEAD"}
    assert all("customer_not_found" in service.reason(i) for i in ids)


def test_what_the_sums_show_is_not_dead_whatever_a_report_says(service: Service) -> None:
    counted = service.use(9, service.customer)
    service.report()
    error = ReportedError("meter_event_invalid_value", "No.", 1, (counted,))
    made = ErrorReport(
        "evt_test_x", ERRORS, service.meter.id, "There is 1", (error,), service.now, service.now
    )
    from llm_metering.reports import _Open

    service.settler._reports._open["evt_test_x"] = _Open(made, service.now)
    service.rounds(1, *SOON)
    assert service.state(counted) == "ACCEPTED"
    assert service.names() == ["oracle.undecided"]
    service.rounds(*SOON)
    assert service.state(counted) == "SETTLED"


def test_a_report_about_nobody_of_ours_changes_nothing(service: Service) -> None:
    service.listen()
    good = service.use(7, service.customer)
    payload = {"stripe_customer_id": "cus_elsewhere", "value": "1"}
    service.client.v1.billing.meter_events.create(
        {"event_name": "tokens", "payload": payload, "timestamp": NOON}
    )
    assert service.report() == 1
    service.rounds(1, *SOON)
    assert service.state(good) == "SETTLED"
    assert service.names() == ["stripe.error_report"]


@pytest.mark.parametrize("gone", ["archived", "missing"])
def test_a_meter_that_is_gone_is_paused_until_it_is_back(service: Service, gone: str) -> None:
    service.listen()
    name = "tokens" if gone == "archived" else "nothing"
    if gone == "archived":
        service.client.v1.billing.meters.deactivate(service.meter.id)
    lost = service.use(9, service.customer, event_name=name)
    service.report()
    service.rounds(1)
    assert service.names() == ["stripe.error_report" if gone == "archived" else "stripe.no_meter"]

    def waiting(ledger: Any) -> list[str]:
        record = UsageRecord(id="later", usage=Usage(input=1), used_at=NOON + 60, customer=service.customer)
        other = UsageRecord(id="other", usage=Usage(input=1), used_at=NOON + 60, customer="cus_other")
        ledger.commit(
            [Entry(record, (Line(name, 3),)), Entry(other, (Line("fine", 3),))], [], now=service.now
        )
        ledger.freeze(now=service.now, bucket_s=60, everything=True)
        claims = ledger.claim(now=service.now, limit=10)
        ledger.finish_many([(claim, Outcome("not_sent")) for claim in claims], now=service.now)
        return [claim.event.event_name for claim in claims]

    assert service.metering.run_on_ledger(waiting) == ["fine"]
    assert (
        service.metering.run_on_ledger(lambda ledger: ledger.status(now=service.now).events)["PENDING"] == 2
    )
    service.rounds(*SOON)
    assert service.state(lost) == "DEAD"
    if gone == "archived":
        service.client.v1.billing.meters.reactivate(service.meter.id)
    else:
        service.client.v1.billing.meters.create(
            {"display_name": "N", "event_name": name, "default_aggregation": {"formula": "sum"}}
        )
    service.rounds(900)
    assert "stripe.meter_back" in service.names()
    claims = service.metering.run_on_ledger(lambda ledger: ledger.claim(now=service.now, limit=10))
    assert name in {claim.event.event_name for claim in claims}


def test_a_report_that_cannot_be_fetched_is_tried_again(service: Service) -> None:
    service.listen()
    bad = service.use(9, "cus_gone")
    service.report()
    service.sandbox.fault("500_before", method="GET", path="/v2/*", count=None)
    service.rounds(1, *SOON)
    assert service.state(bad) == "ACCEPTED"
    service.sandbox.clear_faults()
    service.rounds(1, *SOON)
    assert service.state(bad) == "DEAD"


# The door.


def test_only_post(service: Service) -> None:
    assert service.post(b"", method="GET")[0] == 405
    assert service.post(b"", method="DELETE")[0] == 405


@pytest.mark.parametrize(
    "header",
    [None, "", "t=1,v1=00", "t={now},v1=" + "0" * 64, "t={now},v1=\xe9", "nonsense", "t={now}"],
    ids=["none", "empty", "old", "forged", "no digits", "unreadable", "no scheme"],
)
def test_what_is_not_signed_changes_nothing(service: Service, header: str | None) -> None:
    status, _ = service.post(thin(), header and header.replace("{now}", str(int(time.time()))))
    assert status == 400
    assert service.meta("stripe_events") is None


def test_another_secret_an_old_signature_and_a_changed_body_are_refused(service: Service) -> None:
    now = int(time.time())
    assert service.signed(thin(), secret="whsec_other")[0] == 400
    assert service.signed(thin(), at=now - 301)[0] == 400
    header = WebhookSignature.generate_signature_header(thin().decode(), SECRET, now)
    assert service.post(thin("evt_test_2"), header)[0] == 400
    assert service.meta("stripe_events") is None
    assert service.signed(thin(), at=now - 290)[0] == 200


def test_a_length_of_odd_digits_is_no_error() -> None:
    """Servers refuse it; one that does not must not get a traceback for it."""

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"{}"}

    scope = {"headers": [(b"content-length", "\xb2".encode("latin-1"))]}
    assert asyncio.run(_read(scope, receive)) == b"{}"


def test_what_is_too_long_is_refused_unread(service: Service) -> None:
    assert service.post(b"", **{"Content-Length": str(MAX_BODY_BYTES + 1)})[0] == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(11):
            yield b"x" * (1024 * 1024)

    try:
        status, _ = service.post(pieces(), "t=1,v1=0")  # type: ignore[arg-type]
    except (BrokenPipeError, ConnectionResetError):
        status = 413  # it hung up on us in the middle
    assert status == 413
    body = thin(padding="x" * (MAX_BODY_BYTES - 1000))
    assert service.signed(body)[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"[" * 100_000,
        json.dumps({"id": "evt_1"}).encode(),
        json.dumps({"type": ERRORS, "livemode": False}).encode(),
        thin(""),
        thin("x" * 256),
        thin("evt_\n1"),
        thin(7),  # type: ignore[arg-type]
        thin(type=None),
    ],
)
def test_what_is_no_event_is_refused(service: Service, body: bytes) -> None:
    assert service.signed(body)[0] == 400
    assert service.meta("stripe_events") is None


@pytest.mark.parametrize(
    "more",
    [{"livemode": True}, {"livemode": None}, {"livemode": "false"}, {"context": "acct_other"}],
)
def test_events_of_another_mode_or_account_are_refused(service: Service, more: dict[str, Any]) -> None:
    service.metering.run_on_ledger(lambda ledger: ledger.bind("acct_ours (test)"))
    assert service.signed(thin(**more))[0] == 400
    assert service.meta("stripe_events") is None
    assert service.signed(thin(context="acct_ours"))[0] == 200


def test_other_types_are_ignored(service: Service) -> None:
    assert service.signed(thin(type="v1.billing.meter.something")) == (200, {"message": "ignored"})
    assert service.meta("stripe_events") is None


def test_an_event_is_known_by_its_id(service: Service) -> None:
    assert service.signed(thin())[1] == {"message": "taken"}
    assert service.signed(thin())[1] == {"message": "known already"}
    assert service.signed(thin("evt_test_2"))[1] == {"message": "taken"}


def test_an_event_that_another_process_of_the_ledger_took_is_known(tmp_path: Path) -> None:
    one, two = SqliteLedger(tmp_path / "ledger"), SqliteLedger(tmp_path / "ledger")
    one.open(now=NOON)
    two.open(now=NOON)
    try:
        assert one.lane != two.lane
        assert [heard(ledger, "evt_1") for ledger in (one, two, one)] == [True, False, False]
    finally:
        one.close()
        two.close()


def test_while_the_ledger_cannot_take_it_stripe_keeps_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise LedgerError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(service.metering._writer._ledger, "set_meta", full)
        assert service.signed(thin())[0] == 503
    assert service.signed(thin())[1] == {"message": "taken"}


def test_while_the_ledger_cannot_say_whose_account_it_is_stripe_keeps_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> None:
        raise LedgerError("disk gone")

    with monkeypatch.context() as patch:
        patch.setattr(service.metering._writer._ledger, "account", gone)
        assert service.signed(thin(context="acct_ours"))[0] == 503
    assert service.signed(thin(context="acct_ours"))[1] == {"message": "taken"}


def test_the_memory_of_events_is_bounded() -> None:
    ledger = MemoryLedger()
    ledger.open(now=NOON)
    for n in range(MAX_KNOWN + 50):
        assert note(ledger, f"evt_{n}", "heard")
        assert n < 1 or ledger.meta(key_of(f"evt_{n - 1}")) == "heard"
    assert not note(ledger, f"evt_{MAX_KNOWN}", "heard")
    assert len(json.loads(ledger.meta("stripe_events") or "")) == MAX_KNOWN
    assert [ledger.meta(key_of(f"evt_{n}")) for n in (0, 49, 50, MAX_KNOWN + 49)] == [
        None, None, "heard", "heard",
    ]  # fmt: skip


def test_it_is_taken_by_the_thread_that_settles(stage: tuple[Sandbox, list[Service]], tmp_path: Path) -> None:
    """With the settler that `Metering` makes, even where it takes no rounds by itself."""
    sandbox, current = stage
    current.append(Service(sandbox, MemoryLedger()))
    settings = Settings(
        stripe_api_key="sk_test_sandbox", stripe_api_base=sandbox.url, ledger="memory:", reconcile_every_s=0
    )
    metering = Metering(settings=settings)
    stripe_webhooks(metering, secret=SECRET)
    assert metering.settler is not None
    metering.settler.hear("evt_test_nothing")
    deadline = time.monotonic() + 10
    while metering.run_on_ledger(lambda ledger: ledger.meta(key_of("evt_test_nothing"))) != "done":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    metering.settler.stop()
    metering.flush(5)
    metering.stop()
    assert metering.sender is not None
    metering.sender.close()


@pytest.mark.parametrize("secret", ["", "sk_test_1", [], ["whsec_1", ""]])
def test_a_secret_that_is_none_is_refused_at_start(secret: Any) -> None:
    metering = Metering(settings=Settings(stripe_api_key="sk_test_1", ledger="memory:"))
    with pytest.raises(ConfigurationError, match="whsec_"):
        stripe_webhooks(metering, secret=secret)


def test_without_a_key_there_is_nothing_to_fetch_with() -> None:
    for metering in (
        Metering(settings=Settings(ledger="memory:")),
        Metering(settings=Settings(stripe_api_key="sk_test_1", ledger="memory:"), sender=MemorySender()),
    ):
        with pytest.raises(ConfigurationError, match="STRIPE_API_KEY"):
            stripe_webhooks(metering, secret=SECRET)


# What a report says.


class Answers:
    """A reader that answers from a script."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[Any] = []

    def get(self, path: str, params: Any = None) -> Any:
        self.asked.append(params)
        return self.answers[(params or {}).get("page") or "first"]


def test_a_report_of_the_older_form_names_no_event() -> None:
    sample = {"error_message": "No.", "request": {"id": "req_1", "idempotency_key": "k"}}
    reason = {"error_count": 4, "error_types": [{"code": "c", "error_count": 4, "sample_errors": [sample]}]}
    first = {"id": "evt_1", "type": ERRORS, "data": {"reason": reason}, "related_object": {}}
    report = ErrorEvents(Answers(first=first)).fetch("evt_1")  # type: ignore[arg-type]
    assert report.errors == (ReportedError("c", "No.", 4, ()),)
    assert (report.count, report.meter_id, report.started_at) == (4, None, None)


@pytest.mark.parametrize(
    "event",
    [
        {"data": None},
        {"data": {"reason": {"error_types": "x"}}},
        {"data": {"reason": {"error_types": [7, {"sample_errors": [None, {"request": "x"}]}]}}},
        {"related_object": "mtr_1", "data": {"validation_start": 7, "validation_end": "soon"}},
    ],
)
def test_a_report_of_any_form_is_read_without_an_error(event: Any) -> None:
    first = {"id": "evt_1", "type": NO_METER, **event}
    report = ErrorEvents(Answers(first=first)).fetch("evt_1")  # type: ignore[arg-type]
    assert report.id == "evt_1"
    assert all(not error.identifiers for error in report.errors)


def test_reports_are_listed_to_the_last_page() -> None:
    reader = Answers(
        first={"data": [{"id": "evt_2"}, {}], "next_page_url": "/v2/core/events?limit=100&page=next"},
        next={"data": [{"id": "evt_1"}], "next_page_url": None},
    )
    assert ErrorEvents(reader).since(1_750_000_000.0) == ["evt_2", "evt_1"]  # type: ignore[arg-type]
    assert reader.asked[0]["created[gte]"] == "2025-06-15T15:06:40Z"
