"""A local Stripe for tests: called in process, and on a port as soon as one is asked for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import stripe

from ..errors import MissingExtra
from ..sandbox import Books, Fault, Match, Sandbox, SandboxApp, Switches, create_app
from ..sandbox.faults import Kind
from ..sandbox.running import DEFAULT_KEY, served_app

if TYPE_CHECKING:
    from ..senders.stripe_v1 import StripeSender

T = TypeVar("T")

IN_PROCESS = "http://sandbox.invalid"
_PATIENCE_S = 10.0


class Clock:
    """The sandbox's time. It goes on as the real one does, until it is moved or stopped."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._stopped: float | None = None

    def __call__(self) -> float:
        """Now, Unix seconds. Give the clock to `Metering(now=…)` to let an app live in the same time."""
        return time.time() + self._ahead if self._stopped is None else self._stopped

    def move(self, *, days: float = 0, hours: float = 0, seconds: float = 0) -> float:
        """Move on: what is due by then (renewals, invoices) has happened when it is next looked at."""
        by = days * 86_400 + hours * 3_600 + seconds
        if by < 0:
            raise ValueError("a clock moves forward only")
        if self._stopped is None:
            self._ahead += by
        else:
            self._stopped += by
        return self()

    def stop(self, at: float | None = None) -> None:
        """Stand still, at a time of your choice or at the present one."""
        self._stopped = self() if at is None else float(at)

    def reset(self) -> None:
        """The real time again."""
        self._ahead, self._stopped = 0.0, None


class StripeSandbox:
    """A local Stripe. `.stripe` calls it without a socket; `.url` opens one when it is first asked for.

    with StripeSandbox() as sandbox:
        sandbox.stripe.v1.customers.create({"name": "John Doe"})
    """

    def __init__(self, *, switches: Switches | None = None, seed: int | str | None = None) -> None:
        self.clock = Clock()
        self.api_key = DEFAULT_KEY
        self._switches = switches or Switches()
        self.app: SandboxApp = create_app(now=self.clock, switches=switches, seed=seed)
        """The ASGI app, for `httpx.ASGITransport` and the like."""
        self._loop = _Loop()
        self._open = ExitStack()
        self._running: Sandbox | None = None
        self.stripe = self.client()
        """The official SDK's client of it, plain and async, without a socket."""

    def __enter__(self) -> StripeSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it listens, such as "http://127.0.0.1:49152"."""
        return self._served().url

    @property
    def env(self) -> dict[str, str]:
        """What a service has to find in its environment to use it."""
        return {"STRIPE_API_BASE": self.url, "STRIPE_API_KEY": self.api_key}

    def client(self, api_key: str | None = None, **options: Any) -> stripe.StripeClient:
        """Another client without a socket: of another account (`sk_test_other`), or with other options."""
        options.setdefault("http_client", InProcess(self.app, self._loop))
        base: Any = dict.fromkeys(("api", "meter_events", "files", "connect"), IN_PROCESS)
        return stripe.StripeClient(api_key or self.api_key, base_addresses=base, **options)

    def sender(self) -> StripeSender:
        """What sends meter events here as the package does to Stripe, over a socket."""
        from ..senders.stripe_v1 import StripeSender

        return StripeSender(self.api_key, api_base=self.url)

    def books(self, *, account: str | None = None, identifiers: bool = False) -> Books:
        """What the accepted meter events add up to, straight from the raw events."""
        return self.app.books(account=account, identifiers=identifiers)

    def settle(self) -> int:
        """Count every event that waits for its delay now; return how many there were."""
        return self.app.settle()

    def deliver_webhooks(self) -> int:
        """Send every webhook that waits; return how many were taken."""
        if self._running is not None:
            return self._running.deliver_webhooks()
        return self._loop.run(self.app.deliver_webhooks(), 60)

    def fault(
        self,
        kind: Kind,
        *,
        method: str | None = None,
        path: str | None = None,
        customer: str | None = None,
        **options: Any,
    ) -> None:
        """Let something go wrong. `options` are the fields of `Fault`: count, after, rate, seconds, …"""
        self.app.faults.add(Fault(kind, Match(method, path, customer), **options))

    def clear_faults(self) -> None:
        self.app.faults.clear()

    def set_switches(self, **changes: Any) -> None:
        """Change what it assumes, or its pace."""
        self.app.set_switches(**changes)

    def snapshot(self, name: str = "default") -> None:
        """Keep all objects and events as they are now, until `reset`."""
        self.app.snapshot(name)

    def restore(self, name: str = "default") -> None:
        """Put back what was kept. Time, faults and switches stay."""
        self.app.restore(name)

    def reset(self) -> None:
        """Forget everything, faults, switches and the clock's moves too."""
        self.app.reset()
        self.app.set_switches(**asdict(self._switches))
        self.clock.reset()

    def close(self) -> None:
        self._open.close()
        self._running = None
        self._loop.close()
        self.app.close()

    def _served(self) -> Sandbox:
        if self._running is None:
            try:
                import uvicorn  # noqa: F401
            except ModuleNotFoundError as exc:
                raise MissingExtra("uvicorn", "sandbox") from exc
            self._running = self._open.enter_context(served_app(self.app))
        return self._running


