"""A catalog in TOML is the same catalog, and a mistake in it is told with its place."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
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
    files,
    load_catalog,
    parse_catalog,
)
from llm_metering.billing.files import _PARTS
from llm_metering.errors import ConfigurationError

TEXT = """
[[meters]]
event_name = "output_tokens"
display_name = "Output tokens"

[[products]]
id = "acme"
name = "Acme"

[[prices]]
key = "output"
product = "acme"
currency = "usd"
meter = "output_tokens"
tiers_mode = "graduated"
tiers = [
    { up_to = 1_000_000, unit_amount = 0.000015, flat_amount = "2.50" },
    { up_to = inf, unit_amount = "0.00001" },
]

[[prices]]
key = "seat"
product = "acme"
currency = "usd"
amount = 20

[[offers]]
name = "team"
items = [{ price = "seat", quantity = 5 }, "output"]
"""

METER = '[[meters]]\nevent_name = "t"\ndisplay_name = "T"\n'
PRODUCT = '[[products]]\nid = "p"\nname = "P"\n'
PRICE = '[[prices]]\nkey = "k"\nproduct = "p"\ncurrency = "usd"\n'


def test_every_kind_of_value_is_read() -> None:
    assert parse_catalog(TEXT) == Catalog(
        meters=(MeterSpec(event_name="output_tokens", display_name="Output tokens"),),
        products=(ProductSpec(id="acme", name="Acme"),),
        prices=(
            PriceSpec(
                key="output",
                product="acme",
                currency="usd",
                meter="output_tokens",
                tiers=(Tier(1_000_000, "0.000015", "2.50"), Tier("inf", "0.00001")),
                tiers_mode="graduated",
            ),
            PriceSpec(key="seat", product="acme", currency="usd", amount=20),
        ),
        offers=(Offer("team", (Item("seat", 5), Item("output"))),),
    )


def test_the_guides_can_be_named_with_their_arguments() -> None:
    text = '[pay-as-you-go]\namount = 0.05\ncurrency = "cad"\n[flat-fee]\nincluded = 2000\n'
    read = parse_catalog(text)
    assert read == PayAsYouGo("cad", "0.05") | FlatFeeWithOverages(included=2000)


def test_numbers_of_toml_are_read_exactly() -> None:
    """As a float, 0.1 + 0.2 would not be 0.3, and 0.000000000012345678 would lose digits."""
    text = METER + PRODUCT + PRICE + 'meter = "t"\namount = 0.00001234567891\n'
    assert parse_catalog(text).prices[0].amount == Decimal("0.00001234567891")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("meters = 3", "meters is a list of tables; write [[meters]]"),
        ("[meters]\nevent_name = 't'", "meters is a list of tables; write [[meters]]"),
        ("meters = [3]", "meters[0] must be a table, not 3"),
        ("[[meterz]]", "the catalog has no meterz; did you mean meters?"),
        ("[[meters]]\nevent_name = 't'", "meters[0] lacks display_name"),
        (METER + "agregation = 'sum'", "meters[0] has no agregation; did you mean aggregation?"),
        (METER + "colour = 'red'", "meters[0] has no colour; it has event_name, display_name"),
        (METER + "aggregation = 'max'", "meter 't': aggregation='max' must be one of sum, count, last"),
        (PRODUCT + PRICE + "amount = -1", "price 'k': amount=-1 is negative"),
        (PRODUCT + PRICE + "amount = nan", "price 'k': amount=NaN must be a finite number"),
        (PRODUCT + PRICE + "amount = true", "amount=True must be a Decimal"),
        (PRODUCT + PRICE + "tiers = 3", "prices[0].tiers must be a list of tables such as"),
        (PRODUCT + PRICE + "tiers = [3]", "prices[0].tiers[0] must be a table, not 3"),
        (PRODUCT + PRICE + "tiers = [{ unit_amount = 1 }]", "prices[0].tiers[0] lacks up_to"),
        (
            PRODUCT + PRICE + "tiers_mode = 'volume'\ntiers = [{ up_to = 5, unit_amount = 1 }]",
            "price 'k': tiers[0].up_to=5: the last tier must be open, write up_to='inf'",
        ),
        (
            PRODUCT + PRICE + "amount = 1\nmeter = 't'",
            "price 'k': meter='t' is not in the catalog; it has none",
        ),
        (
            PRODUCT + PRICE.replace('"usd"', "5") + "amount = 1",
            "currency=5 is not a currency that Stripe knows",
        ),
        ("[[offers]]\nname = 'o'\nitems = 'k'", "offers[0].items must be a list of price keys"),
        ("[[offers]]\nname = 'o'\nitems = [3]", "offers[0].items[0] must be a table, not 3"),
        ("[[offers]]\nname = 'o'", "offer 'o': it has no items"),
        ("[pay-as-you-go]\nprice = 3", "[pay-as-you-go] has no price"),
        ("pay-as-you-go = 3", "[pay-as-you-go] must be a table, not 3"),
        ("[flat-fee]\nincluded = -1", "included=-1 must be a whole number of 0 or more"),
        ("[[prices", "this is not TOML"),
    ],
)
def test_a_mistake_is_told_with_its_place(text, sentence) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_catalog(text)
    assert sentence in str(refused.value)


def test_a_file_is_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(TEXT, encoding="utf-8")
    assert load_catalog(path) == parse_catalog(TEXT)
    path.write_text("meters = 3")
    with pytest.raises(ConfigurationError, match=r"catalog.toml: meters is a list of tables"):
        load_catalog(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"catalog.toml cannot be read: it is not UTF-8 text"):
        load_catalog(path)
    with pytest.raises(ConfigurationError, match=r"missing.toml cannot be read: No such file or directory"):
        load_catalog(tmp_path / "missing.toml")


_WORDS = """event_name display_name id name key product currency meter amount tiers tiers_mode interval
    interval_count up_to unit_amount items price quantity seats package_size included aggregation nickname"""
_names = st.sampled_from(_WORDS.split())
_values = st.recursive(
    st.one_of(
        st.sampled_from(["t", "p", "k", "usd", "month", "graduated", "inf", "", "0.04"]),
        st.integers(-2, 2000),
        st.booleans(),
        st.decimals(allow_nan=True),
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_names, inner, max_size=4),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(_PARTS), _values | st.lists(st.dictionaries(_names, _values)), max_size=4)
)
def test_whatever_a_file_holds_it_is_a_catalog_or_a_sentence(document) -> None:
    with patch.object(files, "_parse_toml", lambda text: document), suppress(ConfigurationError):
        parse_catalog("")
