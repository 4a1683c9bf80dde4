"""The pytest plug-in: the fixtures `stripe_sandbox` and `capture_usage`.

Every pytest run of an environment that has this package loads this file, so it imports nothing but pytest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .capturing import CapturedUsage
    from .local_stripe import StripeSandbox


@pytest.fixture(scope="session")
def _llm_metering_stripe() -> Iterator[StripeSandbox]:
    from .local_stripe import StripeSandbox

    with StripeSandbox() as sandbox:
        yield sandbox


@pytest.fixture
def stripe_sandbox(_llm_metering_stripe: StripeSandbox) -> StripeSandbox:
    """A local Stripe, empty: `.stripe` is a client of it, `.url` where it listens, `.clock` its time."""
    _llm_metering_stripe.reset()
    return _llm_metering_stripe


@pytest.fixture
def capture_usage() -> Iterator[CapturedUsage]:
    """What every `Metering` records in this test, and the meter events that come of it. Nothing is sent."""
    from .capturing import capture_usage

    with capture_usage() as used:
        yield used
