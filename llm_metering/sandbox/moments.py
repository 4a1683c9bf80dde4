"""Times as v2 writes them: RFC 3339 strings instead of Unix seconds."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

from .errors import unreadable

_MOMENT = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(\.\d{1,9})?([Zz]|([+-])(\d{2}):(\d{2}))", re.ASCII
)


def rfc3339(time: float) -> str:
    """Unix seconds as "2024-06-01T12:00:00.000Z"."""
    at = datetime.fromtimestamp(time, timezone.utc)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def moment(value: Any, path: str) -> int:
    """A parameter that is a time, as Unix seconds."""
    match = _MOMENT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise unreadable(
            f"Invalid timestamp: {str(value)[:40]}; write it like 2024-06-01T12:00:00.000Z", path
        )
    try:
        at = datetime.fromisoformat(f"{match[1]}T{match[2]}+00:00")
        if match[5]:
            offset = timedelta(hours=int(match[6]), minutes=int(match[7]))
            at = at - offset if match[5] == "+" else at + offset
    except (ValueError, OverflowError) as exc:
        raise unreadable(f"Invalid timestamp: {value}", path) from exc
    return int(at.timestamp())
