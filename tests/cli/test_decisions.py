"""What an operator does by hand: looking, replaying, writing off, settling, assigning, pausing."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_metering.cli.screen import moment
from llm_metering.ledger import LedgerView, SqliteLedger
from llm_metering.protocols import Outcome
from tests.cli.conftest import entry

WHY = ("--reason", "as told", "--who", "ada")


@pytest.fixture
def held(tmp_path: Path) -> Iterator[SqliteLedger]:
    """A ledger of today with something of every kind, held by a service that does nothing by itself."""
    used_at = time.time() - 3600
    made = SqliteLedger(tmp_path / "ledger")
    made.open(now=used_at)
    usages = {"cus_accepted": 100, "cus_dead": 20, "cus_gone": 7, "cus_doubt": 3}
    made.commit([entry(customer, value, used_at) for customer, value in usages.items()], [], now=used_at)
    odd = [
        entry(None, 50, used_at),
        entry(None, 51, used_at),
        entry("cus_held", 9, used_at, held="unreadable"),
    ]
    made.commit(odd, [], now=used_at)
    made.freeze(now=used_at + 120, bucket_s=60)
    kinds: dict[str, Any] = {"cus_accepted": "accepted", "cus_doubt": "duplicate"}
    for claim in made.claim(now=used_at + 121, limit=10):
        kind = kinds.get(claim.event.customer, "refused_data")
        made.finish(
            claim, Outcome(kind, 400, message="No such customer", request_id="req_7"), now=used_at + 122
        )
    yield made
    made.close()


@pytest.fixture
def left(held: SqliteLedger) -> Path:
    """The same, left behind by a process that has ended."""
    held.close()
    return held.folder


@pytest.fixture
def serving(held: SqliteLedger) -> Iterator[SqliteLedger]:
    """The same, with a service that takes its rounds."""
    over = threading.Event()

    def rounds() -> None:
        while not over.wait(0.02):
            held.maintain(now=time.time())

    thread = threading.Thread(target=rounds)
    thread.start()
    yield held
    over.set()
    thread.join()


@pytest.fixture
def do(run: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Run a command on that ledger."""
    return lambda *argv: run(*argv, "--ledger", str(tmp_path / "ledger"))


def events(folder: Path, state: str) -> dict[str, str]:
    """Identifiers by customer."""
    found = LedgerView(folder).events(states=[state])  # type: ignore[list-item]
    return {row.event.customer: row.event.identifier for row in found}


def is_conserved(folder: Path) -> bool:
    return LedgerView(folder).status(now=time.time()).conserved


# ---- looking


def test_events_are_listed_by_state_customer_and_time(do, left) -> None:
    assert len(do("events", "list", "--json").document["events"]) == 4
    (one,) = do("events", "list", "--state", "in-doubt", "--json").document["events"]
    assert (one["customer"], one["state"], one["value"]) == ("cus_doubt", "IN_DOUBT", "3")
    (one,) = do("events", "list", "--customer", "cus_dead", "--json").document["events"]
    assert "No such customer" in one["reason"]
    assert len(do("events", "list", "--since", "2h", "--json").document["events"]) == 4
    assert do("events", "list", "--since", "30m", "--json").document["events"] == []
    assert len(do("events", "list", "--limit", "2", "--json").document["events"]) == 2
    shown = do("events", "list", "--state", "dead", "--state", "accepted").out
    assert "cus_dead" in shown
    assert "cus_accepted" in shown
    assert "cus_doubt" not in shown


