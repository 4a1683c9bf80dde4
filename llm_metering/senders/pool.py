"""Keep-alive connections to one server, as many as there are threads that send at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .connection import Answer, Connection, Endpoint
from .server_clock import ServerClock

if TYPE_CHECKING:
    import ssl


class Pool:
    """Connections to an endpoint. Safe to use from several threads.

    Args:
        tls: Makes the TLS context, once it is needed.
        clock: Hears the server's time from its answers.
    """

    def __init__(self, endpoint: Endpoint, tls: Callable[[], ssl.SSLContext], clock: ServerClock) -> None:
        self.endpoint = endpoint
        self._clock = clock
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._idle: list[Connection] = []

    def exchange(
        self, request: bytes, timeout_s: float, halfway: Callable[[], object] | None = None
    ) -> Answer:
        """As `Connection.exchange`, over a connection that nobody else uses meanwhile.

        Raises:
            NoAnswer: No status came back.
        """
        return self.end(self.begin(request, timeout_s, halfway))

    def begin(
        self, request: bytes, timeout_s: float, halfway: Callable[[], object] | None = None
    ) -> Connection:
        """Send a request over a connection that nobody else uses until `end`."""
        try:
            connection = self._idle.pop()  # the one used last: the likeliest to be alive still
        except IndexError:
            connection = Connection(self.endpoint, self._tls_context, clock=self._clock)
        connection.begin(request, timeout_s, halfway)
        return connection

    def end(self, connection: Connection) -> Answer:
        """Read the answer to what was begun."""
        answer = connection.end()
        self._idle.append(connection)
        return answer

    def close(self) -> None:
        """Close idle connections. The next exchange opens a new one."""
        while self._idle:
            self._idle.pop().close()

    def _tls_context(self) -> ssl.SSLContext:
        # Two threads may make one each at the start; a lock could be left locked by a fork.
        if self._tls is None:
            self._tls = self._make_tls()
        return self._tls
