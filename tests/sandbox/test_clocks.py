"""Test clocks: renewal, the grace period, finalisation, payment, the end of a subscription."""

from __future__ import annotations

from datetime import datetime, timezone
from types import SimpleNamespace

import pytest

DAY = 86_400
HOUR = 3_600
SENT = {"collection_method": "send_invoice", "days_until_due": 30}


def at(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp())


@pytest.fixture
def life(shop):
    """A customer on a test clock, from 2025-01-10, and what can be done with it."""
    api = shop.api
    clock = api.test_helpers.test_clocks.create({"frozen_time": at("2025-01-10T00:00:00"), "name": "life"})

    def customer(**given):
        return api.customers.create({"test_clock": clock.id, "name": "Jenny Rosen", **given})

    jenny = customer()

    def until(text):
        moved = api.test_helpers.test_clocks.advance(clock.id, {"frozen_time": at(text)})
        assert moved.status == "advancing"
        assert api.test_helpers.test_clocks.retrieve(clock.id).status == "ready"

    def subscribe(*prices, customer=jenny.id, **given):
        items = [{"price": price.id} for price in prices]
        return api.subscriptions.create({"customer": customer, "items": items, **given})

    def invoices(subscription):
        found = api.invoices.list({"subscription": subscription.id, "limit": 100}).data
        return found[::-1]

    def use(value, text=None, customer=jenny.id):
        timestamp = {} if text is None else {"timestamp": at(text)}
        shop.use(value, customer=customer, **timestamp)

    return SimpleNamespace(
        api=api,
        clock=clock,
        customer=customer,
        jenny=jenny,
        until=until,
        subscribe=subscribe,
        invoices=invoices,
        use=use,
        preview=shop.preview,
    )


def paying(life):
    return life.customer(
        payment_method="pm_card_visa", invoice_settings={"default_payment_method": "pm_card_visa"}
    )


def test_a_customer_on_a_clock_lives_in_its_time(life, shop):
    assert life.jenny.created == at("2025-01-10T00:00:00")
    subscription = life.subscribe(shop.price)
    assert subscription.test_clock == life.clock.id
    item = subscription["items"].data[0]
    assert item.current_period_end == at("2025-02-10T00:00:00")


def test_timestamps_are_compared_with_the_frozen_time(life, refused):
    life.use(1, "2024-12-06T00:00:00")
    life.use(1, "2025-01-10T00:05:00")
    assert "35 days" in refused(life.use, 1, "2024-12-05T00:00:00").user_message
    assert "future" in refused(life.use, 1, "2025-01-10T00:05:01").user_message


def test_an_event_without_a_timestamp_happens_at_the_frozen_time(life, shop):
    subscription = life.subscribe(shop.price)
    life.use(3000)
    assert life.preview(subscription).total == 120


def test_a_period_ends_in_a_draft_that_is_final_an_hour_later(life, shop):
    subscription = life.subscribe(shop.price)
    life.use(3000)
    life.until("2025-02-10T00:30:00")
    [invoice] = life.invoices(subscription)
    assert (invoice.status, invoice.billing_reason, invoice.total) == ("draft", "subscription_cycle", 120)
    assert (invoice.created, invoice.period_start) == (at("2025-02-10T00:00:00"), at("2025-01-10T00:00:00"))
    assert invoice.automatically_finalizes_at == at("2025-02-10T01:00:00")
    assert invoice.auto_advance
    life.until("2025-02-10T01:00:00")
    [invoice] = life.invoices(subscription)
    assert invoice.status == "open"
    assert invoice.status_transitions.finalized_at == at("2025-02-10T01:00:00")


def test_usage_reported_in_the_grace_period_still_counts(life, shop):
    subscription = life.subscribe(shop.price)
    life.use(100)
    life.until("2025-02-10T00:30:00")
    life.use(2900, "2025-02-09T23:59:59")
    life.until("2025-02-10T02:00:00")
    [invoice] = life.invoices(subscription)
    assert invoice.total == 120


def test_a_finalised_invoice_is_never_corrected(life, shop):
    subscription = life.subscribe(shop.price)
    life.use(100)
    life.until("2025-02-10T02:00:00")
    life.use(2900, "2025-02-09T23:59:59")
    life.until("2025-02-20T00:00:00")
    [invoice] = life.invoices(subscription)
    assert invoice.total == 4
    assert life.preview(subscription).total == 0


def test_the_grace_period_can_be_72_hours(life, shop, sandbox):
    sandbox.set_switches(finalize_after_s=72 * HOUR)
    subscription = life.subscribe(shop.price)
    life.until("2025-02-12T23:00:00")
    assert life.invoices(subscription)[0].status == "draft"
    life.until("2025-02-13T00:00:00")
    assert life.invoices(subscription)[0].status == "paid"  # nothing was due


