"""LangChain: a callback handler, for one call (`config={"callbacks": [...]}`) or for a whole model."""

from __future__ import annotations

from asyncio import current_task
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import ref

from ..capture.overhearing import WatchedCall
from ..capture.waiting import asyncio_loop
from ..errors import MissingExtra
from ..providers import read_response
from ..usage import Reading
from .counts import Home, texts

try:
    from langchain_core.callbacks import BaseCallbackHandler
except ImportError as exc:
    raise MissingExtra("langchain-core", "langchain") from exc

if TYPE_CHECKING:
    from asyncio import Task
    from uuid import UUID

_MAX_CALLS = 1000
_LOOK_AFTER = 64
"""From so many calls under way on it is looked whether they still are: LangChain does not tell of a call that
is cancelled."""


class LangChainCallback(BaseCallbackHandler):  # type: ignore[misc]
    """Meters what LangChain's models answer, plain and streamed, sync and async.

        model.invoke("Hello", config={"callbacks": [LangChainCallback(metering)]})

    Answers from LangChain's own cache are not counted. Embeddings have no callbacks: wrap their client.

    Args:
        metering: Where usage is recorded.
        dimensions: Added to everything that this handler records.
    """

    run_inline = True
    """Called where the call is made, not on a thread of LangChain's: it never waits."""

    def __init__(self, metering: Home, **dimensions: str) -> None:
        super().__init__()
        self._recorder = metering.recorder
        self._dimensions = texts(dimensions)
        self._calls: dict[UUID, tuple[WatchedCall, Any, str | None]] = {}
        self._tasks: dict[UUID, ref[Task[Any]]] = {}
        """Those in which calls were begun."""
        self._look_at = _LOOK_AFTER

    def on_chat_model_start(
        self, serialized: Any, messages: Sequence[Sequence[Any]], *, run_id: UUID, **kwargs: Any
    ) -> None:
        self._begin(run_id, {"messages": [_message(each) for some in messages for each in some]}, kwargs)

    def on_llm_start(self, serialized: Any, prompts: Sequence[str], *, run_id: UUID, **kwargs: Any) -> None:
        self._begin(run_id, {"prompt": list(prompts)}, kwargs)

    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id, response, complete=True)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        # What had come of a stream when it broke off is handed along.
        self._end(run_id, kwargs.get("response"), complete=False)

    def _begin(self, run_id: UUID, request: Any, kwargs: Mapping[str, Any]) -> None:
        try:
            said = kwargs.get("invocation_params") or {}
            model = said.get("model") or said.get("model_name")
            call = WatchedCall(self._recorder, "langchain")
            self._calls[run_id] = call, request, model if isinstance(model, str) else None
            if asyncio_loop() is not None and (task := current_task()) is not None:
                self._tasks[run_id] = ref(task)
            if len(self._calls) > self._look_at:
                self._forget_cancelled()
            if len(self._calls) > _MAX_CALLS:
                self._taken(next(iter(self._calls)))[0].forget()
        except Exception as exc:
            self._recorder.telemetry.failure("capture.langchain", exc)

    def _end(self, run_id: UUID, result: Any, *, complete: bool) -> None:
        try:
            call, request, model = self._taken(run_id)
            if _is_cached(result):
                self._recorder.telemetry.count("langchain.not_billed")
                call.forget()
                return
            readings = _readings(result, complete)
            if not readings:
                call.forget()
            for reading in readings:
                call.answered(reading, request=request, model=model, dimensions=self._dimensions)
        except Exception as exc:
            self._recorder.telemetry.failure("capture.langchain", exc)

    def _taken(self, run_id: UUID) -> tuple[WatchedCall, Any, str | None]:
        self._tasks.pop(run_id, None)
        return self._calls.pop(run_id, None) or (WatchedCall(self._recorder, "langchain"), None, None)

    def _forget_cancelled(self) -> None:
        """Let go of calls whose task is over."""
        for run_id, known in list(self._tasks.items()):
            if (task := known()) is None or task.done():
                self._taken(run_id)[0].forget()
                self._recorder.telemetry.count("langchain.unanswered")
        self._look_at = max(_LOOK_AFTER, 2 * len(self._calls))


def _readings(result: Any, complete: bool) -> list[Reading]:
    """One reading for each prompt that was answered. Choices of one answer share its usage.

    Of an answer that broke off the text is kept, too: some providers report the prompt's count at its
    beginning, and the answer's at its end.
    """
    output = getattr(result, "llm_output", None) or {}
    found = []
    for generations in getattr(result, "generations", None) or ():
        if not generations:
            continue
        message = getattr(generations[0], "message", None)
        reported = getattr(message, "usage_metadata", None)
        said: Mapping[str, Any] = getattr(message, "response_metadata", None) or {}
        if reported is None and len(result.generations) == 1:
            reported = output.get("token_usage") or output.get("usage") or said.get("token_usage")
        reading = read_response({"usage": reported}) if reported else Reading()
        reading = replace(
            reading,
            model=_text(said.get("model_name") or said.get("model") or output.get("model_name")),
            response_id=_response_id(said, message, output),
            provider=_text(said.get("model_provider")),
            provenance="reported" if complete else "partial",
        )
        if not complete or not (reading.usage or reading.problem):
            reading = replace(reading, text="".join(each.text for each in generations) or None)
        if complete or reading.usage or reading.problem or reading.text:
            found.append(reading)  # what LangChain says of an error is no answer
    return found


def _is_cached(result: Any) -> bool:
    """Whether LangChain answered from its own cache, which it marks by a cost of 0."""
    for generations in getattr(result, "generations", None) or ():
        message = getattr(generations[0], "message", None) if generations else None
        cost = (getattr(message, "usage_metadata", None) or {}).get("total_cost")
        if type(cost) is int and cost == 0:
            return True
    return False


def _response_id(said: Mapping[str, Any], message: Any, output: Mapping[str, Any]) -> str | None:
    named = said.get("id") or said.get("response_id") or output.get("id")
    if named is None:
        named = getattr(message, "id", None)
    # LangChain's own names of runs are no provider's.
    own = isinstance(named, str) and named.startswith(("run-", "run--", "lc_", "lc-"))
    return None if own else _text(named)


def _message(message: Any) -> dict[str, Any]:
    role = {"human": "user", "ai": "assistant"}.get(message.type, message.type)
    return {"role": role, "content": message.content}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
