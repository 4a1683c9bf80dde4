"""A fleet on paper: 1 000 pods and 1 000 000 customers on a virtual clock, and the meter events they make.

    python benchmarks/fleet_sim.py [--calls 1000000] [--pods 1000] [--customers 1000000] [--skew 1.0]
        [--svg FILE]

First a simulation: pods answer calls at random moments, customers call by Zipf's law, each call counts three
kinds of tokens of one of four models; what one customer used of one model and kind within one window is one
meter event. Then a formula for the same, for loads that would take hours to play through; the two are
compared on what was played. What comes out feeds docs/scale.md.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

KINDS = 3
MODELS = (0.6, 0.25, 0.1, 0.05)
"""How calls spread over models, for each customer alike."""
WINDOWS = (1, 10, 60, 3600)
RATES = (100, 1_000, 10_000, 100_000, 1_000_000)
SKEWS = (0.0, 0.8, 1.0, 1.2)
LIMITS = (("v1", 1_000), ("v2 stream", 10_000))
"""What Stripe takes from one account, events a second."""


@dataclass(frozen=True)
class Call:
    at: float
    pod: int
    customer: int
    model: int


def zipf(customers: int, skew: float) -> list[float]:
    """The share of each customer, the largest first."""
    weights = [1 / n**skew for n in range(1, customers + 1)]
    whole = math.fsum(weights)
    return [w / whole for w in weights]


# ---- the simulation


def calls(
    pods: int, shares: Sequence[float], per_s: float, count: int, dice: random.Random
) -> Iterator[Call]:
    """Calls in the order of time: each pod is a process of its own on the virtual clock."""
    whole = list(itertools.accumulate(shares))
    models = list(itertools.accumulate(MODELS))
    each = per_s / pods
    due = [(dice.expovariate(each), pod) for pod in range(pods)]
    heapq.heapify(due)
    for _ in range(count):
        at, pod = due[0]
        heapq.heapreplace(due, (at + dice.expovariate(each), pod))
        customer = bisect_left(whole, dice.random() * whole[-1])
        yield Call(at, pod, customer, bisect_left(models, dice.random() * models[-1]))


@dataclass
class Played:
    """What came of the calls."""

    calls: int
    seconds: float
    events: dict[int, int]
    """By window."""
    rows_of_pods: int
    """Rows that pods would forward if each summed up what one customer used of a model within a second."""
    busiest: int
    """Calls of the busiest customer."""


def play(found: Iterator[Call]) -> Played:
    windows: dict[int, set[tuple[int, int, int]]] = {window: set() for window in WINDOWS}
    summed: set[tuple[int, int, int, int]] = set()
    of: dict[int, int] = {}
    last = 0.0
    for call in found:
        last = call.at
        for window, seen in windows.items():
            seen.add((int(last // window), call.customer, call.model))
        summed.add((call.pod, int(last), call.customer, call.model))
        of[call.customer] = of.get(call.customer, 0) + 1
    events = {window: KINDS * len(seen) for window, seen in windows.items()}
    return Played(sum(of.values()), last, events, len(summed), max(of.values()))


# ---- the formula


def events_of(calls_in_window: float, shares: Sequence[float]) -> float:
    """Meter events of one window: a customer and model have some unless no call came, by Poisson's law."""
    return KINDS * math.fsum(
        -math.expm1(-calls_in_window * share * model) for model in MODELS for share in shares
    )


def per_million(per_s: float, window: int, shares: Sequence[float]) -> float:
    return events_of(per_s * window, shares) / (per_s * window) * 1e6


def expected(per_s: float, window: int, seconds: float, shares: Sequence[float]) -> float:
    """Of a whole run, the last window cut short."""
    whole, rest = divmod(seconds, window)
    first = whole * events_of(per_s * window, shares) if whole else 0.0
    return first + events_of(per_s * rest, shares)


# ---- what is shown


