"""The sandbox's connections: resetting one, dropping one, hanging, and closing the port for a while.

An ASGI app cannot reset a connection by itself. The server that `running` starts tells the door of its
connections; without such a server (an app called in process) the same faults raise instead.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import anyio

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_RESET = struct.pack("ii", 1, 0)


class Door:
    """Connections by the client's address."""

    def __init__(self) -> None:
        self.connections: dict[tuple[str, int], asyncio.Transport] = {}
        self.closer: Callable[[float], Awaitable[None]] | None = None
        """Closes the port for so many seconds; set by the server."""
        self._shut = False

    def opened(self, transport: asyncio.Transport) -> None:
        self.connections[transport.get_extra_info("peername")[:2]] = transport
        if self._shut:
            # It was accepted just before the port was closed.
            _reset(transport)

    def closed(self, transport: asyncio.Transport) -> None:
        peer = transport.get_extra_info("peername")
        if peer is not None:
            self.connections.pop(peer[:2], None)

    def reset_all(self) -> None:
        """Reset every connection that is open, so that nothing waits for an answer."""
        for transport in list(self.connections.values()):
            _reset(transport)

    async def reset(self, scope: MutableMapping[str, Any], receive: Receive) -> None:
        """Reset this request's connection: the client sees ECONNRESET."""
        transport = self._transport(scope)
        if transport is None:
            raise ConnectionResetError("the sandbox reset the connection")
        _reset(transport)
        await _gone(receive)

    async def drop(self, scope: MutableMapping[str, Any], receive: Receive) -> None:
        """Close this request's connection once what was sent is on its way."""
        transport = self._transport(scope)
        if transport is None:
            raise ConnectionResetError("the sandbox dropped the connection")
        transport.close()
        await _gone(receive)

    async def hang(self, scope: MutableMapping[str, Any], receive: Receive, seconds: float | None) -> None:
        """Say nothing until the client gives up, or for so long; then reset."""
        with anyio.move_on_after(math.inf if seconds is None else seconds):
            await _gone(receive)
            return
        await self.reset(scope, receive)

    async def refuse(self, seconds: float) -> None:
        """Close the port: new connections are refused, open ones reset."""
        if self.closer is None:
            raise RuntimeError("only a sandbox that listens on a port can refuse connections")
        self._shut = True
        await self.closer(seconds)
        self.reset_all()

    def open(self) -> None:
        """The port takes connections again."""
        self._shut = False

    def _transport(self, scope: MutableMapping[str, Any]) -> asyncio.Transport | None:
        client = scope.get("client")
        return None if client is None else self.connections.get((client[0], client[1]))


def _reset(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
