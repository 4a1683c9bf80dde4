"""Disks that fail for real under a service in a process of its own: full, capped, read-only, failing to sync.

Rows 26, 27 and 28 of docs/faults.md. Mounting needs root and a Linux that lets root mount, which not every
container does; where it does, nothing is skipped in CI.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from llm_metering.cli.demo_load import Call, Fate, calls
from llm_metering.cli.stage import Server
from tests.e2e.conftest import KEYS

if sys.platform != "linux":
    pytest.skip("mounts, loop devices and prlimit are Linux's", allow_module_level=True)
import resource

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MIB = 1024 * 1024
CAP_SYS_ADMIN = 21
EXAMPLE = Path(__file__).parents[2] / "examples/fastapi_chat"
METER_EVENTS = "/v1/billing/meter_events"
COMMIT_TIMEOUT_S = 1.0
NOT_READY_WITHIN_S = 10.0
"""A disk that fails for two seconds counts as full; it is tried again every 5 seconds at least."""

APP = f'''
"""The chat example with a readiness endpoint."""
import sys
sys.path.insert(0, {str(EXAMPLE)!r})
from app import app, metering
from llm_metering import health_endpoint
app.mount("/ready", health_endpoint(metering))
'''

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


class Service:
    """A service whose ledger lies on a disk of its own, and its callers."""

    def __init__(self, world: Any, ledger: Path, policy: str) -> None:
        self.world = world
        world.ledger = ledger
        (world.stage.folder / "on_disk.py").write_text(APP)
        self.policy = policy
        self._calls = iter(calls(seed=5, count=1000, keys=KEYS))
        self.server: Server = world.start(
            world.stage.folder,
            "on_disk:app",
            LLM_METERING_AT_CAPACITY=policy,
            LLM_METERING_MIN_FREE_BYTES="0",
            LLM_METERING_COMMIT_TIMEOUT_S=str(COMMIT_TIMEOUT_S),
        )

    @property
    def pid(self) -> int:
        assert self.server.process is not None
        return self.server.process.pid

    def get(self, path: str) -> tuple[int, bytes]:
        status, body, _ = self._request("GET", path)
        return status, body

    def is_ready(self) -> bool:
        return self.get("/ready/")[0] == 200

    def ask(self, count: int = 1) -> list[int]:
        """Ask, one after the other; the statuses. Answers are noted with their ids."""
        return [self._ask(next(self._calls)) for _ in range(count)]

    def _ask(self, call: Call) -> int:
        headers = {"Authorization": f"Bearer {call.key}", "Content-Type": "application/json"}
        status, body, response = self._request("POST", call.path, json.dumps(call.body), headers)
        if status == 200:
            self.world.fates.append(Fate(call, whole=True, response_id=_id_of(body)))
        else:
            assert response["retry-after"] == "5"
            assert json.loads(body)["error"]["code"] == "metering_unavailable"
        return status

    def _request(self, method: str, path: str, *args: Any) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        try:
            connection.request(method, path, *args)
            answer = connection.getresponse()
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()

    def find_out(self) -> None:
        """Nothing but usage that cannot be written tells the policy; a disk may hesitate for 2 seconds."""
        self.ask()
        self.world.wait_for(lambda: not self.is_ready(), timeout_s=NOT_READY_WITHIN_S)
        time.sleep(2.2)

    def alarms(self) -> str:
        return self.server.log.read_text(errors="replace")

    def send_slowly(self, seconds: float) -> None:
        """Have requests to Stripe under way, whose outcomes come in some seconds."""
        self.world.sandbox.fault("slow", path=METER_EVENTS, seconds=seconds, count=8)
        assert set(self.ask(12)) == {200}
        self.world.wait_for(lambda: self.world.status().events.get("SENDING"))

    def obeys_its_policy(self) -> None:
        """Now no model is called whose usage has no place, and nobody else is held up."""
        before = len(self.world.provider.answers)
        began = time.monotonic()
        status, body = self.get("/ready/")
        assert status == 503
        assert json.loads(body)["reasons"]
        assert self.get("/health") == (200, b'{"status":"ok"}')
        assert time.monotonic() - began < 2, "what is not metered was held up"
        began = time.monotonic()
        answers = self.ask(4)
        took = time.monotonic() - began
        if self.policy == "allow_unmetered":
            assert answers == [200] * 4
            assert took < 4 * COMMIT_TIMEOUT_S, "it waited for a disk that is known to fail"
            assert "capacity.unmetered" in self.alarms()
            return
        assert answers == [503] * 4
        assert len(self.world.provider.answers) == before, "the model was called"
        if self.policy == "block":
            assert took >= 4 * COMMIT_TIMEOUT_S * 0.9
        else:
            assert took < 4 * COMMIT_TIMEOUT_S * 0.75, "it waited for a disk that is known to fail"

    def is_well_again(self) -> None:
        """Everything that was answered is billed, once; the service takes usage again."""
        self.world.wait_for(self.is_ready, timeout_s=20)
        assert self.ask(6) == [200] * 6
        self.world.wait_for_delivery()
        found = self.world.compare()
        assert found.is_right, found.problems
        assert found.answered == len(self.world.fates)
        assert found.cut_recorded == 0
        assert self.world.status().conserved
        assert self.world.status().events.keys() == {"ACCEPTED"}


def _id_of(body: bytes) -> str:
    if body.startswith(b"data: "):
        assert body.endswith(b"data: [DONE]\n\n"), "the stream is not whole"
        return str(json.loads(body.split(b"\n\n")[0].removeprefix(b"data: "))["id"])
    return str(json.loads(body)["id"])


# ---- a full disk


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs") as place:
        yield place


@contextmanager
def mounted(place: Path, *how: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    may_mount(*how)
    run("mount", *how, str(place))
    try:
        yield place
    finally:
        run("umount", "--lazy", str(place))


def may_mount(*how: str) -> None:
    """Skip where not even root may mount, such as in a container without the right or without loops."""
    if "loop" in how:
        tried = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False)
        if tried.returncode:
            pytest.skip(f"there is no loop device: {tried.stderr.strip()}")
    status = Path("/proc/self/status").read_text()
    held = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    if not held >> CAP_SYS_ADMIN & 1:
        pytest.skip("root may not mount here")


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def fill(place: Path) -> Path:
    """Take every block that is left."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (64 * 1024, 4096, 512):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    assert shutil.disk_usage(place).free == 0
    return filler


