"""RQ, with its own worker over a Redis that lives in this process."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("rq", reason="rq is not installed")
pytest.importorskip("fakeredis", reason="fakeredis is not installed")

import fakeredis
from llm_metering import Metering, Usage
from llm_metering.carrying import HEADER, Carrier
from rq import Queue, SimpleWorker, get_current_job

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

WORKER: dict[str, Any] = {}
"""The metering and carrier of the worker's process; here it is this one."""


def use(tokens: int) -> None:
    """A task as a user writes it."""
    metering, carrier = WORKER["metering"], WORKER["carrier"]
    job = get_current_job()
    assert job is not None
    with carrier.bound(job.meta.get(HEADER)):
        metering.record(Usage(input=tokens))


@pytest.fixture
def queue(metering: Metering, carrier: Carrier, used: Any) -> Queue:
    WORKER.update(metering=metering, carrier=carrier)
    return Queue(connection=fakeredis.FakeStrictRedis())


def work(queue: Queue) -> None:
    SimpleWorker([queue], connection=queue.connection).work(burst=True, logging_level="ERROR")


def test_jobs_bill_the_customer_of_whoever_enqueued_them(queue, metering, carrier, used):
    for n in range(1, 9):
        with metering.bound(customer=f"cus_{n}"):
            queue.enqueue(use, n, meta={HEADER: carrier.pack()})
    work(queue)
    used.becomes({f"cus_{n}": n for n in range(1, 9)})


def test_a_job_without_or_with_forged_meta_names_nobody(queue, used):
    queue.enqueue(use, 1)
    queue.enqueue(use, 2, meta={HEADER: "cus_victim"})
    work(queue)
    used.becomes({None: 3})
