"""OpenTelemetry: a span processor that bills GenAI spans, whatever library was instrumented.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/: `gen_ai.usage.input_tokens` includes what
was read from and written to a cache, `gen_ai.usage.output_tokens` includes the reasoning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Any

from ..capture.context import CURRENT
from ..capture.overhearing import WatchedCall
from ..errors import MissingExtra
from ..usage import Reading
from .counts import Home, reading_of, texts

try:
    from opentelemetry.sdk.trace import SpanProcessor
except ImportError as exc:
    raise MissingExtra("opentelemetry-sdk", "otel") from exc

_MAX_SPANS = 20_000
_MAX_BELOW = 100

_CALLS = frozenset(("chat", "completion", "text_completion", "generate_content", "embeddings", "embedding"))
"""Operations that are one call of a model. Others, such as `invoke_agent`, add up what is below them."""


class GenAISpanProcessor(SpanProcessor):  # type: ignore[misc]
    """Bills spans of model calls as they end, by the semantic conventions of GenAI.

        provider.add_span_processor(GenAISpanProcessor(metering))

    Sampling comes first: spans that are not recorded are not seen, so this needs a sampler that keeps them.
    Of spans within each other that both report, such as a framework's over an SDK's, the inner one counts;
    what a tool asks a model while another call goes on is a call of its own.

    Args:
        metering: Where usage is recorded.
        dimensions: Added to everything that this processor records.
    """

    def __init__(self, metering: Home, **dimensions: str) -> None:
        self._recorder = metering.recorder
        self._dimensions = texts(dimensions)
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._lock = Lock()

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        try:
            parent = None if span.parent is None else span.parent.span_id
            with self._lock:
                self._open[span.context.span_id] = _Open(parent, self._watched(span), _is_tool(span))
                gone = self._open.popitem(last=False)[1] if len(self._open) > _MAX_SPANS else None
            if gone is not None and gone.call is not None:
                gone.call.forget()
        except Exception as exc:
            self._recorder.telemetry.failure("capture.opentelemetry", exc)

    def on_end(self, span: Any) -> None:
        try:
            with self._lock:
                known = self._open.pop(span.context.span_id, None)
            said: Mapping[str, Any] = span.attributes or {}
            reading = _reading(said) if _is_call(said) else None
            call = None if known is None else known.call
            if reading is None or not (reading.usage or reading.problem):
                if call is not None:
                    call.forget()
                return
            self._tell_above(None if known is None else known.parent, reading)
            if call is None:
                # It did not say at its start what it is, and may end anywhere: where it is collected.
                scope = None if known is None else self._recorder.scope_of(known.begun_in)
                call = WatchedCall(self._recorder, "opentelemetry", scope=scope)
            if known is not None and _repeats(reading, known.below):
                call.forget()
                return
            call.answered(reading, dimensions=self._dimensions)
        except Exception as exc:
            self._recorder.telemetry.failure("capture.opentelemetry", exc)

    def shutdown(self) -> None:
        with self._lock:
            self._open.clear()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True  # recording is immediate, and the ledger is Metering's

    def _watched(self, span: Any) -> WatchedCall | None:
        """The scope that the call was made in, where the span says at its start that it is one."""
        said: Mapping[str, Any] = span.attributes or {}
        return WatchedCall(self._recorder, "opentelemetry") if _is_call(said) else None

    def _tell_above(self, parent: int | None, reading: Reading) -> None:
        """What is above this span may only repeat it, up to a tool: that is called in between."""
        with self._lock:
            while parent is not None and (above := self._open.get(parent)) is not None and not above.is_tool:
                if len(above.below) < _MAX_BELOW:
                    above.below.append(reading)
                parent = above.parent


class _Open:
    """A span under way."""

    __slots__ = ("begun_in", "below", "call", "is_tool", "parent")

    def __init__(self, parent: int | None, call: WatchedCall | None, is_tool: bool) -> None:
        self.parent = parent
        self.call = call
        self.begun_in = None if call is not None else CURRENT.get()
        self.is_tool = is_tool
        self.below: list[Reading] = []
        """What spans below it reported."""


def _is_tool(span: Any) -> bool:
    return (span.attributes or {}).get("gen_ai.operation.name") == "execute_tool"


def _repeats(reading: Reading, below: list[Reading]) -> bool:
    """Whether a span says what those below it said, each or together; where ids do not tell, it does."""
    ids = {each.response_id for each in below}
    if not ids or None in ids or reading.response_id is None or reading.response_id in ids:
        return bool(ids)
    counts = [(each.usage.input_total or 0, each.usage.output_total or 0) for each in below]
    together = (sum(asked for asked, _ in counts), sum(said for _, said in counts))
    return (reading.usage.input_total or 0, reading.usage.output_total or 0) in (*counts, together)


def _is_call(said: Mapping[str, Any]) -> bool:
    operation = said.get("gen_ai.operation.name", said.get("llm.request.type"))
    if operation is not None:
        return operation in _CALLS
    return "gen_ai.request.model" in said or "gen_ai.response.model" in said


def _reading(said: Mapping[str, Any]) -> Reading:
    def first(*names: str) -> Any:
        return next((said[f"gen_ai.{name}"] for name in names if f"gen_ai.{name}" in said), None)

    counts = {
        "input": first("usage.input_tokens", "usage.prompt_tokens"),
        "output": first("usage.output_tokens", "usage.completion_tokens"),
        "cached": first("usage.cache_read.input_tokens", "usage.cache_read_input_tokens"),
        "written": first("usage.cache_creation.input_tokens", "usage.cache_creation_input_tokens"),
        "reasoning": first(
            "usage.reasoning.output_tokens", "usage.reasoning_tokens", "usage.details.reasoning_tokens"
        ),
    }
    return reading_of(
        _with_all_input(counts),
        model=first("response.model", "request.model"),
        response_id=first("response.id"),
        provider=first("provider.name", "system"),
        api="embeddings" if _is_embedding(said) else None,
    )


def _is_embedding(said: Mapping[str, Any]) -> bool:
    operation = said.get("gen_ai.operation.name", said.get("llm.request.type"))
    return operation in ("embeddings", "embedding")


def _with_all_input(counts: dict[str, Any]) -> dict[str, Any]:
    """Some instrumentations of Anthropic report an input without its cached tokens, against the conventions;
    it shows where the parts are more than the whole."""
    whole = counts["input"]
    parts = [counts[name] or 0 for name in ("cached", "written")]
    if not all(type(each) is int and each >= 0 for each in (whole, *parts)) or sum(parts) <= whole:
        return counts
    return {**counts, "input": whole + sum(parts)}
