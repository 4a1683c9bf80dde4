"""Starts metering before the app and stops it after, as the server's lifespan messages say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import MeteringError

if TYPE_CHECKING:
    from ..protocols import Telemetry
    from ..settings import Settings
    from .recorder import Recorder

ASGIScope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[ASGIScope, Receive, Send], Awaitable[None]]


class Home(Protocol):
    """What the middleware needs of `Metering`."""

    @property
    def recorder(self) -> Recorder: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def telemetry(self) -> Telemetry: ...

    @property
    def is_started(self) -> bool: ...

    def has_room(self) -> bool:
        """Whether more usage can be written. Asked for every request."""

    def start(self) -> None:
        """May block for seconds. Harmless when started."""

    def start_soon(self) -> None:
        """Start without making the caller wait."""

    def stop(self) -> None:
        """May block for seconds. Harmless when stopped."""


async def run_with_lifespan(home: Home, app: ASGIApp, scope: ASGIScope, receive: Receive, send: Send) -> None:
    """Run the app's own lifespan between our start and our stop.

    Metering that cannot work fails the start, before the app's own start-up has begun: the server is told
    why in a sentence.
    """
    pending = [await receive()]
    if not await _started(home, send):
        return

    async def receive_first() -> Message:
        return pending.pop() if pending else await receive()

    async def send_watched(message: Message) -> None:
        if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            # Before it goes on: a server may end the process as soon as it has this message.
            await _stop(home)
        await send(message)

    try:
        await app(scope, receive_first, send_watched)
    finally:
        # An app without lifespan has raised by now; then the first request starts metering again.
        await _stop(home)


async def _started(home: Home, send: Send) -> bool:
    from anyio.to_thread import run_sync

    try:
        await run_sync(home.start)
    except MeteringError as exc:
        await send({"type": "lifespan.startup.failed", "message": str(exc)})
        return False
    except Exception as exc:
        home.telemetry.failure("metering.start", exc)
    return True


async def _stop(home: Home) -> None:
    from anyio import CancelScope
    from anyio.to_thread import run_sync

    if not home.is_started:
        return
    try:
        with CancelScope(shield=True):
            await run_sync(home.stop)
    except Exception as exc:
        home.telemetry.failure("metering.stop", exc)
