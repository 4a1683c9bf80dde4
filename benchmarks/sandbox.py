"""How many calls a second the sandbox answers, beside localstripe, in the same minutes on the same machine.

This process is the client: a few connections that are kept, each with one request under way. Servers take
turns within every round; a figure is the median over rounds. localstripe (PyPI) has no meters, so its figure
is the creation of customers, and ours of the same stands beside it. It gets a virtual environment of its own,
where it can be installed, and keeps its state in /tmp/localstripe.pickle, which is overwritten.

    python benchmarks/sandbox.py [--rounds 5] [--seconds 2] [--connections 8]
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

KEY = "sk_test_sandbox"
TARGET = 2_000
"""Meter events a second, from another process."""


@dataclass
class Server:
    """Somebody who listens, and the request whose rate is measured."""

    name: str
    address: tuple[str, int]
    path: str
    form: Callable[[int], str]
    done: int = 0
    """Requests that were answered with 200, in all rounds."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=8)
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [*ours(stack, folder), *theirs(stack, folder)]
        rates: dict[str, list[float]] = {server.name: [] for server in servers}
        for n in range(given.rounds):
            for server in servers[n % len(servers) :] + servers[: n % len(servers)]:
                rates[server.name].append(rate(server, given.seconds, given.connections))
        wrong = [server.name for server in servers if server.path.endswith("meter_events") and off(server)]
    report({name: statistics.median(found) for name, found in rates.items()}, wrong)


def ours(stack: ExitStack, folder: Path) -> Iterator[Server]:
    """The sandbox with its state in memory and on disk; customers, too, for a like with a like."""
    for name, more in (("in memory", ()), ("on disk", ("--db", str(folder / "sandbox.db")))):
        address = stack.enter_context(sandbox(*more))
        customer = set_up(address)
        start = f"event_name=tokens&payload[stripe_customer_id]={customer}&payload[value]=7&identifier="
        yield Server(f"meter events, {name}", address, "/v1/billing/meter_events", (start + "{}").format)
    address = stack.enter_context(sandbox())
    yield Server("customers, in memory", address, "/v1/customers", "name=John+Doe+{}".format)


def theirs(stack: ExitStack, folder: Path) -> Iterator[Server]:
    """localstripe, where it can be had."""
    home = folder / "localstripe"
    try:
        venv.create(home, with_pip=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "localstripe", "setuptools<80"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        why = (getattr(exc, "stderr", "") or str(exc)).strip().splitlines()[-1]
        print(f"localstripe could not be installed, so nothing stands beside our figures: {why}")
        return
    port = free_port()
    command = [str(home / "bin" / "localstripe"), "--port", str(port), "--from-scratch"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(stop, process)
    address = ("127.0.0.1", port)
    wait_for(address, process)
    yield Server("localstripe: customers", address, "/v1/customers", "name=John+Doe+{}".format)


def rate(server: Server, seconds: float, connections: int) -> float:
    """Requests a second, over connections that are kept."""
    numbers, counts = count(server.done), [0] * connections
    until = time.perf_counter() + seconds

    def work(n: int) -> None:
        with socket.create_connection(server.address) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while time.perf_counter() < until:
                post(connection, server.path, server.form(next(numbers)))
                counts[n] += 1

    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.done += sum(counts)
    return sum(counts) / (time.perf_counter() - began)


def post(connection: socket.socket, path: str, form: str) -> bytes:
    """One request, as lean as can be, so that the server is what is measured; its answer's body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}\r\n\r\n"
    )
    connection.sendall((head + form).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += received(connection)
    head_bytes, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head_bytes.lower())
    assert length is not None, head_bytes
    while len(body) < int(length[1]):
        body += received(connection)
    assert b" 200 " in head_bytes.partition(b"\r\n")[0], body
    return body


def received(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    if not data:
        raise ConnectionError("the server hung up")
    return data


@contextmanager
def sandbox(*more: str) -> Iterator[tuple[str, int]]:
    """The sandbox as a person starts it, in a process of its own; where it listens."""
    command = [sys.executable, "-m", "llm_metering", "sandbox", "--port", "0", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://([0-9.]+):(\d+)", process.stdout.readline())
        assert found is not None, "the sandbox did not start"
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield found[1], int(found[2])
    finally:
        stop(process)


def set_up(address: tuple[str, int]) -> str:
    """A meter and a customer; the customer's id."""
    with socket.create_connection(address) as connection:
        form = "display_name=Tokens&event_name=tokens&default_aggregation[formula]=sum"
        post(connection, "/v1/billing/meters", form)
        made = json.loads(post(connection, "/v1/customers", "name=John+Doe"))
    return str(made["id"])


def off(server: Server) -> bool:
    """Whether the sandbox's books differ from what was sent."""
    url = "http://{}:{}/_sandbox".format(*server.address)
    urllib.request.urlopen(urllib.request.Request(f"{url}/settle", method="POST")).read()
    with urllib.request.urlopen(f"{url}/books") as answer:
        rows = json.load(answer)["rows"]
    return [(row["events"], row["value"]) for row in rows] != [(server.done, str(7 * server.done))]


def report(rates: dict[str, float], wrong: list[str]) -> None:
    for name, found in rates.items():
        print(f"{name:36} {found:8,.0f} a second")
    events = rates["meter events, in memory"]
    print(f"target {TARGET:,} meter events a second: {'reached' if events >= TARGET else 'missed'}")
    peer = rates.get("localstripe: customers")
    if peer:
        print(f"our meter events / localstripe's customers: {events / peer:.1f}")
        print(f"our customers / localstripe's customers: {rates['customers, in memory'] / peer:.1f}")
    print(f"books that differ from what was sent: {', '.join(wrong) or 'none'}")
    if wrong:
        sys.exit(1)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(address: tuple[str, int], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(address, timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    sys.exit("localstripe did not start")


def stop(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
