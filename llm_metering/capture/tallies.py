"""Small tallies beside the providers': plain text, and streams whose last event reports the usage."""

from __future__ import annotations

from typing import Any

from ..providers import read_response
from ..usage import Reading, Usage


class TextTally:
    """Adds up plain text that a function yields."""

    complete = False

    def __init__(self, *, model: str | None, provider: str | None) -> None:
        self._model = model
        self._provider = provider
        self._pieces: list[str] = []
        self._chars = 0

    def feed(self, piece: str, /) -> None:
        self._pieces.append(piece)
        self._chars += len(piece)

    @property
    def tokens_so_far(self) -> int:
        return self._chars // 4

    def so_far(self) -> Reading:
        usage = Usage(output=self.tokens_so_far)
        return Reading(usage=usage, model=self._model, provider=self._provider, provenance="partial")

    def result(self) -> Reading:
        return Reading(model=self._model, provider=self._provider, text="".join(self._pieces) or None)


class ReportTally:
    """Looks for a reported usage in each event, and counts nothing itself: pictures, transcriptions."""

    complete = False
    tokens_so_far = 0

    def __init__(self, *, api: str | None = None) -> None:
        self._api = api
        self._last: Any = None

    def feed(self, event: Any, /) -> None:
        usage = event.get("usage") if isinstance(event, dict) else getattr(event, "usage", None)
        if usage is not None:
            self._last = event

    def so_far(self) -> Reading:
        return Reading(api=self._api, provenance="partial")

    def result(self) -> Reading:
        return self.so_far() if self._last is None else read_response(self._last, api=self._api)
