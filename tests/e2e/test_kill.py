"""`kill -9` under load, over and over: what a caller was answered is billed once, what was cut at most once.

The service is examples/fastapi_chat under uvicorn in a process of its own, on one ledger all the time. Each
round asks questions, kills the service at a random moment, starts it again on the same ledger (and in some
rounds kills it again while it starts), and then holds the sandbox's books against what the callers got.
"""

from __future__ import annotations

import os
import random
import sqlite3
import sys
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
from llm_metering import billing
from llm_metering.cli.demo_books import Audit, Kind, Sent, audit, recorded_in
from llm_metering.cli.demo_load import Fate, Load, calls
from llm_metering.cli.stage import Server, Stage, free_port
from llm_metering.ledger import LedgerView

from provider_stand_in import create_app

EXAMPLE = Path(__file__).parents[2] / "examples" / "fastapi_chat"
KILLS = int(os.environ.get("LLM_METERING_KILLS", "50"))
SEED = int(os.environ.get("LLM_METERING_SEED") or time.time_ns() % 1_000_000)
KEYS = ("key-ada", "key-ben", "key-cleo")
CALLS_A_ROUND = 30
CALLERS = 6


def start_service(stage: Stage, provider: str, stripe: str, customers: list[str], **more: str) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLE), "app:app", "--port", str(port)]
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("LLM_METERING_")},
        "OPENAI_API_KEY": "any",
        "OPENAI_BASE_URL": f"{provider}/v1",
        "STRIPE_API_KEY": "sk_test_sandbox",
        "STRIPE_API_BASE": stripe,
        "LLM_METERING_LEDGER": str(stage.folder / "ledger"),
        "LLM_METERING_BUCKET_S": "1",
        "LLM_METERING_FLUSH_EVERY_S": "0.2",
        "CHAT_API_KEYS": ",".join(f"{key}={name}" for key, name in zip(KEYS, customers, strict=True)),
        **more,
    }
    command += ["--log-level", "warning", "--no-access-log"]
    server = stage.launch("service", command, env=env, port=port, ready_path="/health")
    stage.wait_for(server)
    return server


