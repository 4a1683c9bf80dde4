"""What is archived leaves the tables that are at work, and breaks no promise: the books, what is known by its
id, what is on record of each event. Whole months become files."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from llm_metering.__main__ import main
from llm_metering.errors import LedgerError
from llm_metering.ledger.postgres import PostgresBooks, PostgresLedger, archiving, migrate
from llm_metering.ledger.postgres.archiving import Mover
from llm_metering.ledger.postgres.connecting import Link
from llm_metering.ledger.postgres.shelving import Archivist
from llm_metering.protocols import Outcome
from tests.ledger.conftest import BUCKET, T0, conserved, deliver, entry, line, totals

DAY = 86_400.0
OLD = T0 - 100 * DAY
BY = {"who": "ada", "why": "a test"}


def used(ledger: Any, ids: str, *, at: float, customer: str = "cus_1", **more: Any) -> None:
    made = [
        entry(i, line(3, kind="a"), line(2, kind="b"), customer=customer, used_at=at, **more)
        for i in ids.split()
    ]
    ledger.commit(made, [], now=at)


def billed(ledger: Any, ids: str, *, at: float, outcome: Outcome | None = None, **more: Any) -> list[Any]:
    used(ledger, ids, at=at, **more)
    ledger.freeze(now=at + BUCKET, bucket_s=BUCKET, everything=True)
    return [claim for _ in "ab" for claim in deliver(ledger, now=at + BUCKET, outcome=outcome)]


def moved(place: Any, before: float, step: int = 5000) -> Any:
    link, mover = Link(place.url, schema=place.schema), Mover(before, step)
    while not mover.done:
        told = link.run(mover.step)
        assert told is not None
        mover.advance(told)
    link.close()
    return mover.moved


def counted(place: Any, *tables: str) -> list[int]:
    return [place.rows(f"SELECT count(*) FROM {table}")[0][0] for table in tables]


@pytest.mark.parametrize("step", [1, 3, 5000])
def test_the_books_are_the_same_however_many_steps_it_takes(hire: Any, place: Any, step: int) -> None:
    ledger = hire(now=OLD)
    billed(ledger, "a b c", at=OLD)
    billed(ledger, "d e", at=OLD + 5 * DAY, customer="cus_2", model="other")
    billed(ledger, "young", at=T0)
    before = ledger.balances(), ledger.usage_sums(), ledger.event_sums(since=0, until=2 * T0)
    assert (moved(place, T0 - DAY, step).records, totals(ledger)["recorded"]) == (5, 30)
    assert counted(place, "usage", "meter_event", "attempt") == [1, 2, 2]
    assert counted(place, "archive_usage", "archive_event", "archive_attempt") == [5, 4, 4]
    assert (ledger.balances(), ledger.usage_sums(), ledger.event_sums(since=0, until=2 * T0)) == before
    assert conserved(ledger)
    status = ledger.status(now=T0)
    assert (status.usage_records, status.archived_records, status.archived_events) == (1, 5, 4)
    billed(ledger, "later", at=T0 + DAY)
    assert (totals(ledger)["recorded"], totals(ledger)["accepted"]) == (35, 35)


def test_a_record_that_was_archived_is_known_when_it_is_offered_again(hire: Any, place: Any) -> None:
    ledger = hire(now=OLD)
    billed(ledger, "a b", at=OLD)
    moved(place, T0 - DAY)
    again = [entry(i, line(9), used_at=T0) for i in ("a", "b", "new")]
    assert ledger.commit(again, [], now=T0) == 1
    assert ledger.freeze(now=T0 + BUCKET, bucket_s=BUCKET) == 1
    assert totals(ledger)["recorded"] == 10 + 9
    assert conserved(ledger)


def test_one_that_is_offered_while_it_is_being_moved_is_known(hire: Any, place: Any) -> None:
    """The offer waits for the step that takes the old row away, and must not take its place."""
    ledger, pod = hire(now=OLD), hire(now=OLD)
    billed(ledger, "a", at=OLD)
    link, mover = Link(place.url, schema=place.schema), Mover(T0 - DAY)
    mover.advance(link.run(mover.step))
    mover.advance((0, 0, True, False))
    offered: list[int] = []
    offering = threading.Thread(
        target=lambda: offered.append(pod.commit([entry("a", line(9), used_at=T0)], [], now=T0))
    )
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid'"

    def body(db: Any) -> Any:
        told = mover.step(db)
        offering.start()
        while not place.rows(waits)[0][0]:
            assert offering.is_alive()
        return told

    mover.advance(link.run(body))
    offering.join()
    link.close()
    assert (mover.moved.records, offered) == (1, [0])
    assert totals(ledger)["recorded"] == 5
    assert counted(place, "usage") == [0]


def test_what_somebody_may_still_move_stays_with_its_usage(hire: Any, place: Any) -> None:
    ledger = hire(now=OLD)
    billed(ledger, "doubtful", at=OLD, customer="cus_doubt", outcome=Outcome("duplicate", 400))
    billed(ledger, "dead", at=OLD + 60, customer="cus_dead", outcome=Outcome("refused_data", 400))
    billed(ledger, "gone", at=OLD + 120, customer="cus_gone", outcome=Outcome("refused_data", 400))
    names = [e.event.identifier for e in ledger.events(states=("DEAD",), customer="cus_gone")]
    ledger.write_off(names, **BY, now=OLD + 200)
    used(ledger, "nobody", at=OLD + 300, customer=None)
    used(ledger, "held", at=OLD + 300, held="why")
    assert (moved(place, T0).records, conserved(ledger)) == (1, True)
    left = {r[0] for r in place.rows("SELECT id FROM usage")}
    assert left == {"doubtful", "dead", "nobody", "held"}
    assert {e.event.customer for e in ledger.events()} == {"cus_doubt", "cus_dead"}
    assert totals(ledger)["dead"] == 10


def test_readings_of_last_meters_stay(hire: Any, place: Any) -> None:
    ledger = hire(now=OLD)
    for n, value in enumerate((5, 7)):
        ledger.commit([entry(f"r{n}", line(value, aggregation="last"), used_at=OLD + n)], [], now=OLD)
    ledger.freeze(now=OLD + BUCKET, bucket_s=BUCKET, everything=True)
    deliver(ledger, now=OLD + BUCKET)
    billed(ledger, "a", at=OLD)
    assert moved(place, T0).records == 1
    assert totals(ledger)["accepted"] == 7 + 5
    assert conserved(ledger)


def test_the_history_of_an_archived_event_is_still_there(hire: Any, place: Any) -> None:
    ledger = hire(now=OLD)
    (claim, _) = billed(ledger, "a", at=OLD)
    before = ledger.history(claim.event.identifier)
    within = ledger.events_within("cus_1", "tokens", since=0, until=T0)
    moved(place, T0)
    assert ledger.events() == []
    assert ledger.history(claim.event.identifier) == before
    assert len(before.attempts) == 1
    assert ledger.events_within("cus_1", "tokens", since=0, until=T0) == within


def test_two_that_archive_at_once_do_not_disturb_each_other(hire: Any, place: Any) -> None:
    ledger = hire(now=OLD)
    billed(ledger, " ".join(map(str, range(30))), at=OLD)
    links = [Link(place.url, schema=place.schema) for _ in range(2)]
    movers = [Mover(T0, 3) for _ in links]

    def run(link: Any, mover: Any) -> None:
        while not mover.done:
            if (told := link.run(mover.step)) is not None:
                mover.advance(told)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(links, movers, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for link in links:
        link.close()
    assert sum(m.moved.records for m in movers) == 30
    assert counted(place, "usage", "archive_usage", "archived_record") == [0, 30, 30]
    assert totals(ledger)["recorded"] == 150
    assert conserved(ledger)


def test_a_worker_archives_beside_its_work_where_it_is_told_to(hire: Any, place: Any) -> None:
    ledger = hire(now=OLD, archive_after_s=40 * DAY)
    billed(ledger, "a", at=OLD)
    ledger.maintain(now=OLD + 39 * DAY)
    assert counted(place, "usage") == [1]
    for hours in range(3):
        ledger.maintain(now=OLD + 42 * DAY + hours * 3601)
    assert counted(place, "usage", "meter_event", "archive_usage") == [0, 0, 1]
    assert conserved(ledger)


def test_a_worker_that_may_make_no_tables_delivers_and_says_so(hire: Any, monkeypatch: Any) -> None:
    ledger = hire(now=OLD, archive_after_s=40 * DAY)
    billed(ledger, "a", at=OLD)

    def refused(*_: Any) -> None:
        raise LedgerError("the ledger does not let us: must be owner of table archive_usage")

    monkeypatch.setattr(archiving, "make_months", refused)
    ledger.maintain(now=OLD + 42 * DAY)
    assert [alarm.name for alarm in ledger.take_alarms()] == ["ledger.not_archived"]
    billed(ledger, "b", at=OLD + 42 * DAY)
    assert totals(ledger)["accepted"] == 10


def test_whole_months_become_files_and_are_dropped_and_the_sums_stay(
    hire: Any, place: Any, tmp_path: Path
) -> None:
    ledger = hire(now=OLD)
    nasty = 'quoted "x", back\\slash\n, Ünicode'
    billed(ledger, "a b", at=OLD, model=nasty)
    billed(ledger, "c", at=OLD + 65 * DAY)
    before = ledger.balances()
    moved(place, T0 - DAY)
    archivist = Archivist(place.url, schema=place.schema)
    age = archivist._link.run(lambda db: db.clock()) - (OLD + 40 * DAY)
    files = archivist.shelve(tmp_path, age)
    assert {(f.kind, f.rows) for f in files} == {("usage", 2), ("event", 2), ("attempt", 2)}
    (name,) = (f.file for f in files if f.kind == "usage")
    with gzip.open(name, "rt", encoding="utf-8") as lines:
        found = [json.loads(text) for text in lines]
    assert {(row["id"], row["model"]) for row in found} == {("a", nasty), ("b", nasty)}
    assert Path(name).stat().st_mode & 0o077 == 0
    assert counted(place, "archive_usage", "archive_event") == [1, 2]
    assert ledger.balances() == before
    assert conserved(ledger)
    assert ledger.commit([entry("a", line(9), used_at=T0)], [], now=T0) == 0, "known for good"
    with pytest.raises(LedgerError, match="were archived to files"):
        ledger.event_sums(since=OLD, until=T0)
    assert ledger.event_sums(since=T0 - 40 * DAY, until=T0)
    assert archivist.shelve(tmp_path, age) == []
    archivist.close()


def test_a_file_that_cannot_be_written_drops_nothing(hire: Any, place: Any, tmp_path: Path) -> None:
    ledger = hire(now=OLD)
    billed(ledger, "a", at=OLD)
    moved(place, T0 - DAY)
    (tmp_path / "usage-2023-08.jsonl.gz.part").mkdir()
    archivist = Archivist(place.url, schema=place.schema)
    with pytest.raises(OSError, match="usage-2023-08"):
        archivist.shelve(tmp_path, 50 * DAY)
    archivist.close()
    assert counted(place, "archive_usage") == [1]


def test_the_command_archives_and_says_what(cluster: Any, tmp_path: Path, capsys: Any) -> None:
    url = str(cluster.new_database())
    migrate(url)
    ledger = PostgresLedger(url, clock="caller", random=lambda: 0.5)
    ledger.open(now=OLD)
    billed(ledger, "a b", at=OLD)
    ledger.close()
    given = ["--older-than", "90d", "--to", str(tmp_path), "--ledger", url]
    code = main(["ledger", "archive", *given, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (code, document["archived"]) == (0, {"events": 2, "records": 2})
    assert sorted(f["kind"] for f in document["files"]) == ["attempt", "event", "usage"]
    assert main(["ledger", "archive", "--older-than", "39", "--ledger", url]) == 2
    assert main(["ledger", "archive", "--older-than", "soon", "--ledger", url]) == 2
    assert conserved(PostgresBooks(url))