@needs_root
@pytest.mark.parametrize("policy", ["reject", "block", "allow_unmetered"])
def test_a_disk_that_is_full_while_outcomes_are_on_their_way(world, tmpfs, policy):
    service = Service(world, tmpfs / "ledger", policy)
    assert set(service.ask(6)) == {200}
    world.wait_for_delivery()
    service.send_slowly(2.0)
    filler = fill(tmpfs)
    world.wait_for_delivery()  # with the disk still full: the ballast is for this
    assert filler.exists()
    assert not service.is_ready(), "nothing has tried to write, but it could not"
    service.find_out()
    service.obeys_its_policy()
    assert "ledger.full" in service.alarms()
    filler.unlink()
    service.is_well_again()
    assert "ledger.writing_again" in service.alarms()


@needs_root
def test_a_service_that_is_killed_on_a_full_disk_starts_on_it_and_drains(world, tmpfs):
    service = Service(world, tmpfs / "ledger", "reject")
    service.send_slowly(6.0)
    filler = fill(tmpfs)
    service.server.kill()
    world.sandbox.app.faults.clear()
    world.stage.relaunch(service.server)
    world.wait_for_delivery()
    world.wait_for(lambda: not service.is_ready(), timeout_s=NOT_READY_WITHIN_S)
    assert service.get("/health")[0] == 200
    filler.unlink()
    service.is_well_again()


