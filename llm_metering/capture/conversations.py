"""A websocket on which the app talks as a Realtime API does: the usage in its messages, read as they pass."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..providers.realtime import read_event, session_model
from ..usage import Reading
from .overhearing import WatchedCall

if TYPE_CHECKING:
    from .context import Scope
    from .recorder import Recorder

MAX_MESSAGE_BYTES = 1024 * 1024
"""A message that ends an answer holds its text and its counts; the audio comes before, in others."""

_TOLD = re.compile(rb'"(?:usage|usageMetadata|usage_metadata|session|setup)"')
_TOLD_TEXT = re.compile(_TOLD.pattern.decode())


class Conversation:
    """Reads what the app sends on one websocket, unless something inside has counted it.

    What the client sends is never read for counts: it could claim anything.

    Args:
        recorder: Where records go.
        scope: The connection's. The query of its URL may name the model.
    """

    __slots__ = ("_call", "_model", "_recorder", "_scope")

    def __init__(self, recorder: Recorder, scope: Scope) -> None:
        self._recorder = recorder
        self._scope = scope
        self._model = _model_in((scope.asgi or {}).get("query_string") or b"")
        self._call = WatchedCall(recorder, "middleware", scope=scope)

    def watching(
        self, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[MutableMapping[str, Any]], Awaitable[None]]:
        """A `send` that looks at messages and hands them on unchanged."""

        def send_read(message: MutableMapping[str, Any]) -> Awaitable[None]:
            if message["type"] == "websocket.send":
                self.look(message)
            return send(message)

        return send_read

    def look(self, message: MutableMapping[str, Any]) -> None:
        """Record what a message says of usage. Never raises."""
        try:
            text = message.get("text")
            if text is not None:
                if _TOLD_TEXT.search(text):
                    self._read(text, len(text))
            elif (body := message.get("bytes")) and _TOLD.search(body):
                self._read(body, len(body))
        except Exception as exc:
            self._recorder.telemetry.failure("middleware.read", exc)

    def close(self) -> None:
        """The connection is over."""
        self._call.forget()

    def _read(self, message: str | bytes, size: int) -> None:
        if size > MAX_MESSAGE_BYTES:
            self._recorder.telemetry.count("middleware.unread")
            return
        try:
            event = json.loads(message)
        except (ValueError, RecursionError):
            return
        self._model = session_model(event) or self._model
        reading = read_event(event)
        if reading is not None:
            self._record(reading)

    def _record(self, reading: Reading) -> None:
        if reading.model is None:
            reading = replace(reading, model=self._model)
        call, self._call = self._call, WatchedCall(self._recorder, "middleware", scope=self._scope)
        call.answered(reading)


def _model_in(query: bytes) -> str | None:
    from urllib.parse import parse_qs

    named = parse_qs(query.decode("latin-1")[:2000]).get("model")
    return named[0][:200] if named else None
