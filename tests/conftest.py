"""What holds for every test."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest


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


@pytest.fixture(autouse=True)
def _logging_stays_as_it_is() -> Iterator[None]:
    """Other libraries set up logging as they start, and silence loggers that are there already."""
    ours = [logging.getLogger(name) for name in ("llm_metering", "llm_metering.sandbox")]
    before = [(each.disabled, each.level, each.propagate) for each in ours]
    disabled = logging.root.manager.disable
    yield
    logging.disable(disabled)
    for each, (each.disabled, level, each.propagate) in zip(ours, before, strict=True):
        each.setLevel(level)
