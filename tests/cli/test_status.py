"""`status` and `usage` show the books of a ledger that a service has open, and change nothing."""

from __future__ import annotations

import csv
import gc
import hashlib
import io
import time
from pathlib import Path

from llm_metering.ledger import SqliteLedger

from .conftest import entry


def digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(folder.glob("*.db")):
        whole.update(path.read_bytes())
    return whole.hexdigest()


def test_status_shows_what_became_of_everything(run, ledger) -> None:
    ran = run("status", "--ledger", str(ledger.folder), "--json")
    assert ran.code == 0
    document = ran.document
    assert document["totals"] == {
        "recorded": "186",
        "pending": "63",
        "accepted": "100",
        "in_doubt": "3",
        "dead": "20",
    }
    status = document["status"]
    assert (status["account"], status["conserved"], status["lanes"]) == ("acct_1 (test)", True, 1)
    assert (status["unresolved_records"], status["held_records"]) == (1, 1)
    assert status["events"]["ACCEPTED"] == 1
    by_customer = {b["customer"]: b["conserved"] for b in document["balances"]}
    assert by_customer[None] is True
    assert by_customer["cus_doubt"] is True


def test_status_for_people_says_the_same(run, ledger) -> None:
    out = run("status", "--ledger", str(ledger.folder)).out
    for shown in (
        "acct_1 (test)",
        "conserved",
        "yes",
        "not paused",
        "1 accepted",
        "1 dead",
        "1 in_doubt",
        "(unresolved)",
        "gpt-5-mini",
        "d ago (2023-11-14 22:14 UTC)",
    ):
        assert shown in out, shown


def test_check_exits_with_1_where_a_person_is_needed(run, ledger, tmp_path) -> None:
    assert run("status", "--check", "--ledger", str(ledger.folder)).code == 1
    calm = SqliteLedger(tmp_path / "calm")
    calm.open(now=1.0)
    assert run("status", "--check", "--ledger", str(tmp_path / "calm")).code == 0
    calm.set_meta("paused", "Stripe does not accept this API key")
    ran = run("status", "--check", "--ledger", str(tmp_path / "calm"))
    assert ran.code == 1
    assert "paused: Stripe does not accept this API key" in ran.out
    calm.close()


def test_looking_changes_nothing(run, ledger) -> None:
    before = digest(ledger.folder)
    names = sorted(path.name for path in ledger.folder.iterdir())
    run("status", "--ledger", str(ledger.folder))
    run("usage", "--ledger", str(ledger.folder))
    assert digest(ledger.folder) == before
    assert sorted(path.name for path in ledger.folder.iterdir()) == names


def test_the_environment_names_the_ledger(run, ledger, monkeypatch) -> None:
    monkeypatch.setenv("LLM_METERING_LEDGER", str(ledger.folder))
    assert run("status").code == 0


def test_usage_is_shown_by_customer_model_and_token_type(run, ledger) -> None:
    usages = run("usage", "--ledger", str(ledger.folder), "--json").document["usage"]
    assert {
        "customer": "cus_accepted",
        "model": "gpt-5-mini",
        "token_type": "input",
        "event_name": "hypernian_tokens",
        "value": "100",
    } in usages
    assert usages[-1]["customer"] is None
    one = run("usage", "--ledger", str(ledger.folder), "--customer", "cus_dead", "--json").document["usage"]
    assert [u["value"] for u in one] == ["20"]


def test_usage_can_be_read_by_a_spreadsheet(run, ledger) -> None:
    rows = list(csv.DictReader(io.StringIO(run("usage", "--ledger", str(ledger.folder), "--csv").out)))
    assert sum(int(row["value"]) for row in rows if row["customer"]) >= 127
    assert {row["token_type"] for row in rows} == {"input"}


def test_usage_that_no_process_makes_events_of_is_said_to_wait_for_one(run, tmp_path, monkeypatch) -> None:
    left = SqliteLedger(tmp_path / "left")
    left.open(now=1000.0)
    left.commit([entry("cus_1", 3, 1000.0)], [], now=1000.0)
    left.close()
    for later_s, why in (
        (60.0, "a meter event is made when its minute is over"),
        (3600.0, "nobody has made one"),
    ):
        monkeypatch.setattr(time, "time", lambda at=1000.0 + later_s: at)
        [said] = run("status", "--ledger", str(left.folder), "--json").document["explanations"]
        assert said["about"] == "unfrozen"
        assert said["why"].startswith(why)
    assert said["todo"] == "start the service, or send it with `llm-metering deliver --once`"


def test_what_deliver_once_cannot_send_is_told_with_what_to_do(run, at, tmp_path: Path) -> None:
    """An operator may take the folder for done with, and throw it away."""
    folder, now = tmp_path / "old", time.time()
    old = SqliteLedger(folder)
    old.open(now=now)
    usage = [entry("cus_sent", 4, now), entry(None, 50, now), entry("cus_held", 9, now, held="unreadable")]
    old.commit(usage, [], now=now)
    old.close()
    run("setup", "pay-as-you-go", *at)
    ran = run("deliver", "--once", "--timeout", "30", "--ledger", str(folder), *at)
    said = " ".join(ran.out.split())
    assert ran.code == 0
    assert "1 meter events accepted, 0 left in the ledger." in said
    assert (
        "1 record has no customer: nobody was named when it was used. `llm-metering unresolved list`" in said
    )
    again = run("deliver", "--once", "--timeout", "30", "--ledger", str(folder), *at, "--json")
    assert again.document["for_a_person"] == {"unresolved": 1, "held": 1}


def test_a_worker_with_the_key_of_another_account_is_refused_and_leaves_no_connection(
    run, at, ledger
) -> None:
    ledger.close()
    ran = run("deliver", "--once", "--ledger", str(ledger.folder), *at)
    gc.collect()  # an open socket would be told of here
    assert ran.code == 2
    assert "acct_1 (test)" in ran.err
