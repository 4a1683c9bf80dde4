"""PydanticAI: a model that wraps another one and meters each of its requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from ..capture.overhearing import WatchedCall
from ..errors import MissingExtra
from ..fields import items
from ..usage import Reading
from .counts import Home, reading_of, texts

try:
    from pydantic_ai.models.wrapper import WrapperModel
except ImportError as exc:
    raise MissingExtra("pydantic-ai-slim", "pydantic-ai") from exc


class MeteredModel(WrapperModel):  # type: ignore[misc]
    """Meters every request that agents make of a model, plain and streamed, with their tools and retries.

        agent = Agent(MeteredModel("openai:gpt-5-mini", metering))

    A stream that breaks off is billed for what the provider had reported, else for the text that came.

    Args:
        wrapped: The model, or its name.
        metering: Where usage is recorded.
        dimensions: Added to everything that this model records.
    """

    def __init__(self, wrapped: Any, metering: Home, **dimensions: str) -> None:
        super().__init__(wrapped)
        self._metering_recorder = metering.recorder
        self._metering_dimensions = texts(dimensions)

    async def request(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        return await self._metered(super().request, messages, messages, *args, **kwargs)

    async def compact_messages(self, request_context: Any, *args: Any, **kwargs: Any) -> Any:
        """A provider's summary of a conversation, which is a call of its own."""
        messages = getattr(request_context, "messages", ())
        return await self._metered(super().compact_messages, messages, request_context, *args, **kwargs)

    async def _metered(self, request: Any, messages: Any, *args: Any, **kwargs: Any) -> Any:
        call = WatchedCall(self._metering_recorder, "pydantic_ai")
        try:
            response = await request(*args, **kwargs)
        except BaseException as exc:
            self._attempted(call, getattr(exc, "attempts", None))
            call.forget()
            raise
        self._answered(call, response, messages)
        return response

    @asynccontextmanager
    async def request_stream(self, messages: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        call = WatchedCall(self._metering_recorder, "pydantic_ai")
        stream = None
        try:
            async with super().request_stream(messages, *args, **kwargs) as stream:
                yield stream
        finally:
            if stream is None:
                call.forget()
            else:
                self._answered(call, stream, messages)

    def _answered(self, call: WatchedCall, response: Any, messages: Any) -> None:
        try:
            got = getattr(response, "get", None)
            response = response if got is None else got()
            self._attempted(call, getattr(response, "failed_attempts", None))
            reading = _reading(response)
            if reading is None:
                call.forget()
                return
            call.answered(
                reading,
                request={"messages": _said(messages)},
                model=self.model_name,
                dimensions=self._metering_dimensions,
            )
        except Exception as exc:
            call.forget()
            self._metering_recorder.telemetry.failure("capture.pydantic_ai", exc)

    def _attempted(self, call: WatchedCall, attempts: Any) -> None:
        """Answers of models that a `FallbackModel` moved on from: they were paid for, too."""
        try:
            for attempt in items(attempts):
                if getattr(attempt, "usage", None) is None:
                    continue
                reading = _counted(attempt.usage, model=attempt.model_name, provider=attempt.provider_name)
                if reading.usage or reading.problem:
                    call.answered(reading, dimensions=self._metering_dimensions)
        except Exception as exc:
            self._metering_recorder.telemetry.failure("capture.pydantic_ai", exc)


def _reading(response: Any) -> Reading | None:
    """None for one that goes on in the background, and is asked for again."""
    state = getattr(response, "state", "complete")
    reading = _counted(
        response.usage,
        model=response.model_name,
        response_id=response.provider_response_id,
        provider=response.provider_name,
    )
    is_told = bool(reading.usage or reading.problem)
    if state == "suspended" and not is_told:
        return None
    if is_told and (state in ("complete", "suspended") or getattr(response, "finish_reason", None)):
        return reading
    # Of an answer that broke off some providers have reported the prompt's count only.
    parts = (part.content for part in response.parts if part.part_kind == "text")
    return replace(
        reading,
        provenance="reported" if state == "complete" else "partial",
        text="".join(parts) or None,
    )


def _counted(usage: Any, **names: Any) -> Reading:
    details = usage.details or {}
    return reading_of(
        {
            "input": usage.input_tokens,
            "output": usage.output_tokens,
            "cached": usage.cache_read_tokens,
            "written": usage.cache_write_tokens,
            "input_audio": usage.input_audio_tokens,
            "cached_audio": usage.cache_audio_read_tokens,
            "output_audio": getattr(usage, "output_audio_tokens", 0),
            "reasoning": getattr(usage, "output_reasoning_tokens", 0)
            or details.get("reasoning_tokens")
            or details.get("thoughts_tokens"),
        },
        **names,
    )


def _said(messages: Any) -> list[dict[str, Any]]:
    """The plain texts of a conversation, for counting what was not reported."""
    found = []
    for message in messages:
        for part in message.parts:
            if isinstance(content := getattr(part, "content", None), str):
                role = "assistant" if message.kind == "response" else "user"
                found.append({"role": role, "content": content})
    return found
