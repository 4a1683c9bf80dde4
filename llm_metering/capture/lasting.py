"""Answers that go on without us: background responses and interactions, which anybody may ask for again."""

from __future__ import annotations

import json
import re
from typing import Any

from ..usage import Reading
from .streams import lasting_id

IN_BACKGROUND = re.compile(rb'"background"\s*:\s*true')
"""What a request or answer holds somewhere that goes on without us."""

_LASTING_APIS = ("responses", "interactions")
_WITHOUT_USAGE = frozenset(("queued", "in_progress", "failed", "cancelled"))


def is_lookup(path: str) -> bool:
    """Whether GET on a path gives an answer that was made earlier."""
    parent, _, name = path.rpartition("/")
    if name.startswith("resp_"):
        return parent.endswith("/responses")
    return bool(name) and parent.endswith("/interactions")


def may_be_lookup(path: str) -> bool:
    """Whether `is_lookup` can be true of a path, or of one that is nested in it."""
    return "/resp_" in path or "/interactions/" in path


def is_in_background(request: bytes | None) -> bool:
    """Whether a request asks that its answer go on without us; deeper inside the words mean nothing."""
    if request is None or IN_BACKGROUND.search(request) is None:
        return False
    return _decoded(request).get("background") is True


def standing(reading: Reading, body: bytes) -> tuple[bool, str | None]:
    """Whether an answer is of use yet, and the record id of one that may be asked for again.

    Args:
        reading: What was read of it.
        body: All of it, in JSON.
    """
    if reading.api not in _LASTING_APIS or (reading.usage and not IN_BACKGROUND.search(body)):
        return True, None
    answer = _decoded(body)
    is_written = bool(reading.usage or reading.text or reading.written)
    if not is_written and answer.get("status") in _WITHOUT_USAGE:
        return False, None
    if answer.get("background") is True and reading.response_id is not None:
        return True, lasting_id(reading.response_id)
    return True, None


def _decoded(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