@pytest.mark.parametrize("mode", ["flexible", "classic"])
def test_the_second_invoice_of_the_flat_fee_has_last_months_usage_and_next_months_licence(life, shop, mode):
    licence = shop.licence()
    overage = shop.metered(
        billing_scheme="tiered",
        tiers_mode="graduated",
        tiers=[
            {"up_to": 1000, "unit_amount_decimal": "0", "flat_amount_decimal": "0"},
            {"up_to": "inf", "unit_amount_decimal": "4", "flat_amount_decimal": "0"},
        ],
    )
    subscription = life.subscribe(licence, overage, billing_mode={"type": mode}, **SENT)
    life.use(3000)
    life.until("2025-02-10T02:00:00")
    first, second = life.invoices(subscription)
    assert (first.billing_reason, first.total) == ("subscription_create", 10000)
    assert len(first.lines.data) == {"flexible": 1, "classic": 2}[mode]
    assert (second.billing_reason, second.total) == ("subscription_cycle", 18000)
    periods = {
        line.pricing.price_details.price: (line.period.start, line.period.end) for line in second.lines.data
    }
    assert periods[overage.id] == (at("2025-01-10T00:00:00"), at("2025-02-10T00:00:00"))
    assert periods[licence.id] == (at("2025-02-10T00:00:00"), at("2025-03-10T00:00:00"))


def test_a_preview_becomes_the_invoice(life, shop):
    subscription = life.subscribe(shop.price, shop.licence(), **SENT)
    life.use(777)
    seen = life.preview(subscription)
    life.until("2025-02-10T02:00:00")
    made = life.invoices(subscription)[-1]
    assert [(line.description, line.amount) for line in seen.lines.data] == [
        (line.description, line.amount) for line in made.lines.data
    ]
    assert (seen.total, seen.period_start, seen.period_end) == (
        made.total,
        made.period_start,
        made.period_end,
    )


def test_a_whole_year_of_invoices_passes_at_once(life, shop):
    subscription = life.subscribe(shop.price, customer=paying(life).id)
    life.until("2026-01-10T02:00:00")
    found = life.invoices(subscription)
    assert len(found) == 12
    assert [invoice.status for invoice in found] == ["paid"] * 12
    starts = [datetime.fromtimestamp(invoice.period_start, timezone.utc) for invoice in found]
    assert [start.month for start in starts] == list(range(1, 13))
    numbers = [int(invoice.number.rsplit("-", 1)[1]) for invoice in found]
    assert numbers == list(range(1, 13))


def test_each_months_usage_is_on_its_own_invoice_and_on_no_other(life, shop):
    subscription = life.subscribe(shop.metered(unit_amount=1))
    for month in range(1, 7):
        life.use(10**month)
        life.until(f"2025-{month + 1:02d}-10T02:00:00")
    assert [invoice.total for invoice in life.invoices(subscription)] == [10**n for n in range(1, 7)]


def test_an_anchor_on_the_31st_ends_short_months_on_their_last_day(shop, api):
    clock = api.test_helpers.test_clocks.create({"frozen_time": at("2025-01-31T00:00:00")})
    customer = api.customers.create({"test_clock": clock.id})
    subscription = api.subscriptions.create({"customer": customer.id, "items": [{"price": shop.price.id}]})
    api.test_helpers.test_clocks.advance(clock.id, {"frozen_time": at("2025-04-01T00:00:00")})
    found = api.invoices.list({"subscription": subscription.id}).data[::-1]
    ends = [datetime.fromtimestamp(invoice.period_end, timezone.utc) for invoice in found]
    assert [(end.month, end.day) for end in ends] == [(2, 28), (3, 31)]


def test_items_of_two_intervals_have_invoices_of_their_own(life, shop):
    yearly = shop.licence(recurring={"interval": "year"})
    subscription = life.subscribe(shop.metered(unit_amount=1), yearly, **SENT)
    life.use(5)
    life.until("2026-01-10T02:00:00")
    totals = [invoice.total for invoice in life.invoices(subscription)]
    assert totals == [10000, 5, *[0] * 10, 10000]


def test_a_payment_method_pays_the_renewal(life, shop):
    customer = paying(life)
    subscription = life.subscribe(shop.price, customer=customer.id)
    life.use(100, customer=customer.id)
    life.until("2025-02-10T02:00:00")
    [invoice] = life.invoices(subscription)
    assert (invoice.status, invoice.amount_paid, invoice.attempt_count) == ("paid", 4, 1)


