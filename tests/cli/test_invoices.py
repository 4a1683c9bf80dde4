"""Invoices and previews as tables, JSON and CSV."""

from __future__ import annotations

import csv
import io
from datetime import datetime, timezone

import pytest

START = 1_768_478_400


@pytest.fixture
def customer(run, at, client) -> str:
    """Two months of the flat fee, the first of them with 3000 tokens."""
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": START})
    customer = client.v1.customers.create({"name": "John Doe", "test_clock": clock.id}).id
    run("setup", "flat-fee", *at)
    run("subscribe", "flat-fee", "--customer", customer, *at)
    run("test-event", "--customer", customer, "--timestamp", str(START + 60), *at)
    client.v1.test_helpers.test_clocks.advance(clock.id, {"frozen_time": START + 31 * 86_400 + 7200})
    return customer


def test_past_invoices_are_tables_with_each_price_added_up(run, at, customer) -> None:
    seen = run("invoices", "--customer", customer, *at)
    assert (seen.code, seen.err) == (0, "")
    for shown in (
        "subscription_create", "subscription_cycle", "3,000", "80.00 USD", "100.00 USD",
        "hypernian_tokens_usage · price_", "1000 × Hypernian Usage (Tier 1 at $0.00 / month)",
        "Amount due  180.00 USD", "2026-01-15 12:00 UTC to 2026-02-15 12:00 UTC",
    ):  # fmt: skip
        assert shown in seen.out
    document = run("invoices", "--customer", customer, *at, "--json").document
    assert [one["total"] for one in document["invoices"]] == ["180.00", "100.00"]
    assert {p["product"]: (p["quantity"], p["amount"]) for p in document["invoices"][0]["by_price"]} == {
        "hypernian_tokens_usage": ("3000", "80.00"),
        "hypernian_tokens_license": ("1", "100.00"),
    }
    one = document["invoices"][0]["id"]
    assert run("invoices", one, *at, "--json").document["invoices"] == document["invoices"][:1]
    latest = run("invoices", "--customer", customer, "--limit", "1", *at, "--json").document
    assert latest["invoices"] == document["invoices"][:1]


def test_csv_has_a_row_for_each_price_and_sums_to_the_totals(run, at, customer) -> None:
    rows = list(csv.DictReader(io.StringIO(run("invoices", "--customer", customer, "--csv", *at).out)))
    assert [(r["product"], r["quantity"], r["amount"]) for r in rows] == [
        ("hypernian_tokens_usage", "3000", "80.00"),
        ("hypernian_tokens_license", "1", "100.00"),
        ("hypernian_tokens_license", "1", "100.00"),
    ]
    assert {r["customer"] for r in rows} == {customer}
    assert rows[0]["period_start"] == "2026-01-15 12:00 UTC"
    (one, two) = csv.DictReader(io.StringIO(run("preview", "--customer", customer, "--csv", *at).out))
    assert (one["status"], one["quantity"], one["amount"]) == ("upcoming", "0", "0.00")
    assert two["amount"] == "100.00"


def test_a_customer_without_invoices_is_told_so(run, at, client) -> None:
    customer = client.v1.customers.create({"name": "New"}).id
    seen = run("invoices", "--customer", customer, *at).out
    assert seen.startswith(
        f"No invoices yet. The next one: llm-metering preview --customer {customer} --sand"
    )
    assert run("invoices", "--customer", "cus_nobody", *at).code == 1


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["invoices"], "say which: an invoice in_…, --customer cus_… or --subscription sub_…"),
        (["invoices", "in_1", "--customer", "c"], "say which"),
        (["invoices", "--customer", "c", "--csv", "--json"], "--csv and --json exclude each other"),
        (["preview", "--customer", "c", "--csv", "--json"], "--csv and --json exclude each other"),
        (["invoices", "--customer", "c", "--status", "late"], "status='late' must be one of"),
        (["subscribe", "flat-fee", "--customer", "c", "--quantity", "x"], "must be written as KEY=N"),
        (["subscribe", "flat-fee", "--customer", "c", "--anchor", "soon"], "--anchor soon is no time"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(run, at, argv, sentence) -> None:
    ran = run(*argv, *at)
    assert ran.code == 2
    assert sentence in ran.err + ran.out


def test_a_subscription_takes_quantities_by_key_and_a_start_in_the_past(run, at, client) -> None:
    run("setup", "flat-fee", *at)
    run("setup", "pay-as-you-go", *at)
    fee = "hypernian_tokens.flat_fee.license.usd.month"
    made = run(
        "subscribe", "flat-fee", "--new-customer", "A", "--quantity", f"{fee}=4", *at, "--json"
    ).document["subscription"]
    assert [item["quantity"] for item in made["items"]] == [4, None]
    old = run("subscribe", "pay-as-you-go", "--new-customer", "B", "--backdate", "40d", *at, "--json")
    began = client.v1.subscriptions.retrieve(old.document["subscription"]["id"]).start_date
    assert abs(datetime.now(timezone.utc).timestamp() - 40 * 86_400 - began) < 60
    assert "next invoice" in run("subscribe", "pay-as-you-go", "--new-customer", "C", *at).out
