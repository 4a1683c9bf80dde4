"""Celery, with a real worker on a broker in memory, and eagerly."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("celery", reason="celery is not installed")

from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.signals import before_task_publish, task_postrun, task_prerun
from llm_metering import Metering, MeteringMiddleware, Settings, Usage, from_state
from llm_metering.adapters.celery import carry_through_celery
from llm_metering.carrying import HEADER
from llm_metering.testing import capture_usage
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

pytestmark = pytest.mark.filterwarnings("ignore")  # Celery's own


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Metering]]:
    """One worker for all tests, since it takes seconds to stop; on a queue that no other test knows."""
    metering = Metering(ledger=tmp_path_factory.mktemp("home") / "ledger", settings=Settings())
    app = Celery("homes", broker="memory://", backend="cache+memory://")
    app.conf.update(worker_hijack_root_logger=False, task_default_queue=uuid.uuid4().hex)

    @app.task
    def use(tokens: int) -> None:
        metering.record(Usage(input=tokens))

    @app.task
    def use_and_send(tokens: int) -> None:
        metering.record(Usage(input=tokens))
        use.delay(tokens)

    @app.task
    def fail(tokens: int) -> None:
        metering.record(Usage(input=tokens))
        raise ValueError("after it was used")

    app.use, app.use_and_send, app.fail = use, use_and_send, fail
    before = [(signal, list(signal.receivers)) for signal in (before_task_publish, task_prerun, task_postrun)]
    carry_through_celery(metering, "a secret of services and workers")
    with start_worker(app, pool="threads", concurrency=4, perform_ping_check=False, shutdown_timeout=30):
        yield app, metering
    for signal, receivers in before:
        signal.receivers = receivers
        signal.sender_receivers_cache.clear()
    app.close()


@pytest.fixture
def queue(home: Any) -> Any:
    return home[0]


@pytest.fixture
def metering(home: Any) -> Metering:
    return home[1]


@pytest.fixture
def used(home: Any, make_used: Any) -> Iterator[Any]:
    with capture_usage(home[1]) as captured:
        yield make_used(captured, home[1])
    home[1].recorder.naming.resolver = None
    home[0].conf.task_always_eager = False


def test_tasks_bill_the_customer_of_whoever_sent_them(queue, metering, used):
    for n in range(1, 9):
        with metering.bound(customer=f"cus_{n}"):
            queue.use.delay(n)
            queue.use_and_send.delay(n * 10)
    used.becomes({f"cus_{n}": n * 21 for n in range(1, 9)})


def test_requests_at_once_never_mix_in_the_worker(queue, metering, used):
    metering.recorder.naming.resolver = from_state("customer")

    async def send(request: Request) -> Response:
        number = int(request.headers["x-number"])
        request.state.customer = f"cus_{number}"
        queue.use.delay(number)
        return PlainTextResponse("sent")

    app = Starlette(routes=[Route("/", send)])
    app.add_middleware(MeteringMiddleware, metering=metering)

    async def load() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            await asyncio.gather(
                *(client.get("/", headers={"x-number": str(n % 20 + 1)}) for n in range(100))
            )

    asyncio.run(load())
    used.becomes({f"cus_{n}": n * 5 for n in range(1, 21)})


def test_a_task_that_nobody_sent_or_that_is_forged_names_nobody(queue, metering, used):
    queue.use.delay(1)
    queue.use.apply_async((2,), headers={HEADER: "cus_victim"})
    used.becomes({None: 3})


def test_a_task_that_fails_leaves_the_next_one_alone(queue, metering, used):
    with metering.bound(customer="cus_1"):
        for _ in range(8):
            queue.fail.delay(1)
    for _ in range(8):
        queue.use.delay(1)
    used.becomes({"cus_1": 8, None: 8})


def test_an_eager_task_runs_in_the_context_of_the_call(queue, metering, used):
    queue.conf.task_always_eager = True
    with metering.bound(customer="cus_1"):
        queue.use.delay(5)
    used.becomes({"cus_1": 5})
    assert threading.current_thread() is threading.main_thread()
