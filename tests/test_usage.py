from __future__ import annotations

import pytest
from llm_metering.usage import LEAVES, MAX_TOKENS, TOKEN_TYPES, Usage


def test_totals_are_computed_from_disjoint_leaves() -> None:
    usage = Usage(
        input=10, cached_input=5, cached_write=2, output=7, reasoning=3, input_audio=1, output_image=4
    )
    assert (usage.input_total, usage.output_total, usage.total) == (18, 14, 32)


def test_unknown_is_none_and_never_zero() -> None:
    assert (Usage().input_total, Usage().output_total, Usage().total) == (None, None, None)
    embedding = Usage(input=8)
    assert (embedding.input_total, embedding.output_total, embedding.total) == (8, None, 8)
    assert Usage(input=0).input_total == 0


def test_a_reported_zero_counts_as_known() -> None:
    assert Usage(output=0)
    assert not Usage()
    assert Usage(output=0).as_dict() == {"output": 0}


@pytest.mark.parametrize("bad", [-1, 1.0, "12", True, float("nan"), MAX_TOKENS + 1])
@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_is_a_whole_number_that_a_ledger_can_hold(leaf: str, bad: object) -> None:
    with pytest.raises(ValueError, match=f"Usage.{leaf} must be a whole number"):
        Usage(**{leaf: bad})  # type: ignore[arg-type]


def test_the_largest_count_is_held_exactly() -> None:
    assert Usage(input=MAX_TOKENS, output=MAX_TOKENS).total == 2 * MAX_TOKENS


def test_every_leaf_has_a_token_type_and_lies_on_one_side() -> None:
    assert set(TOKEN_TYPES) == set(LEAVES)
    ones = Usage(**dict.fromkeys(LEAVES, 1))
    assert ones.total == len(LEAVES) == (ones.input_total or 0) + (ones.output_total or 0)
    inputs = [n for n in LEAVES if TOKEN_TYPES[n] != "output"]
    assert ones.input_total == len(inputs)
