"""Meters: what a record adds to each Stripe meter."""

from __future__ import annotations

import random
from dataclasses import replace
from decimal import Context, Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_metering.errors import ConfigurationError
from llm_metering.meters import ALL, TokenMeter, checked_meters, lines_of
from llm_metering.usage import LEAVES, TOKEN_TYPES, Usage, UsageRecord

EVERYTHING = Usage(**{name: 10**i for i, name in enumerate(LEAVES)})


def record(usage: Usage = EVERYTHING, **fields: Any) -> UsageRecord:
    known = {"model": "gpt-5-mini", "provider": "openai", "customer": "cus_1"}
    return UsageRecord(id="r1", usage=usage, used_at=1_750_000_000.5, **{**known, **fields})


def values(rec: UsageRecord, *meters: TokenMeter) -> dict[tuple[Any, ...], Any]:
    lines = lines_of(rec, checked_meters(meters or None))
    found = {(line.event_name, *(v for _, v in line.dimensions)): line.value for line in lines}
    assert len(found) == len(lines), "two lines of one meter and set of dimensions"
    return found


def test_the_default_meter_takes_every_token_by_model_and_type() -> None:
    usage = Usage(input=10, cached_input=4, cached_write=2, output=7, reasoning=5)
    assert values(record(usage)) == {
        ("hypernian_tokens", "gpt-5-mini", "input"): 10,
        ("hypernian_tokens", "gpt-5-mini", "cached_input"): 4,
        ("hypernian_tokens", "gpt-5-mini", "cached_write"): 2,
        ("hypernian_tokens", "gpt-5-mini", "output"): 12,
    }


def test_audio_and_images_go_with_their_direction() -> None:
    usage = Usage(
        input_audio=1, input_image=20, cached_input_audio=300, output_audio=4000, output_image=50000
    )
    assert values(record(usage)) == {
        ("hypernian_tokens", "gpt-5-mini", "input"): 21,
        ("hypernian_tokens", "gpt-5-mini", "cached_input"): 300,
        ("hypernian_tokens", "gpt-5-mini", "output"): 54000,
    }


@given(st.lists(st.none() | st.integers(0, 2**63 - 1), min_size=len(LEAVES), max_size=len(LEAVES)))
def test_the_default_meter_bills_every_token_exactly_once(counts: list[int | None]) -> None:
    usage = Usage(**dict(zip(LEAVES, counts, strict=True)))
    assert sum(line.value for line in lines_of(record(usage), checked_meters(None))) == (usage.total or 0)


@given(
    st.sets(st.sampled_from([*ALL, *LEAVES]), min_size=1),
    st.lists(st.none() | st.integers(0, 10**6), min_size=len(LEAVES), max_size=len(LEAVES)),
    st.sampled_from([(), ("model",), ("token_type",), ("model", "token_type")]),
)
def test_a_meter_bills_the_leaves_it_takes_and_no_others(
    types: set[str], counts: list[int | None], dimensions: tuple[str, ...]
) -> None:
    usage = Usage(**dict(zip(LEAVES, counts, strict=True)))
    meter = TokenMeter("m", types=sorted(types), dimensions=dimensions)
    wanted = sum(n for leaf, n in usage.leaves() if leaf in types or TOKEN_TYPES[leaf] in types)
    assert sum(line.value for line in lines_of(record(usage), [meter])) == wanted


def test_nothing_reported_and_zero_reported_both_add_no_line() -> None:
    assert values(record(Usage())) == {}
    assert values(record(Usage(input=0, output=0))) == {}
    assert values(record(Usage(input=0, output=3))) == {("hypernian_tokens", "gpt-5-mini", "output"): 3}


def test_the_same_dimensions_with_other_leaves_are_not_mixed_up() -> None:
    meters = checked_meters(None)
    first = lines_of(record(Usage(input=1)), meters)
    second = lines_of(record(Usage(output=2)), meters)
    assert [line.value for line in first + second] == [1, 2]
    assert dict(second[0].dimensions)["token_type"] == "output"


def test_each_record_gets_its_own_dimensions() -> None:
    meters = [TokenMeter(dimensions=("model", "provider", "provenance", "feature"), types=("input",))]
    chosen = random.Random(1)
    for _ in range(300):
        model, provider, feature = (chosen.choice(["a", "b", "c", None]) for _ in range(3))
        provenance = chosen.choice(["reported", "estimated"])
        mine = {} if feature is None else {"feature": feature, "ignored": chosen.choice("xyz")}
        rec = record(Usage(input=3), model=model, provider=provider, provenance=provenance, dimensions=mine)
        (line,) = lines_of(rec, meters)
        assert dict(line.dimensions) == {
            "feature": feature or "unknown",
            "model": model or "unknown",
            "provenance": provenance,
            "provider": provider or "unknown",
        }
        assert list(line.dimensions) == sorted(line.dimensions)


