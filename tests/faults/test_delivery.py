"""Faults between the ledger and Stripe, each brought about for real. Rows of docs/faults.md by number."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import stripe
from llm_metering import Metering, Settings, billing
from llm_metering.ledger import LedgerView
from llm_metering.protocols import Outcome
from llm_metering.sandbox import Sandbox, running_sandbox
from llm_metering.senders.memory import MemorySender
from llm_metering.senders.stripe_v1 import StripeSender
from llm_metering.usage import Usage
from tests.senders.conftest import RawServer, refuses
from tests.simulation.world import DAY, HOUR

EVENTS = "/v1/billing/meter_events"


@pytest.fixture
def ready(sandbox: Sandbox) -> Sandbox:
    """A Stripe with the meter of the guide."""
    billing.apply(billing.PayAsYouGo(), sandbox.client())
    return sandbox


def metering_to(url: str, folder: Path, **options: Any) -> Metering:
    alarms = options.pop("alarms", [])
    settings = Settings(ledger=str(folder), encodings=(), bucket_s=1, flush_every_s=0.2, **options)
    sender = StripeSender("sk_test_sandbox", api_base=url, timeout_s=3)
    return Metering("cus_1", settings=settings, sender=sender, on_alarm=alarms.append)


# 16.


def test_an_identifier_that_stripe_has_before_our_first_attempt_is_in_doubt(ready, tmp_path):
    """As on a cloned disk: somebody has sent our event, and it is not on our record."""
    alarms: list[Any] = []
    client = ready.client()
    customer = billing.create_customer(client, "Ada")
    with Metering(settings=Settings(ledger=str(tmp_path / "ledger"), encodings=())) as without_key:
        without_key.record(Usage(input=70), customer=customer, model="m")
        now = time.time()
        without_key.run_on_ledger(lambda ledger: ledger.freeze(now=now, bucket_s=1, everything=True))
        (row,) = without_key.run_on_ledger(lambda ledger: ledger.events())
    event = row.event
    client.v1.billing.meter_events.create(
        {
            "event_name": event.event_name, "payload": dict(event.payload), "timestamp": event.timestamp,
            "identifier": event.identifier,
        }
    )  # fmt: skip
    with metering_to(ready.url, tmp_path / "ledger", alarms=alarms) as metering:
        metering.flush(5)
        (row,) = metering.run_on_ledger(lambda ledger: ledger.events())
    assert row.event == event
    assert row.state == "IN_DOUBT"
    assert row.attempts == 1
    assert "delivery.duplicate_on_first_attempt" in [a.name for a in alarms]
    assert ready.books().total() == 70
    assert LedgerView(tmp_path / "ledger").status(now=time.time()).conserved


# 20.


def test_usage_of_36_days_ago_is_dead_and_says_so(virtual):
    world = virtual()
    world.now -= 36 * DAY
    world.use("cus_old", 5)
    world.now += 36 * DAY
    world.use("cus_new", 7)
    world.pass_until(world.settled)
    states = {row.event.customer: row for row in world.ledger.events()}
    assert states["cus_old"].state == "DEAD"
    assert "expired" in states["cus_old"].reason
    assert states["cus_new"].state == "ACCEPTED"
    assert [e.customer for e in world.stripe.attempts] == ["cus_new"]
    assert "delivery.expired" in world.names()


def test_an_outage_of_36_days_alarms_at_25_and_ends_in_dead_letters(virtual):
    down = Outcome("not_sent", message="connection refused")
    world = virtual(MemorySender(otherwise=down), flush_every_s=HOUR)
    world.stripe.check_otherwise = down
    for n in range(5):
        world.use(f"cus_{n}")
    at: dict[str, float] = {}
    began = world.now
    while world.now - began < 36 * DAY:
        world.pass_(HOUR)
        for alarm in world.ledger.take_alarms() + world.alarms:
            at.setdefault(alarm.name, world.now - began)
    assert 25 * DAY <= at["delivery.late_25d"] < 25 * DAY + 2 * HOUR
    assert 34 * DAY <= at["delivery.expired"] < 34 * DAY + 2 * HOUR
    assert world.states() == {"DEAD": 5}
    assert world.is_conserved()
    world.stripe.otherwise = world.stripe.check_otherwise = "accepted"
    world.pass_(HOUR)
    assert world.stripe.accepted == []


# 56.


@pytest.mark.parametrize(
    ("answer", "state"),
    [("accepted", "ACCEPTED"), (Outcome("ambiguous", 500), "IN_DOUBT"), ("throttled", "IN_DOUBT")],
)
def test_22_hours_that_pass_while_a_resend_is_under_way(virtual, answer, state):
    """A definite answer counts however late it comes; any other is the last."""
    met = 0
    for seed in range(12):
        world = virtual(MemorySender(otherwise=MemorySender.LOST), seed=seed)
        world.use()
        world.latency_s = 200.0  # within its lease
        world.pass_until(lambda world=world: world.states().get("AMBIGUOUS"), within=20 * 60)
        (row,) = world.ledger.events()
        horizon = row.first_ambiguous_at + 22 * HOUR
        world.pass_(horizon - 1 - world.now)
        under_way = [job for job in world.sending.jobs if job.claims]
        if not under_way:
            continue  # between two attempts
        met += 1
        world.stripe.otherwise = answer
        seen = len(world.stripe.attempts)
        world.pass_(2 * HOUR)
        (row,) = world.ledger.events()
        assert row.state == state
        assert len(world.stripe.attempts) == seen + 1, "it was sent again"
        assert len(world.stripe.accepted) == 1
    assert met >= 3, "no resend was under way when the time ran out"


# 54.


def test_retries_of_the_users_own_stripe_client_have_no_effect_on_ours(tmp_path, monkeypatch):
    class Forbidden(stripe.HTTPClient):
        name = "forbidden"

        def request(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("delivery went through the user's client")

    monkeypatch.setattr(stripe, "max_network_retries", 8)
    monkeypatch.setattr(stripe, "api_key", "sk_test_users_own")
    monkeypatch.setattr(stripe, "default_http_client", Forbidden())
    with RawServer() as server:
        server.otherwise = answering_fault_once()
        metering = metering_to(server.url, tmp_path / "ledger")
        with metering:
            metering.record(Usage(input=7), model="m")
            assert metering.flush(20) == 0
            (row,) = metering.run_on_ledger(lambda ledger: ledger.events())
        sent = [r for r in server.requests if r.line.startswith(f"POST {EVENTS}")]
    assert row.state == "ACCEPTED"
    assert len(sent) == row.attempts == 2, "each request is an attempt on record"
    assert {r.headers["authorization"] for r in sent} == {"Bearer sk_test_sandbox"}
    assert len({r.headers["idempotency-key"] for r in sent}) == 2


def answering_fault_once() -> Any:
    from tests.senders.conftest import accepts, answer

    faults = [refuses(500, "Sorry.")]

    def act(sock: Any, request: Any) -> bool:
        if request.line.startswith("GET"):
            sock.sendall(answer(b'{"object":"account","id":"acct_1","livemode":false}'))
            return True
        return (faults.pop() if faults else accepts)(sock, request)

    return act


# 55.


def test_a_dead_letter_that_is_replayed_by_several_at_once_has_one_child(ready, tmp_path):
    """Real processes would do the same through the desk; here eight threads hand in the same replay."""
    ready.set_switches(strict_v1=True)
    customer = billing.create_customer(ready.client(), "Ada")
    metering = metering_to(ready.url, tmp_path / "ledger")
    with metering:
        metering.record(Usage(input=9), customer="cus_gone", model="m")
        metering.record(Usage(input=5), customer=customer, model="m")
        assert metering.flush(20) == 0
        (dead,) = metering.run_on_ledger(lambda ledger: ledger.events(states=("DEAD",)))
        children: list[Any] = []

        def replay() -> None:
            children.extend(
                metering.run_on_ledger(
                    lambda ledger: ledger.replay(
                        [dead.event.identifier], who="ada", why="the customer is back", now=time.time()
                    )
                )
            )

        threads = [threading.Thread(target=replay) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(r.refused is None for r in children) == 1
        metering.flush(20)
        rows = metering.run_on_ledger(lambda ledger: ledger.events())
        assert metering.status().conserved
    assert sorted(row.state for row in rows) == ["ACCEPTED", "CLOSED", "DEAD"]
    assert ready.books().total() == 5


# 57.


@pytest.mark.parametrize(("bucket_s", "off_by"), [(60, 100), (1, 0)])
def test_a_subscription_that_begins_in_mid_minute_is_billed_from_there(tmp_path, bucket_s, off_by):
    """Usage before and after the start falls into one bucket: its event is never dated before the last use
    inside, and what is billed too much is less than that bucket's usage; by the second, nothing is."""
    clock = Moving(1_767_225_610.0)
    with running_sandbox(now=clock) as sandbox:
        client = sandbox.client()
        applied = billing.apply(billing.PayAsYouGo(), client)
        customer = billing.create_customer(client, "Ada")
        settings = Settings(
            ledger=str(tmp_path / "ledger"), encodings=(), bucket_s=bucket_s, flush_every_s=600
        )
        sender = StripeSender("sk_test_sandbox", api_base=sandbox.url)
        with Metering(customer, settings=settings, sender=sender, now=clock) as metering:
            metering.record(Usage(input=100), model="m")
            clock.now += 20.4
            start = int(clock.now)
            billing.subscribe(client, customer, applied)
            clock.now += 5
            metering.record(Usage(input=1000), model="m")
            last_use = int(clock.now)
            clock.now += 60
            metering.flush(20)
            events = [row.event for row in metering.run_on_ledger(lambda ledger: ledger.events())]
        sandbox.settle()
        assert max(e.timestamp for e in events) == last_use >= start
        billed = sum(int(e.value) for e in events if e.timestamp >= start)
        assert billed - 1000 == off_by
        preview = billing.preview_invoice(client, customer=customer)
        assert sum(line.quantity or 0 for line in preview.lines) == billed
        assert sandbox.books().total() == 1100