# ---- a cap on file sizes


def test_a_cap_on_file_sizes_keeps_usage_in_memory_and_outcomes_for_later(world, tmp_path):
    service = Service(world, tmp_path / "ledger", "reject")
    assert set(service.ask(6)) == {200}
    world.wait_for_delivery()
    service.send_slowly(2.0)
    _, hard = resource.prlimit(service.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (4096, hard))
    assert set(service.ask(2)) == {200}, "a disk that hesitates for a moment stops nobody"
    service.find_out()
    service.obeys_its_policy()
    time.sleep(2.5)  # outcomes have come meanwhile, and could not be kept
    assert world.status().events.get("SENDING"), "their intents are on disk"
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (hard, hard))
    service.is_well_again()


# ---- a device that refuses to write


class Device:
    """A file system on a block device whose own storage can run out: writes fail when they are synced."""

    def __init__(self, folder: Path, *features: str) -> None:
        for tool in ("mkfs.ext4", "losetup", "e2fsck"):
            if shutil.which(tool) is None and not os.environ.get("CI"):
                pytest.skip(f"{tool} is not installed")
        self.back, self.place = folder / "back", folder / "disk"
        self.image = self.back / "image"
        self.features = features

    @contextmanager
    def storage(self) -> Iterator[None]:
        with mounted(self.back, "-t", "tmpfs", "-o", "size=64m", "tmpfs"):
            with self.image.open("wb") as file:
                file.truncate(24 * MIB)
            run("mkfs.ext4", "-q", "-m", "0", *self.features, str(self.image))
            yield

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        with mounted(self.place, "-o", "loop", str(self.image)):
            self.place.chmod(0o700)
            yield self.place

    def refuse(self) -> None:
        """From now on no block is given out, and none that was never written can be."""
        used = int(run("df", "--output=used", "-k", str(self.back)).split()[-1])
        run("mount", "-o", f"remount,size={used}k", str(self.back))

    def relent(self) -> None:
        run("mount", "-o", "remount,size=64m", str(self.back))


@needs_root
def test_a_device_that_fails_to_sync_keeps_usage_in_memory_and_loses_nothing(world, tmp_path):
    device = Device(tmp_path, "-O", "^has_journal")
    with device.storage(), device.mounted() as place:
        service = Service(world, place / "ledger", "reject")
        assert set(service.ask(6)) == {200}
        world.wait_for_delivery()
        device.refuse()
        asked = 0
        while service.is_ready() and asked < 200:  # until the log needs a block that there was not
            assert service.ask() == [200]
            asked += 1
        service.find_out()
        service.obeys_its_policy()
        assert "disk I/O error" in service.alarms()
        device.relent()
        service.is_well_again()
        service.server.stop()


@needs_root
def test_a_file_system_that_turns_read_only_under_a_service(world, tmp_path):
    """As the kernel does it after an error: with files open for writing, and for good until it is checked."""
    device = Device(tmp_path)
    with device.storage():
        with device.mounted() as place:
            service = Service(world, place / "ledger", "reject")
            assert set(service.ask(6)) == {200}
            world.wait_for_delivery()
            service.send_slowly(1.0)
            run("mount", "-o", "remount,abort", str(place))
            with pytest.raises(OSError, match="Read-only"):
                (place / "x").write_text("x")
            assert not service.is_ready()
            service.find_out()
            # What is answered while nothing can be written is in memory only; an alarm has said so.
            assert "ledger.slow" in service.alarms()
            world.fates.pop()
            world.provider.answers.pop()
            service.obeys_its_policy()
            service.server.kill()
        subprocess.run(["e2fsck", "-fp", str(device.image)], check=False, capture_output=True)
        with device.mounted():
            world.stage.relaunch(service.server)
            service.is_well_again()
            service.server.stop()