def test_a_renewal_that_cannot_be_paid_makes_the_subscription_past_due(life, shop):
    subscription = life.subscribe(shop.price)
    life.use(100)
    life.until("2025-02-10T02:00:00")
    [invoice] = life.invoices(subscription)
    assert (invoice.status, invoice.attempted, invoice.amount_remaining) == ("open", True, 4)
    assert life.api.subscriptions.retrieve(subscription.id).status == "past_due"
    told = [(one.type, one.data.object.id) for one in life.api.events.list({"limit": 100}).data][::-1]
    finalized = told.index(("invoice.finalized", invoice.id))
    assert told[finalized + 1 : finalized + 3] == [
        ("invoice.payment_failed", invoice.id),
        ("customer.subscription.updated", subscription.id),
    ]
    paid = life.api.invoices.pay(invoice.id, {"payment_method": "pm_card_visa"})
    assert (paid.status, paid.amount_paid) == ("paid", 4)
    assert life.api.subscriptions.retrieve(subscription.id).status == "active"


def test_a_sent_invoice_is_open_until_it_is_paid(life, shop):
    subscription = life.subscribe(shop.metered(unit_amount=4), **SENT)
    life.use(100)
    life.until("2025-02-10T02:00:00")
    [invoice] = life.invoices(subscription)
    assert (invoice.status, invoice.attempted) == ("open", False)
    assert invoice.due_date == at("2025-03-12T01:00:00")
    assert life.api.subscriptions.retrieve(subscription.id).status == "active"
    assert life.api.invoices.pay(invoice.id, {"paid_out_of_band": True}).status == "paid"


def test_a_customers_balance_is_taken_as_it_stands_when_an_invoice_is_final(life, shop):
    subscription = life.subscribe(shop.metered(unit_amount=1), **SENT)
    life.api.customers.update(life.jenny.id, {"balance": -100})
    life.use(30)
    life.until("2025-02-10T00:10:00")  # a draft
    life.api.customers.update(life.jenny.id, {"balance": -50})
    life.until("2025-02-10T02:00:00")
    life.use(40)
    life.until("2025-03-10T02:00:00")
    seen = [(one.total, one.starting_balance, one.amount_due) for one in life.invoices(subscription)]
    assert seen == [(30, -50, 0), (40, -20, 20)]
    assert life.api.customers.retrieve(life.jenny.id).balance == 0


def test_an_incomplete_subscription_expires_after_23_hours(life, shop):
    subscription = life.subscribe(shop.licence(), payment_behavior="default_incomplete")
    life.until("2025-01-10T22:59:59")
    assert life.api.subscriptions.retrieve(subscription.id).status == "incomplete"
    life.until("2025-01-10T23:00:00")
    assert life.api.subscriptions.retrieve(subscription.id).status == "incomplete_expired"
    life.until("2025-04-10T23:00:00")
    assert len(life.invoices(subscription)) == 1


def test_paying_an_incomplete_subscription_makes_it_active_and_it_renews(life, shop):
    subscription = life.subscribe(shop.licence(), payment_behavior="default_incomplete")
    life.api.invoices.pay(subscription.latest_invoice, {"payment_method": "pm_card_visa"})
    assert life.api.subscriptions.retrieve(subscription.id).status == "active"
    life.until("2025-02-10T02:00:00")
    assert len(life.invoices(subscription)) == 2


def test_cancelling_at_the_period_end_bills_the_last_usage_and_no_licence(life, shop):
    subscription = life.subscribe(shop.licence(), shop.metered(unit_amount=1), **SENT)
    life.use(7)
    life.api.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    assert life.preview(subscription).total == 7
    life.until("2025-02-10T02:00:00")
    ended = life.api.subscriptions.retrieve(subscription.id)
    assert (ended.status, ended.ended_at) == ("canceled", at("2025-02-10T00:00:00"))
    assert life.invoices(subscription)[-1].total == 7
    life.until("2025-05-10T02:00:00")
    assert len(life.invoices(subscription)) == 2


def test_cancelling_now_bills_usage_only_when_told_to(life, shop):
    price = shop.metered(unit_amount=1)
    lost, billed = life.subscribe(price), life.subscribe(price)
    life.use(7)
    life.until("2025-01-20T00:00:00")
    life.api.subscriptions.cancel(lost.id)
    life.api.subscriptions.cancel(billed.id, {"invoice_now": True})
    assert life.invoices(lost) == []
    assert [invoice.total for invoice in life.invoices(billed)] == [7]
    life.until("2025-05-10T02:00:00")
    assert len(life.invoices(billed)) == 1


