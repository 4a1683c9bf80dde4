"""One keep-alive HTTP/1.1 connection that knows whether a request may have left this machine.

Lean on purpose: a general HTTP client costs several times the CPU of the request itself, and none of them
says whether the first byte went out, which is what decides between "surely not" and "perhaps".
"""

from __future__ import annotations

import base64
import os
import re
import select
import time
from collections.abc import Callable
from dataclasses import field
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from .._redact import mask
from .._values import dataclass, maker
from ..errors import ConfigurationError
from .server_clock import ServerClock
from .threads import last_moment

if TYPE_CHECKING:
    import socket
    import ssl

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 1024 * 1024
_AT_LEAST_S = 0.05
MAX_IDLE_S = 20.0
"""A connection idle for longer is not used again: balancers and NATs drop such ones without a word."""


class NoAnswer(Exception):
    """No answer came. `sent` tells whether a byte of the request may have left; the cause says why."""

    def __init__(self, sent: bool, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.sent = sent
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said."""

    status: int
    headers: dict[str, str]
    """Those that say something to us, by lower-case name; the last of several wins."""
    body: bytes = b""
    whole: bool = True
    """Whether the body was read to its end."""


_answer = maker(Answer)


@dataclass(frozen=True, slots=True)
class Proxy:
    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go: a server, and a proxy before it if there is one."""

    secure: bool
    host: str
    port: int
    prefix: str = ""
    proxy: Proxy | None = None

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    def head(self, method: str, path: str) -> str:
        """The first lines of a request, up to the headers that are the caller's."""
        plain_proxy = self.proxy if not self.secure else None
        target = f"http://{self.authority}{self.prefix}{path}" if plain_proxy else f"{self.prefix}{path}"
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.authority}"]
        if plain_proxy and plain_proxy.authorization:
            lines.append(f"Proxy-Authorization: {plain_proxy.authorization}")
        return "\r\n".join([*lines, ""])


def endpoint_of(url: str) -> Endpoint:
    """Read a base URL, and the proxy that the environment names for it (HTTPS_PROXY, NO_PROXY).

    Raises:
        ConfigurationError: The URL, or the proxy's, cannot be used.
    """
    said = mask(url)
    parts = _split(url, said)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError(f"{said!r} is not a base URL such as https://api.stripe.com")
    if parts.username is not None:
        raise ConfigurationError(f"{said!r} must not hold a user name or password")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    return Endpoint(
        secure, parts.hostname, port, parts.path.rstrip("/"), _proxy(parts.scheme, parts.hostname)
    )


