"""Lives of a ledger in PostgreSQL: as in memory and in SQLite, and processes that end without a word."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from llm_metering.ledger.postgres import PostgresLedger
from llm_metering.ledger.postgres.workers import STREAMS_S
from tests.ledger.postgres.cluster import Cluster, Place
from tests.ledger.test_lives import Life, quiet


class PostgresLife(Life):
    cluster: Cluster
    place: Place

    def make(self) -> Any:
        self.place = self.cluster.new_place()
        return self.opened()

    def opened(self) -> Any:
        return PostgresLedger(self.place.url, schema=self.place.schema, clock="caller")

    def restarted(self) -> Any:
        self.ledger.close()
        return self.opened()

    @rule(late=st.booleans())
    def another_takes_over(self, late: bool) -> None:
        """Our worker is killed; another finds what it left once its leases have run out."""
        self.ledger.vanish()
        self.now += STREAMS_S + 1 if late else 61.0
        self.ledger = self.opened()
        self.ledger.open(now=self.clock)
        self.ledger.maintain(now=self.clock)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "place"):
            self.ledger.vanish()
            self.place.rows(f"DROP SCHEMA {self.place.schema} CASCADE")


@pytest.fixture(autouse=True)
def _in(cluster: Cluster) -> None:
    PostgresLife.cluster = cluster


PostgresLife.TestCase.settings = settings(
    max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=quiet
)
TestAPostgresLedgersLife = pytest.mark.slow(PostgresLife.TestCase)