def test_the_customers_balance_is_used_up_by_finalised_invoices(life, shop):
    customer = life.customer(balance=-100)
    subscription = life.subscribe(shop.metered(unit_amount=1), customer=customer.id)
    life.use(70, customer=customer.id)
    life.until("2025-02-10T02:00:00")
    life.use(70, customer=customer.id)
    life.until("2025-03-10T02:00:00")
    first, second = life.invoices(subscription)
    assert (first.total, first.amount_due, first.ending_balance, first.status) == (70, 0, -30, "paid")
    assert (second.total, second.amount_due, second.starting_balance) == (70, 40, -30)
    assert life.api.customers.retrieve(customer.id).balance == 0


def test_what_happens_is_told_in_events(life, shop):
    customer = paying(life)
    life.subscribe(shop.price, customer=customer.id)
    life.use(100, customer=customer.id)
    life.until("2025-02-10T02:00:00")
    types = [event.type for event in life.api.events.list({"limit": 100}).data][::-1]
    happened = types[types.index("customer.subscription.created") + 1 :]
    assert happened == [
        "invoice.created",
        "customer.subscription.updated",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
        "test_helpers.test_clock.advancing",
        "test_helpers.test_clock.ready",
    ]


def test_a_draft_can_be_finalised_by_hand_or_held_back(life, shop, refused):
    subscription = life.subscribe(shop.metered(unit_amount=1), **SENT)
    life.use(5)
    life.until("2025-02-10T00:10:00")
    [draft] = life.invoices(subscription)
    life.api.invoices.update(draft.id, {"auto_advance": False})
    life.until("2025-02-20T00:00:00")
    assert life.invoices(subscription)[0].status == "draft"
    opened = life.api.invoices.finalize_invoice(draft.id)
    assert (opened.status, opened.total) == ("open", 5)
    assert refused(life.api.invoices.finalize_invoice, draft.id).http_status == 400


def test_invoices_are_voided_or_written_off_only_while_open(life, shop, refused):
    subscription = life.subscribe(shop.metered(unit_amount=1), **SENT)
    life.use(5)
    life.until("2025-02-10T02:00:00")
    life.until("2025-03-10T02:00:00")
    first, second = life.invoices(subscription)
    assert life.api.invoices.mark_uncollectible(first.id).status == "uncollectible"
    voided = life.api.invoices.void_invoice(first.id)
    assert (voided.status, voided.status_transitions.voided_at) == ("void", at("2025-03-10T02:00:00"))
    assert refused(life.api.invoices.pay, first.id).http_status == 400
    assert refused(life.api.invoices.void_invoice, second.id).http_status == 400  # paid: nothing was due


def test_a_clock_only_moves_forward(life, refused):
    advance = life.api.test_helpers.test_clocks.advance
    assert refused(advance, life.clock.id, {"frozen_time": at("2025-01-10T00:00:00")}).param == "frozen_time"


def test_clocks_do_not_move_each_other_or_the_real_time(life, shop, api, clock):
    other = api.test_helpers.test_clocks.create({"frozen_time": at("2025-01-10T00:00:00")})
    there = api.customers.create({"test_clock": other.id})
    theirs = api.subscriptions.create({"customer": there.id, "items": [{"price": shop.price.id}]})
    real = shop.subscribe(shop.price)
    life.until("2026-01-10T02:00:00")
    assert life.invoices(theirs) == []
    assert life.invoices(real) == []


def test_in_real_time_subscriptions_renew_too(shop, clock):
    subscription = shop.subscribe(shop.metered(unit_amount=1), **SENT)
    shop.use(5)
    clock.time += 31 * DAY + HOUR
    [invoice] = shop.api.invoices.list({"subscription": subscription.id}).data
    assert (invoice.status, invoice.total) == ("open", 5)


def test_deleting_a_clock_deletes_the_lives_on_it(life, shop, refused):
    subscription = life.subscribe(shop.price)
    assert life.api.test_helpers.test_clocks.delete(life.clock.id).deleted
    assert refused(life.api.customers.retrieve, life.jenny.id).http_status == 404
    assert refused(life.api.subscriptions.retrieve, subscription.id).http_status == 404
    assert life.api.test_helpers.test_clocks.list().data == []


def test_a_clock_that_is_unknown_takes_no_customer(api, refused):
    assert refused(api.customers.create, {"test_clock": "clock_x"}).param == "test_clock"


def test_live_mode_has_no_clocks(sandbox, refused):
    create = sandbox.client("sk_live_a").v1.test_helpers.test_clocks.create
    assert refused(create, {"frozen_time": 1}).http_status == 400
