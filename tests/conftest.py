"""What holds for every test."""

from __future__ import annotations

import logging
import os
import pkgutil
import shutil
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from llm_metering.ledger import clocks

_MEMORY = Path("/dev/shm")
if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2 * 1024**3:
    # `tmp_path` need not wait for a disk: no test can take a machine's power away. Services that are killed
    # in tests/e2e and tests/faults have their ledgers on the disk all the same, in their stages' folders.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))


def _ours() -> set[threading.Thread]:
    """Threads that deliver or write. The one that counts waits for work as long as the program runs."""
    found = {t for t in threading.enumerate() if t.name.startswith("llm-metering-")}
    return {thread for thread in found if thread.name != "llm-metering-counter"}


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """A flusher that goes on after its test would play a part in the next one."""
    before = _ours()
    yield
    left = _ours() - before
    for thread in left:
        thread.join(2)
    assert not {thread.name for thread in left if thread.is_alive()}


_COMPLETE = {"openai": 3, "anthropic": 1}
"""SDKs of these major versions, which the `sdks` extra installs, have everything that tests use."""


@pytest.fixture(autouse=True)
def _the_sdk_has_what_is_needed(request: pytest.FixtureRequest) -> None:
    """Skip where an older SDK lacks what the test names in `@pytest.mark.needs`."""
    for marker in request.node.iter_markers("needs"):
        for path in marker.args:
            try:
                pkgutil.resolve_name(path)
            except (ImportError, AttributeError):
                sdk = path.partition(".")[0]
                installed = version(sdk)
                assert int(installed.partition(".")[0]) < _COMPLETE[sdk], f"{path} is gone"
                pytest.skip(f"{sdk} {installed} has no {path}")


_LOGGERS = [logging.getLogger(name) for name in (None, "llm_metering", "llm_metering.sandbox")]
_AS_THEY_WERE = [(each.disabled, each.level, each.propagate) for each in _LOGGERS]


@pytest.fixture(autouse=True)
def _logging_is_as_it_was() -> None:
    """Other libraries set up logging as they start, and silence those that are there already."""
    logging.disable(logging.NOTSET)
    for each, (disabled, level, propagate) in zip(_LOGGERS, _AS_THEY_WERE, strict=True):
        each.disabled, each.propagate = disabled, propagate
        each.setLevel(level)


@pytest.fixture(autouse=True)
def _no_clock_but_the_tests_own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own clock, which nobody sets, stands still: beside a wall clock that a test moves or lets
    stand still it would tell of one that was set back. Tests of that one are marked `boot_clock`."""
    if request.node.get_closest_marker("boot_clock") is None:
        monkeypatch.setattr(clocks, "_this_run", lambda: "tests")
        still = SimpleNamespace(CLOCK_BOOTTIME=0, clock_gettime=lambda _: 0.0)
        monkeypatch.setattr(clocks, "time", still)
