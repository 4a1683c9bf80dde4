"""Customers and subscriptions: nobody is subscribed twice, no meter is billed twice."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from llm_metering.billing import (
    FlatFeeWithOverages,
    PayAsYouGo,
    apply,
    check_prices,
    create_customer,
    find_subscriptions,
    subscribe,
)
from llm_metering.errors import BillingError, ConfigurationError

from .conftest import Died, Line

PAYG = PayAsYouGo()
FLAT = FlatFeeWithOverages()
FEE = "hypernian_tokens.flat_fee.license.usd.month"


@pytest.fixture
def jenny(client) -> str:
    apply(PAYG | FLAT, client)
    return create_customer(client, "Jenny Rosen", email="jenny@example.com", metadata={"plan": "gold"})


def test_a_customer_is_made_with_what_was_said(client, jenny) -> None:
    made = client.v1.customers.retrieve(jenny)
    assert (made.name, made.email, made.metadata["plan"]) == ("Jenny Rosen", "jenny@example.com", "gold")
    assert client.v1.customers.retrieve(create_customer(client)).name == "John Doe"


def test_pay_as_you_go_charges_automatically_since_nothing_is_due_at_first(client, jenny) -> None:
    made = subscribe(client, jenny, PAYG)
    assert (made.created, made.status, made.billing_mode) == (True, "active", "flexible")
    assert made.collection_method == "charge_automatically"
    assert made.latest_invoice is None
    (item,) = made.items
    assert (item.lookup_key, item.quantity) == ("hypernian_tokens.pay_as_you_go.usd.month", None)


def test_the_flat_fee_is_billed_by_invoice_since_the_customer_cannot_be_charged(client, jenny) -> None:
    made = subscribe(client, jenny, FLAT)
    assert made.collection_method == "send_invoice"
    assert client.v1.subscriptions.retrieve(made.id).days_until_due == 30
    assert [(i.lookup_key, i.quantity) for i in made.items] == [
        (FEE, 1),
        ("hypernian_tokens.flat_fee.overage.usd.month", None),
    ]


def test_charging_a_customer_without_a_payment_method_says_what_else_there_is(client, jenny) -> None:
    with pytest.raises(BillingError) as refused:
        subscribe(client, jenny, FLAT, collection="charge_automatically")
    assert f"subscribing {jenny} to 'flat-fee' failed" in str(refused.value)
    assert "no payment method" in str(refused.value)
    assert 'collection="send_invoice"' in str(refused.value)
    assert 'collection="default_incomplete"' in str(refused.value)


def test_a_flat_fee_may_start_unpaid(client, jenny) -> None:
    made = subscribe(client, jenny, FLAT, collection="default_incomplete")
    assert (made.status, made.collection_method) == ("incomplete", "charge_automatically")


def test_arguments_reach_stripe(client, jenny) -> None:
    made = subscribe(client, jenny, FLAT, billing_mode="classic", days_until_due=7, quantities={FEE: 5})
    assert made.billing_mode == "classic"
    assert made.items[0].quantity == 5
    assert client.v1.subscriptions.retrieve(made.id).days_until_due == 7


def test_seats_of_the_catalog_are_the_quantity(client, jenny) -> None:
    assert subscribe(client, jenny, FlatFeeWithOverages(seats=3)).items[0].quantity == 3


def test_subscribing_again_finds_the_subscription(client, line, jenny) -> None:
    first = subscribe(client, jenny, PAYG)
    writes = len(line.writes)
    again = subscribe(client, jenny, PAYG)
    assert (again.id, again.created) == (first.id, False)
    assert len(line.writes) == writes
    assert find_subscriptions(client, jenny) == (again,)


def test_what_was_applied_can_be_subscribed_to(client, jenny) -> None:
    assert subscribe(client, jenny, apply(PAYG, client)).created


def test_another_quantity_is_refused_instead_of_ignored(client, jenny) -> None:
    made = subscribe(client, jenny, FLAT)
    with pytest.raises(
        BillingError, match=f"{jenny} has {made.id} with these prices already, but with\\s.*not 2"
    ):
        subscribe(client, jenny, FLAT, quantities={FEE: 2})


def test_a_second_price_on_the_same_meter_is_refused(client, line, jenny) -> None:
    made = subscribe(client, jenny, PAYG)
    writes = len(line.writes)
    with pytest.raises(BillingError) as refused:
        subscribe(client, jenny, FLAT)
    assert f"is billed for meter 'hypernian_tokens' already, by {made.id}" in str(refused.value)
    assert "would bill the same usage twice" in str(refused.value)
    assert len(line.writes) == writes


def test_another_meter_may_be_billed_beside_the_first(client, jenny) -> None:
    both = PAYG | PayAsYouGo(event_name="images", name="images")
    apply(both, client)
    subscribe(client, jenny, both, offer="pay-as-you-go")
    assert subscribe(client, jenny, both, offer="images").created
    assert len(find_subscriptions(client, jenny)) == 2


def test_a_subscriber_of_a_replaced_price_is_not_given_the_new_one_beside_it(client, jenny) -> None:
    subscribe(client, jenny, PAYG)
    dearer = PayAsYouGo(amount="0.05")
    apply(dearer, client)
    with pytest.raises(BillingError, match="would bill the same usage twice"):
        subscribe(client, jenny, dearer)


def test_after_a_cancellation_the_same_day_a_new_subscription_is_made(client, jenny) -> None:
    """The idempotency key of the first must not bring the cancelled one back."""
    ids = set()
    for _ in range(3):
        made = subscribe(client, jenny, PAYG)
        assert made.created
        ids.add(made.id)
        client.v1.subscriptions.cancel(made.id)
    assert len(ids) == 3
    assert find_subscriptions(client, jenny) == ()


def test_two_subscribes_at_once_make_one_subscription(dial, jenny) -> None:
    together = threading.Barrier(2)

    def run() -> str:
        line = Line()
        line.before = lambda method, path: together.wait(timeout=60) if method == "post" else None
        return subscribe(dial(line, retries=2), jenny, PAYG).id

    with ThreadPoolExecutor(2) as pool:
        first, second = (job.result() for job in [pool.submit(run), pool.submit(run)])
    assert first == second
    assert len(find_subscriptions(dial(), jenny)) == 1


@pytest.mark.parametrize("after_sending", [False, True], ids=["before sending", "after sending"])
def test_interrupted_at_any_call_the_next_run_leaves_one_subscription(dial, jenny, after_sending) -> None:
    whole = Line()
    subscribe(dial(whole), create_customer(dial()), FLAT)
    for number in range(len(whole.log)):
        customer = create_customer(dial())
        dying = Line()
        dying.break_at, dying.break_after_sending = number, after_sending
        with pytest.raises(Died):
            subscribe(dial(dying), customer, FLAT)
        made = subscribe(dial(), customer, FLAT)
        assert [s.id for s in find_subscriptions(dial(), customer)] == [made.id]


def test_a_server_error_is_tried_again_after_another_look(sandbox, dial, jenny) -> None:
    sandbox.fault("500_after", method="POST", path="/v1/subscriptions")
    made = subscribe(dial(), jenny, PAYG)
    assert len(find_subscriptions(dial(), jenny)) == 1
    sandbox.fault("500_before", method="POST", path="/v1/subscriptions", count=None)
    client = dial()
    client.v1.subscriptions.cancel(made.id)
    with pytest.raises(BillingError, match="Stripe had an error of its own"):
        subscribe(client, jenny, PAYG)


def test_prices_that_were_not_set_up_are_named(client) -> None:
    customer = create_customer(client)
    with pytest.raises(BillingError) as refused:
        subscribe(client, customer, PayAsYouGo("cad"))
    assert "the account has no price 'hypernian_tokens.pay_as_you_go.cad.month'" in str(refused.value)
    assert "set the catalog up first" in str(refused.value)


def test_prices_with_other_figures_are_refused_unless_asked_for(client, jenny) -> None:
    dearer = PayAsYouGo(amount="0.05")
    with pytest.raises(BillingError, match=r"differs from the catalog: amount is 0.04 USD, not 0.05 USD"):
        subscribe(client, jenny, dearer)
    assert subscribe(client, jenny, dearer, exact=False).created


def test_an_archived_price_is_refused_with_what_to_do(client, jenny) -> None:
    price = apply(PAYG, client).prices["hypernian_tokens.pay_as_you_go.usd.month"]
    client.v1.prices.update(price, {"active": False})
    for catalog, exact in ((PAYG, True), (PayAsYouGo(amount=1), False)):
        with pytest.raises(BillingError, match="is archived; apply the catalog again"):
            check_prices(client, catalog, exact=exact)


def test_an_unknown_customer_is_named(client, jenny) -> None:
    with pytest.raises(
        BillingError, match="there is no customer 'cus_nobody' on this Stripe account and mode"
    ):
        subscribe(client, "cus_nobody", PAYG)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"billing_mode": "modern"}, "billing_mode='modern' must be 'flexible' or 'classic'"),
        ({"collection": "ask"}, "collection='ask' must be one of charge_automatically, send_invoice"),
        ({"days_until_due": -1}, "days_until_due=-1 must be a whole number of 0 or more"),
        ({"quantities": {FEE: 0}}, f"quantities: '{FEE}' must be a whole number of at least 1"),
        ({"quantities": {"gold": 1}}, "quantities: 'gold' is not a licence of offer 'flat-fee'"),
        ({"offer": "gold"}, "the catalog has no offer 'gold'; it has flat-fee"),
    ],
)
def test_arguments_that_cannot_work_are_refused_before_anything_is_made(
    client, line, jenny, arguments, sentence
) -> None:
    writes = len(line.writes)
    with pytest.raises(ConfigurationError) as refused:
        subscribe(client, jenny, FLAT, **arguments)
    assert sentence in str(refused.value)
    assert len(line.writes) == writes
