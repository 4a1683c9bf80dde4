"""`llm-metering sandbox` serves a local Stripe until it is told to stop, and keeps its state where asked."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import stripe


@contextmanager
def served(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_metering", "sandbox", "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            text += line
        yield json.loads(text)["url"], process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_it_serves_on_a_free_port_and_keeps_its_state_in_a_file(run, tmp_path: Path) -> None:
    state = str(tmp_path / "state.db")
    with served("--port", "0", "--db", state) as (url, _):
        assert run("setup", "pay-as-you-go", "--sandbox", url).code == 0
    with served("--port", "0", "--db", state) as (url, process):
        document = run("setup", "pay-as-you-go", "--sandbox", url, "--dry-run", "--json").document
        assert document["plan"]["done"] is True
    assert process.returncode == 0


def test_a_port_that_is_taken_is_told(spawn) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ran = spawn("sandbox", "--port", str(taken.getsockname()[1]))
    assert ran.code == 1
    assert "is taken; perhaps a sandbox runs already" in ran.err


@pytest.mark.parametrize("what", ["folder", "text"])
def test_a_state_file_that_cannot_be_used_is_told(spawn, tmp_path: Path, what: str) -> None:
    path = tmp_path / "state"
    if what == "folder":
        path.mkdir()
    else:
        path.write_text("not a database, but long enough to be looked at as one\n" * 50)
    ran = spawn("sandbox", "--port", "0", "--db", str(path))
    assert ran.code == 2
    assert f"--db {path} cannot be used" in ran.err


def test_ids_are_repeatable_with_a_seed(run, tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        with served("--port", "0", "--seed", "7") as (url, _):
            made.append(run("setup", "pay-as-you-go", "--sandbox", url, "--json").document)
    assert made[0] == {**made[1], **{k: v for k, v in made[0].items() if k == "next"}}


def test_a_fault_is_there_from_the_start(run) -> None:
    with served("--port", "0", "--fault", "500_before;path=/v1/customers*;count=forever") as (url, _):
        [fault] = run("faults", "list", "--sandbox", url, "--json").document["faults"]
        assert (fault["kind"], fault["count"], fault["match"]["path"]) == (
            "500_before",
            None,
            "/v1/customers*",
        )
        assert run("setup", "pay-as-you-go", "--sandbox", url).code == 0
        assert run("subscribe", "pay-as-you-go", "--new-customer", "J", "--sandbox", url).code == 1


def test_faults_are_added_listed_met_and_cleared(run, sandbox, client) -> None:
    at = ["--sandbox", sandbox.url]
    ran = run("faults", "add", "429;path=/v1/customers;method=get", "slow;seconds=0.5;count=3", *at)
    assert ran.code == 0
    assert "429;method=GET;path=/v1/customers" in ran.out
    assert "slow;count=3;seconds=0.5" in ran.out
    with pytest.raises(stripe.RateLimitError):
        sandbox.client(max_network_retries=0).v1.customers.list()
    assert [f["kind"] for f in run("faults", "list", *at, "--json").document["faults"]] == ["slow"]
    assert "No faults" in run("faults", "clear", *at).out
    assert sandbox.app.faults.waiting() == []


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("boom", "kind must be one of"),
        ("429;count=many", "count must be a number, not 'many'"),
        ("429;colour=red", "'colour=red' is not name=value with one of method, path"),
        ("429;path", "'path' is not name=value"),
    ],
)
@pytest.mark.parametrize("command", [("faults", "add"), ("sandbox", "--port", "0", "--fault")])
def test_a_fault_that_cannot_be_is_refused_before_anything_runs(run, command, fault, why) -> None:
    ran = run(*command, fault)
    assert ran.code == 2
    assert why in ran.err


def test_faults_of_no_sandbox_are_told_how_to_start_one(run) -> None:
    ran = run("faults", "list", "--sandbox", "http://127.0.0.1:9")
    assert ran.code == 1
    assert "llm-metering sandbox --port 9" in ran.err
