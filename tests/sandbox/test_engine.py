"""The pure engine: rating against an oracle in fractions, periods against the calendar, aggregation."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal, localcontext
from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_metering.sandbox.aggregation import Used, aggregate
from llm_metering.sandbox.money import add, minor_units, plain, shown
from llm_metering.sandbox.periods import period_at, step
from llm_metering.sandbox.rating import Rate, Tier, charges

quantities = st.decimals(0, 10**15, places=12, allow_nan=False) | st.integers(0, 10**6).map(Decimal)
amounts = st.decimals(0, 10**6, places=12, allow_nan=False) | st.integers(0, 10**4).map(Decimal)


@st.composite
def tiers(draw):
    ends = sorted(draw(st.sets(st.integers(1, 5000), max_size=5)))
    made = []
    for end in [*ends, None]:
        unit = draw(st.none() | amounts)
        flat = draw(amounts if unit is None else st.none() | amounts)
        made.append(Tier(end, unit, flat))
    return tuple(made)


def half_up(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))


def total(rate: Rate, quantity: Decimal) -> int:
    return sum(charge.amount for charge in charges(rate, quantity))


@given(quantities, amounts)
def test_per_unit_is_quantity_times_amount_rounded_once(quantity, unit):
    assert total(Rate(unit), quantity) == half_up(Fraction(quantity) * Fraction(unit))


@given(quantities, amounts, st.integers(1, 10_000), st.sampled_from(["up", "down"]))
def test_packages_are_whole(quantity, unit, size, rounding):
    packages = {"up": ceil, "down": floor}[rounding](Fraction(quantity) / size)
    assert total(Rate(unit, size, rounding), quantity) == half_up(packages * Fraction(unit))


@st.composite
def tiers_and_quantities(draw):
    """Tiers, and a quantity that is often the very end of one."""
    steps = draw(tiers())
    ends = [Decimal(tier.up_to) for tier in steps if tier.up_to is not None]
    return steps, draw(st.sampled_from(ends) | quantities if ends else quantities)


@given(tiers_and_quantities())
def test_graduated_bills_each_unit_in_its_own_tier(given):
    steps, quantity = given
    wanted, below = 0, Fraction(0)
    for n, tier in enumerate(steps):
        if n and Fraction(quantity) <= below:
            break
        top = Fraction(quantity) if tier.up_to is None else min(Fraction(quantity), Fraction(tier.up_to))
        wanted += half_up((top - below) * Fraction(tier.unit or 0)) + half_up(Fraction(tier.flat or 0))
        below = Fraction(tier.up_to or 0)
    made = charges(Rate(mode="graduated", tiers=steps), quantity)
    assert sum(charge.amount for charge in made) == wanted
    assert sum(Fraction(charge.quantity) for charge in made if not charge.flat) == Fraction(quantity)


@given(tiers_and_quantities())
def test_volume_bills_all_units_in_the_tier_that_holds_them(given):
    steps, quantity = given
    tier = next(one for one in steps if one.up_to is None or quantity <= one.up_to)
    wanted = half_up(Fraction(quantity) * Fraction(tier.unit or 0)) + half_up(Fraction(tier.flat or 0))
    assert total(Rate(mode="volume", tiers=steps), quantity) == wanted


@given(st.decimals(-1000, -1, places=3), tiers(), st.sampled_from(["graduated", "volume"]))
def test_a_negative_quantity_costs_what_none_costs(quantity, steps, mode):
    rate = Rate(mode=mode, tiers=steps)
    assert charges(rate, quantity) == charges(rate, Decimal(0))


@given(quantities, tiers())
def test_how_flat_lines_are_shown_changes_no_total(quantity, steps):
    rate = Rate(mode="graduated", tiers=steps)
    totals = {
        sum(charge.amount for charge in charges(rate, quantity, flat_lines=style))
        for style in ("when_set", "when_not_zero", "always")
    }
    assert len(totals) == 1


@given(quantities, amounts)
def test_the_threads_decimal_settings_change_nothing(quantity, unit):
    wanted = total(Rate(unit), quantity)
    with localcontext() as context:
        context.prec = 3
        assert total(Rate(unit), quantity) == wanted


STRIPES_FLAT_FEES = (
    Tier(5, Decimal(500), Decimal(1000)),
    Tier(10, Decimal(400), Decimal(2000)),
    Tier(15, Decimal(300), Decimal(3000)),
    Tier(20, Decimal(200), Decimal(4000)),
    Tier(None, Decimal(100), Decimal(5000)),
)


@pytest.mark.parametrize(
    ("mode", "quantity", "cents"),
    [
        ("volume", 12, 6600),
        ("graduated", 12, 11100),
        ("volume", 0, 1000),
        ("graduated", 0, 1000),
        ("volume", 5, 3500),
        ("graduated", 5, 3500),  # the last unit of a tier does not reach the next one's flat fee
        ("graduated", 10, 7500),
    ],
)
def test_flat_fees_bill_as_in_stripes_own_example(mode, quantity, cents):
    """docs.stripe.com/products-prices/pricing-models: the first flat fee is billed without usage, too."""
    assert total(Rate(mode=mode, tiers=STRIPES_FLAT_FEES), Decimal(quantity)) == cents


@pytest.mark.parametrize(
    ("quantity", "volume", "graduated"),
    [(1, 700, 700), (5, 3500, 3500), (6, 3900, 4150), (20, 12000, 12750), (25, 15000, 15750)],
)
def test_tiers_bill_as_in_stripes_own_example(quantity, volume, graduated):
    steps = (Tier(5, Decimal(700)), Tier(10, Decimal(650)), Tier(None, Decimal(600)))
    assert total(Rate(mode="volume", tiers=steps), Decimal(quantity)) == volume
    assert total(Rate(mode="graduated", tiers=steps), Decimal(quantity)) == graduated


@given(st.lists(st.decimals(-(10**15), 10**15, places=12, allow_nan=False), max_size=50))
def test_sums_are_exact(values):
    assert Fraction(add(values)) == sum(map(Fraction, values))


@given(st.decimals(-(10**20), 10**20, places=12, allow_nan=False))
def test_plain_numbers_read_back_the_same_and_have_no_exponent(value):
    assert Decimal(plain(value)) == value
    assert not set(plain(value)) & set("eE+")


def test_a_half_goes_up():
    assert [minor_units(Decimal(text)) for text in ("0.5", "1.5", "2.4999", "2.5")] == [1, 2, 2, 3]


def test_amounts_are_shown_with_at_least_two_places_where_the_currency_has_them():
    assert [shown(Decimal(text), "usd") for text in ("4", "3.6", "10000", "0")] == [
        "$0.04",
        "$0.036",
        "$100.00",
        "$0.00",
    ]
    assert shown(Decimal(400), "jpy") == "¥400"


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp())


def test_months_keep_the_anchors_day_or_end_on_their_last():
    anchor = at("2027-10-31T10:00:00")
    assert [step(anchor, "month", 1, n) for n in (1, 2, 4, 5)] == [
        at("2027-11-30T10:00:00"),
        at("2027-12-31T10:00:00"),
        at("2028-02-29T10:00:00"),
        at("2028-03-31T10:00:00"),
    ]


def test_years_from_a_leap_day_end_on_february_28():
    assert step(at("2028-02-29T00:00:00"), "year", 1, 1) == at("2029-02-28T00:00:00")


@given(
    st.integers(0, 4 * 10**9),
    st.sampled_from(["day", "week", "month", "year"]),
    st.integers(1, 3),
    st.integers(0, 10**9),
)
def test_every_moment_is_in_exactly_one_period(anchor, interval, count, later):
    moment = anchor + later
    start, end = period_at(anchor, interval, count, moment)
    assert start <= moment < end
    assert period_at(anchor, interval, count, end)[0] == end
    assert period_at(anchor, interval, count, end - 1) == (start, end)


used = st.builds(
    Used,
    st.integers(0, 10 * 3600),
    st.integers(1, 10**6),
    st.decimals(-1000, 1000, places=3, allow_nan=False),
)


@given(st.lists(used, max_size=40, unique_by=lambda one: one.seq), st.randoms())
def test_the_order_of_reading_changes_no_aggregate(events, randomness):
    shuffled = list(events)
    randomness.shuffle(shuffled)
    for formula in ("sum", "count", "last"):
        for window in (None, "hour", "day"):
            assert aggregate(events, formula, window) == aggregate(shuffled, formula, window)


@given(st.lists(used, max_size=40, unique_by=lambda one: one.seq))
def test_a_sum_by_hours_adds_up_to_the_sum_of_all(events):
    hours = {event.timestamp // 3600 for event in events}
    parts = [
        aggregate([event for event in events if event.timestamp // 3600 == hour], "sum") for hour in hours
    ]
    assert add(parts) == aggregate(events, "sum")
