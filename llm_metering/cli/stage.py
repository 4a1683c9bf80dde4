"""The demo's stage: servers as child processes, each in a group of its own, and none left behind."""

from __future__ import annotations

import atexit
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ..errors import MeteringError

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 8.0

_PORTS = range(20_000, 32_000)
"""Below what Linux, macOS and Windows use for outgoing connections."""
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class ServerFailed(MeteringError):
    """A server of the demo did not start, or ended on its own."""


@dataclass(slots=True)
class Server:
    """One child process that listens on a port."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    port: int
    ready_path: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """`kill -9`: no handler, no `finally`, no farewell."""
        if self.process is not None:
            _signal_group(self.process, signal.SIGKILL)
            self.process.wait()

    def stop(self) -> None:
        """End it as an operator would; `kill -9` if it does not listen."""
        if self.process is None:
            return
        _signal_group(self.process, signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()


class Stage:
    """A folder for logs and ledger, and the servers. Leaving it ends them all, whatever happened.

    While it is open, SIGINT, SIGTERM and SIGHUP end the program in the ordinary way, so that this is so
    for them, too.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="llm-metering-demo-"))
        self.keeps_folder = False
        """Whether there is something to see in it; it is kept after a failure, too."""
        self.servers: list[Server] = []
        self._starting = False
        self._signalled: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Stage:
        atexit.register(self.close)
        if threading.current_thread() is threading.main_thread():
            for number in [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]:
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if not self.keeps_folder and not isinstance(error, Exception):
            shutil.rmtree(self.folder, ignore_errors=True)

    def launch(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], port: int, ready_path: str = "/"
    ) -> Server:
        """Start a server; `wait_for` it before it is called.

        Args:
            name: For messages and its log.
            command: What to run.
            env: Its whole environment.
            port: Where it listens.
            ready_path: Answers, with any status, once it is up.
        """
        server = Server(name, command, env, port, ready_path, self.folder / f"{name}.log")
        self.servers.append(server)
        self._open(server)
        return server

    def relaunch(self, server: Server, *, wait: bool = True) -> None:
        """Start a server again that has ended."""
        self._open(server)
        if wait:
            self.wait_for(server)

    def wait_for(self, server: Server) -> None:
        """Wait until a server answers.

        Raises:
            ServerFailed: It ended, or did not answer in time.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not _answers(server.port, server.ready_path):
            if not server.is_running:
                raise ServerFailed(
                    f"{server.name} did not start; its log {server.log} ends:\n{_tail(server.log)}"
                )
            if time.monotonic() > deadline:
                raise ServerFailed(
                    f"{server.name} did not answer within {READY_TIMEOUT_S:.0f} s; see {server.log}"
                )
            time.sleep(0.02)

    def close(self) -> None:
        """End every server. A second Ctrl-C does not get in between."""
        atexit.unregister(self.close)
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)
        for server in reversed(self.servers):
            server.stop()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _open(self, server: Server) -> None:
        self._starting = True
        try:
            with server.log.open("ab") as log:
                server.process = subprocess.Popen(
                    server.command,
                    env=server.env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    start_new_session=True,
                )
        finally:
            self._starting = False
        if self._signalled is not None:
            self._leave(self._signalled)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = number
        if not self._starting:  # else a child could be started and not yet be known to us
            self._leave(number)

    def _leave(self, number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


def free_port() -> int:
    """A port that nobody listens on, and that no outgoing connection is given.

    Where the system may give a port to outgoing connections, a caller who tries to reach a server that is
    down can be connected to itself, and takes the server's port away.
    """
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerFailed("no free port was found on 127.0.0.1")


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    # Only while the leader is not reaped: its number may belong to somebody else afterwards.
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _tail(log: Path, lines: int = 12) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