class InProcess(stripe.HTTPClient):
    """The SDK's transport, straight into an ASGI app. A connection that breaks is an APIConnectionError."""

    name = "in_process"

    def __init__(self, app: SandboxApp, loop: _Loop, *, timeout: float = _PATIENCE_S) -> None:
        super().__init__()
        self._app = app
        self._own_loop = loop
        self._timeout = timeout

    def request(  # type: ignore[override]
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        return self._own_loop.run(self._ask(method, url, headers or {}, post_data))

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        return await self._ask(method, url, headers, post_data)

    def sleep_async(self, secs: float) -> Any:
        return asyncio.sleep(secs)

    def close(self) -> None: ...

    async def close_async(self) -> None: ...

    async def _ask(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any
    ) -> tuple[bytes, int, Mapping[str, str]]:
        parts = urlsplit(url)
        body = (post_data or "").encode() if isinstance(post_data, (str, type(None))) else bytes(post_data)
        scope = {
            "type": "http",
            "method": method.upper(),
            "path": parts.path,
            "query_string": parts.query.encode(),
            "headers": [(name.lower().encode(), str(value).encode()) for name, value in headers.items()],
            "client": None,
        }
        exchange = _Exchange(body, self._timeout)
        try:
            await self._app(scope, exchange.receive, exchange.send)
            return exchange.answer()
        except ConnectionError as exc:
            message = f"Unexpected error communicating with Stripe: {exc}"
            raise stripe.APIConnectionError(message) from exc  # type: ignore[no-untyped-call]


class _Exchange:
    """One request's messages to and fro."""

    def __init__(self, body: bytes, timeout: float) -> None:
        self._body: bytes | None = body
        self._timeout = timeout
        self._start: Mapping[str, Any] | None = None
        self._parts: list[bytes] = []
        self._whole = False

    async def receive(self) -> dict[str, Any]:
        if self._body is None:
            await asyncio.sleep(self._timeout)
            return {"type": "http.disconnect"}
        body, self._body = self._body, None
        return {"type": "http.request", "body": body}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._parts.append(message.get("body", b""))
        self._whole = not message.get("more_body")

    def answer(self) -> tuple[bytes, int, Mapping[str, str]]:
        if self._start is None or not self._whole:
            raise ConnectionError("no whole answer came in time")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._start["headers"]}
        return b"".join(self._parts), self._start["status"], headers


class _Loop:
    """An event loop in a thread of its own, so that tests with and without a loop can wait for it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def run(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Wait for a coroutine's result, from any thread but its own."""
        return asyncio.run_coroutine_threadsafe(work, self._started()).result(timeout)

    def close(self) -> None:
        with self._lock:
            if self._loop is None or self._thread is None:
                return
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_PATIENCE_S)
            self._loop.close()
            self._loop = None

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="stripe-sandbox", daemon=True
                )
                self._thread.start()
            return self._loop
