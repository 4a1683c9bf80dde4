"""Meter events sent by hand, to try a set-up out. The usage of a service goes through `Metering`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, cast

from ..errors import ConfigurationError
from ..usage import NOTHING, MeterEvent
from .guides import EVENT_NAME
from .money import wire
from .refusals import doing

if TYPE_CHECKING:
    from stripe import StripeClient


@dataclass(frozen=True, slots=True)
class SentEvent:
    """A meter event that Stripe has."""

    event: MeterEvent
    duplicate: bool
    """Stripe had an event with this identifier already, so nothing was added."""


def send_test_event(
    client: StripeClient,
    customer: str,
    value: int | Decimal | str = 3000,
    *,
    identifier: str | None = None,
    event_name: str = EVENT_NAME,
    timestamp: int | None = None,
    customer_key: str = "stripe_customer_id",
    value_key: str = "value",
    dimensions: Mapping[str, str] = NOTHING,
) -> SentEvent:
    """Send one meter event by hand, as the guides do to try a set-up out.

    The pay-as-you-go guide says 3000 in its steps and 25 in its API sample; 25 tokens cost one package.
    An identifier that Stripe has already adds nothing and is no error. The customer is looked up first,
    since Stripe takes an event of an unknown one and reports it only later.
    """
    amount = _value(value)
    identifier = identifier or f"test-{uuid.uuid4()}"
    payload = {**dimensions, customer_key: customer, value_key: wire(amount)}
    params: dict[str, Any] = {"event_name": event_name, "payload": payload, "identifier": identifier}
    if timestamp is not None:
        params["timestamp"] = timestamp
    with doing(f"sending {wire(amount)} to meter {event_name!r}"):
        client.v1.customers.retrieve(customer)
        received_at = _send(client, params)
    at = received_at or timestamp or int(time.time())
    event = MeterEvent(identifier, event_name, customer, amount, at, payload)
    return SentEvent(event, duplicate=received_at is None)


def _value(value: int | Decimal | str) -> Decimal:
    """An exact decimal; negative ones are corrections. Stripe reads no exponents and no floats."""
    if isinstance(value, bool) or not isinstance(value, (int, Decimal, str)):
        raise ConfigurationError(f"value={value!r} must be a whole number, a Decimal or decimal text")
    try:
        amount = Decimal(value.strip() if isinstance(value, str) else value)
    except InvalidOperation:
        raise ConfigurationError(f"value={value!r} is not a number") from None
    if not amount.is_finite() or amount.adjusted() > 30 or len(amount.as_tuple().digits) > 40:
        raise ConfigurationError(f"value={value!r} is not a number that a meter takes")
    return amount


def _send(client: StripeClient, params: dict[str, Any]) -> int | None:
    """Stripe's timestamp of the event; None if it had the identifier already."""
    import stripe

    try:
        return client.v1.billing.meter_events.create(cast("Any", params)).timestamp
    except stripe.InvalidRequestError as exc:
        # The refusal carries no code; the wording is all there is.
        if "already exists with identifier" in (exc.user_message or ""):
            return None
        raise
