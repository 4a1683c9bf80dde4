"""Moving subscribers to a new price: shown first, done once, whatever happens meanwhile."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from llm_metering.billing import (
    FlatFeeWithOverages,
    PayAsYouGo,
    apply,
    create_customer,
    migrate,
    plan_migration,
    preview_invoice,
    send_test_event,
    subscribe,
)
from llm_metering.errors import BillingError, ConfigurationError

from .conftest import Died, Line

PAYG = PayAsYouGo()
DEARER = PayAsYouGo(amount="0.05")
FLAT = FlatFeeWithOverages()
NEW_FLAT = FlatFeeWithOverages(license_amount=120, overage_amount="0.03")
KEY = "hypernian_tokens.pay_as_you_go.usd.month"
FEE = "hypernian_tokens.flat_fee.license.usd.month"
OVERAGE = "hypernian_tokens.flat_fee.overage.usd.month"


START = 1_768_478_400


def subscribed(client, catalog, used=0, **arguments):
    """A subscriber to a catalog, whose usage lies an hour back."""
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": START})
    customer = create_customer(client, test_clock=clock.id)
    made = subscribe(client, customer, apply(catalog, client), **arguments)
    if used:
        send_test_event(client, customer, used, timestamp=START)
    client.v1.test_helpers.test_clocks.advance(clock.id, {"frozen_time": START + 3000})
    return made


def prices_of(client, subscription: str) -> list[str]:
    return [item.price.lookup_key for item in client.v1.subscriptions.retrieve(subscription)["items"].data]


def test_a_migration_shows_who_goes_from_what_to_what_and_what_becomes_of_usage(client, objects) -> None:
    made = subscribed(client, PAYG, 3000)
    old = apply(PAYG, client).prices[KEY]
    new = apply(DEARER, client).prices[KEY]
    before = objects()
    migration = plan_migration(DEARER, client, amounts=True)
    assert objects() == before
    (move,) = migration.moves
    assert (move.customer, move.subscription, move.billing_mode) == (made.customer, made.id, "flexible")
    (item,) = move.items
    assert (item.old_price, item.new_price, item.key, item.used) == (old, new, KEY, 3000)
    assert "0.04 USD per 100" in item.old_summary
    assert "0.05 USD per 100" in item.new_summary
    assert "3000 used since" in item.becomes
    assert "stay at the old price, later use is at the new one" in item.becomes
    shown = str(migration)
    for part in (made.customer, made.id, old, new, "1.20 USD -> 1.20 USD", "1 subscription to move"):
        assert part in shown
    document = migration.as_dict()
    assert (document["takes_effect"], document["proration"]) == ("at once", "create_prorations")
    assert document["moves"][0]["items"][0]["used"] == 3000


def test_in_flexible_billing_each_use_is_billed_at_the_price_of_its_time(client) -> None:
    """The rule that the plan tells of, seen on the invoice."""
    made = subscribed(client, PAYG, 3000)
    apply(DEARER, client)
    migrated = migrate(plan_migration(DEARER, client), client)
    assert [move.subscription for move in migrated.moved] == [made.id]
    send_test_event(client, made.customer, 1000, timestamp=START + 3000)
    invoice = preview_invoice(client, subscription=made.id)
    assert sorted(total.amount for total in invoice.by_price) == [Decimal("0.50"), Decimal("1.20")]


def test_everybody_is_moved_and_a_second_run_finds_nobody(client, line) -> None:
    made = [subscribed(client, FLAT, used) for used in (0, 3000, 500)]
    subscribed(client, PAYG)
    apply(NEW_FLAT, client)
    migration = plan_migration(NEW_FLAT, client)
    assert {move.subscription for move in migration.moves} == {one.id for one in made}
    told: list[tuple[str, str | None]] = []
    migrated = migrate(migration, client, on_move=lambda move, why: told.append((move.subscription, why)))
    assert migrated.refused == ()
    assert told == [(move.subscription, None) for move in migration.moves]
    for one in made:
        assert prices_of(client, one.id) == [FEE, OVERAGE]
    assert plan_migration(NEW_FLAT, client).done
    writes = len(line.writes)
    assert len(migrate(migration, client).moved) == 3, "what is done already counts as done"
    assert len(line.writes) == writes


def test_all_items_of_a_subscription_move_in_one_call(client, line) -> None:
    subscribed(client, FLAT)
    apply(NEW_FLAT, client)
    migration = plan_migration(NEW_FLAT, client)
    writes = len(line.writes)
    migrate(migration, client)
    assert len(line.writes) == writes + 1


@pytest.mark.parametrize(
    ("proration", "said", "invoices", "fee"),
    [
        (
            "create_prorations",
            "credited at the old price and charged at the new one, on the next",
            1,
            Decimal("139.98"),
        ),
        ("always_invoice", "on an invoice of its own, at once", 2, 120),
        ("none", "this period stays as it was paid; the new price is charged from", 1, 120),
    ],
)
def test_the_rest_of_a_licences_period_costs_what_the_proration_says(
    client, proration, said, invoices, fee
) -> None:
    made = subscribed(client, FLAT)
    apply(NEW_FLAT, client)
    migration = plan_migration(NEW_FLAT, client, proration=proration, amounts=True)
    (move,) = migration.moves
    assert said in next(item.becomes for item in move.items if item.key == FEE)
    migrate(migration, client)
    assert len(client.v1.invoices.list({"customer": made.customer}).data) == invoices
    # 50 minutes into the month: a credit of 99.89, a charge of 119.87, and the next month's 120.
    assert preview_invoice(client, subscription=made.id).total == fee
    if proration != "always_invoice":
        assert move.next_total_after == fee


def test_seats_are_kept_even_those_added_after_the_plan(client) -> None:
    made = subscribed(client, FLAT, quantities={FEE: 3})
    apply(NEW_FLAT, client)
    migration = plan_migration(NEW_FLAT, client)
    client.v1.subscription_items.update(made.items[0].id, {"quantity": 5})
    migrate(migration, client)
    item = client.v1.subscriptions.retrieve(made.id)["items"].data[0]
    assert (item.quantity, item.price.unit_amount) == (5, 12000)


def test_classic_billing_with_usage_is_not_moved_since_it_would_never_be_billed(client, line) -> None:
    made = subscribed(client, PAYG, 3000, billing_mode="classic")
    apply(DEARER, client)
    migration = plan_migration(DEARER, client)
    (move,) = migration.blocked
    for part in ("3000 used since", "would never be billed", "--to-flexible", "--forfeit-usage"):
        assert part in str(move.blocked)
    writes = len(line.writes)
    ((refused, why),) = migrate(migration, client).refused
    assert (refused.subscription, why) == (made.id, move.blocked)
    assert len(line.writes) == writes
    assert preview_invoice(client, subscription=made.id).total == Decimal("1.20")


def test_classic_billing_without_usage_is_moved_unless_some_came_meanwhile(client) -> None:
    first, second = (subscribed(client, PAYG, billing_mode="classic") for _ in range(2))
    apply(DEARER, client)
    migration = plan_migration(DEARER, client)
    assert len(migration.ready) == 2
    send_test_event(client, second.customer, 700, timestamp=START + 3000)
    migrated = migrate(migration, client)
    assert [move.subscription for move in migrated.moved] == [first.id]
    ((refused, why),) = migrated.refused
    assert refused.subscription == second.id
    assert "it has used 700 since this was shown" in why
    assert preview_invoice(client, subscription=second.id).total == Decimal("0.28")


def test_classic_billing_can_turn_flexible_first_and_keeps_its_usage(client) -> None:
    made = subscribed(client, PAYG, 3000, billing_mode="classic")
    apply(DEARER, client)
    migration = plan_migration(DEARER, client, to_flexible=True)
    assert "no way back from flexible" in str(migration)
    assert migrate(migration, client).refused == ()
    assert client.v1.subscriptions.retrieve(made.id).billing_mode.type == "flexible"
    assert preview_invoice(client, subscription=made.id).total == Decimal("1.20")


def test_usage_is_given_away_only_if_that_is_said(client) -> None:
    made = subscribed(client, PAYG, 3000, billing_mode="classic")
    apply(DEARER, client)
    migrate(plan_migration(DEARER, client, forfeit_usage=True), client)
    assert prices_of(client, made.id) == [KEY]


def test_only_the_customers_named_are_moved(client) -> None:
    first, second = (subscribed(client, PAYG) for _ in range(2))
    apply(DEARER, client)
    migrate(plan_migration(DEARER, client, customers=[second.customer]), client)
    assert prices_of(client, first.id) == [None]
    assert prices_of(client, second.id) == [KEY]


def test_prices_are_matched_by_hand_where_no_key_joins_them(client) -> None:
    made = subscribed(client, PAYG)
    other = PayAsYouGo(event_name="hypernian_tokens", amount="0.03", interval="month", name="new")
    renamed = FlatFeeWithOverages(license_billed="with_usage")
    apply(renamed, client)
    assert plan_migration(renamed, client).done
    key = renamed.prices[0].key
    migration = plan_migration(renamed, client, prices={KEY: key})
    assert [move.subscription for move in migration.moves] == [made.id]
    migrate(migration, client)
    assert prices_of(client, made.id) == [key]
    with pytest.raises(BillingError, match="the account has no price 'price_nobody'"):
        plan_migration(renamed, client, prices={"price_nobody": key})
    with pytest.raises(ConfigurationError, match="the catalog has no price 'gold'"):
        plan_migration(other, client, prices={KEY: "gold"})
    with pytest.raises(ConfigurationError, match="proration='later' must be one of create_prorations"):
        plan_migration(other, client, proration="later")


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (PayAsYouGo(interval="week"), "the interval of the two prices differs"),
        (PayAsYouGo("cad"), "a subscription has one currency"),
        (PayAsYouGo(event_name="others"), "reported to the old meter would no longer be billed"),
    ],
)
def test_prices_that_differ_in_more_than_money_are_not_swapped(client, line, new, why) -> None:
    made = subscribed(client, PAYG)
    apply(new, client)
    migration = plan_migration(new, client, prices={KEY: new.prices[0].key})
    (move,) = migration.blocked
    assert why in str(move.blocked)
    assert "subscribe anew" in str(move.blocked)
    writes = len(line.writes)
    migrate(migration, client)
    assert len(line.writes) == writes
    assert prices_of(client, made.id) == [KEY]


def test_a_catalog_that_was_not_applied_moves_nobody(client) -> None:
    subscribed(client, PAYG)
    apply(DEARER, client)
    with pytest.raises(BillingError, match="is not as the catalog says; apply the catalog first"):
        plan_migration(PayAsYouGo(amount="0.06"), client)


class Scheduled(Line):
    """Every subscription is driven by a schedule, which the sandbox does not play."""

    def request(self, method, url, headers, post_data=None):
        body, status, answered = super().request(method, url, headers, post_data)
        text = body.decode() if isinstance(body, bytes) else body
        return re.sub(r'"schedule": ?null', '"schedule": "sub_sched_1"', text), status, answered


def test_a_schedule_that_would_put_the_old_price_back_stands_in_the_way(dial) -> None:
    client = dial()
    subscribed(client, PAYG)
    apply(DEARER, client)
    (move,) = plan_migration(DEARER, dial(Scheduled())).blocked
    assert "a schedule decides its prices and would put the old one back" in str(move.blocked)


def test_a_first_payment_that_is_open_stands_in_the_way(client) -> None:
    made = subscribed(client, FLAT, collection="default_incomplete")
    apply(NEW_FLAT, client)
    (move,) = plan_migration(NEW_FLAT, client).blocked
    assert (move.subscription, move.blocked) == (made.id, "its first payment is open; see to that first")


def test_what_was_changed_since_it_was_shown_is_left_alone(client, line) -> None:
    gone, ended = (subscribed(client, PAYG) for _ in range(2))
    apply(DEARER, client)
    migration = plan_migration(DEARER, client)
    third = client.v1.prices.create(
        {
            "product": "hypernian_tokens",
            "currency": "usd",
            "unit_amount": 9,
            "recurring": {
                "interval": "month",
                "usage_type": "metered",
                "meter": apply(DEARER, client).meters["hypernian_tokens"],
            },
        }
    ).id
    client.v1.subscription_items.update(gone.items[0].id, {"price": third})
    client.v1.subscriptions.cancel(ended.id)
    writes = len(line.writes)
    why = {move.subscription: reason for move, reason in migrate(migration, client).refused}
    assert f"has {third} now; it was changed since this was shown" in why[gone.id]
    assert "it has ended since (canceled)" in why[ended.id]
    assert len(line.writes) == writes


def test_who_has_both_prices_is_not_given_one_twice(client) -> None:
    made = subscribed(client, PAYG)
    new = apply(DEARER, client).prices[KEY]
    client.v1.subscription_items.create({"subscription": made.id, "price": new})
    (move,) = plan_migration(DEARER, client).blocked
    assert f"it has {new} already" in str(move.blocked)


class Refusing(Line):
    """Stripe refuses to change one subscription."""

    def __init__(self, subscription: str) -> None:
        super().__init__()
        self.subscription = subscription

    def request(self, method, url, headers, post_data=None):
        if method == "post" and url.endswith(f"/v1/subscriptions/{self.subscription}"):
            error = b'{"error": {"type": "invalid_request_error", "message": "Not this one."}}'
            return error, 400, {"request-id": "req_9"}
        return super().request(method, url, headers, post_data)


def test_one_refusal_does_not_keep_the_others_from_being_moved(dial) -> None:
    client = dial()
    first, second = (subscribed(client, PAYG) for _ in range(2))
    apply(DEARER, client)
    migrated = migrate(plan_migration(DEARER, client), dial(Refusing(first.id)))
    assert [(move.subscription, why) for move, why in migrated.refused] == [
        (first.id, "Not this one [req_9]")
    ]
    assert prices_of(client, second.id) == [KEY]


@pytest.mark.parametrize("mode", ["flexible", "classic"])
@pytest.mark.parametrize("after_sending", [False, True], ids=["before sending", "after sending"])
def test_interrupted_at_any_call_the_next_run_moves_the_rest_once(sandbox, dial, mode, after_sending) -> None:
    client = dial()
    made = [subscribed(client, FLAT, used, billing_mode=mode) for used in (3000, 100)]
    apply(NEW_FLAT, client)
    sandbox.snapshot()
    rules = {"proration": "always_invoice", "to_flexible": mode == "classic"}
    whole = Line()
    migrate(plan_migration(NEW_FLAT, dial(whole), **rules), dial(whole))
    want = [facts(client, one) for one in made]
    for number in range(len(whole.log)):
        sandbox.restore()
        dying = Line()
        dying.break_at, dying.break_after_sending = number, after_sending
        with pytest.raises(Died):
            migrate(plan_migration(NEW_FLAT, dial(dying), **rules), dial(dying))
        assert migrate(plan_migration(NEW_FLAT, dial(), **rules), dial()).refused == ()
        assert [facts(client, one) for one in made] == want, f"interrupted at call {number}"


def facts(client, made) -> tuple:
    """What a move must do once: prices, one invoice of prorations, what is due next."""
    invoices = client.v1.invoices.list({"customer": made.customer}).data
    total = preview_invoice(client, subscription=made.id).total
    return prices_of(client, made.id), len(invoices), total


def test_two_migrations_at_once_move_everybody_once(sandbox, dial) -> None:
    client = dial()
    made = [subscribed(client, FLAT, 3000) for _ in range(3)]
    apply(NEW_FLAT, client)
    migration = plan_migration(NEW_FLAT, client, proration="always_invoice")
    together = threading.Barrier(2)

    def run():
        line = Line()
        line.before = lambda method, path: together.wait(timeout=60) if method == "post" else None
        return migrate(migration, dial(line, retries=2))

    with ThreadPoolExecutor(2) as pool:
        first, second = (job.result() for job in [pool.submit(run), pool.submit(run)])
    assert first.refused == second.refused == ()
    for one in made:
        assert prices_of(client, one.id) == [FEE, OVERAGE]
        assert len(client.v1.invoices.list({"customer": one.customer}).data) == 2, (
            "one at first, one for the move"
        )


def test_two_at_once_turn_a_subscription_flexible_and_neither_fails(dial) -> None:
    """Stripe refuses it the second time; the other run was faster, which is no failure."""
    client = dial()
    made = subscribed(client, PAYG, 3000, billing_mode="classic")
    apply(DEARER, client)
    migration = plan_migration(DEARER, client, to_flexible=True)
    line = Line()

    def overtaken(method: str, path: str) -> None:
        if method == "post" and path.endswith("/migrate"):
            line.before = lambda *_: None
            assert migrate(migration, dial()).refused == ()

    line.before = overtaken
    assert migrate(migration, dial(line)).refused == ()
    assert prices_of(client, made.id) == [KEY]
    assert preview_invoice(client, subscription=made.id).total == Decimal("1.20")


@pytest.mark.parametrize("kind", ["500_before", "500_after", "accept_then_reset"])
def test_an_error_of_stripes_is_tried_again_after_another_look(sandbox, dial, kind) -> None:
    client = dial()
    made = subscribed(client, PAYG, 3000)
    apply(DEARER, client)
    migration = plan_migration(DEARER, client)
    sandbox.fault(kind, method="POST", path=f"/v1/subscriptions/{made.id}")
    assert migrate(migration, dial(retries=2)).refused == ()
    assert prices_of(client, made.id) == [KEY]


def test_every_call_of_a_migration_keeps_to_the_contract(client, line, contract) -> None:
    subscribed(client, FLAT, 3000, billing_mode="classic")
    apply(NEW_FLAT, client)
    migrate(plan_migration(NEW_FLAT, client, to_flexible=True, amounts=True), client)
    for method, path, sent, status, body in line.log:
        text = sent.decode() if isinstance(sent, bytes) else sent or ""
        params = contract.decode_form(method, path, text)
        assert contract.check(method, path, params, status, body) == [], f"{method} {path}"