def table(shares: Sequence[float], skew: float) -> None:
    print(f"meter events a million calls, Zipf {skew}; in brackets events a second")
    print(f"{'calls/s':>10}" + "".join(f"{f'{w} s':>22}" for w in WINDOWS))
    for rate in RATES:
        cells = []
        for window in WINDOWS:
            made = per_million(rate, window, shares)
            cells.append(f"{made:,.0f} ({made * rate / 1e6:,.0f})")
        print(f"{rate:>10,}" + "".join(f"{c:>22}" for c in cells))
    print()


_SVG_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-size="13" '
    'font-family="system-ui, sans-serif" aria-label="Meter events a second by calls a second">'
)
_SVG_STYLE = (
    "<style>text{fill:#333}.a{stroke:#8885}.l{stroke:#b33;stroke-dasharray:5 4}"
    "@media (prefers-color-scheme:dark){text{fill:#ddd}}</style>"
)


def svg(shares: Sequence[float], skew: float) -> str:
    """Events a second by calls a second, a line for each window, with Stripe's limits; by powers of ten."""
    width, height, left, top, right, bottom = 760, 420, 90, 30, 690, 360

    def x(rate: float) -> float:
        return left + (math.log10(rate) - 2) / 4 * (right - left)

    def y(per_s: float) -> float:
        return bottom - math.log10(min(max(per_s, 1), 1e6)) / 6 * (bottom - top)

    parts = [
        _SVG_HEAD.format(width=width, height=height),
        _SVG_STYLE,
    ]
    for power in range(7):
        at = y(10**power)
        parts.append(f'<line class="a" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{10**power:,}</text>')
    for rate in RATES:
        parts.append(f'<text x="{x(rate):.1f}" y="{bottom + 20}" text-anchor="middle">{rate:,}</text>')
    for name, limit in LIMITS:
        at = y(limit)
        parts.append(f'<line class="l" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text x="{right}" y="{at + 16:.1f}" text-anchor="end">Stripe takes {limit:,} ({name})</text>'
        )
    for window, colour in zip(WINDOWS, ("#d95f02", "#e6ab02", "#1b9e77", "#386cb0"), strict=True):
        points = [(rate, per_million(rate, window, shares) * rate / 1e6) for rate in RATES]
        line = " ".join(f"{x(rate):.1f},{y(made):.1f}" for rate, made in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2.5" points="{line}"/>')
        rate, made = points[-1]
        parts.append(f'<text x="{x(rate) + 6:.1f}" y="{y(made) + 4:.1f}">{window} s</text>')
    parts.append(f'<text x="{left}" y="18">meter events a second, by window; Zipf {skew}</text>')
    parts.append(f'<text x="{right}" y="{bottom + 42}" text-anchor="end">calls a second</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--pods", type=int, default=1_000)
    parser.add_argument("--customers", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=10_000, help="calls a second that are played")
    parser.add_argument("--skew", type=float, default=1.0, help="Zipf's exponent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--svg", type=Path, help="write the chart here")
    args = parser.parse_args()
    shares = zipf(args.customers, args.skew)
    played = play(calls(args.pods, shares, args.rate, args.calls, random.Random(args.seed)))
    print(
        f"played {played.calls:,} calls of {args.customers:,} customers on {args.pods:,} pods in "
        f"{played.seconds:,.0f} s of virtual time, Zipf {args.skew}"
    )
    print(f"the busiest customer made {played.busiest / played.calls:.1%} of them")
    print(
        f"rows a million calls if pods summed by the second: {played.rows_of_pods / played.calls * 1e6:,.0f}"
    )
    for window, made in played.events.items():
        said = expected(args.rate, window, played.seconds, shares)
        print(
            f"{window:>6} s: {made:>9,} events played, {said:>11,.0f} by the formula, {made / said - 1:+.2%}"
        )
    print()
    for skew in SKEWS:
        table(zipf(args.customers, skew), skew)
    if args.svg:
        args.svg.write_text(svg(shares, args.skew), encoding="utf-8")


if __name__ == "__main__":
    main()
