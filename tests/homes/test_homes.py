"""Scripts, threads, process pools, task groups and trio: the customer goes along, and to nobody else."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import random
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio import to_thread
from llm_metering import MeteringMiddleware, Usage, from_state
from llm_metering.carrying import Carrier
from llm_metering.ledger import LedgerView
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tests.homes import jobs


def sums(folder: Path) -> dict[str | None, int]:
    """Tokens by customer, in a ledger on disk."""
    found: dict[str | None, int] = {}
    for balance in LedgerView(folder).balances():
        found[balance.customer] = found.get(balance.customer, 0) + int(balance.recorded)
    return found


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_canaries_of_hundreds_of_tasks_and_threads_each_land_on_their_own_customer(metering, used, backend):
    """Customer n uses n tokens at a time, in nested tasks and threads that take turns at random."""
    draw = random.Random(7)
    metering.recorder.naming.resolver = None

    async def one(n: int) -> None:
        with metering.bound(customer=f"cus_{n}"):
            metering.record(Usage(input=n))
            await anyio.sleep(draw.random() / 100)
            async with anyio.create_task_group() as group:
                group.start_soon(inner, n)
                group.start_soon(inner, n)
            await to_thread.run_sync(metering.record, Usage(input=n))

    async def inner(n: int) -> None:
        await anyio.sleep(draw.random() / 100)
        metering.record(Usage(input=n))
        with metering.bound(customer=f"cus_{n + 1000}"):
            await to_thread.run_sync(metering.record, Usage(input=n + 1000))
        await anyio.sleep(0)
        metering.record(Usage(input=n))

    async def all_of_them() -> None:
        async with anyio.create_task_group() as group:
            for n in range(1, 151):
                group.start_soon(one, n)

    anyio.run(all_of_them, backend=backend)
    expected: dict[str | None, int] = {f"cus_{n}": 6 * n for n in range(1, 151)}
    expected |= {f"cus_{n + 1000}": 2 * (n + 1000) for n in range(1, 151)}
    used.becomes(expected)


def test_canaries_of_hundreds_of_requests_at_once_each_land_on_their_own_customer(metering, used):
    """Each request uses its number in the handler, a task, a thread, a pool of its own and a background task;
    some fail."""
    metering.recorder.naming.resolver = from_state("customer")
    pool = ThreadPoolExecutor(8)

    def use(n: int) -> None:
        metering.record(Usage(input=n))

    async def use_soon(n: int) -> None:
        await asyncio.sleep(random.random() / 50)
        use(n)

    async def work(request: Request) -> Response:
        n = int(request.headers["x-number"])
        use(n)  # before anybody is known
        await asyncio.sleep(random.random() / 50)
        request.state.customer = f"cus_{n}"
        task = asyncio.create_task(use_soon(n))
        await asyncio.gather(run_in_threadpool(use, n), use_soon(n))
        done = pool.submit(contextvars.copy_context().run, use, n)
        await asyncio.wrap_future(done)
        await task
        if n % 7 == 0:
            raise RuntimeError("after it was used")
        return PlainTextResponse("ok", background=BackgroundTask(use_soon, n))

    app = Starlette(routes=[Route("/", work)])
    app.add_middleware(MeteringMiddleware, metering=metering)

    async def load() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://app", timeout=60) as client:
            await asyncio.gather(*(client.get("/", headers={"x-number": str(n)}) for n in range(1, 301)))

    asyncio.run(load())
    pool.shutdown()
    used.becomes({f"cus_{n}": (5 if n % 7 == 0 else 6) * n for n in range(1, 301)})


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup is new in Python 3.11")
def test_the_tasks_of_a_task_group_bill_the_customer_round_it(metering, used):
    async def one(n: int) -> None:
        async def use() -> None:
            await asyncio.sleep(0)
            metering.record(Usage(input=n))

        with metering.bound(customer=f"cus_{n}"):
            async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined, unused-ignore]
                for _ in range(3):
                    group.create_task(use())

    async def both() -> None:
        await asyncio.gather(*(one(n) for n in range(1, 21)))

    asyncio.run(both())
    used.becomes({f"cus_{n}": 3 * n for n in range(1, 21)})


def test_a_plain_thread_has_no_customer_until_it_is_told(metering, used):
    """Only Python 3.14 hands the context on; what must not be is another's customer."""

    def work(context: Any) -> None:
        metering.record(Usage(input=1))
        context.run(metering.record, Usage(input=10))
        with metering.bound(customer="cus_b"):
            metering.record(Usage(input=100))

    with metering.bound(customer="cus_a"):
        thread = threading.Thread(target=work, args=(contextvars.copy_context(),))
        thread.start()
        thread.join()
    found = used.by_customer()
    assert found.pop("cus_b") == 100
    assert found in ({None: 1, "cus_a": 10}, {"cus_a": 11})


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_pool_bills_whom_each_job_says(metering, carrier, secret, tmp_path, method):
    """The processes are started inside of one customer's block, and live on for others."""
    folder = tmp_path / "pool"
    with metering.bound(customer="cus_first"):
        pool = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context(method), initializer=jobs.begin, initargs=(str(folder),)
        )
        waiting = [pool.submit(jobs.use, 1, "ambient", secret)]
        wait(waiting, 60)
    for n in range(1, 6):
        with metering.bound(customer=f"cus_{n}"):
            waiting.append(pool.submit(jobs.use, 10 * n, carrier.pack(), secret))
    waiting += [pool.submit(jobs.use, 5, "ambient", secret), pool.submit(jobs.end)]
    for each in waiting:
        each.result(60)
    pool.shutdown()
    assert sums(folder) == {None: 6, **{f"cus_{n}": 10 * n for n in range(1, 6)}}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_pool_does_not_bill_whoever_started_it(secret, tmp_path):
    """As in a service: the pool's process has the parent's `Metering`, and is forked inside of a request."""
    jobs.begin(str(tmp_path / "pool"))
    parent = jobs.metering()
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    with parent.bound(customer="cus_first"):
        waiting = [pool.submit(jobs.use, 1, "ambient", secret)]
        wait(waiting, 60)
    with parent.bound(customer="cus_second"):
        waiting.append(pool.submit(jobs.use, 2, "ambient", secret))
        waiting.append(pool.submit(jobs.use, 4, Carrier(parent, secret).pack(), secret))
    waiting.append(pool.submit(jobs.end))
    for each in waiting:
        each.result(60)
    pool.shutdown()
    assert sums(tmp_path / "pool") == {None: 3, "cus_second": 4}


def test_a_script_bills_whom_it_names(tmp_path):
    code = """
        import sys
        from llm_metering import Metering, Settings, Usage
        metering = Metering(ledger=sys.argv[1], settings=Settings())
        for n in range(1, 4):
            with metering.bound(customer=f"cus_{n}"):
                metering.record(Usage(input=n))
        metering.record(Usage(input=50))
    """
    folder = tmp_path / "ledger"
    run = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    assert subprocess.run(run, capture_output=True, text=True, timeout=60, check=True).stdout == ""
    assert sums(folder) == {"cus_1": 1, "cus_2": 2, "cus_3": 3, None: 50}
