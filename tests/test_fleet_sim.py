"""The fleet on paper: what is played and what the formula says agree, and the chart can be drawn."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fleet_sim import calls, events_of, expected, per_million, play, svg, zipf

pytestmark = pytest.mark.once


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_the_formula_says_what_is_played(skew: float) -> None:
    shares = zipf(2_000, skew)
    played = play(calls(50, shares, 1_000, 20_000, random.Random(7)))
    assert played.calls == 20_000
    assert played.seconds == pytest.approx(20, rel=0.05)
    for window, made in played.events.items():
        assert made == pytest.approx(expected(1_000, window, played.seconds, shares), rel=0.03)


def test_a_wider_window_never_makes_more_events_and_no_window_more_than_there_are_kinds() -> None:
    shares = zipf(1_000, 1.0)
    made = [per_million(100, window, shares) for window in (1, 10, 60, 3600)]
    assert made == sorted(made, reverse=True)
    assert made[0] < 3e6
    assert events_of(1e12, shares) == pytest.approx(1_000 * 4 * 3)


def test_the_chart_is_svg() -> None:
    root = ElementTree.fromstring(svg(zipf(100, 1.0), 1.0))
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 4
