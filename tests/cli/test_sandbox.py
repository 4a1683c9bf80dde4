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
