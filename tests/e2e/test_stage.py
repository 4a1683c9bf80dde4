"""No child process outlives the demo: not after success, failure, Ctrl-C or a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from llm_metering.cli.stage import ServerFailed, Stage, free_port

SERVE = (
    "import http.server, sys;"
    "address = ('127.0.0.1', int(sys.argv[1]));"
    "http.server.HTTPServer(address, http.server.SimpleHTTPRequestHandler).serve_forever()"
)


def serve(stage: Stage):
    port = free_port()
    return start(stage, "server", [sys.executable, "-c", SERVE, str(port)], port)


def start(stage: Stage, name: str, command: list[str], port: int):
    server = stage.launch(name, command, env=dict(os.environ), port=port)
    stage.wait_for(server)
    return server


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_leaving_the_stage_ends_its_servers_and_removes_its_folder():
    with Stage() as stage:
        pid = serve(stage).process.pid
        assert stage.folder.exists()
    assert is_gone(pid)
    assert not stage.folder.exists()


def test_a_failure_ends_the_servers_and_keeps_the_logs():
    def fail():
        with Stage() as stage:
            started.append(serve(stage))
            raise RuntimeError

    started = []
    with pytest.raises(RuntimeError):
        fail()
    assert is_gone(started[0].process.pid)
    assert started[0].log.exists()


def test_a_server_that_ignores_sigterm_is_killed(monkeypatch):
    monkeypatch.setattr("llm_metering.cli.stage.STOP_TIMEOUT_S", 0.2)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SERVE
    with Stage() as stage:
        port = free_port()
        server = start(stage, "deaf", [sys.executable, "-c", deaf, str(port)], port)
        pid = server.process.pid
    assert is_gone(pid)


def test_a_server_that_does_not_start_is_named_with_the_end_of_its_log():
    crash = [sys.executable, "-c", "import sys; sys.exit('the port is haunted')"]
    with Stage() as stage, pytest.raises(ServerFailed, match="the port is haunted"):
        start(stage, "ghost", crash, free_port())


def test_a_killed_server_can_be_launched_again():
    with Stage() as stage:
        server = serve(stage)
        first = server.process.pid
        server.kill()
        assert not server.is_running
        stage.relaunch(server)
        assert server.process.pid != first


PLAY = f"""
import os, sys, time
from llm_metering.cli.stage import Stage, free_port
with Stage() as stage:
    port = free_port()
    command = [sys.executable, "-c", {SERVE!r}, str(port)]
    server = stage.launch("server", command, env=dict(os.environ), port=port)
    stage.wait_for(server)
    print(server.process.pid, stage.folder, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_servers(number):
    play = subprocess.Popen(
        [sys.executable, "-c", PLAY], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    pid, folder = play.stdout.readline().split()
    play.send_signal(number)
    code = play.wait(10)
    play.stdout.close()
    deadline = time.monotonic() + 5
    while not is_gone(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_gone(int(pid))
    assert code != 0
    assert not Path(folder).exists()
