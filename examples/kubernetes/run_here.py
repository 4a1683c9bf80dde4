"""The manifests without a cluster: the same commands, environment, grace and signals as in a rolling update.

    python run_here.py --ledger postgresql://… --stripe http://127.0.0.1:12111 --customer cus_… [--seconds 5]

It migrates, starts the services and workers that the manifests name, asks them all the while, and in the
middle replaces every one: SIGTERM, the grace period of the manifest, then SIGKILL. One worker is lost without
a word. At the end it delivers what is left, and prints how many answers there were and what is left.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
KEY = "sk_test_sandbox"


@dataclass(frozen=True)
class Kind:
    """A container as a manifest has it."""

    name: str
    command: list[str]
    env: dict[str, str]
    replicas: int
    grace_s: int
    ready_path: str | None


def manifests() -> Iterator[dict[str, Any]]:
    for path in sorted(HERE.glob("*.yaml")):
        if path.name != "compose.yaml":
            yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


def kinds(secrets: dict[str, str]) -> dict[str, Kind]:
    """What is to be run, by the name of its container."""
    documents = list(manifests())
    maps = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
    found = {}
    for document in documents:
        if document["kind"] not in ("Deployment", "Job"):
            continue
        pod = document["spec"]["template"]["spec"]
        for container in pod["containers"]:
            env = {}
            for source in container.get("envFrom", []):
                env |= maps[source["configMapRef"]["name"]]
            for each in container.get("env", []):
                where = each.get("valueFrom", {}).get("secretKeyRef", {})
                env[each["name"]] = each["value"] if "value" in each else secrets[where["key"]]
            found[container["name"]] = Kind(
                container["name"],
                container["command"],
                env,
                document["spec"].get("replicas", 1),
                pod.get("terminationGracePeriodSeconds", 30),
                container.get("readinessProbe", {}).get("httpGet", {}).get("path"),
            )
    return found


class Pod:
    """One process, as a container of its own: its port, its disk, its end."""

    def __init__(self, kind: Kind, **env: str) -> None:
        self.kind = kind
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._disk = tempfile.TemporaryDirectory()
        mine = {"PORT": str(self.port), "LLM_METERING_LANE_FOLDER": f"{self._disk.name}/lanes", **env}
        whole = {**kind.env, **mine}
        command = [re.sub(r"\$\((\w+)\)", lambda m: whole[m[1]], word) for word in kind.command]
        self.process = subprocess.Popen(
            [sys.executable, "-m", *_module(command)],
            cwd=HERE,
            env={**_system(), **whole},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait_until_ready(self, within_s: float = 60) -> None:
        deadline = time.monotonic() + within_s
        while self.kind.ready_path is not None and not answers(self.port, self.kind.ready_path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.kind.name} did not become ready")
            time.sleep(0.05)

    def end(self) -> bool:
        """As a cluster ends a pod; whether it went by itself."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(self.kind.grace_s)
        except subprocess.TimeoutExpired:
            self.lose()
            return False
        self._disk.cleanup()
        return True

    def lose(self) -> None:
        self.process.kill()
        self.process.wait()
        self._disk.cleanup()


def _module(command: list[str]) -> list[str]:
    """Programs of this Python's environment are run as its modules."""
    return [{"llm-metering": "llm_metering"}.get(command[0], command[0]), *command[1:]]


def _system() -> dict[str, str]:
    """Nothing of the developer's own settings."""
    return {n: v for n, v in os.environ.items() if not n.startswith(("LLM_METERING_", "STRIPE_"))}


def answers(port: int, path: str) -> bool:
    """Whether an answer comes, and whole."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return isinstance(json.load(answer), dict)
    except (OSError, http.client.HTTPException, ValueError):
        return False


class Clients:
    """Ask whichever service there is, all the while; an answer is one that came whole."""

    def __init__(self, customer: str) -> None:
        self.ports: list[int] = []
        self.answered = 0
        self._path = f"/ask/{customer}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        n = 0
        while not self._over.wait(0.01):
            n += 1
            if ports := self.ports:
                self.answered += answers(ports[n % len(ports)], self._path)


def roll(pods: list[Pod], clients: Clients, env: dict[str, str]) -> bool:
    """Replace each by a new one; whether all went by themselves."""
    well = True
    for n, old in enumerate(list(pods)):
        new = Pod(old.kind, **env)
        new.wait_until_ready()
        if old.kind.ready_path is not None:
            clients.ports = [p for p in clients.ports if p != old.port] + [new.port]
        pods[n] = new
        well = old.end() and well
    return well


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ledger", required=True)
    parser.add_argument("--stripe", required=True, help="where a sandbox answers")
    parser.add_argument("--customer", required=True)
    parser.add_argument("--seconds", type=float, default=5.0, help="of load before and after the update")
    args = parser.parse_args()
    found = kinds({"ledger": args.ledger, "stripe": KEY})
    env = {"STRIPE_API_BASE": args.stripe, "LLM_METERING_FLUSH_EVERY_S": "0.5", "LLM_METERING_BUCKET_S": "1"}
    if (migration := Pod(found["migrate"])).process.wait(60):
        raise SystemExit("the migration failed")
    services = [Pod(found["chat"], **env) for _ in range(found["chat"].replicas)]
    workers = [Pod(found["worker"], **env) for _ in range(found["worker"].replicas)]
    clients = Clients(args.customer)
    try:
        for service in services:
            service.wait_until_ready()
        clients.ports = [service.port for service in services]
        time.sleep(args.seconds)
        workers.pop().lose()
        workers.append(Pod(found["worker"], **env))
        well = roll(services, clients, env) and roll(workers, clients, env)
        time.sleep(args.seconds)
    finally:
        clients.stop()
        for pod in services + workers:
            well = pod.end() and well
    migration.end()
    last = subprocess.run(
        [sys.executable, "-m", "llm_metering", "deliver", "--once", "--timeout", "90", "--json"],
        env={**_system(), **found["worker"].env, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    left = json.loads(last.stdout)["left"] if last.stdout else last.stderr
    print(json.dumps({"answered": clients.answered, "left": left, "all_went_by_themselves": well}))
    return last.returncode


if __name__ == "__main__":
    raise SystemExit(main())