class Moving:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


# 51, 52.


HOSTILE = (
    "../../../etc/passwd", "a\x00b", "line\r\nbreak", "🦊" * 20, "x" * 1000, "lane-evil.db",
    "'; DROP TABLE usage;--",
    "\ud800",
)  # fmt: skip


def test_hostile_names_reach_neither_paths_nor_other_lines_of_the_log(tmp_path, caplog):
    folder = tmp_path / "here" / "ledger"
    settings = Settings(ledger=str(folder), encodings=(), deliver="external")
    metering = Metering("cus_1", settings=settings)
    with metering:
        for name in HOSTILE:
            metering.record(Usage(input=1), customer=name, model="m", id=name)
            metering.record(Usage(input=2), model=name, feature=name)
        status = metering.status()
        metering.run_on_ledger(lambda ledger: ledger.freeze(now=time.time(), bucket_s=1, everything=True))
        events = metering.run_on_ledger(lambda ledger: ledger.events(limit=1000))
    assert status.usage_records == 2 * len(HOSTILE), "a record was lost for its name"
    assert status.conserved
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert all(path.startswith("here/ledger/") for path in found)
    assert not any("evil" in path or "etc" in path for path in found)
    assert all(
        len(value) <= 500 and value.isprintable() for e in events for value in e.event.payload.values()
    )
    assert all("\n" not in r.getMessage() and "\x00" not in r.getMessage() for r in caplog.records)


