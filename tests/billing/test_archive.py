"""What is ours and not in the catalog any more: shown, and switched off only where it bills nobody."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from llm_metering.billing import (
    Catalog,
    FlatFeeWithOverages,
    PayAsYouGo,
    apply,
    create_customer,
    plan,
    send_test_event,
    subscribe,
)
from llm_metering.errors import BillingError

from .conftest import Died, Line

KEY = "hypernian_tokens.pay_as_you_go.usd.month"
KEPT = PayAsYouGo()
GONE = FlatFeeWithOverages(event_name="streams", meter_name="Streams")
FEE = "streams.flat_fee.license.usd.month"
OVERAGE = "streams.flat_fee.overage.usd.month"


def actions(made) -> dict[str, str]:
    return {change.key: change.action for change in made.changes if change.action != "unchanged"}


def active(objects) -> set[str]:
    """Key or id of everything that is on."""
    found = objects()
    return (
        {m["event_name"] for m in found["meters"] if m["status"] == "active"}
        | {p["id"] for p in found["products"] if p["active"]}
        | {p["lookup_key"] or p["id"] for p in found["prices"] if p["active"]}
    )


@pytest.fixture
def both(client):
    return apply(KEPT | GONE, client)


def test_what_was_taken_out_is_shown_and_left_alone_unless_asked(client, both, objects) -> None:
    before = objects()
    seen = plan(KEPT, client)
    assert set(actions(seen).values()) == {"leave"}
    assert set(actions(seen)) == {FEE, OVERAGE, "streams_usage", "streams_license", "streams"}
    assert seen.done
    assert "it bills nobody and can be archived (--archive)" in str(seen)
    assert "3 unchanged, 5 of ours not in the catalog" in str(seen)
    assert apply(KEPT, client).changes == ()
    assert objects() == before


def test_what_bills_nobody_is_switched_off_and_never_deleted(client, both, objects) -> None:
    seen = plan(KEPT, client, archive=True)
    assert [c.kind for c in seen.changes if c.action == "archive"] == [
        "price", "price", "product", "product", "meter",
    ]  # fmt: skip
    assert not seen.done
    applied = apply(seen, client)
    assert len(applied.changes) == 5
    assert applied.left == ()
    assert active(objects) == {KEY, "hypernian_tokens"}
    assert {name: len(found) for name, found in objects().items() if found} == {
        "meters": 2, "products": 3, "prices": 3,
    }  # fmt: skip
    assert apply(KEPT, client, archive=True).changes == ()


def test_a_price_that_bills_someone_stays_with_its_product_and_its_meter(client, both, objects) -> None:
    customer = create_customer(client)
    subscription = subscribe(client, customer, GONE)
    applied = apply(KEPT, client, archive=True)
    assert applied.changes == ()
    why = {change.key: str(change.note) for change in applied.left}
    assert f"it bills the subscription {subscription.id}; move them first" in why[OVERAGE]
    assert f"it has the price {both.prices[OVERAGE]} that stays on sale" in why["streams_usage"]
    assert f"the price {both.prices[OVERAGE]} that stays on sale charges it" in why["streams"]
    assert send_test_event(client, customer, 5, event_name="streams").event.value == 5
    client.v1.invoices.finalize_invoice(str(subscription.latest_invoice))
    client.v1.subscriptions.cancel(subscription.id)
    assert len(apply(KEPT, client, archive=True).changes) == 5


def test_an_archived_price_that_still_bills_keeps_its_meter_on(client, both) -> None:
    """Archived by hand, it goes on billing; with its meter off, its usage would be refused."""
    subscription = subscribe(client, create_customer(client), GONE)
    for key in (FEE, OVERAGE):
        client.v1.prices.update(both.prices[key], {"active": False})
    applied = apply(KEPT, client, archive=True)
    assert {c.key for c in applied.changes} == {"streams_usage", "streams_license"}
    (meter,) = applied.left
    assert f"archived prices charge it and bill the subscription {subscription.id}" in str(meter.note)
    assert client.v1.billing.meters.retrieve(both.meters["streams"]).status == "active"


def test_a_replaced_price_is_a_leftover_once_nobody_has_it(client, both) -> None:
    subscription = subscribe(client, create_customer(client), KEPT)
    dearer = PayAsYouGo(amount="0.05") | GONE
    apply(dearer, client)
    (left,) = apply(dearer, client, archive=True).left
    assert (left.key, left.id) == (both.prices[KEY], both.prices[KEY])
    assert "0.04 USD per 100" in left.summary
    client.v1.subscriptions.cancel(subscription.id)
    (change,) = apply(dearer, client, archive=True).changes
    assert (change.action, change.id) == ("archive", both.prices[KEY])
    price = client.v1.prices.retrieve(both.prices[KEY])
    assert (price.active, price.metadata["catalog_key"]) == (False, KEY)


def test_usage_of_a_draft_invoice_keeps_the_meter_on_after_the_subscription_ended(sandbox, client) -> None:
    """Until it is finalised, what is reported late still counts."""
    apply(KEPT | GONE, client)
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": 1_768_478_400})
    customer = create_customer(client, test_clock=clock.id)
    made = subscribe(client, customer, GONE)
    client.v1.subscriptions.update(made.id, {"cancel_at_period_end": True})
    end = client.v1.subscriptions.retrieve(made.id)["items"].data[0].current_period_end
    client.v1.test_helpers.test_clocks.advance(clock.id, {"frozen_time": end + 60})
    assert client.v1.subscriptions.retrieve(made.id).status == "canceled"
    (meter,) = apply(KEPT, client, archive=True).left
    assert (meter.key, made.id in str(meter.note)) == ("streams", True)
    client.v1.test_helpers.test_clocks.advance(clock.id, {"frozen_time": end + 4000})
    (change,) = apply(KEPT, client, archive=True).changes
    assert (change.action, change.key) == ("archive", "streams")


def test_a_reviewed_plan_to_replace_and_archive_does_both(client) -> None:
    """Only once it is replaced is the old price a leftover; the plan says so beforehand."""
    old = apply(KEPT, client).prices[KEY]
    reviewed = plan(PayAsYouGo(amount="0.05"), client, archive=True)
    assert "once it bills nobody, it is archived" in str(reviewed)
    applied = apply(reviewed, client)
    assert [(c.action, c.id) for c in applied.changes] == [("replace", old), ("archive", old)]
    assert not client.v1.prices.retrieve(old).active


def test_what_others_made_is_never_touched(client, both, objects) -> None:
    client.v1.products.create({"id": "theirs", "name": "Theirs"})
    price = client.v1.prices.create(
        {
            "product": "streams_usage",
            "currency": "usd",
            "unit_amount": 1,
            "recurring": {"interval": "month", "usage_type": "metered", "meter": both.meters["streams"]},
        }
    )
    applied = apply(KEPT, client, archive=True)
    assert {c.key for c in applied.changes} == {FEE, OVERAGE, "streams_license"}, (
        "the meter is not ours alone"
    )
    (product,) = applied.left
    assert f"it has the price {price.id} that stays on sale" in str(product.note)
    assert active(objects) == {KEY, "hypernian_tokens", "theirs", price.id, "streams_usage", "streams"}


@pytest.mark.parametrize("after_sending", [False, True], ids=["before sending", "after sending"])
def test_interrupted_at_any_call_the_next_run_archives_the_rest(
    sandbox, dial, objects, after_sending
) -> None:
    apply(KEPT | GONE, dial())
    sandbox.snapshot()
    whole = Line()
    apply(KEPT, dial(whole), archive=True)
    assert len(whole.writes) == 5
    for number in range(len(whole.log)):
        sandbox.restore()
        dying = Line()
        dying.break_at, dying.break_after_sending = number, after_sending
        with pytest.raises(Died):
            apply(KEPT, dial(dying), archive=True)
        apply(KEPT, dial(), archive=True)
        assert active(objects) == {KEY, "hypernian_tokens"}, f"interrupted at call {number}"


def test_two_runs_at_once_archive_together(sandbox, dial, objects) -> None:
    apply(KEPT | GONE, dial())
    together = threading.Barrier(2)

    def run() -> None:
        line = Line()
        line.before = lambda method, path: together.wait(timeout=60) if len(line.writes) < 1 else None
        apply(KEPT, dial(line, retries=2), archive=True)

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(run), pool.submit(run)]:
            job.result()
    assert active(objects) == {KEY, "hypernian_tokens"}


def test_who_subscribes_while_it_is_archived_keeps_the_meter_on(dial) -> None:
    """Between the look and the last call somebody subscribed: the meter is looked at once more."""
    both = apply(KEPT | GONE, dial())
    customer = create_customer(dial())
    line = Line()

    def subscribing(method: str, path: str) -> None:
        if method == "post" and not line.writes:
            line.before = lambda *_: None
            subscribe(dial(), customer, GONE)

    line.before = subscribing
    applied = apply(KEPT, dial(line), archive=True)
    assert "streams" in {change.key for change in applied.left}
    assert f"/v1/billing/meters/{both.meters['streams']}/deactivate" not in str(line.writes)
    assert send_test_event(dial(), customer, 5, event_name="streams").event.value == 5


def test_a_plan_to_archive_does_nothing_that_was_not_seen(dial, client, line) -> None:
    apply(KEPT | GONE, client)
    subscription = subscribe(client, create_customer(client), GONE)
    reviewed = plan(KEPT, client, archive=True)
    client.v1.invoices.finalize_invoice(str(subscription.latest_invoice))
    client.v1.subscriptions.cancel(subscription.id)
    writes = len(line.writes)
    with pytest.raises(BillingError, match="has changed since this plan was made"):
        apply(reviewed, client)
    assert len(line.writes) == writes


def test_an_empty_catalog_archives_all_that_is_ours(client, both, objects) -> None:
    client.v1.products.create({"id": "theirs", "name": "Theirs"})
    apply(Catalog(), client, archive=True)
    assert active(objects) == {"theirs"}
