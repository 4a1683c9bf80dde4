"""What Stripe does by itself as time passes. It is caught up with before anything is looked at."""

from __future__ import annotations

from .alerts import sound
from .error_reports import report
from .renewals import live
from .usage import count_waiting
from .world import Call


def catch_up(call: Call, *, all_of_them: bool = False) -> int:
    """Let everything happen that is due in an account; return how many events were counted.

    Args:
        all_of_them: Count events and report errors whose time has not come, too.
    """
    counted = count_waiting(call.world, call.account, all_of_them=all_of_them)
    report(call, all_of_them=all_of_them)
    if counted:
        sound(call)
    live(call, None, call.now)
    return counted
