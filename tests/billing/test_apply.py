"""However often, from wherever and however far: an account ends up as the catalog says, once."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
import stripe
from llm_metering.billing import (
    Catalog,
    FlatFeeWithOverages,
    MeterSpec,
    Offer,
    PayAsYouGo,
    PriceSpec,
    ProductSpec,
    Tier,
    apply,
    plan,
    subscribe,
)
from llm_metering.errors import BillingError

from .conftest import Died, Line

GUIDE = PayAsYouGo()
BOTH = PayAsYouGo() | FlatFeeWithOverages()
KEY = "hypernian_tokens.pay_as_you_go.usd.month"
METER = {
    "display_name": "Hypernian tokens",
    "event_name": "hypernian_tokens",
    "default_aggregation": {"formula": "sum"},
}


def counts(objects) -> dict[str, int]:
    return {name: len(found) for name, found in objects().items() if found}


def test_both_guides_are_set_up_as_they_say(client, objects) -> None:
    applied = apply(BOTH, client)
    assert counts(objects) == {"meters": 1, "products": 3, "prices": 3}
    assert set(applied.prices) == {p.key for p in BOTH.prices}
    assert [c.action for c in applied.changes] == ["create"] * 7
    price = client.v1.prices.retrieve(applied.prices[KEY])
    assert (price.unit_amount, price.currency) == (4, "usd")
    assert price.transform_quantity.to_dict() == {"divide_by": 100, "round": "up"}
    assert price.recurring.meter == applied.meters["hypernian_tokens"]


def test_applying_again_changes_nothing(client, line, objects) -> None:
    first = apply(BOTH, client)
    before, writes = objects(), len(line.writes)
    again = apply(BOTH, client)
    assert again.changes == ()
    assert again.prices == first.prices
    assert len(line.writes) == writes
    assert objects() == before


@pytest.mark.parametrize("after_sending", [False, True], ids=["before sending", "after sending"])
def test_interrupted_at_any_call_it_is_finished_by_the_next_run(
    sandbox, dial, objects, after_sending
) -> None:
    whole = Line()
    apply(BOTH, dial(whole))
    want = counts(objects)
    for number in range(len(whole.log)):
        sandbox.reset()
        dying = Line()
        dying.break_at, dying.break_after_sending = number, after_sending
        with pytest.raises(Died):
            apply(BOTH, dial(dying))
        applied = apply(BOTH, dial())
        assert counts(objects) == want, f"interrupted at call {number}"
        assert len(applied.prices) == 3


def test_two_applies_at_once_make_one_of_each(sandbox, dial, objects) -> None:
    for _ in range(5):
        sandbox.reset()
        together = threading.Barrier(2)

        def run(together=together) -> dict[str, str]:
            line = Line()
            line.before = lambda *_: together.wait(timeout=60) if len(line.log) < 4 else None
            return dict(apply(BOTH, dial(line, retries=2)).prices)

        with ThreadPoolExecutor(2) as pool:
            first, second = (job.result() for job in [pool.submit(run), pool.submit(run)])
        assert first == second
        assert counts(objects) == {"meters": 1, "products": 3, "prices": 3}


def test_two_replacements_at_once_make_one_new_price(sandbox, dial, objects) -> None:
    apply(GUIDE, dial())
    dearer = PayAsYouGo(amount="0.05")
    together = threading.Barrier(2)

    def run() -> dict[str, str]:
        line = Line()
        line.before = lambda method, path: together.wait(timeout=60) if method == "post" else None
        return dict(apply(dearer, dial(line, retries=2)).prices)

    with ThreadPoolExecutor(2) as pool:
        first, second = (job.result() for job in [pool.submit(run), pool.submit(run)])
    assert first == second
    assert counts(objects)["prices"] == 2


def test_a_changed_price_is_a_new_one_and_the_old_stays_for_its_subscribers(client, objects) -> None:
    old = apply(GUIDE, client).prices[KEY]
    customer = client.v1.customers.create({"name": "John Doe"}).id
    subscription = subscribe(client, customer, GUIDE)
    applied = apply(PayAsYouGo(amount="0.05"), client)
    (change,) = applied.changes
    assert (change.action, change.id) == ("replace", old)
    assert "stays for those who subscribe to it" in str(change.note)
    assert applied.prices[KEY] != old
    kept = client.v1.prices.retrieve(old)
    assert (kept.active, kept.lookup_key) == (True, None)
    item = client.v1.subscriptions.retrieve(subscription.id)["items"].data[0]
    assert item.price.id == old
    assert counts(objects)["prices"] == 2


def test_a_price_may_go_back_and_forth_within_a_day(client) -> None:
    """The idempotency key of the first 0.04 must not bring the first price back."""
    ids = [apply(PayAsYouGo(amount=a), client).prices[KEY] for a in ("0.04", "0.05", "0.04", "0.05", "0.04")]
    assert len(set(ids)) == 5
    price = client.v1.prices.retrieve(ids[-1])
    assert (price.unit_amount, price.lookup_key) == (4, KEY)


def test_a_product_deleted_by_hand_is_made_again_within_a_day(client) -> None:
    """Stripe replays the stored answer of the first creation; the second try has a key of its own."""
    catalog = Catalog(products=(ProductSpec(id="lonely", name="Lonely"),))
    apply(catalog, client)
    client.v1.products.delete("lonely")
    apply(catalog, client)
    assert client.v1.products.retrieve("lonely").name == "Lonely"


def test_a_stored_500_does_not_bar_the_way_for_a_day(sandbox, dial, objects) -> None:
    sandbox.fault("500_before", method="POST", path="/v1/prices")
    sandbox.fault("500_after", method="POST", path="/v1/products")
    apply(GUIDE, dial())
    assert counts(objects) == {"meters": 1, "products": 1, "prices": 1}


class Stubborn(Line):
    """Answers 500 to the first try of every creating call, and replays that for its key for ever."""

    def __init__(self, kept: dict[str, bytes]) -> None:
        super().__init__()
        self.kept = kept

    def request(self, method, url, headers, post_data=None):
        key = headers.get("Idempotency-Key")
        if method == "post" and (key in self.kept or len(self.kept) < 2):
            replayed = {"Idempotent-Replayed": "true"} if key in self.kept else {}
            body = self.kept.setdefault(key, b'{"error": {"type": "api_error", "message": "Sorry"}}')
            return body, 500, {"request-id": "req_1", **replayed}
        return super().request(method, url, headers, post_data)


def test_a_stored_500_is_stepped_over_in_this_run_and_in_the_next(dial, objects) -> None:
    kept: dict[str, bytes] = {}
    apply(GUIDE, dial(Stubborn(kept)))
    assert len(kept) == 2
    assert counts(objects) == {"meters": 1, "products": 1, "prices": 1}


def test_a_server_error_that_lasts_is_told_and_the_next_run_finishes(sandbox, dial, objects) -> None:
    sandbox.fault("500_before", method="POST", path="/v1/prices", count=None)
    with pytest.raises(BillingError) as refused:
        apply(FlatFeeWithOverages(), dial())
    assert "to create price 'hypernian_tokens.flat_fee.license.usd.month' failed" in str(refused.value)
    assert "Stripe had an error of its own (500" in str(refused.value)
    sandbox.clear_faults()
    apply(FlatFeeWithOverages(), dial())
    assert counts(objects) == {"meters": 1, "products": 2, "prices": 2}


def test_an_answer_that_is_lost_is_asked_for_again(sandbox, dial, objects) -> None:
    for path in ("/v1/billing/meters", "/v1/products", "/v1/prices"):
        sandbox.fault("accept_then_reset", method="POST", path=path)
    apply(GUIDE, dial(retries=2))
    assert counts(objects) == {"meters": 1, "products": 1, "prices": 1}


def test_an_inactive_meter_that_holds_the_event_name_is_reactivated(client, objects) -> None:
    meter = client.v1.billing.meters.create(METER)
    client.v1.billing.meters.deactivate(meter.id)
    applied = apply(GUIDE, client)
    assert applied.meters == {"hypernian_tokens": meter.id}
    assert applied.changes[0].action == "reactivate"
    assert client.v1.billing.meters.retrieve(meter.id).status == "active"
    assert counts(objects)["meters"] == 1


def test_an_inactive_meter_of_another_kind_is_an_error_that_says_what_to_do(client, line) -> None:
    meter = client.v1.billing.meters.create({**METER, "default_aggregation": {"formula": "count"}})
    client.v1.billing.meters.deactivate(meter.id)
    writes = len(line.writes)
    with pytest.raises(BillingError) as refused:
        apply(GUIDE, client)
    for part in (
        f"meter 'hypernian_tokens' ({meter.id}) stands in the way",
        "aggregation is count, wanted sum",
        "choose another event name",
    ):
        assert part in str(refused.value)
    assert len(line.writes) == writes


def test_a_meter_and_a_product_made_by_hand_are_adopted(client, objects) -> None:
    meter = client.v1.billing.meters.create({**METER, "display_name": "By hand"})
    client.v1.products.create({"id": "hypernian_tokens", "name": "Hypernian tokens"})
    found = {c.kind: c.action for c in plan(GUIDE, client).changes}
    assert found == {"meter": "adopt", "product": "adopt", "price": "create"}
    applied = apply(GUIDE, client)
    assert applied.meters["hypernian_tokens"] == meter.id
    assert client.v1.billing.meters.retrieve(meter.id).display_name == "Hypernian tokens"
    assert client.v1.products.retrieve("hypernian_tokens").metadata["managed_by"] == "llm_metering"
    assert counts(objects) == {"meters": 1, "products": 1, "prices": 1}
    assert plan(GUIDE, client).done


def test_a_price_made_by_hand_under_the_key_is_adopted(client) -> None:
    meter = client.v1.billing.meters.create(METER)
    client.v1.products.create({"id": "hypernian_tokens", "name": "Hypernian tokens"})
    by_hand = client.v1.prices.create(
        {
            "product": "hypernian_tokens",
            "currency": "usd",
            "unit_amount": 4,
            "transform_quantity": {"divide_by": 100, "round": "up"},
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id},
            "lookup_key": KEY,
        }
    )
    applied = apply(GUIDE, client)
    assert applied.prices[KEY] == by_hand.id
    assert client.v1.prices.retrieve(by_hand.id).metadata["managed_by"] == "llm_metering"


def test_drift_is_set_back_and_archived_things_are_sold_again(client) -> None:
    applied = apply(BOTH, client)
    usage = "hypernian_tokens_usage"
    client.v1.products.update(usage, {"name": "Renamed", "description": "Otherwise", "active": False})
    client.v1.prices.update(applied.prices[KEY], {"active": False})
    client.v1.billing.meters.update(applied.meters["hypernian_tokens"], {"display_name": "Renamed"})
    again = apply(BOTH, client)
    assert {(c.kind, c.action) for c in again.changes} == {
        ("meter", "update"),
        ("product", "reactivate"),
        ("price", "reactivate"),
    }
    product = client.v1.products.retrieve(usage)
    assert (product.name, product.description, product.active) == (
        "Hypernian Usage",
        "Usage fees for Hypernian",
        True,
    )
    assert client.v1.prices.retrieve(applied.prices[KEY]).active
    assert plan(BOTH, client).done


def test_drift_that_comes_back_is_set_back_each_time(client) -> None:
    """An update under a fixed idempotency key would only be replayed the second time."""
    apply(GUIDE, client)
    for _ in range(2):
        client.v1.products.update("hypernian_tokens", {"name": "Renamed"})
        apply(GUIDE, client)
        assert client.v1.products.retrieve("hypernian_tokens").name == "Hypernian tokens"


def test_a_reviewed_plan_is_carried_out(client, objects) -> None:
    applied = apply(plan(GUIDE, client), client)
    assert len(applied.changes) == 3
    assert counts(objects) == {"meters": 1, "products": 1, "prices": 1}


def test_a_reviewed_plan_that_is_out_of_date_does_nothing_unseen(client, line) -> None:
    reviewed = plan(PayAsYouGo(amount="0.05"), client)
    apply(GUIDE, client)
    writes = len(line.writes)
    with pytest.raises(
        BillingError, match=r"has changed since this plan was made: price .* is now to replace"
    ):
        apply(reviewed, client)
    assert len(line.writes) == writes


def test_a_reviewed_plan_that_another_run_has_begun_is_finished(dial, objects) -> None:
    reviewed = plan(BOTH, dial())
    dying = Line()
    dying.break_at = 9
    with pytest.raises(Died):
        apply(BOTH, dial(dying))
    begun = counts(objects)
    apply(reviewed, dial())
    assert counts(objects) == {"meters": 1, "products": 3, "prices": 3} != begun


class Refusing(Line):
    """Takes no products."""

    refused = 0

    def request(self, method, url, headers, post_data=None):
        if method == "post" and url.endswith("/v1/products"):
            self.refused += 1
            error = {"type": "invalid_request_error", "message": "Names may not be like that."}
            return json.dumps({"error": error}).encode(), 400, {"request-id": "req_7"}
        return super().request(method, url, headers, post_data)


def test_what_stripe_refuses_is_told_and_not_tried_for_ever(dial) -> None:
    line = Refusing()
    with pytest.raises(BillingError) as refused:
        apply(GUIDE, dial(line))
    assert str(refused.value) == (
        "to create product 'hypernian_tokens' failed: Names may not be like that [req_7]"
    )
    assert isinstance(refused.value.__cause__, stripe.InvalidRequestError)
    assert line.refused == 1


def test_every_pricing_model_is_understood_when_it_is_read_back(client) -> None:
    meter = MeterSpec(event_name="t", display_name="T", aggregation="last", event_time_window="hour")
    product = ProductSpec(id="p", name="P", unit_label="token")
    models = {
        "unit": {"amount": "0.0000123456789"},
        "down": {"amount": 3, "package_size": 7, "package_round": "down"},
        "volume": {
            "tiers": (Tier(10, 1, "2.5"), Tier(20, "0.5"), Tier("inf", flat_amount=9)),
            "tiers_mode": "volume",
        },
        "graduated": {"tiers": (Tier(1, "0.00000000000001"), Tier("inf", 2, 0)), "tiers_mode": "graduated"},
        "yearly": {"amount": 1, "interval": "year", "interval_count": 2, "nickname": "Two years"},
    }
    prices = [
        PriceSpec(key=f"{key}.metered", product="p", currency="usd", meter="t", **model)
        for key, model in models.items()
    ] + [
        PriceSpec(key=f"{key}.licence", product="p", currency="usd", **model)
        for key, model in models.items()
        if key != "graduated"
    ]
    catalog = Catalog(meters=(meter,), products=(product,), prices=tuple(prices))
    apply(catalog, client)
    assert plan(catalog, client).done, str(plan(catalog, client))


def test_an_offer_without_prices_of_its_own_meter_is_no_reason_to_stop(client) -> None:
    catalog = Catalog(meters=(MeterSpec(event_name="alone", display_name="Alone"),))
    assert apply(catalog, client).meters.keys() == {"alone"}
    assert plan(catalog, client).done


def test_amounts_reach_stripe_without_loss(client) -> None:
    catalog = PayAsYouGo(amount="0.00000000000001", package_size=1)
    apply(catalog, client)
    price = client.v1.prices.list({"lookup_keys": [KEY]}).data[0]
    assert price.unit_amount_decimal == Decimal("1E-12")


def test_progress_is_told_change_by_change(client) -> None:
    told: list[tuple[str, str]] = []
    applied = apply(GUIDE, client, on_change=lambda change, made: told.append((change.kind, made)))
    assert told == [
        ("meter", applied.meters["hypernian_tokens"]),
        ("product", "hypernian_tokens"),
        ("price", applied.prices[KEY]),
    ]


def test_offers_are_a_matter_of_ours_and_cost_no_call(client, line) -> None:
    apply(GUIDE, client)
    calls = len(line.log)
    renamed = Catalog(
        meters=GUIDE.meters,
        products=GUIDE.products,
        prices=GUIDE.prices,
        offers=(Offer("payg", GUIDE.offers[0].items),),
    )
    assert apply(renamed, client).changes == ()
    assert all(method == "GET" for method, *_ in line.log[calls:])
