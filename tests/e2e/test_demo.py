"""`llm-metering demo`: it ends well, it cannot be made to look well, and it leaves nothing running."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from llm_metering.cli import demo, demo_play
from llm_metering.cli.demo_load import calls

PROC = Path("/proc")
COMMAND = [sys.executable, "-m", "llm_metering", "demo"]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


def left_running(mark: str) -> list[str]:
    """Processes that were started, by whomever, from an environment with this mark."""
    found = []
    for process in PROC.glob("[0-9]*"):
        try:
            if f"DEMO_TEST_MARK={mark}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def mark(monkeypatch):
    """The test's own mark; nothing that carries it may be left when the test is over."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("DEMO_TEST_MARK", mark)
    yield mark
    if PROC.is_dir():
        assert left_running(mark) == []


def test_the_demo_ends_well_and_says_so_to_a_program():
    done = subprocess.run(
        [*COMMAND, "--json", "--requests", "120", "--seed", "7"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert told["problems"] == []
    tokens = told["tokens"]
    assert tokens["equal"] is True
    assert int(tokens["sent_by_provider"]) == int(tokens["in_ledger"]) == int(tokens["in_stripe"]) > 5000
    assert told["answered"] + told["cut"]["calls"] == told["calls"] == 120
    assert told["kill"]["streams"] >= 1, "the kill hit no stream"
    assert told["cut"]["calls"] >= 1
    assert told["ledger"]["events"].keys() == {"ACCEPTED"}
    assert {row["token_type"] for row in told["usage"]} == {"input", "cached_input", "output"}
    assert len({row["customer"] for row in told["usage"]}) == 2
    totals = {each["offer"]: each["preview"] for each in told["guides"]}
    assert totals["pay-as-you-go"]["total"] == "1.20"
    assert totals["flat-fee"]["total"] == "180.00"
    assert all(preview["lines"] for preview in totals.values())


def test_the_invoices_of_the_two_customers_are_what_their_tokens_cost():
    report = demo.run(requests=40, seed=3, as_json=True)
    used = {}
    for kind, tokens in report.audit.by_kind.items():
        used[kind.customer] = used.get(kind.customer, 0) + int(tokens)
    for person, preview in report.people:
        tokens = used[person.customer]
        cents = (
            -(-tokens // 100) * 4 if person.offer == "pay-as-you-go" else 10000 + 4 * max(0, tokens - 1000)
        )
        assert preview.total * 100 == cents, person
    assert not report.folder.exists()


def test_the_same_seed_asks_the_same_questions():
    assert calls(seed=5, count=50, keys=["a", "b"]) == calls(seed=5, count=50, keys=["a", "b"])
    assert calls(seed=5, count=50, keys=["a", "b"]) != calls(seed=6, count=50, keys=["a", "b"])


def bill_one_call_twice(stage):
    """Send what a client without identifiers would send on a retry."""
    sandbox = next(server for server in stage.servers if server.name == "sandbox")
    client = demo_play.billing.connect(demo_play.STRIPE_KEY, api_base=sandbox.url)
    lane = next((stage.folder / "ledger").glob("lane-*.db"))
    with sqlite3.connect(lane) as db:
        (payload,) = db.execute("SELECT payload FROM meter_event LIMIT 1").fetchone()
    db.close()
    client.v1.billing.meter_events.create(
        {"event_name": "hypernian_tokens", "payload": json.loads(payload), "identifier": "again"}
    )


def lose_one_call(stage):
    """Forget one record of the ledger that was reported by the provider."""
    for lane in (stage.folder / "ledger").glob("lane-*.db"):
        with sqlite3.connect(lane) as db:
            db.execute(
                "DELETE FROM usage WHERE seq = (SELECT min(seq) FROM usage WHERE provenance = 'reported')"
            )
        db.close()


@pytest.mark.parametrize("tamper", [bill_one_call_twice, lose_one_call])
def test_a_call_that_is_lost_or_doubled_turns_the_demo_red(tamper, capsys, monkeypatch):
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_of_a_user")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-user")
    report = demo.run(requests=40, seed=4, before_audit=tamper)
    assert (report.folder / "service.log").exists()
    shutil.rmtree(report.folder)
    assert not report.is_right
    numbers = {report.audit.sent, report.audit.in_ledger, report.audit.in_stripe}
    assert len(numbers) == 2
    shown = capsys.readouterr().out
    assert "Something is wrong" in shown
    assert str(report.folder) in shown
    # The guides' own figures stand on their own.
    assert "1.20 USD" in shown
    assert "180.00 USD" in shown
    assert "\x1b" not in shown, "colour where nothing is a terminal"
    # Whoever has keys is told how to go on with them; they are neither used nor shown.
    assert "The same in your own account: llm-metering setup" in shown
    assert "The same service with the real OpenAI: CHAT_API_KEYS" in shown
    assert "of_a_user" not in shown
    assert "of-a-user" not in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_running(number, mark):
    play = subprocess.Popen(
        [*COMMAND, "--requests", "2000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in play.stdout:
        if "kill -9" in line:
            break
    deadline = time.monotonic() + 20
    while PROC.is_dir() and len(left_running(mark)) != 4:  # it, and its three servers, one of them anew
        assert time.monotonic() < deadline, left_running(mark)
        time.sleep(0.05)
    play.send_signal(number)
    _, complaint = play.communicate(timeout=60)
    assert play.returncode in (130, 128 + number, -number)
    assert "Traceback" not in complaint