def test_no_prompt_answer_or_key_is_in_the_ledgers_files_or_the_log(world, uvicorn):
    import httpx

    secret = "canary-7f3a91-of-the-prompt"
    server = uvicorn.start(world)
    for path in ("/chat", "/chat/stream", "/digest"):
        answer = httpx.post(
            f"{server.url}{path}",
            json={"text": f"{secret} hello"},
            headers={"Authorization": "Bearer key-ada"},
        )
        answer.raise_for_status()
    world.wait_for_delivery()
    texts = [a.text for a in world.provider.answers if len(a.text) > 30]
    server.stop()
    kept = b"".join(path.read_bytes() for path in world.ledger.iterdir() if path.is_file())
    said = server.log.read_bytes()
    for word in (secret, "key-ada", world.sandbox.api_key, *(text[:30] for text in texts)):
        assert word.encode() not in kept, word
        assert word.encode() not in said, word
    assert len(texts) == 3
    assert rows_of(world.ledger) == 3


def rows_of(folder: Path) -> int:
    total = 0
    for path in folder.glob("lane-*.db"):
        db = sqlite3.connect(path)
        total += db.execute("SELECT count(*) FROM usage").fetchone()[0]
        db.close()
    return total


# 58.


def test_without_lifespan_what_a_killed_process_left_is_adopted_and_delivered(world, uvicorn):
    server = uvicorn.start(world, "--lifespan", "off", LLM_METERING_FLUSH_EVERY_S="600")
    world.answered(world.ask(server, 15))
    assert world.in_stripe() == {}, "it was delivered before the kill"
    server.kill()
    assert world.status().usage_records == 15
    server.env = world.env()
    world.stage.relaunch(server)
    load = world.ask(server, 1, seed=2)  # the first request starts metering
    world.answered(load)
    world.wait_for_delivery()
    found = world.compare()
    assert found.is_right, found.problems
    assert found.answered == 16
