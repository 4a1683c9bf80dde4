"""Whether usage is safe right now, for programs and for probes."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import anyio
import pytest
from llm_metering import (
    Health,
    MemoryLedger,
    MemorySender,
    Metering,
    Outcome,
    Settings,
    Usage,
    health_endpoint,
)
from llm_metering.ledger import LedgerView
from llm_metering.protocols import Pulse
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient


def metering_of(ledger: Any, sender: MemorySender | None = None, **options: Any) -> Metering:
    return Metering(ledger=ledger, sender=sender or MemorySender(), settings=Settings(**options))


def client_of(metering: Any) -> TestClient:
    return TestClient(Starlette(routes=[Mount("/health", health_endpoint(metering))]))


@pytest.fixture(params=["memory", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return MemoryLedger() if request.param == "memory" else tmp_path / "ledger"


def test_a_metering_that_runs_is_ready(place: Any) -> None:
    with metering_of(place) as metering:
        metering.record(Usage(input=5), customer="cus_1")
        assert metering.flush(10) == 0
        health = metering.health()
    assert (health.ready, health.reasons, health.queued_records) == (True, (), 0)
    assert (health.oldest_pending_age_s, health.paused) == (None, None)
    assert health.counters["delivery.accepted"] == 1
    assert (health.disk_free_bytes is None) == isinstance(place, MemoryLedger)


def test_before_the_start_and_after_the_stop_it_is_not_ready(place: Any) -> None:
    metering = metering_of(place)
    assert metering.health().ready is False
    assert "metering has not started" in metering.health().reasons
    metering.start()
    assert metering.health().ready is True
    metering.stop()
    assert metering.health().reasons == ("metering is stopped",)


def test_what_waits_is_as_old_as_its_oldest_use(place: Any) -> None:
    now = [1_700_000_000.0]
    metering = Metering(ledger=place, sender=MemorySender(), settings=Settings(), now=lambda: now[0])
    with metering:
        metering.run_on_ledger(lambda ledger: ledger.pause(who="ada", why="x", now=now[0]))
        metering.record(Usage(input=5), customer="cus_1", used_at=now[0] - 50)
        metering.record(Usage(input=5), customer="cus_1", used_at=now[0] - 20)
        metering.run_on_ledger(lambda ledger: ledger.freeze(now=now[0], bucket_s=1))
        metering.record(Usage(input=5), used_at=now[0] - 900)  # nobody's: a person's turn, not Stripe's
        now[0] += 10
        health = metering.health()
    assert health.oldest_pending_age_s == 60
    assert health.ready


@pytest.mark.parametrize("by", ["key", "person"])
def test_a_pause_is_told_and_is_no_lack_of_readiness(place: Any, by: str) -> None:
    sender = MemorySender(otherwise=Outcome("refused_config", 401, message="bad key sk_test_abcdefgh1234"))
    with metering_of(place, sender) as metering:
        if by == "person":
            metering.run_on_ledger(lambda ledger: ledger.pause(who="ada", why="prices", now=0.0))
        metering.record(Usage(input=5), customer="cus_1")
        metering.flush(5)
        health = metering.health()
    assert health.ready
    assert ("ada: prices" if by == "person" else "bad key") in str(health.paused)
    assert "abcdefgh" not in str(health)


def test_a_disk_that_takes_no_writes_makes_it_unready_until_it_does(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    with metering_of(folder, durability="memory") as metering:
        metering.record(Usage(input=5), customer="cus_1")
        metering.run_on_ledger(lambda ledger: None)
        (lane,) = folder.glob("lane-*.db")
        lock = sqlite3.connect(lane, isolation_level=None)
        # As a full disk would: every write of the service's fails at once.
        metering._way.ledger._lanes.get(metering._way.ledger.lane).db.execute("PRAGMA busy_timeout = 0")  # type: ignore[attr-defined]
        lock.execute("BEGIN IMMEDIATE")
        metering.record(Usage(input=6), customer="cus_1")
        unready = until(lambda: metering.health(), lambda h: not h.ready)
        assert any("cannot be written" in reason for reason in unready.reasons)
        lock.execute("ROLLBACK")
        lock.close()
        assert until(lambda: metering.health(), lambda h: h.ready).reasons == ()


@pytest.mark.parametrize(
    ("pulse", "reason"),
    [
        (Pulse(disk_free_bytes=10_000), "10000 bytes are free"),
        (Pulse(disk_free_bytes=9 * 2**20), "9437184 bytes are free"),
        (Pulse(disk_free_bytes=2**30, is_full=True), "no room"),
        (Pulse(disk_free_bytes=2**30, read_only=True), "read-only"),
    ],
    ids=["full", "below min_free_bytes", "struck", "read-only"],
)
def test_a_disk_without_room_makes_it_unready_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pulse: Pulse, reason: str
) -> None:
    with metering_of(tmp_path / "ledger", min_free_bytes=10 * 2**20) as metering:
        assert metering.health().ready
        monkeypatch.setattr(LedgerView, "pulse", lambda _: pulse)
        assert [reason in found for found in metering.health().reasons] == [True]


def until(look: Any, what: Any) -> Any:
    import time

    deadline = time.monotonic() + 20
    while not what(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def test_a_ledger_that_cannot_be_read_is_told_and_raises_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    with metering_of(folder) as metering:
        metering.record(Usage(input=5), customer="cus_1")
        metering.flush(5)
        folder.rename(tmp_path / "gone")
        health = metering.health()
        assert not health.ready
        assert any("cannot be read" in reason for reason in health.reasons)
        (tmp_path / "gone").rename(folder)


def test_a_probe_gets_200_while_usage_is_safe_and_503_when_not(place: Any) -> None:
    metering = metering_of(place)
    with metering, client_of(metering) as client:
        answer = client.get("/health")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json()["ready"] is True
        assert client.head("/health").status_code == 200
        assert client.head("/health").content == b""
        assert client.post("/health").status_code == 405
        metering.stop()
        answer = client.get("/health")
        assert answer.status_code == 503
        assert answer.json()["reasons"] == ["metering is stopped"]


def test_a_probe_starts_metering_where_nothing_else_has(place: Any) -> None:
    metering = metering_of(place)
    with client_of(metering) as client:
        until(lambda: client.get("/health").status_code, lambda code: code == 200)
    assert metering.is_started
    metering.stop()


def test_no_secret_comes_out_of_the_endpoint() -> None:
    class Leaky:
        def health(self) -> Health:
            return Health(
                ready=False,
                reasons=("key sk_live_51Habcdefghijk\nrefused",),
                queued_records=1,
                oldest_pending_age_s=1.5,
                paused="Bearer rk_live_51Habcdefghijk",
                disk_free_bytes=7,
                counters={"delivery.accepted": 3},
            )

        def start_soon(self) -> None: ...

    with client_of(Leaky()) as client:
        body = client.get("/health").text
    assert "51Habc" not in body
    assert json.loads(body)["counters"] == {"delivery.accepted": 3}
    assert "\n" not in json.loads(body)["reasons"][0]


def test_other_protocols_are_not_answered() -> None:
    async def nothing(*_: Any) -> Any:
        raise AssertionError

    with pytest.raises(RuntimeError, match="websocket"):
        anyio.run(health_endpoint(metering_of(MemoryLedger())), {"type": "websocket"}, nothing, nothing)
