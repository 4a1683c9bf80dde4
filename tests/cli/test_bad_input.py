"""Bad input, row by row: refused with a sentence that says what to change, before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

NOWHERE = "http://127.0.0.1:9"
"""Nothing listens there: a call would end with exit code 1."""

PRICE = """
[[meters]]
event_name = "t"
display_name = "T"
[[products]]
id = "p"
name = "P"
[[prices]]
key = "k"
product = "p"
meter = "t"
"""


@pytest.mark.parametrize("command", [["plan"], ["apply"], ["migrate", "--dry-run"], ["estimate"]])
@pytest.mark.parametrize(
    ("price", "sentence"),
    [
        (
            (
                'currency = "usd"\ntiers_mode = "graduated"\n'
                "tiers = [{up_to = 1000, unit_amount = 1}, {up_to = 500, unit_amount = 2}, "
                "{up_to = inf, unit_amount = 3}]"
            ),
            "tiers[1].up_to=500 must be above the tier before it (1000); list tiers from small to large",
        ),
        (
            (
                'currency = "usd"\ntiers_mode = "graduated"\n'
                "tiers = [{up_to = inf, unit_amount = 1}, {up_to = inf, unit_amount = 2}]"
            ),
            "tiers[0].up_to is 'inf', but a tier follows; only the last one may be open",
        ),
        (
            (
                'currency = "usd"\npackage_size = 100\ntiers_mode = "volume"\n'
                "tiers = [{up_to = inf, unit_amount = 1}]"
            ),
            "divide the tiers' unit amounts by the package size instead",
        ),
        ('currency = "usd"\namount = -0.04', "amount=-0.04 is negative; a price is 0 or more"),
        (
            'currency = "usd"\ntiers_mode = "volume"\ntiers = [{up_to = inf, unit_amount = -1}]',
            "unit_amount=-1 is negative",
        ),
        (
            'currency = "usd"\namount = "0.000000000000001"',
            "has more than 12 decimals in the minor unit of 'usd' (0.0000000000001); Stripe keeps at most 12",
        ),
        ('currency = "dollars"\namount = 1', "is not a currency that Stripe knows (three letters"),
        ('currency = "uds"\namount = 1', "did you mean 'usd'?"),
        (
            (
                'currency = "jpy"\ntiers_mode = "volume"\n'
                "tiers = [{up_to = inf, unit_amount = 1, flat_amount = 0.5}]"
            ),
            "flat_amount=0.5 has a fraction, but 'jpy' is charged in whole units only",
        ),
    ],
)
def test_a_price_that_cannot_be_is_refused_before_any_call(run, tmp_path, command, price, sentence) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(PRICE + price)
    where = [] if command[0] == "estimate" else ["--sandbox", NOWHERE]
    ran = run(command[0], str(path), *command[1:], *where)
    assert ran.code == 2
    assert str(path) in ran.err
    assert sentence in ran.err


@pytest.mark.parametrize("guide", ["pay-as-you-go", "flat-fee"])
def test_the_guides_figures_are_refused_in_a_currency_without_cents(run, guide) -> None:
    ran = run("setup", guide, "--currency", "jpy", "--sandbox", NOWHERE)
    assert ran.code == 2
    assert "is meant for a currency with cents, and 'jpy' has none; say " in ran.err
    assert "in whole JPY" in ran.err


def test_an_event_name_that_an_inactive_meter_of_another_kind_holds_is_told_with_a_way_out(
    run, at, client
) -> None:
    meter = client.v1.billing.meters.create(
        {"event_name": "hypernian_tokens", "display_name": "Old", "default_aggregation": {"formula": "count"}}
    )
    client.v1.billing.meters.deactivate(meter.id)
    seen = run("plan", "pay-as-you-go", *at)
    assert "! conflict" in seen.out
    assert "choose another event name" in seen.out
    refused = run("apply", "pay-as-you-go", *at)
    assert refused.code == 1
    assert f"({meter.id}) stands in the way: aggregation is count, wanted sum" in refused.err
    assert "choose another event name" in refused.err
    assert client.v1.prices.list().data == client.v1.products.list().data == []


def test_an_event_name_that_an_inactive_meter_of_this_kind_holds_is_switched_on_again(
    run, at, client
) -> None:
    run("setup", "pay-as-you-go", *at)
    (meter,) = client.v1.billing.meters.list().data
    client.v1.billing.meters.deactivate(meter.id)
    assert "^ reactivate meter" in run("plan", "pay-as-you-go", *at).out
    assert run("apply", "pay-as-you-go", *at).code == 0
    assert client.v1.billing.meters.retrieve(meter.id).status == "active"


def test_a_currency_that_the_customer_does_not_have_is_told_with_a_way_out(run, at, client) -> None:
    for currency in ("usd", "cad"):
        run("setup", "pay-as-you-go", "--currency", currency, "--event-name", currency, *at)
    made = run(
        "subscribe", "pay-as-you-go", "--currency", "usd", "--event-name", "usd", "--new-customer", "A",
        *at, "--json",
    ).document["subscription"]  # fmt: skip
    ran = run(
        "subscribe", "pay-as-you-go", "--currency", "cad", "--event-name", "cad", "--customer",
        made["customer"], *at,
    )  # fmt: skip
    assert ran.code == 1
    assert "the customer is billed in another currency" in ran.err
    assert "use prices in that currency, or another customer" in ran.err
    assert [s.id for s in client.v1.subscriptions.list().data] == [made["id"]]


def test_a_catalog_that_is_no_catalog_is_told_with_its_place(run, tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    for text, sentence in (
        ("[[prices", "this is not TOML"),
        ("[[price]]\n", "did you mean prices?"),
        ('[[credits]]\nkey = "k"\ncurrency = "usd"\n', "credits[0] lacks amount"),
        ('[[alerts]]\ntitle = "t"\nmeter = "m"\nthreshold = 1.5\n', "must be a whole number"),
        ('[[alerts]]\ntitle = "t"\nmeter = "m"\nthreshold = 1\n', "meter='m' is not in the catalog"),
    ):
        path.write_text(text)
        ran = run("plan", str(path), "--sandbox", NOWHERE)
        assert ran.code == 2
        assert sentence in ran.err
