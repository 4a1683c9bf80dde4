"""LiteLLM: a callback that sees the answers of `litellm.completion` and its like, and of its Router."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from threading import Lock
from typing import Any

from ..capture.lasting import standing
from ..capture.overhearing import WatchedCall
from ..errors import MissingExtra
from ..fields import get
from ..providers import read_response
from ..usage import Reading
from .counts import Home, texts

try:
    from litellm.integrations.custom_logger import CustomLogger
except ImportError as exc:
    raise MissingExtra("litellm", "litellm") from exc

_MAX_CALLS = 2000
_UNREAD = frozenset(("pass_through_endpoint", "moderation", "amoderation"))
_LOOKS_UP = frozenset(("get", "list", "retrieve", "cancel", "delete"))
"""Words in the names of calls that ask for what was made, and recorded, earlier: a batch, a response."""


class LiteLLMCallback(CustomLogger):  # type: ignore[misc]
    """Meters what LiteLLM's calls answer, plain and streamed, sync and async.

        litellm.callbacks = [LiteLLMCallback(metering)]

    LiteLLM calls it beside the request, moments after the answer, and not for a stream that nobody read to
    its end; where those must be billed, `metering.wrap(litellm)` sees them. Answers from LiteLLM's own cache
    are not counted.

    Args:
        metering: Where usage is recorded.
        dimensions: Added to everything that this callback records.
    """

    def __init__(self, metering: Home, **dimensions: str) -> None:
        super().__init__()
        self._recorder = metering.recorder
        self._dimensions = texts(dimensions)
        self._calls: OrderedDict[str, WatchedCall | None] = OrderedDict()
        """Calls under way by LiteLLM's id; None for one that was recorded, since LiteLLM may tell twice."""
        self._lock = Lock()

    def log_pre_api_call(self, model: str, messages: Any, kwargs: Mapping[str, Any]) -> None:
        try:
            self._begin(kwargs)
        except Exception as exc:
            self._recorder.telemetry.failure("capture.litellm", exc)

    def log_success_event(
        self, kwargs: Mapping[str, Any], response_obj: Any, start_time: Any = None, end_time: Any = None
    ) -> None:
        try:
            self._answered(kwargs, response_obj)
        except Exception as exc:
            self._recorder.telemetry.failure("capture.litellm", exc)

    async def async_log_success_event(
        self, kwargs: Mapping[str, Any], response_obj: Any, start_time: Any = None, end_time: Any = None
    ) -> None:
        self.log_success_event(kwargs, response_obj)

    def log_failure_event(
        self, kwargs: Mapping[str, Any], response_obj: Any, start_time: Any = None, end_time: Any = None
    ) -> None:
        with self._lock:
            call = self._calls.pop(str(kwargs.get("litellm_call_id")), None)
        if call is not None:
            call.forget()

    async def async_log_failure_event(
        self, kwargs: Mapping[str, Any], response_obj: Any, start_time: Any = None, end_time: Any = None
    ) -> None:
        self.log_failure_event(kwargs, response_obj)

    def _begin(self, kwargs: Mapping[str, Any]) -> None:
        call_id = kwargs.get("litellm_call_id")
        if call_id is None:
            return
        call = WatchedCall(self._recorder, "litellm")
        with self._lock:
            before = self._calls.get(str(call_id))
            self._calls[str(call_id)] = call
            gone = self._calls.popitem(last=False)[1] if len(self._calls) > _MAX_CALLS else None
        for each in (before, gone):
            if each is not None:
                each.forget()

    def _answered(self, kwargs: Mapping[str, Any], answer: Any) -> None:
        call = self._taken(kwargs)
        if call is None:
            return
        kind = str(kwargs.get("call_type") or "")
        reading = self._reading(kwargs, answer, kind)
        lasting = None
        is_of_use = kwargs.get("cache_hit") is not True and kind not in _UNREAD
        if is_of_use and "responses" in kind:
            is_background = get(answer, "background") is True
            body = b"" if reading.usage and not is_background else _body(answer)
            is_of_use, lasting = standing(reading, body)
        if not is_of_use or (lasting is None and _is_lookup(kind)):
            call.forget()
            self._recorder.telemetry.count("litellm.not_billed")
            return
        asked = kwargs.get("messages")
        request = {"messages": [*asked]} if isinstance(asked, list) else {"prompt": asked}
        call.answered(
            reading,
            request=request,
            model=_text(kwargs.get("model")),
            dimensions=self._dimensions,
            # It comes late: the app's answer may have been recorded by now, under an id of the app's.
            own_id=True,
            lasting=lasting,
        )

    def _taken(self, kwargs: Mapping[str, Any]) -> WatchedCall | None:
        """The call that this answer belongs to; None where it was taken already."""
        call_id = kwargs.get("litellm_call_id")
        if call_id is None:
            return WatchedCall(self._recorder, "litellm")
        with self._lock:
            if str(call_id) in self._calls and self._calls[str(call_id)] is None:
                return None
            call = self._calls.get(str(call_id))
            self._calls[str(call_id)] = None
        return call or WatchedCall(self._recorder, "litellm")

    def _reading(self, kwargs: Mapping[str, Any], answer: Any, kind: str) -> Reading:
        api = "embeddings" if "embedding" in kind else None
        reading = read_response(answer, api=api, keep_text=self._recorder.wants_text())
        return replace(reading, provider=_text(kwargs.get("custom_llm_provider")) or reading.provider)


def _is_lookup(kind: str) -> bool:
    """Whether a call asks for what was made earlier; async ones have an "a" before their verb."""
    return any(word in _LOOKS_UP or (word[:1] == "a" and word[1:] in _LOOKS_UP) for word in kind.split("_"))


def _body(answer: Any) -> bytes:
    dump = getattr(answer, "model_dump_json", None)
    return b"" if dump is None else bytes(dump().encode())


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
