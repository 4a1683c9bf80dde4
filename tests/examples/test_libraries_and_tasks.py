"""The adapters' script, the Celery tasks with a worker of their own, the relay of Realtime conversations."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from llm_metering.cli.stage import free_port
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

pytestmark = pytest.mark.once

EXAMPLES = Path(__file__).parents[2] / "examples"


def openai_env(ground: Any) -> dict[str, str]:
    return {"OPENAI_BASE_URL": f"{ground.provider.url}/v1", "OPENAI_API_KEY": "any"}


@pytest.mark.slow
def test_what_each_library_uses_is_billed_once(ground):
    for name in ("agents", "langchain_core", "litellm", "pydantic_ai"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    script = str(EXAMPLES / "adapters" / "script.py")
    done = subprocess.run(
        [sys.executable, script], env=ground.env(**openai_env(ground)), cwd=ground.stage.folder,
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = ground.records(5)
    assert sorted((r["surface"], r["dimensions"]["via"], r["customer"]) for r in records) == [
        ("langchain", "langchain", "cus_ada"),
        ("litellm", "litellm", "cus_ada"),
        ("openai_agents", "openai-agents", "cus_ada"),
        ("opentelemetry", "opentelemetry", "cus_ada"),
        ("pydantic_ai", "pydantic-ai", "cus_ada"),
    ]


@pytest.mark.slow
def test_a_workers_tasks_are_billed_to_whoever_sent_them(ground):
    pytest.importorskip("celery", reason="celery is not installed")
    folder = ground.stage.folder / "broker"
    folder.mkdir()
    env = ground.env(
        **openai_env(ground), TASK_SECRET="a secret of service and worker", CELERY_BROKER="filesystem://",
        CELERY_BROKER_FOLDER=str(folder),
    )  # fmt: skip
    home = EXAMPLES / "celery_tasks"
    for customer in ("cus_ada", "cus_ben"):
        send = [sys.executable, str(home / "tasks.py"), customer, "the sea"]
        subprocess.run(send, env=env, cwd=ground.stage.folder, check=True, timeout=60)
    command = [sys.executable, "-m", "celery", "--workdir", str(home), "--app", "tasks", "worker",
               "--pool", "prefork", "--concurrency", "2", "--loglevel", "error",
               "--without-gossip", "--without-mingle", "--without-heartbeat"]  # fmt: skip
    worker = subprocess.Popen(
        command, env=env, cwd=ground.stage.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not list(ground.ledger.glob("lane-*.db")) and time.monotonic() < deadline:
            time.sleep(0.1)
        records = ground.records(2)
    finally:
        worker.terminate()
        worker.wait(30)
    assert sorted((r["customer"], r["dimensions"]["feature"]) for r in records) == [
        ("cus_ada", "tasks"),
        ("cus_ben", "tasks"),
    ]


@pytest.fixture
def upstream() -> Iterator[str]:
    """A provider that answers each message with the usage of one answer."""

    async def talk(client: WebSocket) -> None:
        await client.accept()
        model = client.query_params["model"]
        await client.send_text(json.dumps({"type": "session.created", "session": {"model": model}}))
        turn = 0
        async for _ in client.iter_text():
            turn += 1
            usage = {"input_tokens": 10 * turn, "output_tokens": turn, "total_tokens": 11 * turn}
            response = {"id": f"resp_{turn}", "usage": usage}
            await client.send_text(json.dumps({"type": "response.done", "response": response}))

    with socket.create_server(("127.0.0.1", 0)) as taken:
        app = Starlette(routes=[WebSocketRoute("/v1/realtime", talk)])
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="wsproto"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{taken.getsockname()[1]}/v1/realtime"
        server.should_exit = True
        thread.join(10)


def test_each_answer_of_a_relayed_conversation_is_billed_to_its_caller(ground, upstream):
    client = pytest.importorskip("websockets.sync.client", reason="websockets is not installed")
    port = free_port()
    folder = str(EXAMPLES / "realtime_relay")
    command = [sys.executable, "-m", "uvicorn", "--app-dir", folder, "app:app", "--port", str(port),
               "--ws", "wsproto", "--log-level", "warning"]  # fmt: skip
    env = ground.env(RELAY_UPSTREAM=upstream, RELAY_UPSTREAM_KEY="any", RELAY_API_KEYS="key-ada=cus_ada")
    server = ground.stage.launch("relay", command, env=env, port=port, ready_path="/")
    ground.stage.wait_for(server)
    with client.connect(
        f"ws://127.0.0.1:{port}/v1/realtime?model=gpt-realtime",
        additional_headers={"Authorization": "Bearer key-ada"},
    ) as conversation:
        assert json.loads(conversation.recv())["type"] == "session.created"
        for turn in (1, 2, 3):
            conversation.send("{}")
            assert json.loads(conversation.recv())["response"]["id"] == f"resp_{turn}"
    records = ground.records(3)
    assert [(r["customer"], r["model"], sum(r["counts"].values())) for r in records] == [
        ("cus_ada", "gpt-realtime", 11), ("cus_ada", "gpt-realtime", 22), ("cus_ada", "gpt-realtime", 33),
    ]  # fmt: skip
