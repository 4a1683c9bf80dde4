"""One run of a decorated function: the scope that it runs in, and what its results are recorded as."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .. import customers
from ..providers import StreamTally, WireTally, read_response
from ..usage import Reading
from . import context
from .collecting import is_collecting
from .relays import relayed
from .results import Streams, is_whole, parts_of, unframed
from .streams import StreamTap
from .tallies import TextTally
from .taps import is_stream, is_tapped, tap_stream

if TYPE_CHECKING:
    from .recorder import Recorder


class Run:
    """One call of a decorated function. Nothing here raises for what the function gives."""

    def __init__(
        self,
        recorder: Recorder,
        *,
        model: str | None,
        provider: str | None,
        customer: Any,
        dimensions: Mapping[str, str],
        prompt: Mapping[str, Any] | None,
    ) -> None:
        self.scope = context.Scope(parent=recorder.scope_here(), owner=recorder, dimensions=dimensions)
        self.scope.is_call = True
        self._recorder = recorder
        self._model = model
        self._provider = provider
        self._customer = customer
        self._prompt = prompt
        self._own: list[StreamTap] = []
        self._own_records = 0
        self._text: StreamTap | None = None
        self._streams: Streams | None = None

    # The customer.

    def name_customer(self) -> None:
        """Bill what runs inside to the customer that was named."""
        if self._customer is not None:
            self._name(self._customer)

    async def name_customer_async(self) -> None:
        """As `name_customer`; the callable that names it may be async."""
        customer = self._customer
        if inspect.isawaitable(customer):
            try:
                customer = await customer
            except Exception as exc:
                self._recorder.telemetry.failure("decorator.customer", exc)
                return
        if customer is not None:
            self._name(customer)

    def _name(self, customer: Any) -> None:
        try:
            self.scope.customer = customers.checked(customer)
        except ValueError as exc:
            self._recorder.telemetry.failure("customer.invalid", exc)
            if inspect.iscoroutine(customer):
                customer.close()

    # What a function returns.

    def returned(self, value: Any) -> Any:
        """Read what the function returned and give it on: itself, or what stands in for a generator."""
        try:
            if inspect.isgenerator(value):
                return self.generated(value)
            if inspect.iscoroutine(value):
                return self._awaited(value)
            if inspect.isasyncgen(value):
                return relayed(self, value)
            if is_stream(value):
                self._tap(value)
            else:
                self._read(value)
        except Exception as exc:
            self._recorder.telemetry.failure("capture.decorator", exc)
        return value

    async def _awaited(self, value: Coroutine[Any, Any, Any]) -> Any:
        token = context.enter(self.scope)
        try:
            result = await value
        finally:
            context.leave(self.scope, token)
        return self.returned(result)

    def _tap(self, stream: Any) -> None:
        if not is_tapped(stream):
            tap_stream(stream, self._new_tap(self._new_tally()), wire_tally=self._wire_tally)

    def _read(self, value: Any) -> None:
        texts = []
        found = value is None
        for part in parts_of(value, self._reading):
            found = True
            if isinstance(part, str):
                texts.append(part)
            else:
                self._record(part)
        text = "".join(texts)
        if text and not self.scope.covers(None):
            self._record(Reading(model=self._model, provider=self._provider, text=text))
        if not found and not self.scope.covers(None):
            self._recorder.telemetry.count("decorator.unread")

    def _reading(self, value: Any) -> Reading:
        return read_response(value, provider=self._provider, keep_text=self._recorder.wants_text())

    def _record(self, reading: Reading) -> None:
        if reading.response_id is None and self._is_covered(reading.api):
            return
        ticket = self._recorder.record(
            reading, surface="decorator", request=self._prompt, model=self._model, scope=self.scope
        )
        self._own_records += ticket is not None and reading.api != "embeddings"

    # What a function yields.

    def take(self, item: Any) -> None:
        """Look at what the function yields."""
        try:
            if type(item) is str and item[:5] not in ("data:", "event"):
                self._take_text(item)
            elif isinstance(item, (str, bytes, bytearray)):
                text = item if isinstance(item, str) else bytes(item).decode("utf-8", "replace")
                for inside in unframed(text):
                    self._take_text(inside) if isinstance(inside, str) else self._take_object(inside)
            elif item is not None:
                self._take_object(item)
        except Exception as exc:
            self._recorder.telemetry.failure("capture.decorator", exc)

    def _take_text(self, text: str) -> None:
        if self._text is None:
            self._text = self._new_tap(TextTally(model=self._model, provider=self._provider))
        self._text.feed(text)

    def _take_object(self, item: Any) -> None:
        if isinstance(item, (tuple, list)):
            for each in item[:100]:
                self.take(each)
            return
        if is_whole(item):
            self._read(item)
            return
        if self._streams is None:
            self._streams = Streams(self._new_tap, self._new_tally)
        self._streams.feed(item)

    def _new_tally(self) -> StreamTally:
        return StreamTally(provider=self._provider, keep_text=self._recorder.wants_text())

    def _wire_tally(self, response: Any) -> WireTally:
        return WireTally(
            content_type=response.headers.get("content-type"),
            provider=self._provider,
            keep_text=self._recorder.wants_text(),
        )

    def _new_tap(self, tally: Any) -> StreamTap:
        tap = StreamTap(
            self._recorder,
            tally=tally,
            surface="decorator",
            request=self._prompt,
            model=self._model,
            scope=self.scope,
            covered=lambda: self._is_covered(None),
        )
        self._own.append(tap)
        return tap

    def _is_covered(self, api: str | None) -> bool:
        """Whether something else inside counts, or has counted, an answer of this kind."""
        if self.scope.others_opened(self._own):
            return True
        if api == "embeddings":
            return self.scope.embedded > 0
        return self.scope.recorded - self.scope.embedded > self._own_records

    def finish(self, *, complete: bool) -> None:
        """The function yields no more."""
        try:
            for tap in self._streams.taps if self._streams is not None else ():
                self._finish(tap, complete)
            if self._text is not None and self.scope.covers(None, besides=self._text):
                self._text.discard()
            elif self._text is not None:
                self._text.finish(complete)
        except Exception as exc:
            self._recorder.telemetry.failure("capture.decorator", exc)

    def _finish(self, tap: StreamTap, complete: bool) -> None:
        tally: Any = tap.tally
        if tally.id is None and self._is_covered(None):
            tap.discard()
        else:
            self._own_records += tap.finish(complete or tally.ended) is not None

    def abandon(self) -> None:
        """As `finish`, where nobody reads on: closed by the caller, or by the garbage collector."""
        if not is_collecting():
            self.finish(complete=False)
        elif self._own:
            with suppress(Exception):
                self._recorder.counter.later(lambda: self.finish(complete=False))

    # Generators.

    def generated(self, inner: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Relay a generator, whatever is sent or thrown into it; each step runs in the scope."""
        step: Callable[..., Any] = inner.__next__
        sent: tuple[Any, ...] = ()
        while True:
            token = context.enter(self.scope)
            try:
                item = step(*sent)
            except StopIteration as stop:
                self.finish(complete=True)
                return stop.value
            except BaseException:
                sent = ()  # an error that was thrown in refers to this frame
                self.finish(complete=False)
                raise
            finally:
                context.leave(self.scope, token)
            self.take(item)
            try:
                answer = yield item
            except GeneratorExit:
                self._close(inner)
                raise
            except BaseException as exc:
                step, sent = inner.throw, (exc,)
            else:
                step, sent = (inner.__next__, ()) if answer is None else (inner.send, (answer,))

    def _close(self, inner: Generator[Any, Any, Any]) -> None:
        token = context.enter(self.scope)
        try:
            inner.close()
        finally:
            context.leave(self.scope, token)
            self.abandon()
