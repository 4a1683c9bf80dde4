"""Money is exact, both ways, and bad amounts are refused with the field and the rule."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_metering.billing.money import (
    CURRENCIES,
    exponent,
    major_units,
    minor_units,
    parse_amount,
    parse_currency,
    show,
    wire,
)
from llm_metering.errors import ConfigurationError


@pytest.mark.parametrize(
    ("amount", "currency", "minor"),
    [
        ("0.04", "usd", "4"),
        (Decimal("0.0005"), "usd", "0.05"),
        (100, "usd", "10000"),
        ("500", "jpy", "500"),
        ("5", "kwd", "5000"),
        ("5", "isk", "500"),
        ("5", "ugx", "500"),
        ("0.00000000000001", "usd", "0.000000000001"),
        (" 1.50 ", "eur", "150"),
        ("0", "usd", "0"),
    ],
)
def test_an_amount_becomes_minor_units_exactly(amount, currency, minor) -> None:
    assert wire(minor_units(amount, currency)) == minor


@given(
    st.decimals(min_value=0, max_value=10**9, places=12, allow_nan=False),
    st.sampled_from(sorted(CURRENCIES)),
)
def test_minor_units_lead_back_to_the_same_amount(minor: Decimal, currency: str) -> None:
    major = major_units(minor, currency)
    assert minor_units(major, currency) == minor
    assert Decimal(wire(minor)) == minor


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=0, max_value=10**12))
def test_the_wire_form_has_digits_and_a_point_only(value: Decimal) -> None:
    assert set(wire(value)) <= set("0123456789.")


@pytest.mark.parametrize(
    ("amount", "sentence"),
    [
        (0.04, "is a float, and floats cannot hold money exactly; write Decimal('0.04') or '0.04'"),
        (True, "must be a Decimal, a whole number or decimal text"),
        (None, "must be a Decimal, a whole number or decimal text"),
        ("0,04", "is not a number; write it like '0.04', with a point and no currency sign"),
        ("$1", "is not a number"),
        ("", "is not a number"),
        ("NaN", "must be a finite number"),
        ("Infinity", "must be a finite number"),
        ("-0.01", "is negative; a price is 0 or more"),
        ("1e30", "is too large"),
        ("1e999999", "is too large"),
        ("1." + "0" * 65 + "1", "is too large or too long"),
        ("1e-999999", "has more decimals than Stripe keeps (12)"),
        ("0.000000000000001", "has more than 12 decimals in the minor unit of 'usd' (0.0000000000001)"),
        ("123456789012345", "at most 15 digits in minor units"),
    ],
)
def test_a_bad_amount_is_refused_by_name_and_rule(amount, sentence) -> None:
    with pytest.raises(ConfigurationError) as refused:
        minor_units(amount, "usd", "license_amount")
    assert "license_amount=" in str(refused.value)
    assert sentence in str(refused.value)


def test_a_unit_amount_may_have_twelve_decimals_of_a_cent_and_no_more() -> None:
    assert minor_units("0.00000000000001", "usd") == Decimal("1E-12")
    assert minor_units("0.000000000001", "jpy") == Decimal("1E-12")
    with pytest.raises(ConfigurationError, match="more than 12 decimals"):
        minor_units("0.0000000000001", "jpy")


@pytest.mark.parametrize(("text", "near"), [("uds", "usd"), ("us", "usd"), ("ero", "eur")])
def test_an_unknown_currency_is_refused_with_a_likely_one(text: str, near: str) -> None:
    with pytest.raises(
        ConfigurationError, match=f"is not a currency that Stripe knows.*did you mean '{near}'"
    ):
        parse_currency(text)


def test_a_currency_is_taken_in_any_case() -> None:
    assert parse_currency(" CAD ") == "cad"
    with pytest.raises(ConfigurationError, match="currency=None"):
        parse_currency(None)  # type: ignore[arg-type]


def test_amounts_are_shown_with_the_decimals_they_need() -> None:
    assert show(Decimal("1.2"), "usd") == "1.20 USD"
    assert show(Decimal("0.0004"), "usd") == "0.0004 USD"
    assert show(Decimal(500), "jpy") == "500 JPY"
    assert show(Decimal(18000), "cad") == "18,000.00 CAD"
    assert exponent("kwd") == 3


def test_a_whole_number_of_any_kind_is_an_amount() -> None:
    assert parse_amount(3) == parse_amount("3") == parse_amount(Decimal("3.00")) == 3
