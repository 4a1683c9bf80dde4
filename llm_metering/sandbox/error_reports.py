"""Error reports: what was found wrong with accepted events, told once a window and meter."""

from __future__ import annotations

from collections import Counter

from .events import emit_thin
from .moments import rfc3339
from .store import Doc
from .world import Call

Found = tuple[int, str, str, str]
"""An unusable event: its number, identifier, code and message."""


def report(call: Call, *, all_of_them: bool = False) -> None:
    """Tell of the events that were refused in windows that are over, or in all of them."""
    window_s = call.switches.error_window_s
    windows: dict[tuple[str | None, int], list[Found]] = {}
    rows = call.store.db.execute(
        "SELECT seq, identifier, error, meter, judged FROM meter_event "
        "WHERE account=? AND state='refused' AND reported=0 ORDER BY seq",
        (call.account.n,),
    ).fetchall()
    for seq, identifier, error, meter, judged in rows:
        code, _, message = error.partition(": ")
        window = int(judged // window_s) if window_s else int(judged)
        windows.setdefault((meter, window), []).append((seq, identifier, code, message))
    for (meter, window), found in windows.items():
        start, end = (window * window_s, (window + 1) * window_s) if window_s else (window, window)
        if all_of_them or call.world.now() >= end:
            _tell(call, meter, found, start, end)


def _tell(call: Call, meter: str | None, found: list[Found], start: float, end: float) -> None:
    count = len(found)
    data = {
        "developer_message_summary": "There is 1 invalid event"
        if count == 1
        else f"There are {count} invalid events",
        "reason": {"error_count": count, "error_types": _types(found, call.switches.error_samples)},
        "validation_end": rfc3339(end),
        "validation_start": rfc3339(start),
    }
    if meter is None:
        emit_thin(call, "v1.billing.meter.no_meter_found", None, data)
    else:
        related = {"id": meter, "type": "billing.meter", "url": f"/v1/billing/meters/{meter}"}
        emit_thin(call, "v1.billing.meter.error_report_triggered", related, data)
    call.store.db.executemany("UPDATE meter_event SET reported=1 WHERE seq=?", [(one[0],) for one in found])


def _types(found: list[Found], most: int) -> list[Doc]:
    counts = Counter(code for _, _, code, _ in found)
    samples: dict[str, list[Doc]] = {}
    for _, identifier, code, message in found:
        shown = samples.setdefault(code, [])
        if len(shown) < most:
            shown.append({"error_message": message, "request": {"identifier": identifier}})
    return [
        {"code": code, "error_count": count, "sample_errors": samples[code]} for code, count in counts.items()
    ]
