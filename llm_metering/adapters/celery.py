"""Celery: the customer of whoever sends a task is billed for what the task uses."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from ..carrying import HEADER, Carrier, Home
from ..errors import MissingExtra

try:
    from celery import signals
except ImportError as exc:
    raise MissingExtra("celery", "celery") from exc

_UID = "llm_metering.{}.{}"


def carry_through_celery(metering: Home, secret: str | bytes, *, header: str = HEADER) -> Carrier:
    """Have tasks carry the customer and dimensions of the place that sends them, signed.

        carry_through_celery(metering, os.environ["TASK_SECRET"])   # in the service, and in the worker

    A task that is sent without a customer has none; one that a task sends has that task's. A task's end waits
    until its usage is on disk. Headers that a caller set itself are left alone, and believed only if signed.

    Args:
        metering: The `Metering` of this process.
        secret: As of `Carrier`: the same for services and workers.
        header: The name of the task's header.

    Raises:
        ConfigurationError: The secret is too short.
    """
    carrier = Carrier(metering, secret)
    under_way: dict[str, ExitStack] = {}

    def publish(headers: dict[str, Any] | None = None, **more: Any) -> None:
        if headers is not None and header not in headers:
            try:
                headers[header] = carrier.pack()
            except Exception as exc:
                metering.recorder.telemetry.failure("carrier.pack", exc)

    def begin(task_id: str | None = None, task: Any = None, **more: Any) -> None:
        packed = _header_of(task, header)
        if packed is None and getattr(getattr(task, "request", None), "is_eager", False):
            return  # it runs where it was called, and in the context of the call
        stack = under_way[str(task_id)] = ExitStack()
        stack.enter_context(carrier.bound(packed))

    def end(task_id: str | None = None, **more: Any) -> None:
        if (stack := under_way.pop(str(task_id), None)) is not None:
            stack.close()

    for signal, receiver in (
        (signals.before_task_publish, publish),
        (signals.task_prerun, begin),
        (signals.task_postrun, end),
    ):
        uid = _UID.format(id(metering), receiver.__name__)
        signal.connect(receiver, weak=False, dispatch_uid=uid)
    return carrier


def _header_of(task: Any, header: str) -> Any:
    request = getattr(task, "request", None)
    headers = getattr(request, "headers", None) or {}
    # Celery lays a message's headers into the request itself; an eager task has them beside.
    return headers.get(header) or getattr(request, header, None)
