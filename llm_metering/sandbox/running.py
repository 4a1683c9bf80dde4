"""The sandbox on a port: in a background thread for tests, or in the foreground for the command line."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .app import SandboxApp, create_app
from .books import Books
from .door import Door
from .faults import Fault, Kind, Match
from .switches import Switches

if TYPE_CHECKING:
    import stripe
    import uvicorn

DEFAULT_PORT = 12111
DEFAULT_KEY = "sk_test_sandbox"


class Sandbox:
    """A sandbox that runs in this process. What its methods do is done when they return."""

    def __init__(
        self, app: SandboxApp, server: uvicorn.Server, thread: threading.Thread, address: tuple[str, int]
    ):
        self.app = app
        self.host, self.port = address
        self.api_key = DEFAULT_KEY
        self._server = server
        self._thread = thread

    @property
    def url(self) -> str:
        """Such as "http://127.0.0.1:49152"."""
        return f"http://{self.host}:{self.port}"

    @property
    def base_addresses(self) -> dict[str, str]:
        """For `StripeClient(base_addresses=…)`."""
        return {"api": self.url, "meter_events": self.url, "files": self.url, "connect": self.url}

    def client(self, api_key: str | None = None, **options: Any) -> stripe.StripeClient:
        """The official SDK's client, pointed here."""
        from stripe import StripeClient

        return StripeClient(api_key or self.api_key, base_addresses=self.base_addresses, **options)  # type: ignore[arg-type]

    def books(self, *, account: str | None = None, identifiers: bool = False) -> Books:
        """What the accepted events add up to, straight from the raw events."""
        return self.app.books(account=account, identifiers=identifiers)

    def settle(self) -> int:
        """Count every event that waits for its delay now; return how many there were."""
        return self.app.settle()

    def deliver_webhooks(self) -> int:
        """Send every webhook that waits, whatever its time; return how many were taken."""
        done = asyncio.run_coroutine_threadsafe(self.app.deliver_webhooks(), self._loop())
        return done.result(60)

    def reset(self) -> None:
        """Forget everything. Switches stay."""
        self.app.reset()

    def snapshot(self, name: str = "default") -> None:
        """Keep objects and events as they are now, until `reset`."""
        self.app.snapshot(name)

    def restore(self, name: str = "default") -> None:
        """Put back what was kept."""
        self.app.restore(name)

    def set_switches(self, **changes: Any) -> None:
        """Change what the sandbox assumes, or its pace."""
        self.app.set_switches(**changes)

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

    def refuse(self, seconds: float) -> None:
        """Close the port for so long: connections are refused, open ones reset."""
        asyncio.run_coroutine_threadsafe(self.app.door.refuse(seconds), self._loop()).result(5)

    def clear_faults(self) -> None:
        self.app.faults.clear()

    def stop(self) -> None:
        """Stop serving. Whoever still waits for an answer sees a reset."""
        if not self._thread.is_alive():
            return
        with suppress(RuntimeError):
            self._loop().call_soon_threadsafe(self.app.door.reset_all)
        self._server.should_exit = True
        self._thread.join(10)

    def _loop(self) -> asyncio.AbstractEventLoop:
        return self._server.servers[0].get_loop()


@contextmanager
def running_sandbox(
    port: int = 0,
    db: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    now: Callable[[], float] = time.time,
    switches: Switches | None = None,
    seed: int | str | None = None,
    keys: Collection[str] | None = None,
) -> Iterator[Sandbox]:
    """Run a sandbox in a background thread, on a free port unless one is named.

    with running_sandbox() as sandbox:
        client = sandbox.client()
        client.v1.customers.create({"name": "John Doe"})
    """
    listener = _listen(host, port)
    try:
        app = create_app(db, now=now, switches=switches, seed=seed, keys=keys)
    except BaseException:
        listener.close()
        raise
    sandbox = _started(app, listener)
    try:
        yield sandbox
    finally:
        sandbox.stop()
        app.close()


@contextmanager
def served_app(app: SandboxApp, port: int = 0, *, host: str = "127.0.0.1") -> Iterator[Sandbox]:
    """Serve a sandbox that is there already, in a background thread; it stays when the port is closed."""
    sandbox = _started(app, _listen(host, port))
    try:
        yield sandbox
    finally:
        sandbox.stop()


def serve(
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    db: str | Path | None = None,
    *,
    switches: Switches | None = None,
    seed: int | str | None = None,
    faults: Sequence[Fault] = (),
    ready: Callable[[str], None] | None = None,
) -> None:
    """Run a sandbox in the foreground until SIGINT or SIGTERM.

    Args:
        faults: What goes wrong from the start.
        ready: Called with the URL once the port is open.
    """
    listener = _listen(host, port)
    try:
        app = create_app(db, switches=switches, seed=seed)
        app.faults.add(*faults)
    except BaseException:
        listener.close()
        raise
    try:
        if ready is not None:
            ready("http://{}:{}".format(*listener.getsockname()[:2]))
        with suppress(KeyboardInterrupt):
            _server(app).run(sockets=[listener])
    finally:
        app.close()


def _started(app: SandboxApp, listener: socket.socket) -> Sandbox:
    try:
        server = _server(app)
    except BaseException:
        listener.close()
        raise
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="sandbox", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the sandbox's server did not start")
        time.sleep(0.002)
    return Sandbox(app, server, thread, listener.getsockname()[:2])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's delays off only where the protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def _server(app: SandboxApp) -> uvicorn.Server:
    try:
        import uvicorn
    except ImportError as exc:
        raise RuntimeError(
            "the sandbox needs uvicorn to listen on a port: pip install 'llm_metering[sandbox]'"
        ) from exc
    connection = _connection_type(app.door)
    config = uvicorn.Config(
        app,
        http=connection,
        loop="asyncio",  # resets need its transports
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,  # the sandbox has a clock of its own
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    app.door.closer = _Port(server, connection, app.door).close
    return server


def _connection_type(door: Door) -> type[asyncio.Protocol]:
    """uvicorn's own connection, made known to the door."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class Connection(AutoHTTPProtocol):  # type: ignore[valid-type, misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            door.opened(transport)
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            door.closed(self.transport)
            super().connection_lost(exc)

    return Connection


class _Port:
    """The port that a server listens on, to be closed for a while."""

    def __init__(self, server: uvicorn.Server, connection: type[asyncio.Protocol], door: Door) -> None:
        self._server = server
        self._connection: Callable[..., asyncio.Protocol] = connection
        self._door = door
        self._address = ("", 0)
        self._opening: asyncio.Task[None] | None = None

    async def close(self, seconds: float) -> None:
        """Refuse connections for so long."""
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()  # it is closed already, and opens later now
        else:
            await self._close()
        self._opening = asyncio.create_task(self._open(seconds))

    async def _close(self) -> None:
        loop = asyncio.get_running_loop()
        self._address = self._server.servers[0].sockets[0].getsockname()[:2]
        for listening in self._server.servers:
            for sock in listening.sockets:
                loop.remove_reader(sock.fileno())
        # asyncio loses a connection that it has accepted when the listener closes under it.
        await asyncio.sleep(0.005)
        for listening in self._server.servers:
            listening.close()

    async def _open(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        server = self._server
        if server.should_exit:
            return
        loop = asyncio.get_running_loop()

        def connection() -> asyncio.Protocol:
            return self._connection(
                config=server.config,
                server_state=server.server_state,
                app_state=server.lifespan.state,
                _loop=loop,
            )

        self._door.open()
        server.servers = [await loop.create_server(connection, sock=_listen(*self._address))]
