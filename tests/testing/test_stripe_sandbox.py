"""The sandbox as a fixture: in process, on a port, with a time of its own."""

from __future__ import annotations

import asyncio
import sys
import threading
from decimal import Decimal

import httpx
import pytest
import stripe
from llm_metering import Metering, MissingExtra, Settings, Usage, billing
from llm_metering.testing import StripeSandbox

stripe.enable_telemetry = False
DAY_S = 86_400


@pytest.fixture(scope="module")
def one() -> StripeSandbox:
    with StripeSandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(one: StripeSandbox) -> StripeSandbox:
    one.reset()
    return one


def subscribed(sandbox: StripeSandbox) -> str:
    customer = billing.create_customer(sandbox.stripe, "John Doe")
    billing.subscribe(sandbox.stripe, customer, billing.apply(billing.PayAsYouGo(), sandbox.stripe))
    return customer


def test_the_client_works_without_a_socket():
    before = threading.active_count()
    with StripeSandbox() as sandbox:
        customer = subscribed(sandbox)
        billing.send_test_event(sandbox.stripe, customer, 3000)
        assert billing.preview_invoice(sandbox.stripe, customer=customer).total == Decimal("1.20")
        assert sandbox._running is None
    assert threading.active_count() == before


def test_the_client_works_in_async_tests_too(sandbox):
    async def ask():
        customer = await sandbox.stripe.v1.customers.create_async({"name": "Jenny Rosen"})
        return sandbox.stripe.v1.customers.retrieve(customer.id).name

    assert asyncio.run(ask()) == "Jenny Rosen"


def test_both_ways_lead_to_the_same_stripe(sandbox):
    customer = subscribed(sandbox)
    with Metering(customer, settings=Settings(), ledger="memory:", sender=sandbox.sender()) as metering:
        metering.record(Usage(input=3000), model="gpt-5-mini")
        assert metering.flush(10) == 0
    assert sandbox.books().total(customer=customer, model="gpt-5-mini") == 3000
    over_http = httpx.get(
        f"{sandbox.url}/v1/customers/{customer}", headers={"Authorization": f"Bearer {sandbox.api_key}"}
    )
    assert over_http.json()["name"] == "John Doe"
    assert sandbox.env == {"STRIPE_API_BASE": sandbox.url, "STRIPE_API_KEY": sandbox.api_key}


def test_the_clock_moves_a_subscription_into_its_next_month(sandbox):
    customer = subscribed(sandbox)
    billing.send_test_event(sandbox.stripe, customer, 3000)
    assert sandbox.stripe.v1.invoices.list({"customer": customer}).data == []
    sandbox.clock.move(days=31)
    [invoice] = sandbox.stripe.v1.invoices.list({"customer": customer}).data
    assert (invoice.total, invoice.billing_reason) == (120, "subscription_cycle")


def test_the_clock_goes_on_stands_still_and_never_goes_back(sandbox):
    clock = sandbox.clock
    start = clock()
    assert clock.move(hours=1, seconds=5) >= start + 3605
    clock.stop(at=1_800_000_000)
    assert clock() == clock() == 1_800_000_000
    assert clock.move(days=1) == 1_800_000_000 + DAY_S
    with pytest.raises(ValueError, match="forward"):
        clock.move(days=-1)
    sandbox.reset()
    assert clock() < start + 60


def test_a_metering_can_live_in_the_same_time(sandbox):
    customer = subscribed(sandbox)
    sandbox.clock.move(days=40)
    with Metering(
        customer, settings=Settings(), ledger="memory:", sender=sandbox.sender(), now=sandbox.clock
    ) as metering:
        metering.record(Usage(input=100))
        assert metering.flush(10) == 0
    assert sandbox.books().total(customer=customer) == 100


def test_faults_are_seen_in_process_as_over_a_socket(sandbox):
    for kind, error in (
        ("500_before", stripe.APIError),
        ("429", stripe.RateLimitError),
        ("accept_then_reset", stripe.APIConnectionError),
        ("truncated", stripe.APIConnectionError),
    ):
        sandbox.fault(kind, path="/v1/customers", method="POST")
        with pytest.raises(error):
            sandbox.client(max_network_retries=0).v1.customers.create({"name": kind})
    names = [c.name for c in sandbox.stripe.v1.customers.list().data]
    assert names == ["truncated", "accept_then_reset"]
    sandbox.fault("500_before", count=None)
    sandbox.clear_faults()
    sandbox.stripe.v1.customers.list()


def test_a_client_that_hangs_gives_up(sandbox):
    from llm_metering.testing.local_stripe import InProcess

    sandbox.fault("accept_then_hang")
    http = InProcess(sandbox.app, sandbox._loop, timeout=0.05)
    with pytest.raises(stripe.APIConnectionError):
        sandbox.client(http_client=http, max_network_retries=0).v1.customers.create({"name": "a"})


def test_reset_leaves_nothing_behind(sandbox):
    subscribed(sandbox)
    sandbox.set_switches(aggregation_delay_s=60)
    sandbox.fault("500_before", count=None)
    sandbox.reset()
    assert sandbox.app.world.switches.aggregation_delay_s == 0
    assert sandbox.stripe.v1.customers.list().data == []
    assert list(sandbox.books()) == []


def test_delayed_usage_shows_when_it_is_settled(sandbox):
    customer = subscribed(sandbox)
    sandbox.set_switches(aggregation_delay_s=60)
    billing.send_test_event(sandbox.stripe, customer, 3000)
    assert billing.preview_invoice(sandbox.stripe, customer=customer).total == 0
    assert sandbox.settle() == 1
    assert billing.preview_invoice(sandbox.stripe, customer=customer).total == Decimal("1.20")


def test_other_keys_see_another_account(sandbox):
    subscribed(sandbox)
    assert sandbox.client("sk_test_other").v1.customers.list().data == []


def test_without_uvicorn_the_client_works_and_the_url_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with StripeSandbox() as sandbox:
        assert sandbox.stripe.v1.customers.create({"name": "a"}).name == "a"
        with pytest.raises(MissingExtra, match=r"pip install .*llm_metering\[sandbox\]"):
            _ = sandbox.url
