"""Credit grants: scope, order of use, what invoices take of them."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

DAY = 86_400
START = 1_768_478_400
METERED = {"scope": {"price_type": "metered"}}


@pytest.fixture
def grant(shop):
    def grant(value, **given):
        return shop.api.billing.credit_grants.create(
            {
                "customer": shop.customer.id,
                "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": value}},
                "applicability_config": METERED,
                **given,
            }
        )

    return grant


@pytest.fixture
def month(shop, clock):
    """A subscription at 1 cent a unit, and its invoice at the end of a month with so much usage."""
    subscription = shop.subscribe(
        shop.metered(unit_amount=1), collection_method="send_invoice", days_until_due=30
    )

    def month(used):
        shop.use(used)
        end = max(
            item.current_period_end for item in shop.api.subscriptions.retrieve(subscription.id)["items"].data
        )
        clock.time = end + 2 * 3600
        return shop.api.invoices.list({"subscription": subscription.id}).data[0]

    month.subscription = subscription
    return month


def balance(shop, **wanted):
    wanted = wanted or {"type": "applicability_scope", "applicability_scope": {"price_type": "metered"}}
    summary = shop.api.billing.credit_balance_summary.retrieve(
        {"customer": shop.customer.id, "filter": wanted}
    )
    return [
        (one.available_balance.monetary.value, one.ledger_balance.monetary.value) for one in summary.balances
    ]


def test_a_grant_has_the_documented_defaults(shop, grant):
    made = grant(1000)
    assert made.id.startswith("credgr_")
    assert (made.category, made.priority, made.effective_at, made.expires_at) == ("paid", 50, START, None)
    assert balance(shop) == [(1000, 1000)]
    assert balance(shop, type="credit_grant", credit_grant=made.id) == [(1000, 1000)]


def test_credits_are_taken_at_finalisation_and_shown_on_the_lines(shop, grant, month):
    made = grant(30)
    invoice = month(100)
    assert (invoice.subtotal, invoice.total, invoice.amount_due) == (100, 70, 70)
    [credit] = invoice.total_pretax_credit_amounts
    assert (credit.amount, credit.type) == (30, "credit_balance_transaction")
    assert [one.amount for one in invoice.lines.data[0].pretax_credit_amounts] == [30]
    assert balance(shop) == [(0, 0)]
    taken, given = shop.api.billing.credit_balance_transactions.list({"customer": shop.customer.id}).data
    assert (given.type, given.credit.type, given.credit.amount.monetary.value) == (
        "credit",
        "credits_granted",
        30,
    )
    assert (taken.type, taken.debit.type, taken.debit.amount.monetary.value) == (
        "debit",
        "credits_applied",
        30,
    )
    assert taken.debit.credits_applied.invoice == invoice.id
    assert taken.id == credit.credit_balance_transaction
    assert taken.credit_grant == made.id


def test_what_is_left_of_a_grant_goes_to_the_next_invoice(shop, grant, month):
    grant(150)
    assert month(100).total == 0
    assert balance(shop) == [(50, 50)]
    assert month(100).total == 50


def test_an_invoice_that_credits_cover_is_paid(shop, grant, month):
    grant(1000)
    assert month(100).status == "paid"


def test_credits_never_touch_a_licence(shop, grant, clock):
    grant(100_000)
    subscription = shop.subscribe(shop.licence(), collection_method="send_invoice", days_until_due=30)
    clock.time += 2 * 3600
    [invoice] = shop.api.invoices.list({"subscription": subscription.id}).data
    assert (invoice.status, invoice.total) == ("open", 10000)


def test_a_grant_can_be_for_some_prices_only(shop, grant, clock):
    one, two = shop.metered(unit_amount=1, nickname="one"), shop.metered(unit_amount=1, nickname="two")
    grant(1000, applicability_config={"scope": {"prices": [{"id": two.id}]}})
    subscription = shop.subscribe(one, two, collection_method="send_invoice", days_until_due=30)
    shop.use(100)
    clock.time += 31 * DAY + 2 * 3600
    [invoice] = shop.api.invoices.list({"subscription": subscription.id}).data
    taken = {
        line.pricing.price_details.price: [credit.amount for credit in line.pretax_credit_amounts]
        for line in invoice.lines.data
    }
    assert taken == {one.id: [], two.id: [100]}


ORDER = [
    ({"priority": 1}, {"priority": 2}),
    ({"expires_at": START + 100 * DAY}, {"expires_at": START + 200 * DAY}),
    ({"expires_at": START + 100 * DAY}, {}),
    ({"category": "promotional"}, {"category": "paid"}),
    ({"effective_at": START - DAY}, {"effective_at": START}),
    ({"priority": 1, "expires_at": START + 200 * DAY}, {"priority": 2, "expires_at": START + 100 * DAY}),
    ({"expires_at": START + 100 * DAY, "category": "paid"}, {"category": "promotional"}),
]


@pytest.mark.parametrize("first_is_older", [True, False])
@pytest.mark.parametrize(("first", "second"), ORDER)
def test_grants_are_used_in_stripes_order(shop, grant, month, first, second, first_is_older):
    if first_is_older:
        used, kept = grant(10, **first), grant(10, **second)
    else:
        kept, used = grant(10, **second), grant(10, **first)
    month(10)
    assert balance(shop, type="credit_grant", credit_grant=used.id) == [(0, 0)]
    assert balance(shop, type="credit_grant", credit_grant=kept.id) == [(10, 10)]


def test_of_equal_grants_the_older_is_used_first(shop, grant, month, clock):
    older = grant(10, effective_at=START)
    clock.time += 10
    newer = grant(10, effective_at=START)
    month(10)
    assert balance(shop, type="credit_grant", credit_grant=older.id) == [(0, 0)]
    assert balance(shop, type="credit_grant", credit_grant=newer.id) == [(10, 10)]


def test_grants_that_are_not_effective_expired_or_of_another_currency_are_left_alone(
    shop, grant, month, clock
):
    grant(10, effective_at=START + 300 * DAY)
    grant(10, expires_at=START + DAY)
    grant(10, amount={"type": "monetary", "monetary": {"currency": "eur", "value": 10}})
    assert month(10).total == 10


def test_a_grant_that_runs_out_in_time_loses_the_rest(shop, grant, clock):
    grant(10, expires_at=START + DAY)
    clock.time += DAY
    assert balance(shop) == [(0, 0)]
    newest = shop.api.billing.credit_balance_transactions.list({"customer": shop.customer.id}).data[0]
    assert newest.debit.type == "credits_expired"


def test_a_grant_of_the_future_counts_in_the_ledger_only(shop, grant):
    grant(10, effective_at=START + DAY)
    assert balance(shop) == [(0, 10)]


def test_previews_show_credits_unless_switched_off(sandbox, shop, grant, month):
    grant(30)
    shop.use(100)
    invoice = shop.preview(month.subscription)
    assert (invoice.subtotal, invoice.total) == (100, 70)
    assert balance(shop) == [(30, 30)]
    sandbox.set_switches(preview_credits=False)
    assert shop.preview(month.subscription).total == 100


def test_voiding_an_invoice_gives_credits_back(shop, grant, month):
    grant(30)
    invoice = month(100)
    assert balance(shop) == [(0, 0)]
    shop.api.invoices.void_invoice(invoice.id)
    assert balance(shop) == [(30, 30)]
    newest = shop.api.billing.credit_balance_transactions.list({"customer": shop.customer.id}).data[0]
    assert newest.credit.type == "credits_application_invoice_voided"
    assert shop.api.billing.credit_balance_transactions.retrieve(newest.id).id == newest.id


def test_a_grant_expires_or_is_voided_by_hand(shop, grant, month, refused):
    grants = shop.api.billing.credit_grants
    gone = grants.expire(grant(10).id)
    assert gone.expires_at == START
    assert refused(grants.expire, gone.id).http_status == 400
    assert grants.void_grant(grant(10).id).voided_at == START
    used = grant(30)
    month(10)
    assert refused(grants.void_grant, used.id).http_status == 400
    assert balance(shop) == [(20, 20)]


def test_only_the_expiry_and_metadata_of_a_grant_change(shop, grant, refused):
    made = grant(10)
    grants = shop.api.billing.credit_grants
    changed = grants.update(made.id, {"expires_at": START + DAY, "metadata": {"a": "b"}})
    assert (changed.expires_at, changed.metadata.to_dict()) == (START + DAY, {"a": "b"})
    assert grants.update(made.id, {"expires_at": ""}).expires_at is None
    assert refused(grants.update, made.id, {"priority": 1}).code == "parameter_unknown"
    assert refused(grants.update, made.id, {"expires_at": START}).param == "expires_at"
    assert [one.id for one in grants.list({"customer": shop.customer.id}).data] == [made.id]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"customer": "cus_x"}, "customer"),
        ({"amount": {"type": "monetary"}}, "amount[monetary]"),
        ({"amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 0}}}, None),
        ({"applicability_config": {"scope": {"prices": []}}}, None),
        ({"applicability_config": {"scope": {"prices": [{"id": "price_x"}]}}}, None),
        ({"priority": 101}, "priority"),
        ({"name": "n" * 101}, "name"),
        ({"expires_at": START}, "expires_at"),
        ({"category": "free"}, "category"),
    ],
)
def test_a_grant_that_cannot_be_is_refused(grant, refused, change, param):
    error = refused(grant, 10, **change)
    assert error.http_status == 400
    assert param in (None, error.param)


def test_credits_do_not_apply_to_a_licensed_price(shop, grant, refused):
    scope = {"scope": {"prices": [{"id": shop.licence().id}]}}
    assert "backed by a meter" in refused(grant, 10, applicability_config=scope).user_message


def test_credits_live_on_a_customers_clock(shop, api):
    frozen = int(datetime(2025, 1, 10, tzinfo=timezone.utc).timestamp())
    clock = api.test_helpers.test_clocks.create({"frozen_time": frozen})
    customer = api.customers.create({"test_clock": clock.id})
    made = api.billing.credit_grants.create(
        {
            "customer": customer.id,
            "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 30}},
            "applicability_config": METERED,
        }
    )
    assert made.effective_at == frozen
    items = [{"price": shop.metered(unit_amount=1).id}]
    api.subscriptions.create({"customer": customer.id, "items": items})
    shop.use(100, customer=customer.id)
    api.test_helpers.test_clocks.advance(clock.id, {"frozen_time": frozen + 32 * DAY})
    [invoice] = api.invoices.list({"customer": customer.id}).data
    assert invoice.total == 70
