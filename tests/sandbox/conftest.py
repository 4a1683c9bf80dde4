"""A sandbox on a real port with a clock of its own, and the official SDK with every answer checked."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import stripe
from llm_metering.sandbox import Sandbox, Switches, running_sandbox

STRIPE_DATA = Path(__file__).parent.parent / "data" / "stripe"
START = 1_768_478_400
"""2026-01-15 12:00:00 UTC."""
NOT_IN_THE_SUBSET = {"/v1/account", "/v1/balance", "/v1/payment_methods/pm_card_visa/attach"}
"""What the sandbox answers and the schema file does not hold."""

stripe.enable_telemetry = False


@dataclass
class Clock:
    """The sandbox's time, for tests to move."""

    time: float = START

    def __call__(self) -> float:
        return self.time


@dataclass
class Inspector:
    """Holds every answer against the schema."""

    contract: Any
    problems: list[str] = field(default_factory=list)
    seen: int = 0

    def inspect(self, method: str, url: str, body: Any, status: int, content: bytes) -> None:
        parts = urlsplit(url)
        path = parts.path
        method = method.upper()
        if path in NOT_IN_THE_SUBSET:
            return
        try:
            self.contract.operation(method, path)
        except KeyError:
            if status != 404:
                self.problems.append(f"{method} {path} is not in the subset")
            return
        params = self._params(method, path, parts.query, body) if status < 400 else {}
        answer = json.loads(content)
        if method == "GET" and answer.get("deleted") is True:
            # The subset folds Stripe's deleted objects, which have three fields, into the living ones.
            assert answer.keys() == {"id", "object", "deleted"}
            return
        found = self.contract.check(method, path, params, status, answer)
        self.problems += [f"{method} {path} {status}: {problem}" for problem in found]
        self.seen += 1

    def _params(self, method: str, path: str, query: str, body: Any) -> Any:
        if method != "POST":
            params = self.contract.decode_form(method, path, query)
            if path.startswith("/v2/"):
                params.pop("page", None)  # the cursor in v2's own links, which no schema names
            return params
        if path.startswith("/v2/"):
            return json.loads(body or "{}")
        return self.contract.decode_form(method, path, body or "")


class CheckedClient(stripe.RequestsClient):
    """The SDK's own transport, with an inspector looking over its shoulder."""

    def __init__(self, inspector: Inspector) -> None:
        super().__init__()
        self.inspector = inspector

    def request(self, method: str, url: str, headers: Any, post_data: Any = None) -> Any:
        content, status, answer_headers = super().request(method, url, headers, post_data)
        self.inspector.inspect(method, url, post_data, status, content)
        return content, status, answer_headers


@pytest.fixture(scope="session")
def contract() -> Any:
    spec = importlib.util.spec_from_file_location("check_contract", STRIPE_DATA / "check_contract.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Contract(STRIPE_DATA / "openapi-subset.json", strict=True)


@pytest.fixture(scope="session")
def _clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def _running(_clock: Clock) -> Iterator[Sandbox]:
    with running_sandbox(now=_clock) as sandbox:
        yield sandbox


@pytest.fixture
def clock(_clock: Clock) -> Clock:
    """The sandbox's time, at START."""
    _clock.time = START
    return _clock


@pytest.fixture
def sandbox(_running: Sandbox, clock: Clock) -> Sandbox:
    """An empty sandbox with its default switches."""
    _running.reset()
    _running.set_switches(**asdict(Switches()))
    return _running


@pytest.fixture
def inspector(contract: Any) -> Iterator[Inspector]:
    inspector = Inspector(contract)
    yield inspector
    assert not inspector.problems, "\n".join(inspector.problems)


@pytest.fixture
def checked(inspector: Inspector) -> CheckedClient:
    """A transport for the official SDK. Each answer is checked, strictly, at the end of the test."""
    return CheckedClient(inspector)


@pytest.fixture
def api(sandbox: Sandbox, checked: CheckedClient) -> Any:
    """The official SDK's v1 services, their answers checked."""
    return sandbox.client(http_client=checked).v1


@pytest.fixture
def shop(api: Any) -> Any:
    """What most tests need, as the pay-as-you-go guide makes it: a meter, a package price, a customer."""
    meter = api.billing.meters.create(
        {
            "display_name": "Hypernian tokens",
            "event_name": "hypernian_tokens",
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"event_payload_key": "stripe_customer_id", "type": "by_id"},
            "value_settings": {"event_payload_key": "value"},
        }
    )
    price = api.prices.create(
        {
            "currency": "usd",
            "unit_amount": 4,
            "billing_scheme": "per_unit",
            "transform_quantity": {"divide_by": 100, "round": "up"},
            "recurring": {"usage_type": "metered", "interval": "month", "meter": meter.id},
            "product_data": {"name": "Hypernian tokens"},
        }
    )
    customer = api.customers.create({"name": "John Doe"})

    def use(value: Any, customer: str = customer.id, **event: Any) -> Any:
        payload = {"stripe_customer_id": customer, "value": str(value), **event.pop("payload", {})}
        return api.billing.meter_events.create(
            {"event_name": "hypernian_tokens", "payload": payload, **event}
        )

    def metered(**price: Any) -> Any:
        """A metered monthly price of the same meter."""
        recurring = {"usage_type": "metered", "interval": "month", "meter": meter.id}
        product = price.pop("product_data", {"name": "Hypernian usage"})
        return api.prices.create(
            {"currency": "usd", "recurring": recurring, "product_data": product, **price}
        )

    def licence(**price: Any) -> Any:
        given = {
            "currency": "usd",
            "billing_scheme": "per_unit",
            "unit_amount_decimal": "10000",
            "recurring": {"usage_type": "licensed", "interval": "month", "interval_count": 1},
            "product_data": {"name": "Hypernian License fee"},
        }
        return api.prices.create({**given, **price})

    def subscribe(*prices: Any, **given: Any) -> Any:
        items = [{"price": one.id} for one in prices]
        return api.subscriptions.create({"customer": customer.id, "items": items, **given})

    def preview(subscription: Any) -> Any:
        return api.invoices.create_preview({"subscription": subscription.id})

    return SimpleNamespace(
        api=api,
        meter=meter,
        price=price,
        customer=customer,
        use=use,
        metered=metered,
        licence=licence,
        subscribe=subscribe,
        preview=preview,
    )


def refused(call: Any, *args: Any, **kwargs: Any) -> stripe.StripeError:
    """The error that a call ends with."""
    with pytest.raises(stripe.StripeError) as caught:
        call(*args, **kwargs)
    return caught.value


@pytest.fixture(name="refused")
def _refused() -> Any:
    return refused
