"""What becomes of requests while their usage could not be written: turned away, held up, or let through.

Only a request that is likely to be metered is stopped: a POST to one of the middleware's `paths`, or a path
on which something was recorded since the process started. All others pass.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lifespan import ASGIScope, Home, Receive, Send

_LOOK_EVERY_S = 0.05
_MAX_PATHS, _MAX_SHAPES = 10_000, 1000
_LONG = 24
_RETRY_AFTER_S = 5


class Capacity:
    """The policy of `Settings.at_capacity`, and which paths it is for."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.policy = home.settings.at_capacity
        self.has_room = home.has_room
        self._paths: set[str] = set()
        self.shapes: set[tuple[str, ...]] = set()
        """Of the paths on which something was recorded, besides those whose own answers are read."""
        self._told = False

    @property
    def lets_through(self) -> bool:
        """Whether requests go on unmetered just now; then nothing is worth waiting for."""
        return self.policy == "allow_unmetered" and not self.has_room()

    def learn(self, path: str) -> None:
        """Something was recorded on this path."""
        if path in self._paths or len(self._paths) >= _MAX_PATHS:
            return
        self._paths.add(path)
        if len(self.shapes) < _MAX_SHAPES:
            self.shapes.add(_shape(path))

    def knows(self, path: str) -> bool:
        return _shape(path) in self.shapes

    async def admits(self) -> bool:
        """Whether a metered request may go on although there was no room a moment ago."""
        if self.policy == "allow_unmetered":
            self._home.telemetry.count("capacity.unmetered")
            if not self._told:
                self._told = True
                self._home.telemetry.alarm(
                    "capacity.unmetered", "requests are served although their usage cannot be written"
                )
            return True
        self._told = False
        if self.policy == "block" and await self._wait():
            return True
        self._home.telemetry.count("capacity.rejected")
        return False

    async def _wait(self) -> bool:
        from anyio import sleep

        ends_at = monotonic() + self._home.settings.commit_timeout_s
        while not self.has_room():
            if monotonic() >= ends_at:
                return False
            await sleep(_LOOK_EVERY_S)
        return True


def _shape(path: str) -> tuple[str, ...]:
    """The path with what looks like a name of one thing among many left out."""
    return tuple(
        "*" if len(part) > _LONG or any(c.isdigit() for c in part) else part for part in path.split("/")
    )


_NO_ROOM = (
    b'{"error":{"message":"Usage cannot be recorded at the moment. Try again later.",'
    b'"type":"service_unavailable","param":null,"code":"metering_unavailable"}}'
)


async def turn_away(scope: ASGIScope, receive: Receive, send: Send) -> None:
    """503 in the shape that provider SDKs show as a message, and try again."""
    prefix = "http."
    if scope["type"] == "websocket":
        await receive()
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1013, "reason": "try again later"})
            return
        prefix = "websocket.http."
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(_NO_ROOM)).encode()),
        (b"retry-after", str(_RETRY_AFTER_S).encode()),
    ]
    await send({"type": f"{prefix}response.start", "status": 503, "headers": headers})
    await send({"type": f"{prefix}response.body", "body": _NO_ROOM})
