"""OpenAI's Agents SDK: run hooks that see every answer of a model within a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import finalize

from ..capture.overhearing import WatchedCall
from ..errors import MissingExtra
from ..providers import read_response
from ..usage import Reading
from .counts import Home, reading_of, texts

try:
    from agents import RunHooks
except ImportError as exc:
    raise MissingExtra("openai-agents", "openai-agents") from exc


class MeteringHooks(RunHooks):  # type: ignore[misc]
    """Meters every model call of a run, those of agents that it hands over to included.

        await Runner.run(agent, "Hello", hooks=MeteringHooks(metering))

    Guardrails and agents that are used as tools make runs of their own and need the hooks too, unless their
    client is wrapped. Hooks of yours are passed as `inner`.

    The SDK does not tell hooks of a call that failed, nor of one that was cancelled in mid-answer, and not
    which of the two it was. Neither is recorded; both are counted, as `openai_agents.unanswered`. Where what
    came of a cancelled answer must be billed, wrap the client: it sees the answer itself.

    Args:
        metering: Where usage is recorded.
        inner: Other hooks, which are called as if they were given themselves.
        dimensions: Added to everything that these hooks record.
    """

    def __init__(self, metering: Home, *, inner: Any = None, **dimensions: str) -> None:
        self._recorder = metering.recorder
        self._dimensions = texts(dimensions)
        self._inner = inner
        self._calls: dict[int, dict[int, tuple[WatchedCall, Any, Any]]] = {}
        """Calls under way, by run and agent."""
        for name in _PASSED_ON if inner is not None else ():
            setattr(self, name, getattr(inner, name))

    async def on_llm_start(self, context: Any, agent: Any, system_prompt: Any, input_items: Any) -> None:
        try:
            call = WatchedCall(self._recorder, "openai_agents")
            request = {"instructions": system_prompt, "input": list(input_items)}
            if id(context) not in self._calls:
                # A run's context goes when the run is over, however it ended.
                finalize(context, self._run_over, id(context)).atexit = False
            under_way = self._calls.setdefault(id(context), {})
            if (before := under_way.pop(id(agent), None)) is not None:
                self._came_to_nothing(before[0])  # and was begun anew
            # The agent is kept, so that the number stays its own.
            under_way[id(agent)] = call, request, agent
        except Exception as exc:
            self._recorder.telemetry.failure("capture.openai_agents", exc)
        if self._inner is not None:
            await self._inner.on_llm_start(context, agent, system_prompt, input_items)

    async def on_llm_end(self, context: Any, agent: Any, response: Any) -> None:
        try:
            calls = self._calls.get(id(context), {})
            call, request, _ = calls.pop(id(agent), None) or (None, None, None)
            (call or WatchedCall(self._recorder, "openai_agents")).answered(
                _reading(response), request=request, model=_model_of(agent), dimensions=self._dimensions
            )
        except Exception as exc:
            self._recorder.telemetry.failure("capture.openai_agents", exc)
        if self._inner is not None:
            await self._inner.on_llm_end(context, agent, response)

    def _run_over(self, run: int) -> None:
        for call, _, _ in self._calls.pop(run, {}).values():
            self._came_to_nothing(call)

    def _came_to_nothing(self, call: WatchedCall) -> None:
        call.forget()
        self._recorder.telemetry.count("openai_agents.unanswered")


_PASSED_ON = ("on_agent_start", "on_agent_end", "on_handoff", "on_tool_start", "on_tool_end")


_NO_ID = "__fake_id__"
"""What the SDK names an answer that came without an id."""


def _reading(response: Any) -> Reading:
    usage = response.usage
    before, after = usage.input_tokens_details, usage.output_tokens_details
    response_id = None if response.response_id == _NO_ID else response.response_id
    reading = reading_of(
        {
            "input": usage.input_tokens,
            "output": usage.output_tokens,
            "cached": getattr(before, "cached_tokens", None),
            "written": getattr(before, "cache_write_tokens", None),
            "reasoning": getattr(after, "reasoning_tokens", None),
        },
        response_id=response_id,
        provider="openai" if str(response_id or "").startswith("resp_") else None,
    )
    if reading.usage or reading.problem:
        return reading
    output = [each if isinstance(each, dict) else each.model_dump() for each in response.output]
    words = read_response({"object": "response", "output": output}, keep_text=True)
    return replace(reading, text=words.text, written=words.written)


def _model_of(agent: Any) -> str | None:
    model = getattr(agent, "model", None)
    name = getattr(model, "model", model)
    return name if isinstance(name, str) and name else None
