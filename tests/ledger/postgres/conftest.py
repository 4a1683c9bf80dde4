from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llm_metering.ledger.postgres import PostgresLedger
from llm_metering.protocols import Claim, Outcome
from tests.ledger.conftest import T0
from tests.ledger.postgres.cluster import Cluster, Place, needed


class Stripe:
    """Takes an identifier once, and notices calls that must not be under way together."""

    def __init__(self) -> None:
        self.books: dict[str, int] = {}
        self.overlaps = 0
        self._under_way: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def send(self, claim: Claim, during: Callable[[], object] = lambda: None) -> Outcome:
        event = claim.event
        pair = (event.customer, event.event_name)
        with self._lock:
            self.overlaps += pair in self._under_way
            self._under_way.add(pair)
        during()
        with self._lock:
            self._under_way.discard(pair)
            if event.identifier in self.books:
                return Outcome("duplicate", 400)
            self.books[event.identifier] = int(event.payload["value"])
            return Outcome("accepted", 200)

    @property
    def total(self) -> int:
        return sum(self.books.values())


@pytest.fixture
def stripe() -> Stripe:
    return Stripe()


@pytest.fixture
def hire(place: Place) -> Iterator[Callable[..., Any]]:
    """Opens another worker on the same ledger, by default on a virtual clock."""
    hired: list[PostgresLedger] = []

    def hire(*, now: float = T0, **more: Any) -> PostgresLedger:
        given = {"random": lambda: 0.5, "clock": "caller", **more}
        ledger = PostgresLedger(place.url, schema=place.schema, **given)
        hired.append(ledger)
        ledger.open(now=now)
        return ledger

    yield hire
    for ledger in hired:
        ledger.close()


@pytest.fixture(scope="module")
def _mortal(cluster: Cluster) -> Iterator[Cluster]:
    server = Cluster(needed())
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture
def mortal(_mortal: Cluster) -> Iterator[Cluster]:
    """A server that a test may kill."""
    _mortal.stop()
    _mortal.start()
    yield _mortal
    _mortal.stop()
