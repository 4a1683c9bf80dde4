"""Whole columns as literals: what goes in comes out, whatever it holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llm_metering.ledger.postgres.connecting import Link
from llm_metering.ledger.postgres.storable import floats, storable, texts, whole

NASTY = ["", "NULL", "{}", '"', "\\", '\\"', "a,b", " a ", "\x1e", "\x1f", "é", "\ud800", "\x00", None, "'"]
values = st.one_of(st.none(), st.sampled_from(NASTY), st.text(st.characters()))


@pytest.fixture(scope="module")
def link(cluster: Any) -> Any:
    link = Link(cluster.url(), schema="public")
    yield link
    link.close()


@given(column=st.lists(values, max_size=20))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_column_of_texts_comes_back_as_it_was(link: Any, column: list[str | None]) -> None:
    (back,) = link.run(lambda db: db.one("SELECT %(c)s::text[]", c=texts(column)))
    assert back == [storable(v) for v in column]


@pytest.mark.parametrize("column", [[], [1], [None, 2**62, -5]])
def test_a_column_of_whole_numbers_comes_back_as_it_was(link: Any, column: list[int | None]) -> None:
    assert link.run(lambda db: db.one("SELECT %(c)s::bigint[]", c=whole(column))) == (column,)


@pytest.mark.parametrize("column", [[], [1], [None, 1e-300, 0.1, -5]])
def test_a_column_of_floats_comes_back_to_the_last_bit(link: Any, column: list[float | None]) -> None:
    assert link.run(lambda db: db.one("SELECT %(c)s::float8[]", c=floats(column))) == (column,)
