"""Our own reckoning is Stripe's: contract.md's figures, a naive oracle, and the sandbox's engine."""

from __future__ import annotations

import random
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_metering.billing import (
    FlatFeeWithOverages,
    MeteredUsage,
    PayAsYouGo,
    PriceSpec,
    Tier,
    apply,
    create_customer,
    estimate,
    preview_invoice,
    rate,
    send_test_event,
    subscribe,
)
from llm_metering.billing.bodies import price_params
from llm_metering.billing.money import major_units
from llm_metering.sandbox import rating as stripes
from llm_metering.sandbox.tariffs import rate as rate_of

FEW = 3_000
MANY = 100_000


def total(price: PriceSpec, quantity: Any) -> Decimal:
    return sum((line.amount for line in rate(price, quantity)), Decimal(0))


@pytest.mark.parametrize(
    ("usage", "cents"), [(3000, 120), (0, 0), (1, 4), (100, 4), (101, 8), (3001, 124), (-5, 0)]
)
def test_pay_as_you_go_costs_the_guides_amounts(usage: int, cents: int) -> None:
    assert total(PayAsYouGo().prices[0], usage) == Decimal(cents).scaleb(-2)


def test_the_flat_fee_costs_the_guides_amounts() -> None:
    used = [MeteredUsage("a", "hypernian_tokens", Decimal(3000))]
    (one,) = estimate(FlatFeeWithOverages(), used)
    assert str(one.total) == "180.00"
    assert [(line.quantity, line.amount, line.tier, line.flat) for line in one.lines] == [
        (1, 100, None, False),
        (1000, 0, 1, False),
        (0, 0, 1, True),
        (2000, 80, 2, False),
        (0, 0, 2, True),
    ]
    (in_arrears,) = estimate(FlatFeeWithOverages(license_billed="with_usage"), used)
    assert in_arrears.total == 180


def test_a_real_invoice_of_another_company_is_reckoned_to_the_cent() -> None:
    """contract.md 6.4: flat fees of 9 and 0, usage 1031; 31 × 3.6 cents = 111.6."""
    price = PriceSpec(
        key="k",
        product="p",
        currency="usd",
        meter="m",
        tiers=(Tier(1000, 0, 9), Tier("inf", "0.036", 0)),
        tiers_mode="graduated",
    )
    assert [line.amount for line in rate(price, 1031)] == [0, 9, Decimal("1.12"), 0]


def test_a_half_cent_goes_up_once_per_line() -> None:
    """contract.md 6.2: 0.05 × 30 = 1.5 → 2 cents."""
    price = PriceSpec(key="k", product="p", currency="usd", meter="m", amount="0.0005")
    assert total(price, 30) == Decimal("0.02")


def test_usage_is_put_together_as_the_meter_does() -> None:
    def used(customer: str | None, value: int, period: str | None = None) -> MeteredUsage:
        return MeteredUsage(customer, "hypernian_tokens", Decimal(value), period)

    usage = [used("a", 60), used("b", 1), used("a", 50), used("a", 7, "next"), used(None, 3)]
    added = estimate(PayAsYouGo(), usage)
    assert [(e.customer, e.period, e.total) for e in added] == [
        ("a", None, Decimal("0.08")),
        ("b", None, Decimal("0.04")),
        ("a", "next", Decimal("0.04")),
        (None, None, Decimal("0.04")),
    ]
    assert [e.lines[0].quantity for e in estimate(PayAsYouGo(aggregation="last"), usage)] == [50, 1, 7, 3]


def test_usage_of_a_meter_that_is_not_charged_costs_nothing() -> None:
    (one,) = estimate(PayAsYouGo(), [MeteredUsage("a", "other", Decimal(10**9))])
    assert one.total == 0


def test_an_estimate_is_what_the_preview_says(client) -> None:
    for catalog in (PayAsYouGo("jpy", 7, package_size=9), FlatFeeWithOverages(overage_per=100, seats=3)):
        customer = create_customer(client)
        subscribe(client, customer, apply(catalog, client))
        send_test_event(client, customer, "12345.678")
        invoice = preview_invoice(client, customer=customer)
        (reckoned,) = estimate(catalog, [MeteredUsage(customer, "hypernian_tokens", Decimal("12345.678"))])
        assert reckoned.total == invoice.total
        assert sorted(line.amount for line in reckoned.lines) == sorted(line.amount for line in invoice.lines)


amounts = st.decimals(min_value=0, max_value=100, places=6)