def wait_for_delivery(ledger: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        status = LedgerView(ledger).status(now=time.time())
        if not (status.unfrozen_records or status.streams_under_way or status.events.keys() - {"ACCEPTED"}):
            assert status.conserved
            return
        assert time.monotonic() < deadline, f"not delivered in 30 s: {status}"
        time.sleep(0.03)


class Books:
    """Provider, ledger and Stripe, beside what the callers got."""

    def __init__(self, provider, sandbox, ledger: Path) -> None:
        self.provider, self.sandbox, self.ledger = provider, sandbox, ledger
        self.fates: list[Fate] = []

    def compare(self) -> Audit:
        in_stripe: dict[Kind, Decimal] = {}
        for row in self.sandbox.books():
            kind = Kind(row.customer, row.dimensions["model"], row.dimensions["token_type"])
            in_stripe[kind] = in_stripe.get(kind, Decimal()) + row.value
        return audit(
            sent=[
                Sent(
                    answer.id,
                    {Kind(answer.customer, answer.model, t): Decimal(n) for t, n in answer.by_type().items()},
                )
                for answer in self.provider.answers
            ],
            answered=[str(fate.response_id) for fate in self.fates if fate.whole],
            cut=sum(not fate.whole for fate in self.fates),
            recorded=recorded_in(self.ledger),
            in_stripe=in_stripe,
        )


def play_round(number: int, stage: Stage, service: Server, luck: random.Random) -> tuple[list[Fate], int]:
    """One batch of questions with a kill in it; what their callers got, and how many kills it was."""
    load = Load(
        service.port, calls(seed=luck.randrange(2**32), count=CALLS_A_ROUND, keys=KEYS), callers=CALLERS
    )
    load.start()
    kills = 1
    time.sleep(luck.uniform(0.0, 0.6))
    service.kill()
    while luck.random() < 0.25:
        # Starting takes most of a second: this hits the imports, the opening and adopting of the ledger,
        # the first requests, or the resending.
        stage.relaunch(service, wait=False)
        time.sleep(luck.uniform(0.2, 1.4))
        service.kill()
        kills += 1
    stage.relaunch(service)
    assert load.wait_until(lambda: load.is_done, timeout_s=30), f"round {number}: calls hang"
    wait_for_delivery(stage.folder / "ledger")
    return load.fates, kills


@pytest.fixture
def customers(sandbox) -> list[str]:
    client = sandbox.client()
    billing.apply(billing.PayAsYouGo(), client)
    return [billing.create_customer(client, key) for key in KEYS]


POINTS = (
    "before_commit:9", "after_commit:9", "in_freeze:2", "after_freeze:2", "after_claim:2", "after_response:3",
    "before_finish:3", "after_finish:3",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_each_step_from_answer_to_stripe_loses_nothing_and_doubles_nothing(
    point, serve, sandbox, customers
):
    provider = create_app(seed=1, delay_s=0.004)
    with Stage() as stage:
        service = start_service(stage, serve(provider), sandbox.url, customers, LLM_METERING_FAILPOINT=point)
        books = Books(provider.state.provider, sandbox, stage.folder / "ledger")
        load = Load(service.port, calls(seed=2, count=60, keys=KEYS), callers=CALLERS)
        load.start()
        assert load.wait_until(lambda: not service.is_running, timeout_s=20), f"never came to {point}"
        service.env = {**service.env, "LLM_METERING_FAILPOINT": ""}
        stage.relaunch(service)
        assert load.wait_until(lambda: load.is_done, timeout_s=30)
        wait_for_delivery(books.ledger)
        books.fates += load.fates
        found = books.compare()
        assert found.is_right, found.problems
        assert found.answered > 20


@pytest.mark.slow
def test_no_answer_ends_before_its_usage_is_on_disk(serve, sandbox, customers):
    provider = create_app(seed=1)
    with Stage() as stage:
        service = start_service(stage, serve(provider), sandbox.url, customers)
        books = Books(provider.state.provider, sandbox, stage.folder / "ledger")
        # A disk that takes no writes: somebody else holds the lane's lock.
        (lane,) = books.ledger.glob("lane-*.db")
        disk = sqlite3.connect(lane, isolation_level=None)
        disk.execute("BEGIN IMMEDIATE")
        load = Load(service.port, calls(seed=3, count=20, keys=KEYS), callers=CALLERS)
        load.start()
        assert not load.wait_until(lambda: bool(load.fates), timeout_s=1.5), "answered before the commit"
        assert len(books.provider.answers) == CALLERS, "the provider was not even asked"
        service.kill()
        disk.close()
        stage.relaunch(service)
        assert load.wait_until(lambda: load.is_done, timeout_s=30)
        wait_for_delivery(books.ledger)
        books.fates += load.fates
        found = books.compare()
    assert found.is_right, found.problems
    assert found.answered + found.cut == 20
    assert found.answered > 0
    assert found.cut >= CALLERS  # and those that the dying service's port still took


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_after_each_of_fifty_kills_the_books_equal_what_was_answered(serve, sandbox, customers, capsys):
    luck = random.Random(SEED)
    provider = create_app(seed=SEED, delay_s=0.004)
    seen: Counter[str] = Counter()
    began = time.monotonic()
    with Stage() as stage:
        service = start_service(stage, serve(provider), sandbox.url, customers)
        books = Books(provider.state.provider, sandbox, stage.folder / "ledger")
        while seen["kills"] < KILLS:
            fates, kills = play_round(seen["rounds"], stage, service, luck)
            books.fates += fates
            seen["kills"] += kills
            seen["rounds"] += 1
            found = books.compare()
            assert found.is_right, f"seed {SEED}, round {seen['rounds']}: {found.problems}"
        service.stop()
        log = service.log.read_text()
        lanes = LedgerView(books.ledger).status(now=time.time()).lanes
    with capsys.disabled():
        print(
            f"\n  seed {SEED}: {seen['kills']} kills in {seen['rounds']} rounds, "
            f"{time.monotonic() - began:.0f} s; "
            f"{found.answered} answered in full, each once in Stripe's books ({found.in_stripe} tokens); "
            f"{found.cut} cut, of which {found.cut_recorded} on record, each once; {lanes} lanes"
        )
    assert found.answered > found.cut, "too few calls were answered to prove anything"
    assert found.cut >= KILLS / 2, "the kills hit nobody"
    assert found.cut_recorded > 0
    assert "Traceback" not in log, log[-4000:]