def test_a_name_of_the_users_cannot_stand_in_for_the_model() -> None:
    rec = record(Usage(input=3), dimensions={"model": "cheap", "token_type": "none", "provider": "mine"})
    meter = TokenMeter(dimensions=("model", "token_type", "provider"))
    assert values(rec, meter) == {("hypernian_tokens", "gpt-5-mini", "openai", "input"): 3}


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ("x" * 300, "x" * 100),
        ("a\r\nb\x00c", "a  b c"),
        ("  padded\t", "padded"),
        ("", "unknown"),
        (" \n ", "unknown"),
        ("lone \ud800 surrogate", "lone   surrogate"),
        ("größe 模型 🙂", "größe 模型 🙂"),
        ("x" * 99 + "  y", "x" * 99),
    ],
)
def test_dimension_values_are_fit_for_a_payload(said: str, sent: str) -> None:
    (line,) = lines_of(record(Usage(input=1), model=said), [TokenMeter(dimensions=("model",))])
    assert line.dimensions == (("model", sent),)
    sent.encode("utf-8")


def test_endless_new_dimension_values_do_not_grow_memory_without_end() -> None:
    meter = TokenMeter(dimensions=("request",))
    for i in range(10_000):
        (line,) = lines_of(record(Usage(input=i + 1), dimensions={"request": str(i)}), [meter])
        assert (line.value, line.dimensions) == (i + 1, (("request", str(i)),))
    assert len(meter._plans) <= 4096


def test_keys_and_aggregation_travel_with_the_line() -> None:
    meter = TokenMeter("m", customer_key="cust", value_key="amount", aggregation="last")
    (line, *_) = lines_of(record(), [meter])
    assert (line.event_name, line.customer_key, line.value_key, line.aggregation) == (
        "m", "cust", "amount", "last",
    )  # fmt: skip


def test_a_count_meter_counts_calls() -> None:
    meter = TokenMeter("calls", aggregation="count")
    assert values(record(), meter) == {("calls", "gpt-5-mini"): 1}
    assert values(record(Usage(output=0)), meter) == {}


# Weights.


def test_weights_turn_tokens_into_credits_exactly() -> None:
    usage = Usage(input=1000, cached_input=10, output=3, reasoning=4)
    weights = {"input": "0.000001", "cached_input": Decimal("0.1"), "cached_write": 1, "output": "4"}
    meter = TokenMeter("credits", dimensions=(), weights=weights)
    assert values(record(usage), meter) == {("credits",): Decimal("29.001")}


@given(st.integers(0, 2**63 - 1), st.decimals(0, 10**14, places=12))
def test_weights_are_exact_for_any_count_and_whatever_the_decimal_context(n: int, weight: Decimal) -> None:
    meter = TokenMeter("m", types=("input",), dimensions=(), weights={"input": weight})
    with localcontext(Context(prec=3)):
        lines = lines_of(record(Usage(input=n)), [meter])
    scaled = n * int(weight.scaleb(12, Context(prec=60)))
    assert sum(int(line.value.scaleb(12, Context(prec=90))) for line in lines) == scaled  # type: ignore[union-attr]


def test_the_closest_weight_wins() -> None:
    meter = TokenMeter(
        "m",
        dimensions=(),
        types=("input", "output"),
        weights={
            "input": 1,
            "output": 10,
            "reasoning": 20,
            ("gpt-*", "output"): 30,
            ("gpt-5*", "reasoning"): 40,
            ("gpt-5-mini", "reasoning"): 50,
        },
    )

    def bills(model: str | None, **usage: int) -> Decimal:
        return values(record(Usage(**usage), model=model), meter)[("m",)]

    assert bills("claude", input=1) == 1
    assert bills("claude", output=1) == 10
    assert bills("claude", reasoning=1) == 20
    assert bills("gpt-4", output=1) == 30
    assert bills("gpt-4", reasoning=1) == 30  # a model's weight before a general one
    assert bills("gpt-5-mini", reasoning=1) == 40  # the first pattern that fits
    assert bills(None, output=2) == 20


def test_a_weight_of_zero_is_free() -> None:
    meter = TokenMeter("m", types=("input",), weights={"input": 0})
    assert values(record(Usage(input=7)), meter) == {}


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (0.1, 'text or a Decimal, such as "0.1"'),
        (True, "text or a Decimal"),
        ("abc", "not a number"),
        ("-1", "0 or more"),
        ("NaN", "0 or more"),
        ("Infinity", "0 or more"),
        ("0.0000000000001", "12 decimal places"),
        (10**15, "must be below"),
    ],
)
def test_a_weight_that_cannot_work_is_refused_with_the_fix(weight: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=r"TokenMeter\('m'\)") as caught:
        TokenMeter("m", types=("input",), weights={"input": weight})
    assert says in str(caught.value)


