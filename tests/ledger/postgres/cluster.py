"""A PostgreSQL of the tests' own: in a temporary folder, on a socket, killed and started again at will.

It syncs to disk as a real one does. Its folder is in memory where there is memory for it, which makes that
cheap: what is lost when a machine loses power is not what is tested here.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

SETTINGS = {
    "listen_addresses": "",
    "dynamic_shared_memory_type": "mmap",  # in its folder: POSIX's would stay of one that is killed
    "max_connections": "60",
    "shared_buffers": "64MB",
    "min_wal_size": "80MB",
    "max_wal_size": "512MB",
    "log_min_messages": "warning",
}


def binaries() -> Path | None:
    """Where the newest PostgreSQL of this machine is."""
    found = [p.parent for p in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve().parent)
    return max(found, key=lambda p: _number(p.parent.name), default=None)


def needed() -> Path:
    """The same; without it the test is skipped, and fails where everything has to be there."""
    if (found := binaries()) is None:
        told = "needs PostgreSQL: make system"
        pytest.fail(told) if os.environ.get("CI") == "true" else pytest.skip(told)
    return found


@dataclass(frozen=True)
class Place:
    """Where a ledger's tables are."""

    url: str
    schema: str

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as db:
            db.execute(f"SET search_path TO {self.schema}".encode())
            cursor = db.execute(query.encode())
            return cursor.fetchall() if cursor.description else []


class Cluster:
    """One server with a database for each who asks."""

    def __init__(self, bin_: Path, within: str | None = None) -> None:
        self._bin = bin_
        quick = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir=within or quick))
        self._as = _unprivileged(self.folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0
        self._run("initdb", "--no-sync", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    @property
    def socket(self) -> Path:
        return self.folder / ".s.PGSQL.5432"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, **settings: str) -> None:
        """Start it, as often as it takes until what a killed one held is free."""
        given = {**SETTINGS, "unix_socket_directories": str(self.folder), **settings}
        options = [word for name, value in given.items() for word in ("-c", f"{name}={value}")]
        deadline = time.monotonic() + 60
        while True:
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [self._bin / "postgres", "-D", self.folder / "data", *options],
                    cwd=self.folder,
                    stdout=log,
                    stderr=log,
                    preexec_fn=_die_with_parent,
                    **self._as,
                )
            while self._process.poll() is None:
                if self._answers():
                    return
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.02)
            assert time.monotonic() < deadline, (self.folder / "log").read_text()

    def kill(self) -> None:
        """`kill -9` of the postmaster and all that it started."""
        assert self._process is not None
        pids = [self.pid, *_children(self.pid)]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)

    def base_backup(self) -> Path:
        """A copy of all that is committed now, as a standby that stops to follow, or a backup, holds it."""
        self.execute("CHECKPOINT")  # or it would wait for one
        self._number += 1
        copy = self.folder / f"copy{self._number}"
        subprocess.run(
            [self._bin / "pg_basebackup", "-D", copy, "-h", self.folder, "-U", "postgres", "--no-sync"],
            cwd=self.folder,
            check=True,
            capture_output=True,
            timeout=120,
            **self._as,
        )
        return copy

    def fail_over(self, copy: Path) -> None:
        """The server is gone, with its disk; the copy, a standby that was behind, is promoted."""
        self.restore(copy, standby=True)
        self.execute("SELECT pg_promote(true, 60)")

    def restore(self, copy: Path, *, standby: bool = False) -> None:
        """The server is gone, with its disk; the copy stands in its place."""
        self.kill()
        data = self.folder / "data"
        shutil.rmtree(data)
        subprocess.run(["cp", "-a", copy, data], check=True, timeout=60)
        (data / "postmaster.pid").unlink(missing_ok=True)
        if standby:
            (data / "standby.signal").touch()
        self.start()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def execute(self, query: str, *, database: str = "postgres") -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url(database), autocommit=True) as db:
            cursor = db.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def new_place(self, *, migrated: bool = True) -> Place:
        """A schema that nobody else has."""
        from llm_metering.ledger.postgres import migrate

        self._number += 1
        place = Place(self.url(), f"t{self._number}")
        if migrated:
            migrate(place.url, schema=place.schema)
        return place

    def new_database(self) -> str:
        """The URL of an empty database."""
        self._number += 1
        name = f"d{self._number}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *words: str) -> None:
        subprocess.run(
            [self._bin / program, "-D", self.folder / "data", *words],
            cwd=self.folder,
            check=True,
            capture_output=True,
            timeout=60,
            **self._as,
        )


def _unprivileged(folder: Path) -> Mapping[str, Any]:
    """PostgreSQL does not run as root."""
    if os.geteuid() != 0:
        return {}
    import pwd

    known = {user.pw_name: user for user in pwd.getpwall()}
    user = known.get("postgres") or known["nobody"]
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()}


def _die_with_parent() -> None:
    """A test run that is killed leaves no server behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)


def _children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(status.parent.name))
    return found


def _number(name: str) -> int:
    return int(name) if name.isdigit() else 0
