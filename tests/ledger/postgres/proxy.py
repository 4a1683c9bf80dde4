"""Stands between a ledger and its server, and cuts the line at the worst moment."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path


class Proxy:
    """Passes bytes both ways. After `lose_answer_to(b"COMMIT\\0")` the next such statement reaches the
    server, and the line is cut before its answer reaches the client."""

    def __init__(self, server: Path) -> None:
        self._server = str(server)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._lines: list[socket.socket] = []
        self._wanted: bytes | None = None
        self.lost = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}?sslmode=disable&gssencmode=disable"

    def lose_answer_to(self, statement: bytes) -> None:
        self._wanted = statement

    def close(self) -> None:
        self._listening.close()
        for line in self._lines:
            _cut(line)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                self._lines += [client, server]
                threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        over = threading.Event()
        mute = threading.Event()
        threading.Thread(target=self._to_client, args=(server, client, mute, over), daemon=True).start()
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self._wanted is not None and self._wanted in data:
                    self._wanted = None
                    self.lost += 1
                    mute.set()
                server.sendall(data)
        _cut(server)
        over.wait(5)
        client.close()
        server.close()

    def _to_client(
        self, server: socket.socket, client: socket.socket, mute: threading.Event, over: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if mute.is_set():  # the server has done it, and said so
                    break
                client.sendall(data)
        _cut(client)
        over.set()


def _cut(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
