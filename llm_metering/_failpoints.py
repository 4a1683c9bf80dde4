"""Named points at which a test may kill the process, to see what a crash there leaves behind.

`LLM_METERING_FAILPOINT=after_claim` kills this process, as `kill -9` would, the first time it comes by that
point; `after_claim:3` the third time. Without the variable a point is an empty function.
"""

from __future__ import annotations

import os
from collections.abc import Callable

VARIABLE = "LLM_METERING_FAILPOINT"


def armed(setting: str, die: Callable[[], object]) -> Callable[[str], None]:
    """The function that calls `die` when the point that `setting` names is passed."""
    wanted, _, count = setting.partition(":")
    left = int(count or 1)

    def point(name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if left == 0:
                die()

    return point


def _die() -> None:
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def _pass(_name: str) -> None:
    return


failpoint: Callable[[str], None] = armed(setting, _die) if (setting := os.environ.get(VARIABLE)) else _pass
"""Dies here if this point is the one that is armed."""
