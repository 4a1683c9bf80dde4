"""A real PgBouncer before the tests' server, in transaction mode: a transaction may get any session."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from tests.ledger.postgres.cluster import Cluster, _die_with_parent, _unprivileged

CONFIG = """
[databases]
* = host={server} port=5432 user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool}
max_client_conn = 200
query_wait_timeout = {wait_s}
logfile = {folder}/log
pidfile = {folder}/pid
"""


def needed() -> str:
    """Where it is; without it the test is skipped, and fails where everything has to be there."""
    if (found := shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")) is None:
        told = "needs PgBouncer: make system"
        pytest.fail(told) if os.environ.get("CI") == "true" else pytest.skip(told)
    return found


class Bouncer:
    """Few sessions for many clients."""

    def __init__(self, cluster: Cluster, *, pool: int = 2, wait_s: int = 120) -> None:
        self._program = needed()
        self.folder = Path(tempfile.mkdtemp(prefix="bouncer-"))
        self._as = _unprivileged(self.folder)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        config = CONFIG.format(
            server=cluster.folder, port=self.port, pool=pool, wait_s=wait_s, folder=self.folder
        )
        (self.folder / "config").write_text(config)
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}?sslmode=disable&gssencmode=disable"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._program, self.folder / "config"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,
            **self._as,
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def remove(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)
