"""`make system`, on machines that have what tests need, that lack it, and whose packages fail."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent.parent
TOOLS = ("make", "sh", "id", "env", "sleep", "cat", "ls", "cp")
NEEDED = ("chromium", "chromedriver", "initdb", "pgbouncer")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder that is all there is to call: a few tools, and no Chromium."""
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    program(tmp_path / "sudo", 'exec "$@"')
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def packages(machine: Path, *, fail_first: int, brings: tuple[str, ...] = NEEDED) -> None:
    """An apt-get that fails so often before it works."""
    made = "; ".join(f"cp {machine}/sudo {machine}/{name}" for name in brings)
    program(
        machine / "apt-get",
        f"""echo "$@" >> {machine}/calls
case "$*" in *install*) ;; *) exit 0;; esac
n=0; [ -e {machine}/n ] && n=$(cat {machine}/n); n=$((n + 1)); echo $n > {machine}/n
[ $n -gt {fail_first} ] || exit 100
{made or ":"}""",
    )


def make_system(machine: Path) -> subprocess.CompletedProcess[str]:
    command = [str(machine / "make"), "--no-print-directory", "system", "PYTHON=true"]
    command += ["WAITS=0 0 0", "POSTGRES_BIN=/nowhere", "POOLER_BIN=/nowhere"]
    environ = {"PATH": str(machine)}
    return subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def test_nothing_is_installed_where_all_is_there(machine):
    packages(machine, fail_first=0)
    for name in NEEDED:
        program(machine / name, "")
    assert make_system(machine).returncode == 0
    assert not (machine / "calls").exists()


def test_packages_that_fail_at_first_are_asked_for_again(machine):
    packages(machine, fail_first=2)
    done = make_system(machine)
    assert done.returncode == 0, done.stderr
    calls = (machine / "calls").read_text().splitlines()
    assert [call.split()[-1] for call in calls] == ["update", "pgbouncer"] * 3
    assert all("Acquire::Retries=3" in call for call in calls)


@pytest.mark.parametrize(("fails", "brings"), [(9, ()), (0, ("chromium",))], ids=["packages", "no driver"])
def test_what_is_still_missing_in_the_end_is_a_failure(machine, fails, brings):
    packages(machine, fail_first=fails, brings=brings)
    done = make_system(machine)
    assert done.returncode != 0
    assert "Could not be installed" in done.stdout


def test_a_machine_without_apt_is_told_what_to_install(machine):
    done = make_system(machine)
    assert done.returncode != 0
    assert "install chromium chromium-driver postgresql pgbouncer" in done.stdout
