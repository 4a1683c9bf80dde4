"""Past invoices as values: first and second ones in both billing modes, amounts added up per price."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from urllib.parse import parse_qs

import pytest
from llm_metering.billing import (
    Catalog,
    FlatFeeWithOverages,
    Item,
    MeterSpec,
    Offer,
    PayAsYouGo,
    PriceSpec,
    ProductSpec,
    Tier,
    apply,
    create_customer,
    fetch_invoice,
    find_invoices,
    preview_invoice,
    send_test_event,
    subscribe,
)
from llm_metering.errors import BillingError, ConfigurationError

START = 1_768_478_400
"""2026-01-15 12:00 UTC."""
FEBRUARY = START + 31 * 86_400
HOUR = 3_600


class Life:
    """A customer on a test clock, subscribed to a catalog."""

    def __init__(self, client, catalog, **arguments) -> None:
        self.client = client
        self.clock = client.v1.test_helpers.test_clocks.create({"frozen_time": START}).id
        self.customer = create_customer(client, test_clock=self.clock)
        self.subscription = subscribe(client, self.customer, apply(catalog, client), **arguments)

    def use(self, value, at: int = START + HOUR) -> None:
        send_test_event(self.client, self.customer, value, timestamp=at)

    def until(self, at: int) -> None:
        self.client.v1.test_helpers.test_clocks.advance(self.clock, {"frozen_time": at})

    def invoices(self):
        """Oldest first."""
        return find_invoices(self.client, customer=self.customer)[::-1]


def per_product(invoice) -> dict[str, tuple[Decimal | None, Decimal]]:
    return {total.product: (total.quantity, total.amount) for total in invoice.by_price}


def test_pay_as_you_go_has_no_first_invoice_in_flexible_billing_and_1_20_in_the_second(client) -> None:
    life = Life(client, PayAsYouGo())
    assert life.invoices() == ()
    life.until(START + HOUR)
    life.use(3000)
    life.until(FEBRUARY + 2 * HOUR)
    (only,) = life.invoices()
    assert (only.reason, only.total) == ("subscription_cycle", Decimal("1.20"))
    assert per_product(only) == {"hypernian_tokens": (3000, Decimal("1.20"))}


def test_pay_as_you_go_has_a_first_invoice_of_0_in_classic_billing(client) -> None:
    life = Life(client, PayAsYouGo(), billing_mode="classic")
    life.until(START + HOUR)
    life.use(3000)
    life.until(FEBRUARY + 2 * HOUR)
    first, second = life.invoices()
    assert (first.reason, first.status, first.total) == ("subscription_create", "paid", 0)
    assert per_product(first) == {"hypernian_tokens": (0, 0)}
    assert (second.reason, second.total) == ("subscription_cycle", Decimal("1.20"))


@pytest.mark.parametrize("mode", ["flexible", "classic"])
def test_the_flat_fees_second_invoice_has_last_months_usage_and_next_months_licence(client, mode) -> None:
    life = Life(client, FlatFeeWithOverages(), billing_mode=mode)
    life.until(START + HOUR)
    life.use(3000)
    life.until(FEBRUARY + 2 * HOUR)
    first, second = life.invoices()
    usage, licence = "hypernian_tokens_usage", "hypernian_tokens_license"
    zero = {usage: (0, 0)} if mode == "classic" else {}
    assert per_product(first) == {licence: (1, 100), **zero}
    assert (first.reason, first.total) == ("subscription_create", 100)
    assert per_product(second) == {usage: (3000, 80), licence: (1, 100)}
    assert (second.reason, second.total, second.amount_due) == ("subscription_cycle", 180, 180)
    fee = next(line for line in second.lines if line.product == licence)
    used = next(line for line in second.lines if line.product == usage)
    assert used.period_end == fee.period_start == second.period_end
    assert second == fetch_invoice(client, second.id)


def test_late_usage_counts_until_the_invoice_is_final(client) -> None:
    life = Life(client, PayAsYouGo())
    life.until(FEBRUARY + 60)
    life.use(3000, FEBRUARY - 60)
    (draft,) = life.invoices()
    assert (draft.status, draft.number) == ("draft", None)
    life.until(FEBRUARY + 2 * HOUR)
    (final,) = life.invoices()
    assert final.total == Decimal("1.20")
    assert final.number
    assert final.status == "open", "there is no payment method"
    assert (final.amount_paid, final.amount_remaining) == (0, Decimal("1.20"))


def test_a_real_invoice_of_another_company_comes_out_to_the_cent(client) -> None:
    """contract.md 6.4: flat fees of 9 and 0, usage 1031; its four lines make one price."""
    gitpod = Catalog(
        meters=(MeterSpec(event_name="credits", display_name="Credits"),),
        products=(ProductSpec(id="gitpod", name="Gitpod Usage", unit_label="credit"),),
        prices=(
            PriceSpec(
                key="gitpod",
                product="gitpod",
                currency="usd",
                meter="credits",
                tiers=(Tier(1000, 0, 9), Tier("inf", "0.036", 0)),
                tiers_mode="graduated",
            ),
        ),
        offers=(Offer("gitpod", (Item("gitpod"),)),),
    )
    life = Life(client, gitpod)
    life.until(START + HOUR)
    send_test_event(client, life.customer, 1031, event_name="credits", timestamp=START + HOUR)
    life.until(FEBRUARY + 2 * HOUR)
    (invoice,) = life.invoices()
    assert [(line.description, line.quantity, line.amount) for line in invoice.lines] == [
        ("1000 credit × Gitpod Usage (Tier 1 at $0.00 / month)", 1000, 0),
        ("Gitpod Usage (Tier 1 at $9.00 / month)", 0, 9),
        ("31 credit × Gitpod Usage (Tier 2 at $0.036 / month)", 31, Decimal("1.12")),
        ("Gitpod Usage (Tier 2 at $0.00 / month)", 0, 0),
    ]
    (total,) = invoice.by_price
    assert (total.quantity, total.amount, total.lines) == (1031, Decimal("10.12"), 4)


def test_the_guides_video_platform_bills_200_and_each_stream_above_1000(client) -> None:
    video = FlatFeeWithOverages(
        license_amount=200, overage_amount="0.25", event_name="video_streams", license_name="Hosting"
    )
    life = Life(client, video)
    life.until(START + HOUR)
    send_test_event(client, life.customer, 1500, event_name="video_streams", timestamp=START + HOUR)
    life.until(FEBRUARY + 2 * HOUR)
    first, second = life.invoices()
    assert (first.total, second.total) == (200, 325)
    assert per_product(second) == {
        "video_streams_usage": (1500, 125),
        "video_streams_license": (1, 200),
    }


def test_a_backdated_subscription_invoices_each_past_period_and_adds_it_up_per_price(client) -> None:
    catalog = PayAsYouGo()
    applied = apply(catalog, client)
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": START}).id
    customer = create_customer(client, test_clock=clock)
    send_test_event(client, customer, 3000, timestamp=START - 20 * 86_400)
    send_test_event(client, customer, 100, timestamp=START - 5 * 86_400)
    since = datetime(2025, 12, 15, 12, tzinfo=timezone.utc)
    made = subscribe(client, customer, applied, backdate=since)
    assert made.collection_method == "send_invoice", "something is due at first, and there is no card"
    assert made.items[0].period_start == datetime(2026, 1, 15, 12, tzinfo=timezone.utc)
    (invoice,) = find_invoices(client, subscription=made.id)
    assert invoice.period_start == since
    assert per_product(invoice) == {"hypernian_tokens": (3100, Decimal("1.24"))}


def test_a_subscription_with_an_anchor_pays_its_share_until_then_and_then_the_whole(client) -> None:
    """From January 15, 12:00, to February 1: 16.5 of 31 days."""
    first = datetime(2026, 2, 1, tzinfo=timezone.utc)
    life = Life(client, FlatFeeWithOverages(), anchor=first)
    assert {item.period_end for item in life.subscription.items} == {first}
    life.until(START + HOUR)
    life.use(3000)
    life.until(int(first.timestamp()) + 2 * HOUR)
    stub, second = life.invoices()
    assert stub.total == Decimal("53.23")
    assert per_product(second) == {"hypernian_tokens_usage": (3000, 80), "hypernian_tokens_license": (1, 100)}


def test_anchor_and_backdate_reach_stripe_as_seconds(client, line) -> None:
    apply(PayAsYouGo(), client)
    at = datetime(2030, 1, 1, tzinfo=timezone.utc)
    for name, parameter in (("anchor", "billing_cycle_anchor"), ("backdate", "backdate_start_date")):
        with pytest.raises(BillingError):
            subscribe(client, create_customer(client), PayAsYouGo(), **{name: at})
        assert parse_qs(line.log[-1][2])[parameter] == [str(int(at.timestamp()))]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"anchor": 1_768_478_400}, "anchor=1768478400 must be a datetime with a time zone"),
        ({"backdate": datetime(2026, 1, 1)}, "must be a datetime with a time zone"),  # noqa: DTZ001
        (
            {"backdate": datetime.now(timezone.utc), "billing_mode": "classic"},
            "backdate needs billing_mode='flexible'",
        ),
        (
            {"backdate": datetime.now(timezone.utc), "anchor": datetime.now(timezone.utc)},
            "anchor and backdate exclude each other",
        ),
    ],
)
def test_a_start_that_cannot_work_is_refused_before_any_call(client, line, arguments, sentence) -> None:
    with pytest.raises(ConfigurationError) as refused:
        subscribe(client, "cus_1", PayAsYouGo(), **arguments)
    assert sentence in str(refused.value)
    assert line.log == []


def test_prorations_are_amounts_and_no_quantities(client) -> None:
    life = Life(client, FlatFeeWithOverages(seats=2))
    life.until(START + 31 * 86_400 // 2)
    item = life.subscription.items[0].id
    client.v1.subscription_items.update(item, {"quantity": 4})
    total = next(
        t for t in preview_invoice(client, customer=life.customer).by_price if "license" in str(t.product)
    )
    assert (total.quantity, total.lines, total.amount) == (4, 3, 400 + 100), (
        "4 seats, and 2 more for half a month"
    )
    lines = [
        one for one in preview_invoice(client, customer=life.customer).lines if "license" in str(one.product)
    ]
    assert sorted((line.proration, line.amount) for line in lines) == [
        (False, 400),
        (True, -100),
        (True, 200),
    ]


def test_an_invoice_of_many_lines_is_read_to_its_end(client) -> None:
    tiers = (*(Tier(10 * n, 1, 1) for n in range(1, 30)), Tier("inf", 1, 1))
    catalog = Catalog(
        meters=(MeterSpec(event_name="m", display_name="M"),),
        products=(ProductSpec(id="v", name="V"),),
        prices=(
            PriceSpec(key="v", product="v", currency="usd", meter="m", tiers=tiers, tiers_mode="graduated"),
        ),
        offers=(Offer("v", (Item("v"),)),),
    )
    life = Life(client, catalog)
    life.until(START + HOUR)
    send_test_event(client, life.customer, 300, event_name="m", timestamp=START + HOUR)
    life.until(FEBRUARY + 2 * HOUR)
    (invoice,) = life.invoices()
    assert len(invoice.lines) == 60
    assert [total.amount for total in invoice.by_price] == [330]


def test_invoices_are_found_by_status_and_number(client) -> None:
    life = Life(client, PayAsYouGo())
    for month in range(1, 4):
        life.until(START + month * 31 * 86_400)
    assert len(find_invoices(client, customer=life.customer)) == 3
    newest = find_invoices(client, subscription=life.subscription.id, limit=1)
    assert [one.id for one in newest] == [life.invoices()[-1].id]
    assert {one.status for one in find_invoices(client, customer=life.customer, status="paid")} == {"paid"}


def test_what_is_not_there_is_named_and_not_an_empty_list(client) -> None:
    with pytest.raises(BillingError, match="there is no customer 'cus_nobody'"):
        find_invoices(client, customer="cus_nobody")
    with pytest.raises(BillingError, match="there is no subscription 'sub_nobody'"):
        find_invoices(client, subscription="sub_nobody")
    with pytest.raises(BillingError, match="there is no invoice 'in_nobody'"):
        fetch_invoice(client, "in_nobody")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "either subscription or customer"),
        ({"customer": "c", "subscription": "s"}, "either subscription or customer"),
        ({"customer": "c", "status": "late"}, "status='late' must be one of draft, open, paid"),
        ({"customer": "c", "limit": 0}, "limit=0 must be a whole number of at least 1"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(client, line, arguments, sentence) -> None:
    with pytest.raises(ConfigurationError) as refused:
        find_invoices(client, **arguments)
    assert sentence in str(refused.value)
    assert line.log == []


def test_every_call_about_invoices_keeps_to_the_contract(client, line, contract) -> None:
    life = Life(client, FlatFeeWithOverages())
    life.until(FEBRUARY + 2 * HOUR)
    fetch_invoice(client, life.invoices()[0].id)
    for method, path, sent, status, body in line.log:
        text = sent.decode() if isinstance(sent, bytes) else sent or ""
        params = contract.decode_form(method, path, text)
        assert contract.check(method, path, params, status, body) == [], f"{method} {path}"