@given(
    st.lists(st.tuples(st.integers(1, 30), amounts, st.none() | amounts), min_size=1, max_size=4),
    st.integers(0, 150),
    st.sampled_from(["graduated", "volume"]),
)
def test_tiers_cost_what_counting_unit_by_unit_says(steps, quantity, mode) -> None:
    """The oracle knows no formula: it asks each unit which tier it is in."""
    ends, tiers = [], []
    for width, unit, flat in steps:
        ends.append((ends[-1] if ends else 0) + width)
        tiers.append(Tier(ends[-1], unit, flat))
    tiers[-1] = Tier("inf", steps[-1][1], steps[-1][2])

    def tier_of(unit: int) -> int:
        return next((i for i, end in enumerate(ends[:-1]) if unit <= end), len(ends) - 1)

    if mode == "volume":
        inside = {tier_of(quantity): quantity}
    else:
        inside = {0: 0}
        for unit in range(1, quantity + 1):
            inside[tier_of(unit)] = inside.get(tier_of(unit), 0) + 1
    expected = Decimal(0)
    for i, units in inside.items():
        expected += (units * steps[i][1]).quantize(Decimal("0.01"), ROUND_HALF_UP)
        expected += (steps[i][2] or Decimal(0)).quantize(Decimal("0.01"), ROUND_HALF_UP)
    price = PriceSpec(key="k", product="p", currency="usd", meter="m", tiers=tuple(tiers), tiers_mode=mode)
    assert total(price, quantity) == expected


def random_price(dice: random.Random) -> PriceSpec:
    currency = dice.choice(["usd", "jpy", "kwd"])
    given: dict[str, Any] = {"key": "k", "product": "p", "currency": currency, "meter": "m"}
    model = dice.choice(["unit", "package", "graduated", "volume"])
    if model in ("unit", "package"):
        given["amount"] = random_amount(dice, currency)
        if model == "package":
            given["package_size"] = dice.choice([1, 3, 7, 100, 1000, 10**6])
            given["package_round"] = dice.choice(["up", "down"])
        return PriceSpec(**given)
    ends = sorted(dice.sample(range(1, 5000), dice.randint(0, 4)))
    tiers = tuple(random_tier(dice, end, currency) for end in [*ends, "inf"])
    return PriceSpec(**given, tiers=tiers, tiers_mode=model)


def random_tier(dice: random.Random, up_to: Any, currency: str) -> Tier:
    unit = random_amount(dice, currency) if dice.random() < 0.9 else None
    whole = major_units(dice.randint(0, 5000), currency)
    return Tier(up_to, unit, whole if unit is None or dice.random() < 0.5 else None)


def random_amount(dice: random.Random, currency: str) -> Decimal:
    places = dice.choice([0, 1, 4, 12])
    return major_units(Decimal(dice.randint(0, 10 ** (places + 2))).scaleb(-places), currency)


def random_quantity(dice: random.Random) -> Decimal:
    whole = dice.choice([0, 1, 99, 100, 101, dice.randint(0, 6000), dice.randint(0, 10**12)])
    return Decimal(whole) + (Decimal(dice.randint(0, 10**12)).scaleb(-12) if dice.random() < 0.3 else 0)


def agree(price: PriceSpec, quantity: Decimal) -> bool:
    """Whether the sandbox, told of the price as over the wire, charges the same lines."""
    sent = price_params(price, {"m": "mtr_1"})
    document: dict[str, Any] = {
        "transform_quantity": None,
        "unit_amount_decimal": None,
        "tiers_mode": None,
        **sent,
        "_tiers": [
            {
                "up_to": None if tier["up_to"] == "inf" else tier["up_to"],
                "unit_amount_decimal": tier.get("unit_amount_decimal"),
                "flat_amount_decimal": tier.get("flat_amount_decimal"),
            }
            for tier in sent.get("tiers", [])
        ],
    }
    theirs = stripes.charges(rate_of(document), quantity)
    ours = rate(price, quantity)
    return [(line.quantity, line.amount) for line in ours] == [
        (charge.quantity, major_units(charge.amount, price.currency)) for charge in theirs
    ]


def disagreements(seed: int, count: int) -> list[tuple[PriceSpec, Decimal]]:
    dice = random.Random(seed)
    cases = ((random_price(dice), random_quantity(dice)) for _ in range(count))
    return [(price, quantity) for price, quantity in cases if not agree(price, quantity)]


def test_a_few_thousand_random_prices_agree_with_the_sandbox() -> None:
    assert disagreements(1, FEW) == []


@pytest.mark.slow
def test_a_hundred_thousand_random_prices_agree_with_the_sandbox() -> None:
    assert disagreements(2, MANY) == []
