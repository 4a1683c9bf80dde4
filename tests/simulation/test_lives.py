"""Two thousand lives at random, each with outages of every kind, crashes at any step and clocks that jump.

    python -m tests.simulation --seeds 1 --start <seed> --ledger memory --trace

plays one again and tells its story; `make simulate` plays a hundred thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from tests.simulation.__main__ import kind_of
from tests.simulation.lives import Tally, end_cluster, live
from tests.simulation.stripe import WELL, SimulatedStripe
from tests.simulation.world import BrokenRule

SEEDS = 2000
CHUNK = 100


@pytest.mark.slow
@pytest.mark.parametrize("start", range(CHUNK, SEEDS, CHUNK))
def test_whatever_happens_the_promises_hold_at_length(start: int) -> None:
    lives(range(start, start + CHUNK))


def test_whatever_happens_the_promises_hold() -> None:
    """A share of the same lives, which is enough to show that everything that can happen does; and some more
    in files, of which few would show two calls at a time."""
    tallies = [*lives(range(CHUNK)), *lives(range(1, 7), "sqlite")]
    states = sum((t.states for t in tallies), Counter[str]())
    assert states["ACCEPTED"] > 1000
    assert states["IN_DOUBT"] > 50
    assert states["DEAD"] > 10
    assert sum(t.crashes for t in tallies) > 100
    assert sum(t.jumps for t in tallies) > 50
    assert sum(t.reboots for t in tallies) > 50
    assert sum(t.checks for t in tallies) > 1000
    assert {t.kind for t in tallies} == {"memory", "sqlite"}


@pytest.fixture(scope="session", autouse=True)
def _no_server_is_left() -> Iterator[None]:
    yield
    end_cluster()


@pytest.mark.slow
def test_whatever_happens_the_promises_hold_in_postgresql() -> None:
    """Few lives, since each statement goes to a server and back; at length with `--ledger postgres`."""
    tallies = lives(range(1, 3), "postgres")
    assert sum(t.crashes for t in tallies) > 3
    assert sum(t.states["ACCEPTED"] for t in tallies) > 30


@pytest.mark.slow
def test_whatever_happens_the_promises_hold_in_postgresql_at_length() -> None:
    tallies = lives(range(4, 10), "postgres")
    assert sum(t.jumps for t in tallies) > 3


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_seed_is_the_same_life_each_time(kind: str) -> None:
    seed = 12  # a short life with many deaths
    stories: list[list[str]] = [[], []]
    first = live(seed, kind, say=stories[0].append)  # type: ignore[arg-type]
    assert live(seed, kind, say=stories[1].append) == first  # type: ignore[arg-type]
    assert stories[0] == stories[1]
    assert len(stories[0]) > 3


def test_a_promise_that_is_broken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Stripe that forgets what it has, or that says it has what it has not, must not go by."""
    monkeypatch.setattr("tests.simulation.stripe.WINDOW_S", 0.0)
    with pytest.raises(BrokenRule, match="billed twice"):
        lives(range(40))


def test_usage_that_vanishes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    receive = SimulatedStripe.receive

    def lose(self: SimulatedStripe, event: object) -> object:
        outcome = receive(self, event)  # type: ignore[arg-type]
        if len(self.books) == 5 and self.trouble == WELL:
            del self.books[next(iter(self.books))]
        return outcome

    monkeypatch.setattr(SimulatedStripe, "receive", lose)
    with pytest.raises(BrokenRule, match="never arrived"):
        lives(range(1, 20))


def lives(seeds: range, ledger: str = "mixed") -> list[Tally]:
    tallies = []
    for seed in seeds:
        kind = kind_of(seed, ledger)
        try:
            tallies.append(live(seed, kind))
        except BrokenRule as exc:
            raise BrokenRule(f"seed {seed} ({kind}): {exc}") from exc
    return tallies
