"""Credits and alerts: given once, found again, used up in Stripe's order, and no limit to anything."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal

import pytest
from llm_metering.billing import (
    AlertSpec,
    Catalog,
    CreditSpec,
    FlatFeeWithOverages,
    PayAsYouGo,
    apply,
    archive_alert,
    create_alert,
    create_customer,
    expire_credit,
    find_alerts,
    find_credits,
    find_invoices,
    grant_credit,
    parse_catalog,
    plan,
    preview_invoice,
    send_test_event,
    subscribe,
    void_credit,
)
from llm_metering.errors import BillingError, ConfigurationError

from .conftest import Died, Line

WELCOME = CreditSpec(key="welcome", amount=1, currency="usd", name="Welcome", category="promotional")
KEY = "hypernian_tokens.pay_as_you_go.usd.month"
START = 1_768_478_400


def with_extras(catalog: Catalog, **extras) -> Catalog:
    parts = {name: getattr(catalog, name) for name in ("meters", "products", "prices")}
    return catalog | Catalog(**parts, **extras)


@pytest.fixture
def customer(client) -> str:
    apply(PayAsYouGo(), client)
    return create_customer(client)


def test_a_credit_pays_for_usage_and_what_goes_beyond_it_is_billed(client, customer) -> None:
    subscription = subscribe(client, customer, PayAsYouGo())
    made = grant_credit(client, customer, WELCOME)
    assert (made.created, made.amount, made.available, made.key) == (True, 1, 1, "welcome")
    sent = send_test_event(client, customer, 3000)
    assert not sent.duplicate, "usage beyond the credit is taken all the same"
    invoice = preview_invoice(client, subscription=subscription.id)
    assert (invoice.subtotal, invoice.credits, invoice.total) == (Decimal("1.20"), 1, Decimal("0.20"))
    (total,) = invoice.by_price
    assert (total.amount, total.credits) == (Decimal("1.20"), 1)


def test_a_credit_pays_nothing_of_a_licence(client) -> None:
    customer = create_customer(client)
    subscribe(client, customer, apply(FlatFeeWithOverages(), client))
    grant_credit(client, customer, replace(WELCOME, amount=500))
    send_test_event(client, customer, 3000)
    invoice = preview_invoice(client, customer=customer)
    assert (invoice.subtotal, invoice.credits, invoice.total) == (180, 80, 100)


def test_what_is_used_up_shows_in_the_balance_once_the_invoice_is_final(client) -> None:
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": START}).id
    customer = create_customer(client, test_clock=clock)
    subscribe(client, customer, apply(PayAsYouGo(), client))
    grant_credit(client, customer, replace(WELCOME, amount=5, expires_days=90))
    send_test_event(client, customer, 3000, timestamp=START)
    client.v1.test_helpers.test_clocks.advance(clock, {"frozen_time": START + 31 * 86_400 + 7200})
    (credit,) = find_credits(client, customer)
    assert (credit.amount, credit.available) == (5, Decimal("3.80"))
    assert credit.expires_at is not None
    assert int(credit.expires_at.timestamp()) == START + 90 * 86_400, "by the customer's own clock"
    (invoice,) = find_invoices(client, customer=customer)
    assert (invoice.credits, invoice.total) == (Decimal("1.20"), 0)


def test_a_credit_is_given_once_under_its_key(client, customer, line) -> None:
    first = grant_credit(client, customer, WELCOME)
    writes = len(line.writes)
    again = grant_credit(client, customer, WELCOME)
    assert (again.id, again.created) == (first.id, False)
    assert len(line.writes) == writes
    with pytest.raises(BillingError, match="grant another amount under another key"):
        grant_credit(client, customer, replace(WELCOME, amount=2))
    other = grant_credit(client, customer, replace(WELCOME, key="more"))
    assert {one.id for one in find_credits(client, customer)} == {first.id, other.id}


def test_a_voided_credit_may_be_given_again(client, customer) -> None:
    ids = set()
    for _ in range(3):
        made = grant_credit(client, customer, WELCOME)
        assert made.created
        ids.add(made.id)
        assert void_credit(client, made.id).available == 0
    assert len(ids) == 3


def test_an_expired_credit_is_not_given_again_by_a_second_run(client, customer) -> None:
    made = grant_credit(client, customer, WELCOME)
    assert expire_credit(client, made.id).available == 0
    assert grant_credit(client, customer, WELCOME).id == made.id


@pytest.mark.parametrize("after_sending", [False, True], ids=["before sending", "after sending"])
def test_interrupted_at_any_call_the_next_run_leaves_one_credit(dial, customer, after_sending) -> None:
    credit = replace(WELCOME, expires_days=30)
    whole = Line()
    grant_credit(dial(whole), create_customer(dial()), credit)
    for number in range(len(whole.log)):
        somebody = create_customer(dial())
        dying = Line()
        dying.break_at, dying.break_after_sending = number, after_sending
        with pytest.raises(Died):
            grant_credit(dial(dying), somebody, credit)
        made = grant_credit(dial(), somebody, credit)
        assert [one.id for one in find_credits(dial(), somebody)] == [made.id]


def test_two_at_once_give_one_credit_also_where_their_clocks_differ(dial, customer) -> None:
    together = threading.Barrier(2)
    seconds = iter([1_800_000_000, 1_800_000_007])

    def run() -> str:
        line = Line()
        line.before = lambda method, path: together.wait(timeout=60) if method == "post" else None
        credit = replace(WELCOME, expires_days=30)
        return grant_credit(dial(line), customer, credit, now=lambda: next(seconds)).id

    with ThreadPoolExecutor(2) as pool:
        first, second = (job.result() for job in [pool.submit(run), pool.submit(run)])
    assert first == second
    assert len(find_credits(dial(), customer)) == 1


@pytest.mark.parametrize("kind", ["500_before", "500_after"])
def test_a_server_error_is_tried_again_after_another_look(sandbox, dial, customer, kind) -> None:
    sandbox.fault(kind, method="POST", path="/v1/billing/credit_grants")
    grant_credit(dial(), customer, WELCOME)
    assert len(find_credits(dial(), customer)) == 1


def test_credits_are_listed_in_the_order_in_which_they_are_used_up(client, customer) -> None:
    specs = (
        CreditSpec(key="late", amount=1, currency="usd"),
        CreditSpec(key="promised", amount=1, currency="usd", category="promotional"),
        CreditSpec(key="soon", amount=1, currency="usd", expires_days=30),
        CreditSpec(key="first", amount=1, currency="usd", priority=1),
    )
    for spec in specs:
        grant_credit(client, customer, spec)
    assert [one.key for one in find_credits(client, customer)] == ["first", "soon", "promised", "late"]
    subscribe(client, customer, PayAsYouGo())
    send_test_event(client, customer, 5000)
    assert preview_invoice(client, customer=customer).credits == 2


def test_a_credit_for_one_price_pays_for_that_price_only(client, customer) -> None:
    other = PayAsYouGo(event_name="others", name="others")
    catalog = PayAsYouGo() | other
    credit = CreditSpec(key="tokens", amount=50, currency="usd", prices=(KEY,))
    made = grant_credit(client, customer, credit, apply(with_extras(catalog, credits=(credit,)), client))
    assert len(made.prices) == 1
    subscribe(client, customer, PayAsYouGo())
    subscribe(client, customer, other, offer="others")
    send_test_event(client, customer, 3000, event_name="others")
    totals = [
        preview_invoice(client, subscription=s.id).total
        for s in client.v1.subscriptions.list({"customer": customer}).data
    ]
    assert sorted(totals) == [0, Decimal("1.20")]
    with pytest.raises(ConfigurationError, match="names prices; give the catalog that has them"):
        grant_credit(client, customer, credit)


def test_an_unknown_customer_is_named(client) -> None:
    with pytest.raises(BillingError, match="there is no customer 'cus_nobody'"):
        grant_credit(client, "cus_nobody", WELCOME)
    with pytest.raises(BillingError, match="there is no customer 'cus_nobody'"):
        find_credits(client, "cus_nobody")


ALERT = AlertSpec(title="A lot", meter="hypernian_tokens", threshold=1000)
ALERTED = with_extras(PayAsYouGo(), alerts=(ALERT,))


def test_alerts_of_a_catalog_are_set_up_once(client, line) -> None:
    applied = apply(ALERTED, client)
    (alert,) = find_alerts(client)
    assert (alert.id, alert.threshold, alert.customer) == (applied.alerts["A lot"], 1000, None)
    writes = len(line.writes)
    assert apply(ALERTED, client).changes == ()
    assert len(line.writes) == writes
    assert "usage goes on" in str(
        plan(with_extras(PayAsYouGo(), alerts=(replace(ALERT, title="B"),)), client)
    )


def test_an_alert_is_replaced_and_the_plan_says_that_it_may_tell_again(client) -> None:
    old = apply(ALERTED, client).alerts["A lot"]
    lower = with_extras(PayAsYouGo(), alerts=(replace(ALERT, threshold=500),))
    seen = str(plan(lower, client))
    assert "threshold: 1000 -> 500" in seen
    assert "the new one counts only what is reported from now on" in seen
    assert apply(lower, client).alerts["A lot"] != old
    assert [one.threshold for one in find_alerts(client)] == [500]
    apply(ALERTED, client)
    assert [one.threshold for one in find_alerts(client)] == [1000]


@pytest.mark.parametrize("after_sending", [False, True], ids=["before sending", "after sending"])
def test_interrupted_at_any_call_there_is_one_alert_in_the_end(sandbox, dial, after_sending) -> None:
    apply(ALERTED, dial())
    sandbox.snapshot()
    lower = with_extras(PayAsYouGo(), alerts=(replace(ALERT, threshold=500),))
    whole = Line()
    apply(lower, dial(whole))
    for number in range(len(whole.log)):
        sandbox.restore()
        dying = Line()
        dying.break_at, dying.break_after_sending = number, after_sending
        with pytest.raises(Died):
            apply(lower, dial(dying))
        apply(lower, dial())
        assert [one.threshold for one in find_alerts(dial())] == [500], f"interrupted at call {number}"


@pytest.mark.parametrize("threshold", [1000, 500], ids=["made", "replaced"])
def test_two_applies_at_once_leave_one_alert(sandbox, dial, threshold) -> None:
    apply(PayAsYouGo() if threshold == 1000 else ALERTED, dial())
    sandbox.snapshot()
    wanted = with_extras(PayAsYouGo(), alerts=(replace(ALERT, threshold=threshold),))
    for turn in range(6):
        sandbox.restore()
        together = threading.Barrier(2)

        def run(together=together, turn=turn) -> dict[str, str]:
            line, posts = Line(), itertools.count()

            def before(method: str, path: str) -> None:
                if method == "post" and next(posts) == turn % 3:
                    with suppress(threading.BrokenBarrierError):
                        together.wait(timeout=0.2)

            line.before = before
            return dict(apply(wanted, dial(line, retries=2)).alerts)

        with ThreadPoolExecutor(2) as pool:
            first, second = (job.result() for job in [pool.submit(run), pool.submit(run)])
        assert [one.threshold for one in find_alerts(dial())] == [threshold]
        assert first == second


def test_an_alert_that_was_switched_off_is_switched_on_again(client) -> None:
    applied = apply(ALERTED, client)
    client.v1.billing.alerts.deactivate(applied.alerts["A lot"])
    (change,) = apply(ALERTED, client).changes
    assert (change.kind, change.action) == ("alert", "reactivate")
    assert find_alerts(client)[0].status == "active"


def test_an_alert_for_one_customer_is_made_once_and_stops_nobody(client, customer, sandbox) -> None:
    first = create_alert(client, ALERT, customer=customer)
    assert (first.created, first.customer, first.meter) == (True, customer, "hypernian_tokens")
    again = create_alert(client, ALERT, customer=customer)
    assert (again.id, again.created) == (first.id, False)
    assert create_alert(client, ALERT).id != first.id
    for _ in range(3):
        send_test_event(client, customer, 1000)
    assert sandbox.books().total(customer=customer) == 3000
    archive_alert(client, first.id)
    assert first.id not in {one.id for one in find_alerts(client)}
    anew = create_alert(client, ALERT, customer=customer)
    assert (anew.created, anew.id != first.id) == (True, True)


def test_an_alert_of_a_meter_that_is_not_there_says_so(client) -> None:
    with pytest.raises(BillingError, match="the account has no meter 'hypernian_tokens'; apply the catalog"):
        create_alert(client, ALERT)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: replace(WELCOME, amount=0), "credit 'welcome': amount=0 must be above 0"),
        (lambda: replace(WELCOME, amount="-1"), "is negative"),
        (lambda: replace(WELCOME, amount=0.5), "is a float"),
        (lambda: replace(WELCOME, amount="0.005"), "has a fraction that 'usd' does not have"),
        (lambda: replace(WELCOME, amount="1.5", currency="jpy"), "has a fraction that 'jpy' does not have"),
        (lambda: replace(WELCOME, currency="dollar"), "is not a currency that Stripe knows"),
        (lambda: replace(WELCOME, category="free"), "category='free' must be one of paid, promotional"),
        (lambda: replace(WELCOME, priority=101), "priority=101 must be a whole number from 0 to 100"),
        (lambda: replace(WELCOME, expires_days=0), "expires_days=0 must be a whole number of at least 1"),
        (lambda: replace(WELCOME, name="n" * 101), "name has 101 characters; Stripe takes at most 100"),
        (lambda: replace(WELCOME, prices=tuple("abcdefghijklmnopqrstu")), "Stripe takes at most 20"),
        (
            lambda: replace(ALERT, threshold=0),
            "alert 'A lot': threshold=0 must be a whole number of at least",
        ),
        (lambda: replace(ALERT, threshold=10**16), "is more than a meter holds"),
        (lambda: replace(ALERT, title=" "), "title=' ' must be text that is not empty"),
        (lambda: Catalog(alerts=(ALERT,)), "meter='hypernian_tokens' is not in the catalog"),
        (lambda: Catalog(credits=(replace(WELCOME, prices=("x",)),)), "price='x' is not in the catalog"),
        (lambda: Catalog(credits=(WELCOME, replace(WELCOME, amount=2))), "credit 'welcome' is there twice"),
        (
            lambda: with_extras(
                FlatFeeWithOverages(),
                credits=(replace(WELCOME, prices=("hypernian_tokens.flat_fee.license.usd.month",)),),
            ),
            "is a licence; credits pay for metered prices only",
        ),
        (
            lambda: with_extras(PayAsYouGo(), credits=(replace(WELCOME, currency="cad", prices=(KEY,)),)),
            "is in 'usd', and the credit in 'cad'",
        ),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(make, sentence) -> None:
    with pytest.raises(ConfigurationError) as refused:
        make()
    assert sentence in str(refused.value)


def test_credits_and_alerts_can_be_written_in_toml() -> None:
    catalog = parse_catalog(
        """
        [pay-as-you-go]
        [[meters]]
        event_name = "calls"
        display_name = "Calls"
        [[credits]]
        key = "welcome"
        amount = 2.50
        currency = "usd"
        category = "promotional"
        expires_days = 90
        [[alerts]]
        title = "Many calls"
        meter = "calls"
        threshold = 1_000_000
        """
    )
    assert catalog.credit("welcome").minor == 250
    assert catalog.alert("Many calls").threshold == 10**6
    with pytest.raises(ConfigurationError, match="the catalog has no credit 'gold'; it has welcome"):
        catalog.credit("gold")


def test_every_call_about_credits_and_alerts_keeps_to_the_contract(client, line, contract) -> None:
    customer = create_customer(client)
    apply(ALERTED, client)
    create_alert(client, ALERT, customer=customer)
    archive_alert(client, find_alerts(client)[0].id)
    made = grant_credit(client, customer, replace(WELCOME, expires_days=1))
    find_credits(client, customer)
    expire_credit(client, made.id)
    void_credit(client, grant_credit(client, customer, replace(WELCOME, key="b")).id)
    for method, path, sent, status, body in line.log:
        text = sent.decode() if isinstance(sent, bytes) else sent or ""
        params = contract.decode_form(method, path, text)
        assert contract.check(method, path, params, status, body) == [], f"{method} {path}"