def test_a_token_without_a_weight_is_refused_rather_than_given_away() -> None:
    with pytest.raises(ConfigurationError, match="nothing of output"):
        TokenMeter("m", weights={"input": 1, "cached_input": 1, "cached_write": 1})
    with pytest.raises(ConfigurationError, match="nothing of input"):
        TokenMeter("m", types=("input",), weights={("gpt-*", "input"): 1})
    TokenMeter("m", types=("input",), weights={("gpt-*", "input"): 1, ("*", "input"): 2})


def test_trailing_zeros_are_not_decimal_places() -> None:
    TokenMeter("m", types=("input",), weights={"input": "1.5000000000000000"})


# Models.


def test_models_choose_by_pattern() -> None:
    small = TokenMeter("small", models=("*-mini", "*-nano"), dimensions=())
    rest = TokenMeter("rest", models=("!*-mini", "!*-nano"), dimensions=())
    for model, name in [("gpt-5-mini", "small"), ("gpt-5", "rest"), (None, "rest"), ("a.mini", "rest")]:
        assert list(values(record(Usage(input=1), model=model), small, rest)) == [(name,)]


def test_two_meters_that_would_bill_the_same_tokens_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'a' and 'b' would both bill output tokens"):
        checked_meters([TokenMeter("a", types=("output",)), TokenMeter("b", types=("input", "output"))])
    with pytest.raises(ConfigurationError, match="overlaps=True"):
        checked_meters([TokenMeter("a", models=("gpt-*",)), TokenMeter("b", models=("*-mini",))])
    with pytest.raises(ConfigurationError, match="reasoning"):
        checked_meters([TokenMeter("a", types=("reasoning",)), TokenMeter("b", types=("output",))])


def test_meters_may_overlap_where_it_is_meant_or_nothing_is_billed_twice() -> None:
    checked_meters([TokenMeter("a"), TokenMeter("b", overlaps=True)])
    checked_meters([TokenMeter("a"), TokenMeter("calls", aggregation="count")])
    checked_meters([TokenMeter("a", types=("input",)), TokenMeter("b", types=("output",))])
    checked_meters([TokenMeter("a", models=("gpt-*",)), TokenMeter("b", models=("claude-*",))])
    checked_meters([TokenMeter("a", models=("gpt-5*",)), TokenMeter("b", models=("gpt-*", "!gpt-5*"))])


@given(
    st.lists(st.text("ab*?!", min_size=1, max_size=4), min_size=1, max_size=2, unique=True),
    st.lists(st.text("ab*?!", min_size=1, max_size=4), min_size=1, max_size=2, unique=True),
    st.text("ab", min_size=1, max_size=5),
)
def test_meters_that_pass_the_check_never_bill_a_token_twice(
    one: list[str], other: list[str], model: str
) -> None:
    try:
        meters = checked_meters([TokenMeter("a", models=one), TokenMeter("b", models=other)])
    except ConfigurationError:
        return
    assert len(lines_of(record(Usage(input=1), model=model), meters)) <= 1


# What is refused.


def test_no_meters_means_the_default_one() -> None:
    assert checked_meters(None) == (TokenMeter(),)


def test_two_meters_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two meters are named 'a'"):
        checked_meters([TokenMeter("a", types=("input",)), TokenMeter("a", types=("output",))])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"event_name": ""}, "event_name"),
        ({"event_name": "x" * 101}, "101 characters"),
        ({"event_name": "a\nb"}, "control characters"),
        ({"dimensions": "model"}, "write dimensions=('model',)"),
        ({"dimensions": ("model", "model")}, "twice"),
        ({"dimensions": ("value",)}, "customer or value key"),
        ({"dimensions": ("stripe_customer_id",)}, "customer or value key"),
        ({"dimensions": ("x" * 101,)}, "101 characters"),
        ({"dimensions": (" model",)}, "outer blanks"),
        ({"types": ()}, "nothing would be billed"),
        ({"types": ("prompt",)}, "names 'prompt'"),
        ({"types": "input"}, "write types=('input',)"),
        ({"models": ()}, "names no model"),
        ({"value_key": "stripe_customer_id"}, "must differ"),
        ({"aggregation": "max"}, "sum, count, last"),
        ({"aggregation": "count", "dimensions": ("token_type",)}, "no one token_type"),
        ({"aggregation": "count", "weights": {"input": 1}}, "takes no weights"),
        ({"weights": {"prompt": 1}}, "weights names 'prompt'"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        TokenMeter(**arguments)
    assert says in str(caught.value)


def test_a_meter_can_be_compared_copied_and_hashed() -> None:
    meter = TokenMeter("m", types=["input"], dimensions=["model"], weights={"input": "2"})
    lines_of(record(), [meter])
    assert meter == TokenMeter("m", types=("input",), dimensions=("model",), weights={"input": 2})
    assert replace(meter, event_name="n").event_name == "n"
    assert len({meter, meter}) == 1