def test_one_event_is_shown_with_all_that_is_on_record(do, left) -> None:
    identifier = events(left, "DEAD")["cus_dead"]
    do("dead", "write-off", identifier, *WHY, "--yes")
    document = do("events", "show", identifier, "--json").document
    assert document["event"]["written_off"] is True
    assert [(a["outcome"], a["request_id"]) for a in document["attempts"]] == [("refused_data", "req_7")]
    assert [(a["who"], a["why"], a["what"]) for a in document["actions"]] == [("ada", "as told", "write_off")]
    shown = do("events", "show", identifier).out
    for said in ("No such customer", "req_7", "ada", "as told", "write_off", "DEAD, written off"):
        assert said in shown, said


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["events", "show", "nobody"], 1, "no meter event nobody"),
        (["events", "list", "--state", "lost"], 2, "a meter event is PENDING"),
        (["events", "list", "--since", "soon"], 2, "24h"),
        (["dead", "replay", "nobody", *WHY, "--yes"], 1, "no meter event nobody"),
        (["dead", "replay", *WHY, "--yes"], 2, "or say --all"),
        (["dead", "replay", "x", "--all", *WHY, "--yes"], 2, "or say --all"),
        (["dead", "replay", "--all", "--yes"], 2, "--reason"),
        (["dead", "replay", "--all", "--reason", " ", "--yes"], 2, "--reason"),
        (["doubt", "resolve", "x", *WHY, "--yes"], 2, "--arrived or --not-arrived"),
        (["unresolved", "assign", "--customer", "cus 1", "--all", *WHY, "--yes"], 2, "cannot be billed"),
        (["unresolved", "assign", "nobody", "--customer", "cus_1", *WHY, "--yes"], 1, "no such unresolved"),
        (["held", "release", "nobody", *WHY, "--yes"], 1, "no such held"),
        (["dead", "replay", "--all", *WHY], 2, "say --yes"),
        (["dead", "replay", "--all", *WHY, "--json"], 2, "say --yes"),
        (["pause", *WHY], 2, "say --yes"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_changes_nothing(do, left, argv, code, sentence) -> None:
    before = {row.event.identifier: row.state for row in LedgerView(left).events()}
    ran = do(*argv)
    assert ran.code == code, ran.err
    assert sentence in ran.err
    assert ran.err.count("\n") == 1, ran.err
    assert {row.event.identifier: row.state for row in LedgerView(left).events()} == before
    assert LedgerView(left).pause() is None


# ---- deciding


@pytest.mark.parametrize("place", ["left", "serving"])
def test_all_that_is_dead_is_replayed_once_with_and_without_a_service(do, request, tmp_path, place) -> None:
    request.getfixturevalue(place)
    folder = tmp_path / "ledger"
    dead = events(folder, "DEAD")
    ran = do("dead", "replay", "--all", *WHY, "--yes", "--json")
    assert ran.code == 0, ran.out
    assert {r["subject"] for r in ran.document["done"]} == set(dead.values())
    assert events(folder, "PENDING").keys() == dead.keys()
    again = do("dead", "replay", *dead.values(), *WHY, "--yes", "--json")
    assert again.code == 1
    assert len(again.document["refused"]) == 2
    assert do("dead", "replay", "--all", *WHY, "--yes").code == 0
    assert len(events(folder, "PENDING")) == 2
    assert len(LedgerView(folder).events()) == 6
    assert is_conserved(folder)


def test_replays_that_run_in_parallel_make_one_child_each(spawn, left) -> None:
    done: list[Any] = []
    argv = ("dead", "replay", *events(left, "DEAD").values(), *WHY, "--yes", "--json", "--ledger", str(left))
    threads = [threading.Thread(target=lambda: done.append(spawn(*argv))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(ran.document.get("done", ())) for ran in done) == 2, [ran.out for ran in done]
    assert len(LedgerView(left).events()) == 6
    assert is_conserved(left)


def test_what_was_written_off_nags_nobody_and_stays_in_the_books(do, left) -> None:
    assert do("dead", "write-off", "--all", *WHY, "--yes").code == 0
    assert do("dead", "list", "--json").document["events"] == []
    assert len(do("dead", "list", "--written-off", "--json").document["events"]) == 2
    status = do("status", "--json").document
    assert (status["status"]["events"]["DEAD"], status["status"]["written_off"]) == (2, 2)
    assert status["totals"]["dead"] == "27"
    assert "2, of which 2 written off" in do("status").out
    assert do("dead", "write-off", "--all", *WHY, "--yes").code == 0
    assert do("dead", "replay", "--all", *WHY, "--yes", "--json").document["done"] == []


@pytest.mark.parametrize(("said", "state"), [("--arrived", "ACCEPTED"), ("--not-arrived", "CLOSED")])
def test_a_doubt_is_settled_by_a_persons_word(do, left, said, state) -> None:
    (one,) = do("doubt", "list", "--json").document["events"]
    ran = do("doubt", "resolve", one["identifier"], said, *WHY, "--yes")
    assert ran.code == 0
    assert "1 settled." in ran.out
    assert events(left, state)["cus_doubt"] == one["identifier"]
    assert ("cus_doubt" in events(left, "PENDING")) == (said == "--not-arrived")
    assert is_conserved(left)


@pytest.mark.parametrize("named", [["rec_None_50"], ["--ids", "rec_None_50"]])
def test_named_usage_gets_its_customer_and_other_usage_stays(do, left, named) -> None:
    assert len(do("unresolved", "list", "--json").document["unresolved"]) == 2
    ran = do("unresolved", "assign", *named, "--customer", "cus_9", *WHY, "--yes", "--json")
    assert [(r["subject"], r["before"], r["after"]) for r in ran.document["done"]] == [
        ("rec_None_50", None, "cus_9")
    ]
    (still,) = do("unresolved", "list", "--json").document["unresolved"]
    assert still["id"] == "rec_None_51"
    assert is_conserved(left)


def test_all_unresolved_usage_is_assigned_beside_a_service(do, serving) -> None:
    ran = do("unresolved", "assign", "--all", "--customer", "cus_9", *WHY, "--yes")
    assert ran.code == 0, ran.err
    assert "2 assigned to cus_9." in ran.out
    assert serving.status(now=time.time()).unresolved_records == 0
    assert do("unresolved", "assign", "--all", "--customer", "cus_9", *WHY, "--yes").code == 0


def test_held_usage_is_released(do, left) -> None:
    (one,) = do("held", "list", "--json").document["held"]
    assert (one["id"], one["held"], one["counts"]) == ("rec_cus_held_9", "unreadable", {"input": 9})
    assert do("held", "release", one["id"], *WHY, "--yes").code == 0
    assert do("held", "list", "--json").document["held"] == []
    assert LedgerView(left).status(now=time.time()).held_records == 0


def test_a_service_that_does_not_come_to_it_in_time_is_said_so_and_does_it_later(do, held) -> None:
    ran = do("dead", "replay", "--all", *WHY, "--yes", "--wait", "0.1", "--json")
    assert ran.code == 1
    assert len(ran.document["waiting"]) == 2
    assert do("status", "--json").document["status"]["decisions_waiting"] == 1
    held.maintain(now=time.time())
    assert len(events(held.folder, "PENDING")) == 2
    assert len(LedgerView(held.folder).events()) == 6


def test_a_pause_says_what_falls_in_doubt_if_it_lasts_and_so_does_status(do, held) -> None:
    now = time.time()
    held.commit([entry("cus_new", 5, now - 300)], [], now=now - 300)
    held.freeze(now=now, bucket_s=60)
    (claim,) = held.claim(now=now, limit=1)
    held.finish(claim, Outcome("ambiguous", message="no answer"), now=now)
    held.close()
    ran = do("pause", *WHY, "--yes", "--wait", "0")
    until = moment(now + 22 * 3600)
    assert f"They can be sent again until {until}" in ran.out
    out = do("status").out
    assert f"by {until} what Stripe may have has to be sent again, or it falls in doubt" in out
    assert "llm-metering resume" in out


def test_a_pause_is_shown_with_who_when_and_why_until_it_is_lifted(do, serving) -> None:
    assert do("pause", "--reason", "prices are wrong", "--who", "ada", "--yes").code == 0
    shown = do("status").out
    assert "paused by ada: prices are wrong, 0 s ago" in shown
    status = do("status", "--json").document["status"]
    assert (status["paused_by"]["who"], status["paused_by"]["why"]) == ("ada", "prices are wrong")
    assert do("status", "--check").code == 1
    ran = do("resume", "--yes", "--json")
    assert (ran.code, ran.document["paused"], ran.document["on_record"]) == (0, False, True)
    assert "not paused" in do("status").out
    assert do("resume", "--yes", "--json").document["changed"] is False


def test_who_decides_is_this_user_unless_told_otherwise(do, left, monkeypatch) -> None:
    monkeypatch.setenv("LOGNAME", "grace")
    identifier = events(left, "DEAD")["cus_dead"]
    do("dead", "write-off", identifier, "--reason", "x", "--yes")
    (action,) = do("events", "show", identifier, "--json").document["actions"]
    assert action["who"].startswith("grace@")


def test_status_tells_the_room_on_the_disk_and_where_to_look(do, left) -> None:
    out = do("status").out
    assert "2; see: llm-metering dead list" in out
    assert "1; see: llm-metering doubt list" in out
    assert "GiB" in out
    assert do("status", "--json").document["status"]["disk_free_bytes"] > 0


# ---- asking


def on_a_terminal(answer: str, *argv: str) -> tuple[int, str]:
    """Run a command on a terminal of its own and answer its question."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_metering", *argv],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TERM": "dumb"},
    )
    os.write(ours, f"{answer}\n".encode())
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    return process.returncode, out


@pytest.mark.parametrize(("answer", "code", "written_off"), [("n", 1, 0), ("", 1, 0), ("y", 0, 2)])
def test_it_shows_what_it_is_about_to_do_and_asks(left, answer, code, written_off) -> None:
    returned, out = on_a_terminal(answer, "dead", "write-off", "--all", *WHY, "--ledger", str(left))
    assert returned == code, out
    assert "cus_dead" in out
    assert "2 meter events, 27 in all, to be written off: this usage will never be billed." in out
    assert "Write off 2 meter events?" in out
    assert ("nothing was changed" in out) == (code == 1)
    assert LedgerView(left).status(now=time.time()).written_off == written_off


def test_errors_are_documents_with_json(do, left) -> None:
    assert "nobody" in json.loads(do("events", "show", "nobody", "--json").out)["error"]
