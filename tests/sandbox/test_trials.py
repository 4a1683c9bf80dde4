"""Trials: nothing is billed before they end."""

from __future__ import annotations

START = 1_768_478_400
DAY = 86_400
MONTH = 31 * DAY


def happened(shop, type):
    return [one.data.object.id for one in shop.api.events.list({"type": type}).data]


def invoices(shop):
    return list(reversed(shop.api.invoices.list({"customer": shop.customer.id}).data))


def test_a_trial_costs_nothing_and_ends_in_a_first_period(shop, clock):
    licence = shop.licence()
    subscription = shop.subscribe(
        licence, shop.price, trial_period_days=14, collection_method="send_invoice", days_until_due=7
    )
    until = START + 14 * DAY
    assert (subscription.status, subscription.trial_end) == ("trialing", until)
    assert subscription.billing_cycle_anchor == until
    assert {(one.current_period_start, one.current_period_end) for one in subscription["items"].data} == {
        (START, until)
    }
    [first] = invoices(shop)
    assert (first.total, [line.description for line in first.lines.data]) == (
        0,
        ["Trial period for Hypernian License fee"],
    )
    shop.use(3000)
    preview = shop.preview(subscription)
    assert (preview.total, preview.created) == (10_000, until)
    clock.time = until
    subscription = shop.api.subscriptions.retrieve(subscription.id)
    assert subscription.status == "active"
    assert subscription["items"].data[0].current_period_start == until
    shop.use(200)
    clock.time = until + MONTH
    assert [one.total for one in invoices(shop)] == [0, 10_000, 10_008]


def test_usage_of_a_trial_can_be_switched_to_be_billed(shop, sandbox):
    sandbox.set_switches(trial_usage="billed")
    subscription = shop.subscribe(shop.price, trial_period_days=14)
    assert subscription.latest_invoice is None
    shop.use(3000)
    assert shop.preview(subscription).total == 120


def test_a_trial_of_tiers_with_a_flat_fee_costs_nothing_either(shop):
    tiers = [{"up_to": 1000, "unit_amount": 0, "flat_amount": 10_000}, {"up_to": "inf", "unit_amount": 4}]
    fee = shop.metered(billing_scheme="tiered", tiers_mode="graduated", tiers=tiers)
    subscription = shop.subscribe(fee, trial_period_days=14)
    assert shop.preview(subscription).total == 0


def test_its_end_is_spoken_of_three_days_before(shop, clock):
    subscription = shop.subscribe(shop.price, trial_end=START + 14 * DAY)
    clock.time = START + 11 * DAY - 1
    assert happened(shop, "customer.subscription.trial_will_end") == []
    clock.time += 1
    assert happened(shop, "customer.subscription.trial_will_end") == [subscription.id]
    clock.time = START + 40 * DAY
    assert happened(shop, "customer.subscription.trial_will_end") == [subscription.id]
    assert shop.api.subscriptions.retrieve(subscription.id).status == "active"


def test_a_trial_longer_than_a_period_is_one_period(shop, clock):
    subscription = shop.subscribe(shop.price, trial_period_days=90)
    assert subscription["items"].data[0].current_period_end == START + 90 * DAY
    clock.time = START + 89 * DAY
    assert shop.api.subscriptions.retrieve(subscription.id).status == "trialing"
    assert invoices(shop) == []


def test_a_trial_that_is_ended_now_is_billed_now(shop):
    licence = shop.licence()
    terms = {"collection_method": "send_invoice", "days_until_due": 7}
    subscription = shop.subscribe(licence, trial_period_days=14, **terms)
    ended = shop.api.subscriptions.update(subscription.id, {"trial_end": "now"})
    assert (ended.status, ended.trial_end, ended.billing_cycle_anchor) == ("active", START, START)
    assert ended["items"].data[0].current_period_start == START
    _, billed = invoices(shop)
    assert (billed.total, billed.status) == (10_000, "open")
    assert happened(shop, "customer.subscription.trial_will_end") == []


def test_a_trial_can_be_made_longer(shop, clock):
    subscription = shop.subscribe(shop.price, trial_period_days=14)
    longer = shop.api.subscriptions.update(subscription.id, {"trial_end": START + 30 * DAY})
    assert longer["items"].data[0].current_period_end == START + 30 * DAY
    clock.time = START + 20 * DAY
    assert shop.api.subscriptions.retrieve(subscription.id).status == "trialing"


def test_without_a_payment_method_a_trial_can_end_it_all(shop, clock):
    cancels = {"trial_settings": {"end_behavior": {"missing_payment_method": "cancel"}}}
    subscription = shop.subscribe(shop.licence(), trial_period_days=14, **cancels)
    clock.time = START + 14 * DAY
    ended = shop.api.subscriptions.retrieve(subscription.id)
    assert (ended.status, ended.cancellation_details.reason) == ("canceled", "payment_failed")
    assert [one.total for one in invoices(shop)] == [0]


def test_a_trial_that_is_cancelled_before_its_end_bills_nothing(shop, clock):
    subscription = shop.subscribe(shop.price, trial_period_days=14, cancel_at_period_end=True)
    shop.use(3000)
    clock.time = START + 20 * DAY
    assert shop.api.subscriptions.retrieve(subscription.id).status == "canceled"
    assert invoices(shop) == []


def test_seats_and_items_that_are_added_in_a_trial_are_free_until_it_ends(shop, clock):
    licence = shop.licence()
    subscription = shop.subscribe(licence, trial_period_days=14)
    [item] = subscription["items"].data
    shop.api.subscription_items.update(item.id, {"quantity": 3})
    shop.api.subscription_items.create({"subscription": subscription.id, "price": shop.price.id})
    assert shop.api.invoice_items.list({"customer": shop.customer.id}).data == []
    preview = shop.preview(subscription)
    assert (preview.created, preview.total) == (START + 14 * DAY, 30_000)


def test_a_setup_fee_that_is_paid_later_leaves_the_trial_as_it_is(shop):
    product = shop.api.products.create({"name": "Setup"})
    fee = {"price_data": {"currency": "usd", "product": product.id, "unit_amount": 2_500}}
    subscription = shop.subscribe(
        shop.price, trial_period_days=14, add_invoice_items=[fee], payment_behavior="default_incomplete"
    )
    assert subscription.status == "incomplete"
    paid = shop.api.invoices.pay(subscription.latest_invoice, {"payment_method": "pm_card_visa"})
    assert (paid.status, paid.total) == ("paid", 2_500)
    assert shop.api.subscriptions.retrieve(subscription.id).status == "trialing"


def test_what_cannot_be_is_refused(shop, refused):
    error = refused(shop.subscribe, shop.price, trial_end=START - 5)
    assert "in the future" in str(error)
    both = {"trial_end": START + DAY, "trial_period_days": 3}
    assert refused(shop.subscribe, shop.price, **both).http_status == 400
    active = shop.subscribe(shop.price)
    error = refused(shop.api.subscriptions.update, active.id, {"trial_end": START + DAY})
    assert error.code == "sandbox_not_played"
    pauses = {"trial_settings": {"end_behavior": {"missing_payment_method": "pause"}}}
    assert refused(shop.subscribe, shop.price, trial_period_days=3, **pauses).http_status == 400