class Connection:
    """One exchange at a time. It connects when needed and again when the server has closed it.

    Its socket never blocks: it is tried, and waited for only where it was not ready. A socket with a time-out
    is waited for before each try, and each wait hands the interpreter to other threads.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        context: Callable[[], ssl.SSLContext],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        clock: ServerClock | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._context = context
        self._monotonic = monotonic
        self._clock = clock or ServerClock()
        self._sock: socket.socket | None = None
        self._pid = os.getpid()
        self._used_at = 0.0
        self._deadline = 0.0
        self._sent_at = 0.0

    def exchange(
        self, request: bytes, timeout_s: float, halfway: Callable[[], object] | None = None
    ) -> Answer:
        """Send a request and read its answer, all within `timeout_s`.

        Args:
            request: Head and body.
            timeout_s: From name look-up to the last byte of the answer.
            halfway: Called when half of the request has been sent.

        Raises:
            NoAnswer: No status came back.
        """
        self.begin(request, timeout_s, halfway)
        return self.end()

    def begin(self, request: bytes, timeout_s: float, halfway: Callable[[], object] | None = None) -> None:
        """Send a request, as `exchange`; its answer is read by `end`."""
        self._deadline = self._monotonic() + timeout_s
        done = False
        try:
            self._send(request, self._deadline, halfway)
            done = True
        finally:
            if not done:
                self.close()

    def end(self) -> Answer:
        """Read the answer to what was begun."""
        # Another answer may have taken the time; what has come meanwhile is read all the same.
        deadline = max(self._deadline, self._monotonic() + _AT_LEAST_S)
        answer = None
        try:
            answer = self._receive(deadline)
        finally:
            if answer is None:
                self.close()
        return answer

    def fileno(self) -> int:
        """Becomes readable once an answer comes."""
        return self._open_socket().fileno()

    @property
    def left_s(self) -> float:
        """For how long an answer is waited for."""
        return max(self._deadline - self._monotonic(), 0.0)

    def close(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    # Out.

    def _send(self, request: bytes, deadline: float, halfway: Callable[[], object] | None) -> None:
        reused = self._is_alive()
        if not reused:
            self._connect(deadline)
        try:
            self._write(request, deadline, halfway)
        except NoAnswer as exc:
            if exc.sent or not reused:
                raise
            # The server had closed the connection, and not a byte was taken: nothing has happened yet.
            self._connect(deadline)
            self._write(request, deadline, halfway)

    def _write(self, request: bytes, deadline: float, halfway: Callable[[], object] | None) -> None:
        sock = self._open_socket()
        self._sent_at = time.time()
        if self._sent_at > last_moment.get():
            self.close()
            raise NoAnswer(False, TimeoutError("it waited too long to be sent, as in a stopped process"))
        # A plain socket that refuses the first write has taken nothing. Under TLS that is not as plain.
        sent = self._endpoint.secure
        try:
            first = request if halfway is None else request[: len(request) // 2]
            done = self._send_some(sock, first, deadline)
            sent = True
            if halfway is not None:
                halfway()
            while done < len(request):
                done += self._send_some(sock, request[done:], deadline)
        except OSError as exc:
            raise NoAnswer(sent, exc) from exc

    def _send_some(self, sock: socket.socket, data: bytes, deadline: float) -> int:
        while True:
            left_s = self._left(deadline)
            try:
                return sock.send(data)
            except OSError as exc:
                _wait(sock, exc, select.POLLOUT, left_s)

    def _is_alive(self) -> bool:
        sock = self._sock
        if sock is None:
            return False
        if self._pid != os.getpid() or self._monotonic() - self._used_at > MAX_IDLE_S:
            self.close()
            return False
        try:
            sock.recv(1)
        except OSError as exc:
            # Nothing to read is what a healthy idle connection says.
            if type(exc).__name__ in ("BlockingIOError", "SSLWantReadError"):
                return True
        # The end, or bytes that belong to no request of ours.
        self.close()
        return False

    def _connect(self, deadline: float) -> None:
        self.close()
        self._pid = os.getpid()
        try:
            self._sock = self._dial(deadline)
        except (OSError, ValueError) as exc:
            self.close()
            raise NoAnswer(False, exc) from exc

    def _dial(self, deadline: float) -> socket.socket:
        import socket

        endpoint = self._endpoint
        to = endpoint.proxy or endpoint
        sock = self._reach(to.host, to.port, deadline)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if endpoint.secure:
                if endpoint.proxy is not None:
                    self._tunnel(sock, endpoint.proxy, deadline)
                sock.settimeout(self._left(deadline))
                sock = self._context().wrap_socket(sock, server_hostname=endpoint.host)
            sock.settimeout(0)
            return sock
        except BaseException:
            sock.close()
            raise

    def _reach(self, host: str, port: int, deadline: float) -> socket.socket:
        import socket

        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        error: OSError = OSError(f"no address for {host}")
        for i, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = socket.socket(family, kind, protocol)
            try:
                # A share of the time for each, so that one dead address leaves some for the next.
                sock.settimeout(self._left(deadline) / (len(addresses) - i))
                sock.connect(address)
            except OSError as exc:
                sock.close()
                error = exc
            else:
                return sock
        raise error

    def _tunnel(self, sock: socket.socket, proxy: Proxy, deadline: float) -> None:
        host = f"[{self._endpoint.host}]" if ":" in self._endpoint.host else self._endpoint.host
        to = f"{host}:{self._endpoint.port}"
        lines = [f"CONNECT {to} HTTP/1.1", f"Host: {to}"]
        if proxy.authorization:
            lines.append(f"Proxy-Authorization: {proxy.authorization}")
        sock.settimeout(self._left(deadline))
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        sock.settimeout(0)
        head, _ = self._read_head(sock, b"", deadline)
        status, _, _ = _parse_head(head)
        if status != 200:
            raise OSError(f"the proxy refused a tunnel to {to}: HTTP {status}")

    # In.

    def _receive(self, deadline: float) -> Answer:
        sock = self._open_socket()
        rest = b""
        try:
            while True:
                head, rest = self._read_head(sock, rest, deadline)
                status, persistent, headers = _parse_head(head)
                if status >= 200:
                    break
        except (OSError, ValueError) as exc:
            raise NoAnswer(True, exc) from exc
        body, whole, left_over = self._read_body(sock, status, headers, rest, deadline)
        # After a server fault or a time-out of the server's, what else may come is anyone's guess.
        if not (persistent and whole and not left_over and status < 500 and status != 408):
            self.close()
        self._used_at = self._monotonic()
        if self._used_at >= self._clock.listen_at:
            self._clock.hear(head, sent_at=self._sent_at, monotonic=self._used_at)
        return _answer(status, headers, body, whole)

    def _read_head(self, sock: socket.socket, data: bytes, deadline: float) -> tuple[bytes, bytes]:
        while True:
            head, end, rest = data.partition(b"\r\n\r\n")
            if end:
                return head, rest
            if len(data) > MAX_HEAD_BYTES:
                raise ValueError("the answer's headers have no end")
            data += self._recv(sock, deadline)

    def _read_body(
        self, sock: socket.socket, status: int, headers: dict[str, str], data: bytes, deadline: float
    ) -> tuple[bytes, bool, bool]:
        """The body, whether it is whole, and whether bytes were left over."""
        if status in (204, 304):
            return b"", True, bool(data)
        chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length")
        known = _content_length(length) if length is not None and not chunked else None
        try:
            while len(data) <= MAX_BODY_BYTES:
                if chunked:
                    if (found := _dechunked(data)) is not None:
                        return found[0], True, found[1] < len(data)
                elif known is not None and len(data) >= known:
                    return data[:known], True, len(data) > known
                data += self._recv(sock, deadline)
        except EOFError:
            # Without a length the end of the connection is the end of the body.
            return data, length is None and not chunked, True
        except (OSError, ValueError):
            pass
        return data, False, True

    def _recv(self, sock: socket.socket, deadline: float) -> bytes:
        while True:
            left_s = self._left(deadline)
            try:
                data = sock.recv(65536)
            except OSError as exc:
                _wait(sock, exc, select.POLLIN, left_s)
                continue
            if not data:
                raise _Closed("the server closed the connection")
            return data

    def _left(self, deadline: float) -> float:
        left = deadline - self._monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def _open_socket(self) -> socket.socket:
        if self._sock is None:
            raise NoAnswer(False, OSError("not connected"))
        return self._sock


class _Closed(ConnectionError, EOFError):
    """The other side closed the connection."""


def _wait(sock: socket.socket, exc: OSError, events: int, left_s: float) -> None:
    """Until a socket that was not ready is; anything else that it says is raised."""
    name = type(exc).__name__  # those of TLS are not imported where there is none
    if name == "SSLWantReadError":
        events = select.POLLIN
    elif name == "SSLWantWriteError":
        events = select.POLLOUT
    elif name != "BlockingIOError":
        raise exc
    ready = select.poll()
    ready.register(sock, events)
    if not ready.poll(left_s * 1000):
        raise TimeoutError("timed out")


_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?(?=\r\n|\Z)")
# Of the two dozen headers of an answer a few say something to us.
_HEADERS = re.compile(
    rb"\r\n[ \t]*(connection|content-length|location|request-id|retry-after|stripe-should-retry"
    rb"|transfer-encoding)[ \t]*:([^\r]*(?:\r(?!\n)[^\r]*)*)",
    re.IGNORECASE,
)


def _parse_head(head: bytes) -> tuple[int, bool, dict[str, str]]:
    """Status, whether the connection may be used again, headers."""
    match = _STATUS.match(head)
    if match is None:
        raise ValueError(f"not an HTTP answer: {head[:40]!r}")
    headers = {
        name.lower().decode("latin-1"): value.strip().decode("latin-1")
        for name, value in _HEADERS.findall(head)
    }
    connection = headers.get("connection", "").lower()
    persistent = "keep-alive" in connection if match[1] == b"0" else "close" not in connection
    return int(match[2]), persistent, headers


def _content_length(text: str) -> int:
    # A length that cannot be read is longer than any body we take, so that the body counts as cut short.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else MAX_BODY_BYTES + 1


def _dechunked(data: bytes) -> tuple[bytes, int] | None:
    """The body and where it ends; None while more is to come."""
    body, at = b"", 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        size = int(data[at:end].partition(b";")[0].strip() or b"x", 16)
        if size < 0:
            raise ValueError("a chunk of negative size")
        if size == 0:
            after = data.find(b"\r\n\r\n", end)
            return None if after < 0 else (body, after + 4)
        at = end + 2 + size + 2
        if at > len(data):
            return None
        body += data[end + 2 : at - 2]


# The environment.


def _split(url: str, said: str) -> SplitResult:
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigurationError(f"{said!r} is not a URL: it holds blanks or other characters than ASCII")
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is not a number
    except ValueError as exc:
        raise ConfigurationError(f"{said!r} is not a URL: {exc}") from exc
    return parts


def _proxy(scheme: str, host: str) -> Proxy | None:
    import urllib.request as system

    proxies = system.getproxies_environment()
    url = proxies.get(scheme) or proxies.get("all")
    # typeshed does not know this function.
    if not url or system.proxy_bypass_environment(host, proxies):  # type: ignore[attr-defined]
        return None
    said = mask(url)
    parts = _split(url if "://" in url else f"http://{url}", said)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigurationError(
            f"the proxy {said!r} cannot be used: only http:// proxies can; set NO_PROXY={host} to go without"
        )
    user = parts.username
    secret = f"{unquote(user)}:{unquote(parts.password or '')}" if user is not None else None
    return Proxy(
        parts.hostname,
        parts.port or 80,
        "Basic " + base64.b64encode(secret.encode()).decode() if secret is not None else None,
    )
