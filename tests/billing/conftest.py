"""A real sandbox over a socket, and clients that write down, check and break their calls."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import stripe
from llm_metering.sandbox import Sandbox, running_sandbox

stripe.enable_telemetry = False

CONTRACT = Path(__file__).parent.parent / "data" / "stripe" / "check_contract.py"


class Died(Exception):
    """What a killed process looks like from inside."""


class Line(stripe.RequestsClient):
    """An HTTP client that keeps a log, and can break before or after any call."""

    def __init__(self) -> None:
        import requests

        session = requests.Session()
        session.trust_env = False
        super().__init__(timeout=10, session=session)
        self.log: list[tuple[str, str, Any, int, Any]] = []
        self.break_at: int | None = None
        self.break_after_sending = False
        self.before: Callable[[str, str], object] = lambda method, path: None

    def request(self, method: str, url: str, headers: Any, post_data: Any = None) -> Any:
        parts = urlsplit(url)
        number = len(self.log)
        self.before(method, parts.path)
        if number == self.break_at and not self.break_after_sending:
            raise Died(f"before {method} {parts.path}")
        body, status, answered = super().request(method, url, headers, post_data)
        sent = parts.query if method == "get" else post_data
        self.log.append((method.upper(), parts.path, sent, status, _decoded(body)))
        if number == self.break_at and self.break_after_sending:
            raise Died(f"after {method} {parts.path}")
        return body, status, answered

    @property
    def writes(self) -> list[str]:
        return [f"{method} {path}" for method, path, *_ in self.log if method != "GET"]


def _decoded(body: Any) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body


@pytest.fixture(scope="session")
def one_sandbox() -> Iterator[Sandbox]:
    with running_sandbox() as running:
        yield running


@pytest.fixture
def sandbox(one_sandbox: Sandbox) -> Sandbox:
    """A real sandbox on a socket, empty."""
    one_sandbox.clear_faults()
    one_sandbox.reset()
    return one_sandbox


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def dial(sandbox: Sandbox) -> Callable[..., stripe.StripeClient]:
    """Make a client; its log is kept by the `Line` it is given."""

    def call(line: Line | None = None, *, retries: int = 0) -> stripe.StripeClient:
        return sandbox.client(http_client=line or Line(), max_network_retries=retries)

    return call


@pytest.fixture
def client(dial: Callable[..., stripe.StripeClient], line: Line) -> stripe.StripeClient:
    return dial(line)


@pytest.fixture
def objects(sandbox: Sandbox) -> Callable[[], dict[str, list[Any]]]:
    """Everything that the account has, through a client of its own."""
    looker = sandbox.client(http_client=Line())

    def look() -> dict[str, list[Any]]:
        v1 = looker.v1
        lists: dict[str, Any] = {
            "meters": v1.billing.meters.list({"limit": 100}),
            "products": v1.products.list({"limit": 100}),
            "prices": v1.prices.list({"limit": 100, "expand": ["data.tiers"]}),
            "customers": v1.customers.list({"limit": 100}),
            "subscriptions": v1.subscriptions.list({"limit": 100, "status": "all"}),
        }
        return {name: [item.to_dict() for item in page.auto_paging_iter()] for name, page in lists.items()}

    return look


@pytest.fixture(scope="session")
def contract() -> Any:
    spec = importlib.util.spec_from_file_location("check_contract", CONTRACT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Contract()
