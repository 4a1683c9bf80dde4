"""The object where everything is plugged together: capture in front, a ledger behind, delivery beside."""

from __future__ import annotations

import atexit
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import WeakSet, ref

from . import _forks, customers, wiring
from ._redact import one_line
from .capture import context
from .capture.counter import Counter
from .capture.recorder import Recorder
from .errors import AccountMismatch, ConfigurationError, LedgerUnreachable, MeteringError
from .flusher import Flusher
from .handover import Handover
from .health import Health, foreseen_trouble
from .meters import TokenMeter, checked_meters, liner
from .protocols import Alarm, Ledger, LedgerStatus, Pulse, Sender
from .settings import Settings
from .telemetry import LogTelemetry
from .usage import Reading, Usage

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

C = TypeVar("C")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Metering:
    """Counts LLM calls, keeps the counts safe, and bills them to the caller's Stripe customer.

    Use it with `MeteringMiddleware`, which starts and stops it with the app; or as `with`/`async with`;
    or by `start()` and `stop()`. It starts by itself when the first usage comes.

        metering = Metering(customer=from_state("stripe_customer_id"))
        app.add_middleware(MeteringMiddleware, metering=metering)
        openai = metering.wrap(AsyncOpenAI())

    Args:
        customer: Who is billed: a resolver such as `from_state("stripe_customer_id")`, any plain or async
            callable from a Starlette `HTTPConnection` to a customer id, or one customer id for all.
        settings: Default: read from the environment, see `Settings`.
        ledger: A folder, "postgresql://…", "memory:", or a `Ledger`. Default: `settings.ledger`.
        sender: Default: a `StripeSender` with `settings.stripe_api_key`; without a key nothing is sent.
        meters: Default: one `TokenMeter()`, which takes every token as `hypernian_tokens`.
        on_alarm: Called with each `Alarm`, beside the log record.
        now: The clock, Unix seconds.

    Raises:
        ConfigurationError: An argument or setting cannot work.
    """

    def __init__(
        self,
        customer: customers.Resolver | str | None = None,
        *,
        settings: Settings | None = None,
        ledger: str | Path | Ledger | None = None,
        sender: Sender | None = None,
        meters: Sequence[TokenMeter] | None = None,
        on_alarm: Callable[[Alarm], object] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings = Settings.from_env() if settings is None else settings
        self.meters: tuple[TokenMeter, ...] = checked_meters(meters)
        self.telemetry = LogTelemetry(on_alarm=on_alarm)
        self.now = now
        self.sender = sender if sender is not None else wiring.sender_of(settings)
        self._way = wiring.Way(
            settings.ledger if ledger is None else ledger,
            settings,
            self.telemetry,
            lines_of=liner(self.meters),
            now=now,
        )
        self._writer, to_ledger = self._way.writer, self._way.to_ledger
        own = sender is None
        self.settler = wiring.settler_of(to_ledger, settings, self.telemetry, now) if own else None
        """Holds accepted and doubtful events against Stripe's summaries, beside delivery. None without a key,
        and where a sender of the caller's own sends who knows where."""
        self._flusher = Flusher(
            to_ledger, self.sender, settings, self.telemetry, now=now, beside=self.settler
        )
        self._handover = Handover(to_ledger, settings, self.telemetry, now=now)
        self._counter = Counter(settings=settings, telemetry=self.telemetry)
        self.recorder = Recorder(
            settings=settings,
            sink=wiring.StartingSink(self, self._way.sink),
            telemetry=self.telemetry,
            counter=self._counter,
            resolver=customer if callable(customer) else None,
            customer=_fixed(customer),
            now=now,
        )
        self._lock = Lock()
        self.is_started = False
        self._stopped = False
        self._starting: Thread | None = None
        self._retry_start_at = 0.0
        _instances.add(self)
        _forks.watch(self)
        # A script may end without `stop`, and before anything was started: while a tokenizer loads, say.
        atexit.register(_at_exit, ref(self))

    # Life.

    def has_room(self) -> bool:
        """Whether more usage can be taken: the disk is well and not full, and not too much waits for it."""
        return self._writer.has_room()

    def start(self) -> None:
        """Open the ledger, adopt what a dead process left, start delivery. Harmless when started.

        Raises:
            LedgerError: The ledger cannot be opened or written.
            AccountMismatch: The ledger belongs to another Stripe account than the key.
        """
        with self._lock:
            if not self.is_started:
                self._begin()

    def _begin(self) -> None:
        self._way.open()
        self._refuse_foreign_account()
        self._counter.load(self.settings.encodings)
        if self.settings.deliver == "thread":
            self._flusher.start()
        elif self._way.forwarder is None:
            self._handover.start()
        self.is_started = True
        self._stopped = False

    def start_soon(self) -> None:
        """Start without making the caller wait; what goes wrong is an alarm, and is tried again.

        Does nothing after `stop`: what is recorded then is committed before recording returns, and is
        delivered by the next process.
        """
        if self.is_started or self._stopped or (self._starting is not None and self._starting.is_alive()):
            return
        if time.monotonic() < self._retry_start_at:
            return
        self._retry_start_at = time.monotonic() + 5
        self._starting = Thread(target=self._try_start, name="llm-metering-start", daemon=True)
        self._starting.start()

    def stop(self) -> None:
        """Commit what is recorded, stop starting sends, and wait at most `drain_s` for those in flight.

        What is not delivered stays in the ledger; the next process delivers it. Recording goes on working.
        Where the ledger is PostgreSQL, what is recorded here is forwarded within the same time.
        """
        with self._lock:
            if not self.is_started:
                # A start that is on its way, but has not come so far, must not begin after this.
                self._stopped = self._stopped or self._starting is not None
                self._way.close(self.settings.drain_s)
                return
            self.recorder.stop_draining(self.settings.drain_s)
            self._counter.settle(self.settings.drain_s)
            self.is_started = False
            self._stopped = True
            self._retry_start_at = 0.0
            self._way.stop_forwarding(self.settings.drain_s)
            self._flusher.stop(self.settings.drain_s)
            self._handover.stop(self.settings.drain_s)
            self._way.close(self.settings.drain_s)
            if self.sender is not None:
                self.sender.close()

    def flush(self, timeout_s: float = 30.0) -> int:
        """Freeze all usage now and deliver it; return how many meter events are still undelivered.

        For scripts and tests. A service needs no flush. With `deliver="external"` it hands everything over to
        the process that delivers, and does not wait for it.
        """
        self.start()
        self._counter.settle(timeout_s)
        self._writer.flush(timeout_s)
        if self._way.forwarder is not None:
            self._way.forwarder.forward(timeout_s)
        if self.settings.deliver == "external":
            self._handover.now()
            books = self.run_on_ledger(lambda ledger: ledger.view())
            return len(books.events(states=("PENDING", "SENDING", "AMBIGUOUS"), limit=_ALL_EVENTS))
        return self._flusher.flush(timeout_s)

    def status(self) -> LedgerStatus:
        """The ledger at a glance. It reads the books beside the writer, which is not held up."""
        books = self.run_on_ledger(lambda ledger: ledger.view())
        return books.status(now=self.now())

    def health(self) -> Health:
        """Whether usage is safe right now. Quick, never raises, and waits for neither the writer nor Stripe.

        Call it from a thread where an event loop must not wait for the disk, as `health_endpoint` does.
        """
        reasons = []
        if not self.is_started:
            reasons.append("metering is stopped" if self._stopped else "metering has not started")
        if problem := self._writer.problem:
            reasons.append(f"usage cannot be written: {problem}")
        elif not self._writer.has_room():
            reasons.append("there is no room for more usage")
        pulse, waiting = Pulse(), None
        try:
            pulse, waiting = self._way.pulse()
        except MeteringError as exc:
            reasons.append(f"the ledger cannot be read: {exc}")
        except Exception as exc:
            self.telemetry.failure("metering.health", exc)
            reasons.append("the ledger cannot be read")
        if not reasons and (foreseen := foreseen_trouble(pulse, self.settings.min_free_bytes)):
            reasons.append(foreseen)

        def age_of(since: float | None) -> float | None:
            return None if since is None else max(self.now() - since, 0.0)

        return Health(
            ready=not reasons,
            reasons=tuple(one_line(reason) for reason in reasons),
            queued_records=self._writer.queued,
            oldest_pending_age_s=age_of(pulse.oldest_pending_at),
            paused=None if pulse.paused is None else one_line(pulse.paused),
            disk_free_bytes=pulse.disk_free_bytes,
            unforwarded_records=None if waiting is None else waiting.records,
            unforwarded_age_s=None if waiting is None else age_of(waiting.since),
            counters=self.telemetry.snapshot(),
        )

    def run_on_ledger(self, function: Callable[[Ledger], T]) -> T:
        """Run a function of the ledger on the thread that owns it, such as one that reads `balances()`.

        Raises:
            LedgerError: The ledger cannot be opened or read.
        """
        self.start()
        return self._way.to_ledger.run(function)

    def __enter__(self) -> Metering:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Metering:
        from anyio.to_thread import run_sync

        await run_sync(self.start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        from anyio import CancelScope
        from anyio.to_thread import run_sync

        with CancelScope(shield=True):
            await run_sync(self.stop)

    # Capture.

    def wrap(self, client: C, **dimensions: str) -> C:
        """Meter a provider's SDK client; it keeps its type and behaviour, streams included.

        Args:
            client: Such as `OpenAI()`, `AsyncOpenAI()`, `Anthropic()` or `AsyncAnthropic()`.
            dimensions: Added to everything this client records.

        Raises:
            ConfigurationError: The object is not a client that can be metered.
        """
        from .capture.clients import wrap

        return wrap(client, self.recorder, **dimensions)

    @overload
    def metered(self, function: F, /) -> F: ...

    @overload
    def metered(
        self,
        /,
        *,
        model: str | None = None,
        customer: str | Callable[..., str | Awaitable[str | None] | None] | None = None,
        prompt: str | None = None,
        provider: str | None = None,
        **dimensions: str,
    ) -> Callable[[F], F]: ...

    def metered(
        self,
        function: Any = None,
        /,
        *,
        model: str | None = None,
        customer: str | Callable[..., str | Awaitable[str | None] | None] | None = None,
        prompt: str | None = None,
        provider: str | None = None,
        **dimensions: str,
    ) -> Any:
        """Meter a plain, async, generator or async generator function.

        What it returns or yields is read: a provider's answer or stream events, or plain text, which is
        counted with the tokenizer of `model`.

        Args:
            model: Names the tokenizer for plain text, and the model where the answer names none.
            customer: Who is billed, or a callable of the function's arguments. Default: the context's.
            prompt: The argument that holds the prompt. Default: the first of messages, prompt, input, text.
            provider: Whose shape the answer has, where it does not say.
            dimensions: Such as feature="digest".
        """
        from .capture.decorators import metered

        decorate = metered(
            self.recorder, model=model, customer=customer, prompt=prompt, provider=provider, **dimensions
        )
        return decorate if function is None else decorate(function)

    def bind(self, *, customer: str | None = None, **dimensions: str) -> None:
        """Name the customer or dimensions of this request, from here on.

        Raises:
            ConfigurationError: There is no request and no `bound(...)` block to bind to.
        """
        scope = context.current(self.recorder)
        if scope is None:
            raise ConfigurationError(
                "bind() needs a request under MeteringMiddleware; outside of one use "
                "`with metering.bound(customer=..., ...):`"
            )
        scope.bind(_checked(customer), _texts(dimensions))

    @contextmanager
    def bound(self, *, customer: str | None = None, **dimensions: str) -> Iterator[None]:
        """Name the customer or dimensions of everything inside this block, in or outside of a request.

        In a web service keep `MeteringMiddleware` round it: servers begin the next request of a connection in
        the context in which this one received and answered.
        """
        scope = context.Scope(
            parent=context.current(self.recorder),
            customer=_checked(customer),
            dimensions=_texts(dimensions),
            owner=self.recorder,
        )
        with context.entered(scope):
            yield

    def record(
        self,
        answer: Any,
        *,
        customer: str | None = None,
        model: str | None = None,
        provider: str | None = None,
        api: str | None = None,
        request: Any = None,
        id: str | None = None,
        used_at: float | None = None,
        **dimensions: str,
    ) -> None:
        """Record one answer by hand. Returns at once and does not raise for what the answer holds.

        Args:
            answer: A provider's answer (mapping, SDK object, JSON), a `Reading`, or a `Usage`.
            customer: Who is billed. Default: the context's.
            model: Where the answer names none.
            provider: Whose shape the answer has, where it does not say, such as "anthropic".
            api: Such as "chat" or "messages", where the shape does not say.
            request: The call's arguments, for counting what the provider did not report.
            id: Makes recording idempotent: one id is recorded once in the lane of this process, for
                whichever customer, so let no client choose it; workers beside it have lanes of their own.
            used_at: When it was used, Unix seconds. Default: now. What cannot be is held.
            dimensions: Such as feature="batch".
        """
        self.recorder.record(
            self._read(answer, provider, api),
            surface="record",
            customer=customer,
            model=model,
            dimensions=_texts(dimensions),
            request=request,
            id=id,
            used_at=used_at,
        )

    # Inside.

    def _read(self, answer: Any, provider: str | None, api: str | None) -> Reading:
        if isinstance(answer, Reading):
            return answer
        if isinstance(answer, Usage):
            return Reading(usage=answer, provider=provider, api=api)
        from .providers import read_response

        try:
            keep_text = self.recorder.wants_text()
            return read_response(answer, provider=provider, api=api, keep_text=keep_text)
        except Exception as exc:
            self.telemetry.failure("capture.read", exc)
            return Reading(problem=f"unreadable: {type(exc).__name__}")

    def _try_start(self) -> None:
        try:
            with self._lock:
                if not (self.is_started or self._stopped):
                    self._begin()
        except MeteringError as exc:
            self.telemetry.alarm("metering.start_failed", str(exc))
        except Exception as exc:
            self.telemetry.failure("metering.start", exc)

    def _refuse_foreign_account(self) -> None:
        """A key of another account is refused at start, where it can be told. Stripe being down is not."""
        sender = self.sender
        if sender is None:
            return
        try:
            bound_to = self._way.to_ledger.run(lambda ledger: ledger.account())
            known = self._way.to_ledger.run(lambda ledger: ledger.meta("key_hints")) or ""
        except LedgerUnreachable:
            return  # delivery asks before it sends the first event
        if bound_to is None or sender.key_hint in known.split():
            return
        mode = sender.key_hint.partition(":")[0]
        if mode in ("live", "test") and not bound_to.endswith(f"({mode})"):
            self._refuse(bound_to, f"another mode ({mode})")
        outcome = sender.check()
        if outcome.kind == "accepted" and outcome.message != bound_to:
            self._refuse(bound_to, outcome.message or "another account")

    def _refuse(self, bound_to: str, key_of: str) -> None:
        if self.sender is not None:
            self.sender.close()
        self._way.stop_forwarding(self.settings.drain_s)
        self._way.close(self.settings.drain_s)
        raise AccountMismatch(bound_to=bound_to, key_of=key_of)

    def after_fork(self) -> None:
        """Forget the parent's life; called by itself in a forked child, which starts its own when needed."""
        self._lock = Lock()
        self._counter.after_fork()
        self.is_started = False
        self._starting = None
        self._retry_start_at = 0.0

    def commit_all(self, timeout_s: float, *, counting_s: float = 0.0) -> None:
        """Commit what is queued and close the ledger, without delivering. Counting may take longer."""
        self._counter.settle(max(timeout_s, counting_s))
        if self._starting is not None:
            self._starting.join(timeout_s)
        self._way.stop_forwarding(timeout_s)
        self._way.close(timeout_s)


_instances: WeakSet[Metering] = WeakSet()


def _at_exit(metering: ref[Metering]) -> None:
    if (alive := metering()) is not None:
        alive.commit_all(_EXIT_S, counting_s=_COUNTING_S)


_EXIT_S = 2.0
_COUNTING_S = 30.0
"""What is still to be counted would be lost; on a busy machine a tokenizer alone loads for seconds."""
_ALL_EVENTS = 10_000_000


def _fixed(customer: Any) -> str | None:
    return None if callable(customer) else _checked(customer)


def _checked(customer: Any) -> str | None:
    try:
        return customers.checked(customer)
    except ValueError as exc:
        raise ConfigurationError(f"customer={customer!r} cannot be billed: {exc}") from exc


def _texts(dimensions: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in dimensions.items() if value is not None}
